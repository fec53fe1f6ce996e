"""SSIM (Wang et al. 2004) of one slice under several scalings at the price of one.

The values are those of scikit-image's `structural_similarity` with Gaussian windows (sigma 1.5, no sample
covariance, data range 1), which takes two thirds of an evaluation's time. The five local means it filters for
scale with the images, so one filtering serves every protocol that divides both sides by constants.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SIGMA, TRUNCATE = 1.5, 3.5
RADIUS = int(TRUNCATE * SIGMA + 0.5)  # pixels: the window has 2 * 5 + 1
C1, C2 = 0.01**2, 0.03**2  # for a data range of 1


@dataclass(frozen=True, eq=False)
class LocalMeans:
    """Gaussian means, (H, W) float64 each, of two slices, their squares and their product."""

    first: np.ndarray
    second: np.ndarray
    first_square: np.ndarray
    second_square: np.ndarray
    product: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> "LocalMeans":
        """Of two slices, (H, W) float64."""
        images = (first, second, first * first, second * second, first * second)
        return cls(*(ndimage.gaussian_filter(image, SIGMA, truncate=TRUNCATE) for image in images))

    def ssim(self, first_unit: float, second_unit: float) -> tuple[float, np.ndarray]:
        """With each slice divided by its unit: the mean without the border of cut windows, and the map."""
        x, y = self.first / first_unit, self.second / second_unit
        xx, yy, xy = x * x, y * y, x * y
        variances = self.first_square / first_unit**2 - xx + (self.second_square / second_unit**2 - yy)
        covariance = self.product / (first_unit * second_unit) - xy
        ssim_map = (2 * xy + C1) * (2 * covariance + C2) / ((xx + yy + C1) * (variances + C2))
        return float(ssim_map[RADIUS:-RADIUS, RADIUS:-RADIUS].mean()), ssim_map


__all__ = ["RADIUS", "LocalMeans"]
