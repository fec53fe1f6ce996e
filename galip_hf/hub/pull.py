"""A model of the Hub as a directory of the client's cache.

Cached files are compared with the Hub's checksums: the client itself takes a file that was damaged without a
change of its size. Tokens come from the client (HF_TOKEN or `hf auth login`).
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, LocalEntryNotFoundError

from ..model.errors import GalipError
from ..model.weight_files import damage_report, file_names, remove_damaged
from .errors import HubError, hub_errors
from .model_directory import CONFIG, PROCESSOR


def resolve_model(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    verify: bool | None = None,
    subfolder: str = "",
    variant: str | None = None,
    besides: Sequence[str] = (),
) -> Path:
    """A directory with config.json, the weights and preprocessor_config.json of a model.

    A cached model needs no network. No code is downloaded, and no pickle.

    Args:
        source: a local directory, which is taken as it is, or a repository `user/name` of the Hub.
        revision: branch, tag or commit of the repository; `main` by default.
        token: access token, or True for the stored one, which is also the default.
        verify: None compares the files with the checksums that the Hub sent when they were downloaded; True
            asks the Hub for them anew; False compares nothing. A file that differs is taken out of the cache.
        subfolder: folder of the directory or repository that holds the model.
        variant: of the weights: `ema` stands for model.ema.safetensors.
        besides: names of more files that the model must have, such as model.onnx; of a local directory they
            are not looked for.

    Raises:
        GalipError: no such directory; a subfolder or variant that names no place inside.
        HubError: no such repository, revision or model in it; no access; not reachable and not cached; a file
            differs from its checksum.
    """
    name = os.fspath(source)
    subfolder, weights = checked_subfolder(subfolder), weights_name(variant)
    if os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        directory = Path(name).expanduser() / subfolder
        if not directory.is_dir():
            raise GalipError(
                f"{directory}: no such model directory; expected one written by save_pretrained, or user/name"
            )
        if revision is not None or verify:
            option = "revision" if revision is not None else "verify"
            raise GalipError(f"{name}: {option} was given, but this is a local directory; leave it out")
        return directory
    files = [str(PurePosixPath(subfolder, file)) for file in (CONFIG, weights, PROCESSOR, *besides)]
    snapshot = _snapshot(name, files, revision, token)
    if verify:
        _verify_with_hub(name, snapshot, token)
    elif verify is None:
        _verify_blobs(name, [snapshot / file for file in files])
    return snapshot / subfolder


def _snapshot(name: str, files: Sequence[str], revision: str | None, token: str | bool | None) -> Path:
    """The folder of the cache with `files`, downloaded if the Hub has newer ones and can be asked."""

    def folder(**options: Any) -> Path:
        return Path(
            snapshot_download(name, revision=revision, token=token, allow_patterns=list(files), **options)
        )

    def whole(snapshot: Path) -> bool:
        return all((snapshot / file).is_file() for file in files)

    with hub_errors(name, token):
        try:
            snapshot = folder()
        except (
            HTTPError
        ) as error:  # the client looks into its cache for refused connections, not for cut ones
            with suppress(LocalEntryNotFoundError):
                if not isinstance(error, HfHubHTTPError) and whole(snapshot := folder(local_files_only=True)):
                    return snapshot
            raise
        for file in files:
            if not (snapshot / file).is_file():  # not in the repository, or the Hub could not be asked
                _download(name, file, snapshot.name, token)
    return snapshot


def _download(name: str, file: str, commit: str, token: str | bool | None) -> None:
    try:
        hf_hub_download(name, file, revision=commit, token=token)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise
        raise HubError(
            f"{name}: {file} is not in the repository; expected config.json, the weights and {PROCESSOR} "
            "beside each other (a pickle in place of safetensors could run code and is not loaded)"
        ) from None


def checked_subfolder(subfolder: str) -> str:
    """A folder inside a repository, as given; GalipError for one that could lead out or match several."""
    parts = PurePosixPath(subfolder).parts
    if ".." in parts or "/" in parts or re.search(r"[\\*?\[\]:\x00-\x1f]", subfolder):
        raise GalipError(f"subfolder {subfolder!r}: expected a folder of the repository, such as 'ema/best'")
    return subfolder


def weights_name(variant: str | None) -> str:
    """Name of the weights' file: `model.safetensors`, or `model.ema.safetensors` for the variant `ema`."""
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", variant):
        raise GalipError(f"variant {variant!r}: expected letters, digits, - and _, such as 'ema'")
    return file_names(variant)[0]


def _verify_blobs(name: str, paths: Sequence[Path]) -> None:
    """HubError where cached files differ from the checksums they are named by."""
    if damaged := remove_damaged(paths):
        raise HubError(damage_report(name, damaged))


def _verify_with_hub(name: str, snapshot: Path, token: str | bool | None) -> None:
    with hub_errors(name, token):
        verified = HfApi().verify_repo_checksums(name, revision=snapshot.name, token=token)
    damaged = [snapshot / mismatch["path"] for mismatch in verified.mismatches]
    for path in damaged:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
    if damaged:
        raise HubError(damage_report(name, damaged))


__all__ = ["checked_subfolder", "resolve_model", "weights_name"]
