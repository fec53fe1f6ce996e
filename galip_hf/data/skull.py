"""Is a head whole or skull-stripped? Told from a dark ring of bone under the scalp, in any MR contrast.

Cortical bone gives next to no MR signal. So under the surface of a whole head, at a depth of 3 to 15 mm,
there is a place that is much darker than the brain; under the surface of a skull-stripped brain there is
cortex. The ring is cut into sectors and 2 mm deep bins, and the darkest bin of each sector compared with the
tissue below. The quarter of darkest sectors decides: measured on open_ms heads and brains, the MNI average,
simulated heads and the phantom, in T1, T2, PD and FLAIR, it is 0.05 to 0.31 of the deep tissue in whole
heads, and 0.51 to 1.0 in stripped ones.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..foreground import body_extent, find_air, smoothed

SECTORS, BIN = 16, 2.0  # bins of 2 mm
SHALLOWEST, DEEPEST = 3.0, 15.0  # mm below the surface: scalp and bone of an adult
DEEP = 18.0  # mm: brain, in whole and in stripped heads
WHOLE, STRIPPED = 0.38, 0.45  # below and above these shares of the deep tissue; between them, unclear
SMALLEST_HEAD, LARGEST_HEAD = 90.0, 230.0  # mm, of the body's extent; other bodies have no skull to look for
SMALLEST_AREA = 0.4  # of the largest slice's body: caps of the head have no clean ring


def looks_skull_stripped(
    volume: np.ndarray, body: np.ndarray, pixel_size: Sequence[float] | None
) -> bool | None:
    """Whether an MR volume shows a brain without its skull.

    Args:
        volume: (S, H, W), any units.
        body: its `foreground.body_mask`.
        pixel_size: mm between rows and columns; None where unknown.

    Returns:
        None where it is unclear, the pixel size is unknown, or the body is not of a head's size.
    """
    if pixel_size is None or not body.any():
        return None
    extent = body_extent(body)
    assert extent is not None  # for the type checker: the body is not empty
    if not SMALLEST_HEAD <= extent * np.sqrt(pixel_size[0] * pixel_size[1]) <= LARGEST_HEAD:
        return None
    share = _share_of_darkest_sectors(volume, body, pixel_size)
    if share is None or WHOLE <= share <= STRIPPED:
        return None
    return share > STRIPPED


def _share_of_darkest_sectors(
    volume: np.ndarray, body: np.ndarray, pixel_size: Sequence[float]
) -> float | None:
    """The 25th percentile over sectors of their darkest bin, over the median of the deep tissue."""
    image = smoothed(volume)
    air = find_air(image)
    level = air.level if air is not None else float(image.min())
    areas = body.sum(axis=(1, 2))
    darkest: list[np.ndarray] = []
    deep: list[float] = []
    for part, mask in zip(
        image[areas >= SMALLEST_AREA * areas.max()], body[areas >= SMALLEST_AREA * areas.max()], strict=True
    ):
        depth = ndimage.distance_transform_edt(mask, sampling=pixel_size)
        darkest.append(_darkest_of_sectors(part, mask, depth, pixel_size))
        if (depth > DEEP).any():
            deep.append(float(np.median(part[depth > DEEP])))
    if not deep:
        return None
    contrast = float(np.median(deep)) - level
    values = np.concatenate(darkest)
    values = values[np.isfinite(values)]
    return float(np.percentile(values - level, 25)) / contrast if len(values) and contrast > 0 else None


def _darkest_of_sectors(
    image: np.ndarray, mask: np.ndarray, depth: np.ndarray, pixel_size: Sequence[float]
) -> np.ndarray:
    """(SECTORS,) the lowest median of a bin in each sector of one slice; NaN for an empty sector."""
    bins = int((DEEPEST - SHALLOWEST) / BIN)
    rows, columns = np.indices(image.shape)
    middle = ndimage.center_of_mass(mask)
    angle = np.arctan2((rows - middle[0]) * pixel_size[0], (columns - middle[1]) * pixel_size[1])
    sector = ((angle + np.pi) / (2 * np.pi) * SECTORS).astype(int) % SECTORS
    ring = np.clip(((depth - SHALLOWEST) / BIN).astype(int), 0, bins - 1)
    inside = (depth > SHALLOWEST) & (depth <= DEEPEST)
    labels = np.where(inside, sector * bins + ring, -1)
    counts = np.bincount(labels[inside], minlength=SECTORS * bins).reshape(SECTORS, bins)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # medians of empty bins
        medians = ndimage.median(image, labels, np.arange(SECTORS * bins)).reshape(SECTORS, bins)
        return np.nanmin(np.where(counts > 0, medians, np.nan), axis=1)


__all__ = ["looks_skull_stripped"]
