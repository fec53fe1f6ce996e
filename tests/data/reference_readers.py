"""How other readers see a file: each format by the library it belongs to, without this package's checks."""

from pathlib import Path
from typing import Any

import numpy as np


def values(name: str) -> tuple[dict[str, Any], np.ndarray]:
    """All values of a file, sorted, as float32; what a child process runs.

    Raises:
        Exception: any, where the library refuses the file.
    """
    path = Path(name)
    array = np.asarray(_READERS[path.suffix.lower()](path))
    return {}, np.sort(array.astype(np.float32), axis=None)


def _nibabel(path: Path) -> Any:
    import nibabel as nib

    return nib.load(path).get_fdata()


def _itk(path: Path) -> Any:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _numpy(path: Path) -> Any:
    found = np.load(path, allow_pickle=False)
    return found["img"] if path.suffix == ".npz" else found


def _matlab(path: Path) -> Any:
    import h5py
    import scipy.io

    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            return file["data_fs"][()]
    return scipy.io.loadmat(path)["img"]


def _picture(path: Path) -> Any:
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        return np.stack([np.asarray(page) for page in ImageSequence.Iterator(image)])


def _dicom(path: Path) -> Any:
    import pydicom
    from pydicom.pixels import apply_modality_lut

    dataset = pydicom.dcmread(path, force=True)
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]  # of Enhanced images, with the rescaling
    rescale = (shared[0].get("PixelValueTransformationSequence") or [dataset])[0]
    return apply_modality_lut(dataset.pixel_array, rescale)


_READERS = {
    **dict.fromkeys((".nii", ".gz", ".mgz", ".mgh"), _nibabel),
    **dict.fromkeys((".nrrd", ".mha"), _itk),
    **dict.fromkeys((".npy", ".npz"), _numpy),
    **dict.fromkeys((".png", ".tif"), _picture),
    ".mat": _matlab,
    ".dcm": _dicom,
}

__all__ = ["values"]
