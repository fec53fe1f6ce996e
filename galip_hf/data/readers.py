"""Read the scans of a file: file in, `Volume` out. Each family of formats has a module of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..model.errors import GalipError
from .file_checks import (
    ITK_SUFFIXES,
    MAX_SIZE,
    MGH_SUFFIXES,
    NIFTI_SUFFIXES,
    PAIR_SUFFIXES,
    check_file,
    supported_suffix,
)
from .itk import read_itk
from .matlab import read_matlab
from .nifti import OWN_OUTPUT, read_mgh, read_nifti, read_pair
from .numpy_files import read_npy, read_npz
from .pictures import largest_grey, read_png, read_tiff
from .volumes import (
    Decoded,
    Volume,
    checked_axis,
    slices_first_layout,
    slices_last_layout,
    volumes_of,
)


def read_volume(
    path: str | Path,
    *,
    axis: str | None = None,
    variable: str | None = None,
    nan_background: bool = False,
    max_size: int = MAX_SIZE,
) -> Volume:
    """Read the one scan of a file, as `read_volumes`; a 4-D series of several volumes is refused."""
    volumes = read_volumes(
        path, axis=axis, variable=variable, nan_background=nan_background, max_size=max_size
    )
    if len(volumes) > 1:
        raise GalipError(
            f"{path}: holds {len(volumes)} volumes, expected one; split a series into single volumes"
        )
    return volumes[0]


def read_volumes(
    path: str | Path,
    *,
    axis: str | None = None,
    variable: str | None = None,
    nan_background: bool = False,
    max_size: int = MAX_SIZE,
) -> list[Volume]:
    """Read the scans of one file: one, or all volumes of a 4-D series.

    With geometry, in any orientation:

    - `.nii`, `.nii.gz`: NIfTI-1 or 2, 2-D to 4-D; scale factors are applied.
    - `.hdr` with `.img`: NIfTI or Analyze 7.5 in two files; either name may be given.
    - `.mgz`, `.mgh`: FreeSurfer.
    - `.nrrd`, `.nhdr`, `.mha`, `.mhd`: NRRD and MetaImage, through SimpleITK.

    Without:

    - `.mat`: MATLAB v4 to v7.3, (H, W) or (H, W, S) as MATLAB itself shows it.
    - `.npy`, `.npz`: (H, W) or (S, H, W); pickled objects are refused.
    - `.png`: 8- or 16-bit grayscale, or 8-bit RGB with equal channels; values 0..255 or 0..65535.
    - `.tif`, `.tiff`: the same, and signed or float32; several pages are the slices.

    Args:
        path: the file; its suffix tells the format.
        axis: `axial`, `coronal` or `sagittal` slices by the affine; None: axial, see `Volume`. Files without
            geometry are taken in the order they have, which counts as axial.
        variable: the array to take from a `.mat` or `.npz` file. By default `data_fs`, else the only numeric
            array with two or three axes (scalars and vectors do not count).
        nan_background: take NaN as air: 0, or the lowest finite value of the scan where that is negative.
        max_size: bytes of the largest scan accepted, as float32; one slice may have an eighth of it. Checked
            by the headers, before anything is decoded.

    Returns:
        The volumes, (S, H, W) float32 each; see `Volume` for the order of its axes.

    Raises:
        GalipError: a missing, empty, corrupt or too large file, an unknown suffix, several candidate
            variables, a wrong rank, geometry without meaning, or voxels that are complex, coloured, NaN or
            infinite.
    """
    path = Path(path)
    suffix = supported_suffix(path)
    check_file(path)
    if variable is not None and suffix not in (".mat", ".npz"):
        raise GalipError(
            f"{path}: variable={variable!r} was given, but only .mat and .npz files hold named arrays"
        )
    decoded = _with_geometry(path, suffix, axis, max_size) or _array(path, suffix, axis, variable, max_size)
    return volumes_of(decoded, path, str(path), nan_background=nan_background)


def _with_geometry(path: Path, suffix: str, axis: str | None, max_size: int) -> Decoded | None:
    if suffix in NIFTI_SUFFIXES:
        return read_nifti(path, axis, max_size)
    if suffix in PAIR_SUFFIXES:
        return read_pair(path, axis, max_size)
    if suffix in MGH_SUFFIXES:
        return read_mgh(path, axis, max_size)
    return read_itk(path, axis, max_size) if suffix in ITK_SUFFIXES else None


def _array(path: Path, suffix: str, axis: str | None, variable: str | None, max_size: int) -> Decoded:
    check_axis_of_array(axis, str(path))
    if suffix == ".mat":
        data = read_matlab(path, variable, max_size)
        return Decoded([data], slices_last_layout(data.shape, str(path)))
    notes: tuple[str, ...] = ()
    if suffix == ".npz":
        data = read_npz(path, variable, max_size)
    elif suffix == ".npy":
        data, notes = read_npy(path, max_size)
    else:
        data, ours = read_png(path, max_size) if suffix == ".png" else read_tiff(path, max_size)
        notes = (OWN_OUTPUT,) if ours else ()
    layout = slices_first_layout(data.shape, str(path))
    if suffix not in (".npz", ".npy"):
        layout = replace(layout, largest_grey=largest_grey(data))
    return Decoded([data], layout, notes)


def check_axis_of_array(axis: str | None, name: str) -> None:
    """Refuse to choose another slicing axis where there is no geometry to find it by."""
    if axis is not None and checked_axis(axis) != checked_axis("axial"):
        raise GalipError(
            f"{name}: axis={axis!r} was given, but the data have no geometry; transpose them or use NIfTI"
        )


__all__ = ["check_axis_of_array", "read_volume", "read_volumes"]
