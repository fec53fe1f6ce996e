"""Features of a slice that belong to no training set: textures by formula, for distances and a classifier.

A network trained on photographs judges medical slices by what photographs have, and its weights must be
downloaded. These features are defined by formulas that radiomics has agreed on (Image Biomarker
Standardisation Initiative, Zwanenburg et al., Radiology 295(2), 2020) and are computed by scikit-image:

- first order: mean, standard deviation, skewness, kurtosis and five percentiles of the body;
- grey-level co-occurrence (Haralick et al., IEEE Trans. SMC 3(6), 1973): contrast, homogeneity, energy,
  correlation and entropy at distances of 1, 2 and 4 pixels, averaged over four directions, pairs inside the
  body;
- local binary patterns (Ojala et al., IEEE TPAMI 24(7), 2002): shares of the ten uniform patterns of 8
  neighbours at 1 pixel, in the body.

They see brightness, contrast, blur, noise and grain. They do not see where in the body something lies: a
slice with shuffled organs scores like the original.
"""

import numpy as np
from scipy import stats
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

GREY_LEVELS = 32  # over [0, 1] of model space; level 0 of the matrix stands for everything outside the body
DISTANCES = (1, 2, 4)  # pixels
ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
PERCENTILES = (5, 25, 50, 75, 95)
LARGEST = 5.0  # standard deviations
SMALLEST_BODY = 64  # pixels of body without which a slice has no features
_PROPERTIES = ("contrast", "homogeneity", "energy", "correlation", "entropy")

FEATURE_NAMES: tuple[str, ...] = (
    "mean",
    "standard deviation",
    "skewness",
    "kurtosis",
    *(f"percentile {p}" for p in PERCENTILES),
    *(f"{name} at {distance} px" for name in _PROPERTIES for distance in DISTANCES),
    *(f"local binary pattern {k}" for k in range(9)),  # the tenth share is what the others leave
)


def texture_features(volume: np.ndarray, body: np.ndarray) -> np.ndarray:
    """(N, 33) float64, one row for each of the N slices with enough body; columns as in `FEATURE_NAMES`.

    Args:
        volume: (S, H, W) in model space; clipped to [0, 1].
        body: (S, H, W) bool.
    """
    rows = [
        _slice_features(np.clip(np.asarray(image, np.float64), 0, 1), inside)
        for image, inside in zip(volume, body, strict=True)
        if inside.sum() >= SMALLEST_BODY
    ]
    return np.array(rows).reshape(-1, len(FEATURE_NAMES))


def scaling(real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature, (33,) each, over real slices, (N, 33), of all domains.

    In these units no feature outweighs another by its size, and domains lie about one unit apart.
    """
    deviation = real.std(axis=0)
    return real.mean(axis=0), np.where(deviation > 1e-9, deviation, 1.0)


def scaled(features: np.ndarray, scale: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Features in units of `scaling`; what lies more than `LARGEST` units out counts as `LARGEST`.

    A single feature far outside, such as the local patterns of an image without any noise, would else make
    up a whole distance.
    """
    return np.clip((features - scale[0]) / scale[1], -LARGEST, LARGEST)


def _slice_features(image: np.ndarray, body: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    image, body = image[box], body[box]
    values = image[body]
    flat = values.std() < 1e-9  # skewness and kurtosis are not defined there
    first = [values.mean(), values.std(), 0.0 if flat else stats.skew(values)]
    first += [0.0 if flat else stats.kurtosis(values), *np.percentile(values, PERCENTILES)]
    return [*map(float, first), *_co_occurrence(image, body), *_patterns(image, body)]


def _co_occurrence(image: np.ndarray, body: np.ndarray) -> list[float]:
    levels = np.where(body, 1 + np.minimum(image * GREY_LEVELS, GREY_LEVELS - 1), 0).astype(np.uint8)
    matrix = graycomatrix(levels, DISTANCES, ANGLES, levels=GREY_LEVELS + 1, symmetric=True)
    matrix = matrix[1:, 1:].astype(np.float64)  # pairs with a pixel outside the body do not count
    matrix /= np.maximum(matrix.sum(axis=(0, 1)), 1)
    return [
        float(value) for name in _PROPERTIES for value in _property(matrix, name).mean(axis=1)
    ]  # over directions


def _property(matrix: np.ndarray, name: str) -> np.ndarray:
    if name == "entropy":
        return -np.sum(matrix * np.log2(np.where(matrix > 0, matrix, 1)), axis=(0, 1))
    return graycoprops(matrix, name)


def _patterns(image: np.ndarray, body: np.ndarray) -> list[float]:
    # As 8-bit integers: equal neighbours stay equal, whatever the last bit of a float says.
    codes = local_binary_pattern((image * 255).round().astype(np.uint8), 8, 1, "uniform")[body]
    return (np.bincount(codes.astype(int), minlength=10)[:9] / codes.size).tolist()


__all__ = ["FEATURE_NAMES", "scaled", "scaling", "texture_features"]
