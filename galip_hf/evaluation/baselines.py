"""Translators that know no anatomy: what a model has to beat before it has learnt anything.

- copy: the source as it is.
- histogram: the source with its histogram matched to the target domain's.
- mean: the mean training slice of the target domain.
- lookup: the best map from source intensity to target intensity, fitted with registered training pairs.

Histogram matching is scikit-image's `match_histograms` taken apart, bit for bit the same: a source is sorted
once for all targets, a reference once for all subjects, and by torch, in a third of numpy's time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..model.errors import GalipError

LOOKUP_BINS = 256  # of source intensity over [0, 1]
LOOKUP_SLICES = 2000  # evenly spaced over the pairs of a direction
HISTOGRAM_SLICES = 64  # evenly spaced training slices: every pixel of a reference is sorted


@dataclass(frozen=True, eq=False)
class Histogram:
    """The distinct values of an image, ascending.

    Attributes:
        values: (V,) of the image's dtype.
        quantiles: (V,) float64, the share of pixels at or below each value.
    """

    values: np.ndarray
    quantiles: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray) -> "Histogram":
        """The histogram of a float image of any shape without NaN."""
        values, counts = np.unique(image, return_counts=True)
        return cls(values, np.cumsum(counts) / image.size)


@dataclass(frozen=True, eq=False)
class RankedImage:
    """An image to be matched: its histogram, and where each pixel stands among the values."""

    histogram: Histogram
    positions: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray) -> "RankedImage":
        """Rank a float image of any shape without NaN."""
        tensor = torch.from_numpy(np.array(image, order="C"))
        values, positions, counts = torch.unique(tensor, return_inverse=True, return_counts=True)
        return cls(Histogram(values.numpy(), np.cumsum(counts.numpy()) / image.size), positions.numpy())

    def matched_to(self, reference: Histogram) -> np.ndarray:
        """The image with the cumulative histogram of the reference."""
        own = self.histogram
        mapped = np.interp(own.quantiles, reference.quantiles, reference.values)
        return mapped[self.positions].astype(own.values.dtype, copy=False)


def histogram_reference(slices: Sequence[np.ndarray] | np.ndarray) -> Histogram:
    """Of `HISTOGRAM_SLICES` evenly spaced ones of (N, H, W) slices."""
    chosen = np.linspace(0, len(slices) - 1, min(len(slices), HISTOGRAM_SLICES)).astype(int)
    return Histogram.of(np.stack([np.asarray(slices[int(index)], dtype=np.float32) for index in chosen]))


def mean_slice(domain: str, slices: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """(H, W) float64: the mean of (N, H, W) slices, read one at a time; GalipError when it is not finite."""
    total = np.zeros(np.shape(slices[0]), dtype=np.float64)
    for index in range(len(slices)):
        total += slices[index]
    if not np.isfinite(total).all():
        raise GalipError(f"training_slices[{domain!r}]: got NaN or infinite values, expected finite ones")
    return total / len(slices)


@dataclass(frozen=True, eq=False)
class LookupTable:
    """A map from source intensity to target intensity: linear between the centres of bins.

    Attributes:
        centres: (B,) float64, ascending source intensities.
        values: (B,) float64, the mean target intensity of the voxels in each bin: of all maps that are
            constant in a bin, the one with the smallest squared error on the training pairs.
    """

    centres: np.ndarray
    values: np.ndarray

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        """The volume, of any shape in model space, mapped voxel by voxel; float32."""
        return np.interp(volume, self.centres, self.values).astype(np.float32)


def lookup_tables(
    pairs: Sequence[Mapping[str, np.ndarray]], directions: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], LookupTable]:
    """The best lookup table of each direction; a direction without a pair has none.

    Whole slices count, air included, so that the map knows air from tissue as well as intensity can tell.

    Args:
        pairs: registered training subjects, domain -> (S, H, W) in model space; read one at a time.
        directions: (source, target).
    """
    counts = {direction: np.zeros(LOOKUP_BINS) for direction in directions}
    sources, targets = ({d: np.zeros(LOOKUP_BINS) for d in directions} for _ in range(2))
    # As many slices of each subject as keep the whole below LOOKUP_SLICES.
    share = max(1, LOOKUP_SLICES // max(1, len(pairs)))
    for index in range(len(pairs)):
        subject = pairs[index]
        for direction in directions:
            if not all(domain in subject for domain in direction):
                continue
            volumes = [subject[domain] for domain in direction]
            chosen = np.unique(np.linspace(0, len(volumes[0]) - 1, share).astype(int))
            x, y = (np.asarray(volume[chosen], np.float64).ravel() for volume in volumes)
            bins = np.clip((x * LOOKUP_BINS).astype(int), 0, LOOKUP_BINS - 1)
            for total, weights in ((counts, None), (sources, x), (targets, y)):
                total[direction] += np.bincount(bins, weights, LOOKUP_BINS)
    tables = {}
    for direction, count in counts.items():
        if (seen := count > 0).any():
            x, y = (total[direction][seen] / count[seen] for total in (sources, targets))
            tables[direction] = LookupTable(x, y)
    return tables


__all__ = [
    "HISTOGRAM_SLICES",
    "Histogram",
    "LookupTable",
    "RankedImage",
    "histogram_reference",
    "lookup_tables",
    "mean_slice",
]
