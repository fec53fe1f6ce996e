"""Distances between two sets of scans, with intervals over subjects: FID and KID on features, Wasserstein on
intensities. Lower is closer.

`fid_kid` computes FID and KID with torchmetrics, once for all slices. Here they are written out, because an
interval needs each of them some forty times with subjects left out; the values are the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from .significance import jackknife_interval

KID_SLICES = 2000  # of each set at most, evenly spaced: the kernel matrix grows with the square
WIDE = 64  # features above which Fréchet distances are slow, and fewer are computed for the interval
HISTOGRAM_EDGES = np.linspace(-0.1, 1.5, 321)  # model space; values outside count in the outermost bins


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """FID (Heusel et al. 2017) of two sets of features, (N, D) and (M, D), N and M above D."""
    first, second = (np.cov(side, rowvar=False) for side in (real, fake))
    root = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    shift = np.square(real.mean(axis=0) - fake.mean(axis=0)).sum()
    return max(0.0, float(shift + np.trace(first) + np.trace(second) - 2 * root))


def feature_distances(
    real: Sequence[np.ndarray], fake: Sequence[np.ndarray], *, intervals: bool = True
) -> dict[str, Any]:
    """FID and KID between the slices of two groups of subjects.

    KID is the unbiased estimate over all pairs of slices (cubic kernel, gamma 1/D), the limit of the mean
    over random subsets that other codes take.

    Args:
        real, fake: (slices, D) features of each subject.
        intervals: compute them; they take most of the time.

    Returns:
        JSON-serialisable: `n_real`, `n_fake` (slices), `subjects_real`, `subjects_fake`, `features` (D),
        `fid` and `kid`, each with `_ci95` over subjects (None with fewer than two on a side) and `_reason`
        (why the value is None, else None).
    """
    sides = [[features for features in side if len(features)] for side in (real, fake)]
    width = next((features.shape[1] for side in sides for features in side), 0)
    counts = [sum(map(len, side)) for side in sides]
    result: dict[str, Any] = {
        "n_real": counts[0],
        "n_fake": counts[1],
        "subjects_real": len(sides[0]),
        "subjects_fake": len(sides[1]),
        "features": width,
        **dict.fromkeys(("fid", "fid_ci95", "fid_reason", "kid", "kid_ci95", "kid_reason")),
    }
    if min(counts) < 2:
        return result | dict.fromkeys(("fid_reason", "kid_reason"), f"n = {min(counts)} slices")
    sizes = len(sides[0]), len(sides[1])
    if min(counts) <= width:
        result["fid_reason"] = f"n = {min(counts)} is not above the {width} features"
    else:

        def fid(kept_real: np.ndarray, kept_fake: np.ndarray) -> float | None:
            parts = [
                np.concatenate([side[i] for i in kept])
                for side, kept in zip(sides, (kept_real, kept_fake), strict=True)
            ]
            return frechet_distance(*parts) if min(map(len, parts)) > width else None

        result["fid"] = fid(*map(np.arange, sizes))
        if intervals:
            result["fid_ci95"] = jackknife_interval(fid, *sizes, groups=20 if width <= WIDE else 10)
    kernel = _KernelSums(*sides)
    result["kid"] = kernel.kid(*map(np.arange, sizes))
    if intervals:
        result["kid_ci95"] = jackknife_interval(kernel.kid, *sizes)
    return result


class _KernelSums:
    """Kernel sums over slices of pairs of subjects: KID of any subjects is then immediate."""

    def __init__(self, real: Sequence[np.ndarray], fake: Sequence[np.ndarray]) -> None:
        sides = [_thinned(side) for side in (real, fake)]
        owners = [np.repeat(np.arange(len(side)), [len(f) for f in side]) for side in sides]
        self.counts = [np.array([len(f) for f in side], dtype=np.float64) for side in sides]
        x, y = (np.concatenate(side) for side in sides)
        self.within = [_by_subject(f, f, o, o, diagonal=False) for f, o in ((x, owners[0]), (y, owners[1]))]
        self.between = _by_subject(x, y, *owners, diagonal=True)

    def kid(self, real: np.ndarray, fake: np.ndarray) -> float | None:
        """The unbiased squared maximum mean discrepancy of the subjects kept."""
        sizes = [counts[kept].sum() for counts, kept in zip(self.counts, (real, fake), strict=True)]
        if min(sizes) < 2:
            return None
        total = -2 * self.between[np.ix_(real, fake)].sum() / (sizes[0] * sizes[1])
        for sums, kept, size in zip(self.within, (real, fake), sizes, strict=True):
            total += sums[np.ix_(kept, kept)].sum() / (size * (size - 1))
        return float(total)


def _thinned(side: Sequence[np.ndarray]) -> list[np.ndarray]:
    """At most `KID_SLICES` slices, the same share of each subject's."""
    step = max(1, -(-sum(map(len, side)) // KID_SLICES))
    return [features[::step] for features in side]


def _by_subject(
    x: np.ndarray, y: np.ndarray, owner_x: np.ndarray, owner_y: np.ndarray, *, diagonal: bool
) -> np.ndarray:
    kernel = (x @ y.T / x.shape[1] + 1) ** 3
    if not diagonal:
        np.fill_diagonal(kernel, 0)
    starts = [np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) for owner in (owner_x, owner_y)]
    return np.add.reduceat(np.add.reduceat(kernel, starts[0], axis=0), starts[1], axis=1)


def intensity_counts(volume: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Counts over `HISTOGRAM_EDGES`, (320,) float64, of the body of a (S, H, W) volume in model space."""
    values = np.clip(volume[body], HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    return np.histogram(values, HISTOGRAM_EDGES)[0].astype(np.float64)


def histogram_distance(
    real: Sequence[np.ndarray], fake: Sequence[np.ndarray], *, intervals: bool = True
) -> dict[str, Any]:
    """Wasserstein distance of the intensities in the body: how far intensity must be moved on average.

    Args:
        real, fake: `intensity_counts` of each subject; each subject weighs the same.
        intervals: compute them.

    Returns:
        `distance` in model space (to 1/200 of the window) and `distance_ci95` over subjects.
    """
    shares = [np.array([counts / counts.sum() for counts in side]) for side in (real, fake)]
    centres = (HISTOGRAM_EDGES[1:] + HISTOGRAM_EDGES[:-1]) / 2

    def distance(kept_real: np.ndarray, kept_fake: np.ndarray) -> float:
        means = [side[kept].mean(axis=0) for side, kept in zip(shares, (kept_real, kept_fake), strict=True)]
        return float(stats.wasserstein_distance(centres, centres, *means))

    sizes = len(real), len(fake)
    return {
        "distance": distance(*map(np.arange, sizes)),
        "distance_ci95": jackknife_interval(distance, *sizes) if intervals else None,
    }


__all__ = ["feature_distances", "frechet_distance", "histogram_distance", "intensity_counts"]
