"""Distillation: a narrower model comes nearer to its teacher, and is saved as a model like any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DOMAINS, filled_model, smooth_volume, tiny_config

from galip_hf import GalipError, GalipPipeline
from galip_hf.cli import main
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.training.distill import DistillationSettings, Draws, new_student, student_config


def test_the_student_is_narrower_and_keeps_the_prompts() -> None:
    teacher = filled_model(tiny_config())
    student = new_student(teacher, 4)
    assert student.config.level_channels == [4, 8] and student.config.norm_groups == 2
    assert student.config.attention_head_width == 8  # the widest attended level is 8 wide
    assert student.config.domains == teacher.config.domains
    assert torch.equal(student.prompt_states, teacher.prompt_states)
    assert student_config(tiny_config(attention_head_width=16), 4).attention_head_width == 8
    for width in (8, 3, 0):
        with pytest.raises(GalipError, match=f"base_channels is {width}; expected less than the teacher's 8"):
            new_student(teacher, width)


def test_draws_are_repeatable_and_never_to_the_own_domain(table_directory: Path) -> None:
    table = load_table(table_directory)["train"]
    settings = DistillationSettings(batch_size=6, seed=3)
    draws = Draws(table, ["CT", "T1", "T2"], settings)  # another order than the table's
    seen = set()
    stored = np.array(table.with_format("numpy")["pixel_values"])
    names = [table.features["domain"].names[label] for label in table["domain"]]
    for step in range(20):
        slices, targets = draws.of_step(step)
        assert slices.shape == (6, 1, 16, 16) and slices.dtype == torch.float32
        assert torch.equal(slices, draws.of_step(step)[0])
        for one, target in zip(slices[:, 0].numpy(), targets.tolist(), strict=True):
            (row,) = np.flatnonzero((stored == one).all(axis=(1, 2)))
            seen.add((names[row], ["CT", "T1", "T2"][target]))
    assert seen == {(a, b) for a in ("CT", "T1", "T2") for b in ("CT", "T1", "T2") if a != b}
    with pytest.raises(GalipError, match="the domain 'CT', which the teacher does not know"):
        Draws(table, ["T1", "T2"], settings)


def test_the_command(model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [domain["name"] for domain in DOMAINS]
    volumes = [
        SubjectVolume(smooth_volume(number), name, f"{name}-{number}", split)
        for split, first in (("train", 0), ("validation", 50))
        for number, name in enumerate(names, start=first)
    ]
    table = write_table(volumes, tmp_path / "table", domains=names, image_size=None)
    command = ["distill", str(model_directory), "--data", str(table), "--device", "cpu", "--batch-size", "2"]
    agreements = []
    for steps in (1, 50):
        output = tmp_path / f"student{steps}"
        rate = ["--learning-rate", "5e-3"]
        assert main([*command, *rate, "--steps", str(steps), "--output", str(output)]) == 0
        report = json.loads((output / "distillation.json").read_text(encoding="utf-8"))
        assert (
            0.2 < report["operations_of_the_teacher"] < 0.5 and report["agreement"]["split"] == "validation"
        )
        agreements.append(report["agreement"]["psnr"])
    assert agreements[1] > agreements[0] + 0.2  # dB nearer to the teacher, on subjects not learnt from
    said = capsys.readouterr().out
    assert "4 base channels" in said and "of the teacher's operations, on cpu" in said
    scan = 200 * np.random.default_rng(0).random((2, 8, 8), dtype=np.float32)
    assert GalipPipeline.from_pretrained(output)(scan, "T2", "T1").array.shape == (2, 8, 8)
    assert main([*command, "--output", str(output)]) == 2
    assert "already exists" in capsys.readouterr().err
