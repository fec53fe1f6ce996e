"""How much a scan looks like a domain's training slices: `DomainStatistics`, measured and compared with.

Every pixel of the body is described by three numbers of model space: the mean of its near neighbourhood, and
mean and standard deviation of a wider one (Gaussian windows, within the slice). A joint histogram of them
over all training slices says how often such a spot occurs; its negative logarithm says how strange a pixel of
a new scan is. A mass, a void or another organ shows as brightness at a size that the domain does not have;
another contrast shows everywhere. No network is involved, so the check cannot share the model's blind spots.

The score of a slice is the mean strangeness of its strangest tenth of foreground pixels, that of a scan the
90th percentile over its slices. What training scans score is measured with histograms of the other half of
the training subjects.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from ..foreground import body_mask
from ..model.domain_statistics import DEVIATION_EDGES, MEAN_EDGES, SHAPE, DomainStatistics
from ..model.errors import GalipError

if TYPE_CHECKING:
    import datasets

    from .table import SliceReader

logger = logging.getLogger(__name__)

NEAR, WIDE = 1.0, 3.0  # pixels: standard deviations of the windows
STRANGEST = 0.1  # share of a slice's foreground pixels
SLICE_QUANTILE = 0.9
SMALLEST_FOREGROUND = 40  # pixels; a slice with fewer has no score
FEWEST_VOLUMES = 8  # for a standard deviation over volumes


Spots = tuple[np.ndarray, np.ndarray]


def find_spots(slices: np.ndarray, body: np.ndarray | None = None) -> Spots:
    """Bin number and body mask, each (S, H, W), of slices in model space; `body` is that mask if known."""
    clipped = np.clip(slices, -0.2, 1.6).astype(np.float32)
    near, wide = (ndimage.gaussian_filter(clipped, (0, sigma, sigma)) for sigma in (NEAR, WIDE))
    square = ndimage.gaussian_filter(clipped * clipped, (0, WIDE, WIDE))
    deviation = np.sqrt(np.maximum(square - wide * wide, 0))
    parts = (
        np.digitize(near, MEAN_EDGES),
        np.digitize(wide, MEAN_EDGES),
        np.digitize(deviation, DEVIATION_EDGES),
    )
    return np.ravel_multi_index(parts, SHAPE), body_mask([slices]) if body is None else body


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


def measure_domain(volumes: Sequence[np.ndarray]) -> DomainStatistics:
    """Statistics of a domain from its training volumes, each (S, H, W) in model space.

    They are read twice, one at a time. With fewer than eight, slices take the place of volumes.

    Raises:
        GalipError: fewer than two slices with a foreground.
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
    return DomainStatistics(halves[0] + halves[1], float(known.mean()), float(known.std()))


class _TableVolumes(Sequence[np.ndarray]):
    """Volumes of a table, read when asked for."""

    def __init__(self, reader: "SliceReader", rows: list[list[int]]) -> None:
        self.reader, self.rows = reader, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return np.stack([self.reader[row] for row in self.rows[index]])


def measure_statistics(table: "datasets.Dataset", domains: Sequence[str]) -> dict[str, DomainStatistics]:
    """Statistics of each domain's slices in a table, subject by subject in the table's order.

    A domain with too few slices for them is left out: inputs cannot be compared with it.
    """
    from .table import SliceReader

    reader, names = SliceReader(table), table.features["domain"].names
    rows: dict[str, dict[str, list[int]]] = {domain: {} for domain in domains}
    for row, (subject, label) in enumerate(zip(table["subject"], table["domain"], strict=True)):
        rows[names[label]].setdefault(subject, []).append(row)
    statistics = {}
    for domain, volumes in rows.items():
        try:
            statistics[domain] = measure_domain(_TableVolumes(reader, list(volumes.values())))
        except GalipError as error:
            logger.warning("%s: no statistics of its training slices are kept (%s)", domain, error)
    return statistics


__all__ = [
    "count_spots",
    "find_spots",
    "measure_domain",
    "measure_statistics",
    "scan_score",
    "slice_scores",
    "strangeness",
]
