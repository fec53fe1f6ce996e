"""Reliability checks of a translation: out-of-distribution input, cycle consistency, identity collapse.

`check_source` compares the input with the statistics of the training slices that the model's processor keeps;
`cycle_error` compares the input with its translation back to the source domain; `identity_check` compares the
output with the input. None of the three sees every fault: a translation that passes them can still be wrong.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.input_statistics import find_spots, scan_score, slice_scores
from ..data.skull import looks_skull_stripped
from ..model.domain_statistics import DomainStatistics
from ..model.errors import GalipError
from ..model.slice_geometry import SliceGeometry

if TYPE_CHECKING:
    from ..data.volumes import Volume

# Mean absolute difference of output and input, in model space inside the body, below which the output counts
# as a copy of the input: the noise of a scan is about as large.
COLLAPSE_LEVEL = 0.02
# Share of voxels far outside the intensity window from which on a report warns: a few bright vessels or some
# dense bone are less.
LARGEST_FAR_OUTSIDE = 0.01
# Smallest side of a slice, in pixels, from which on a scan is taken for an acquired one: smaller arrays are
# made for tests.
LEAST_ACQUIRED_PIXELS = 80
# How the warning of an input that fails the input check begins.
UNLIKE = "the scan does not look like"
# In CT nothing of the body is denser: enamel reaches about 3000 HU. A slice with this many such voxels holds
# metal.
METAL_HU, FEWEST_METAL_VOXELS = 3000.0, 4


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


def metal_slices(hounsfield: np.ndarray) -> list[int]:
    """Numbers of the slices of an (S, H, W) CT volume in HU that hold metal."""
    counts = (hounsfield > METAL_HU).sum(axis=(1, 2))
    return [int(number) for number in np.flatnonzero(counts >= FEWEST_METAL_VOXELS)]


def doubts_of_kind(
    volume: "Volume", slices: np.ndarray, body: np.ndarray, geometry: SliceGeometry, *, hounsfield: bool
) -> list[str]:
    """A sentence each where the scan is of another plane or another kind of head than the training slices.

    Args:
        volume: the scan.
        slices: its (S, H, W) values in model space.
        body: (S, H, W) bool, their body mask.
        geometry: of the training slices.
        hounsfield: whether the scan is CT, on which a dark ring of bone cannot be looked for.
    """
    doubts = []
    if volume.plane is not None and geometry.planes and volume.plane not in geometry.planes:
        doubts.append(
            f"the slices are {volume.plane}, and the model was trained on {', '.join(geometry.planes)} ones"
        )
    if geometry.skull_stripped is None or hounsfield:
        return doubts
    spacing = None if volume.source.affine is None else volume.spacing[1:]
    stripped = looks_skull_stripped(slices, body, spacing)
    if stripped is not None and stripped != geometry.skull_stripped:
        found = "a skull-stripped brain" if stripped else "a whole head"
        trained, change = ("whole heads", "draw") if stripped else ("skull-stripped brains", "distort")
        doubts.append(
            f"the scan looks like {found}, and the model was trained on {trained}: expect it to {change} "
            "skull and scalp, and prepare the scan as the training data were"
        )
    return doubts


def refuse_acquired_scan(volume: "Volume", check: Mapping[str, Any], reason: str) -> None:
    """For a model of synthetic images: refuse a scan that looks like none of them, as acquired scans do.

    Args:
        volume: the scan.
        check: its `check_source`.
        reason: why the model must not translate it.

    Raises:
        GalipError: it is refused.
    """
    looks_known = check["verdict"] != "unlike" or check["looks_like"] is not None
    if not looks_known and min(volume.array.shape[-2:]) >= LEAST_ACQUIRED_PIXELS:
        raise GalipError(
            f"{volume.path or 'scan'}: {reason}, and the scan does not look like that (score "
            f"{check['score']:.2f}, limit {check['limit']:.2f}); use a model trained on real scans, or "
            "--force (in Python force=True)"
        )


def warnings_of(report: Mapping[str, Any]) -> list[str]:
    """What a reader of a translation's report should be told, a sentence each; a failed input check first."""
    source, target, look = report["source"], report["target"], report["input_check"]
    told = []
    if look["verdict"] == "unlike":
        other = look["looks_like"]
        if other in (None, source):
            what = "like no domain the model knows, so the translation may be wrong throughout"
        else:
            what = f"like {other}, and a translation from the wrong domain is wrong"
        told.append(
            f"{UNLIKE} the {source} scans that the model was trained on (score {look['score']:.2f}, limit "
            f"{look['limit']:.2f}): it looks {what}"
        )
    if report["identity"]["collapsed"] and source != target:
        told.append(
            f"the output is almost the input (mean difference {report['identity']['mean_difference']:.3f})"
        )
    if report["far_outside_fraction"] > LARGEST_FAR_OUTSIDE:
        lower, upper = report["source_window"]
        told.append(
            f"{report['far_outside_fraction']:.1%} of the voxels lie far outside the intensity window "
            f"{lower:g}..{upper:g} and were clamped to it; is the scan in the units of {source}?"
        )
    if report["metal_slices"]:
        told.append(
            f"slices {_ranges(report['metal_slices'])} hold metal (above {METAL_HU:g} HU): do not rely on "
            "the translation there"
        )
    return told


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: 3, 7-9."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


__all__ = [
    "UNLIKE",
    "check_source",
    "cycle_error",
    "doubts_of_kind",
    "identity_check",
    "metal_slices",
    "refuse_acquired_scan",
    "warnings_of",
]
