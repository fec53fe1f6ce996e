"""Metrics against hand-computed cases and direct calls to scikit-image."""

import hashlib
import math
from typing import Literal

import numpy as np
import pytest
from conftest import smooth_volume
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from galip_hf.evaluation.metrics import (
    FIXED,
    PAPER,
    fixed_scores,
    fixed_target,
    paper_scores,
    sharpness_ratio,
    slice_consistency,
)
from galip_hf.foreground import body_mask
from galip_hf.model.errors import GalipError

SSIM_OPTIONS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}


def volume(seed: int, shape: tuple[int, int, int] = (3, 16, 20)) -> np.ndarray:
    return np.random.default_rng([seed]).random(shape, dtype=np.float32)


def test_protocols_state_what_they_cannot_see() -> None:
    assert (PAPER.name, PAPER.version, FIXED.name, FIXED.version) == ("paper", 1, "fixed", 3)
    assert "gain error" in PAPER.description and "hot pixel" in PAPER.description


def test_fixed_psnr_and_mae_by_hand() -> None:
    target = np.full((2, 16, 16), 0.5)  # 99.5th percentile 0.5, so an error of 0.05 is 0.1 of it
    scores = fixed_scores(target + 0.05, target)
    for region in ("masked", "full"):
        assert scores[region].psnr == pytest.approx(20.0)
        assert scores[region].mae == pytest.approx(0.1)
        assert scores[region].skipped_slices == 0


def test_fixed_region_restricts_every_measure() -> None:
    target = np.zeros((2, 32, 32))
    target[:, :, :16] = 1.0
    prediction = target.copy()
    prediction[:, :, 24:] = 0.5  # wrong in the background only, a quarter of the slice
    scores = fixed_scores(prediction, target)
    assert scores["masked"].psnr == 100.0 and scores["masked"].mae == 0.0
    assert scores["masked"].ssim == pytest.approx(1.0)
    assert scores["full"].psnr == pytest.approx(-10 * math.log10(0.25 / 4))
    assert scores["full"].mae == pytest.approx(0.125)
    assert scores["full"].ssim < 0.9


def test_paper_psnr_and_mae_by_hand_are_means_over_slices() -> None:
    target = np.ones((2, 16, 16))
    target[:, :, :8] = 0.5
    prediction = target.copy()
    prediction[0, :, :8] = 0.6  # half of slice 0 off by 0.1, half of slice 1 by 0.2
    prediction[1, :, :8] = 0.7
    scores = paper_scores(prediction * [[[3.0]], [[7.0]]], target * 0.2)  # own maxima undo any scale
    expected = [-10 * math.log10(0.1**2 / 2), -10 * math.log10(0.2**2 / 2)]
    assert scores.psnr == pytest.approx(np.mean(expected))
    assert scores.mae == pytest.approx(np.mean([0.05, 0.1]))


def test_ssim_is_scikit_images() -> None:
    prediction, target = volume(1), volume(2)
    own = [
        structural_similarity(t / t.max(), p / p.max(), **SSIM_OPTIONS)
        for p, t in zip(prediction.astype(float), target.astype(float), strict=True)
    ]
    assert paper_scores(prediction, target).ssim == pytest.approx(np.mean(own), abs=1e-9)

    mask = volume(3) > 0.5
    reference = np.percentile(target.astype(float), 99.5)
    fixed = [
        structural_similarity(t / reference, p / reference, full=True, **SSIM_OPTIONS)
        for p, t in zip(prediction.astype(float), target.astype(float), strict=True)
    ]
    scores = fixed_scores(prediction, target, mask=mask)
    assert scores["full"].ssim == pytest.approx(np.mean([mean for mean, _ in fixed]))
    assert scores["masked"].ssim == pytest.approx(np.stack([map_ for _, map_ in fixed])[mask].mean())


def test_gain_error_is_invisible_to_paper_and_seen_by_fixed() -> None:
    prediction, target = volume(1), volume(2)
    before, after = paper_scores(prediction, target), paper_scores(prediction * np.float32(0.5), target)
    assert (after.psnr, after.ssim) == pytest.approx((before.psnr, before.ssim))
    fixed_before, fixed_after = fixed_scores(target, target), fixed_scores(target * np.float32(0.5), target)
    assert fixed_before["masked"].psnr == 100.0
    assert fixed_after["masked"].psnr < 15


def test_hot_pixel_rescales_paper_and_hardly_moves_fixed() -> None:
    target = 0.5 + 0.5 * volume(2, (3, 64, 64))
    hot = target.copy()
    hot[:, 5, 5] = 4.0
    assert paper_scores(hot, target).mae > 0.5
    assert fixed_scores(hot, target)["full"].mae < 0.001


def test_blank_slices_are_skipped_and_counted() -> None:
    prediction, target = volume(1, (4, 16, 16)), volume(2, (4, 16, 16))
    kept = paper_scores(prediction[:2], target[:2])
    target[2] = 0
    prediction[3] = 0
    scores = paper_scores(prediction, target)
    assert scores.skipped_slices == 2 and kept.skipped_slices == 0
    assert (scores.psnr, scores.ssim, scores.mae) == pytest.approx((kept.psnr, kept.ssim, kept.mae))
    nothing = paper_scores(np.zeros_like(target), target)
    assert nothing.skipped_slices == 4 and math.isnan(nothing.psnr) and math.isnan(nothing.ssim)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_are_left_as_they_were(dtype: type) -> None:
    prediction, target = volume(1).astype(dtype), volume(2).astype(dtype)

    def digest() -> list[str]:
        return [hashlib.sha256(array.tobytes()).hexdigest() for array in (prediction, target)]

    before = digest()
    paper_scores(prediction, target)
    fixed_scores(prediction, target)
    fixed_scores(prediction, target, modality="CT", window=(0.2, 0.8))
    assert digest() == before


def test_ct_is_clipped_to_its_window_and_measured_in_hounsfield_units() -> None:
    target = np.full((2, 16, 16), -1024.0)
    target[:, 4:12, 4:12] = 40.0
    prediction = np.where(target > 0, 60.0, -3000.0)  # air below the window is no error
    scores = fixed_scores(prediction, target, modality="CT", window=(-1024, 976))
    assert scores["masked"].mae == pytest.approx(20.0)
    assert scores["full"].mae == pytest.approx(5.0)
    assert scores["masked"].psnr == pytest.approx(40.0)  # 20 HU of a window of 2000 HU


def test_bad_input_is_refused() -> None:
    good = volume(1)
    broken = good.copy()
    broken[0, 0, 0] = np.nan
    for scores in (paper_scores, fixed_scores):
        with pytest.raises(GalipError, match=r"prediction: got shape \(2, 16, 20\), expected \(3, 16, 20\)"):
            scores(good[:2], good)
        with pytest.raises(GalipError, match="prediction: got 1 NaN"):
            scores(broken, good)
        with pytest.raises(GalipError, match="target: got 1 NaN"):
            scores(good, broken)
        with pytest.raises(GalipError, match="at least 11 x 11"):
            scores(good[:, :10], good[:, :10])
        with pytest.raises(GalipError, match="expected a volume"):
            scores(good[0], good[0])
    with pytest.raises(GalipError, match="dtype complex128"):
        paper_scores(good.astype(complex), good)
    with pytest.raises(GalipError, match="blank"):
        fixed_scores(good, np.zeros_like(good))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "PET"}, "modality: got 'PET'"),
        ({"modality": "CT"}, "window: got None"),
        ({"modality": "CT", "window": (100, 100)}, "window: got"),
        ({"window": (0, 1)}, "modality 'MR'"),
        ({"mask": np.ones((3, 16, 20))}, "mask: got float64"),
        ({"mask": np.zeros((3, 16, 20), dtype=bool)}, "mask: .* with 0 voxels"),
        ({"mask": np.ones((3, 16, 16), dtype=bool)}, "expected a bool mask of shape"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(GalipError, match=message):
        fixed_scores(volume(1), volume(2), **options)


def test_foreground_of_ct_is_measured_from_air_whatever_the_window() -> None:
    rng = np.random.default_rng([6])
    target = np.full((3, 24, 24), -1000.0) + rng.normal(0, 4, (3, 24, 24))
    body = np.zeros(target.shape, dtype=bool)
    body[:, 6:18, 6:18] = True
    target[body] = rng.uniform(-100, 300, body.sum())
    target[:, 10:12, 10:12] = -1000  # air in the body: filled
    np.testing.assert_array_equal(body_mask([], [target]), body)
    # A window that starts below air once made all of this foreground.
    scores = [
        fixed_scores(target + 10.0 * body, target, modality="CT", window=window)["masked"].mae
        for window in ((-1024, 976), (-1000, 1000))
    ]
    assert scores == pytest.approx([10.0, 10.0], abs=1e-6)


def test_blur_lowers_the_sharpness_and_noise_raises_it() -> None:
    target = smooth_volume(1, slices=5, size=32)
    mask = np.ones(target.shape, dtype=bool)
    rng = np.random.default_rng([2])
    target = target + rng.normal(0, 0.05, target.shape)
    blurred = ndimage.gaussian_filter(target, (0, 1, 1))
    assert sharpness_ratio(target, target, mask) == 1.0
    assert sharpness_ratio(blurred, target, mask) < 0.8
    assert sharpness_ratio(target + rng.normal(0, 0.05, target.shape), target, mask) > 1.1
    assert sharpness_ratio(target, np.ones_like(target), mask) is None
    ramp = np.broadcast_to(np.arange(20.0), (1, 20, 20))
    assert sharpness_ratio(3 * ramp, ramp, np.ones(ramp.shape, dtype=bool)) == pytest.approx(3.0)
    # PSNR of the blurred copy stays respectable: that is why the ratio is there.
    assert fixed_scores(blurred, target, mask=mask)["masked"].psnr > 25


def test_flicker_from_slice_to_slice_is_seen() -> None:
    target = np.stack([np.full((12, 12), level) for level in (1.0, 2.0, 3.0, 4.0)])
    mask = np.ones(target.shape, dtype=bool)
    flicker = target + np.array([0.0, 2.0, 0.0, 2.0])[:, None, None]  # steps 3, -1, 3
    assert slice_consistency(flicker, target, mask) == pytest.approx(7 / 3)
    assert slice_consistency(target, target, mask) == 1.0
    assert slice_consistency(target[:1], target[:1], mask[:1]) is None
    assert slice_consistency(target, np.ones_like(target), mask) is None
    mask[2] = False  # neither step next to it counts
    assert slice_consistency(flicker, target, mask) == pytest.approx(3.0)


def test_shifted_and_blurred_copies_score_as_scikit_image_says() -> None:
    target = 0.2 + smooth_volume(3, slices=3, size=32)
    mask = np.ones(target.shape, dtype=bool)
    reference = np.percentile(target.astype(np.float64), 99.5)
    for prediction in (np.roll(target, 2, axis=2), ndimage.gaussian_filter(target, (0, 2, 2))):
        scores = fixed_scores(prediction, target, mask=mask)
        a, b = prediction.astype(np.float64) / reference, target.astype(np.float64) / reference
        assert scores["full"].psnr == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1))
        assert scores["full"].mae == pytest.approx(np.abs(a - b).mean())
        ssim = [structural_similarity(t, p, **SSIM_OPTIONS) for p, t in zip(a, b, strict=True)]
        assert scores["full"].ssim == pytest.approx(np.mean(ssim))
        assert scores["full"].ssim < 0.999


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_scores_of_slices_are_those_of_whole_volumes(modality: Literal["MR", "CT"]) -> None:
    """The plain form, everything at once: the same to the last bit, for each prediction of one target."""
    target = volume(60, (5, 24, 20)).astype(np.float64) * 1500 - (1000 if modality == "CT" else 0)
    target[:, :4] = -1000 if modality == "CT" else 0
    window = (-800.0, 300.0) if modality == "CT" else None
    mask = body_mask([], [target]) if modality == "CT" else body_mask([target])
    prepared = fixed_target(target, modality=modality, window=window)
    for seed in (61, 62):
        prediction = (target + 90 * volume(seed, target.shape)).astype(np.float32)
        if window:
            unit = window[1] - window[0]
            p, t = (
                (np.clip(side, *window) - window[0]) / unit for side in (prediction.astype(float), target)
            )
        else:
            p, t = (side / np.percentile(target, 99.5) for side in (prediction.astype(float), target))
        pairs = [
            structural_similarity(
                b, a, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
            )
            for a, b in zip(p, t, strict=True)
        ]
        scores, error = prepared.scores(prediction), np.abs(p - t) * (unit if window else 1.0)
        assert scores["masked"].ssim == np.stack([ssim_map for _, ssim_map in pairs])[mask].mean()
        assert scores["full"].ssim == np.mean([mean for mean, _ in pairs])
        assert scores["masked"].psnr == peak_signal_noise_ratio(t[mask], p[mask], data_range=1)
        assert scores["full"].psnr == peak_signal_noise_ratio(t, p, data_range=1)
        assert scores["masked"].mae == pytest.approx(error[mask].mean(), rel=1e-14)
        assert scores["full"].mae == pytest.approx(error.mean(), rel=1e-14)
        assert scores == fixed_scores(prediction, target, modality=modality, window=window)
