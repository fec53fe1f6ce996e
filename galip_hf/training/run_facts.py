"""What `training.json`, beside the weights of a run, says of it: the facts for the model's card.

They come from the run itself (log, arguments, data), and are the same whenever the model is saved at the same
step. The file is pushed with the model, so paths are cut to their last name, and trackers and Hub settings
are left out.
"""

import json
import math
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..hub.model_directory import TRAINING
from ..prepare.splits import split_hash_of_table
from ..version import __version__
from .distributed import ProcessGroup
from .recipe import Recipe
from .training_args import GalipTrainingArguments

if TYPE_CHECKING:
    import datasets

_NOT_TOLD = (
    "output_dir",
    "project",
    "report_to",
    "resume",
    "process_timeout_minutes",
    "initial_heads",
    "hub_repo_id",
    "hub_private",
)


_CLIP_SLICES = {"phantom": "phantom slices", "table": "training slices"}


def write_training_facts(
    directory: Path,
    step: int,
    arguments: GalipTrainingArguments,
    processes: ProcessGroup,
    facts: Mapping[str, Any],
) -> None:
    """Write `training.json` of a run up to `step`; what is not known is not in it.

    Args:
        directory: of the saved model.
        step: optimiser steps done.
        arguments, processes: of the run.
        facts: of the data and the CLIP model, as `recipe_facts` gives them.
    """
    settings = told_settings(arguments)
    device = processes.state.device
    log = _read_log(arguments.output_path / "log.jsonl", step)
    values = {
        "step": step,
        "images": step * arguments.images_per_step(processes.size),
        **_figures(log, arguments.logging_steps),
        "processes": processes.size,
        "hardware": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU ({platform.machine()}), threads: {torch.get_num_threads()}",
        "versions": {
            "galip_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        **facts,
        "settings": settings,
    }
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (directory / TRAINING).write_text(text + "\n", encoding="utf-8")


def told_settings(arguments: GalipTrainingArguments) -> dict[str, Any]:
    """The settings of a run as others may read them: without folders of this machine."""
    settings = {key: value for key, value in arguments.to_dict().items() if key not in _NOT_TOLD}
    return {**settings, "initial_model": hub_name(settings["initial_model"])}


def _read_log(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if entry["step"] <= step]


def _figures(log: list[dict[str, Any]], logging_steps: int) -> dict[str, Any]:
    """Hours, losses and the last validation, of the entries of log.jsonl."""
    figures: dict[str, Any] = {}
    logged = [entry for entry in log if "losses" in entry]
    if logged:
        steps = [0, *(entry["step"] for entry in logged)]
        seconds = sum(
            entry["seconds_per_step"] * (step - before)
            for entry, before, step in zip(logged, steps, steps[1:], strict=False)
        )
        figures["hours"] = round(seconds / 3600, 4)  # of the steps: without validation and saving
        figures["losses"] = {
            "mean_of_steps": logging_steps,
            "first": logged[0]["losses"],
            "last": logged[-1]["losses"],
        }
    validated = [entry for entry in log if "validation" in entry]
    if validated:
        last = {name: value for name, value in validated[-1]["validation"].items() if math.isfinite(value)}
        figures["validation"] = {"step": validated[-1]["step"], **last}
    return figures


def recipe_facts(recipe: Recipe, table: "datasets.DatasetDict | None") -> dict[str, Any]:
    """Facts about the data and the CLIP model, from a recipe and its table."""
    facts: dict[str, Any] = {"data": _data_facts(recipe)}
    if recipe.clip.tiny:
        facts["clip"] = (
            f"a tiny stand-in for BiomedCLIP, trained for {recipe.clip.tiny.steps} steps on captioned "
            f"{_CLIP_SLICES[recipe.clip.tiny.images]}; it knows no medicine"
        )
    else:
        facts["clip"] = hub_name(recipe.clip.source)
    if table is not None:
        subjects, slices = count_rows(table["train"])
        digest, kind = split_hash_of_table(
            recipe.data.table or recipe.training.output_path / "table", set(table["train"]["subject"])
        )
        facts["data"] |= {
            "subjects": subjects,
            "slices": slices,
            "split_sha256": digest,
            "split_sha256_of": kind,
        }
    return facts


def _data_facts(recipe: Recipe) -> dict[str, Any]:
    data = recipe.data
    if data.phantom:
        return {"description": "procedural brain phantom (galip_hf.data.phantom)"}
    if data.table:
        return {"description": f"table of slices {Path(data.table).resolve().name}"}
    if data.streaming:
        name = hub_name(data.streaming.source)
        at = f" at {data.streaming.revision}" if data.streaming.revision else ""
        facts: dict[str, Any] = {"description": f"{name}{at}, streamed"}
        return facts | ({"datasets": [name]} if name == data.streaming.source else {})
    return {"description": f"{len(data.files)} volumes named in the recipe"}


def count_rows(split: "datasets.Dataset") -> tuple[dict[str, int], dict[str, int]]:
    """Subjects and slices of each domain that a split of a table holds, in the table's order of domains."""
    names = split.features["domain"].names
    labels = split["domain"][:]
    subjects = Counter(label for label, _ in set(zip(labels, split["subject"][:], strict=True)))
    slices = Counter(labels)
    present = [label for label in range(len(names)) if slices[label]]
    return {names[label]: subjects[label] for label in present}, {
        names[label]: slices[label] for label in present
    }


def hub_name(source: str | None) -> str | None:
    """`source` as it is if it names a repository of the Hub, else a path's last name."""
    if source is None or source.startswith("hf-hub:"):
        return source
    is_local = Path(source).exists() or source.count("/") != 1 or source.startswith((".", "/", "~"))
    return f"local directory {Path(source).resolve().name}" if is_local else source


__all__ = ["count_rows", "hub_name", "recipe_facts", "told_settings", "write_training_facts"]
