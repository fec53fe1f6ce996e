"""Body masks that a user gives: finding the one that belongs to a scan, and reading it.

A mask is a volume in any format of `galip_hf.data.readers` whose voxels are 0 outside the body. It is found
by its file name: `NAME_mask` belongs to the scan `NAME`, and by BIDS (bids-specification.readthedocs.io,
"Masks") `sub-01[_desc-brain]_mask` to every scan of `sub-01` in its folder.
"""

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..model.errors import GalipError
from .file_checks import SUFFIXES
from .grid import Grid, grid_of
from .readers import read_volume

MASK_SUFFIX = "_mask"
# BIDS entities that say how a mask was made or sampled, not whose it is.
_FREE_ENTITIES = re.compile(r"_(desc|label|space|res)-[^_]+")
# Parts of a voxel by which places may differ: rounding of affines in file headers is far below it.
PLACE_TOLERANCE = 0.1


def name_without_suffix(path: Path) -> str | None:
    """A volume's name without `.nii.gz` and the like; None for files that are no volumes."""
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    return path.name[: -len(suffix)] if suffix else None


def is_mask(path: Path) -> bool:
    """Whether a volume's file name says that it is a mask."""
    name = name_without_suffix(path)
    return name is not None and name.lower().endswith(MASK_SUFFIX)


def mask_of(scan: Path, files: Collection[Path]) -> Path | None:
    """The mask among `files` that belongs to a scan by its name, or None.

    Raises:
        GalipError: two masks belong to the scan equally well.
    """
    name = name_without_suffix(scan)
    if name is None:
        return None
    owners = [name]
    if name.startswith("sub-") and "_" in name:  # BIDS: the last part is the kind of scan, such as T1w
        owners.append(_FREE_ENTITIES.sub("", name).rpartition("_")[0])
    masks = {file: str(name_without_suffix(file))[: -len(MASK_SUFFIX)] for file in files if is_mask(file)}
    for found in (
        [file for file, owner in masks.items() if owner == name],
        [file for file, owner in masks.items() if _FREE_ENTITIES.sub("", owner) in owners],
    ):
        if len(found) > 1:
            raise GalipError(
                f"{scan}: {', '.join(sorted(file.name for file in found))} could all be its mask; keep one"
            )
        if found:
            return found[0]
    return None


def read_mask(path: Path, grid: Grid, owner: Path) -> np.ndarray:
    """The mask of a scan: (S, H, W) bool in display order.

    Args:
        path: the mask's file.
        grid: of the scan's voxels.
        owner: the scan's file, for messages.

    Raises:
        GalipError: the file cannot be read, lies on another grid than the scan, or is empty.
    """
    mask = read_labels(path, grid, owner) != 0
    if not mask.any():
        raise GalipError(f"{path}: the mask holds no voxel; expected values other than 0 inside the body")
    return mask


def read_labels(path: Path, grid: Grid, owner: Path) -> np.ndarray:
    """A mask or label map of a scan as `read_mask`, but its values, (S, H, W) float32, whatever they are."""
    volume = read_volume(path)
    check_same_place(grid_of(volume), path, grid, owner, "resample it onto the scan's grid")
    return volume.array


def check_same_place(own: Grid, path: Path, other: Grid, other_path: Path, remedy: str) -> bool:
    """Refuse two volumes whose voxels lie at different places.

    Both grids are in display order, so that files of any axis order and direction compare. Where one file has
    no geometry only the shapes can be compared.

    Returns:
        Whether the places could be compared.

    Raises:
        GalipError: shapes or places differ; the message states both geometries.
    """
    compared = own.known and other.known
    agrees = own.same_as(other, PLACE_TOLERANCE) if compared else own.shape == other.shape
    if not agrees:
        raise GalipError(
            f"{path}: its grid is {own.describe()}; that of {other_path} is {other.describe()}: the "
            f"voxels lie at different places (affine, spacing or shape); {remedy}"
        )
    return compared


__all__ = [
    "PLACE_TOLERANCE",
    "check_same_place",
    "is_mask",
    "mask_of",
    "name_without_suffix",
    "read_labels",
    "read_mask",
]
