"""A run's checkpoint: its writing, and which runs may go on from it."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object

from ..model.errors import GalipError
from .checkpoint_files import (
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
    # What each process has seen since the last log entry is its own.
    own_states = gather_object([{"guard": state.guard.state_dict(), "record": state.record.state_dict()}])

    def write() -> None:
        tensors = {
            "generator": state.generator.state_dict(),
            "discriminator": state.discriminator.state_dict(),
            "ema": state.ema.module.state_dict(),
            "generator_optimizer": optimizer_tensors(state.generator_optimizer),
            "discriminator_optimizer": optimizer_tensors(state.discriminator_optimizer),
        }
        values = {
            "model": state.generator.config.own_values(),
            "arguments": run.arguments.to_dict(),
            "processes": processes.size,
            "data": run.data,
            "clip": run.clip,
            "ema_updates": state.ema.updates,
            "scaler": state.scaler.state_dict(),
            "of_processes": own_states,
            "best": state.best.state_dict() if state.best else {},
        }
        save_checkpoint(directory, state.step, tensors, values, run.arguments.total_limit)

    processes.on_main(write)


def load_run(state: TrainingState, run: RunIdentity, processes: ProcessGroup, path: Path) -> None:
    """Go on from a checkpoint: `state` is then what it was when the checkpoint was written.

    Raises:
        GalipError: the checkpoint is of another model, CLIP model, data, number of processes or order of the
            data (the message names the key), or is damaged.
    """
    saved = load_state(path)
    refuse_differences(path, saved["model"], state.generator.config.own_values(), "model")
    of_checkpoint, of_run = (
        {**{name: arguments.get(name) for name in _BOUND_ARGUMENTS}, "processes": size, "data": data}
        for arguments, size, data in (
            (saved["arguments"], saved["processes"], saved["data"]),
            (run.arguments.to_dict(), processes.size, run.data),
        )
    )
    refuse_differences(path, of_checkpoint, of_run, "training")
    weights = load_tensors(path, "generator")
    # The prompts were encoded again for this run: another machine may round them differently.
    if not torch.allclose(weights["prompt_states"], state.generator.prompt_states.cpu(), atol=1e-3):
        raise GalipError(
            f"{path}: was made with the CLIP model {saved['clip']}, to which the prompts mean something "
            f"else than to this run's {run.clip}; set it back, or choose another output_dir"
        )
    state.generator.load_state_dict(weights)
    state.discriminator.load_state_dict(load_tensors(path, "discriminator"))
    state.ema.module.load_state_dict(load_tensors(path, "ema"))
    load_optimizer_tensors(state.generator_optimizer, load_tensors(path, "generator_optimizer"))
    load_optimizer_tensors(state.discriminator_optimizer, load_tensors(path, "discriminator_optimizer"))
    state.step, state.ema.updates = saved["step"], saved["ema_updates"]
    if state.scaler.is_enabled() and saved["scaler"]:
        state.scaler.load_state_dict(saved["scaler"])
    own_state = saved["of_processes"][processes.state.process_index]
    state.guard.load_state_dict(own_state["guard"])
    state.record.load_state_dict(own_state["record"], processes.state.device)
    if state.best and saved["best"]:
        state.best.load_state_dict(saved["best"])
    logger.info("resuming at step %d from %s", state.step, path)


__all__ = ["RunIdentity", "load_run", "save_run"]
