"""NumPy's `.npy` and `.npz`; pickled objects are refused."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from ..model.errors import GalipError
from .file_checks import DEFLATE_RATIO, check_announced, check_size, corrupt_as_error, surplus_note
from .matlab import MATLAB_VARIABLE, choose_variable


def read_npy(path: Path, max_size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The array of a `.npy` file, and what is odd about it, a sentence each.

    Raises:
        GalipError: it is corrupt, holds objects, or is larger than `max_size`.
    """
    with corrupt_as_error(path), path.open("rb") as file:
        size = path.stat().st_size
        array = _read_stream(file, size, path, max_size)
        return array, surplus_note(size, file.tell())


def read_npz(path: Path, variable: str | None, max_size: int) -> np.ndarray:
    """One array of a `.npz` file: `variable`, or `choose_variable`'s.

    Raises:
        GalipError: as `read_npy`; also no such variable, or several.
    """
    with corrupt_as_error(path):
        if not zipfile.is_zipfile(path):
            raise GalipError(f"{path}: is not a zip archive of arrays; rename a single array to .npy")
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            known = variable is not None or MATLAB_VARIABLE in members
            shapes = {} if known else _shapes(archive, members)
            chosen = members[choose_variable(path, variable, list(members), shapes)]
            with archive.open(chosen) as stream:
                return _read_stream(stream, path.stat().st_size * DEFLATE_RATIO, path, max_size)


def _read_stream(stream: IO[bytes], available: int, path: Path, max_size: int) -> np.ndarray:
    shape, _, dtype = _header(stream)
    check_announced(math.prod(shape) * dtype.itemsize, available, path)
    check_size(shape, path, max_size)
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _shapes(archive: zipfile.ZipFile, members: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes of the numeric arrays of an archive."""
    shapes = {}
    for name, member in members.items():
        if member.endswith(".npy"):
            with archive.open(member) as stream:
                shape, _, dtype = _header(stream)
            if dtype.kind in "biufc":
                shapes[name] = shape
    return shapes


__all__ = ["read_npy", "read_npz"]
