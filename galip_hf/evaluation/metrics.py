"""Image quality of a translated volume (PSNR, SSIM, MAE), under named and versioned protocols.

A decibel means nothing without the way it was computed, so there is no bare `psnr` function here: every
number comes out of `PAPER` or `FIXED`, whose version rises whenever a change of the computation changes the
numbers. PSNR is scikit-image's, SSIM has its values (`ssim`): Gaussian window (sigma 1.5, 11 x 11), in 2-D,
slice by slice (slices run in threads: the filters release Python's lock). Arrays passed in are never
modified; everything is computed in float64.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from skimage.metrics import peak_signal_noise_ratio

from ..foreground import body_mask
from ..model.domains import MR_PERCENTILE
from ..model.errors import GalipError
from .ssim import RADIUS, LocalMeans

SSIM_WINDOW = 2 * RADIUS + 1  # pixels
PSNR_CEILING = 100.0  # dB; identical images would be infinite, which no mean and no JSON file can hold

Window = tuple[float, float]  # (lowest, highest) HU of a CT
Value = TypeVar("Value")


@dataclass(frozen=True)
class MetricProtocol:
    """A named way of computing the numbers; `description` is stored in every report beside them."""

    name: str
    version: int
    description: str


PAPER = MetricProtocol(
    name="paper",
    version=1,
    description=(
        "Per slice, prediction and target each divided by its own maximum; PSNR (dB, data range 1, at "
        "most 100), SSIM (1 is identical; 2-D, Gaussian window sigma 1.5, no sample covariance) and MAE "
        "over the full slice with background; mean over slices; a slice whose prediction or target is "
        "all zero is skipped and counted. Only for comparison with the paper's tables: it cannot see a "
        "gain error (a prediction multiplied by a constant scores the same), and one hot pixel rescales "
        "the whole image."
    ),
)
FIXED = MetricProtocol(
    name="fixed",
    version=3,  # 3: the mask is the body, told from air by the noise of each volume
    description=(
        "The prediction is not rescaled. MR: both sides divided by the target volume's 99.5th "
        "percentile; CT: both sides clipped to a fixed HU window. PSNR (dB, data range 1, at most 100) "
        "and MAE (fraction of that percentile; HU for CT) over all voxels of the region, SSIM (1 is "
        "identical; 2-D, Gaussian window sigma 1.5, no sample covariance) averaged over the region. "
        "Regions: 'masked' is the subject's body, one mask for all its contrasts (galip_hf.foreground: above "
        "the level and noise of air, edge at half the step to tissue, closed and filled, largest 3-D "
        "component; CT: above -500 HU), 'full' the whole volume with background."
    ),
)


@dataclass(frozen=True)
class Scores:
    """Quality of one volume under one protocol and region.

    Attributes:
        psnr: dB, at most 100; NaN when every slice was skipped.
        ssim: 1 is identical; NaN when every slice was skipped.
        mae: in the unit the protocol states; NaN when every slice was skipped.
        skipped_slices: slices the protocol could not score (always 0 under `FIXED`).
    """

    psnr: float
    ssim: float
    mae: float
    skipped_slices: int = 0


def paper_scores(prediction: np.ndarray, target: np.ndarray) -> Scores:
    """Scores of a volume under `PAPER`: each slice divided by its own maximum, full slice, mean over slices.

    It cannot see a gain error, and one hot pixel rescales a whole image: use `fixed_scores` for anything but
    a comparison with the paper's tables.

    Args:
        prediction: (S, H, W), any positive scale.
        target: (S, H, W), registered with the prediction.

    Raises:
        GalipError: shapes differ, values are not finite, or slices are smaller than the SSIM window.
    """
    prediction, target = _pair(prediction, target)

    def score(index: int) -> tuple[float, float, float] | None:
        p, t = (np.asarray(side[index], dtype=np.float64) for side in (prediction, target))
        return _paper_slice(p, t, LocalMeans.of(p, t))

    return _paper_mean(_each_slice(score, len(target)))


def _paper_slice(p: np.ndarray, t: np.ndarray, means: LocalMeans) -> tuple[float, float, float] | None:
    """PSNR, SSIM and MAE of one slice; None where a side is all zero."""
    units = float(p.max()), float(t.max())
    if min(units) <= 0:
        return None
    scaled_p, scaled_t = p / units[0], t / units[1]
    return _psnr(scaled_p, scaled_t), means.ssim(*units)[0], float(np.abs(scaled_p - scaled_t).mean())


def _paper_mean(slices: Sequence[tuple[float, float, float] | None]) -> Scores:
    per_slice = [scores for scores in slices if scores]
    skipped = len(slices) - len(per_slice)
    if not per_slice:
        return Scores(math.nan, math.nan, math.nan, skipped)
    psnr, ssim, mae = np.mean(per_slice, axis=0).tolist()
    return Scores(psnr, ssim, mae, skipped)


@dataclass(frozen=True, eq=False)
class FixedTarget:
    """A target under `FIXED`, prepared once for all predictions that are scored against it.

    Attributes:
        values: (S, H, W) float64 in units of the data range, which is 1.
        mask: (S, H, W) bool, the body.
        low, high: in the target's units, what 0 and 1 of `values` are.
        clipped: whether values outside are clipped (CT).
    """

    values: np.ndarray
    mask: np.ndarray
    low: float
    high: float
    clipped: bool

    def scaled(self, prediction: np.ndarray) -> np.ndarray:
        """A prediction, (S, H, W) in the target's units, in those of `values`."""
        return _scaled(prediction, self.low, self.high, clip=self.clipped)

    def scores(self, prediction: np.ndarray) -> dict[str, Scores]:
        """Scores of a prediction, (S, H, W) in the target's units: {"masked": Scores, "full": Scores}.

        Raises:
            GalipError: shapes differ, values are not finite, or slices are smaller than the SSIM window.
        """
        prediction, target = _pair(prediction, self.values)
        scaled = np.empty_like(target)

        def score(index: int) -> tuple[float, np.ndarray]:
            scaled[index] = self.scaled(prediction[index])
            mean, ssim_map = LocalMeans.of(scaled[index], target[index]).ssim(1.0, 1.0)
            return mean, ssim_map[self.mask[index]]

        return self._means(scaled, _each_slice(score, len(target)))

    def _means(self, scaled: np.ndarray, slices: Sequence[tuple[float, np.ndarray]]) -> dict[str, Scores]:
        """From the scaled prediction, which is used up, and each slice's SSIM: its mean, and in the mask."""
        means, inside = zip(*slices, strict=True)
        unit = self.high - self.low if self.clipped else 1.0
        p, t = scaled[self.mask], self.values[self.mask]
        masked = Scores(_psnr(p, t), float(np.concatenate(inside).mean()), float(np.abs(p - t).mean()) * unit)
        psnr = _psnr(scaled, self.values)
        scaled -= self.values
        mae = float(np.abs(scaled, out=scaled).mean()) * unit
        return {"masked": masked, "full": Scores(psnr, float(np.mean(means)), mae)}


def mr_scores(
    prediction: np.ndarray, target: np.ndarray, fixed: FixedTarget
) -> tuple[Scores, dict[str, Scores]]:
    """`paper_scores` and `FixedTarget.scores` of an MR volume, in little more than the time of one.

    Args:
        prediction, target: (S, H, W) on one scale.
        fixed: of the target.

    Raises:
        GalipError: as both.
    """
    prediction, target = _pair(prediction, target)
    scaled = np.empty_like(fixed.values)

    def score(index: int) -> tuple[tuple[float, float, float] | None, tuple[float, np.ndarray]]:
        p, t = (np.asarray(side[index], dtype=np.float64) for side in (prediction, target))
        means = LocalMeans.of(p, t)
        scaled[index] = fixed.scaled(p)
        mean, ssim_map = means.ssim(fixed.high, fixed.high)
        return _paper_slice(p, t, means), (mean, ssim_map[fixed.mask[index]])

    paper, slices = zip(*_each_slice(score, len(target)), strict=True)
    return _paper_mean(paper), fixed._means(scaled, slices)


def fixed_target(
    target: np.ndarray,
    *,
    modality: Literal["MR", "CT"] = "MR",
    window: Window | None = None,
    mask: np.ndarray | None = None,
) -> FixedTarget:
    """Prepare a target for `FixedTarget.scores`; arguments and errors as of `fixed_scores`."""
    target = _volume("target", target).astype(np.float64, copy=False)
    if modality == "CT":
        low, high = _checked_window(window)
    elif modality == "MR":
        if window is not None:
            raise GalipError(
                f"window: got {window} for modality 'MR'; a HU window is for modality 'CT', leave it out"
            )
        low, high = 0.0, _reference_intensity(target)
    else:
        raise GalipError(f"modality: got {modality!r}, expected 'MR' or 'CT'")
    if mask is None:
        mask = body_mask([], [target]) if modality == "CT" else body_mask([target])
    mask = _checked_mask(mask, target.shape)
    return FixedTarget(_scaled(target, low, high, clip=modality == "CT"), mask, low, high, modality == "CT")


def _scaled(values: np.ndarray, low: float, high: float, *, clip: bool) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return (np.clip(values, low, high) - low) / (high - low) if clip else values / high


def fixed_scores(
    prediction: np.ndarray,
    target: np.ndarray,
    *,
    modality: Literal["MR", "CT"] = "MR",
    window: Window | None = None,
    mask: np.ndarray | None = None,
) -> dict[str, Scores]:
    """Scores of a volume under `FIXED`, the headline protocol: the prediction is judged at its own scale.

    Args:
        prediction: (S, H, W), in the target's units (MR: any common scale; CT: HU).
        target: (S, H, W), registered with the prediction.
        modality: "MR" divides both sides by the target's 99.5th percentile, "CT" clips both to `window`.
        window: (lowest, highest) HU; for CT only, and then required.
        mask: (S, H, W) bool, the subject's body; by default `foreground.body_mask` of the target alone.

    Returns:
        {"masked": Scores, "full": Scores}; MAE as a fraction of that percentile for MR, in HU for CT.

    Raises:
        GalipError: shapes differ, values are not finite, slices are smaller than the SSIM window, the target
            has no positive 99.5th percentile, or modality, window or mask is unfit.
    """
    _pair(prediction, target)
    return fixed_target(target, modality=modality, window=window, mask=mask).scores(prediction)


def mean_gradient(volume: np.ndarray, mask: np.ndarray) -> float:
    """Mean gradient magnitude (2-D, in the slices) of a (S, H, W) volume inside a (S, H, W) bool mask."""

    def inside(index: int) -> np.ndarray:
        return np.hypot(*np.gradient(np.asarray(volume[index], np.float64)))[mask[index]]

    return float(np.concatenate(_each_slice(inside, len(mask))).mean())


def mean_step(volume: np.ndarray, mask: np.ndarray) -> float | None:
    """Mean |difference| of neighbouring slices, (S, H, W), inside the mask of both; None without such."""
    both = mask[1:] & mask[:-1]
    if not both.any():
        return None
    return float(np.abs(np.diff(np.asarray(volume, np.float64), axis=0))[both].mean())


def sharpness_ratio(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float | None:
    """Mean gradient magnitude (2-D, in the slices) inside the mask, prediction over target.

    1 is as sharp as the target; below 1 blurred, which PSNR and SSIM forgive; above 1 noisy or over-sharp.
    A gain error moves it too. None where the target is flat.

    Args:
        prediction, target: (S, H, W), S any, H and W at least 2.
        mask: (S, H, W) bool, the subject's body.
    """
    strengths = mean_gradient(prediction, mask), mean_gradient(target, mask)
    return strengths[0] / strengths[1] if strengths[1] > 0 else None


def slice_consistency(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float | None:
    """Mean |difference| of neighbouring slices inside the mask of both, prediction over target.

    1 is as the target; above 1 the volume flickers from slice to slice, as one translated slice by slice may.
    None for a single slice, or where the target does not change.

    Args:
        prediction, target: (S, H, W).
        mask: (S, H, W) bool, the subject's body.
    """
    ours, theirs = mean_step(prediction, mask), mean_step(target, mask)
    return ours / theirs if ours is not None and theirs else None


def slice_psnr(prediction: np.ndarray, target: np.ndarray) -> float:
    """PSNR of one slice as it is shown in a figure: data range 1, no rescaling, background included; dB.

    Args:
        prediction, target: (H, W) in model space.
    """
    return _psnr(np.asarray(prediction, np.float64), np.asarray(target, np.float64))


def _each_slice(call: Callable[[int], Value], count: int) -> list[Value]:
    """`call` of every slice's index, in as many threads as there are processors."""
    with ThreadPoolExecutor(min(count, os.cpu_count() or 1)) as pool:
        return list(pool.map(call, range(count)))


def _psnr(prediction: np.ndarray, target: np.ndarray) -> float:
    with np.errstate(divide="ignore"):  # identical images
        return min(float(peak_signal_noise_ratio(target, prediction, data_range=1)), PSNR_CEILING)


def _volume(name: str, array: np.ndarray) -> np.ndarray:
    """(S, H, W) of real finite numbers, checked: the caller's own array, so read only."""
    array = np.asarray(array)
    if array.ndim != 3 or array.size == 0:
        raise GalipError(f"{name}: got shape {array.shape}, expected a volume (slices, height, width)")
    if array.dtype.kind not in "fiub":
        raise GalipError(f"{name}: got dtype {array.dtype}, expected real numbers; convert it to float32")
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise GalipError(
            f"{name}: got {count} NaN or infinite values, expected finite ones; check where it was made"
        )
    return array


def _pair(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, target = _volume("prediction", prediction), _volume("target", target)
    if prediction.shape != target.shape:
        raise GalipError(
            f"prediction: got shape {prediction.shape}, expected {target.shape} like the target; "
            "register and resample"
        )
    if min(target.shape[1:]) < SSIM_WINDOW:
        raise GalipError(
            f"target: got slices of {target.shape[1]} x {target.shape[2]} pixels, "
            f"expected at least {SSIM_WINDOW} x {SSIM_WINDOW}, the window of SSIM"
        )
    return prediction, target


def _reference_intensity(target: np.ndarray) -> float:
    reference = float(np.percentile(target, MR_PERCENTILE))
    if reference <= 0:
        raise GalipError(
            f"target: got a 99.5th percentile of {reference:g}, expected a positive one; is the volume blank?"
        )
    return reference


def _checked_window(window: Window | None) -> Window:
    if window is None or len(window) != 2 or not -math.inf < window[0] < window[1] < math.inf:
        raise GalipError(
            f"window: got {window}, expected (lowest, highest) HU for modality 'CT', such as (-1024, 2000)"
        )
    return float(window[0]), float(window[1])


def _checked_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != shape or not mask.any():
        raise GalipError(
            f"mask: got {mask.dtype} {mask.shape} with {np.count_nonzero(mask)} voxels, "
            f"expected a bool mask of shape {shape} with at least one"
        )
    return mask
