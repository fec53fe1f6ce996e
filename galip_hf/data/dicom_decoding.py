"""Decoding of compressed DICOM pixels in a child process: GDCM aborts on some corrupt JPEG streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .child_process import ChildProcess


class PixelDecoder(ChildProcess):
    """Decodes files one after another; use it in a `with` block."""

    def decode(self, path: Path) -> np.ndarray:
        """The stored values, (rows, columns) or (frames, rows, columns).

        Raises:
            ValueError: the data cannot be decoded, or the decoder crashed or hung on them.
        """
        return self.call(__name__, "stored_values", str(path.resolve()))[1]


def stored_values(path: str) -> tuple[dict[str, Any], np.ndarray]:
    """What the child runs."""
    import pydicom

    return {}, pydicom.dcmread(path, force=True).pixel_array


__all__ = ["PixelDecoder", "stored_values"]
