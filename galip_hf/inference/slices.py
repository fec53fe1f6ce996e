"""Slices of a volume through the generator, in batches, to one target or several at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch

from ..foreground import above_air
from ..model.errors import GalipError

CROP_MULTIPLE = 32  # the coarsest rate of the default model
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class SliceTranslator(Protocol):
    """What slices pass through: a `GalipGenerator`, or its exported graph (`inference.runtimes`)."""

    @property
    def device(self) -> torch.device:
        """Where images go in and come out."""
        ...

    def prepare_target(self, target_domain: str) -> Any:
        """A target in the form that `translate` takes."""
        ...

    def translate(self, pixel_values: torch.Tensor, targets: Sequence[Any]) -> list[torch.Tensor]:
        """Images (B, 1, H, W) in model space to each of `targets`."""
        ...


def translate_to_targets(
    model: SliceTranslator,
    slices: np.ndarray,
    targets: Sequence[Any],
    *,
    batch_size: int = 4,
    precision: str = "fp32",
    advance: Callable[[int], object] = lambda count: None,
) -> list[np.ndarray]:
    """Translate a volume to several targets, with the work that they share done once.

    Empty slices do not pass through the model: they stay air, which is 0 in model space, the lower end of the
    target's window.

    Args:
        slices: (S, H, W) float32 in model space.
        targets: from `model.prepare_target`.
        batch_size: slices translated at once.
        precision: `fp32`, or `bf16` or `fp16` under autocast.
        advance: called with the number of slices done since the last call.

    Returns:
        A (S, H, W) float32 array in model space for each target.
    """
    translated = [np.zeros(slices.shape, np.float32) for _ in targets]
    empty = ~np.any(above_air(slices), axis=(1, 2))
    advance(int(empty.sum()))
    rows = np.flatnonzero(~empty)
    for chosen, outputs in _batches(model, slices, rows, targets, batch_size, precision):
        for whole, output in zip(translated, outputs, strict=True):
            whole[chosen] = output
        advance(len(chosen))
    return translated


def _batches(
    model: SliceTranslator,
    slices: np.ndarray,
    rows: np.ndarray,
    targets: Sequence[Any],
    batch_size: int,
    precision: str,
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """The next of `rows`, and those slices in each target, (B, H, W) float32."""
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        pixel_values = torch.from_numpy(np.ascontiguousarray(slices[chosen], dtype=np.float32))[:, None]
        with torch.inference_mode(), _autocast(model.device, precision):
            outputs = model.translate(pixel_values.to(model.device), targets)
        yield chosen, [output[:, 0].float().cpu().numpy() for output in outputs]


def precision_in_words(device: torch.device, precision: str) -> str:
    """The arithmetic that `precision` really means on a device, for reports: TF32 is not float32."""
    dtype = PRECISIONS[precision]
    if dtype is not None:
        return f"{str(dtype).removeprefix('torch.')} under autocast; weights and norms float32"
    reduced = []
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        reduced.append("convolutions")
    if torch.get_float32_matmul_precision() != "highest":
        reduced.append("matrix products")
    kind = "TF32" if device.type == "cuda" else "TF32 or bfloat16"
    return f"float32, with {kind} in {' and '.join(reduced)}" if reduced else "float32"


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    if precision not in PRECISIONS:
        raise GalipError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def foreground_box(slices: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the foreground of (S, H, W) in model space, one box for all slices.

    It is grown evenly to a multiple of 32 a side, and moved to lie inside the slice; a side without room for
    that is whole.
    """
    foreground: np.ndarray = np.any(above_air(slices), axis=0)
    if not foreground.any():
        return slice(None), slice(None)
    box = []
    for axis in (1, 0):
        inside = np.flatnonzero(foreground.any(axis=axis))
        size = foreground.shape[1 - axis]
        length = -(-(int(inside[-1]) - int(inside[0]) + 1) // CROP_MULTIPLE) * CROP_MULTIPLE
        if length >= size:
            box.append(slice(None))
            continue
        middle = (int(inside[0]) + int(inside[-1]) + 1) // 2
        start = min(max(middle - length // 2, 0), size - length)
        box.append(slice(start, start + length))
    return box[0], box[1]


def translate_slices(
    model: SliceTranslator,
    slices: np.ndarray,
    target_domain: str,
    batch_size: int = 4,
    precision: str = "fp32",
) -> np.ndarray:
    """Translate (S, H, W) slices in model space, empty ones too; the same shape, float32."""
    with torch.inference_mode():
        targets = [model.prepare_target(target_domain)]
    translated = np.empty(slices.shape, np.float32)
    rows = np.arange(len(slices))
    for chosen, (output,) in _batches(model, slices, rows, targets, batch_size, precision):
        translated[chosen] = output
    return translated


__all__ = [
    "PRECISIONS",
    "foreground_box",
    "precision_in_words",
    "translate_slices",
    "translate_to_targets",
]
