"""What a domain's training slices look like, as counts small enough to travel with the model's processor.

Only the record is here, without what makes and reads it (`domain_scores`): this file is part of the code that
a repository can carry, which needs numpy alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import GalipError

VERSION = 1
MEAN_EDGES = np.linspace(0, 1.2, 13)[1:-1]  # 12 bins, the outer ones open
DEVIATION_EDGES = np.linspace(0, 0.35, 9)[1:-1]  # 8 bins
SHAPE = (len(MEAN_EDGES) + 1, len(MEAN_EDGES) + 1, len(DEVIATION_EDGES) + 1)
LIMIT_DEVIATIONS = 3.0  # a scan this many standard deviations above the training mean is told
_KEYS = {"version", "counts", "score_mean", "score_deviation"}


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
            counts = np.array(
                [[int(word) for word in row.split()] for row in values["counts"]], dtype=np.int64
            ).reshape(SHAPE)
            mean, deviation = float(values["score_mean"]), float(values["score_deviation"])
        except (ValueError, TypeError, AttributeError, OverflowError):
            raise GalipError(
                f"{where}: counts or scores are malformed; expected {SHAPE[0]} lines of "
                f"{SHAPE[1] * SHAPE[2]} whole numbers and two numbers"
            ) from None
        if counts.min() < 0 or not counts.any() or not 0 < mean < np.inf or not 0 <= deviation < np.inf:
            raise GalipError(f"{where}: counts or scores are out of range; expected non-negative numbers")
        return cls(counts, mean, deviation)


__all__ = ["DEVIATION_EDGES", "MEAN_EDGES", "SHAPE", "DomainStatistics"]
