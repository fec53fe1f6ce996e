"""Where a scan's slices lie on the canvas that the model was trained on, and the exact way back.

The network knows structures at the pixel size of its training slices, and its normalisation layers see how
much of a slice is air. So slices are resampled in-plane to the training pixel size, the body is put in the
middle of the training canvas (in several overlapping tiles where it does not fit), and what comes out is
put back and resampled onto the scan's own grid. What lies outside the canvas is air.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ..foreground import body_box, body_extent
from ..model.slice_geometry import SliceGeometry
from .slices import foreground_box

if TYPE_CHECKING:
    from ..data.volumes import Volume

# A scan whose pixels differ less than this from the training's is not resampled.
SAME_SIZE = 0.02
# Where the header's voxel size would make the body this much smaller than the smallest or larger than the
# largest training body, the header is wrong (many converters write 1 mm), and the body's own size is taken
# instead. One or a few slices may show the cap of a head alone: there a small body is believed longer.
LEAST_CREDIBLE, LEAST_OF_FEW_SLICES, MOST_CREDIBLE = 0.65, 0.4, 1.6
FEW_SLICES = 3
MARGIN = 2  # pixels around the body
OVERLAP = 0.25  # of the canvas: by how much tiles overlap at least
THICK = 3.0  # sides of a pixel that differ by this factor: the scan's slices lie in another plane


@dataclass(frozen=True)
class Placement:
    """How slices are brought to the canvas.

    Attributes:
        shape: (H, W) of the scan's slices.
        resized: (H, W) after resampling.
        canvas: (H, W) of the tiles that the network is given.
        corners: (row, column) of each tile's first pixel in the resized slices; negative where a tile reaches
            beyond them.
        report: what was done, as JSON values.
        notes: what a reader should know about it, a sentence each.
    """

    shape: tuple[int, int]
    resized: tuple[int, int]
    canvas: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    report: dict[str, Any]
    notes: tuple[str, ...] = ()

    def resize(self, slices: np.ndarray) -> np.ndarray:
        """(S, *shape) in model space to (S, *resized), clamped to [0, 1]."""
        if self.resized == self.shape:
            return slices
        return np.clip(resize_slices(slices, *self.resized), 0.0, 1.0)

    def tiles(self, slices: np.ndarray) -> np.ndarray:
        """(S, *shape) in model space to (tiles * S, *canvas), tile by tile; air where there is no scan."""
        resized = self.resize(slices)
        tiles = np.zeros((len(self.corners), len(slices), *self.canvas), np.float32)
        for tile, corner in zip(tiles, self.corners, strict=True):
            inside, there = self._overlap(corner)
            tile[:, there[0], there[1]] = resized[:, inside[0], inside[1]]
        return tiles.reshape(-1, *self.canvas)

    def restore(self, tiles: np.ndarray) -> np.ndarray:
        """The way back: (tiles * S, *canvas) to (S, *shape), tiles blended over weights that sum to one."""
        count = len(tiles) // len(self.corners)
        whole = np.zeros((count, *self.resized), np.float32)
        total = np.zeros(self.resized, np.float32)
        weight = np.outer(_ramp(self.canvas[0]), _ramp(self.canvas[1])) if len(self.corners) > 1 else 1.0
        weight = np.broadcast_to(np.asarray(weight, np.float32), self.canvas)
        for corner, tile in zip(self.corners, tiles.reshape(-1, count, *self.canvas), strict=True):
            inside, there = self._overlap(corner)
            whole[:, inside[0], inside[1]] += tile[:, there[0], there[1]] * weight[there]
            total[inside] += weight[there]
        whole /= np.where(total > 0, total, 1)
        return whole if self.resized == self.shape else resize_slices(whole, *self.shape)

    def _overlap(self, corner: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the resized slices that a tile covers, and that part's place in the tile."""
        inside, there = [], []
        for start, size, length in zip(corner, self.canvas, self.resized, strict=True):
            first, last = max(start, 0), min(start + size, length)
            inside.append(slice(first, last))
            there.append(slice(first - start, last - start))
        return (inside[0], inside[1]), (there[0], there[1])


def _ramp(length: int) -> np.ndarray:
    """Weights of a tile along one axis: highest in the middle, above 0 everywhere."""
    return np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)


def place_as_trained(
    volume: "Volume", body: np.ndarray, geometry: SliceGeometry, pixel_size: float | None
) -> Placement:
    """The placement by which a scan looks like the training slices.

    Args:
        volume: the scan, its slices in the plane in which they are translated.
        body: (S, H, W) bool, the scan's body mask.
        geometry: of the training slices.
        pixel_size: mm, taken in place of the training's; None for the training's.
    """
    shape = (body.shape[1], body.shape[2])
    factors, how, notes = _factors(volume, body, geometry, pixel_size)
    height, width = (max(1, round(length * factor)) for length, factor in zip(shape, factors, strict=True))
    corners = _corners(body, shape, (height, width), geometry.canvas)
    report = {
        "used": "model",
        "pixel_size": list(volume.spacing[1:]) if volume.source.affine is not None else None,
        "training_pixel_size": None if geometry.pixel_size is None else list(geometry.pixel_size),
        "scale": [height / shape[0], width / shape[1]],
        "scale_from": how,
        "canvas": list(geometry.canvas),
        "tiles": [list(corner) for corner in corners],
    }
    return Placement(shape, (height, width), geometry.canvas, corners, report, notes)


def place_natively(
    volume: "Volume", slices: np.ndarray, pixel_size: float | None, crop: bool, why: str
) -> Placement:
    """The scan's own grid, or square pixels of `pixel_size` mm; `crop`: the foreground's box alone."""
    shape = (slices.shape[1], slices.shape[2])
    resized = shape
    if pixel_size is not None:
        height, width = (
            max(1, round(length * size / pixel_size))
            for length, size in zip(shape, volume.spacing[1:], strict=True)
        )
        resized = (height, width)
    corner, canvas = (0, 0), resized
    if crop:
        rows, columns = foreground_box(resize_slices(slices, *resized))
        (top, bottom, _), (left, right, _) = rows.indices(resized[0]), columns.indices(resized[1])
        corner, canvas = (top, left), (bottom - top, right - left)
    report = {
        "used": "native",
        "why": why,
        "scale": [resized[0] / shape[0], resized[1] / shape[1]],
        "canvas": list(canvas),
        "tiles": [list(corner)],
    }
    return Placement(shape, resized, canvas, (corner,), report)


def _factors(
    volume: "Volume", body: np.ndarray, geometry: SliceGeometry, pixel_size: float | None
) -> tuple[tuple[float, float], str, tuple[str, ...]]:
    """Scale of rows and columns, where it comes from, and what to tell."""
    trained = geometry.pixel_size if pixel_size is None else (pixel_size, pixel_size)
    if volume.source.affine is None or trained is None:
        missing = "the model's training slices" if trained is None else "the scan"
        return (1.0, 1.0), f"pixel size of {missing} unknown: not resampled", ()
    rows, columns = volume.spacing[1] / trained[0], volume.spacing[2] / trained[1]
    notes = _thick_note(volume)
    extent = body_extent(body)
    if extent is not None and pixel_size is None:
        resulting = extent * math.sqrt(rows * columns)
        relative = resulting / geometry.body_extent
        smallest, largest = geometry.body_extent_range
        least = LEAST_OF_FEW_SLICES if len(body) <= FEW_SLICES else LEAST_CREDIBLE
        if not least * smallest <= resulting <= MOST_CREDIBLE * largest:
            scale = geometry.body_extent / extent
            aspect = math.sqrt(rows / columns)
            return (
                (scale * aspect, scale / aspect),
                "the body's extent: the header's voxel size is not credible",
                (
                    f"by its header's pixels of {volume.spacing[1]:g} x {volume.spacing[2]:g} mm the body is "
                    f"{relative:.2g} times as large as in training; it was scaled to the size of a training "
                    "body instead (correct the header, or give --resample or --geometry native)",
                    *notes,
                ),
            )
    if max(abs(rows - 1), abs(columns - 1)) < SAME_SIZE:
        return (1.0, 1.0), "the training pixel size: not resampled", notes
    return (rows, columns), "the training pixel size", notes


def _thick_note(volume: "Volume") -> tuple[str, ...]:
    rows, columns = volume.spacing[1:]
    if max(rows, columns) < THICK * min(rows, columns):
        return ()
    return (
        f"in the plane that is translated the scan's pixels are {rows:g} x {columns:g} mm: it was acquired "
        "in another plane, and the translation is as coarse",
    )


def _corners(
    body: np.ndarray, shape: tuple[int, int], resized: tuple[int, int], canvas: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """First pixels of the tiles: one around the body's middle, or as many as cover it."""
    starts = []
    for axis, box in enumerate(body_box(body)[1:]):
        first, last, _ = box.indices(shape[axis])
        scale = resized[axis] / shape[axis]
        starts.append(_starts(first * scale, last * scale, canvas[axis], resized[axis]))
    return tuple((row, column) for row in starts[0] for column in starts[1])


def _starts(first: float, last: float, size: int, length: int) -> list[int]:
    """Along one axis, where tiles of `size` pixels begin that cover the body from `first` to `last`."""
    extent = last - first
    if extent <= size:
        return [round((first + last - size) / 2)]
    low, high = max(0, math.floor(first) - MARGIN), min(length, math.ceil(last) + MARGIN)
    overlap = OVERLAP * size
    count = math.ceil((high - low - overlap) / (size - overlap))
    return [round(low + (high - low - size) * number / (count - 1)) for number in range(count)]


def resize_slices(slices: np.ndarray, height: int, width: int) -> np.ndarray:
    """(S, H, W) to (S, height, width) over the same field of view: bicubic, antialiased where it shrinks."""
    if slices.shape[1:] == (height, width):
        return slices
    tensor = torch.from_numpy(np.ascontiguousarray(slices, dtype=np.float32))[:, None]
    return F.interpolate(tensor, (height, width), mode="bicubic", antialias=True)[:, 0].numpy()


__all__ = ["Placement", "place_as_trained", "place_natively", "resize_slices"]
