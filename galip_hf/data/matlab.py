"""MATLAB files, v4 to v7.3: decoded in a child process, as SciPy and HDF5 crash on some corrupt files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.errors import GalipError
from .child_process import ChildProcess
from .file_checks import DEFLATE_RATIO, check_announced, check_size, corrupt_as_error

if TYPE_CHECKING:
    import h5py

MATLAB_VARIABLE = "data_fs"  # the name SynDiff and the I2I-Galip authors use in their files
_NUMERIC_CLASSES = ("double", "single", "logical") + tuple(
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
)


def read_matlab(path: Path, variable: str | None, max_size: int) -> np.ndarray:
    """One array of a file, in MATLAB's own axis order.

    Args:
        variable: its name; None: `choose_variable`'s.
        max_size: bytes of the largest scan accepted; see `check_size`.

    Raises:
        GalipError: a corrupt file, no such variable or several, an array that is too large or not numeric,
            or (v7.3) data that lie outside the file.
    """
    with corrupt_as_error(path), ChildProcess(max_size) as child:
        return child.call(__name__, "decode", str(path), variable, max_size)[1]


def decode(path: str, variable: str | None, max_size: int) -> tuple[dict[str, Any], np.ndarray]:
    """What the child runs."""
    import h5py
    import scipy.io

    file = Path(path)
    if h5py.is_hdf5(path):
        return {}, _read_mat73(file, variable, max_size)
    found = scipy.io.whosmat(path)
    shapes = {name: tuple(shape) for name, shape, kind in found if kind in _NUMERIC_CLASSES}
    name = choose_variable(file, variable, [entry[0] for entry in found], shapes)
    if name in shapes:  # one byte at least is stored for each number
        check_announced(math.prod(shapes[name]), file.stat().st_size * DEFLATE_RATIO, file)
        check_size(shapes[name], file, max_size)
    data = scipy.io.loadmat(path, variable_names=[name])[name]
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "biufc":
        kind = data.dtype if isinstance(data, np.ndarray) else type(data).__name__
        raise GalipError(f"{path}: variable {name!r} is of the kind {kind}; expected a full numeric array")
    return {}, data


def _read_mat73(path: Path, variable: str | None, max_size: int) -> np.ndarray:
    import h5py

    with h5py.File(path, "r") as file:
        names = [name for name in file if not name.startswith("#")]
        # Asked of the link itself: following one may open another file of the machine. MATLAB makes none.
        inside = [name for name in names if isinstance(file.get(name, getlink=True), h5py.HardLink)]
        datasets = {name: file[name] for name in inside if file.get(name, getclass=True) is h5py.Dataset}
        shapes = {name: item.shape for name, item in datasets.items() if _is_numeric(item)}
        outside = set(names) - set(inside) | {n for n, item in datasets.items() if _lies_elsewhere(item)}
        candidates = {name: shape for name, shape in shapes.items() if name not in outside}
        if variable in outside or (outside and not candidates) or MATLAB_VARIABLE in outside:
            raise GalipError(
                f"{path}: {variable or sorted(outside)[0]!r} is a link, or data in other files (external "
                "storage, a virtual data set); these are not followed, so save the array itself in the file"
            )
        name = choose_variable(path, variable, names, candidates)
        if name not in shapes:
            raise GalipError(f"{path}: variable {name!r} is not a numeric array; choose one with variable=")
        if datasets[name].dtype.names is not None:
            raise GalipError(f"{path}: variable {name!r} is complex; expected real values, the magnitude")
        if datasets[name].attrs.get("MATLAB_empty", 0):
            raise GalipError(
                f"{path}: variable {name!r} is empty; expected at least one voxel along each axis"
            )
        check_announced(datasets[name].nbytes, path.stat().st_size * DEFLATE_RATIO, path)
        check_size(shapes[name], path, max_size)
        # MATLAB stores column-major arrays, which HDF5 sees with all axes reversed.
        return datasets[name][()].transpose()


def _lies_elsewhere(dataset: h5py.Dataset) -> bool:
    return dataset.is_virtual or bool(dataset.external)


def _is_numeric(dataset: h5py.Dataset) -> bool:
    """Whether an HDF5 dataset holds numbers: MATLAB's text is uint16 too, told apart by its class."""
    matlab_class = dataset.attrs.get("MATLAB_class", b"double")
    if isinstance(matlab_class, bytes):
        matlab_class = matlab_class.decode("ascii", "replace")
    complex_pair = dataset.dtype.names == ("real", "imag")
    return matlab_class in _NUMERIC_CLASSES and (dataset.dtype.kind in "biufc" or complex_pair)


def choose_variable(
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


__all__ = ["MATLAB_VARIABLE", "choose_variable", "decode", "read_matlab"]
