"""Write a `Volume` to NIfTI, MATLAB, NumPy or PNG: the suffix of the output tells the format."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from PIL import Image

from ..files import atomic_write
from ..model.errors import GalipError
from ..version import DISCLAIMER
from .readers import MATLAB_VARIABLE, supported_suffix
from .volumes import FileLayout, Volume, checked_float32

DESCRIPTION = f"galip_hf: {DISCLAIMER}"  # NIfTI's descrip field: at most 79 bytes


def check_output_path(path: str | Path, *, overwrite: bool = False) -> Path:
    """Whether a scan may be written to `path`, before anything is computed for it; returns it as a Path.

    Raises:
        GalipError: an unknown suffix, an existing file, a missing or unwritable directory.
    """
    path = Path(path)
    supported_suffix(path)
    if path.is_dir():
        raise GalipError(f"{path}: is a directory; give a file name")
    if path.exists() and not overwrite:
        raise GalipError(
            f"{path}: already exists; choose another name or allow overwriting (--overwrite, overwrite=True)"
        )
    if not path.parent.is_dir():
        raise GalipError(f"{path}: the directory {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise GalipError(
            f"{path}: the directory {path.parent} is not writable; choose another or mend its permissions"
        )
    return path


def write_volume(volume: Volume, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write one scan; nothing is left behind when it fails.

    - `.nii`, `.nii.gz`: float32, no scale factors. A volume read from NIfTI returns to its own axes, shape,
      affine, sform and qform codes and units. Any other gets an identity affine (1 mm) under which its rows
      run from anterior to posterior and its columns from the patient's right to left, as viewers expect.
    - `.mat`: MATLAB v7.3, variable `data_fs`, single, (H, W, S), or (H, W) for one slice.
    - `.npy`, `.npz` (array `data_fs`): float32 (S, H, W), or (H, W) when the source file had two axes.
    - `.png`: one slice, 16-bit; [0, 1] becomes 0..65535 and values outside are refused.

    Args:
        volume: finite values.
        path: the file to write, in an existing directory.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path written.

    Raises:
        GalipError: an unknown suffix, an existing file, a missing or unwritable directory, values that are
            not finite, or an array that PNG cannot hold.
    """
    return _write([volume], Path(path), overwrite)


def write_series(volumes: Sequence[Volume], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the volumes of a 4-D NIfTI as one 4-D NIfTI again, otherwise as `write_volume`.

    Raises:
        GalipError: as `write_volume`; also not all volumes of one series, or another format than NIfTI.
    """
    path = Path(path)
    header = volumes[0].source.header if volumes else None
    length = 1 if header is None else (*header.get_data_shape(), 1, 1, 1, 1)[3]
    if len(volumes) != length or any(volume.source.header is not header for volume in volumes):
        raise GalipError(
            f"{path}: {len(volumes)} volumes were given to be written as one file; expected one, "
            "or all those of one 4-D NIfTI in their order"
        )
    if length > 1 and supported_suffix(path) not in (".nii", ".nii.gz"):
        raise GalipError(f"{path}: {len(volumes)} volumes only fit into a NIfTI file; write .nii.gz instead")
    return _write(volumes, path, overwrite)


def _write(volumes: Sequence[Volume], path: Path, overwrite: bool) -> Path:
    path = check_output_path(path, overwrite=overwrite)
    suffix = supported_suffix(path)
    checked = [volume.with_array(checked_float32(volume.array, f"volume for {path}")) for volume in volumes]
    try:
        with atomic_write(path) as temporary:
            encoded = temporary.with_name(f"volume{suffix}")  # the libraries want the suffix in lower case
            if len(checked) > 1:
                _save_nifti(checked, encoded)
            else:
                _encode(checked[0], encoded, path)
            os.replace(encoded, temporary)
    except OSError as error:
        raise GalipError(
            f"{path}: cannot be written ({error.strerror or error}); check permissions and free space"
        ) from error
    return path


def _encode(volume: Volume, temporary: Path, path: Path) -> None:
    suffix = supported_suffix(temporary)
    if suffix in (".nii", ".nii.gz"):
        _save_nifti([volume], temporary)
    elif suffix == ".mat":
        _write_mat73(volume, temporary)
    elif suffix == ".png":
        _png_image(volume, path).save(temporary)
    else:
        array = volume.array[0] if len(volume.source.shape) == 2 else volume.array
        if suffix == ".npy":
            np.save(temporary, array)
        else:
            np.savez_compressed(temporary, data_fs=array)


def _save_nifti(volumes: Sequence[Volume], temporary: Path) -> None:
    with (
        nib.imageglobals.LoggingOutputSuppressor()
    ):  # its remarks on harmless oddities of the source's header
        _nifti_image(volumes).to_filename(temporary)


def _nifti_image(volumes: Sequence[Volume]) -> nib.Nifti1Image:
    """One volume, or the volumes of a 4-D file joined again."""
    volume = volumes[0]
    if volume.source.header is None:
        slices, rows, columns = volume.array.shape
        layout = FileLayout(
            shape=(columns, rows, slices),
            grid=(columns, rows, slices),
            axes=(2, 1, 0),
            flips=(False, True, True),
        )
        image = nib.Nifti1Image(layout.restore(volume.array), np.eye(4))
        image.header.set_xyzt_units("mm")
    else:
        header = volume.source.header.copy()
        header.set_data_dtype(np.float32)
        # A display window or scaling of the source's intensities says nothing about the new ones.
        header["cal_min"] = header["cal_max"] = 0
        nifti2 = isinstance(header, nib.Nifti2Header)
        data = volume.to_source_array()
        if len(volumes) > 1:
            data = np.stack([part.to_source_array() for part in volumes], axis=-1)
            data = data.reshape(header.get_data_shape())
        image = (nib.Nifti2Image if nifti2 else nib.Nifti1Image)(data, volume.source.affine, header)
    image.header["descrip"] = DESCRIPTION.encode("ascii")
    return image


def _write_mat73(volume: Volume, temporary: Path) -> None:
    """HDF5 with MATLAB's 512-byte preamble and class attribute, so that MATLAB's `load` accepts it."""
    array = volume.array.transpose(1, 2, 0)  # (S, H, W) -> MATLAB's (H, W, S)
    array = array[..., 0] if array.shape[2] == 1 else array  # MATLAB drops a last axis of 1
    with h5py.File(temporary, "w", userblock_size=512) as file:
        dataset = file.create_dataset(MATLAB_VARIABLE, data=np.ascontiguousarray(array.transpose()))
        dataset.attrs["MATLAB_class"] = np.bytes_("single")
    text = f"MATLAB 7.3 MAT-file, {DESCRIPTION}".encode("ascii").ljust(116)
    with temporary.open("r+b") as stream:
        stream.write(text + bytes(8) + struct.pack("<H", 0x0200) + b"IM")


def _png_image(volume: Volume, path: Path) -> Image.Image:
    array = volume.array
    if array.shape[0] != 1:
        raise GalipError(
            f"{path}: PNG holds one slice, the volume has {array.shape[0]}; write .nii.gz or .npy instead"
        )
    low, high = float(array.min()), float(array.max())
    if low < 0.0 or high > 1.0:
        raise GalipError(
            f"{path}: PNG stores [0, 1] as 0..65535, the values span [{low:g}, {high:g}]; "
            "write .nii.gz or .npy instead"
        )
    return Image.fromarray(np.rint(array[0].astype(np.float64) * 65535).astype(np.uint16))
