"""Whole runs with a recipe's options: one seed for all, streams, the best model, old heads kept."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_tables import publish
from safetensors.torch import load_file
from test_recipe import tiny_recipe, write

from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.training.add_domain import add_domain
from galip_hf.training.recipe import load_recipe
from galip_hf.training.run_recipe import run_recipe


def run(folder: Path, name: str, *, anew: bool = False, **training: Any) -> Path:
    """A tiny run in `folder/name`; its output folder. With the first run's CLIP model and table or `anew`."""
    values = tiny_recipe(folder / name)
    if not anew:
        values["clip"] = {"source": str(folder / "first" / "clip")}
        values["data"] = {"table": str(folder / "first" / "table")}
    values |= {key: training.pop(key) for key in ("data", "model") if key in training}
    values["training"] |= training
    run_recipe(load_recipe(write(folder / f"{name}.yaml", values)))
    return folder / name


def weights_hash(path: Path) -> str:
    return hashlib.sha256((path / "model" / "model.safetensors").read_bytes()).hexdigest()


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(folder: Path) -> Path:
    """With everything that draws at random."""
    return run(folder, "first", anew=True, **DRAWING)


LOSSES = ("adversarial", "clip", "class_token", "cycle", "identity")
DRAWING = {
    "horizontal_flip": True,
    "augmentation": {"rotation": 5, "translation": 0.05, "scale": 0.05, "intensity": 0.1},
    "checkpoint_steps": 3,
    "metric_for_best": "psnr",
}


def test_a_seed_settles_everything(folder: Path, first: Path) -> None:
    torch.manual_seed(999)  # whatever the program around it did
    np.random.seed(999)
    again = run(folder, "again", anew=True, **DRAWING, num_workers=2)
    assert weights_hash(again) == weights_hash(first)
    assert [e.get("losses") for e in entries(again)] == [e.get("losses") for e in entries(first)]
    assert [e.get("validation") for e in entries(again)] == [e.get("validation") for e in entries(first)]
    other = run(folder, "other", **DRAWING, seed=1)
    assert weights_hash(other) != weights_hash(first)


def test_each_entry_tells_what_a_watcher_asks(first: Path) -> None:
    entry = entries(first)[0]
    assert set(entry["losses"]) == {
        "adversarial",
        "clip",
        "class_token",
        "cycle",
        "identity",
        "discriminator",
    }
    assert set(entry["discriminator_outputs"]) == {"real", "fake"}
    assert set(entry["gradient_norms"]) == set(entry["learning_rates"]) == {"generator", "discriminator"}
    assert all(value > 0 for value in entry["gradient_norms"].values())
    assert entry["images_per_second"] > 0 and 0 <= entry["data_wait_share"] <= 1
    assert entry["peak_memory_bytes"] > 50e6


def test_the_best_model_is_kept_and_loads(first: Path) -> None:
    best = GalipForImageTranslation.from_pretrained(first / "best")
    assert best(torch.rand(1, 1, 32, 32), "T2").translation.shape == (1, 1, 32, 32)
    assert GalipImageProcessor.from_pretrained(first / "best").intensity_rules
    (checkpoint,) = (first / "checkpoints").iterdir()
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["best"]
    assert (state["metric"], state["step"]) == ("psnr", 3)
    assert state["value"] == entries(first)[-1]["validation"]["psnr"]


def test_patience_stops_a_run(folder: Path, first: Path) -> None:
    # Without learning, no validation is better than the first.
    run_ = run(
        folder, "patient", learning_rate=1e-30, ema_decay=0.0, max_steps=9, validation_steps=1,
        logging_steps=1, metric_for_best="psnr", early_stopping_patience=2,
    )  # fmt: skip
    steps = [entry["step"] for entry in entries(run_) if "validation" in entry]
    assert steps[-1] < 9 and len(steps) >= 3


def test_a_stream_trains_and_resumes_to_the_same_weights(folder: Path, first: Path) -> None:
    tables = load_table(first / "table")
    source = publish(tables["train"].shuffle(seed=0), folder / "hub", files=2)
    publish(tables["validation"], folder / "hub", split="validation", files=1)
    data = {"streaming": {"source": source, "items": 8, "buffer_size": 9}}
    options = {"data": data, "logging_steps": 1, "checkpoint_steps": 5}
    whole = run(folder, "stream", max_steps=6, constant_fraction=1.0, **options)
    assert np.isfinite(entries(whole)[-1]["validation"]["psnr"])
    run(folder, "cut", max_steps=5, constant_fraction=1.0, **options)  # epochs are four steps: in the second
    cut = run(folder, "cut", max_steps=6, constant_fraction=1.0, resume=True, **options)
    assert weights_hash(cut) == weights_hash(whole)


def test_a_stream_has_no_registered_pairs(folder: Path, first: Path) -> None:
    source = publish(load_table(first / "table")["train"], folder / "hub2", files=1)
    data = {"streaming": {"source": source, "items": 8}}
    with pytest.raises(GalipError, match="a stream has no registered pairs"):
        run(folder, "no_pairs", data=data, loss_weights={"paired": 1.0}, validation_steps=0)


def test_registered_pairs_are_trained_on(folder: Path, first: Path) -> None:
    """The validation subjects, which show all contrasts, as a training table."""
    import datasets

    table = load_table(first / "table")["validation"]
    datasets.DatasetDict(train=table).save_to_disk(str(folder / "paired_table"))
    paired = run(
        folder, "paired", data={"table": str(folder / "paired_table")}, validation_steps=0,
        loss_weights={"paired": 5.0}, paired_share=1.0,
    )  # fmt: skip
    assert all(0 < entry["losses"]["paired"] < 2 for entry in entries(paired))
    with pytest.raises(GalipError, match="no subject of the train split has one slice in two of"):
        run(folder, "unpaired", loss_weights={"paired": 5.0})


def test_training_on_from_a_grown_model_keeps_the_old_heads(folder: Path, first: Path) -> None:
    old = GalipForImageTranslation.from_pretrained(first / "model")
    rule = old.config.domains[0]["intensity"]
    domain = {"name": "NEW", "prompt": old.config.prompts[0], "modality": "MR", "intensity": rule}
    backbone = ClipBackbone.from_pretrained(first / "clip")
    add_domain(old, domain, backbone).save_pretrained(folder / "grown")

    table = load_table(first / "table")["train"]
    names = [*old.config.domain_names, "NEW"]
    slices = table.with_format("numpy")["pixel_values"][:].astype(np.float32)
    volumes = [
        SubjectVolume(slices[row][None], name, f"{name}-{row}", "train")
        for number, name in enumerate(names)
        for row in range(number * 2, number * 2 + 2)
    ]
    write_table(volumes, folder / "grown_table", domains=names, image_size=None)
    (checkpoint,) = (first / "checkpoints").iterdir()
    options: dict[str, Any] = {
        "data": {"table": str(folder / "grown_table")}, "model": {}, "validation_steps": 0, "max_steps": 1,
        "initial_model": str(folder / "grown"), "checkpoint_steps": 1,
        # So small that the heads are seen as they were loaded.
        "learning_rate": 1e-12, "discriminator_learning_rate": 1e-12,
    }  # fmt: skip
    trained = run(folder, "grown_run", initial_heads=str(checkpoint), **options)
    assert GalipForImageTranslation.from_pretrained(trained / "model").config.domain_names == names
    heads = [
        load_file(path / "discriminator.safetensors")
        for path in (checkpoint, *(trained / "checkpoints").iterdir())
    ]
    for key, value in heads[0].items():
        if key.endswith("weight"):
            torch.testing.assert_close(heads[1][key], value, rtol=0, atol=1e-6)
    assert {key.split(".")[1] for key in heads[1]} == {"0", "1", "2", "3"}
    # Weights do not depend on the size of the slices: this one, and this one alone, may change.
    anew = run(folder, "new_heads", **{**options, "model": {"image_size": 64}})
    assert GalipForImageTranslation.from_pretrained(anew / "model").config.image_size == 64
    (new,) = (anew / "checkpoints").iterdir()
    fresh = load_file(new / "discriminator.safetensors")
    assert any(not torch.allclose(fresh[key], value, atol=1e-3) for key, value in heads[0].items())
    with pytest.raises(GalipError, match=r"model.label_width is 7, that of .* is \d+; leave `model` out"):
        run(folder, "disagreeing", **{**options, "model": {"label_width": 7}})
