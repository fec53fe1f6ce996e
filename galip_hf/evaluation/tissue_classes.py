"""Classes of intensity that stand for tissues: CT by Hounsfield units, MR by thresholds of the domain."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from skimage.filters import threshold_multiotsu

from .set_distances import HISTOGRAM_EDGES

# HU: lungs, bowel gas and sinuses lie below, bone and contrast medium above.
CT_TISSUES = (("air", -np.inf, -200.0), ("soft tissue", -200.0, 200.0), ("bone", 200.0, np.inf))
MR_CLASSES = ("dark", "middle", "bright")


def ct_tissue_errors(
    prediction: np.ndarray, target: np.ndarray, body: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """MAE and bias (mean of prediction - target) in HU of each tissue that the target shows inside the body.

    Args:
        prediction, target: (S, H, W) in HU.
        body: (S, H, W) bool.

    Returns:
        tissue -> `mae`, `bias` (None where the target has none of it) and `share` of the body's voxels.
    """
    truth, difference = target[body], prediction[body] - target[body]
    errors: dict[str, dict[str, float | None]] = {}
    for name, low, high in CT_TISSUES:
        inside = (truth >= low) & (truth < high)
        values = difference[inside]
        errors[name] = {
            "mae": float(np.abs(values).mean()) if len(values) else None,
            "bias": float(values.mean()) if len(values) else None,
            "share": float(inside.mean()),
        }
    return errors


def class_limits(
    counts: Sequence[np.ndarray], window: tuple[float, float] | None
) -> tuple[list[str], np.ndarray]:
    """Names of a domain's classes and the limits between them in model space.

    MR: the two thresholds of multi-level Otsu (Liao et al., J. Inf. Sci. Eng. 17, 2001) on the real scans'
    intensities. CT: `CT_TISSUES` in the domain's window.

    Args:
        counts: `intensity_counts` of each real scan.
        window: HU at 0 and at 1, for CT.
    """
    if window is not None:
        low, high = window
        inner = np.array([limit for _, _, limit in CT_TISSUES[:-1]])
        return [name for name, _, _ in CT_TISSUES], (inner - low) / (high - low)
    centres = (HISTOGRAM_EDGES[1:] + HISTOGRAM_EDGES[:-1]) / 2
    pooled = np.sum([c / c.sum() for c in counts], axis=0)
    try:
        return list(MR_CLASSES), threshold_multiotsu(hist=(pooled, centres), classes=len(MR_CLASSES))
    except ValueError:  # fewer than three grey levels
        return [], np.zeros(0)


def compare_classes(
    real: Sequence[np.ndarray], fake: Sequence[np.ndarray], window: tuple[float, float] | None
) -> list[dict[str, Any]]:
    """Share of the body and mean intensity of each class, real against translated; subjects weigh the same.

    Args:
        real, fake: `intensity_counts` of each scan of the target domain, and of each translation.
        window: HU at 0 and at 1, for CT.

    Returns:
        For each class `name`, `share_real`, `share_fake`, `mean_real`, `mean_fake` (model space, HU for CT;
        None where the class is empty).
    """
    names, limits = class_limits(real, window)
    centres = (HISTOGRAM_EDGES[1:] + HISTOGRAM_EDGES[:-1]) / 2
    class_of = np.searchsorted(limits, centres, side="right")
    rows: list[dict[str, Any]] = [{"name": name} for name in names]
    for side, counts in (("real", real), ("fake", fake)):
        shares = np.mean([c / c.sum() for c in counts], axis=0)
        for number, row in enumerate(rows):
            its = shares * (class_of == number)
            row[f"share_{side}"] = float(its.sum())
            mean = float((its * centres).sum() / its.sum()) if its.sum() else None
            if mean is not None and window is not None:
                mean = window[0] + mean * (window[1] - window[0])
            row[f"mean_{side}"] = mean
    return rows


__all__ = ["CT_TISSUES", "class_limits", "compare_classes", "ct_tissue_errors"]
