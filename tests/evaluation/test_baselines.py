"""The trivial translators: histogram matching to the last bit, and the mean slice."""

import numpy as np
import pytest
from conftest import smooth_volume
from skimage.exposure import match_histograms

from galip_hf.evaluation.baselines import (
    HISTOGRAM_SLICES,
    Histogram,
    RankedImage,
    histogram_reference,
    mean_slice,
)
from galip_hf.model.errors import GalipError


def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng([3])
    distinct = rng.random((3, 20, 30), dtype=np.float32)
    return {
        "distinct": distinct,
        "ties": np.round(distinct * 20) / 20 - np.float32(0.3),
        "half air": np.where(distinct < 0.5, np.float32(0), distinct),
        "both zeros": np.where(distinct < 0.5, np.float32(-0.0), np.where(distinct < 0.7, 0, distinct)),
        "double": rng.normal(size=(3, 20, 30)),
        "constant": np.full((3, 20, 30), 0.25, dtype=np.float32),
        "view": rng.random((3, 30, 20), dtype=np.float32).transpose(0, 2, 1)[:, ::-1],
    }


@pytest.mark.parametrize("source", images())
@pytest.mark.parametrize("reference", ["distinct", "ties", "half air", "constant"])
def test_matched_histograms_are_scikit_images(source: str, reference: str) -> None:
    image, other = images()[source], images()[reference][:2]
    before = image.copy()
    matched = RankedImage.of(image).matched_to(Histogram.of(other))
    expected = match_histograms(image, other)
    assert matched.dtype == expected.dtype and matched.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(image, before)


def test_a_read_only_image_is_taken() -> None:
    image = smooth_volume(1)
    image.flags.writeable = False
    np.testing.assert_array_equal(RankedImage.of(image).matched_to(Histogram.of(image)), image)


def test_references_are_of_evenly_spaced_slices() -> None:
    slices = np.arange(3 * HISTOGRAM_SLICES, dtype=np.float32)[:, None, None] * np.ones((2, 2), np.float32)
    values = histogram_reference(slices).values
    assert len(values) == HISTOGRAM_SLICES and (values[0], values[-1]) == (0, 3 * HISTOGRAM_SLICES - 1)
    np.testing.assert_allclose(mean_slice("T1", slices), slices.mean(axis=0))
    slices[1, 0, 0] = np.nan
    with pytest.raises(GalipError, match=r"training_slices\['T1'\]: got NaN"):
        mean_slice("T1", slices)
