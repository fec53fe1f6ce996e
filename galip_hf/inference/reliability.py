"""Reliability checks of a translation: out-of-distribution input, cycle consistency, identity collapse.

`check_source` compares the input with the statistics of the training slices that the model's processor keeps;
`cycle_error` compares the input with its translation back to the source domain; `identity_check` compares the
output with the input. None of the three sees every fault: a translation that passes them can still be wrong.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.input_statistics import find_spots, scan_score, slice_scores
from ..model.domain_statistics import DomainStatistics

# Mean absolute difference of output and input, in model space inside the body, below which the output counts
# as a copy of the input: the noise of a scan is about as large.
COLLAPSE_LEVEL = 0.02


def check_source(
    slices: np.ndarray,
    source: str,
    statistics: Mapping[str, DomainStatistics],
    body: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compare (S, H, W) slices in model space with the domains' training slices.

    Args:
        slices: in model space.
        source: their domain.
        statistics: of the training slices, by domain.
        body: (S, H, W) bool, `foreground.body_mask` of the slices if it is known already.

    Returns:
        `verdict`: `ok`, `unlike` (above the limit, or closer to another domain), or `unknown` (the model
        keeps no statistics of `source`, or no slice has enough foreground); `looks_like`, the known domain
        with the lowest score in its own deviations, None if none is within its limit; `score`, `limit`; and
        `slice_scores`, None for slices with too little foreground.
    """
    unknown = {
        "verdict": "unknown", "looks_like": None, "score": None, "limit": None, "slice_scores": None,
    }  # fmt: skip
    if source not in statistics:
        return unknown
    spots = find_spots(slices, body)
    per_slice = {name: slice_scores(spots, known.counts) for name, known in statistics.items()}
    scores = {name: scan_score(values) for name, values in per_slice.items()}
    score = scores[source]
    if score is None:
        return unknown
    excess = {
        name: (value - statistics[name].score_mean) / max(statistics[name].score_deviation, 1e-6)
        for name, value in scores.items()
        if value is not None
    }
    closest = min(excess, key=lambda name: excess[name])
    within = scores[closest] <= statistics[closest].score_limit  # type: ignore[operator]
    limit = statistics[source].score_limit
    return {
        "verdict": "ok" if score <= limit else "unlike",
        "looks_like": closest if within else None,
        "score": score,
        "limit": limit,
        "slice_scores": [None if np.isnan(value) else float(value) for value in per_slice[source]],
    }


def cycle_error(slices: np.ndarray, returned: np.ndarray, body: np.ndarray) -> dict[str, Any]:
    """Mean |returned - input| in model space inside the input's body, of the scan and of each slice.

    All three are (S, H, W); a slice without body has None.
    """
    error = np.abs(returned - slices)
    per_slice = [
        float(part[mask].mean()) if mask.any() else None for part, mask in zip(error, body, strict=True)
    ]
    return {"mean": float(error[body].mean()) if body.any() else None, "slices": per_slice}


def identity_check(slices: np.ndarray, translation: np.ndarray, body: np.ndarray) -> dict[str, Any]:
    """Is the output the input? Mean |output - input| in model space inside the body, and a verdict."""
    if not body.any():
        return {"mean_difference": None, "collapsed": False}
    difference = float(np.abs(translation - slices)[body].mean())
    return {"mean_difference": difference, "collapsed": difference < COLLAPSE_LEVEL}


def warnings_of(report: Mapping[str, Any]) -> list[str]:
    """What a reader of a translation's report should be told, a sentence each."""
    source, target, look = report["source"], report["target"], report["input_check"]
    told = []
    if look["verdict"] == "unlike":
        other = look["looks_like"]
        like = f"it looks like {other}" if other not in (None, source) else "like no domain the model knows"
        told.append(
            f"the input does not look like {source}: {like} "
            f"(score {look['score']:.2f}, limit {look['limit']:.2f})"
        )
    if report["identity"]["collapsed"] and source != target:
        told.append(
            f"the output is almost the input (mean difference {report['identity']['mean_difference']:.3f})"
        )
    return told


__all__ = ["check_source", "cycle_error", "identity_check", "warnings_of"]
