"""Where the voxels of a scan lie in the world, and whether two scans have the same voxels.

Arrays are (S, H, W) in display order, as in `galip_hf.data.volumes`. World coordinates here are LPS, in mm,
the convention of DICOM and SimpleITK: +x is the patient's left, +y posterior, +z superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .volumes import Volume

RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
# Two grids are one when every voxel's place agrees to this part of a voxel.
GRID_TOLERANCE = 0.01


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

    def same_as(self, other: Grid, tolerance: float = GRID_TOLERANCE) -> bool:
        """Whether both have the same voxels, to `tolerance` (a part of the smallest voxel side)."""
        if self.shape != other.shape or self.known != other.known:
            return False
        tolerance = tolerance * min(self.spacing)
        last = np.array(self.shape) - 1
        corners = np.abs(self.origin - other.origin), np.abs(last @ self.steps - last @ other.steps)
        return bool(corners[0].max() <= tolerance and corners[1].max() <= tolerance)

    def describe(self) -> str:
        """One line for messages: shape, voxel size, and the place of the first voxel and the axes in RAS+."""
        size = " x ".join(str(length) for length in self.shape)
        if not self.known:
            return f"{size} voxels without geometry"
        spacing = " x ".join(f"{side:.4g}" for side in self.spacing)
        first = ", ".join(f"{value:.4g}" for value in self.origin * RAS_TO_LPS)
        directions = self.steps * RAS_TO_LPS / np.array(self.spacing)[:, None]
        axes = "; ".join(" ".join(f"{value:.3g}" for value in row + 0.0) for row in directions.round(3))
        return f"{size} voxels of {spacing} mm, the first at ({first}) mm, axes {axes}"

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
    return Grid(shape, origin * RAS_TO_LPS * to_mm, steps * RAS_TO_LPS * to_mm)


__all__ = ["GRID_TOLERANCE", "RAS_TO_LPS", "Grid", "grid_of"]
