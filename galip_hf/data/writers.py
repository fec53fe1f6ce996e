"""Write a `Volume` in the formats that are read: the suffix of the output tells which."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from ..files import atomic_group
from ..model.errors import GalipError
from ..version import DISCLAIMER
from .file_checks import (
    ITK_SUFFIXES,
    MGH_SUFFIXES,
    NIFTI_SUFFIXES,
    PAIR_SUFFIXES,
    TIFF_SUFFIXES,
    companion,
    stem_of,
    supported_suffix,
)
from .itk import check_itk, write_itk
from .matlab import MATLAB_VARIABLE
from .pictures import GreyScale, write_png, write_tiff
from .volumes import FileLayout, Volume, checked_float32, geometry_header, quiet_nibabel

DESCRIPTION = f"galip_hf: {DISCLAIMER}"  # NIfTI's descrip field: at most 79 bytes
_OF_SERIES = (*NIFTI_SUFFIXES, *PAIR_SUFFIXES, *ITK_SUFFIXES, *MGH_SUFFIXES)


def check_output_path(path: str | Path, *, overwrite: bool = False) -> Path:
    """Whether a scan may be written to `path`, before anything is computed for it; returns it as a Path.

    Raises:
        GalipError: an unknown suffix, a format whose library is not installed, an existing file (of a format
            of two files, either), a missing or unwritable directory.
    """
    path = Path(path)
    check_format(path)
    if path.is_dir():
        raise GalipError(f"{path}: is a directory; give a file name")
    for file in files_of(path):
        if file.exists() and not overwrite:
            raise GalipError(
                f"{file}: already exists; choose another name or allow overwriting "
                "(--overwrite, overwrite=True)"
            )
    if not path.parent.is_dir():
        raise GalipError(f"{path}: the directory {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise GalipError(
            f"{path}: the directory {path.parent} is not writable; choose another or mend its permissions"
        )
    return path


def check_format(path: Path) -> None:
    """GalipError unless the suffix of `path` is known and the library that writes it is installed."""
    if supported_suffix(path) in ITK_SUFFIXES:
        check_itk()


def files_of(path: Path) -> list[Path]:
    """The files that a scan at `path` consists of: two for pairs and detached headers, else one."""
    other = companion(path)
    return [path] if other is None else [other, path]


def check_fits(volumes: Sequence[Volume], path: Path) -> None:
    """GalipError unless the format at `path` can hold the volumes, one scan or all of one 4-D series."""
    suffix = supported_suffix(path)
    if len(volumes) > 1 and suffix not in _OF_SERIES:
        raise GalipError(f"{path}: {len(volumes)} volumes only fit into a 4-D file; write .nii.gz instead")
    if suffix == ".png" and len(volumes[0].array) != 1:
        raise GalipError(
            f"{path}: PNG holds one slice, the volume has {len(volumes[0].array)}; write .tif, .nii.gz or "
            ".npy instead"
        )


def grey_scale(volume: Volume, path: Path, window: tuple[float, float] | None) -> GreyScale | None:
    """How the format at `path` stores the volume in whole numbers; None for formats that hold floats.

    PNG always does, in the 8 or 16 bits of the picture that the volume was read from, else in 16. TIFF does
    if the volume was read from a picture of unsigned whole numbers, and holds float32 otherwise.

    Args:
        window: the values written as 0 and as the largest number; None for 0 and 1.
    """
    suffix, largest = supported_suffix(path), volume.source.largest_grey
    if suffix != ".png" and (suffix not in TIFF_SUFFIXES or largest is None):
        return None
    lower, upper = (0.0, 1.0) if window is None else window
    return GreyScale(float(lower), float(upper), largest or 65535)


def write_volume(
    volume: Volume,
    path: str | Path,
    *,
    overwrite: bool = False,
    window: tuple[float, float] | None = None,
) -> Path:
    """Write one scan; nothing is left behind when it fails.

    - `.nii`, `.nii.gz`, `.img` with `.hdr`: float32, no scale factors. A volume read from NIfTI returns to
      its own axes, shape, affine, sform and qform codes and units; the texts of the header (`descrip`,
      `data_type`, `db_name`, `aux_file`, `intent_name`) and its extensions, which may name the patient, are
      not copied.
    - `.mgz`, `.mgh`, `.nrrd`, `.nhdr` with `.raw`, `.mha`, `.mhd` with `.raw`: float32 on the source's grid.
    - Where the source has no geometry, all these get an affine of 1 mm under which rows run from anterior to
      posterior and columns from the patient's right to left, as viewers expect.
    - `.mat`: MATLAB v7.3, variable `data_fs`, single, (H, W, S), or (H, W) for one slice.
    - `.npy`, `.npz` (array `data_fs`): float32 (S, H, W), or (H, W) when the source file had two axes.
    - `.png`: one slice in whole numbers; `.tif`: slices as pages, in whole numbers or float32; see
      `grey_scale`.

    Args:
        volume: finite values.
        path: the file to write, in an existing directory.
        overwrite: whether an existing file may be replaced.
        window: for pictures of whole numbers, the values stored as 0 and as the largest number; values
            outside are clipped. None: 0 and 1, and values outside are refused.

    Returns:
        The path written.

    Raises:
        GalipError: an unknown suffix, an existing file, a missing or unwritable directory, values that are
            not finite, or an array that the format cannot hold.
    """
    path = check_output_path(path, overwrite=overwrite)
    with written_whole(path) as folder:
        encode([volume], folder / path.name, path, window)
    return path


def write_series(volumes: Sequence[Volume], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the volumes of a 4-D series as one 4-D file again, otherwise as `write_volume`.

    Raises:
        GalipError: as `write_volume`; also not all volumes of one series, or a format without a fourth axis.
    """
    path = check_output_path(path, overwrite=overwrite)
    check_series(volumes, path)
    with written_whole(path) as folder:
        encode(volumes, folder / path.name, path)
    return path


def check_series(volumes: Sequence[Volume], path: Path) -> None:
    """GalipError unless these are one scan, or all volumes of one 4-D series."""
    header = volumes[0].source.header if volumes else None
    length = 1 if header is None else (*header.get_data_shape(), 1, 1, 1, 1)[3]
    if len(volumes) != length or any(volume.source.header is not header for volume in volumes):
        raise GalipError(
            f"{path}: {len(volumes)} volumes were given to be written as one file; expected one, "
            "or all those of one 4-D series in their order"
        )


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """`atomic_group` whose failures (a full disk, a limit of the file size) are one line.

    Raises:
        GalipError: a file cannot be written; nothing is left behind.
    """
    try:
        with atomic_group(path) as folder:
            yield folder
    except OSError as error:
        raise GalipError(
            f"{path}: cannot be written ({error.strerror or error}); check permissions and free space"
        ) from error


def encode(
    volumes: Sequence[Volume], target: Path, path: Path, window: tuple[float, float] | None = None
) -> None:
    """Write the file `target` (and its companion), which is to become `path`; arguments as `write_volume`'s.

    Raises:
        GalipError: values that are not finite, or that the format cannot hold.
        OSError: the file cannot be written.
    """
    check_fits(volumes, path)
    suffix = supported_suffix(path)
    checked = [volume.with_array(checked_float32(volume.array, f"volume for {path}")) for volume in volumes]
    written = target.with_name(stem_of(target) + suffix)  # the libraries want the suffix in lower case
    if suffix in (*NIFTI_SUFFIXES, *PAIR_SUFFIXES):
        with quiet_nibabel():  # its remarks on oddities of the source's header
            _nifti_image(checked, pair=suffix in PAIR_SUFFIXES).to_filename(written)
    elif suffix in MGH_SUFFIXES:
        _write_mgh([_with_geometry(volume) for volume in checked], written)
    elif suffix in ITK_SUFFIXES:
        write_itk([_with_geometry(volume) for volume in checked], written)
    else:
        _write_array(checked[0], written, path, window)
    for old, new in zip(files_of(written), files_of(target), strict=True):
        os.replace(old, new)


def _write_array(volume: Volume, written: Path, path: Path, window: tuple[float, float] | None) -> None:
    suffix, scale = supported_suffix(written), grey_scale(volume, path, window)
    if suffix == ".mat":
        _write_mat73(volume, written)
        return
    array: np.ndarray = volume.array
    if scale is not None:
        if window is None:
            _check_unit_range(array, path, scale.largest)
        array = scale.encode(array)
    if suffix == ".png":
        write_png(array[0], written)
    elif suffix in TIFF_SUFFIXES:
        write_tiff(array, written)
    else:
        array = array[0] if len(volume.source.shape) == 2 else array
        if suffix == ".npy":
            np.save(written, array)
        else:
            np.savez_compressed(written, data_fs=array)  # MATLAB_VARIABLE


def _check_unit_range(array: np.ndarray, path: Path, largest: int) -> None:
    low, high = float(array.min()), float(array.max())
    if low < 0.0 or high > 1.0:
        raise GalipError(
            f"{path}: a picture stores [0, 1] as 0..{largest}, the values span [{low:g}, {high:g}]; "
            "give the window to be stored, or write .nii.gz or .npy instead"
        )


def _with_geometry(volume: Volume) -> Volume:
    """The volume itself, or one without geometry on a grid of 1 mm, upright."""
    if volume.source.header is not None:
        return volume
    slices, rows, columns = volume.array.shape
    layout = FileLayout(
        shape=(columns, rows, slices),
        grid=(columns, rows, slices),
        axes=(2, 1, 0),
        flips=(False, True, True),
        header=geometry_header((columns, rows, slices), np.eye(4)),
    )
    return replace(volume, source=layout)


def _source_arrays(volumes: Sequence[Volume]) -> np.ndarray:
    """One volume in the shape of its file, or the volumes of a series joined along the fourth axis."""
    if len(volumes) == 1:
        return volumes[0].to_source_array()
    data = np.stack([volume.to_source_array() for volume in volumes], axis=-1)
    header = volumes[0].source.header
    return data if header is None else data.reshape(header.get_data_shape())


def _nifti_image(volumes: Sequence[Volume], pair: bool) -> nib.Nifti1Pair:
    volumes = [_with_geometry(volume) for volume in volumes]
    layout = volumes[0].source
    assert layout.header is not None
    header = layout.header.copy()
    header.set_data_dtype(np.float32)
    # A display window or scaling of the source's intensities says nothing about the new ones, and the texts
    # and extensions may name the patient.
    header["cal_min"] = header["cal_max"] = 0
    for text in ("data_type", "db_name", "aux_file", "intent_name"):
        if text in header:
            header[text] = b""
    for unused in ("extents", "session_error", "regular"):  # of Analyze, free for anything in NIfTI-1
        if unused in header:
            header[unused] = b"r" if unused == "regular" else 0
    header.extensions.clear()
    header["vox_offset"] = 0  # that of the new file follows from its extensions: there are none
    kinds = {
        (False, False): nib.Nifti1Image,
        (False, True): nib.Nifti1Pair,
        (True, False): nib.Nifti2Image,
        (True, True): nib.Nifti2Pair,
    }
    kind = kinds[isinstance(header, nib.Nifti2Header), pair]
    image = kind(_source_arrays(volumes), header.get_best_affine(), header)
    image.header["descrip"] = DESCRIPTION.encode("ascii")
    return image


def _write_mgh(volumes: Sequence[Volume], written: Path) -> None:
    layout = volumes[0].source
    parts = [volume.to_source_array().reshape(layout.grid) for volume in volumes]
    data = parts[0] if len(parts) == 1 else np.stack(parts, axis=-1)
    image = nib.MGHImage(np.ascontiguousarray(data), layout.affine_mm)
    image.to_filename(written)


def _write_mat73(volume: Volume, written: Path) -> None:
    """HDF5 with MATLAB's 512-byte preamble and class attribute, so that MATLAB's `load` accepts it."""
    import h5py

    array = volume.array.transpose(1, 2, 0)  # (S, H, W) -> MATLAB's (H, W, S)
    array = array[..., 0] if array.shape[2] == 1 else array  # MATLAB drops a last axis of 1
    content = io.BytesIO()  # in memory: HDF5 prints of a full disk, and may crash in closing the file
    with h5py.File(content, "w", userblock_size=512) as file:
        dataset = file.create_dataset(MATLAB_VARIABLE, data=np.ascontiguousarray(array.transpose()))
        dataset.attrs["MATLAB_class"] = np.bytes_("single")
    text = f"MATLAB 7.3 MAT-file, {DESCRIPTION}".encode("ascii").ljust(116)
    content.seek(0)
    content.write(text + bytes(8) + struct.pack("<H", 0x0200) + b"IM")
    written.write_bytes(content.getbuffer())


__all__ = [
    "DESCRIPTION",
    "check_fits",
    "check_format",
    "check_output_path",
    "check_series",
    "encode",
    "files_of",
    "grey_scale",
    "write_series",
    "write_volume",
    "written_whole",
]
