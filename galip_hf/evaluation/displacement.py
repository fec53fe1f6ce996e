"""Does a translation move the anatomy? The shift between the edges of each slice and of its translation.

Contrasts differ, edges stay: gradient magnitudes of both slices are registered by cross-correlation
(scikit-image's `phase_cross_correlation`, unnormalised; Guizar-Sicairos et al., Optics Letters 33(2), 2008)
to 1/20 of a pixel.
"""

import numpy as np
from scipy import ndimage
from skimage.registration import phase_cross_correlation

SMOOTHING = 1.0  # pixels, before the gradient
FAINT = 0.02  # of the window a pixel: several times the gradient of a scan's noise
UPSAMPLING = 20  # parts of a pixel
SMALLEST_BODY = 0.05  # share of a slice's pixels below which there are too few edges
MEANING = (
    "Distance in pixels by which the edges of a translated slice lie beside those of its source, "
    "registered slice by slice: median over the slices, and the 95th percentile.",
    "Whole slices only: a deformation that moves parts in opposite directions averages out. Below some "
    "0.3 pixels it is noise between contrasts.",
)


def slice_shift(first: np.ndarray, second: np.ndarray) -> tuple[float, float] | None:
    """(rows, columns) in pixels by which the edges of `second` must be moved to lie on those of `first`.

    None where a slice has no edges at all, such as one of a single value.

    Args:
        first, second: (H, W), of any two contrasts.
    """
    edges = _edges(first), _edges(second)
    if not all(side.any() for side in edges):
        return None
    shift, _, _ = phase_cross_correlation(*edges, upsample_factor=UPSAMPLING, normalization=None)
    return float(shift[0]), float(shift[1])


def displacement(source: np.ndarray, translation: np.ndarray, body: np.ndarray) -> dict[str, float | None]:
    """`median` and `p95` in pixels over the slices with enough body; None without such.

    Args:
        source, translation: (S, H, W) in model space.
        body: (S, H, W) bool.
    """
    rows = np.flatnonzero(body.mean(axis=(1, 2)) >= SMALLEST_BODY)
    shifts = [slice_shift(source[row], translation[row]) for row in rows]
    lengths = [float(np.hypot(*shift)) for shift in shifts if shift is not None]
    if not lengths:
        return {"median": None, "p95": None}
    return {"median": float(np.median(lengths)), "p95": float(np.percentile(lengths, 95))}


def _edges(image: np.ndarray) -> np.ndarray:
    """Where edges are, whatever their strength, less the mean; faded out at the borders, which match each
    other.

    A gradient g counts as g / (g + `FAINT`): an edge that is strong in one contrast and weak in the other
    keeps its place.
    """
    gradient = ndimage.gaussian_gradient_magnitude(np.clip(image, 0, 1.2).astype(np.float64), SMOOTHING)
    edges = gradient / (gradient + FAINT)
    fade = np.outer(*(np.hanning(length + 2)[1:-1] ** 0.5 for length in image.shape))
    return (edges - edges.mean()) * fade


__all__ = ["MEANING", "displacement", "slice_shift"]
