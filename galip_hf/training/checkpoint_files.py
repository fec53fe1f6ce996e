"""Checkpoints of a training run: `checkpoints/step-00001000/`, each whole or not there at all.

A checkpoint is a folder of safetensors files (weights and the optimisers' moments) and `state.json` (all
else): nothing in it can run code. It is written beside its place, flushed to the disk and renamed; older ones
are removed afterwards.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import atomic_write, told_if_unwritable
from ..model.errors import GalipError
from ..version import __version__

_STATE = "state.json"
_PREFIX = "step-"

Tensors = Mapping[str, Tensor]


def save_checkpoint(
    directory: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], total_limit: int = 1
) -> Path:
    """Write a checkpoint, unless that of the step is there; then remove the oldest beyond `total_limit`.

    Args:
        directory: of all checkpoints of the run.
        step: number of steps done.
        tensors: by file name, without suffix.
        state: plain values.
        total_limit: checkpoints to keep, this one included.

    Raises:
        GalipError: it cannot be written (a full disk, say); the earlier ones are as they were.
    """
    path = directory / f"{_PREFIX}{step:08d}"
    if path.exists():
        return path  # a signal just after it was saved; to replace it would leave a moment without it
    with told_if_unwritable(path, "the earlier ones are whole. Make room, then set resume=true"):
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.mkdir()
            for name, values in tensors.items():
                save_file({key: value.contiguous() for key, value in values.items()}, _file(temporary, name))
            text = json.dumps({"step": step, "galip_hf": __version__, **state}, indent=1)
            (temporary / _STATE).write_text(text, encoding="utf-8")
            for file in [*temporary.iterdir(), temporary]:
                _flush(file)
        _flush(directory)
    for old in _steps(directory)[:-total_limit]:
        # Renamed first: half removed, it must not be taken for a checkpoint.
        leaving = directory / f".{_PREFIX}{old:08d}.old"
        os.replace(directory / f"{_PREFIX}{old:08d}", leaving)
        shutil.rmtree(leaving)
    return path


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint of the highest step; None where there is none. What a killed save left is removed."""
    for left in directory.glob(f".{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    steps = _steps(directory)
    return directory / f"{_PREFIX}{steps[-1]:08d}" if steps else None


def load_state(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint.

    Raises:
        GalipError: they cannot be read.
    """
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        return {**state, "step": int(state["step"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path / _STATE, error) from None


def load_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """One file of tensors of a checkpoint, on the host.

    Raises:
        GalipError: it cannot be read.
    """
    file = _file(path, name)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and step counts of an optimiser; a parameter that was never moved has none."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """The way back from `optimizer_tensors`; hyper-parameters are the optimiser's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def refuse_differences(path: Path, saved: Mapping[str, Any], present: Mapping[str, Any], what: str) -> None:
    """Raise a GalipError that names the first key whose value is not that of the checkpoint."""
    for key in sorted(set(saved) | set(present)):
        if saved.get(key) != present.get(key):
            raise GalipError(
                f"{path}: was made with {what} {key}={saved.get(key)!r}, this run has {present.get(key)!r}; "
                "set it back, or choose another output_dir to start anew"
            )


def _steps(directory: Path) -> list[int]:
    numbers = [path.name.removeprefix(_PREFIX) for path in directory.glob(f"{_PREFIX}*")]
    return sorted(int(number) for number in numbers if number.isdecimal())


def _file(path: Path, name: str) -> Path:
    return path / f"{name}.safetensors"


def _flush(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(file: Path, error: Exception) -> GalipError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return GalipError(
        f"{file}: not readable as a checkpoint ({reason}); delete {file.parent} to go on from an earlier one"
    )


__all__ = [
    "latest_checkpoint",
    "load_optimizer_tensors",
    "load_state",
    "load_tensors",
    "optimizer_tensors",
    "refuse_differences",
    "save_checkpoint",
]
