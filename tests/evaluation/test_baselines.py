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
    lookup_tables,
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


def test_the_lookup_table_is_the_conditional_mean_of_training_pairs() -> None:
    rng = np.random.default_rng([4])
    levels = (np.arange(8) + 0.5) / 256  # each in a bin of its own
    sources = [levels[rng.integers(8, size=(3, 12, 12))] for _ in range(2)]
    pairs = [{"A": x, "B": np.sin(300 * x) + 0.1 * rng.normal(size=x.shape)} for x in sources]
    tables = lookup_tables(pairs, [("A", "B"), ("B", "A"), ("A", "C")])
    assert set(tables) == {("A", "B"), ("B", "A")}  # no pair of A and C
    x, y = (np.concatenate([pair[d].ravel() for pair in pairs]) for d in "AB")
    for level in levels:
        assert tables["A", "B"](np.array([level]))[0] == pytest.approx(y[x == level].mean(), rel=1e-5)
    assert lookup_tables([], [("A", "B")]) == {}


def test_the_lookup_table_interpolates_and_reads_few_slices_of_many() -> None:
    ramp = np.linspace(0, 1, 4096, dtype=np.float32).reshape(1, 64, 64)
    (table,) = lookup_tables([{"A": ramp, "B": 1 - ramp}], [("A", "B")]).values()
    np.testing.assert_allclose(table(ramp), 1 - ramp, atol=1 / 256)
    assert table(np.array([-3.0, 7.0])) == pytest.approx([table.values[0], table.values[-1]])
