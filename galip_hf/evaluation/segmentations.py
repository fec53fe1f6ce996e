"""Downstream segmentations of a translation against those of its target: Dice, HD95 and volume, by MONAI."""

import numpy as np
import torch

from ..extras import require
from ..model.errors import GalipError

MOST_LABELS = 200  # more different values than this are an image, not a segmentation
MEANING = (
    "Segmentations of the translation against those of the target, for each label: Dice (1 is "
    "identical), 95th percentile of the surface distance (HD95, mm) and relative volume difference (0 "
    "is the same volume).",
    "Errors of the segmenter itself count too; a label that only one side has scores Dice 0 and has no HD95.",
)


def segmentation_scores(
    prediction: np.ndarray, target: np.ndarray, spacing: tuple[float, float, float]
) -> dict[str, float | None]:
    """`dice LABEL`, `hd95 LABEL` (mm) and `volume LABEL` ((V_prediction - V_target) / V_target) of each
    label.

    Args:
        prediction, target: (S, H, W) label maps, 0 is background.
        spacing: mm between slices, rows and columns.

    Raises:
        GalipError: shapes differ, values are no labels, or MONAI is not installed.
    """
    if prediction.shape != target.shape:
        raise GalipError(f"segmentations: found shapes {prediction.shape} and {target.shape}; expected one")
    metrics = require("monai.metrics", "evaluate")
    labels = _labels(prediction) | _labels(target)
    scores: dict[str, float | None] = {}
    for label in sorted(labels - {0}):
        sides = [torch.from_numpy(side == label)[None, None] for side in (prediction, target)]
        counts = [int(side.sum()) for side in sides]
        scores[f"dice {label}"] = (
            float(metrics.compute_dice(*sides, include_background=True)) if counts[1] else 0.0
        )
        distance = None
        if all(counts):
            distance = float(
                metrics.compute_hausdorff_distance(
                    *sides, include_background=True, percentile=95, spacing=list(spacing)
                )
            )
        scores[f"hd95 {label}"] = distance
        scores[f"volume {label}"] = (counts[0] - counts[1]) / counts[1] if counts[1] else None
    return scores


def _labels(segmentation: np.ndarray) -> set[int]:
    values = np.unique(segmentation)
    if len(values) > MOST_LABELS or not np.array_equal(values, values.round()):
        raise GalipError(
            f"segmentations: found {len(values)} different values from {values[0]:g} to {values[-1]:g}; "
            "expected whole numbers, one a label"
        )
    return {int(value) for value in values}


__all__ = ["MEANING", "segmentation_scores"]
