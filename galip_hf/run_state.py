"""What a checkpoint of a run holds, and which runs may go on from it.

Nothing in a run draws from a global generator of random numbers: data, augmentation and initial weights are
functions of (seed, epoch, index). So there is no state of generators to keep.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from .checkpoint import (
    load_optimizer_tensors,
    load_state,
    load_tensors,
    optimizer_tensors,
    refuse_differences,
    save_checkpoint,
)
from .errors import GalipError

if TYPE_CHECKING:
    from .trainer import GalipTrainer

logger = logging.getLogger(__name__)

# What settles the order and content of the batches: a checkpoint made with others cannot be gone on with.
_BOUND_ARGUMENTS = (
    "seed",
    "batch_size",
    "gradient_accumulation_steps",
    "horizontal_flip",
    "augmentation",
    "paired_share",
)


def save_run(trainer: "GalipTrainer", directory: Path) -> None:
    """Write a checkpoint of all that is needed to go on, of all processes.

    Raises:
        GalipError: it cannot be written; on all processes.
    """
    # What each process has seen since the last log entry is its own.
    own_states = gather_object([{"guard": trainer.guard.state_dict(), "record": trainer.record.state_dict()}])

    def write() -> None:
        tensors = {
            "generator": trainer.generator.state_dict(),
            "discriminator": trainer.discriminator.state_dict(),
            "ema": trainer.ema.module.state_dict(),
            "generator_optimizer": optimizer_tensors(trainer.generator_optimizer),
            "discriminator_optimizer": optimizer_tensors(trainer.discriminator_optimizer),
        }
        state = {
            "model": trainer.generator.config.own_values(),
            "arguments": trainer.arguments.to_dict(),
            "processes": trainer.processes.size,
            "data": trainer.loader.fingerprint,
            "clip": trainer.backbone.source,
            "ema_updates": trainer.ema.updates,
            "scaler": trainer.scaler.state_dict(),
            "of_processes": own_states,
            "best": trainer.best.state_dict() if trainer.best else {},
        }
        save_checkpoint(directory, trainer.step, tensors, state, trainer.arguments.total_limit)

    trainer.processes.on_main(write)


def load_run(trainer: "GalipTrainer", path: Path) -> None:
    """Go on from a checkpoint: the trainer is then as that which wrote it.

    Raises:
        GalipError: it is of another model, CLIP model, data, number of processes or order of the data (the
            key is named), or is damaged.
    """
    state = load_state(path)
    refuse_differences(path, state["model"], trainer.generator.config.own_values(), "model")
    saved, own = (
        {**{name: arguments.get(name) for name in _BOUND_ARGUMENTS}, "processes": processes, "data": data}
        for arguments, processes, data in (
            (state["arguments"], state["processes"], state["data"]),
            (trainer.arguments.to_dict(), trainer.processes.size, trainer.loader.fingerprint),
        )
    )
    refuse_differences(path, saved, own, "training")
    weights = load_tensors(path, "generator")
    # Encoded anew for this run: another machine may round them differently.
    if not torch.allclose(weights["prompt_states"], trainer.generator.prompt_states.cpu(), atol=1e-3):
        raise GalipError(
            f"{path}: was made with the CLIP model {state['clip']}, to which the prompts mean something "
            f"else than to this run's {trainer.backbone.source}; set it back, or choose another output_dir"
        )
    trainer.generator.load_state_dict(weights)
    trainer.discriminator.load_state_dict(load_tensors(path, "discriminator"))
    trainer.ema.module.load_state_dict(load_tensors(path, "ema"))
    load_optimizer_tensors(trainer.generator_optimizer, load_tensors(path, "generator_optimizer"))
    load_optimizer_tensors(trainer.discriminator_optimizer, load_tensors(path, "discriminator_optimizer"))
    trainer.step, trainer.ema.updates = state["step"], state["ema_updates"]
    if trainer.scaler.is_enabled() and state["scaler"]:
        trainer.scaler.load_state_dict(state["scaler"])
    own_state = state["of_processes"][trainer.processes.state.process_index]
    trainer.guard.load_state_dict(own_state["guard"])
    trainer.record.load_state_dict(own_state["record"], trainer.processes.state.device)
    if trainer.best and state["best"]:
        trainer.best.load_state_dict(state["best"])
    logger.info("resuming at step %d from %s", trainer.step, path)


__all__ = ["load_run", "save_run"]
