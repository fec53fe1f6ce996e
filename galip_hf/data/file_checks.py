"""What every reader checks of a file before it decodes anything, and the names of the formats.

Nothing is allocated on a header's word alone: what it announces is first compared with the size of the file
and with the largest scan that is accepted.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..model.errors import GalipError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PAIR_SUFFIXES = (".img", ".hdr")  # NIfTI or Analyze in two files, the voxels and the header
MGH_SUFFIXES = (".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (
    *(*NIFTI_SUFFIXES, *PAIR_SUFFIXES, *MGH_SUFFIXES, *ITK_SUFFIXES),
    *(".mat", ".npz", ".npy", ".png", *TIFF_SUFFIXES),
)
# Formats of two files: the suffix of the file that belongs to one of that suffix.
COMPANIONS = {".img": ".hdr", ".hdr": ".img", ".mhd": ".raw", ".nhdr": ".raw"}
DEFLATE_RATIO = 1032  # zlib, and so gzip, zip, PNG and HDF5, cannot expand one byte to more than this
GIB = 1 << 30
MAX_SIZE = 2 * GIB  # bytes of the largest scan accepted by default, decoded to float32
_LARGEST_SLICE_SHARE = 8  # one slice may have this part of it: 8192 x 8192 pixels by default


def supported_suffix(path: Path) -> str:
    """The suffix of `path`, in lower case, one of `SUFFIXES`; GalipError for any other."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise GalipError(f"{path}: unknown file suffix {path.suffix!r}; supported are {', '.join(SUFFIXES)}")


def has_suffix(path: Path) -> bool:
    """Whether a file is a scan by its name."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """The name without the suffix of a scan; the whole name of a folder or of any other file."""
    return path.name[: -len(supported_suffix(path))] if has_suffix(path) else path.name


def companion(path: Path) -> Path | None:
    """The second file of a format of two files: the header beside `.img`, the voxels beside the others."""
    suffix = supported_suffix(path)
    if suffix not in COMPANIONS:
        return None
    other = COMPANIONS[suffix]
    if other != ".raw" and path.name[-len(suffix) :].isupper():
        other = other.upper()
    return path.with_name(stem_of(path) + other)


def one_of_each_pair(files: Iterable[Path]) -> list[Path]:
    """The files without each `.hdr` whose `.img` is among them: the two are one scan."""
    listed = list(files)
    present = set(listed)
    return [
        file for file in listed if not (file.name.lower().endswith(".hdr") and companion(file) in present)
    ]


def check_file(path: Path) -> None:
    """GalipError unless `path` is a file that may be read and is not empty."""
    if path.is_dir():
        raise GalipError(f"{path}: is a directory; expected one file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise GalipError(f"{path}: no such file; check the path")
    if not os.access(path, os.R_OK):
        raise GalipError(f"{path}: may not be read; change its permissions")
    if path.stat().st_size == 0:
        raise GalipError(f"{path}: the file is empty (0 bytes); copy it again")


@contextmanager
def corrupt_as_error(path: Path) -> Iterator[None]:
    """Turn a library's complaint about the file's bytes into one line, and hold back its warnings.

    All exceptions: on mutated files the libraries raise nearly every kind there is, from IndexError to
    NotImplementedError. Only their calls belong in the block.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except GalipError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise GalipError(
            f"{path}: cannot be read, the file is truncated, corrupt or of another format "
            f"({type(error).__name__}: {reason}); copy it again or check its suffix"
        ) from error


def check_announced(announced: int, available: int, path: Path) -> None:
    """GalipError when a header announces more bytes than the file can hold."""
    if announced > available:
        raise GalipError(
            f"{path}: truncated or corrupt, its header announces {announced} bytes and the file can hold "
            f"{available} at most; copy it again"
        )


def surplus_note(size: int, announced: int) -> tuple[str, ...]:
    """What to say of a file of `size` bytes whose header announces fewer; nothing where it does not."""
    if size <= announced:
        return ()
    return (f"The file holds {size} bytes and its header announces {announced}; the rest was left out.",)


def check_size(shape: Sequence[int], path: Path | str, max_size: int) -> None:
    """Refuse a scan that is too large once it is decoded.

    Args:
        shape: of the whole array, of all volumes of a series.
        path: the file the message starts with.
        max_size: bytes of the largest scan accepted, at 4 bytes a voxel. One plane of it, the product of the
            two longest axes, may have an eighth of that.

    Raises:
        GalipError: the scan or its largest plane is larger.
    """
    lengths = sorted((max(int(length), 0) for length in shape), reverse=True)
    remedy = "raise --max-size (max_size=) if the file is what you expect"
    size = 4 * math.prod(lengths)
    if size > max_size:
        raise GalipError(
            f"{path}: its header announces {tuple(shape)} voxels, {size / GIB:.3g} GiB as float32; the limit "
            f"is {max_size / GIB:.3g} GiB, so {remedy}"
        )
    plane, limit = math.prod(lengths[:2]), max_size // (4 * _LARGEST_SLICE_SHARE)
    if plane > limit:
        raise GalipError(
            f"{path}: its header announces {tuple(shape)} voxels, {plane} in one slice; the limit is {limit} "
            f"a slice at {max_size / GIB:.3g} GiB a scan, so {remedy}"
        )


__all__ = [
    "COMPANIONS",
    "DEFLATE_RATIO",
    "GIB",
    "ITK_SUFFIXES",
    "MAX_SIZE",
    "MGH_SUFFIXES",
    "NIFTI_SUFFIXES",
    "PAIR_SUFFIXES",
    "SUFFIXES",
    "TIFF_SUFFIXES",
    "check_announced",
    "check_file",
    "check_size",
    "companion",
    "corrupt_as_error",
    "has_suffix",
    "one_of_each_pair",
    "stem_of",
    "supported_suffix",
    "surplus_note",
]
