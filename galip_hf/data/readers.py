"""Read scans from NIfTI, MATLAB, NumPy or PNG files: file in, `Volume` out.

Nothing is allocated on a header's word alone: what it announces is first compared with the size of the file.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import nibabel as nib
import numpy as np
import scipy.io
from PIL import Image

from ..model.errors import GalipError
from .volumes import (
    FileLayout,
    Volume,
    checked_axis,
    checked_float32,
    nifti_layout,
    nifti_spacing,
    slices_first_layout,
    slices_last_layout,
)

SUFFIXES = (".nii.gz", ".nii", ".mat", ".npz", ".npy", ".png")
MATLAB_VARIABLE = "data_fs"  # the name SynDiff and the I2I-Galip authors use in their files
DEFLATE_RATIO = 1032  # zlib, and so gzip, zip, PNG and HDF5, cannot expand one byte to more than this
_GREY_EXPECTED = "expected 8- or 16-bit grayscale, or 8-bit RGB with equal channels"
_NUMERIC_CLASSES = ("double", "single", "logical") + tuple(
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
)


def read_volume(path: str | Path, *, axis: str | None = None, variable: str | None = None) -> Volume:
    """Read the one scan of a file; a 4-D NIfTI of several volumes is refused. Otherwise as `read_volumes`."""
    volumes = read_volumes(path, axis=axis, variable=variable)
    if len(volumes) > 1:
        raise GalipError(
            f"{path}: holds {len(volumes)} volumes, expected one; split a series into single volumes"
        )
    return volumes[0]


def read_volumes(path: str | Path, *, axis: str | None = None, variable: str | None = None) -> list[Volume]:
    """Read the scans of one file: one, or all volumes of a 4-D NIfTI.

    - `.nii`, `.nii.gz`: NIfTI-1 or 2, 2-D to 4-D, any orientation; scale factors are applied.
    - `.mat`: MATLAB v4 to v7.3, (H, W) or (H, W, S) as MATLAB itself shows it.
    - `.npy`, `.npz`: (H, W) or (S, H, W); pickled objects are refused.
    - `.png`: 8- or 16-bit grayscale, or 8-bit RGB with equal channels; values 0..255 or 0..65535.

    Args:
        path: the file; its suffix tells the format.
        axis: `axial`, `coronal` or `sagittal` slices by the affine; None: axial, see `Volume`. Files without
            geometry are taken in the order they have, which counts as axial.
        variable: the array to take from a `.mat` or `.npz` file. By default `data_fs`, else the only numeric
            array with two or three axes (scalars and vectors do not count).

    Returns:
        The volumes, (S, H, W) float32 each; see `Volume` for the order of its axes.

    Raises:
        GalipError: a missing, empty or corrupt file, an unknown suffix, several candidate variables, a wrong
            rank, geometry without meaning, or voxels that are complex, coloured, NaN or infinite.
    """
    path = Path(path)
    suffix = supported_suffix(path)
    check_file(path)
    if variable is not None and suffix not in (".mat", ".npz"):
        raise GalipError(
            f"{path}: variable={variable!r} was given, but only .mat and .npz files hold named arrays"
        )
    if suffix in (".nii", ".nii.gz"):
        return _read_nifti(path, axis)
    check_axis_of_array(axis, str(path))
    if suffix == ".mat":
        data = _read_mat(path, variable)
        return [_without_geometry(data, slices_last_layout(data.shape, str(path)), path)]
    if suffix == ".npz":
        data = _read_npz(path, variable)
    else:
        data = _read_npy(path) if suffix == ".npy" else _read_png(path)
    return [_without_geometry(data, slices_first_layout(data.shape, str(path)), path)]


def check_axis_of_array(axis: str | None, name: str) -> None:
    """Refuse to choose another slicing axis where there is no geometry to find it by."""
    if axis is not None and checked_axis(axis) != checked_axis("axial"):
        raise GalipError(
            f"{name}: axis={axis!r} was given, but the data have no geometry; transpose them or use NIfTI"
        )


def supported_suffix(path: Path) -> str:
    """The suffix of `path`, in lower case, one of `SUFFIXES`; GalipError for any other."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise GalipError(f"{path}: unknown file suffix {path.suffix!r}; supported are {', '.join(SUFFIXES)}")


def check_file(path: Path) -> None:
    """GalipError unless `path` is a file that may be read and is not empty."""
    if path.is_dir():
        raise GalipError(f"{path}: is a directory; expected one file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise GalipError(f"{path}: no such file; check the path")
    if not os.access(path, os.R_OK):
        raise GalipError(f"{path}: may not be read; change its permissions")
    if path.stat().st_size == 0:
        raise GalipError(f"{path}: the file is empty (0 bytes); copy it again")


@contextmanager
def corrupt_as_error(path: Path) -> Iterator[None]:
    """Turn a library's complaint about the file's bytes into one line.

    All exceptions: on mutated files the libraries raise nearly every kind there is, from IndexError to
    NotImplementedError. Only their calls belong in the block.
    """
    try:
        yield
    except GalipError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise GalipError(
            f"{path}: cannot be read, the file is truncated, corrupt or of another format "
            f"({type(error).__name__}: {reason}); copy it again or check its suffix"
        ) from error


def check_announced(announced: int, available: int, path: Path) -> None:
    """GalipError when a header announces more bytes than the file can hold."""
    if announced > available:
        raise GalipError(
            f"{path}: truncated or corrupt, its header announces {announced} bytes and the file can hold "
            f"{available} at most; copy it again"
        )


def _without_geometry(data: np.ndarray, layout: FileLayout, path: Path) -> Volume:
    values = layout.arrange(checked_float32(data, str(path)))
    return Volume(array=values, path=path, spacing=(1.0, 1.0, 1.0), source=layout)


def _read_nifti(path: Path, axis: str | None) -> list[Volume]:
    with corrupt_as_error(path):
        content, header = _nifti_content(path)
        layout = nifti_layout(header, str(path), axis)
        # nibabel scales in float64; rounded once to float32, the values are the closest possible.
        voxels = nib.arrayproxy.ArrayProxy(io.BytesIO(content), header)
    return _nifti_volumes(voxels, layout, path, str(path))


def _nifti_content(path: Path) -> tuple[bytes, nib.Nifti1Header]:
    """The bytes, uncompressed, and the header as it stands: nibabel's checks would mend a size of zero."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    available = path.stat().st_size * (DEFLATE_RATIO if zipped else 1)
    stream: IO[bytes]
    with gzip.open(path) if zipped else path.open("rb") as stream:  # type: ignore[assignment]
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        sizes = (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))
        header_class = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
        if header_class.sizeof_hdr not in sizes:
            raise GalipError(
                f"{path}: truncated, or not NIfTI: it does not start with 348 or 540; copy it again"
            )
        bare = header_class(start[: header_class.sizeof_hdr], check=False)
        if bare["magic"].item()[:2] != b"n+":
            raise GalipError(f"{path}: not a single-file NIfTI (magic {bare['magic'].item()!r}); convert it")
        itemsize = bare.get_data_dtype().itemsize
        needed = int(bare["vox_offset"]) + math.prod(max(n, 0) for n in bare.get_data_shape()) * itemsize
        check_announced(needed, available, path)
        content = start + stream.read(max(needed - len(start), 0))
        while stream.read(1 << 20):  # to the end, where gzip's checksum is
            pass
    if len(content) < needed:
        raise GalipError(
            f"{path}: truncated, {len(content)} of the {needed} bytes its header announces; copy it again"
        )
    header = header_class.from_fileobj(io.BytesIO(content), check=False)
    with nib.imageglobals.LoggingOutputSuppressor():
        header.copy().check_fix()  # raises what nibabel would raise when the header is written again
    return content, header


def nifti_image_volumes(image: Any, axis: str | None) -> list[Volume]:
    """The volumes of a nibabel image in memory, as `read_volumes` gives those of a file.

    Raises:
        GalipError: as `read_volumes`.
    """
    name = image.get_filename() or "image"
    with corrupt_as_error(Path(name)):
        kind = type(image) if isinstance(image, nib.Nifti1Image) else nib.Nifti1Image
        if not isinstance(image, nib.Nifti1Image):
            image = nib.Nifti1Image.from_image(image)
        # A copy, whose header takes up an affine that the caller gave beside the header.
        copied = kind(image.dataobj, image.affine, image.header)
        copied.update_header()
        layout = nifti_layout(copied.header, name, axis)
    path = Path(name) if image.get_filename() else None
    return _nifti_volumes(copied.dataobj, layout, path, name)


def _nifti_volumes(voxels: Any, layout: FileLayout, path: Path | None, name: str) -> list[Volume]:
    """One volume at a time, so that a series is never in memory in float64."""
    count = math.prod(voxels.shape) // math.prod(layout.shape)
    volumes = []
    for number in range(count):
        part = name if count == 1 else f"{name}, volume {number}"
        with corrupt_as_error(Path(name)):
            data = np.asanyarray(voxels if count == 1 else voxels[:, :, :, number])
            array = layout.arrange(checked_float32(data, part))
        volumes.append(Volume(array=array, path=path, spacing=nifti_spacing(layout), source=layout))
    return volumes


def _read_npy(path: Path) -> np.ndarray:
    with corrupt_as_error(path), path.open("rb") as file:
        return _read_npy_stream(file, path.stat().st_size, path)


def _read_npy_stream(stream: IO[bytes], available: int, path: Path) -> np.ndarray:
    shape, _, dtype = _npy_header(stream)
    check_announced(math.prod(shape) * dtype.itemsize, available, path)
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _read_npz(path: Path, variable: str | None) -> np.ndarray:
    with corrupt_as_error(path):
        if not zipfile.is_zipfile(path):
            raise GalipError(f"{path}: is not a zip archive of arrays; rename a single array to .npy")
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            known = variable is not None or MATLAB_VARIABLE in members
            shapes = {} if known else _npz_shapes(archive, members)
            chosen = members[_choose_variable(path, variable, list(members), shapes)]
            with archive.open(chosen) as stream:
                return _read_npy_stream(stream, path.stat().st_size * DEFLATE_RATIO, path)


def _npz_shapes(archive: zipfile.ZipFile, members: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes of the numeric arrays of an archive."""
    shapes = {}
    for name, member in members.items():
        if member.endswith(".npy"):
            with archive.open(member) as stream:
                shape, _, dtype = _npy_header(stream)
            if dtype.kind in "biufc":
                shapes[name] = shape
    return shapes


def _read_mat(path: Path, variable: str | None) -> np.ndarray:
    """The array in MATLAB's own axis order, from v7.3 (HDF5) or an older version."""
    with corrupt_as_error(path):
        if h5py.is_hdf5(path):
            return _read_mat73(path, variable)
        found = scipy.io.whosmat(path)
        shapes = {name: tuple(shape) for name, shape, kind in found if kind in _NUMERIC_CLASSES}
        name = _choose_variable(path, variable, [entry[0] for entry in found], shapes)
        if name in shapes:  # one byte at least is stored for each number
            check_announced(math.prod(shapes[name]), path.stat().st_size * DEFLATE_RATIO, path)
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
        check_announced(datasets[name].nbytes, path.stat().st_size * DEFLATE_RATIO, path)
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
    with corrupt_as_error(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the next check is stricter
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            bit_depth, colour_type = content[24], content[25]  # of the IHDR chunk, which always comes first
            check_announced(image.width * image.height * bit_depth // 8, len(content) * DEFLATE_RATIO, path)
            # 16-bit RGB is refused: Pillow reads it as 8-bit and would lose the low byte.
            if (bit_depth, colour_type) in ((8, 0), (16, 0), (8, 2)):
                return _grey(np.asarray(image), str(path))
    found = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGB with alpha"}
    raise GalipError(
        f"{path}: is a {bit_depth}-bit {found.get(colour_type, 'unknown')} PNG; {_GREY_EXPECTED}"
    )


def pil_volume(image: Image.Image) -> Volume:
    """One slice from a PIL image of mode L, I;16, I or F, or RGB with equal channels.

    Raises:
        GalipError: another mode, a broken file behind the image, or values that are not finite.
    """
    if image.mode not in ("L", "I", "F", "RGB") and not image.mode.startswith("I;16"):
        raise GalipError(f"image: has the mode {image.mode}; {_GREY_EXPECTED}")
    with corrupt_as_error(Path(getattr(image, "filename", "") or "image")):
        data = _grey(np.asarray(image), "image")
    return Volume.from_array(data)


def _grey(data: np.ndarray, name: str) -> np.ndarray:
    if data.ndim == 2:
        return data
    if (data == data[..., :1]).all():
        return data[..., 0]
    raise GalipError(f"{name}: is an 8-bit RGB PNG or image with unequal channels; {_GREY_EXPECTED}")
