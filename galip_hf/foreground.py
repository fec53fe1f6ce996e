"""Air and body of a scan: the one definition that metrics, crops, tables and reliability checks share.

Magnitude MR images have no air of zero: its noise is Rician, at 3 % noise brighter than a fixed share of the
tissue. So the level of air and its spread are measured in each volume:

1. Light smoothing within the slices, then Otsu's threshold (IEEE Trans. SMC 9(1), 1979) tells dark from
   bright voxels, as in ITK's and nilearn's masks. Median and median absolute deviation of the dark ones are
   those of air, which is most of them.
2. Tissue is what exceeds air by several deviations, and by a share of the contrast to tissue.
3. The body's edge lies where the smoothed image passes half of the step from air to the tissue of its rim: at
   half the partial volume. It is closed, filled slice by slice, and the largest 3-D component.

Dice with the true body on simulated heads (noise 0 to 5 %, T1, T2, PD) is in tests/test_foreground.py. CT has
air at -1000 HU, so its edge is at -500 HU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

CT_AIR, CT_BODY_EDGE = -1000.0, -500.0  # HU
SMOOTHING = 0.5  # pixels, standard deviation within the slice
DEVIATIONS = 4.0  # above the level of air: where tissue begins, whatever the noise
TISSUE_SHARE = 0.15  # of the step from air to tissue: likewise, whatever the contrast
EDGE_SHARE = 0.5  # of that step at the rim: the body's edge
CLOSING = 3  # pixels
# In a volume without air, such as a crop inside the head, the dark half spreads over this share of the step.
LARGEST_SPREAD = 0.25


@dataclass(frozen=True)
class Air:
    """Air in a smoothed volume: its level and deviation, and the median of brighter voxels."""

    level: float
    deviation: float
    tissue: float

    @property
    def limit(self) -> float:
        """What exceeds it is more than air."""
        return self.level + max(DEVIATIONS * self.deviation, TISSUE_SHARE * (self.tissue - self.level))


def smoothed(volume: np.ndarray) -> np.ndarray:
    """(S, H, W) as float32, smoothed within the slices."""
    return ndimage.gaussian_filter(np.asarray(volume, np.float32), (0, SMOOTHING, SMOOTHING))


def find_air(image: np.ndarray) -> Air | None:
    """Air in a smoothed (S, H, W) volume; None in one without air, or of one value everywhere."""
    if not image.min() < image.max():
        return None
    threshold = threshold_otsu(image.ravel())
    dark = image[image <= threshold]
    level = float(np.median(dark))
    deviation = 1.4826 * float(np.median(np.abs(dark - level)))  # that of a normal distribution
    tissue = float(np.median(image[image > threshold]))
    return Air(level, deviation, tissue) if deviation < LARGEST_SPREAD * (tissue - level) else None


def above_air(volume: np.ndarray) -> np.ndarray:
    """(S, H, W) bool: the voxels of an MR or CT volume that hold more than air and its noise.

    All of them where no air can be told, none in a volume of zeros.

    Args:
        volume: (S, H, W), any units in which air is darkest.
    """
    image = smoothed(volume)
    air = find_air(image)
    if air is None:
        return np.full(image.shape, bool(image.max() > 0))
    return image > air.limit


def body_mask(mr_volumes: Sequence[np.ndarray], ct_volumes: Sequence[np.ndarray] = ()) -> np.ndarray:
    """The body of one subject, from all of its registered volumes together: the same for every contrast.

    Args:
        mr_volumes: (S, H, W) each, in any units.
        ct_volumes: (S, H, W) each, in HU.

    Returns:
        (S, H, W) bool, filled slice by slice, one 3-D component; empty where all volumes are zero.
    """
    parts = [_mr_body(volume) for volume in mr_volumes]
    # Opened, so that closing does not join the table to the body.
    parts += [_opened(smoothed(volume) > CT_BODY_EDGE, 1) for volume in ct_volumes]
    body = parts[0]
    for part in parts[1:]:
        body = body | part
    return _one_piece(body)


def body_box(body: np.ndarray) -> tuple[slice, ...]:
    """The bounding box of an (S, H, W) mask; the whole volume where the mask is empty."""
    if not body.any():
        return (slice(None),) * body.ndim
    box = []
    for axis in range(body.ndim):
        inside: np.ndarray = np.flatnonzero(np.any(body, axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def body_extent(body: np.ndarray) -> float | None:
    """Side in pixels of the square with the area of the in-plane bounding box of an (S, H, W) mask."""
    if not body.any():
        return None
    _, rows, columns = body_box(body)
    return float(np.sqrt((rows.stop - rows.start) * (columns.stop - columns.start)))


def _mr_body(volume: np.ndarray) -> np.ndarray:
    image = smoothed(volume)
    air = find_air(image)
    if air is None:
        return np.full(image.shape, bool(image.max() > 0))
    tissue = image > air.limit
    rough = _one_piece(tissue)
    rim = rough & ~_eroded(rough, 3) & tissue
    outside = image[~_dilated(rough, 2)]
    level, deviation = air.level, air.deviation
    if outside.size:  # air alone, without the dark tissue that Otsu's threshold counts with it
        level, deviation = float(np.median(outside)), float(outside.std())
    rim_level = float(np.percentile(image[rim], 60)) if rim.any() else air.tissue
    return image > level + max(DEVIATIONS * deviation, EDGE_SHARE * (rim_level - level))


def _one_piece(mask: np.ndarray) -> np.ndarray:
    """Closed and filled within the slices, thin bridges cut, the largest 3-D component."""
    filled = _filled(_eroded(_dilated(mask, CLOSING), CLOSING))
    opened = _opened(filled, 1)
    labels, count = ndimage.label(opened if opened.any() else filled)
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0  # the background
        labels = labels == sizes.argmax()
    return _filled(labels.astype(bool))


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilation by a square of 2 * radius + 1 pixels within the slices; outside them there is nothing."""
    size = (1, 2 * radius + 1, 2 * radius + 1)  # scipy's maximum filter takes one axis after the other
    return ndimage.maximum_filter(mask, size=size, mode="constant", cval=0)


def _eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    """The erosion that undoes `_dilated`: what lies outside the slices does not erode."""
    size = (1, 2 * radius + 1, 2 * radius + 1)
    return ndimage.minimum_filter(mask, size=size, mode="constant", cval=1)


def _opened(mask: np.ndarray, radius: int) -> np.ndarray:
    return _dilated(_eroded(mask, radius), radius)


def _filled(mask: np.ndarray) -> np.ndarray:
    """Holes filled, slice by slice: what the slice's border cannot be reached from belongs to the mask."""
    filled = mask.copy()
    for index, part in enumerate(mask):
        labels, count = ndimage.label(~part)
        if count > 1:
            border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
            filled[index] = ~np.isin(labels, border[border > 0])
    return filled


__all__ = ["CT_AIR", "Air", "above_air", "body_box", "body_extent", "body_mask", "find_air"]
