"""Evaluation without pairs: distances against independent code, and faults that a report must show."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import ndimage, stats

from galip_hf.data import phantom
from galip_hf.data.input_statistics import measure_domain
from galip_hf.evaluation.contrast_classifier import classify
from galip_hf.evaluation.fid_kid import distribution_distances
from galip_hf.evaluation.set_distances import feature_distances, histogram_distance, intensity_counts
from galip_hf.evaluation.significance import jackknife_interval
from galip_hf.evaluation.texture_features import FEATURE_NAMES, scaled, scaling, texture_features
from galip_hf.evaluation.unpaired import MEANINGS, Acquired, Translated, evaluate_unpaired
from galip_hf.evaluation.unpaired_page import html_unpaired
from galip_hf.evaluation.verdict import unpaired_verdict
from galip_hf.foreground import body_mask
from galip_hf.model.errors import GalipError

Translate = Callable[[np.ndarray, str, int], np.ndarray]


def rendered(seed: int, contrast: str) -> np.ndarray:
    volume = phantom.render(phantom.make_subject(seed, size=48, slices=6), contrast)
    return volume / np.float32(np.percentile(volume, 99.5))


def test_kid_and_fid_are_those_of_torchmetrics() -> None:
    rng = np.random.default_rng([1])
    real = [rng.normal(size=(n, 6)) for n in (10, 14, 12)]
    fake = [rng.normal(size=(12, 6)) * 1.2 + 0.3 for _ in range(3)]
    ours = feature_distances(real, fake)
    theirs = distribution_distances(np.concatenate(real), np.concatenate(fake))
    assert (
        ours["kid"] == pytest.approx(theirs["kid"], abs=1e-9) and theirs["kid_sd"] is None
    )  # all in one subset
    assert ours["fid"] == pytest.approx(theirs["fid"], rel=1e-6)
    for name in ("fid", "kid"):
        low, high = ours[f"{name}_ci95"]
        assert low < ours[name] < high
    bare = feature_distances(real, fake, intervals=False)
    assert bare["kid"] == ours["kid"] and bare["kid_ci95"] is None
    few = feature_distances([real[0][:4]], fake)
    assert few["fid"] is None and "not above the 6 features" in few["fid_reason"] and few["kid_ci95"] is None


def test_kid_of_subjects_left_out_is_that_of_the_rest() -> None:
    """The interval's shortcut: kernel sums by subject."""
    rng = np.random.default_rng([2])
    real, fake = ([rng.normal(size=(8, 5)) + 0.2 * k for k in range(4)] for _ in range(2))
    groups: list[float] = []

    def kid(kept_real: np.ndarray, kept_fake: np.ndarray) -> float:
        groups.append(feature_distances([real[i] for i in kept_real], [fake[i] for i in kept_fake])["kid"])
        return groups[-1]

    expected = jackknife_interval(kid, 4, 4)
    assert feature_distances(real, fake)["kid_ci95"] == pytest.approx(expected)


def test_the_jackknife_gives_the_interval_of_a_mean() -> None:
    rng = np.random.default_rng([3])
    first, second = rng.normal(size=9), rng.normal(size=7)
    low, high = jackknife_interval(lambda i, j: first[i].mean() - second[j].mean(), 9, 7) or (0, 0)
    error = np.sqrt(first.var(ddof=1) / 9 + second.var(ddof=1) / 7)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 6) * error)
    assert (high + low) / 2 == pytest.approx(first.mean() - second.mean())
    assert jackknife_interval(lambda i, j: 1.0, 1, 5) is None


def test_the_histogram_distance_is_the_mean_shift() -> None:
    rng = np.random.default_rng([4])
    volume, body = rng.random((3, 30, 30)), np.ones((3, 30, 30), bool)
    real = [intensity_counts(volume * 0.5 + 0.1, body), intensity_counts(volume * 0.5 + 0.1, body)]
    fake = [intensity_counts(volume * 0.5 + 0.3, body)]
    assert histogram_distance(real, fake)["distance"] == pytest.approx(0.2, abs=0.005)
    assert histogram_distance(real, real)["distance"] == 0.0


def test_texture_features_follow_their_formulas() -> None:
    rng = np.random.default_rng([5])
    image = rng.random((1, 40, 44))
    body = np.zeros((1, 40, 44), bool)
    body[0, 5:30, 8:38] = True
    (row,) = texture_features(image, body)
    named = dict(zip(FEATURE_NAMES, row, strict=True))
    values = image[body]
    assert named["mean"] == pytest.approx(values.mean())
    assert named["skewness"] == pytest.approx(stats.skew(values))
    levels = 1 + np.minimum(image[0] * 32, 31).astype(int)
    differences = []  # contrast at 2 pixels by hand: mean squared difference of levels, over four directions
    for dy, dx in ((0, 2), (-1, 1), (-2, 0), (-1, -1)):  # 45 degrees at 2 px is sqrt(2) each, rounded to 1
        moved = np.roll(levels, (-dy, -dx), (0, 1)), np.roll(body[0], (-dy, -dx), (0, 1))
        both = body[0] & moved[1]
        differences.append(np.square(levels[both] - moved[0][both]).mean())
    assert named["contrast at 2 px"] == pytest.approx(np.mean(differences))
    outside = image.copy()
    outside[~body] = 0.9
    np.testing.assert_allclose(texture_features(outside, body)[0, :24], row[:24])
    assert texture_features(image, body & False).shape == (0, 33)
    scale = scaling(np.array([[0.0, 1.0], [2.0, 1.0]]))
    np.testing.assert_array_equal(
        scaled(np.array([[3.0, 1.0], [99.0, 0.5]]), scale), [[2.0, 0.0], [5.0, -0.5]]
    )


def test_the_classifier_judges_slices_by_subjects_it_has_not_seen() -> None:
    rng = np.random.default_rng([6])

    def features(centre: float, count: int = 8) -> np.ndarray:
        return rng.normal(size=(count, 4)) + centre

    real = {"A": [(f"s{k}", features(0)) for k in range(5)], "B": [(f"s{k}", features(4)) for k in range(5)]}
    fake = {"A->B": [("s0", features(4)), ("s1", features(0))], "B->A": [("s3", features(0))]}
    judged = classify(real, fake)
    assert judged["accuracy"] > 0.95
    assert judged["directions"]["A->B"]["as_target"] == pytest.approx(0.5, abs=0.1)
    assert judged["directions"]["B->A"] == {"n": 8, "as_target": 1.0, "as_source": 0.0}
    shuffled = {name: [(s, rng.normal(size=(20, 4))) for s, _ in scans] for name, scans in real.items()}
    assert 0.3 < classify(shuffled, {})["accuracy"] < 0.7  # it does not remember
    assert "at least two subjects of B" in classify({"A": real["A"], "B": real["B"][:1]}, fake)["left_out"]


def scans(translate: Translate, *, count: int = 3) -> Iterator[Acquired | Translated]:
    """T1 of some subjects, T2 of others, and what a translator makes of the T1."""
    for k in range(count):
        volume = rendered(700 + k, "T1")
        body = body_mask([volume])
        fake = translate(volume, "T1", 700 + k)
        yield Acquired(f"a{k}", "T1", volume, body)
        yield Translated(f"a{k}", "T1", "T2", fake, body, volume, volume + np.float32(0.03))
    for k in range(count):
        volume = rendered(720 + k, "T2")
        yield Acquired(f"b{k}", "T2", volume, body_mask([volume]))


TRAINING = {"T2": np.concatenate([rendered(740 + k, "T2") for k in range(2)])}


def report(translate: Translate, **options: object) -> dict:
    found = evaluate_unpaired(
        scans(translate), [("T1", "T2"), ("T2", "T1")], training_slices=TRAINING, **options  # type: ignore[arg-type]
    )  # fmt: skip
    return found | {"verdict": unpaired_verdict(found)}


def right(volume: np.ndarray, source: str, seed: int) -> np.ndarray:
    return rendered(seed, "T2")


def test_a_right_translation_is_like_the_target_domain() -> None:
    statistics = {"T2": measure_domain([rendered(760 + k, "T2") for k in range(8)])}
    found = report(right, statistics=statistics)
    cell = found["directions"]["T1->T2"]
    assert found["subjects"] == 6 and set(found["meanings"]) == set(MEANINGS)
    assert cell["histogram"]["distance"] < 0.5 * cell["histogram"]["copy"]["distance"]
    assert cell["texture"]["kid"] < cell["texture"]["copy"]["kid"]
    assert cell["sharpness_ratio"] == pytest.approx(1, abs=0.1)
    assert cell["slice_consistency"] == pytest.approx(1, abs=0.15)
    assert cell["cycle_error"] == pytest.approx(0.03, rel=1e-3)
    assert cell["identity_ratio"] > 0.9 and cell["collapsed"] is False
    assert abs(cell["input_score"]) < 3 and cell["input_score_source"] is None
    assert found["classifier"]["directions"]["T1->T2"]["as_target"] > 0.9
    assert found["verdict"]["level"] == "unsure" and "no pairs" in found["verdict"]["rests_on"]
    assert found["exclusions"] == [{"subject": "all", "direction": "T2->T1", "reason": "no translations"}]
    page = html_unpaired(found, title="x")
    assert page.index('class="verdict unsure"') < page.index("<h1>") and "Blind to:" in page


def test_a_source_handed_back_and_a_blurred_translation_are_shown() -> None:
    copied = report(lambda volume, source, seed: volume)
    assert copied["directions"]["T1->T2"]["identity_ratio"] == 0.0
    assert copied["verdict"]["level"] == "bad" and "hands its source back" in copied["verdict"]["says"]
    assert copied["classifier"]["directions"]["T1->T2"]["as_source"] > 0.9

    def blurred(volume: np.ndarray, source: str, seed: int) -> np.ndarray:
        return ndimage.gaussian_filter(rendered(seed, "T2"), (0, 1.5, 1.5))

    sharp, soft = (report(its)["directions"]["T1->T2"] for its in (right, blurred))
    assert soft["sharpness_ratio"] < 0.8 * sharp["sharpness_ratio"]
    assert soft["texture"]["fid"] is None or soft["texture"]["fid"] > sharp["texture"]["fid"]
    assert soft["texture"]["kid"] > 2 * sharp["texture"]["kid"]


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(GalipError, match="no real scans of T2"):
        evaluate_unpaired((s for s in scans(right) if isinstance(s, Translated)), [("T1", "T2")])
    bad = Translated("a", "T1", "T2", np.full((2, 20, 20), np.nan), np.ones((2, 20, 20), bool))
    with pytest.raises(GalipError, match="subject a, T2"):
        evaluate_unpaired([bad], [("T1", "T2")])
