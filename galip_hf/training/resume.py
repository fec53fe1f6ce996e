"""A run's checkpoint: how it is written, and how a run goes on from it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..model.errors import GalipError
from .agreement import same_to_rounding
from .checkpoint_files import (
    latest_checkpoint,
    load_optimizer_tensors,
    load_state,
    load_tensors,
    optimizer_tensors,
    refuse_differences,
    save_checkpoint,
)
from .distributed import ProcessGroup
from .state import TrainingState
from .training_args import GalipTrainingArguments

logger = logging.getLogger(__name__)

# Settings that determine the order and content of the batches: they must be those of the checkpoint.
_BOUND_ARGUMENTS = (
    "seed",
    "batch_size",
    "gradient_accumulation_steps",
    "horizontal_flip",
    "augmentation",
    "paired_share",
)


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint is compared with before a run goes on from it.

    Attributes:
        arguments: of the run.
        data: fingerprint of the training items.
        clip: where the CLIP model came from.
    """

    arguments: GalipTrainingArguments
    data: str
    clip: str


def save_run(state: TrainingState, run: RunIdentity, processes: ProcessGroup, directory: Path) -> None:
    """Write a checkpoint of all that is needed to go on, of all processes.

    Raises:
        GalipError: it cannot be written; on all processes.
    """
    # Counters since the last log entry differ between processes.
    own_states = processes.gathered(
        [{"guard": state.guard.state_dict(), "record": state.record.state_dict()}]
    )

    def write() -> None:
        tensors = {
            "generator": state.generator.state_dict(),
            "discriminator": state.discriminator.state_dict(),
            "ema": state.ema.module.state_dict(),
            "generator_optimizer": optimizer_tensors(state.generator_optimizer),
            "discriminator_optimizer": optimizer_tensors(state.discriminator_optimizer),
        }
        if state.patch_discriminator is not None and state.patch_optimizer is not None:
            tensors["patch_discriminator"] = state.patch_discriminator.state_dict()
            tensors["patch_optimizer"] = optimizer_tensors(state.patch_optimizer)
        values = {
            "model": state.generator.config.own_values(),
            "arguments": run.arguments.to_dict(),
            "processes": processes.size,
            "data": run.data,
            "clip": run.clip,
            "ema_updates": state.ema.updates,
            "seconds": state.seconds,
            "scaler": state.scaler.state_dict(),
            "of_processes": own_states,
            "best": state.best.state_dict() if state.best else {},
        }
        save_checkpoint(directory, state.step, tensors, values, run.arguments.total_limit)

    processes.on_main(write)


def resume_run(state: TrainingState, run: RunIdentity, processes: ProcessGroup, directory: Path) -> None:
    """Go on from the latest checkpoint in `directory`: `state` is then what it was when that was written.

    Only the first process reads its disk, and sends what it finds to the others: so all go on from one and
    the same checkpoint, on nodes without a shared disk too. Without a checkpoint nothing changes.

    Raises:
        GalipError: on all processes. The checkpoint is of another model, CLIP model, data, number of
            processes or order of the data (the message names the key), or is damaged.
    """

    def find() -> tuple[Path, dict[str, Any]] | None:
        path = latest_checkpoint(directory)
        if path is None:
            return None
        saved = load_state(path)
        _refuse_another_run(path, saved, state, run, processes)
        return path, saved

    found = processes.on_main(find)
    if found is None:
        return
    path, saved = found

    def tensors(name: str) -> dict[str, Tensor]:
        return processes.tensors_of_main(lambda: load_tensors(path, name))

    weights = tensors("generator")
    # The prompts were encoded again for this run: another machine may round them differently.
    if not same_to_rounding(weights["prompt_states"], state.generator.prompt_states.cpu()):
        raise GalipError(
            f"{path}: was made with the CLIP model {saved['clip']}, which encodes the prompts differently "
            f"from this run's {run.clip}; set it back, or choose another output_dir"
        )
    state.generator.load_state_dict(weights)
    state.discriminator.load_state_dict(tensors("discriminator"))
    state.ema.module.load_state_dict(tensors("ema"))
    load_optimizer_tensors(state.generator_optimizer, tensors("generator_optimizer"))
    load_optimizer_tensors(state.discriminator_optimizer, tensors("discriminator_optimizer"))
    if state.patch_discriminator is not None and state.patch_optimizer is not None:
        state.patch_discriminator.load_state_dict(tensors("patch_discriminator"))
        load_optimizer_tensors(state.patch_optimizer, tensors("patch_optimizer"))
    _load_counters(state, saved, processes)
    if processes.state.is_main_process:
        logger.info("resuming at step %d from %s", state.step, path)


def _refuse_another_run(
    path: Path, saved: Mapping[str, Any], state: TrainingState, run: RunIdentity, processes: ProcessGroup
) -> None:
    """Raise a GalipError where a checkpoint's plain values are not those of this run."""
    refuse_differences(path, saved["model"], state.generator.config.own_values(), "model")
    of_checkpoint, of_run = (
        {**{name: arguments.get(name) for name in _BOUND_ARGUMENTS}, "processes": size, "data": data}
        for arguments, size, data in (
            (saved["arguments"], saved["processes"], saved["data"]),
            (run.arguments.to_dict(), processes.size, run.data),
        )
    )
    refuse_differences(path, of_checkpoint, of_run, "training")
    if state.patch_discriminator is not None and not saved["arguments"]["loss_weights"].get("patch"):
        raise GalipError(
            f"{path}: has no patch discriminator; set loss_weights.patch to 0, or choose another output_dir "
            "to start anew"
        )


def _load_counters(state: TrainingState, saved: Mapping[str, Any], processes: ProcessGroup) -> None:
    """Take all that is not a tensor from a checkpoint's plain values."""
    state.step, state.ema.updates = saved["step"], saved["ema_updates"]
    state.seconds = saved.get("seconds", 0.0)
    if state.scaler.is_enabled() and saved["scaler"]:
        state.scaler.load_state_dict(saved["scaler"])
    own_state = saved["of_processes"][processes.state.process_index]
    state.guard.load_state_dict(own_state["guard"])
    state.record.load_state_dict(own_state["record"], processes.state.device)
    if state.best and saved["best"]:
        state.best.load_state_dict(saved["best"])


__all__ = ["RunIdentity", "resume_run", "save_run"]
