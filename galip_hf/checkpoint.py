"""Checkpoints of a training run: written beside and renamed, so that a whole one is always there."""

from pathlib import Path
from typing import Any

import torch

from .errors import GalipError
from .files import atomic_write

_STATE = "state.pt"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, plain values) to `directory`, replacing the old one once the new is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / _STATE) as temporary:
        torch.save(state, temporary)


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """Read a checkpoint without running code from it; None where there is none.

    Raises:
        GalipError: an unreadable checkpoint.
    """
    path = directory / _STATE
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a different type for each kind of damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GalipError(
            f"{path}: not readable as a checkpoint ({reason}); delete it to start anew"
        ) from None


__all__ = ["load_checkpoint", "save_checkpoint"]
