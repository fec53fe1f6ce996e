"""A whole scan in model space, its intensity window measured where the body is.

How much air surrounds a body is a matter of the field of view, and percentiles of a whole volume change with
it: padding a head by its own width doubles its brightness in model space. So where a window comes from
percentiles, they are those of the body's bounding box, in training and in inference alike.
"""

import numpy as np

from ..foreground import body_box, body_mask
from ..model.intensity import IntensityNormalizer, NormalizedVolume, is_padding

ROBUST_PERCENTILES = (0.5, 99.5)


def normalize_scan(normalizer: IntensityNormalizer, array: np.ndarray, domain: str) -> NormalizedVolume:
    """(S, H, W) values of a scan in model space, by the rule of its domain.

    Raises:
        GalipError: as `IntensityNormalizer.normalize_volume`.
    """
    if normalizer.fixed_window(domain) is not None:
        return normalizer.normalize_volume(array, domain)
    return normalizer.normalize_volume(array, domain, body_box(scan_body(array)))


def scan_body(array: np.ndarray) -> np.ndarray:
    """The body mask of an (S, H, W) scan in the file's units, whatever single voxels and padding hold."""
    if not np.isfinite(array).all() or array.size == 0:
        return np.zeros(array.shape, dtype=bool)  # refused, with the reason, when it is normalised
    padding = is_padding(array)
    lower, upper = np.percentile(array[~padding] if padding.any() else array, ROBUST_PERCENTILES)
    return body_mask([np.clip(array, lower, upper)])


__all__ = ["normalize_scan", "scan_body"]
