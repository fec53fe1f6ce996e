"""The README's commands and code, run as they stand there (training commands cut short by overrides)."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from galip_hf.data import phantom
from galip_hf.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Enough to pass through every part of a run, and no more.
CUT_SHORT = [
    "training.max_steps=2",
    "training.validation_steps=2",
    "clip.tiny.steps=2",
    "clip.tiny.subjects=2",
    "clip.tiny.patch_size=16",
    "data.phantom.train_subjects=2",
    "data.phantom.validation_subjects=1",
    "data.phantom.slices=4",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(start: str) -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith(start)]


def run(command: str, directory: Path, *more: str) -> str:
    """Run a command of the README in `directory`, where the repository's examples are linked."""
    if not (directory / "examples").exists():
        (directory / "examples").symlink_to(ROOT / "examples")
    program, *arguments = shlex.split(command, comments=True)
    executable = sys.executable if program == "python" else str(Path(sys.executable).with_name(program))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [executable, *arguments, *more], cwd=directory, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_and_command_line_translate_the_example_head(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (command,) = commands("galip-hf translate")
    assert "does not look like" not in run(command, tmp_path)
    source, translated = nib.load(ROOT / "examples/data/head_T1.nii.gz"), nib.load(tmp_path / "t2.nii.gz")
    np.testing.assert_allclose(translated.affine, source.affine, atol=1e-4)
    by_command = translated.get_fdata()
    assert by_command.shape == source.shape and not np.allclose(by_command, source.get_fdata())
    (tmp_path / "t2.nii.gz").unlink()
    (tmp_path / "t2.json").unlink()
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    exec(block, {})
    np.testing.assert_allclose(nib.load("t2.nii.gz").get_fdata(), by_command, atol=1)  # of about 1000


def test_the_preparation_of_ixi(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="pip install 'galip-hf[prepare]'")
    (tmp_path / "outputs").mkdir()
    for index in range(40):  # the paper's 25, 5 and 10 subjects
        subject = phantom.make_subject(index, size=80, slices=4)
        for contrast in phantom.CONTRASTS:
            path = tmp_path / f"IXI/IXI-{contrast}/IXI{index:03d}-Guys-{index:04d}-{contrast}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            array = phantom.render(subject, contrast)
            nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([-2.5, -2.5, 8.0, 1.0])).to_filename(path)
    prepare, inspect = commands("galip-hf prepare")[0], commands("galip-hf inspect")[0]
    # Cut short: registration has its own tests.
    assert "train: 25 subjects" in run(prepare, tmp_path, "--register", "header", "--workers", "1")
    assert "test: 10 subjects" in run(inspect, tmp_path)
    assert (tmp_path / "outputs/ixi.png").is_file()


@pytest.mark.parametrize("start", ["galip-hf train phantom.yaml", "accelerate launch"])
def test_the_training_commands(tmp_path: Path, start: str) -> None:
    (init,) = commands("galip-hf train --init")
    init, _, recipe = init.partition(" > ")
    (tmp_path / recipe.split()[0]).write_text(run(init, tmp_path), encoding="utf-8")
    *dry_runs, command = commands(start)
    for dry_run in dry_runs:
        assert "memory  about" in run(dry_run, tmp_path, *CUT_SHORT)
        assert not (tmp_path / "outputs").exists()
    output = run(command, tmp_path, *CUT_SHORT)
    assert "model: outputs/phantom/model" in output
    assert (tmp_path / "outputs/phantom/model/model.safetensors").is_file()


def test_the_recipe_for_own_data(tmp_path: Path) -> None:
    (block,) = blocks("yaml")
    (tmp_path / "recipe.yaml").write_text(block, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert [entry.domain for entry in recipe.data.files] == ["T1", "CT"]


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_recipes_of_the_repository(path: Path) -> None:
    assert load_recipe(path).training.max_steps > 0


def test_the_command_of_the_page_on_translation(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "translate.md").read_text(encoding="utf-8")
    (tmp_path / "scans").mkdir()
    for number in range(2):
        array = phantom.render(phantom.make_subject(number, slices=3), "T1").transpose(2, 1, 0)
        nib.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / "scans" / f"{number}.nii.gz")
    (command,) = re.findall(r"^galip-hf translate .*", page, flags=re.MULTILINE)
    run(command, tmp_path)
    assert (
        len(list((tmp_path / "translated").iterdir())) == 12
    )  # scan, map and report; two scans, two targets
