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
from ..data.volumes import Volume, checked_float32
from ..extras import require
from ..model.errors import GalipError
from .sources import ITK_SUFFIXES, Scan


@dataclass(frozen=True, eq=False)
class ScanImage:
    """(S, H, W) float32 voxels in the file's units, and where they lie."""

    array: np.ndarray
    grid: Grid


def read_image(scan: Scan) -> ScanImage:
    """Read a scan: anything that `read_scan` reads, or MetaImage and NRRD through SimpleITK.

    Raises:
        GalipError: as `read_scan`; also several volumes, and slices asked for that the file does not have.
    """
    path = Path(scan.path)
    if path.name.lower().endswith(ITK_SUFFIXES):
        image = _read_itk(path)
    else:
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


def _read_itk(path: Path) -> ScanImage:
    sitk = require("SimpleITK", "prepare")
    try:
        image = sitk.ReadImage(str(path))
        if image.GetDimension() == 4 and image.GetSize()[3] == 1:
            image = image[..., 0]
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise GalipError(f"{path}: is no 3-D scan of one channel; expected a single volume")
        image = sitk.DICOMOrient(image, "LPS")  # so that the array is in display order
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-160:]
        raise GalipError(f"{path}: cannot be read ({reason}); copy it again or check its format") from None
    array = checked_float32(sitk.GetArrayFromImage(image), str(path))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    steps = (direction * image.GetSpacing()).T[::-1].copy()
    return ScanImage(array, Grid(array.shape, np.array(image.GetOrigin()), steps))


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
