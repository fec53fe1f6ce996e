"""The window of a scan depends on the body alone: not on air around it, a stray voxel or padding."""

import numpy as np
import pytest

from galip_hf.data import phantom
from galip_hf.data.normalization import normalize_scan, scan_body
from galip_hf.foreground import body_box
from galip_hf.model.domains import default_rule
from galip_hf.model.errors import GalipError
from galip_hf.model.intensity import IntensityNormalizer

NORMALIZER = IntensityNormalizer(intensity_rules={"T1": default_rule("MR"), "CT": default_rule("CT")})


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    return phantom.render(phantom.make_subject(5), "T1").astype(np.float64)


def test_air_around_the_body_does_not_matter(head: np.ndarray) -> None:
    plain = normalize_scan(NORMALIZER, head, "T1")
    padded = np.pad(head, ((2, 0), (40, 30), (0, 50)))
    normalized = normalize_scan(NORMALIZER, padded, "T1")
    assert normalized.lower == pytest.approx(plain.lower, abs=1e-3 * plain.upper)
    assert normalized.upper == pytest.approx(plain.upper, rel=2e-3)
    whole = NORMALIZER.normalize_volume(padded, "T1")
    assert whole.upper < 0.97 * plain.upper  # percentiles of everything would have moved


@pytest.mark.parametrize("value", [-32768.0, -300.0, 1e5, 1e9])
def test_a_stray_voxel_does_not_matter(head: np.ndarray, value: float) -> None:
    spoilt = head.copy()
    spoilt[4, 30, 30] = value
    plain, normalized = (normalize_scan(NORMALIZER, array, "T1") for array in (head, spoilt))
    assert normalized.upper == pytest.approx(plain.upper, rel=2e-3)
    change = (normalized.pixel_values - plain.pixel_values).abs()
    change[4, 0, 30, 30] = 0
    assert change.max() < 2e-3


def test_padding_does_not_matter(head: np.ndarray) -> None:
    outside = ~scan_body(head)
    outside[:, 16:48] = False
    padded = np.where(outside, -2000.0, head)
    plain, normalized = (normalize_scan(NORMALIZER, array, "T1") for array in (head, padded))
    assert normalized.padding_fraction == outside.mean() > 0.1
    assert normalized.upper == pytest.approx(plain.upper, rel=5e-3)
    assert not normalized.pixel_values[:, 0].numpy()[outside].any()


def test_fixed_windows_and_faults_stay_as_they_are(head: np.ndarray) -> None:
    assert normalize_scan(NORMALIZER, head, "CT").upper == 1000
    with pytest.raises(GalipError, match="1 of"):
        normalize_scan(NORMALIZER, np.where(head == head.max(), np.nan, head), "T1")


def test_body_box() -> None:
    mask = np.zeros((4, 10, 12), bool)
    assert body_box(mask) == (slice(None),) * 3
    mask[1:3, 2:5, 7:12] = True
    assert body_box(mask) == (slice(1, 3), slice(2, 5), slice(7, 12))
