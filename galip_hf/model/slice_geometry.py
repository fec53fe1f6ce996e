"""What the training slices were: their plane, pixel size, canvas, and the body on them.

A network knows structures at the size in pixels, in the plane and with the share of air that it was trained
with. This record travels with the model in preprocessor_config.json, so that inference can bring any scan
into the same form. It needs numpy alone: the file is part of the code that a repository can carry.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import GalipError

PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class SliceGeometry:
    """Geometry of the slices that a model was trained on.

    Attributes:
        planes: anatomical planes of the slices (`PLANES`); empty where the data did not say.
        pixel_size: mm between (rows, columns), median over the training volumes; None where unknown.
        pixel_size_range: smallest and largest side of a pixel in mm over the training volumes; None likewise.
        canvas: (H, W) of the training slices, in pixels.
        body_extent: side in pixels of the square with the area of the body's in-plane bounding box, median
            over the training volumes.
        body_extent_range: the smallest and largest of them.
        foreground_share: mean share of the canvas inside the body.
        skull_stripped: are the heads without skull and scalp? None where that was neither stated nor clear.
    """

    planes: tuple[str, ...]
    pixel_size: tuple[float, float] | None
    pixel_size_range: tuple[float, float] | None
    canvas: tuple[int, int]
    body_extent: float
    body_extent_range: tuple[float, float]
    foreground_share: float
    skull_stripped: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""

        def pair(values: tuple[float, float] | None) -> list[float] | None:
            return None if values is None else [round(float(value), 4) for value in values]

        return {
            "planes": list(self.planes),
            "pixel_size": pair(self.pixel_size),
            "pixel_size_range": pair(self.pixel_size_range),
            "canvas": list(self.canvas),
            "body_extent": round(self.body_extent, 2),
            "body_extent_range": pair(self.body_extent_range),
            "foreground_share": round(self.foreground_share, 4),
            "skull_stripped": self.skull_stripped,
        }

    @classmethod
    def from_dict(cls, values: Any, where: str) -> "SliceGeometry":
        """The inverse of `to_dict`.

        Raises:
            GalipError: naming `where`: unknown or missing keys, or values out of range.
        """
        keys = set(cls.__dataclass_fields__)
        if not isinstance(values, Mapping) or set(values) != keys:
            found = sorted(values) if isinstance(values, Mapping) else values
            raise GalipError(f"{where}: found {found!r}; expected an object with exactly {sorted(keys)}")
        planes, stripped = values["planes"], values["skull_stripped"]
        if not isinstance(planes, (list, tuple)) or not all(plane in PLANES for plane in planes):
            raise GalipError(f"{where}: planes is {planes!r}; expected a list of {', '.join(PLANES)}")
        if stripped not in (None, True, False):
            raise GalipError(f"{where}: skull_stripped is {stripped!r}; expected true, false or null")
        known = values["pixel_size"] is not None
        canvas = _pair(values, "canvas", where)
        share = _number(values["foreground_share"], "foreground_share", where)
        if any(side != int(side) or side > 65536 for side in canvas) or share > 1:
            raise GalipError(f"{where}: canvas or foreground_share is out of range; found {dict(values)!r}")
        return cls(
            tuple(planes),
            _pair(values, "pixel_size", where) if known else None,
            _pair(values, "pixel_size_range", where) if known else None,
            (int(canvas[0]), int(canvas[1])),
            _number(values["body_extent"], "body_extent", where),
            _pair(values, "body_extent_range", where),
            share,
            stripped,
        )


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise GalipError(f"{where}: {key} is {value!r}; expected numbers above 0")
    return float(value)


def _pair(values: Mapping[str, Any], key: str, where: str) -> tuple[float, float]:
    pair = values[key]
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise GalipError(f"{where}: {key} is {pair!r}; expected two numbers above 0")
    return _number(pair[0], key, where), _number(pair[1], key, where)


__all__ = ["PLANES", "SliceGeometry"]
