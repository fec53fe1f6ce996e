"""What a domain's training slices look like, as counts small enough to travel with the model's processor.

Every foreground pixel is described by three numbers of model space: the mean of its near neighbourhood, and
mean and standard deviation of a wider one (Gaussian windows, within the slice). A joint histogram of them
over all training slices says how often such a spot occurs; its negative logarithm says how strange a pixel of
a new scan is. A mass, a void or another organ shows as brightness at a size that the domain does not have;
another contrast shows everywhere. No network is involved, so the check cannot share the model's blind spots.

The score of a slice is the mean strangeness of its strangest tenth of foreground pixels, that of a scan the
90th percentile over its slices. What training scans score is measured with histograms of the other half of
the training subjects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from .errors import GalipError

VERSION = 1
NEAR, WIDE = 1.0, 3.0  # pixels: standard deviations of the windows
MEAN_EDGES = np.linspace(0, 1.2, 13)[1:-1]  # 12 bins, the outer ones open
DEVIATION_EDGES = np.linspace(0, 0.35, 9)[1:-1]  # 8 bins
SHAPE = (len(MEAN_EDGES) + 1, len(MEAN_EDGES) + 1, len(DEVIATION_EDGES) + 1)
FOREGROUND = 0.05  # of the wide mean
STRANGEST = 0.1  # share of a slice's foreground pixels
SLICE_QUANTILE = 0.9
SMALLEST_FOREGROUND = 40  # pixels; a slice with fewer has no score
LIMIT_DEVIATIONS = 3.0  # a scan this many standard deviations above the training mean is told
FEWEST_VOLUMES = 8  # for a standard deviation over volumes
_KEYS = {"version", "counts", "score_mean", "score_deviation"}


Spots = tuple[np.ndarray, np.ndarray]


def find_spots(slices: np.ndarray) -> Spots:
    """Bin number and foreground mask, each (S, H, W), of slices in model space."""
    clipped = np.clip(slices, -0.2, 1.6).astype(np.float32)
    near, wide = (ndimage.gaussian_filter(clipped, (0, sigma, sigma)) for sigma in (NEAR, WIDE))
    square = ndimage.gaussian_filter(clipped * clipped, (0, WIDE, WIDE))
    deviation = np.sqrt(np.maximum(square - wide * wide, 0))
    parts = (
        np.digitize(near, MEAN_EDGES),
        np.digitize(wide, MEAN_EDGES),
        np.digitize(deviation, DEVIATION_EDGES),
    )
    return np.ravel_multi_index(parts, SHAPE), wide > FOREGROUND


def count_spots(slices: np.ndarray) -> np.ndarray:
    """The joint histogram, `SHAPE` of int64, of the foreground of (S, H, W) slices in model space."""
    numbers, foreground = find_spots(slices)
    return np.bincount(numbers[foreground], minlength=np.prod(SHAPE)).reshape(SHAPE)


def strangeness(spots: Spots, counts: np.ndarray) -> np.ndarray:
    """-log probability of every pixel, (S, H, W) float32, by a histogram; 0 outside the foreground."""
    numbers, foreground = spots
    probability = (counts.ravel() + 0.5) / (counts.sum() + 0.5 * counts.size)
    return np.where(foreground, -np.log(probability)[numbers], 0).astype(np.float32)


def slice_scores(spots: Spots, counts: np.ndarray) -> np.ndarray:
    """Score of each slice, (S,), by a histogram; NaN where there is too little foreground."""
    scores = np.full(len(spots[0]), np.nan)
    for number, values in enumerate(strangeness(spots, counts)):
        pixels = np.sort(values[values > 0])
        if len(pixels) >= SMALLEST_FOREGROUND:
            scores[number] = pixels[-max(1, round(STRANGEST * len(pixels))) :].mean()
    return scores


def scan_score(scores: np.ndarray) -> float | None:
    """Score of a scan from those of its slices; None when no slice has one."""
    known = scores[~np.isnan(scores)]
    return float(np.quantile(known, SLICE_QUANTILE)) if len(known) else None


@dataclass(frozen=True, eq=False)
class DomainStatistics:
    """Counts of a domain's training slices, `SHAPE` of int64, and what training scans score."""

    counts: np.ndarray
    score_mean: float
    score_deviation: float

    @property
    def score_limit(self) -> float:
        """Above it a scan does not look like the domain."""
        return self.score_mean + LIMIT_DEVIATIONS * self.score_deviation

    @classmethod
    def measure(cls, volumes: Sequence[np.ndarray]) -> "DomainStatistics":
        """Statistics of a domain from its training volumes, each (S, H, W) in model space.

        They are read twice, one at a time. With fewer than eight, slices take the place of volumes.
        """
        if not len(volumes):
            raise GalipError("volumes: found none; the statistics of a domain need at least one")
        parts = volumes
        if len(volumes) < FEWEST_VOLUMES:
            parts = [part[number : number + 1] for part in volumes for number in range(len(part))]
        if len(parts) < 2:
            raise GalipError("volumes: found one slice; the statistics of a domain need at least two")
        halves = [
            np.sum([count_spots(parts[number]) for number in range(start, len(parts), 2)], axis=0)
            for start in (0, 1)
        ]
        scores = [
            scan_score(slice_scores(find_spots(part), halves[1 - number % 2]))
            for number, part in enumerate(parts)
        ]
        known = np.array([score for score in scores if score is not None])
        if len(known) < 2:
            raise GalipError(
                "volumes: fewer than two of the training slices have a foreground; check the intensity rule"
            )
        return cls(halves[0] + halves[1], float(known.mean()), float(known.std()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: a line of counts for each bin of the near mean."""
        return {
            "version": VERSION,
            "counts": [" ".join(map(str, row.ravel().tolist())) for row in self.counts],
            "score_mean": round(self.score_mean, 6),
            "score_deviation": round(self.score_deviation, 6),
        }

    @classmethod
    def from_dict(cls, values: Any, where: str) -> "DomainStatistics":
        """The inverse of `to_dict`.

        Raises:
            GalipError: naming `where`: unknown or missing keys, another version, or malformed numbers.
        """
        if not isinstance(values, Mapping) or set(values) != _KEYS:
            found = sorted(values) if isinstance(values, Mapping) else values
            raise GalipError(f"{where}: found {found!r}; expected a dict with exactly {sorted(_KEYS)}")
        if values["version"] != VERSION:
            raise GalipError(
                f"{where}: version is {values['version']!r}, this galip_hf reads {VERSION}; update galip_hf"
            )
        try:
            counts = np.array([[int(word) for word in row.split()] for row in values["counts"]]).reshape(
                SHAPE
            )
            mean, deviation = float(values["score_mean"]), float(values["score_deviation"])
        except (ValueError, TypeError, AttributeError, OverflowError):
            raise GalipError(
                f"{where}: counts or scores are malformed; expected {SHAPE[0]} lines of "
                f"{SHAPE[1] * SHAPE[2]} whole numbers and two numbers"
            ) from None
        if counts.min() < 0 or not counts.any() or not 0 < mean < np.inf or not 0 <= deviation < np.inf:
            raise GalipError(f"{where}: counts or scores are out of range; expected non-negative numbers")
        return cls(counts, mean, deviation)


__all__ = ["DomainStatistics", "count_spots", "find_spots", "scan_score", "slice_scores", "strangeness"]
