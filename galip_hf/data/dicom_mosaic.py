"""Siemens mosaics: a whole volume stored as the tiles of one DICOM image, as old EPI sequences do.

ImageType has the word MOSAIC, and the number of tiles is in the private element (0019,xx0A),
NumberOfImagesInMosaic, or in the CSA header (0029,xx10), which nibabel reads. The tiles lie row by row in a
square. ImagePositionPatient is that of the large image, centred on where a single tile lies
(nipy.org/nibabel/dicom/dicom_mosaic.html). Files of XA scanners have the word without being mosaics.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..model.errors import GalipError

_GROUP, _CREATOR, _NUMBER = 0x0019, "SIEMENS MR HEADER", 0x0A


@dataclass(frozen=True)
class Mosaic:
    """How the tiles of a mosaic become slices.

    Attributes:
        count: slices.
        side: tiles along each edge of the image.
        positions: (count, 3) LPS+, mm: ImagePositionPatient of each slice.
        guessed: whether the direction in which the slices follow one another had to be assumed.
    """

    count: int
    side: int
    positions: np.ndarray
    guessed: bool

    def slices(self, image: np.ndarray) -> np.ndarray:
        """The tiles of (rows, columns) as (count, rows / side, columns / side)."""
        rows, columns = (length // self.side for length in image.shape)
        tiles = image.reshape(self.side, rows, self.side, columns).transpose(0, 2, 1, 3)
        return tiles.reshape(-1, rows, columns)[: self.count]


def says_mosaic(dataset: Any) -> bool:
    """Whether a single-frame image has the word MOSAIC in its ImageType."""
    kinds = dataset.get("ImageType") or ()
    single = int(dataset.get("NumberOfFrames") or 1) == 1
    return single and "MOSAIC" in ([kinds] if isinstance(kinds, str) else list(kinds))


def mosaic_count(dataset: Any) -> int | None:
    """The number of slices in a mosaic; None for another image, and where the number is not in the file."""
    if not says_mosaic(dataset):
        return None
    for count in (_private_count(dataset), _csa(dataset, "NumberOfImagesInMosaic")):
        if count is not None and int(count) > 1:
            return int(count)
    return None


def read_mosaic(dataset: Any, path: Path) -> Mosaic | None:
    """The layout of a mosaic, or None for an image that is none.

    Raises:
        GalipError: the tiles do not fill the image evenly, or the distance between slices is missing.
    """
    count = mosaic_count(dataset)
    if count is None:
        return None
    side = math.ceil(math.sqrt(count))
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows % side or columns % side:
        raise GalipError(
            f"{path}: a Siemens mosaic of {count} slices, whose {rows} x {columns} pixels cannot be cut into "
            f"{side} x {side} tiles; export the series as single slices"
        )
    distance = next(
        (float(dataset[tag].value) for tag in ("SpacingBetweenSlices", "SliceThickness") if dataset.get(tag)),
        0.0,
    )
    if not (math.isfinite(distance) and distance > 0):
        raise GalipError(
            f"{path}: a Siemens mosaic without SpacingBetweenSlices and SliceThickness; "
            "export the series as single slices"
        )
    along_row, along_column = np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    row_distance, column_distance = (float(size) for size in dataset.PixelSpacing)
    first = np.array(dataset.ImagePositionPatient, dtype=np.float64)
    first += along_column * row_distance * (rows - rows // side) / 2
    first += along_row * column_distance * (columns - columns // side) / 2
    normal = np.cross(along_row, along_column)
    stated = _csa(dataset, "SliceNormalVector")
    if stated is not None:  # the same line, perhaps the other way
        normal = normal * np.sign(normal @ np.array(stated, dtype=np.float64))
    positions = first + distance * np.arange(count)[:, None] * normal
    return Mosaic(count, side, positions, guessed=stated is None)


def _private_count(dataset: Any) -> int | None:
    try:
        value = dataset.private_block(_GROUP, _CREATOR)[_NUMBER].value
    except KeyError:
        element = dataset.get((_GROUP, 0x1000 | _NUMBER))  # the private creator has been removed
        value = None if element is None else element.value
    if isinstance(value, bytes):
        return int.from_bytes(value[:2], "little")
    return None if value in (None, "") else int(value)


def _csa(dataset: Any, name: str) -> Any:
    """A value of the CSA image header; None where it or the header is missing or cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its DICOM readers experimental
        from nibabel.nicom import csareader
    try:
        header = csareader.get_csa_header(dataset, "image")
        if header is None:
            return None
        if name == "SliceNormalVector":
            return csareader.get_slice_normal(header)
        return csareader.get_n_mosaic(header)
    except Exception:  # a corrupt private header is as good as none: the public tags decide
        return None
