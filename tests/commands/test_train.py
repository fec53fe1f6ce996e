"""`galip-hf train`: starters, dry runs, mistakes, and a run from end to end."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import filled_model, smooth_volume, tiny_config, tiny_run_recipe
from published_tables import make_table, publish

from galip_hf import GalipConfig
from galip_hf.cli import main
from galip_hf.commands.train import STARTERS, starter
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.training.memory_estimate import FrozenClip, estimate_memory, translation_bytes
from galip_hf.training.recipe import Recipe, load_recipe
from galip_hf.training.training_args import GalipTrainingArguments

ROOT = Path(__file__).resolve().parents[2]
SAME_AS_EXAMPLE = {"phantom": "phantom", "ixi": "ixi_multi", "brats": "brats", "ct-mr": "gold_atlas_ct_mr"}
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


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a refused command prints."""
    assert main(["train", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("galip-hf: error: ")
    return line


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a dry run prints; lines are joined without their indent."""
    assert main(["train", *map(str, arguments), "--dry-run"]) == 0
    return " ".join(capsys.readouterr().out.split())


def files_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


# Starters


@pytest.mark.parametrize("name", STARTERS)
def test_a_starter_is_printed_and_loads(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--init", name]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe(path).training.max_steps > 0


@pytest.mark.parametrize("name", STARTERS)
def test_a_starter_explains_every_option_at_its_default(name: str, tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(re.sub(r"(?m)^  # (?=[a-z_]+: )", "  ", starter(name).replace("# streaming:", "#")))
    values = yaml.safe_load(path.read_text())
    assert list(values["training"]) and set(values["training"]) == {
        field.name for field in dataclasses.fields(GalipTrainingArguments)
    }
    widths = {"text_width", "text_length", "text_embedding_width"}  # those of the CLIP model
    assert set(values["model"]) | {"domains"} == set(GalipConfig().own_values()) - widths
    given = yaml.safe_load(starter(name))
    everything, own = load_recipe(path), load_recipe_text(starter(name), tmp_path)
    assert everything.training == own.training  # so what is commented out shows the defaults
    assert (
        GalipConfig.from_dict(everything.model).own_values() == GalipConfig.from_dict(own.model).own_values()
    )
    for line in starter(name).split("training:\n")[1].splitlines():
        if re.match(r"  (# )?[a-z_]+: ", line):
            assert "  # " in line[4:], f"not explained: {line}"
    assert given["training"]["output_dir"].startswith("outputs/")


def load_recipe_text(text: str, folder: Path) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize(("name", "example"), SAME_AS_EXAMPLE.items())
def test_the_examples_are_the_starters(name: str, example: str) -> None:
    path = ROOT / "examples" / "configs" / f"{example}.yaml"
    assert path.samefile(ROOT / "galip_hf" / "training" / "starters" / f"{name}.yaml")


# A run


def test_the_phantom_starter_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(starter("phantom"), encoding="utf-8")
    text = dry_run(capsys, "mine.yaml", *CUT_SHORT)
    assert (
        "outputs/phantom/table: not there yet; training makes it train: T1 2 subjects, at most 8 slices"
        in text
    )
    assert "to be made in outputs/phantom/clip" in text and "generator: 708,529 parameters" in text
    assert "steps 2 of 2 images" in text and "at least 0.2 epochs of at most 12 steps" in text
    assert "device cpu, float32, processes: 1" in text and "memory about 1." in text
    assert files_in(tmp_path) == [str(tmp_path / "mine.yaml")]  # nothing was written

    assert main(["train", "mine.yaml", *CUT_SHORT]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "model: outputs/phantom/model"
    processor = json.loads(Path("outputs/phantom/model/preprocessor_config.json").read_text())
    assert processor["not_for_real_scans"] == "it was trained on the procedural brain phantom alone"
    log = [json.loads(line) for line in Path("outputs/phantom/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [2, 2] and log[1]["validation"]["psnr"] > 0

    before = files_in(tmp_path)
    text = dry_run(capsys, "mine.yaml", *CUT_SHORT)
    assert "outputs/phantom/table train: T1 2 subjects, 8 slices; T2 2 subjects, 8 slices; PD" in text
    assert "validation: T1 1 subjects, 4 slices" in text and " 0.2 epochs of 12 steps" in text
    assert "outputs/phantom, where an earlier run is" in text
    assert files_in(tmp_path) == before


def test_the_precision_of_the_launcher_is_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    table_directory: Path,
    clip_directory: Path,
) -> None:
    recipe = tiny_run_recipe(tmp_path / "recipe.yaml", table_directory, clip_directory, max_steps=1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert "device cpu, bf16" in dry_run(capsys, recipe)
    line = refused(capsys, recipe, "training.mixed_precision=fp16")
    assert "training.mixed_precision is fp16, but the launcher was given bf16" in line
    assert main(["train", str(recipe)]) == 0
    facts = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    assert facts["settings"]["mixed_precision"] == "bf16"
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert json.loads((checkpoint / "state.json").read_text())["arguments"]["mixed_precision"] == "bf16"


# Dry runs of what is not there


def test_a_dry_run_without_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ixi", "files"):
        Path(f"{name}.yaml").write_text(starter(name), encoding="utf-8")
    small = ["model.image_size=64", "model.channel_multipliers=[1,2]", "model.attention_rates=[2]"]
    text = dry_run(capsys, "ixi.yaml", *small)
    assert "data TABLES/ixi: not there yet; galip-hf prepare makes it model" in text
    assert "epochs: unknown before the slices are counted" in text
    assert "CLIP, frozen: 195,902,721 parameters;" in text and "to be downloaded" in text
    assert "discriminator: 71,800,320 parameters" in text  # at the width of ViT-B/16, three domains
    text = dry_run(capsys, "files.yaml", *small)
    assert "train: volumes T1 1, CT 1; slices are counted when they are read" in text
    assert "4 files are missing, the first is scans/sub-01_T1.nii.gz" in text
    text = dry_run(capsys, "ixi.yaml", *small, "clip.source=hf-hub:nobody/nothing")
    assert "parameters: unknown, hf-hub:nobody/nothing is not on this machine yet" in text
    assert "memory unknown" in text
    assert files_in(tmp_path) == [str(tmp_path / "files.yaml"), str(tmp_path / "ixi.yaml")]


def test_a_dry_run_of_a_stream(
    tmp_path: Path, clip_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = publish(make_table(tmp_path / "rows"), tmp_path / "hub", files=1)
    values = yaml.safe_load(tiny_run_recipe(tmp_path / "r.yaml", Path(), clip_directory).read_text())
    values["data"] = {"streaming": {"source": source, "items": 40}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    text = dry_run(capsys, tmp_path / "r.yaml", "training.max_steps=100", "training.batch_size=4")
    assert "streamed, 40 items an epoch" in text and "10.0 epochs of 10 steps" in text


def test_a_dry_run_refuses_what_training_would(
    tmp_path: Path, table_directory: Path, clip_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_run_recipe(tmp_path / "recipe.yaml", table_directory, clip_directory)
    assert "an epoch has 18 pairs, fewer than the 19" in refused(
        capsys, recipe, "training.batch_size=19", "--dry-run"
    )
    volume = SubjectVolume(smooth_volume(0), "T1", "s0", "validation")
    write_table([volume], tmp_path / "no_train", domains=["T1"], image_size=None)
    other = f"data.table={tmp_path / 'no_train'}"
    for more in (["--dry-run"], []):
        assert "has the splits validation; training needs a split train" in refused(
            capsys, recipe, other, *more
        )


# The estimate of memory


CLIP = FrozenClip(1000, tokens=16, width=32, depth=4, text_width=16, text_length=12, embedding_width=24)


def test_weights_are_counted() -> None:
    model = filled_model(tiny_config())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    arguments = GalipTrainingArguments("run", batch_size=1)
    # Weights, gradients, two moments, the average; of the discriminator, gradients of two domains of three.
    expected = 4 * (5 * parameters + 600 * (3 + 2 / 3) + 1000)
    assert estimate_memory(model, 600, CLIP, arguments, "cpu").weights == pytest.approx(expected)


def test_activations_are_in_proportion_to_the_images_of_a_batch() -> None:
    small, large = (filled_model(tiny_config(image_size=size)) for size in (64, 128))
    assert translation_bytes(large) == pytest.approx(4 * translation_bytes(small), rel=0.05)

    def activations(device: str = "cpu", **arguments: object) -> float:
        settings = GalipTrainingArguments("run", **arguments)  # type: ignore[arg-type]
        return estimate_memory(small, 600, CLIP, settings, device).activations

    assert activations(batch_size=6) == pytest.approx(6 * activations(batch_size=1))
    assert activations(gradient_accumulation_steps=4) == activations()
    assert activations(mixed_precision="bf16") < 0.8 * activations()
    assert activations(gradient_checkpointing=True) < 0.8 * activations()
    on_cpu, on_gpu = (
        estimate_memory(small, 600, CLIP, GalipTrainingArguments("run"), device) for device in ("cpu", "cuda")
    )
    assert on_cpu.total - on_gpu.total == on_cpu.process > 0 == on_gpu.process


def test_a_translation_keeps_at_least_the_inputs_of_its_linear_layers() -> None:
    model = filled_model(tiny_config())
    inputs: dict[int, int] = {}

    def note(module: torch.nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs[given[0].untyped_storage().data_ptr()] = given[0].nbytes

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(note)
    kept = translation_bytes(model)
    assert 0 < sum(inputs.values()) < kept
    # With a single weight to train, hardly anything has to be kept.
    model.requires_grad_(False).conv_out.weight.requires_grad_(True)
    assert 0 < translation_bytes(model) < kept / 3


# Mistakes


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(starter("phantom"), encoding="utf-8")
    assert "no recipe was given" in refused(capsys)
    assert "--init prints a recipe and trains nothing" in refused(capsys, recipe, "--init", "ixi")
    assert "cannot be read as a recipe" in refused(capsys, tmp_path / "absent.yaml")
    assert "unknown key 'max_step'" in refused(capsys, recipe, "training.max_step=1")
    assert "expected key=value" in refused(capsys, recipe, "--dry-run", "training.max_steps")
    assert files_in(tmp_path) == [str(recipe)]


@pytest.mark.parametrize(
    "arguments",
    [["train", "r.yaml", "--no-such-option"], ["translate", "a", "b=c"], ["train", "--init", "x"]],
)
def test_what_the_parser_does_not_know(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_module_runs_and_imports_nothing_heavy_for_help_and_starters() -> None:
    for arguments in (["--help"], ["--init", "files"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "galip_hf", "train", *arguments],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=120,
        )
        assert done.returncode == 0 and done.stdout
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert "galip_hf.commands.train" in imported
        assert not imported & {"torch", "transformers", "numpy", "datasets", "yaml"}
