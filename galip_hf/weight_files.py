"""The files of a model's weights: what may be loaded of them, and what is wrong with them."""

import json
import os
from collections.abc import Mapping
from pickle import PickleError
from typing import Any

from huggingface_hub import get_token, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError

from .errors import GalipError

# What is wrong with the files or with the Hub comes in many kinds; a wrong argument is a TypeError.
LOADING_ERRORS = (SafetensorError, OSError, ValueError, RuntimeError, HTTPError, PickleError, EOFError)


def loading_fault(error: Exception, weights: str, token: str | bool | None) -> str:
    """Why a model with the file `weights` was not loaded, in one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    for secret in (token, get_token()):  # should a server have quoted it
        if isinstance(secret, str) and secret:
            reason = reason.replace(secret, "<token>")
    if isinstance(error, SafetensorError):
        return f"the weights (*.safetensors) are damaged: {reason}"
    if "use_safetensors" in reason or f"file named {weights}" in reason:
        return (
            f"no {weights} in it; weights in a pickle (.bin, .pt, .pth) are refused because a pickle can run "
            "code: ask its owner for safetensors"
        )
    return reason


def check_shards(index: Any) -> None:
    """Refuse a list of weight files, if there is one, that leads out of its folder or to a pickle."""
    if not isinstance(index, str) or not os.path.isfile(index):
        return
    try:
        with open(index, encoding="utf-8") as file:
            names = set(json.load(file)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise GalipError(f"{index}: not readable; expected JSON with a 'weight_map' of file names") from None
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(".safetensors"):
            raise GalipError(f"{index}: names {name!r}; expected *.safetensors files in the same folder")


def cached_file(repo: str, name: str, options: Mapping[str, Any]) -> Any:
    """Path of a repository's file in the cache, if it is there; `options` as in `from_pretrained`."""
    path = f"{options['subfolder']}/{name}" if options.get("subfolder") else name
    return try_to_load_from_cache(
        repo, path, cache_dir=options.get("cache_dir"), revision=options.get("revision")
    )


__all__ = ["LOADING_ERRORS", "cached_file", "check_shards", "loading_fault"]
