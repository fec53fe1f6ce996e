"""A scan in memory: axial slices in display order, with all that is needed to return to the file's own axes.

World axes are NIfTI's RAS+: +x is the patient's right, +y anterior, +z superior. `Volume.array` is (S, H, W),
slices from inferior to superior, each as a radiologist's screen shows it: row 0 is anterior, column 0 is
the patient's right. Axes are only permuted and flipped, never resampled: an oblique scan keeps its voxels,
and its file axes are matched to the closest world axes (`nibabel.orientations.io_orientation`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..model.errors import GalipError

METRE, MICROMETRE = 1, 3  # codes in the low three bits of NIfTI's xyzt_units; all others are taken as mm
AXES = {
    "sagittal": 0,
    "coronal": 1,
    "axial": 2,
}  # plane of the slices: the world axis they follow one another on


@dataclass(frozen=True, eq=False)
class FileLayout:
    """How the axes of a file map to (slices, rows, columns), and back.

    Attributes:
        shape: shape of the array in the file; MATLAB's own order for `.mat`; of one volume of a 4-D NIfTI.
        grid: the same as three axes: an axis of 1 added to a 2-D array, trailing axes of 1 removed.
        axes: the axis of `grid` which becomes slices, rows and columns.
        flips: whether slices, rows and columns run against the file's axis.
        header: the NIfTI header (for DICOM one that says the same), None for a file without geometry.
        instances: for DICOM, what is kept of each slice's header, along the grid's third axis.
        instance_places: for DICOM slices that were resampled to even distances, where each of `instances`
            lies along the third axis, in slices from the first; None where instance k is slice k.
        inverted_at: for DICOM whose lowest value is white (MONOCHROME1), the number that values in the file
            and in memory add up to; None for all else.
    """

    shape: tuple[int, ...]
    grid: tuple[int, int, int]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool] = (False, False, False)
    header: nib.Nifti1Header | None = None
    instances: tuple[Any, ...] = ()
    instance_places: tuple[float, ...] | None = None
    inverted_at: float | None = None

    @property
    def affine(self) -> np.ndarray | None:
        """(4, 4) float64, file voxel indices to RAS+ world coordinates; None for a file without geometry."""
        return None if self.header is None else self.header.get_best_affine()

    def arrange(self, data: np.ndarray) -> np.ndarray:
        """The file's array, of `shape`, as a contiguous (S, H, W) array in display order."""
        reordered = data.reshape(self.grid).transpose(self.axes)
        return np.ascontiguousarray(np.flip(reordered, self._flipped_axes()))

    def restore(self, array: np.ndarray) -> np.ndarray:
        """The exact inverse of `arrange`: an (S, H, W) array in the file's axes and shape."""
        inverse = tuple(int(axis) for axis in np.argsort(self.axes))
        return np.ascontiguousarray(
            np.flip(array, self._flipped_axes()).transpose(inverse).reshape(self.shape)
        )

    def _flipped_axes(self) -> tuple[int, ...]:
        return tuple(axis for axis, flipped in enumerate(self.flips) if flipped)


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan, read by `galip_hf.data.scans.read_scan`.

    Attributes:
        array: (S, H, W) float32, the file's values after its scale factors. Upright slices, axial by the
            affine unless another axis was asked for; a NIfTI file one voxel thick along a single axis is
            that one slice, whatever its plane.
            `.mat` (H, W, S), `.npy`/`.npz` (S, H, W) or (H, W) and PNG keep the order of the file.
        path: the file (for DICOM, the folder) read, None for an array made in memory.
        spacing: mm between slices, rows and columns; (1, 1, 1) where the file has no geometry.
        source: the way back to the file's own axes.
        notes: what the reader had to assume or mend, a sentence each; a translation's report repeats them
            among its warnings.
    """

    array: np.ndarray
    path: Path | None
    spacing: tuple[float, float, float]
    source: FileLayout
    notes: tuple[str, ...] = ()

    @classmethod
    def from_array(cls, array: np.ndarray) -> Volume:
        """A volume without geometry from (S, H, W), or one slice from (H, W).

        Raises:
            GalipError: other ranks, an empty axis, complex or non-numeric data, NaN or infinite values.
        """
        data = checked_float32(np.asarray(array), "array")
        layout = slices_first_layout(data.shape, "array")
        return cls(array=layout.arrange(data), path=None, spacing=(1.0, 1.0, 1.0), source=layout)

    def with_array(self, array: np.ndarray, *, own_scale: bool = False) -> Volume:
        """The same geometry with new values.

        Args:
            array: (S, H, W), the shape of `self.array`; stored as float32.
            own_scale: the values are not on the scale of this volume (HU made from MR, differences), so they
                are written as they are even if this volume's file has inverted grey values.

        Raises:
            GalipError: the shape differs, or the data are not real numbers.
        """
        data = np.asarray(array)
        if data.shape != self.array.shape:
            raise GalipError(
                f"array: shape {data.shape} does not match the volume's {self.array.shape}; "
                "give one value for each voxel, as (slices, rows, columns)"
            )
        source = replace(self.source, inverted_at=None) if own_scale else self.source
        return replace(
            self, array=np.ascontiguousarray(_real(data, "array"), dtype=np.float32), source=source
        )

    @property
    def plane(self) -> str | None:
        """The anatomical plane of the slices; None for a file without geometry."""
        affine = self.source.affine
        if affine is None:
            return None
        world_axis = int(nib.orientations.io_orientation(affine)[self.source.axes[0], 0])
        return next(plane for plane, axis in AXES.items() if axis == world_axis)

    def in_plane(self, plane: str) -> Volume:
        """The same scan as slices of another plane; itself where it has no geometry or is one slice thick.

        Raises:
            GalipError: an unknown plane.
        """
        checked_axis(plane)
        header = self.source.header
        if header is None or self.plane == plane or sum(length > 1 for length in self.source.grid) < 3:
            return self
        found = nifti_layout(header, str(self.path or "scan"), plane)
        layout = replace(self.source, axes=found.axes, flips=found.flips)
        array = layout.arrange(self.source.restore(self.array))
        return replace(self, array=array, spacing=nifti_spacing(layout), source=layout)

    def to_source_array(self) -> np.ndarray:
        """`array` put back in the axis order and shape of the file, and on its grey scale (MONOCHROME1)."""
        restored = self.source.restore(self.array)
        return restored if self.source.inverted_at is None else np.float32(self.source.inverted_at) - restored


def checked_float32(data: np.ndarray, name: str) -> np.ndarray:
    """`data` as float32, after refusing what is not a finite, real, non-empty array.

    Args:
        data: any shape.
        name: the file or argument the message starts with.

    Raises:
        GalipError: complex or non-numeric data, an axis of length 0, NaN or infinite values (also those
            beyond float32's range).
    """
    if data.size == 0:
        raise GalipError(
            f"{name}: the array of shape {data.shape} is empty; expected at least one voxel along each axis"
        )
    with np.errstate(over="ignore"):  # overflow becomes inf and is reported below
        values = _real(data, name).astype(np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        first = tuple(int(index) for index in np.argwhere(bad)[0])
        raise GalipError(
            f"{name}: {int(bad.sum())} of {bad.size} voxels are NaN, infinite or beyond float32, "
            f"the first at index {first} of shape {values.shape}; replace them with finite values"
        )
    return values


def slices_first_layout(shape: tuple[int, ...], name: str) -> FileLayout:
    """The layout of `.npy`, `.npz` and PNG: (S, H, W), or (H, W) for one slice."""
    if len(shape) not in (2, 3):
        raise GalipError(
            f"{name}: the array has shape {shape}; expected (rows, columns) or (slices, rows, columns)"
        )
    slices, rows, columns = shape if len(shape) == 3 else (1, *shape)
    return FileLayout(shape=shape, grid=(slices, rows, columns), axes=(0, 1, 2))


def slices_last_layout(shape: tuple[int, ...], name: str) -> FileLayout:
    """The layout of `.mat` in MATLAB's own axis order: (H, W, S), or (H, W) for one slice."""
    if len(shape) not in (2, 3):
        raise GalipError(
            f"{name}: the array has shape {shape}; expected (rows, columns) or (rows, columns, slices)"
        )
    rows, columns, slices = shape if len(shape) == 3 else (*shape, 1)
    return FileLayout(shape=shape, grid=(rows, columns, slices), axes=(2, 0, 1))


def nifti_layout(header: nib.Nifti1Header, name: str, axis: str | None = None) -> FileLayout:
    """The layout which shows a NIfTI file's voxels as upright slices.

    Args:
        header: its shape may be 2-D, 3-D, 4-D for a series of volumes, or any of them followed by axes of 1.
        name: the file the message starts with.
        axis: `axial`, `coronal` or `sagittal` slices by the affine. None: axial, but a scan one voxel thick
            along a single axis is one slice in its own plane.

    Returns:
        The layout of one volume; all volumes of a series have the same.

    Raises:
        GalipError: another rank, an axis of length 0, a voxel size of zero, an affine that is not finite and
            invertible, or an unknown `axis`.
    """
    shape = tuple(int(length) for length in header.get_data_shape())
    if len(shape) < 2 or any(length != 1 for length in shape[4:]):
        raise GalipError(
            f"{name}: the image has shape {shape}; expected a 2-D or 3-D scan or a 4-D series of scans"
        )
    if min(shape) < 1:
        raise GalipError(
            f"{name}: the image of shape {shape} is empty; expected at least one voxel along each axis"
        )
    padded = (*shape, 1)[:3]
    grid = (padded[0], padded[1], padded[2])
    affine = _checked_affine(header, min(len(shape), 3), name)
    orientation = nib.orientations.io_orientation(affine)
    world_axes = [int(axis) for axis in orientation[:, 0]]
    ascending = [bool(direction > 0) for direction in orientation[:, 1]]
    thin = [axis for axis, length in enumerate(grid) if length == 1]
    if axis is not None:
        through_plane = checked_axis(axis)
    else:
        through_plane = world_axes[thin[0]] if len(thin) == 1 else AXES["axial"]
    # Rows descend along the higher world axis left (superior or anterior first), columns along the lower one.
    second, third = sorted({0, 1, 2} - {through_plane}, reverse=True)
    axes = (world_axes.index(through_plane), world_axes.index(second), world_axes.index(third))
    flips = (not ascending[axes[0]], ascending[axes[1]], ascending[axes[2]])
    is_series = len(shape) > 3 and shape[3] > 1
    return FileLayout(
        shape=shape[:3] if is_series else shape, grid=grid, axes=axes, flips=flips, header=header
    )


def checked_axis(axis: str) -> int:
    """The world axis along which slices of the plane `axis` follow one another; GalipError if unknown."""
    if axis not in AXES:
        raise GalipError(f"axis {axis!r} is unknown; expected {', '.join(AXES)}, or none for the default")
    return AXES[axis]


def _checked_affine(header: nib.Nifti1Header, rank: int, name: str) -> np.ndarray:
    """The header's affine, with all that makes it meaningless refused."""
    sizes = [float(size) for size in header["pixdim"][1 : 1 + rank]]
    if not all(np.isfinite(size) and size != 0 for size in sizes):
        raise GalipError(f"{name}: the voxel size {sizes} (pixdim) has a zero or is not finite; correct it")
    for form in ("qform_code", "sform_code"):
        if int(header[form]) not in nib.nifti1.xform_codes.value_set():
            raise GalipError(f"{name}: the {form} {int(header[form])} does not exist in NIfTI; correct it")
    affine = header.get_best_affine()
    if not np.isfinite(affine).all():
        raise GalipError(
            f"{name}: the affine {affine[:3].tolist()} is not finite; correct the sform or qform"
        )
    # Lengths are divided out: voxels of 0.001 x 1 x 1 are anisotropic, not singular.
    lengths = nib.affines.voxel_sizes(affine)
    if not lengths.all() or np.linalg.matrix_rank(affine[:3, :3] / lengths) < 3:
        raise GalipError(
            f"{name}: the affine {affine[:3].tolist()} is not invertible; correct the file's sform or qform"
        )
    return affine


def nifti_spacing(layout: FileLayout) -> tuple[float, float, float]:
    """mm between slices, rows and columns of a NIfTI layout, from its affine and spatial unit."""
    assert layout.header is not None
    scale = {METRE: 1000.0, MICROMETRE: 0.001}.get(int(layout.header["xyzt_units"]) % 8, 1.0)
    sizes = nib.affines.voxel_sizes(layout.affine) * scale
    return (float(sizes[layout.axes[0]]), float(sizes[layout.axes[1]]), float(sizes[layout.axes[2]]))


def _real(data: np.ndarray, name: str) -> np.ndarray:
    if data.dtype.kind == "c" or data.dtype.names == ("real", "imag"):
        raise GalipError(
            f"{name}: the data are complex ({data.dtype}); expected real values, so save the magnitude"
        )
    if data.dtype.names is not None:
        raise GalipError(
            f"{name}: the voxels have several channels {data.dtype.names}; expected one grey value each"
        )
    if data.dtype.kind not in "biuf":
        raise GalipError(f"{name}: the data type {data.dtype} is not numeric; expected integers or floats")
    return data
