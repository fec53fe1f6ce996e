"""Measures on request, beside the protocols: groups of numbers for one translation, each group with its
meaning.

PSNR and SSIM alone mislead: SSIM misses blur, PSNR depends on the normalisation (Dohmen et al., arXiv
2405.08431).
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from skimage.metrics import normalized_mutual_information

from ..extras import require
from . import displacement, lesions, segmentations, synthrad

MEASURES_ON_REQUEST = ("ms-ssim", "nmse", "nmi", "displacement")
MS_SSIM_SMALLEST = 176  # pixels a side: 11-pixel windows at the coarsest of five levels
Group = dict[str, float | None]

# group -> (what it says, what it cannot see)
GROUP_MEANINGS: dict[str, tuple[str, str]] = {
    "ct tissues": (
        "Mean absolute error and bias (translation - target) in HU inside the body, by what the target "
        "shows: air below -200 HU, bone above 200 HU, soft tissue between.",
        "A tissue at the wrong place counts as an error of both tissues. Dose is not computed.",
    ),
    "ms-ssim": (
        "Multi-scale SSIM (Wang et al. 2003; torchmetrics: five scales, Gaussian windows), 2-D, full "
        "slices, both sides scaled as in protocol fixed; 1 is identical.",
        "As SSIM, it forgives blur and small shifts; slices below 176 pixels are too small for its five "
        "scales.",
    ),
    "nmse": (
        "Sum of squared errors in the body over the target's sum of squares; 0 is identical.",
        "Bright tissue weighs most; it follows the mean squared error that PSNR shows.",
    ),
    "nmi": (
        "Normalised mutual information of translation and target in the body, 100 bins: 1 is independent, 2 "
        "determined.",
        "Any one-to-one change of intensity scores perfectly, an inverted contrast too.",
    ),
    "displacement": displacement.MEANING,
    "lesions": lesions.MEANING,
    "segmentations": segmentations.MEANING,
    "synthrad2025": synthrad.MEANING,
}  # fmt: skip


def similarity_groups(
    prediction: np.ndarray, target: np.ndarray, mask: np.ndarray, wanted: Collection[str]
) -> dict[str, Group]:
    """Those of `ms-ssim`, `nmse` and `nmi` that are wanted.

    Args:
        prediction, target: (S, H, W), scaled as under `FIXED`: the data range is 1.
        mask: (S, H, W) bool, the body.

    Raises:
        GalipError: torchmetrics is needed and not installed.
    """
    groups: dict[str, Group] = {}
    p, t = prediction[mask], target[mask]
    if "ms-ssim" in wanted:
        groups["ms-ssim"] = {"ms-ssim": _ms_ssim(prediction, target)}
    if "nmse" in wanted:
        energy = float(np.square(t).sum())
        groups["nmse"] = {"nmse": float(np.square(p - t).sum()) / energy if energy else None}
    if "nmi" in wanted:
        flat = p.min() == p.max() or t.min() == t.max()
        groups["nmi"] = {"nmi": None if flat else float(normalized_mutual_information(t, p))}
    return groups


def _ms_ssim(prediction: np.ndarray, target: np.ndarray) -> float | None:
    if min(target.shape[1:]) < MS_SSIM_SMALLEST:
        return None
    measure: Any = require("torchmetrics.functional.image", "evaluate")
    scores = [
        float(
            measure.multiscale_structural_similarity_index_measure(
                torch.from_numpy(np.ascontiguousarray(p))[None, None],
                torch.from_numpy(np.ascontiguousarray(t))[None, None],
                data_range=1.0,
            )
        )
        for p, t in zip(prediction, target, strict=True)
    ]
    return float(np.mean(scores))


__all__ = ["GROUP_MEANINGS", "MEASURES_ON_REQUEST", "Group", "similarity_groups"]
