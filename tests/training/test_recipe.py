"""Recipes: strict reading, the data they make, and one run from end to end."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.data import phantom
from galip_hf.data.phantom_table import phantom_subject_seed
from galip_hf.data.table import load_table
from galip_hf.inference.slices import translate_slices
from galip_hf.training.recipe import load_recipe
from galip_hf.training.run_recipe import run_recipe

ROOT = Path(__file__).parents[2]


def tiny_recipe(output_dir: Path) -> dict[str, Any]:
    """A run of seconds."""
    return {
        "model": {
            "base_channels": 8,
            "channel_multipliers": [1, 2],
            "blocks_per_level": 1,
            "attention_rates": [2],
            "attention_head_width": 8,
            "norm_groups": 4,
            "label_width": 16,
            "image_size": 32,
        },
        "clip": {
            "tiny": {
                "image_size": 32,
                "patch_size": 8,
                "width": 32,
                "subjects": 3,
                "steps": 2,
                "batch_size": 8,
            }
        },
        "data": {"phantom": {"train_subjects": 2, "validation_subjects": 2, "size": 32, "slices": 3}},
        "training": {
            "output_dir": str(output_dir),
            "max_steps": 3,
            "batch_size": 2,
            "logging_steps": 1,
            "validation_steps": 3,
        },
    }


def write(path: Path, values: Any) -> Path:
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def changed(values: dict[str, Any], keys: str, value: Any) -> dict[str, Any]:
    """Set `a.b.c` in a recipe."""
    *parents, last = keys.split(".")
    target = values
    for key in parents:
        target = target.setdefault(key, {})
    target[last] = value
    return values


@pytest.fixture
def minimal(tmp_path: Path) -> dict[str, Any]:
    return {"data": {"phantom": {}}, "training": {"output_dir": str(tmp_path / "run")}}


# Reading


def test_what_is_left_out_has_the_defaults(tmp_path: Path, minimal: dict[str, Any]) -> None:
    recipe = load_recipe(write(tmp_path / "recipe.yaml", minimal))
    assert recipe.data.phantom is not None and recipe.data.phantom.train_subjects == 100
    assert recipe.training.learning_rate == 2e-4
    assert recipe.training.loss_weights.cycle == 10.0
    assert recipe.clip.tiny is None and "BiomedCLIP" in recipe.clip.source
    assert recipe.model == {}


def test_types(tmp_path: Path) -> None:
    text = """
model: {base_channels: 64, channel_multipliers: [1, 2], attention_rates: [2]}
data:
  files:
    - {path: a.nii.gz, domain: T1, subject: s1}
    - {path: b.nii.gz, domain: T2, subject: s2, split: validation}
training:
  output_dir: run
  learning_rate: 5e-4
  discriminator_learning_rate: 1
  adam_betas: [0, 0.9]
  loss_weights: {cycle: 5, clip: 0}
  mixed_precision: "no"
  horizontal_flip: yes
"""
    recipe = load_recipe(write(tmp_path / "recipe.yaml", text))
    training = recipe.training
    assert training.learning_rate == 5e-4 and isinstance(training.learning_rate, float)
    assert training.discriminator_learning_rate == 1.0
    assert isinstance(training.discriminator_learning_rate, float)
    assert training.adam_betas == (0.0, 0.9)
    assert (training.loss_weights.cycle, training.loss_weights.clip) == (5.0, 0.0)
    assert training.loss_weights.identity == 1.0
    assert training.horizontal_flip is True
    assert [(file.domain, file.split) for file in recipe.data.files] == [
        ("T1", "train"),
        ("T2", "validation"),
    ]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("trainig", {}, "recipe.yaml, line 3: unknown key 'trainig'; did you mean training[?]"),
        ("training.max_step", 3, r"training: unknown key 'max_step'; did you mean max_steps or"),
        ("training.loss_weights.cyle", 1, r"training.loss_weights: unknown key 'cyle'"),
        ("data.phantom.subjects", 1, r"data.phantom: unknown key 'subjects'"),
        ("clip.tiny.steeps", 1, r"clip.tiny: unknown key 'steeps'"),
        ("model.base_chanels", 8, "unknown key 'base_chanels'"),
        ("model.base_channels", "8", "'base_channels' expected int, got str"),
        ("model.norm_groups", 3, "norm_groups 3 does not divide"),
        ("training.max_steps", "many", r"training.max_steps: found 'many'; expected int"),
        ("training.max_steps", 1.5, r"training.max_steps: found 1.5; expected int"),
        ("training.max_steps", True, r"training.max_steps: found True; expected int"),
        ("training.max_steps", 0, "max_steps is 0"),
        ("training.learning_rate", "fast", r"training.learning_rate: found 'fast'; expected float"),
        ("training.learning_rate", True, r"training.learning_rate: found True; expected float"),
        ("training.mixed_precision", False, r"mixed_precision: found False; expected str in quotes"),
        ("training.adam_betas", [0.5, "b"], r"training.adam_betas\[1\]: found 'b'; expected float"),
        ("training.adam_betas", 0.5, r"training.adam_betas: found 0.5; expected tuple"),
        ("training.resume", 1, r"training.resume: found 1; expected bool"),
        ("training", ["a"], r"recipe.yaml, line 3: training: found \['a'\]; expected a mapping"),
        ("training", {}, r"recipe.yaml, line 3: training: key 'output_dir' is missing"),
        ("data.files", [{"path": "a.nii"}], r"data.files\[0\]: key 'domain', 'subject' is missing"),
        ("data.table", "somewhere", "data: found 2 sources; expected exactly one of phantom, files, table"),
        ("data.phantom", None, "data: found 0 sources"),
    ],
)
def test_faults(tmp_path: Path, minimal: dict[str, Any], keys: str, value: Any, message: str) -> None:
    path = write(tmp_path / "recipe.yaml", changed(minimal, keys, value))
    with pytest.raises(GalipError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found None; expected a mapping"),
        (b"- a\n- b\n", r"found \['a', 'b'\]; expected a mapping"),
        (b"data: [", "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read as a recipe .not text.|not valid YAML"),
        (b"data: !!python/object/apply:os.getcwd []", "line 1: not valid YAML .the tag 'python/object"),
        (b"data:\n  table: !!int x", "line 2: not valid YAML .'x' cannot be read as int"),
        (b"data: 1\ndata: 2", "line 2: not valid YAML .the key 'data' is there twice, first in line 1"),
        (b"data: {table: " + b"1" * 5000 + b"}", "line 1: not valid YAML .'111.*' cannot be read as int"),
        (b"clip:\n  " + b"{clip: " * 40, "line 2: not valid YAML .more than 32 levels"),
        (b"a: &a [x]\n" + b"b: [" + b"*a, " * 17 + b"]", "line 2: not valid YAML .more than 16 aliases"),
        (b"data: &a {table: *a}", "line 1: not valid YAML .an alias inside what it stands for"),
        (b'data: "\\UFFFFFFFF"', "line 1: not valid YAML .an escape"),
        (b"data: 1\n\x01: 2", "line 2: not valid YAML .the character"),
        (b"2: x", "line 1: not valid YAML .the key '2' is no text"),
        (b"data: {phantom: {}}\ntraining:\n  output_dir: x\n  max_steps: 2024-13-99", "line 4.*'2024-13-99'"),
        (
            b"data: {phantom: {}}\ntraining: {output_dir: x}\nmodel:\n norm_groups: 3",
            "line 4: model: .*groups 3",
        ),
        (
            b"data: {table: [" + b"xxxxxxxxxx, " * 900 + b"]}\ntraining: {output_dir: x}",
            "found a list of 900",
        ),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(GalipError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(GalipError, match="cannot be read as a recipe"):
            load_recipe(path)


def test_overrides(tmp_path: Path, minimal: dict[str, Any]) -> None:
    path = write(tmp_path / "recipe.yaml", minimal)
    overrides = [
        "training.max_steps=7",
        "training.learning_rate=1e-3",
        "training.loss_weights.clip=0",
        "model.base_channels=64",
        "training.output_dir=a=b",
        "training.resume=true",
    ]
    recipe = load_recipe(path, overrides)
    assert (recipe.training.max_steps, recipe.training.learning_rate) == (7, 1e-3)
    assert recipe.training.loss_weights.clip == 0
    assert recipe.model == {"base_channels": 64}
    assert recipe.training.output_dir == "a=b"
    assert recipe.training.resume is True


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_step=7", "unknown key 'max_step'"),
        ("training.max_steps", "expected key=value"),
        ("training.output_dir.x=1", "'output_dir' is not a mapping"),
        ("training.max_steps=[", "not valid YAML"),
        ("training.max_steps=many", "^override 'training.max_steps=many': .*found 'many'; expected int"),
        ("training.max_steps=0", "^override 'training.max_steps=0': training: max_steps is 0"),
    ],
)
def test_faulty_overrides(tmp_path: Path, minimal: dict[str, Any], override: str, message: str) -> None:
    path = write(tmp_path / "recipe.yaml", minimal)
    with pytest.raises(GalipError, match=message) as caught:
        load_recipe(path, [override])
    assert "\n" not in str(caught.value)


def test_shipped_recipes_are_readable() -> None:
    paths = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
    assert paths
    for path in paths:
        load_recipe(path)


# Data


def test_phantom_seeds_are_distinct() -> None:
    indices = (0, 1, 99_999)
    by_contrast = product(("train", "clip"), indices, (0, 1), phantom.CONTRASTS)
    seeds = [
        phantom_subject_seed(split, index, seed, contrast) for split, index, seed, contrast in by_contrast
    ]
    seeds += [
        phantom_subject_seed(split, index, seed)
        for split, index, seed in product(("validation", "test"), indices, (0, 1))
    ]
    assert len(set(seeds)) == len(seeds) == 48
    assert min(seeds) >= 0


# A run


def test_end_to_end(tmp_path: Path) -> None:
    path = write(tmp_path / "recipe.yaml", tiny_recipe(tmp_path / "run"))
    model: Any = run_recipe(load_recipe(path)).state.averaged_model
    table = load_table(tmp_path / "run" / "table")
    contrasts = {
        name: {
            s for s, d in zip(table["train"]["subject"], table["train"]["domain"], strict=True) if d == label
        }
        for label, name in enumerate(phantom.CONTRASTS)
    }
    assert all(len(subjects) == 2 for subjects in contrasts.values())
    assert len(set.union(*contrasts.values())) == 6  # unpaired: no subject in two contrasts
    validation = table["validation"]
    assert len(set(validation["subject"])) == 2
    assert len(validation) == 2 * 3 * 3  # subjects, contrasts, slices: paired
    entries = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 3]
    scores = entries[-1]["validation"]
    assert np.isfinite(scores["psnr"])
    # Paired subjects in all six directions: four figures and their means.
    assert len(scores) == 4 * (1 + 6) and "ssim PD->T1" in scores
    assert (tmp_path / "run" / "pictures" / "step-00000003.png").is_file()

    loaded = GalipForImageTranslation.from_pretrained(tmp_path / "run" / "model")
    assert loaded.config.prompts == [phantom.PROMPTS[contrast] for contrast in phantom.CONTRASTS]
    statistics = GalipImageProcessor.from_pretrained(tmp_path / "run" / "model").statistics
    assert sorted(statistics) == sorted(phantom.CONTRASTS)
    assert torch.equal(loaded.prompt_states, model.prompt_states)
    processor = GalipImageProcessor.from_pretrained(tmp_path / "run" / "model")
    volume = phantom.render(phantom.make_subject(5, size=32, slices=2), "T1")
    slices = np.asarray(processor.normalize_volume(volume, "T1").pixel_values)[:, 0]
    assert translate_slices(loaded, slices, "T2").shape == (2, 32, 32)

    # The data and the stand-in are made once; a run goes on from its checkpoint.
    made = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in ("table", "clip")}
    run_recipe(load_recipe(path, ["training.resume=true", "training.checkpoint_steps=0"]))
    assert {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in made} == made


def test_an_output_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = write(tmp_path / "recipe.yaml", tiny_recipe(tmp_path / "file" / "run"))
    with pytest.raises(GalipError, match=r"file/run: cannot be written \(.+\); choose another output_dir"):
        run_recipe(load_recipe(path))
