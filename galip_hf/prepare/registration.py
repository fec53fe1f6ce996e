"""Rigid registration of a subject's scans, and how well two of them lie on each other.

Registration is SimpleITK's: Mattes mutual information (Mattes et al., IEEE TMI 22(1), 2003), six parameters,
gradient descent over three resolutions. One thread and a fixed sampling seed give the same numbers each time.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.metrics import normalized_mutual_information
from skimage.registration import phase_cross_correlation

from ..data.grid import Grid
from ..extras import require
from ..foreground import above_air
from ..model.errors import GalipError
from .images import ScanImage, to_itk

_BINS = 32
_SHRINK, _SMOOTHING = (4, 2, 1), (2.0, 1.0, 0.0)  # factors; mm
_SAMPLED = (0.5, 0.2, 0.05)  # of the voxels, at each resolution
_CHECKED_SLICES, _CHECKED_SIZE = 48, 192


def register_rigid(fixed: ScanImage, moving: ScanImage, seed: int = 0) -> Any:
    """The rigid map of world points of `fixed` to those of `moving` (`SimpleITK.Euler3DTransform`).

    The search starts where mutual information is largest: at the files' own geometry, with the centres of the
    fields of view on each other, or with the centres of mass on each other.

    Raises:
        GalipError: SimpleITK is not installed, or the scans do not overlap.
    """
    sitk = require("SimpleITK", "prepare")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    fixed_image, moving_image = to_itk(*_scaled(fixed)), to_itk(*_scaled(moving))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(_SAMPLED, seed + 1)  # 0 would be the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3, numberOfIterations=150, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    levels = [min(factor, max(1, min(fixed.grid.shape) // 8)) for factor in _SHRINK]
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel(_SMOOTHING)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    best = _best_start(sitk, method, fixed_image, moving_image)
    method.SetInitialTransform(best, inPlace=True)
    try:
        method.Execute(fixed_image, moving_image)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-120:]
        raise GalipError(f"registration failed ({reason}); the scans may not overlap") from None
    return best


def _scaled(image: ScanImage) -> tuple[np.ndarray, Grid]:
    """Values with the outermost 0.1 % clipped: a few bright voxels would fill the histogram's bins."""
    low, high = np.percentile(image.array, (0.1, 99.9))
    return np.clip(image.array, low, high), image.grid


def _best_start(sitk: Any, method: Any, fixed: Any, moving: Any) -> Any:
    centre = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    starts = [sitk.Euler3DTransform(centre, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0))]
    for kind in ("GEOMETRY", "MOMENTS"):
        mode = getattr(sitk.CenteredTransformInitializerFilter, kind)
        start = sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), mode)
        starts.append(sitk.Euler3DTransform(start))
    scored = []
    for order, start in enumerate(starts):
        method.SetInitialTransform(start, inPlace=False)
        try:
            scored.append((method.MetricEvaluate(fixed, moving), order))  # minus the mutual information
        except RuntimeError:  # no overlap
            continue
    if not scored:
        raise GalipError("registration failed: the scans do not overlap; check the files' geometry")
    return starts[min(scored)[1]]


def resample(moving: ScanImage, grid: Grid, transform: Any = None) -> np.ndarray:
    """The values of `moving` on `grid`, (S, H, W) float32, linear; outside its field of view, its minimum.

    Args:
        moving: the scan.
        grid: where to sample; coarser pixels are averaged over (a Gaussian) against aliasing.
        transform: world points of `grid` to those of `moving`; None: the same points.
    """
    sitk = require("SimpleITK", "prepare")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    factors = np.array(grid.spacing[1:]) / np.array(moving.grid.spacing[1:])
    sigmas = 0.5 * np.sqrt(np.maximum(factors**2 - 1, 0))
    array = moving.array
    if sigmas.max() > 0.2:
        array = ndimage.gaussian_filter(array, (0, *sigmas), mode="nearest")
    sampler = sitk.ResampleImageFilter()
    sampler.SetReferenceImage(to_itk(np.zeros(grid.shape, dtype=np.float32), grid))
    sampler.SetInterpolator(sitk.sitkLinear)
    sampler.SetDefaultPixelValue(float(array.min()))
    if transform is not None:
        sampler.SetTransform(transform)
    return sitk.GetArrayFromImage(sampler.Execute(to_itk(array, moving.grid)))


@dataclass(frozen=True)
class PairCheck:
    """How two scans on one grid lie on each other.

    `shift`: mm along slices, rows and columns by which the second would have to move. `mutual_information`:
    normalised, 1 (independent) to 2 (one determines the other).
    """

    shift: tuple[float, float, float]
    mutual_information: float

    @property
    def distance(self) -> float:
        """Length of the shift in mm."""
        return float(np.linalg.norm(self.shift))


def check_pair(reference: np.ndarray, other: np.ndarray, spacing: tuple[float, float, float]) -> PairCheck:
    """Compare two (S, H, W) volumes in model space, contrasts aside.

    The shift is where the edges (gradient magnitudes) correlate best. Large volumes are judged on their
    middle slices, at half resolution or less.
    """
    # Slices that one scan does not reach would draw the estimate along the axis of slices.
    filled = [above_air(volume).mean(axis=(1, 2)) for volume in (reference, other)]
    shared = np.flatnonzero(np.minimum(*filled) > np.maximum(*filled) / 2)
    if not len(shared):
        return PairCheck((0.0, 0.0, 0.0), 1.0)
    reference, other = (volume[shared[0] : shared[-1] + 1] for volume in (reference, other))
    middle = max(0, (len(reference) - _CHECKED_SLICES) // 2)
    stride = -(-max(reference.shape[1:]) // _CHECKED_SIZE)
    crops = [
        np.clip(_averaged(volume[middle : middle + _CHECKED_SLICES], stride), 0, 1.2)
        for volume in (reference, other)
    ]
    steps = np.array(spacing) * (1, stride, stride)
    if crops[0].std() == 0 or crops[1].std() == 0:
        return PairCheck((0.0, 0.0, 0.0), 1.0)
    shift, _, _ = phase_cross_correlation(
        _edges(crops[0], steps), _edges(crops[1], steps), upsample_factor=10, normalization=None
    )
    information = float(normalized_mutual_information(crops[0], crops[1], bins=64))
    return PairCheck(tuple(float(value) for value in np.asarray(shift) * steps), information)  # type: ignore[arg-type]


def _averaged(volume: np.ndarray, stride: int) -> np.ndarray:
    slices, rows, columns = volume.shape
    whole = volume[:, : rows // stride * stride, : columns // stride * stride].astype(np.float64)
    return whole.reshape(slices, rows // stride, stride, columns // stride, stride).mean(axis=(2, 4))


def _edges(volume: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Gradient magnitude after smoothing over a voxel, less its mean, faded out at the borders."""
    smooth = ndimage.gaussian_filter(volume, 1.0)
    axes = [axis for axis, length in enumerate(volume.shape) if length > 1]
    gradients = np.gradient(smooth, *steps[axes], axis=tuple(axes))
    gradients = gradients if isinstance(gradients, (list, tuple)) else [gradients]
    magnitude = np.sqrt(np.sum(np.square(gradients), axis=0))
    for axis, length in enumerate(volume.shape):
        window = np.hanning(length + 2)[1:-1] ** 0.5
        magnitude = magnitude * window.reshape([-1 if a == axis else 1 for a in range(3)])
    return magnitude - magnitude.mean()


__all__ = ["PairCheck", "check_pair", "register_rigid", "resample"]
