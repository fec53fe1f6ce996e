"""A scan in memory: axial slices in display order, with all that is needed to return to the file's own axes.

World axes are NIfTI's RAS+: +x is the patient's right, +y anterior, +z superior. `Volume.array` is (S, H, W),
slices from inferior to superior, each as a radiologist's screen shows it: row 0 is anterior, column 0 is
the patient's right. Axes are only permuted and flipped, never resampled: an oblique scan keeps its voxels,
and its file axes are matched to the closest world axes (`nibabel.orientations.io_orientation`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..model.errors import GalipError
from .file_checks import corrupt_as_error

METRE, MICROMETRE = 1, 3  # codes in the low three bits of NIfTI's xyzt_units; all others are taken as mm
SMALLEST_VOXEL, LARGEST_VOXEL = 1e-4, 1e3  # mm; sizes beyond these are errors of the header
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
        header: the NIfTI header (for other formats with geometry one that says the same), None for a file
            without geometry.
        instances: for DICOM, what is kept of each slice's header, along the grid's third axis.
        instance_places: for DICOM slices that were resampled to even distances, where each of `instances`
            lies along the third axis, in slices from the first; None where instance k is slice k.
        inverted_at: for DICOM whose lowest value is white (MONOCHROME1), the number that values in the file
            and in memory add up to; None for all else.
        exact_affine: the affine of a format that stores more digits than NIfTI's float32, None for others.
        largest_grey: of a picture of whole numbers, 255 or 65535 (PNG, TIFF); None for any other file.
    """

    shape: tuple[int, ...]
    grid: tuple[int, int, int]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool] = (False, False, False)
    header: nib.Nifti1Header | None = None
    instances: tuple[Any, ...] = ()
    instance_places: tuple[float, ...] | None = None
    inverted_at: float | None = None
    exact_affine: np.ndarray | None = None
    largest_grey: int | None = None

    @property
    def affine(self) -> np.ndarray | None:
        """(4, 4) float64, file voxel indices to RAS+ world coordinates; None for a file without geometry."""
        if self.exact_affine is not None:
            return self.exact_affine
        return None if self.header is None else self.header.get_best_affine()

    @property
    def affine_mm(self) -> np.ndarray | None:
        """`affine` in mm, whatever the header's unit of length."""
        if self.affine is None or self.header is None:
            return self.affine
        return np.diag([*[_millimetres(self.header)] * 3, 1.0]) @ self.affine

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
    def from_array(cls, array: np.ndarray, *, nan_background: bool = False) -> Volume:
        """A volume without geometry from (S, H, W), or one slice from (H, W); NaN as in `volumes_of`.

        Raises:
            GalipError: other ranks, an empty axis, complex or non-numeric data, NaN or infinite values.
        """
        data = np.asarray(array)
        decoded = Decoded([data], slices_first_layout(data.shape, "array"))
        return volumes_of(decoded, None, "array", nan_background=nan_background)[0]

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


@dataclass(frozen=True)
class Decoded:
    """What a reader found in one file.

    Attributes:
        parts: the volumes in turn, each of `layout.shape`, made when asked for.
        layout: of each of them.
        notes: what the reader had to assume or mend, a sentence each.
    """

    parts: Iterable[np.ndarray]
    layout: FileLayout
    notes: tuple[str, ...] = ()


def volumes_of(
    decoded: Decoded, path: Path | None, name: str, *, nan_background: bool = False
) -> list[Volume]:
    """The volumes of a file as float32, one after another, so that a series is never in memory twice.

    Args:
        path: the file, None for data made in memory.
        name: the file or argument the messages start with.
        nan_background: take NaN as air: 0, or the lowest finite value of the volume where that is negative.

    Raises:
        GalipError: as `checked_float32`.
    """
    layout = decoded.layout
    spacing = (1.0, 1.0, 1.0) if layout.header is None else nifti_spacing(layout)
    volumes = []
    for number, data in enumerate(_guarded(decoded.parts, name)):
        notes = decoded.notes
        part = name if number == 0 else f"{name}, volume {number}"
        if nan_background and data.dtype.kind == "f":
            data, note = _nan_as_air(data, part)
            notes += note
        array = layout.arrange(checked_float32(data, part))
        volumes.append(Volume(array=array, path=path, spacing=spacing, source=layout, notes=notes))
    return volumes


def _guarded(parts: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The parts, with what their decoding raises as one line."""
    iterator = iter(parts)
    while True:
        with corrupt_as_error(Path(name)):
            try:
                part = np.asanyarray(next(iterator))
            except StopIteration:
                return
        yield part


def _nan_as_air(data: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    missing = np.isnan(data)
    count = int(missing.sum())
    if not count:
        return data, ()
    if count == data.size:
        raise GalipError(f"{name}: all {count} voxels are NaN; expected an image")
    air = min(0.0, float(np.nanmin(data)))
    if not math.isfinite(air):
        return data, ()  # `checked_float32` names the infinite voxels
    filled = np.where(missing, data.dtype.type(air), data)
    return filled, (f"{count} of {data.size} voxels are NaN and were taken as air ({air:g}).",)


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
            f"the first at index {first} of shape {values.shape}; replace them with finite values, or take "
            "NaN as air with --nan-background (nan_background=True)"
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


@contextmanager
def quiet_nibabel() -> Iterator[None]:
    """Hold back nibabel's remarks on headers. Its own `LoggingOutputSuppressor` takes its handler away, but
    then Python's handler of last resort prints them."""
    logger = nib.imageglobals.logger
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def geometry_header(shape: tuple[int, ...], affine: np.ndarray) -> nib.Nifti1Header:
    """A NIfTI header for a grid: `affine` (4, 4) from voxel indices to RAS+, in mm."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float32)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    if not np.allclose(header.get_qform(), affine, rtol=0, atol=1e-3):
        header["qform_code"] = 0  # a sheared grid (a tilted gantry): quaternions cannot say it
    return header


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
    # Where there is an sform, nothing is computed from these.
    if int(header["sform_code"]) == 0 and not all(np.isfinite(size) and size != 0 for size in sizes):
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
    in_mm = lengths * _millimetres(header)
    if lengths.all() and not ((in_mm >= SMALLEST_VOXEL) & (in_mm <= LARGEST_VOXEL)).all():
        raise GalipError(
            f"{name}: the voxels measure {' x '.join(f'{size:g}' for size in in_mm)} mm; expected sizes "
            f"between {SMALLEST_VOXEL:g} and {LARGEST_VOXEL:g} mm, so correct the header"
        )
    if not lengths.all() or np.linalg.matrix_rank(affine[:3, :3] / lengths) < 3:
        raise GalipError(
            f"{name}: the affine {affine[:3].tolist()} is not invertible; correct the file's sform or qform"
        )
    return affine


def nifti_spacing(layout: FileLayout) -> tuple[float, float, float]:
    """mm between slices, rows and columns of a NIfTI layout, from its affine and spatial unit."""
    sizes = nib.affines.voxel_sizes(layout.affine_mm)
    return (float(sizes[layout.axes[0]]), float(sizes[layout.axes[1]]), float(sizes[layout.axes[2]]))


def _millimetres(header: nib.Nifti1Header) -> float:
    """mm in the header's unit of length."""
    return {METRE: 1000.0, MICROMETRE: 0.001}.get(int(header["xyzt_units"]) % 8, 1.0)


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
