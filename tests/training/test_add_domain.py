"""A model grows by a domain: the old ones are served bit for bit as before, the new one is there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import filled_model, tiny_config

from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.cli import main
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.commands.options import parse_intensity
from galip_hf.data.input_statistics import measure_domain
from galip_hf.training.add_domain import add_domain

FLAIR: dict[str, Any] = {
    "name": "FLAIR",
    "prompt": "this MRI is T2-weighted",  # the words that the tiny CLIP model knows
    "modality": "MR",
    "intensity": {"rule": "percentile", "lower": 0.0, "upper": 99.0},
}


@pytest.fixture
def old_model(tmp_path: Path) -> Path:
    model = filled_model(tiny_config())
    model.save_pretrained(tmp_path / "old")
    processor = GalipImageProcessor.from_config(model.config)
    slices = np.random.default_rng(0).random((8, 32, 32), dtype=np.float32)
    processor.set_statistics({"T1": measure_domain([slices])})
    processor.save_pretrained(tmp_path / "old")
    return tmp_path / "old"


def command(old: Path, clip: Path, output: Path, *more: str) -> list[str]:
    options = ["--name", "FLAIR", "--prompt", FLAIR["prompt"], "--modality", "MR", "--clip", str(clip)]
    return ["add-domain", str(old), *options, "--output", str(output), *more]


def test_the_command_leaves_the_old_domains_bit_identical(
    old_model: Path, clip_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    assert main(command(old_model, clip_directory, output, "--intensity", "percentile:0:99")) == 0
    assert "domains T1, T2, CT, FLAIR" in capsys.readouterr().out
    old, new = (GalipForImageTranslation.from_pretrained(path) for path in (old_model, output))
    images = torch.rand(2, 1, 40, 36, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for domain in old.config.domain_names:
            assert torch.equal(old(images, domain).translation, new(images, domain).translation)
        assert torch.isfinite(new(images, "FLAIR").translation).all()
    assert new.config.domains == [*old.config.domains, FLAIR]
    processor = GalipImageProcessor.from_pretrained(output)
    assert processor.intensity_rules["FLAIR"] == FLAIR["intensity"]
    assert processor.fixed_window("CT") == (-1000.0, 1000.0)
    assert processor.domain_statistics == GalipImageProcessor.from_pretrained(old_model).domain_statistics
    assert set(processor.domain_statistics) == {"T1"}


def test_the_new_rows_are_those_of_its_prompt_and_its_model(tiny_backbone: ClipBackbone) -> None:
    old = filled_model(tiny_config())
    before = {name: value.clone() for name, value in old.state_dict().items()}
    mean, like = (add_domain(old, FLAIR, tiny_backbone, like=like) for like in (None, "T2"))
    rows = old.label_embedding.weight
    assert torch.equal(mean.label_embedding.weight[3], rows.mean(0))
    assert torch.equal(like.label_embedding.weight[3], rows[1])
    expected = tiny_backbone.encode_prompts([FLAIR["prompt"]]).token_states[0]
    assert torch.equal(mean.prompt_states[3], expected)
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    assert len(old.config.domains) == 3


def test_pooled_conditioning_grows_too(tiny_backbone: ClipBackbone) -> None:
    grown = add_domain(filled_model(tiny_config(text_conditioning="pooled")), FLAIR, tiny_backbone)
    expected = tiny_backbone.encode_prompts([FLAIR["prompt"]]).embedding
    assert torch.equal(grown.prompt_states[3], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "T1"}, "names .* are not distinct"),
        ({"prompt": " "}, "prompt is ' '; expected a non-empty string"),
        ({"modality": "mr scan"}, "modality is 'mr scan'"),
        ({"intensity": {"rule": "window", "lower": 1.0, "upper": 0.0}}, "intensity window is 1.0..0.0"),
    ],
)
def test_unfit_domains_are_refused(
    tiny_backbone: ClipBackbone, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GalipError, match=message):
        add_domain(filled_model(tiny_config()), {**FLAIR, **changes}, tiny_backbone)


def test_another_clip_model_and_an_unknown_likeness_are_refused(tiny_backbone: ClipBackbone) -> None:
    with pytest.raises(GalipError, match="give the CLIP model that it was trained with"):
        add_domain(filled_model(tiny_config(text_length=9)), FLAIR, tiny_backbone)
    with pytest.raises(GalipError, match="domain 'PD' is unknown to this model"):
        add_domain(filled_model(tiny_config()), FLAIR, tiny_backbone, like="PD")


def test_mistakes_are_one_line(
    old_model: Path, clip_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (command(old_model, clip_directory, old_model), "already exists"),
        (command(old_model, clip_directory, tmp_path / "a" / "b"), "does not exist; create it first"),
        (
            command(old_model, clip_directory, tmp_path / "n", "--intensity", "window:3"),
            "expected percentile:",
        ),
        (command(old_model, clip_directory, tmp_path / "n", "--like", "PD"), "'PD' is unknown"),
        (command(tmp_path / "nothing", clip_directory, tmp_path / "n"), "nothing"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]  # progress bars come before it
        assert error.startswith("galip-hf: error: ") and message in error
    assert not (tmp_path / "n").exists()


def test_intensity_rules_are_parsed() -> None:
    assert parse_intensity("window:-1000:400", "--intensity") == {
        "rule": "window",
        "lower": -1000.0,
        "upper": 400.0,
    }
    assert parse_intensity("none", "--intensity") == {"rule": "none"}
    for text in ("none:1", "percentile", "percentile:a:b", "median:1:2"):
        with pytest.raises(GalipError, match="expected percentile:LOWER:UPPER"):
            parse_intensity(text, "--intensity")


def test_the_command_keeps_the_statistics_of_the_old_domains(
    old_model: Path, clip_directory: Path, tmp_path: Path
) -> None:
    processor = GalipImageProcessor.from_pretrained(old_model)
    slices = np.random.default_rng(0).random((4, 32, 32), dtype=np.float32)
    processor.set_statistics({"T1": measure_domain([slices])})
    processor.set_not_for_real_scans("it has seen phantoms alone")
    processor.save_pretrained(old_model)
    assert main(command(old_model, clip_directory, tmp_path / "new")) == 0
    kept = GalipImageProcessor.from_pretrained(tmp_path / "new")
    assert kept.domain_statistics == processor.domain_statistics
    assert kept.not_for_real_scans == "it has seen phantoms alone"
