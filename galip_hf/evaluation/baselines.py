"""Translators that know nothing: the source copied, histogram-matched, or replaced by the mean target slice.

Histogram matching is scikit-image's `match_histograms` taken apart, bit for bit the same: a source is sorted
once for all targets, a reference once for all subjects, and by torch, in a third of numpy's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..model.errors import GalipError

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


__all__ = ["HISTOGRAM_SLICES", "Histogram", "RankedImage", "histogram_reference", "mean_slice"]
