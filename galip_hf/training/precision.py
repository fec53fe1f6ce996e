"""Number formats of a run, and deterministic algorithms."""

import dataclasses
import os

import torch

from ..model.errors import GalipError
from .training_args import PRECISIONS, GalipTrainingArguments

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def with_launcher_precision(arguments: GalipTrainingArguments) -> GalipTrainingArguments:
    """The arguments with `mixed_precision` settled: as stated, else as launched, else `no`.

    `accelerate launch --mixed_precision` reaches a process as ACCELERATE_MIXED_PRECISION. The launcher always
    sets it, to `no` when the option is not given: so `no` there contradicts nothing.

    Raises:
        GalipError: the launcher's precision is not that of the arguments, or is unknown here (`fp8`).
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() or "no"
    if launched not in PRECISIONS:
        raise GalipError(
            f"the launcher was given mixed_precision {launched}; expected one of {', '.join(PRECISIONS)}"
        )
    stated = arguments.mixed_precision
    if stated is not None and launched not in ("no", stated):
        raise GalipError(
            f"training.mixed_precision is {stated}, but the launcher was given {launched}; leave one of them "
            "out, or state the same in both"
        )
    return dataclasses.replace(arguments, mixed_precision=stated or launched)


def autocast(device: torch.device, mixed_precision: str | None) -> torch.autocast:
    """The context of a forward pass in `mixed_precision`; it does nothing for `no` and None."""
    dtype = _TYPES.get(mixed_precision or "no")
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def use_deterministic_algorithms() -> None:
    """Make torch prefer deterministic algorithms in this process from now on.

    An operation that has none gives a warning and runs as usual. cuBLAS reads its workspace setting when it
    first runs in the process, so call this before anything runs on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    # Of attention's implementations on CUDA, the plain one alone has a backward pass that is deterministic
    # where torch only warns.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.use_deterministic_algorithms(True, warn_only=True)


__all__ = ["autocast", "use_deterministic_algorithms", "with_launcher_precision"]
