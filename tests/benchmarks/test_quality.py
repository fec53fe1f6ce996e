"""The quality benchmark on tiny data: its tables, its scores, and both systems from data to figure."""

import argparse
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks.quality import __main__ as command
from benchmarks.quality import brainweb, cyclegan, data
from benchmarks.quality.brainweb import TISSUES, Sampling, overlap_weights, read_fractions, simulate
from benchmarks.quality.galip import quality_recipe, train_galip
from benchmarks.quality.report import seed_mean, table_of
from benchmarks.quality.scoring import CpuClock, Scorer, lookup_translator, mean_of
from galip_hf import GalipError
from galip_hf.data import phantom
from galip_hf.data.phantom_table import PhantomRecipe
from galip_hf.data.table import load_table
from galip_hf.evaluation.metrics import FIXED
from galip_hf.model.domains import IXI_DOMAINS

CONTRASTS = list(phantom.CONTRASTS)
DIRECTIONS = [f"{source}->{target}" for source, target in permutations(CONTRASTS, 2)]
TINY = [
    "model.base_channels=8",
    "model.channel_multipliers=[1, 2]",
    "model.attention_rates=[2]",
    "model.attention_head_width=8",
    "model.norm_groups=4",
    "model.label_width=16",
    "clip.tiny={image_size: 32, patch_size: 8, width: 16, subjects: 2, steps: 2, batch_size: 6}",
    "training.validation_steps=2",
    "training.checkpoint_steps=2",
]


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[data.DataSet, Path]:
    """Phantom slices of 32 x 32 pixels, and the folder of their table."""

    def write(source: Path | None, table: Path) -> None:
        data.write_phantom(source, table, PhantomRecipe(2, 0, size=32, slices=4))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "PHANTOM_TEST_SUBJECTS", 2)
        table = tmp_path_factory.mktemp("quality") / "table"
        write(None, table)
    return data.DataSet(32, [dict(domain) for domain in IXI_DOMAINS], write), table


@pytest.fixture(scope="module")
def scorer(tiny_data: tuple[data.DataSet, Path]) -> Scorer:
    return Scorer(load_table(tiny_data[1]), CONTRASTS)


# BrainWeb's label maps


def write_labels(path: Path, seed: int = 0) -> np.ndarray:
    """A 'head' of 40 x 60 x 50 mm in RAS: grey matter with a box of a random size of another tissue."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 60, 50), np.uint8)
    labels[5:35, 8:52, 3:47] = 2
    width = rng.integers(4, 12)
    labels[12 : 12 + width, 20:30, 10:40] = 1
    labels[20:30, 35:45, 10 : 20 + width] = 3
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(labels, np.eye(4)).to_filename(path)
    return labels


def test_overlap_weights_are_those_of_boxes_around_one_centre() -> None:
    # Voxels of 1.75 mm at -0.25..1.5, 1.5..3.25 mm of a row of three voxels of 1 mm
    assert np.allclose(overlap_weights(3, 2, 1.75), np.array([[1, 0.5, 0], [0, 0.5, 1]]) / 1.75)
    assert np.allclose(overlap_weights(30, 4, 2.5).sum(axis=1), 1)


def test_fractions_keep_the_volume_of_each_tissue(tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "sub-01_dseg.nii.gz")
    sampling = Sampling(size=40, pixel=1.75, thickness=2.5)
    fractions = read_fractions(tmp_path / "sub-01_dseg.nii.gz", sampling)
    assert fractions.shape == (len(TISSUES), 20, 40, 40)
    assert np.allclose(fractions.sum(axis=0), 1, atol=1e-5)
    millilitres = fractions.sum(axis=(1, 2, 3)) * 1.75**2 * 2.5
    counts = np.bincount(labels.ravel(), minlength=len(TISSUES))
    assert np.allclose(millilitres[1:], counts[1:], rtol=1e-4)
    # Row 0 is anterior: white matter, which lies in front, is in rows above CSF.
    rows = [fractions[label].sum(axis=(0, 2)) @ np.arange(40) / fractions[label].sum() for label in (1, 3)]
    assert rows[1] < rows[0]


def test_signals_bias_and_noise_of_a_simulated_scan() -> None:
    fractions = np.zeros((len(TISSUES), 6, 64, 64), np.float32)
    fractions[0], fractions[2, :, :, 32:] = 1, 1
    fractions[0, :, :, 32:] = 0
    grey = 0.86 * (1 - np.exp(-4000 / 833)) * np.exp(-80 / 83)  # spin echo, T2-weighted
    scan = simulate(fractions, "T2", (0, 1))
    tissue, air = scan[:, :, 32:], scan[:, :, :32]
    assert scan.dtype == np.float32
    assert np.abs(tissue / grey - 1).max() > 0.1 and np.abs(np.median(tissue) / grey - 1) < 0.15
    # Of complex noise without a signal the magnitude has a Rayleigh distribution.
    assert air.mean() == pytest.approx(0.03 * grey * np.sqrt(np.pi / 2), rel=0.02)
    assert np.array_equal(scan, simulate(fractions, "T2", (0, 1)))
    assert not np.array_equal(scan, simulate(fractions, "T2", (0, 2)))


def test_the_bias_field_reaches_its_bound_and_no_more() -> None:
    field = brainweb.bias_field((5, 20, 20), np.random.default_rng(3))
    assert np.abs(field - 1).max() == pytest.approx(0.15)
    assert np.abs(np.diff(field, axis=1)).max() < 0.05


def test_brainweb_trains_each_contrast_on_other_anatomies(tmp_path: Path) -> None:
    for number in range(7):
        write_labels(tmp_path / "maps" / f"sub-{number:02d}_dseg.nii.gz", number)
    data.write_brainweb(tmp_path / "maps", tmp_path / "table", Sampling(32, 2.0, 5.0))
    table = load_table(tmp_path / "table")
    of_domain = {
        split: [
            {subject for subject, label in zip(rows["subject"], rows["domain"], strict=True) if label == n}
            for n in range(3)
        ]
        for split, rows in table.items()
    }
    assert of_domain["train"] == [{"sub-00", "sub-03"}, {"sub-01"}, {"sub-02"}]
    assert of_domain["test"] == [{"sub-04", "sub-05", "sub-06"}] * 3


@pytest.mark.parametrize("values, spacing, message", [(12, 1.0, "0..12"), (3, 2.0, "1 mm")])
def test_other_label_maps_are_refused(tmp_path: Path, values: int, spacing: float, message: str) -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = values
    affine = np.diag([spacing, spacing, spacing, 1.0])
    nib.Nifti1Image(labels, affine).to_filename(tmp_path / "map.nii.gz")
    with pytest.raises(GalipError, match=message):
        read_fractions(tmp_path / "map.nii.gz", Sampling(16))


def test_too_few_label_maps(tmp_path: Path) -> None:
    with pytest.raises(GalipError, match="found 0 label maps"):
        data.write_brainweb(tmp_path, tmp_path / "table")


def test_open_ms_heads_go_through_prepare(tmp_path: Path) -> None:
    subjects = {"MSl01s1": CONTRASTS, "MSl12s1": CONTRASTS, "MSl03s1": ["T2", "PD"]}
    for number, (subject, contrasts) in enumerate(subjects.items()):
        anatomy = phantom.make_subject(number, size=64, slices=6)
        for contrast in contrasts:
            scan = phantom.render(anatomy, contrast)[:, ::-1, ::-1].T  # (S, H, W) in display order to RAS
            name = f"{subject}_{'FLAIR' if contrast == 'PD' else contrast}.nii.gz"
            (tmp_path / subject).mkdir(exist_ok=True)
            nib.Nifti1Image(scan, np.diag([3.0, 3.0, 6.0, 1.0])).to_filename(tmp_path / subject / name)
    data.write_open_ms(tmp_path, tmp_path / "table")
    table = load_table(tmp_path / "table")
    assert table["train"].features["pixel_values"].shape == (128, 128)
    assert set(table["train"]["subject"]) == {"MSl01s1", "MSl12s1"}
    scores = Scorer(table, data.OPEN_MS_DOMAINS).floors()
    assert set(scores["lookup"]) == {"T2->FLAIR", "FLAIR->T2"}  # the test head has no T1


# Scores


def test_a_lookup_table_finds_a_map_of_intensities_and_nothing_else() -> None:
    source = phantom.render(phantom.make_subject(0, size=32, slices=3), "T1")
    source = (source / source.max()).astype(np.float32)
    subject = {"T1": source, "T2": (1 - source**2).astype(np.float32)}
    tables = lookup_translator([subject], ["T1", "T2"])
    inside = source > 0.3
    assert np.abs(tables(source, "T1", "T2") - subject["T2"])[inside].max() < 0.01
    # Where one intensity has two targets, the table holds their mean.
    halves = {"T1": np.full((2, 20, 20), 0.6, np.float32), "T2": np.full((2, 20, 20), 0.2, np.float32)}
    halves["T2"][0] = 0.8
    mean = lookup_translator([halves], ["T1", "T2"])(halves["T1"], "T1", "T2")
    assert np.allclose(mean, 0.5)


def test_no_map_of_intensities_beats_the_lookup_table(scorer: Scorer) -> None:
    floors = scorer.floors()
    assert set(floors) == {"copy", "histogram", "mean", "lookup"}
    assert list(floors["lookup"]) == DIRECTIONS
    for direction in DIRECTIONS:
        assert floors["lookup"][direction]["psnr"] > floors["copy"][direction]["psnr"]
        assert floors["lookup"][direction]["n"] == 2
    perfect = scorer.scores(
        lambda volume, source, target: next(s[target] for s in scorer.subjects if (s[source] == volume).all())
    )
    assert mean_of(perfect, "psnr") == 100


def test_paused_time_is_not_counted() -> None:
    clock = CpuClock()

    def work() -> None:
        before = clock()
        while clock() - before < 0.02:
            pass

    work()
    with clock.paused():
        total = sum(range(1_000_000))
    after = clock()
    assert total and 0.02 <= after < 0.04


# CycleGAN


def test_a_score_of_the_discriminator_sees_70_pixels() -> None:
    torch.manual_seed(0)
    network = cyclegan.make_discriminator(4)
    image = torch.rand(1, 1, 160, 160, requires_grad=True)
    hidden = image
    for layer in network:  # normalisation couples all pixels; without it the patch is seen
        if not isinstance(layer, torch.nn.InstanceNorm2d):
            hidden = layer(hidden)
    middle = hidden.shape[-1] // 2
    hidden[0, 0, middle, middle].backward()
    assert image.grad is not None
    rows = torch.nonzero(image.grad[0, 0].abs().sum(dim=1))
    assert int(rows.max() - rows.min()) + 1 == 70


def test_the_generator_of_the_paper() -> None:
    network = cyclegan.make_generator(64, blocks=9)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(11.4e6, rel=0.01)  # the paper's
    images = cyclegan.make_generator(4)(torch.rand(1, 1, 32, 32))
    assert images.shape == (1, 1, 32, 32) and images.abs().max() <= 1


def test_the_pool_shows_earlier_fakes_half_of_the_time() -> None:
    pool = cyclegan.ImagePool(0)
    shown = [int(pool.exchange(torch.full((1, 1, 1, 1), float(n)))) for n in range(1050)]
    assert shown[:50] == list(range(50))
    newest = sum(value == n for n, value in enumerate(shown[50:], start=50))
    assert 430 < newest < 570
    assert len(pool.images) == 50


def test_a_step_has_the_losses_of_the_paper() -> None:
    gan = cyclegan.CycleGan(0, width=4)
    real = [torch.rand(1, 1, 32, 32) * 2 - 1 for _ in range(2)]
    with torch.no_grad():
        to_a, to_b = gan.generators
        fakes = [to_a(real[1]), to_b(real[0])]
        expected_cycle = (to_a(fakes[1]) - real[0]).abs().mean() + (to_b(fakes[0]) - real[1]).abs().mean()
        expected = sum(
            (d(fake) - 1).square().mean() for d, fake in zip(gan.discriminators, fakes, strict=True)
        )
    before = [parameter.clone() for parameter in gan.generators.parameters()]
    losses = gan.train_step(real, 1.0)
    assert losses["cycle"] == pytest.approx(float(expected_cycle), rel=1e-5)
    assert losses["adversarial"] == pytest.approx(float(expected), rel=1e-5)
    moved = [not torch.equal(a, b) for a, b in zip(before, gan.generators.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2  # a bias before a normalisation has no gradient


def test_an_interrupted_pair_goes_on(
    tiny_data: tuple[data.DataSet, Path], scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its last score: weights, optimisers, pools and the place in the data."""
    table = load_table(tiny_data[1])
    monkeypatch.setattr(cyclegan, "SCORES", 2)
    options: dict[str, Any] = {"seed": 0, "seconds": 1e-6, "width": 4}
    pair = ("T1", "T2")
    whole = cyclegan.train_pair(table, pair, scorer, tmp_path / "whole", **options)
    monkeypatch.setattr(cyclegan, "SCORES", 1)
    cyclegan.train_pair(table, pair, scorer, tmp_path / "cut", **options)
    monkeypatch.setattr(cyclegan, "SCORES", 2)
    resumed = cyclegan.train_pair(table, pair, scorer, tmp_path / "cut", **options)
    assert [entry["step"] for entry in whole] == [entry["step"] for entry in resumed] == [1, 2]
    assert [entry["directions"] for entry in whole] == [entry["directions"] for entry in resumed]
    assert list(whole[0]["directions"]) == ["T1->T2", "T2->T1"]


# The whole


def test_a_recipe_is_scored_along_the_way_and_goes_on(
    tiny_data: tuple[data.DataSet, Path], scorer: Scorer, tmp_path: Path
) -> None:
    def train(steps: int) -> dict[str, Any]:
        overrides = [*TINY, f"training.max_steps={steps}"]
        recipe = quality_recipe(tiny_data[0], tiny_data[1], tmp_path / "run", 0, 60.0, overrides)
        return train_galip(recipe, scorer)

    train(2)
    curve = train(4)["curve"]
    assert [entry["step"] for entry in curve] == [2, 4]
    assert [entry["images"] for entry in curve] == [4, 8]
    assert 0 < curve[0]["cpu_seconds"] < curve[1]["cpu_seconds"] < 60
    assert list(curve[0]["directions"]) == DIRECTIONS


def test_a_budget_that_the_stand_in_uses_up(
    tiny_data: tuple[data.DataSet, Path], scorer: Scorer, tmp_path: Path
) -> None:
    recipe = quality_recipe(tiny_data[0], tiny_data[1], tmp_path / "run", 0, 1e-6, TINY)
    with pytest.raises(GalipError, match="give more --cpu-minutes"):
        train_galip(recipe, scorer)


def test_the_command_prints_one_table_of_all(
    tiny_data: tuple[data.DataSet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(data.DATA_SETS, "phantom", tiny_data[0])
    monkeypatch.setattr(data, "PHANTOM_TEST_SUBJECTS", 2)
    monkeypatch.setattr(cyclegan, "SCORES", 1)
    options = ["phantom", "--output", str(tmp_path), "--name", "tiny", "--cpu-minutes", "1"]
    arguments = command.make_parser().parse_args([*options, "--systems", "galip", "--set", *TINY])
    arguments.overrides.append("training.max_steps=2")
    command.run(arguments)
    options[-1] = "0.0001"
    arguments = command.make_parser().parse_args([*options, "--systems", "cyclegan", "--cyclegan-width", "4"])
    table = command.run(arguments)
    for system in ("copy", "histogram", "mean", "lookup", "tiny", "cyclegan-4"):
        lines = [line for line in table.splitlines() if f" {system} " in line]
        assert len(lines) == len(DIRECTIONS) + 1  # and the mean
    assert str(FIXED.version) in table
    results = json.loads((tmp_path / "phantom" / "results.json").read_text())
    assert results["systems"]["tiny"][0]["curve"][-1]["step"] == 2
    assert (tmp_path / "phantom" / "curve.png").stat().st_size > 1000
    # What has ended is not trained again.
    monkeypatch.setattr(command, "train_galip", lambda *_: pytest.fail("trained again"))
    assert command.run(command.make_parser().parse_args([*options, "--systems", "galip", "--name", "tiny"]))


def test_data_that_is_not_there_must_be_named(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        data="brainweb", source=None, output=tmp_path, threads=1, systems=[], seeds=[0], name="x"
    )
    with pytest.raises(GalipError, match="--source"):
        command.run(arguments)


def test_seeds_are_averaged() -> None:
    def result(psnr: float) -> dict[str, Any]:
        cell = {"psnr": psnr, "ssim": 0.5, "mae": 0.1, "psnr_ci95": [psnr - 1, psnr + 1], "n": 3}
        return {"curve": [{"directions": {"A->B": cell}, "cpu_seconds": 9.0, "step": 2, "images": 4}]}

    results = [result(20.0), result(22.0)]
    assert seed_mean(results)["A->B"]["psnr"] == 21
    assert seed_mean(results)["A->B"]["psnr_ci95"] == [20, 22]
    assert "21.00" in table_of({}, {"x": results}) and "seeds 20.00, 22.00 dB" in table_of({}, {"x": results})
