"""DICOM whose whole data set is deflated (PS3.5, A.5): inflated here, and only as far as it may reach.

pydicom inflates such a file before it looks at it: five megabytes become five gigabytes.
"""

from __future__ import annotations

import io
import math
import zlib
from pathlib import Path
from typing import Any

from ..model.errors import GalipError

_DEFLATED, _EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
_LONGEST_META = 1 << 16
_LONGEST_HEADER = 1 << 25  # bytes of a data set without its pixels
_LONG_TYPES = (b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT", b"UC", b"UR")


def header_source(path: Path) -> Path | io.BytesIO:
    """What `pydicom.dcmread` with `stop_before_pixels` may read: the path, or the start of the inflated file.

    Raises:
        OSError: the file cannot be read.
        zlib.error: it cannot be inflated.
    """
    inflated = _inflated(path, _LONGEST_HEADER)
    return path if inflated is None else io.BytesIO(inflated[0])


def pixel_source(path: Path) -> Path | io.BytesIO:
    """What `pydicom.dcmread` may read whole: the path, or the inflated file.

    Raises:
        GalipError: the file holds much more than its header announces.
        OSError, zlib.error: as `header_source`; pydicom's errors for a broken header.
    """
    import pydicom

    start = _inflated(path, _LONGEST_HEADER)
    if start is None:
        return path
    header = pydicom.dcmread(io.BytesIO(start[0]), stop_before_pixels=True, force=True)
    announced = pixel_bytes(header)
    inflated = start if start[1] else _inflated(path, _LONGEST_HEADER + announced)
    if inflated is None or not inflated[1]:
        raise GalipError(
            f"{path}: truncated, or holds much more uncompressed than the {announced} bytes of pixels its "
            "header announces; copy it again"
        )
    return io.BytesIO(inflated[0])


def pixel_bytes(dataset: Any) -> int:
    """Length of the uncompressed pixels by the header; 0 where it does not say."""
    sizes = (dataset.get(name) for name in ("Rows", "Columns", "BitsAllocated"))
    return math.prod(int(size or 0) for size in sizes) * int(dataset.get("NumberOfFrames") or 1) // 8


def _inflated(path: Path, longest: int) -> tuple[bytes, bool] | None:
    """The file as if it had never been deflated, and whether that is all of it; None for any other file."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_META)
        end, syntax = _meta_information(start)
        if syntax != _DEFLATED:
            return None
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        content = stream.decompress(start[end:] + file.read(), longest)
    return start[:end].replace(_DEFLATED, _EXPLICIT) + content, stream.eof


def _meta_information(start: bytes) -> tuple[int, bytes]:
    """Where the elements of group 2 end, and the transfer syntax that they state."""
    at = 132 if start[128:132] == b"DICM" else 0
    syntax = b""
    while start[at : at + 2] == b"\2\0":
        is_long = start[at + 4 : at + 6] in _LONG_TYPES
        length_at, head = (slice(at + 8, at + 12), 12) if is_long else (slice(at + 6, at + 8), 8)
        value = start[at + head : at + head + int.from_bytes(start[length_at], "little")]
        if start[at + 2 : at + 4] == b"\x10\0":
            syntax = value.rstrip(b"\0 ")
        at += head + int.from_bytes(start[length_at], "little")
    return at, syntax


__all__ = ["header_source", "pixel_bytes", "pixel_source"]
