"""The files of a model's weights: what may be loaded of them, and what is wrong with them."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING, Any

from huggingface_hub import get_token, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors import SafetensorError

from .errors import GalipError

if TYPE_CHECKING:
    from torch import Tensor

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
        return _no_weights(weights)
    return reason


def _no_weights(name: str) -> str:
    return (
        f"no {name} in it; weights in a pickle (.bin, .pt, .pth) are refused because a pickle can run code: "
        "ask its owner for safetensors"
    )


def check_directory(path: str, subfolder: str = "") -> None:
    """Refuse a file, or a directory without config.json; what does not exist may be a repository's name."""
    folder = os.path.join(path, subfolder) if subfolder else path
    if os.path.isfile(path) or (
        os.path.isdir(path) and not os.path.isfile(os.path.join(folder, "config.json"))
    ):
        raise GalipError(
            f"{folder}: not a model directory (no config.json in it); expected one written by save_pretrained"
        )


def file_names(variant: str | None) -> tuple[str, str]:
    """Of the weights in one file, and of the list of several: `ema` stands for model.ema.safetensors."""
    suffix = f".{variant}" if variant else ""
    return f"model{suffix}.safetensors", f"model.safetensors.index{suffix}.json"


def check_shards(index: Any) -> list[str]:
    """Names of the files that a list of weight files, if there is one, consists of.

    Raises:
        GalipError: the list is not readable, leads out of its folder or to a pickle.
    """
    if not isinstance(index, str) or not os.path.isfile(index):
        return []
    try:
        with open(index, encoding="utf-8") as file:
            names = set(json.load(file)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise GalipError(f"{index}: not readable; expected JSON with a 'weight_map' of file names") from None
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(".safetensors"):
            raise GalipError(f"{index}: names {name!r}; expected *.safetensors files in the same folder")
    return sorted(names)


def read_weights(directory: str | os.PathLike[str], variant: str | None = None) -> "dict[str, Tensor]":
    """The weights in a model directory, in one file or several.

    Raises:
        GalipError: none in it, damaged, or named in a list that `check_shards` refuses.
    """
    from safetensors.torch import load_file

    whole, index = file_names(variant)
    names = [whole]
    if not os.path.isfile(os.path.join(directory, whole)):
        names = check_shards(os.path.join(directory, index)) or names
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            weights |= load_file(os.path.join(directory, name))
        except FileNotFoundError:
            raise GalipError(f"{directory}: {_no_weights(name)}") from None
        except LOADING_ERRORS as error:
            raise GalipError(f"{directory}: {loading_fault(error, name, None)}") from None
    return weights


def check_fit(directory: str, **faulty: Collection[object]) -> None:
    """Refuse weights that are `missing`, `unexpected` or `mismatched`; GalipError says how many of each."""
    faults = [
        f"{len(keys)} {kind} (e.g. {sorted(map(str, keys))[0]})" for kind, keys in faulty.items() if keys
    ]
    if faults:
        raise GalipError(f"{directory}: the weights do not fit config.json: {'; '.join(faults)}")


def cached_file(repo: str, name: str, options: Mapping[str, Any]) -> Any:
    """Path of a repository's file in the cache, if it is there; `options` as in `from_pretrained`."""
    path = f"{options['subfolder']}/{name}" if options.get("subfolder") else name
    try:
        return try_to_load_from_cache(
            repo, path, cache_dir=options.get("cache_dir"), revision=options.get("revision")
        )
    except HFValidationError:  # the path of a directory that is not there: no name of a repository
        return None


def remove_damaged(paths: Iterable[Path]) -> list[Path]:
    """Those of some files in the Hub's cache that differ from the Hub's checksum, taken out of the cache.

    The client names a cached file by the checksum that the Hub sent with it: SHA-256 of large files, git's
    object name of others. A cache without symbolic links (Windows) has no such names: nothing is compared.
    """
    damaged = [path for path in paths if path.is_symlink() and not _fits_its_name(path.resolve())]
    for path in damaged:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    return damaged


def _fits_its_name(blob: Path) -> bool:
    if len(blob.name) not in (40, 64) or not blob.is_file():
        return True
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
    with blob.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == blob.name


def damage_report(repo: str, damaged: Iterable[Path]) -> str:
    """What to tell the user of files that `remove_damaged` found."""
    names = [path.name for path in damaged]
    differ, were = ("differs", "it was") if len(names) == 1 else ("differ", "they were")
    return (
        f"{repo}: {', '.join(names)} {differ} from the Hub's checksum: damaged on the way or on this disk; "
        f"{were} taken out of the cache, so run the command again"
    )


__all__ = [
    "LOADING_ERRORS",
    "cached_file",
    "check_directory",
    "check_fit",
    "check_shards",
    "damage_report",
    "file_names",
    "loading_fault",
    "read_weights",
    "remove_damaged",
]
