"""A scan with its place in the world, as registration and resampling need it, and its form in SimpleITK.

Arrays are (S, H, W) in display order, as in `galip_hf.data.volumes`; world coordinates are LPS, in mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dicom import read_series
from ..data.grid import Grid, grid_of
from ..data.scans import read_scan
from ..data.volumes import Volume
from ..extras import require
from ..model.errors import GalipError
from .sources import Scan


@dataclass(frozen=True, eq=False)
class ScanImage:
    """(S, H, W) float32 voxels in the file's units, and where they lie."""

    array: np.ndarray
    grid: Grid


def read_image(scan: Scan) -> ScanImage:
    """Read a scan: anything that `read_scan` reads.

    Raises:
        GalipError: as `read_scan`; also several volumes, and slices asked for that the file does not have.
    """
    path = Path(scan.path)
    files = [Path(file) for file in scan.files]
    volume = read_series(files, part=scan.part) if files else _read_one(path)
    image = ScanImage(volume.array, grid_of(volume))
    if scan.slices is None:
        return image
    start, stop = scan.slices
    if not 0 <= start < stop <= len(image.array):
        raise GalipError(f"{path}: slices {start}..{stop} asked for, the file has {len(image.array)}")
    grid = image.grid
    part = Grid((stop - start, *grid.shape[1:]), grid.origin + start * grid.steps[0], grid.steps, grid.known)
    return ScanImage(image.array[start:stop], part)


def _read_one(path: Path) -> Volume:
    """A file with one volume, or a folder of one DICOM series."""
    volumes = read_scan(path)
    if len(volumes) != 1:
        raise GalipError(f"{path}: holds {len(volumes)} volumes; expected one, so split the file")
    return volumes[0]


def to_itk(array: np.ndarray, grid: Grid) -> Any:
    """A SimpleITK image of (S, H, W) values on a grid."""
    sitk = require("SimpleITK", "prepare")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))
    spacing = grid.spacing[::-1]
    image.SetSpacing(spacing)
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection((grid.steps[::-1] / np.array(spacing)[:, None]).T.ravel().tolist())
    return image


__all__ = ["ScanImage", "read_image", "to_itk"]
