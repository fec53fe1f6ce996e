"""Statistics of training slices: what they count, what they call strange, how they are kept."""

import json
from pathlib import Path

import numpy as np
import pytest

from galip_hf import GalipError, GalipImageProcessor
from galip_hf.data import phantom
from galip_hf.data.input_statistics import (
    count_spots,
    find_spots,
    measure_domain,
    measure_statistics,
    scan_score,
    slice_scores,
    strangeness,
)
from galip_hf.data.phantom_table import PhantomRecipe, phantom_volumes
from galip_hf.inference import reliability
from galip_hf.model.configuration_galip import GalipConfig
from galip_hf.model.domain_statistics import SHAPE, DomainStatistics
from galip_hf.model.domains import IXI_DOMAINS

ROOT = Path(__file__).resolve().parents[2]
PROCESSOR = GalipImageProcessor(domains=list(IXI_DOMAINS))


def scan(seed: int, contrast: str) -> np.ndarray:
    subject = phantom.make_subject(seed, slices=6)
    return PROCESSOR.normalize_volume(phantom.render(subject, contrast), contrast).pixel_values[:, 0].numpy()


@pytest.fixture(scope="module")
def statistics() -> dict[str, DomainStatistics]:
    return {
        contrast: measure_domain([scan(1000 * number + seed, contrast) for seed in range(10)])
        for number, contrast in enumerate(phantom.CONTRASTS)
    }


def test_counts_by_hand() -> None:
    flat = np.zeros((1, 16, 16), np.float32) + 0.55  # mean 0.55 is bin 5 of 0.1; no deviation is bin 0
    counts = count_spots(flat)
    assert counts.shape == SHAPE and counts.sum() == 256
    assert counts[5, 5, 0] == 256
    assert count_spots(np.zeros((1, 16, 16))).sum() == 0  # air is no foreground
    expected = -np.log((256 + 0.5) / (256 + 0.5 * counts.size))
    np.testing.assert_allclose(strangeness(find_spots(flat), counts), expected, rtol=1e-5)
    unseen = -np.log(0.5 / (256 + 0.5 * counts.size))
    np.testing.assert_allclose(strangeness(find_spots(flat + 0.2), counts), unseen, rtol=1e-5)


def test_the_score_is_that_of_the_strangest_tenth() -> None:
    counts = np.zeros(SHAPE, np.int64)
    counts[5, 5, 0] = 1000
    slices = np.full((3, 20, 20), 0.55, np.float32)
    slices[1, :, :10] = 1.05  # half of the slice is strange: more than the tenth that counts
    slices[2] = 0
    scores = slice_scores(find_spots(slices), counts)
    assert scores[1] > scores[0] + 5 and np.isnan(scores[2])
    assert scan_score(scores) == pytest.approx(np.quantile(scores[:2], 0.9))
    assert scan_score(np.array([np.nan])) is None


def test_a_wrong_contrast_is_unlike_and_recognised(statistics: dict[str, DomainStatistics]) -> None:
    for contrast in phantom.CONTRASTS:
        for claimed in phantom.CONTRASTS:
            look = reliability.check_source(scan(77, contrast), claimed, statistics)
            assert look["verdict"] == ("ok" if contrast == claimed else "unlike"), (contrast, claimed, look)
            assert look["looks_like"] == contrast
            assert len(look["slice_scores"]) == 6


def test_a_mass_is_unlike(statistics: dict[str, DomainStatistics]) -> None:
    slices = scan(78, "T1")
    slices[1:5, 20:38, 24:42] = 1.0
    look = reliability.check_source(slices, "T1", statistics)
    assert look["verdict"] == "unlike" and look["looks_like"] is None
    assert look["score"] > look["limit"]
    report = {
        "source": "T1", "target": "T2", "input_check": look,
        "identity": {"collapsed": True, "mean_difference": 0.001},
        "far_outside_fraction": 0.0, "metal_slices": [],
    }  # fmt: skip
    first, second = reliability.warnings_of(report)
    assert "does not look like the T1 scans" in first and "no domain" in first
    assert "almost the input" in second


def test_what_is_not_known_is_said(statistics: dict[str, DomainStatistics]) -> None:
    assert reliability.check_source(scan(1, "T1"), "T1", {})["verdict"] == "unknown"
    assert (
        reliability.check_source(np.zeros((2, 16, 16), np.float32), "T1", statistics)["verdict"] == "unknown"
    )


def test_cycle_error_and_identity_by_hand() -> None:
    slices = np.zeros((3, 4, 4), np.float32)
    slices[0, :2], slices[1, 0] = 0.5, 1.0
    returned = slices + np.array([0.1, 0.3, 9.0], np.float32)[:, None, None]
    body = slices > 0
    error = reliability.cycle_error(slices, returned, body)
    assert error["slices"] == [pytest.approx(0.1), pytest.approx(0.3), None]
    assert error["mean"] == pytest.approx((8 * 0.1 + 4 * 0.3) / 12)
    assert reliability.identity_check(slices, slices + 0.01, body)["collapsed"]
    assert not reliability.identity_check(slices, slices + 0.1, body)["collapsed"]
    empty = np.zeros((1, 2, 2))
    assert reliability.identity_check(empty, empty, empty > 0)["mean_difference"] is None


def test_few_volumes_fall_back_on_slices() -> None:
    known = measure_domain([scan(3, "T1")])
    assert 0 < known.score_mean < known.score_limit
    with pytest.raises(GalipError, match="found none"):
        measure_domain([])
    with pytest.raises(GalipError, match="fewer than two"):
        measure_domain([np.zeros((4, 8, 8))])


def test_they_are_kept_with_the_processor(statistics: dict[str, DomainStatistics], tmp_path: Path) -> None:
    processor = GalipImageProcessor(domains=list(IXI_DOMAINS))
    assert processor.statistics == {}  # as a file of an older version
    processor.set_statistics({"T1": statistics["T1"]})
    processor.save_pretrained(tmp_path)
    loaded = GalipImageProcessor.from_pretrained(tmp_path).statistics
    assert list(loaded) == ["T1"]
    np.testing.assert_array_equal(loaded["T1"].counts, statistics["T1"].counts)
    assert loaded["T1"].score_limit == pytest.approx(statistics["T1"].score_limit, abs=1e-4)
    with pytest.raises(GalipError, match="'CT' is unknown"):
        processor.set_statistics({"CT": statistics["T1"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is 2"),
        ({"counts": ["1 2"]}, "malformed"),
        ({"counts": None}, "malformed"),
        ({"score_mean": "much"}, "malformed"),
        ({"score_mean": -1}, "out of range"),
        ({"score_deviation": float("nan")}, "out of range"),
        ({"scores": 1}, "expected a dict with exactly"),
    ],
)
def test_faulty_statistics(
    statistics: dict[str, DomainStatistics], tmp_path: Path, change: dict, message: str
) -> None:
    processor = GalipImageProcessor(domains=list(IXI_DOMAINS))
    processor.set_statistics(statistics)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["domain_statistics"]["T2"].update(change)
    path.write_text(json.dumps(values))
    with pytest.raises(GalipError, match=f"domain_statistics of 'T2': .*{message}") as caught:
        GalipImageProcessor.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_table_gives_the_statistics_of_its_subjects(tmp_path: Path) -> None:
    from galip_hf.data.table import load_table
    from galip_hf.data.table_writer import write_table

    recipe = PhantomRecipe(train_subjects=9, validation_subjects=0, slices=4)
    volumes = list(phantom_volumes(recipe, PROCESSOR, 0))
    write_table(volumes, tmp_path / "table", domains=phantom.CONTRASTS, image_size=None, minimum_foreground=0)
    measured = measure_statistics(load_table(tmp_path / "table")["train"], phantom.CONTRASTS)
    for contrast in phantom.CONTRASTS:
        own = measure_domain([v.array for v in volumes if v.domain == contrast])
        np.testing.assert_array_equal(measured[contrast].counts, own.counts)
        assert measured[contrast].score_mean == pytest.approx(own.score_mean)


def test_the_model_of_the_repository_keeps_those_of_its_recipe() -> None:
    """Of its first T1 subjects, which are part of what was counted."""
    processor = GalipImageProcessor.from_pretrained(ROOT / "examples" / "phantom_model")
    config = GalipConfig.from_pretrained(ROOT / "examples" / "phantom_model")
    assert sorted(processor.statistics) == sorted(config.domain_names)
    recipe = PhantomRecipe(train_subjects=2, validation_subjects=0)
    for volume in phantom_volumes(recipe, processor, 0):
        counts = processor.statistics[volume.domain].counts
        assert (counts >= count_spots(volume.array)).all()


def test_a_domain_with_too_little_to_measure_is_left_out(tmp_path: Path) -> None:
    from galip_hf.data.table import load_table
    from galip_hf.data.table_writer import SubjectVolume, write_table

    volumes = [
        SubjectVolume(scan(3, "T1"), "T1", "a", "train"),
        SubjectVolume(scan(4, "T2")[:1], "T2", "b", "train"),
    ]
    write_table(volumes, tmp_path / "table", domains=["T1", "T2"], image_size=None, minimum_foreground=0)
    assert list(measure_statistics(load_table(tmp_path / "table")["train"], ["T1", "T2"])) == ["T1"]
