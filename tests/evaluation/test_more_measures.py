"""Measures beside the protocols, each against known answers or independent code on random data."""

from functools import reduce

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from galip_hf.data import phantom
from galip_hf.evaluation.displacement import displacement, slice_shift
from galip_hf.evaluation.lesions import lesion_scores
from galip_hf.evaluation.more_measures import MEASURES_ON_REQUEST, similarity_groups
from galip_hf.evaluation.segmentations import segmentation_scores
from galip_hf.evaluation.synthrad import synthrad_scores
from galip_hf.evaluation.tissue_classes import compare_classes, ct_tissue_errors
from galip_hf.foreground import body_mask
from galip_hf.model.errors import GalipError

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def random_ct(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A synthetic CT, its target, both beyond the range at places, and a mask."""
    rng = np.random.default_rng([seed])
    target = ndimage.gaussian_filter(rng.normal(size=shape), 2) * 6000 + 200
    prediction = target + rng.normal(size=shape) * 150
    mask = ndimage.gaussian_filter(rng.normal(size=shape), 5) > -0.01
    return prediction, target, mask


def window_means(volume: np.ndarray) -> np.ndarray:
    """Means of all whole 7 x 7 x 7 windows: no filter, no border rule."""
    for axis in range(3):
        volume = np.lib.stride_tricks.sliding_window_view(volume, 7, axis).mean(axis=-1)
    return volume


def plain_ms_ssim(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """MS-SSIM of the protocol's description, written out."""
    widths = [((97 - n) // 2, 97 - n - (97 - n) // 2) if n < 97 else (0, 0) for n in mask.shape]
    x, y = (np.pad(np.clip(side, -1024, 3071) + 1024, widths, mode="edge") for side in (prediction, target))
    mask = np.pad(mask, widths, mode="edge")
    c1, c2 = (0.01 * 4095) ** 2, (0.03 * 4095) ** 2
    means = []
    for level in range(5):
        if level:
            x, y = (np.pad(side, ((1, 0),) * 3, mode="symmetric") for side in (x, y))
            pairs = [  # the mean of 2 x 2 x 2 voxels, every second one
                [side[i:, j:, k:] for i in (0, 1) for j in (0, 1) for k in (0, 1)] for side in (x, y)
            ]
            shape = tuple(n - 1 for n in x.shape)
            x, y = (
                np.mean([v[: shape[0], : shape[1], : shape[2]] for v in its], axis=0)[::2, ::2, ::2]
                for its in pairs
            )
            mask = mask[::2, ::2, ::2]
        mx, my = window_means(x), window_means(y)
        bessel = 343 / 342
        vx, vy = (bessel * (window_means(v * v) - m * m) for v, m in ((x, mx), (y, my)))
        vxy = bessel * (window_means(x * y) - mx * my)
        luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        contrast_structure = (2 * vxy + c2) / (vx + vy + c2)
        means.append((luminance * contrast_structure)[mask[3:-3, 3:-3, 3:-3]].mean())
    return float(
        reduce(lambda product, pair: product * pair[0] ** pair[1], zip(means, WEIGHTS, strict=True), 1.0)
    )


@pytest.mark.parametrize("shape", [(20, 30, 101), (99, 97, 60)])
def test_synthrad2025_follows_its_description(shape: tuple[int, int, int]) -> None:
    prediction, target, mask = random_ct(1, shape)
    before = prediction.copy()
    scores = synthrad_scores(prediction, target, mask)
    np.testing.assert_array_equal(prediction, before)
    assert scores["mae"] == pytest.approx(np.abs(prediction[mask] - target[mask]).mean())
    clipped = [np.clip(side[mask], -1024, 3071) for side in (prediction, target)]
    mean_square = np.mean((clipped[0] - clipped[1]) ** 2)
    assert scores["psnr"] == pytest.approx(10 * np.log10(4095**2 / mean_square))
    outside = [np.where(mask, side, -1024) for side in (prediction, target)]
    assert scores["ms_ssim"] == pytest.approx(plain_ms_ssim(*outside, mask), abs=1e-9)
    assert 0.2 < scores["ms_ssim"] < 0.999
    same = synthrad_scores(target, target, mask)
    assert same == {"mae": 0.0, "psnr": None, "ms_ssim": pytest.approx(1.0)}
    # What lies outside the mask does not matter.
    changed = np.where(mask, prediction, 500.0)
    assert synthrad_scores(changed, target, mask) == scores


def test_ct_errors_by_tissue() -> None:
    target = np.array([-900.0, -300, -200, 0, 199, 200, 1500, 50]).reshape(1, 2, 4)
    prediction = target + np.array([100.0, -50, 10, 30, -20, -40, 80, 999]).reshape(1, 2, 4)
    body = np.ones(target.shape, bool)
    body[0, 1, 3] = False
    errors = ct_tissue_errors(prediction, target, body)
    assert errors["air"] == {"mae": 75.0, "bias": 25.0, "share": pytest.approx(2 / 7)}
    assert errors["soft tissue"] == {
        "mae": pytest.approx(20), "bias": pytest.approx(20 / 3), "share": pytest.approx(3 / 7)
    }  # fmt: skip
    assert errors["bone"]["mae"] == 60.0 and errors["bone"]["bias"] == 20.0
    assert ct_tissue_errors(prediction, target - 5000, body)["bone"]["mae"] is None


def test_classes_of_an_mr_domain_are_found_and_compared() -> None:
    from galip_hf.evaluation.set_distances import intensity_counts

    rng = np.random.default_rng([2])
    levels = np.array([0.1, 0.5, 0.9])

    def counts(shares: tuple[float, ...], shift: float = 0.0) -> np.ndarray:
        volume = (
            levels[rng.choice(3, p=shares, size=(4, 40, 40))] + shift + 0.09 * rng.normal(size=(4, 40, 40))
        )
        return intensity_counts(volume, np.ones(volume.shape, bool))

    real, fake = [counts((0.2, 0.5, 0.3)) for _ in range(3)], [counts((0.4, 0.5, 0.1), 0.03)]
    dark, middle, bright = compare_classes(real, fake, None)
    assert [row["name"] for row in (dark, middle, bright)] == ["dark", "middle", "bright"]
    assert (dark["share_real"], dark["share_fake"]) == (
        pytest.approx(0.2, abs=0.03),
        pytest.approx(0.4, abs=0.04),
    )
    assert bright["share_fake"] == pytest.approx(0.1, abs=0.03)
    assert middle["mean_fake"] - middle["mean_real"] == pytest.approx(0.03, abs=0.015)
    bone = compare_classes(real, fake, (-1000.0, 1000.0))[2]
    assert bone["name"] == "bone" and bone["mean_real"] == pytest.approx(700, abs=30)


def test_nmse_and_nmi_against_plain_code() -> None:
    rng = np.random.default_rng([3])
    target = rng.random((3, 180, 176))
    prediction = np.clip(target + 0.1 * rng.normal(size=target.shape), 0, 1)
    mask = rng.random(target.shape) > 0.3
    groups = similarity_groups(prediction, target, mask, MEASURES_ON_REQUEST)
    p, t = prediction[mask], target[mask]
    assert groups["nmse"]["nmse"] == pytest.approx(np.sum((p - t) ** 2) / np.sum(t**2))
    joint = np.histogram2d(t, p, bins=100)[0] / len(p)

    def entropy(shares: np.ndarray) -> float:
        kept = shares[shares > 0]
        return float(-(kept * np.log(kept)).sum())

    expected = (entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))) / entropy(joint)
    assert groups["nmi"]["nmi"] == pytest.approx(expected)
    assert 0 < groups["ms-ssim"]["ms-ssim"] < 1
    assert similarity_groups(target, target, mask, ["ms-ssim"])["ms-ssim"]["ms-ssim"] == pytest.approx(1)
    small = similarity_groups(prediction[:, :100], target[:, :100], mask[:, :100], ["ms-ssim", "nmi"])
    assert small["ms-ssim"]["ms-ssim"] is None and set(small) == {"ms-ssim", "nmi"}
    flat = similarity_groups(np.zeros_like(target), target, mask, ["nmi"])
    assert flat["nmi"]["nmi"] is None


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.0, 0.0), (0.0, -3.0), (1.5, 0.5)])
def test_displacement_finds_known_shifts_between_contrasts(shift: tuple[float, float]) -> None:
    subject = phantom.make_subject(907, size=96, slices=4)
    first, second = (
        (volume := phantom.render(subject, contrast)) / np.percentile(volume, 99.5)
        for contrast in ("T1", "T2")
    )
    moved = ndimage.shift(second, (0, *shift), order=1)
    for original, other in zip(first, moved, strict=True):
        found = slice_shift(original, other)
        assert found is not None
        assert np.hypot(found[0] + shift[0], found[1] + shift[1]) < 0.25
    scores = displacement(first, moved, body_mask([first]))
    assert scores["median"] == pytest.approx(np.hypot(*shift), abs=0.15)
    assert slice_shift(first[0], np.zeros_like(first[0])) is None
    assert displacement(first, moved, np.zeros(first.shape, bool)) == {"median": None, "p95": None}


def lesion_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """White matter of 0.5 with noise, two bright lesions of 0.8; their mask; the body."""
    rng = np.random.default_rng([4])
    target = 0.5 + 0.02 * rng.normal(size=(4, 60, 60))
    lesions = np.zeros(target.shape, bool)
    lesions[1:3, 10:15, 10:15] = True
    lesions[2, 40:46, 30:35] = True
    target[lesions] += 0.3
    return target, lesions, np.ones(target.shape, bool)


def test_lesions_kept_erased_invented_and_inverted() -> None:
    target, lesions, body = lesion_case()
    assert lesion_scores(target, target, lesions, body) == {
        "lesions": 2.0, "contrast_ratio": pytest.approx(1), "cnr_ratio": pytest.approx(1), "kept": 1.0,
        "false": 0.0,
    }  # fmt: skip
    faint = target.copy()
    faint[lesions] -= 0.12
    scores = lesion_scores(faint, target, lesions, body)
    assert scores["contrast_ratio"] == pytest.approx(0.6, abs=0.02) and scores["kept"] == 1.0
    erased = target.copy()
    erased[2, 40:46, 30:35] -= 0.3
    assert lesion_scores(erased, target, lesions, body)["kept"] == 0.5
    invented = target.copy()
    invented[0, 45:52, 45:52] += 0.3
    assert lesion_scores(invented, target, lesions, body)["false"] == 1.0
    inverted = target.copy()
    inverted[lesions] -= 0.6
    scores = lesion_scores(inverted, target, lesions, body)
    assert scores["kept"] == 0.0 and scores["contrast_ratio"] == pytest.approx(-1, abs=0.05)
    none = lesion_scores(target, target, lesions & False, body)
    assert none["lesions"] == 0.0 and none["kept"] is None


def plain_hd95(first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]) -> float:
    """From all distances between border voxels."""
    borders = [
        np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=0)) * spacing
        for mask in (first, second)
    ]
    distances = cdist(*borders)
    return float(max(np.percentile(distances.min(axis=axis), 95) for axis in (0, 1)))


def test_segmentations_against_plain_code() -> None:
    pytest.importorskip("monai")
    rng = np.random.default_rng([5])
    spacing = (3.0, 1.0, 0.8)
    target, prediction = (
        np.digitize(ndimage.gaussian_filter(rng.normal(size=(9, 24, 22)), 2.5), (-0.01, 0.02))
        for _ in range(2)
    )
    prediction = np.where(rng.random(target.shape) < 0.8, target, prediction)
    scores = segmentation_scores(prediction, target, spacing)
    for label in (1, 2):
        p, t = prediction == label, target == label
        assert scores[f"dice {label}"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
        assert scores[f"volume {label}"] == pytest.approx((p.sum() - t.sum()) / t.sum())
        assert scores[f"hd95 {label}"] == pytest.approx(plain_hd95(p, t, spacing), rel=0.02)
    only = segmentation_scores(np.zeros_like(target), target, spacing)
    assert only["dice 1"] == 0.0 and only["hd95 1"] is None and only["volume 1"] == -1.0
    with pytest.raises(GalipError, match="expected whole numbers"):
        segmentation_scores(prediction + 0.5, target, spacing)
    with pytest.raises(GalipError, match="expected one"):
        segmentation_scores(prediction[:3], target, spacing)
