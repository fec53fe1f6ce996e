"""A scan with its place in the world: what registration and resampling need beside the voxels.

Arrays are (S, H, W) in display order, as in `galip_hf.data.volumes`. World coordinates here are LPS, in mm,
the convention of DICOM and SimpleITK: +x is the patient's left, +y posterior, +z superior.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dicom import read_series
from ..data.scans import read_scan
from ..data.volumes import Volume
from ..extras import require
from ..model.errors import GalipError
from .sources import Scan

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
# Two grids are one when every voxel's place agrees to this part of a voxel.
_GRID_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an (S, H, W) array lie.

    Attributes:
        shape: (S, H, W).
        origin: (3,) the centre of voxel (0, 0, 0).
        steps: (3, 3) row k is the step, in mm, of one voxel along array axis k (S, H, W).
        known: whether the file says so; otherwise voxels of 1 mm from 0.
    """

    shape: tuple[int, int, int]
    origin: np.ndarray
    steps: np.ndarray
    known: bool = True

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm between slices, rows and columns."""
        lengths = np.linalg.norm(self.steps, axis=1)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    def same_as(self, other: Grid) -> bool:
        """Whether both have the same voxels."""
        if self.shape != other.shape or self.known != other.known:
            return False
        tolerance = _GRID_TOLERANCE * min(self.spacing)
        last = np.array(self.shape) - 1
        corners = np.abs(self.origin - other.origin), np.abs(last @ self.steps - last @ other.steps)
        return bool(corners[0].max() <= tolerance and corners[1].max() <= tolerance)

    def with_pixels(self, size: float) -> Grid:
        """The same field of view in square pixels of `size` mm."""
        _, rows, columns = self.shape
        steps, shape = self.steps.copy(), [self.shape[0]]
        origin = self.origin.copy()
        for axis, count in ((1, rows), (2, columns)):
            factor = size / self.spacing[axis]
            shape.append(max(1, round(count / factor)))
            # The centre of the field of view stays: half the difference in extent goes to each end.
            steps[axis] = self.steps[axis] * factor
            origin += ((count - 1) * self.steps[axis] - (shape[-1] - 1) * steps[axis]) / 2
        return Grid((shape[0], shape[1], shape[2]), origin, steps, self.known)


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
    volume = read_series([Path(file) for file in scan.files]) if scan.files else _read_one(path)
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


def grid_of(volume: Volume) -> Grid:
    """Where the voxels of a volume lie, from its NIfTI affine; unit steps for a file without geometry."""
    shape = (volume.array.shape[0], volume.array.shape[1], volume.array.shape[2])
    affine = volume.source.affine
    if affine is None:
        return Grid(shape, np.zeros(3), np.eye(3)[::-1].copy(), known=False)
    steps, first = np.empty((3, 3)), np.zeros(3)
    for axis, (file_axis, flipped) in enumerate(zip(volume.source.axes, volume.source.flips, strict=True)):
        steps[axis] = affine[:3, file_axis] * (-1 if flipped else 1)
        first[file_axis] = volume.source.grid[file_axis] - 1 if flipped else 0
    to_mm = volume.spacing[0] / np.linalg.norm(steps[0])
    origin = affine[:3, :3] @ first + affine[:3, 3]
    return Grid(shape, origin * _RAS_TO_LPS * to_mm, steps * _RAS_TO_LPS * to_mm)


def to_itk(array: np.ndarray, grid: Grid) -> Any:
    """A SimpleITK image of (S, H, W) values on a grid."""
    sitk = require("SimpleITK", "prepare")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))
    spacing = grid.spacing[::-1]
    image.SetSpacing(spacing)
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection((grid.steps[::-1] / np.array(spacing)[:, None]).T.ravel().tolist())
    return image


__all__ = ["Grid", "ScanImage", "grid_of", "read_image", "to_itk"]
