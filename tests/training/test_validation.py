"""Validation figures: those of the protocol where there are pairs, of distributions where there are none."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import DOMAINS, filled_model, smooth_volume, tiny_config
from PIL import Image
from skimage.exposure import match_histograms

from galip_hf import GalipForImageTranslation, GalipImageProcessor
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.evaluation.fid_kid import distribution_distances, slice_features
from galip_hf.evaluation.metrics import fixed_scores
from galip_hf.inference.slices import translate_slices
from galip_hf.model.errors import GalipError
from galip_hf.training.validation import Validation

NAMES = ["T1", "T2", "CT"]


def volume_of(domain: str, subject: int) -> np.ndarray:
    return smooth_volume(10 * NAMES.index(domain) + subject, slices=6)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> datasets.DatasetDict:
    """T1 and T2 of two subjects and of a third each; CT of subjects of its own."""
    subjects = [("T1", 0), ("T2", 0), ("T1", 1), ("T2", 1), ("T1", 2), ("T2", 3), ("CT", 4), ("CT", 5)]
    volumes = [SubjectVolume(volume_of(d, s), d, f"s{s}", "validation") for d, s in subjects]
    volumes += [SubjectVolume(volume_of(d, 9), d, "s9", "train") for d in NAMES]
    directory = write_table(volumes, tmp_path_factory.mktemp("v") / "table", domains=NAMES, image_size=None)
    return load_table(directory)


@pytest.fixture(scope="module")
def model() -> GalipForImageTranslation:
    return filled_model(tiny_config())


@pytest.fixture(scope="module")
def validation(tables: datasets.DatasetDict, tiny_backbone: ClipBackbone) -> Validation:
    return Validation(tables, NAMES, GalipImageProcessor(DOMAINS), tiny_backbone)


@pytest.fixture(scope="module")
def figures(validation: Validation, model: GalipForImageTranslation) -> dict[str, float]:
    return validation(model)


def test_every_direction_has_the_figures_it_can_have(figures: dict[str, float]) -> None:
    paired, unpaired = ["T1->T2", "T2->T1"], ["T1->CT", "T2->CT", "CT->T1", "CT->T2"]
    expected = {f"{name} {d}" for name in ("psnr", "ssim", "mae") for d in paired}
    expected |= {f"{name} {d}" for name in ("cycle", "kid") for d in unpaired}
    expected |= {f"identity_ratio {d}" for d in paired + unpaired}
    # No FID: 12 slices are fewer than the 24 features. No mean MAE: the CT's would be in HU.
    assert set(figures) == expected | {"psnr", "ssim", "cycle", "kid", "identity_ratio"}
    assert figures["psnr"] == pytest.approx((figures["psnr T1->T2"] + figures["psnr T2->T1"]) / 2)


def test_paired_figures_are_the_protocols(figures: dict[str, float], model: GalipForImageTranslation) -> None:
    scores = []
    for subject in (0, 1):
        translation = translate_slices(model, volume_of("T1", subject), "T2")
        scores.append(fixed_scores(translation, volume_of("T2", subject))["masked"])
    for name in ("psnr", "ssim", "mae"):
        assert figures[f"{name} T1->T2"] == pytest.approx(
            np.mean([getattr(s, name) for s in scores]), rel=1e-6
        )


def test_unpaired_figures_are_of_cycle_and_distribution(
    figures: dict[str, float], model: GalipForImageTranslation, tiny_backbone: ClipBackbone
) -> None:
    source = np.concatenate([volume_of("T1", subject) for subject in (0, 1, 2)])
    fakes = translate_slices(model, source, "CT")
    real = np.concatenate([volume_of("CT", subject) for subject in (4, 5)])
    back = translate_slices(model, fakes, "T1")
    assert figures["cycle T1->CT"] == pytest.approx(np.abs(back - source).mean(), rel=1e-5)
    distances = distribution_distances(
        slice_features(tiny_backbone, real), slice_features(tiny_backbone, fakes)
    )
    assert figures["kid T1->CT"] == pytest.approx(distances["kid"], rel=1e-4)


def test_the_identity_ratio_compares_with_matching_the_histogram(
    figures: dict[str, float], model: GalipForImageTranslation
) -> None:
    # All 18 real slices of T2, registered or not, are the reference.
    reference = np.concatenate([volume_of("T2", subject) for subject in (0, 1, 3)])
    ratios = []
    for subject in (0, 1):
        source = volume_of("T1", subject)
        change = np.abs(translate_slices(model, source, "T2") - source).mean()
        ratios.append(change / np.abs(match_histograms(source, reference) - source).mean())
    assert figures["identity_ratio T1->T2"] == pytest.approx(np.mean(ratios), rel=1e-4)
    assert min(ratios) > 0


def test_mae_of_ct_is_in_hounsfield_units(tmp_path: Path, tiny_backbone: ClipBackbone) -> None:
    volumes = [SubjectVolume(volume_of(d, 0), d, "s0", "validation") for d in ("T1", "CT")]
    tables = load_table(write_table(volumes, tmp_path / "table", domains=["T1", "CT"], image_size=None))
    model = filled_model(tiny_config(domains=[DOMAINS[0], DOMAINS[2]]))
    figures = Validation(tables, ["T1", "CT"], GalipImageProcessor(DOMAINS), tiny_backbone)(model)
    hounsfield = [
        2000 * side.astype(np.float64) - 1000
        for side in (translate_slices(model, volume_of("T1", 0), "CT"), volume_of("CT", 0))
    ]
    expected = fixed_scores(*hounsfield, modality="CT", window=(-1000.0, 1000.0))["masked"]
    assert figures["mae T1->CT"] == pytest.approx(expected.mae, rel=1e-5) and expected.mae > 10
    assert figures["psnr T1->CT"] == pytest.approx(expected.psnr, rel=1e-5)
    assert "mae" not in figures


def test_fid_where_there_are_enough_slices(tmp_path: Path, tiny_backbone: ClipBackbone) -> None:
    volumes = [
        SubjectVolume(smooth_volume(s, slices=30), d, d, "validation") for s, d in enumerate(["T1", "T2"])
    ]
    tables = load_table(write_table(volumes, tmp_path / "table", domains=["T1", "T2"], image_size=None))
    model = filled_model(tiny_config(domains=DOMAINS[:2]))
    figures = Validation(tables, ["T1", "T2"], GalipImageProcessor(DOMAINS), tiny_backbone)(model)
    assert figures["fid"] == pytest.approx((figures["fid T1->T2"] + figures["fid T2->T1"]) / 2)
    assert figures["fid"] > 0 and "psnr" not in figures


def test_the_pictures_show_the_same_slices_each_time(
    validation: Validation, model: GalipForImageTranslation, tmp_path: Path
) -> None:
    first = Image.open(validation.save_pictures(model, tmp_path / "a.png"))
    again = Image.open(validation.save_pictures(model, tmp_path / "b.png"))
    assert np.array_equal(np.asarray(first), np.asarray(again))
    other = filled_model(tiny_config())
    with torch.no_grad():
        other.conv_out.bias.add_(0.5)
    assert not np.array_equal(
        np.asarray(first), np.asarray(Image.open(validation.save_pictures(other, tmp_path / "c.png")))
    )


def test_refusals(tables: datasets.DatasetDict, tiny_backbone: ClipBackbone) -> None:
    processor = GalipImageProcessor(DOMAINS)
    with pytest.raises(
        GalipError, match="the data has no validation split; add volumes with split validation"
    ):
        Validation(datasets.DatasetDict(train=tables["train"]), NAMES, processor, tiny_backbone)
