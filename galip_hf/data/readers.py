"""Read a scan from NIfTI, MATLAB, NumPy or PNG files: file in, `Volume` out."""

from __future__ import annotations

import gzip
import io
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import scipy.io
from PIL import Image

from galip_hf.data.volumes import (
    FileLayout,
    Volume,
    checked_float32,
    nifti_layout,
    nifti_spacing,
    slices_first_layout,
    slices_last_layout,
)
from galip_hf.errors import GalipError

SUFFIXES = (".nii.gz", ".nii", ".mat", ".npz", ".npy", ".png")
MATLAB_VARIABLE = "data_fs"  # the name SynDiff and the I2I-Galip authors use in their files
_NUMERIC_CLASSES = ("double", "single", "logical") + tuple(
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
)


def read_volume(path: str | Path, *, variable: str | None = None) -> Volume:
    """Read one scan.

    - `.nii`, `.nii.gz`: NIfTI-1 or 2, 2-D or 3-D, any orientation; scale factors are applied.
    - `.mat`: MATLAB v4 to v7.3, (H, W) or (H, W, S) as MATLAB itself shows it.
    - `.npy`, `.npz`: (H, W) or (S, H, W); pickled objects are refused.
    - `.png`: 8- or 16-bit grayscale, or 8-bit RGB with equal channels; values 0..255 or 0..65535.

    Args:
        path: the file; its suffix tells the format.
        variable: the array to take from a `.mat` or `.npz` file. By default `data_fs`, else the only numeric
            array with two or three axes (scalars and vectors do not count).

    Returns:
        The volume, (S, H, W) float32; see `Volume` for the order of its axes.

    Raises:
        GalipError: a missing, empty or corrupt file, an unknown suffix, several candidate variables, a wrong
            rank, or voxels that are complex, coloured, NaN or infinite.
    """
    path = Path(path)
    suffix = supported_suffix(path)
    _check_file(path)
    if variable is not None and suffix not in (".mat", ".npz"):
        raise GalipError(
            f"{path}: variable={variable!r} was given, but only .mat and .npz files hold named arrays"
        )
    if suffix in (".nii", ".nii.gz"):
        return _read_nifti(path)
    if suffix == ".mat":
        data = _read_mat(path, variable)
        return _without_geometry(data, slices_last_layout(data.shape, str(path)), path)
    if suffix == ".npz":
        data = _read_npz(path, variable)
    else:
        data = _read_npy(path) if suffix == ".npy" else _read_png(path)
    return _without_geometry(data, slices_first_layout(data.shape, str(path)), path)


def supported_suffix(path: Path) -> str:
    """The suffix of `path`, in lower case, one of `SUFFIXES`; GalipError for any other."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise GalipError(f"{path}: unknown file suffix {path.suffix!r}; supported are {', '.join(SUFFIXES)}")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise GalipError(f"{path}: is a directory; expected one file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise GalipError(f"{path}: no such file; check the path")
    if not os.access(path, os.R_OK):
        raise GalipError(f"{path}: may not be read; change its permissions")
    if path.stat().st_size == 0:
        raise GalipError(f"{path}: the file is empty (0 bytes); copy it again")


@contextmanager
def _corrupt_as_error(path: Path, *causes: type[Exception]) -> Iterator[None]:
    """Turn a library's complaint about the file's bytes into one line."""
    expected: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, MemoryError, zlib.error, *causes)
    try:
        yield
    except GalipError:
        raise
    except expected as error:
        reason = " ".join(str(error).split())[:160]
        raise GalipError(
            f"{path}: cannot be read, the file is truncated, corrupt or of another format "
            f"({type(error).__name__}: {reason}); copy it again or check its suffix"
        ) from error


def _without_geometry(data: np.ndarray, layout: FileLayout, path: Path) -> Volume:
    values = layout.arrange(checked_float32(data, str(path)))
    return Volume(array=values, path=path, spacing=(1.0, 1.0, 1.0), source=layout)


def _read_nifti(path: Path) -> Volume:
    header_errors = (nib.wrapstruct.WrapStructError, nib.spatialimages.HeaderDataError)
    with _corrupt_as_error(path, nib.filebasedimages.ImageFileError, *header_errors):
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)  # verifies the checksum, which nibabel's lazy reading does not
        nifti2 = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))
        image = (nib.Nifti2Image if nifti2 else nib.Nifti1Image).from_bytes(content)
        layout = nifti_layout(image.header, str(path))
        assert isinstance(image.dataobj, nib.arrayproxy.ArrayProxy)
        needed = image.dataobj.offset + math.prod(layout.shape) * image.get_data_dtype().itemsize
        if len(content) < needed:
            raise GalipError(
                f"{path}: truncated, {len(content)} of the {needed} bytes its header announces; copy it again"
            )
        # Scaled in float64 and rounded once to float32, so that the values are the closest possible.
        data = np.asanyarray(image.dataobj)
    array = layout.arrange(checked_float32(data, str(path)))
    return Volume(array=array, path=path, spacing=nifti_spacing(layout), source=layout)


def _read_npy(path: Path) -> np.ndarray:
    with _corrupt_as_error(path, zipfile.BadZipFile, tokenize.TokenError), path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_npz(path: Path, variable: str | None) -> np.ndarray:
    # RuntimeError: an encrypted archive, or a compression zipfile does not know.
    with _corrupt_as_error(path, zipfile.BadZipFile, RuntimeError, tokenize.TokenError):
        if not zipfile.is_zipfile(path):
            raise GalipError(f"{path}: is not a zip archive of arrays; rename a single array to .npy")
        with np.load(path, allow_pickle=False) as arrays:
            known = variable is not None or MATLAB_VARIABLE in arrays.files
            shapes = {} if known else _npz_shapes(arrays)
            return arrays[_choose_variable(path, variable, arrays.files, shapes)]


def _npz_shapes(arrays: np.lib.npyio.NpzFile) -> dict[str, tuple[int, ...]]:
    """The shapes of the numeric arrays of an archive."""
    shapes = {}
    for name in arrays.files:
        with suppress(ValueError):  # pickled objects are no candidates
            array = arrays[name]
            if array.dtype.kind in "biufc":
                shapes[name] = array.shape
    return shapes


def _read_mat(path: Path, variable: str | None) -> np.ndarray:
    """The array in MATLAB's own axis order, from v7.3 (HDF5) or an older version."""
    with _corrupt_as_error(path, KeyError, RuntimeError, TypeError, IndexError, scipy.io.matlab.MatReadError):
        if h5py.is_hdf5(path):
            return _read_mat73(path, variable)
        found = scipy.io.whosmat(path)
        shapes = {name: tuple(shape) for name, shape, kind in found if kind in _NUMERIC_CLASSES}
        name = _choose_variable(path, variable, [entry[0] for entry in found], shapes)
        data = scipy.io.loadmat(path, variable_names=[name])[name]
        if not isinstance(data, np.ndarray):
            raise GalipError(
                f"{path}: variable {name!r} is a {type(data).__name__}; expected a full numeric array"
            )
        return data


def _read_mat73(path: Path, variable: str | None) -> np.ndarray:
    with h5py.File(path, "r") as file:
        datasets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        shapes = {name: item.shape for name, item in datasets.items() if _is_numeric(item)}
        name = _choose_variable(path, variable, [name for name in file if not name.startswith("#")], shapes)
        if name not in shapes:
            raise GalipError(f"{path}: variable {name!r} is not a numeric array; choose one with variable=")
        if datasets[name].attrs.get("MATLAB_empty", 0):
            raise GalipError(
                f"{path}: variable {name!r} is empty; expected at least one voxel along each axis"
            )
        # MATLAB stores column-major arrays, which HDF5 sees with all axes reversed.
        return datasets[name][()].transpose()


def _is_numeric(dataset: h5py.Dataset) -> bool:
    """Whether an HDF5 dataset holds numbers: MATLAB's text is uint16 too, told apart by its class."""
    matlab_class = dataset.attrs.get("MATLAB_class", b"double")
    if isinstance(matlab_class, bytes):
        matlab_class = matlab_class.decode("ascii", "replace")
    complex_pair = dataset.dtype.names == ("real", "imag")
    return matlab_class in _NUMERIC_CLASSES and (dataset.dtype.kind in "biufc" or complex_pair)


def _choose_variable(
    path: Path, variable: str | None, names: list[str], shapes: dict[str, tuple[int, ...]]
) -> str:
    """`variable`, `data_fs`, or the only array in `shapes` (the numeric ones) that can be an image."""
    if variable is not None or MATLAB_VARIABLE in names:
        wanted = MATLAB_VARIABLE if variable is None else variable
        if wanted in names:
            return wanted
        raise GalipError(f"{path}: no variable {variable!r}; the file holds {', '.join(names) or 'none'}")
    images = [
        name
        for name, shape in shapes.items()
        if len(shape) in (2, 3) and sum(length > 1 for length in shape) > 1
    ]
    if len(images) == 1:
        return images[0]
    listing = ", ".join(f"{name} {shapes[name]}" if name in shapes else name for name in names) or "none"
    raise GalipError(
        f"{path}: {len(images)} variables could be the scan; the file holds {listing}; pass variable="
    )


def _read_png(path: Path) -> np.ndarray:
    with _corrupt_as_error(path, SyntaxError, Image.DecompressionBombError):
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            data = np.asarray(image)
        bit_depth, colour_type = content[24], content[25]  # of the IHDR chunk, which always comes first
    if (bit_depth, colour_type) in ((8, 0), (16, 0)):
        return data
    # 16-bit RGB is refused: Pillow reads it as 8-bit and would lose the low byte.
    if (bit_depth, colour_type) == (8, 2) and (data == data[..., :1]).all():
        return data[..., 0]
    found = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGB with alpha"}[
        colour_type
    ]
    raise GalipError(
        f"{path}: is a {bit_depth}-bit {found} PNG with unequal or unsupported channels; "
        "expected 8- or 16-bit grayscale, or 8-bit RGB with equal channels"
    )
