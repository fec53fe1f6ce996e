"""The model of a checkpoint, for scoring a run along its way."""

from pathlib import Path

import torch

from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from ..model.unet import GalipGenerator
from .checkpoint_files import load_state, load_tensors


def checkpoint_directory(run: str | Path, step: int) -> Path:
    """The folder of a run's checkpoint.

    Args:
        run: `output_dir` of the training.
        step: of the checkpoint.

    Raises:
        GalipError: there is none; the message names those that are there.
    """
    checkpoints = Path(run) / "checkpoints"
    path = checkpoints / f"step-{step:08d}"
    if path.is_dir():
        return path
    steps = sorted(
        int(name) for found in checkpoints.glob("step-*") if (name := found.name[len("step-") :]).isdecimal()
    )
    there = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
    raise GalipError(f"{run}: no checkpoint of step {step}; {there} (in {checkpoints})")


def load_checkpoint_generator(run: str | Path, step: int) -> GalipGenerator:
    """The moving average of a checkpoint, in evaluation mode: the model as the run would have saved it.

    Raises:
        GalipError: there is no such checkpoint, or it is damaged.
    """
    path = checkpoint_directory(run, step)
    config = GalipConfig.from_dict(load_state(path)["model"])
    config.name_or_path = str(path)
    weights = load_tensors(path, "ema")
    with torch.random.fork_rng(devices=[]):  # the layers draw initial weights, which are replaced
        generator = GalipGenerator(config)
    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise GalipError(f"{path}: its weights do not fit its configuration ({reason})") from None
    return generator.eval()


__all__ = ["checkpoint_directory", "load_checkpoint_generator"]
