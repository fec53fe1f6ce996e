"""Steps whose gradients are not finite: skipped on the device, named in the log, and too many of them fatal.

The decision is made from the gradients after they were averaged, so it is the same on all processes (a loss
that is not finite makes the gradients so, see `training_step`). Nothing waits for the device in a step: flags
are collected when a log entry is due.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.unpaired_batch import UnpairedBatch
from ..model.errors import GalipError


class FiniteGuard:
    """Tells each step whether to skip.

    Args:
        limit: skipped steps in a row after which training is given up.
        device: where gradients are.

    Attributes:
        skipped: steps skipped so far, as of the last `collect`.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self.skipped = 0
        self._in_a_row = torch.zeros((), device=device)
        self._most_in_a_row = torch.zeros((), device=device)
        self._flags: list[Tensor] = []
        self._own_flags: list[Tensor] = []
        self._rows: list[tuple[int | str, ...]] = []

    def check(
        self, norms: Tensor, losses: Tensor, batches: Sequence[UnpairedBatch], scale: Tensor | None = None
    ) -> Tensor:
        """1 where any of the norms (K,) is not finite, else 0; (), float32, on the device.

        Args:
            norms: of the averaged gradients of each network.
            losses: of this process's batches: they tell whose batch it was.
            batches: those of this process.
            scale: (), of the losses in float16 training. A skipped step above 1 is part of the search for a
                scale at which gradients do not overflow: not one of those in a row that end a run.
        """
        skip = (~torch.isfinite(norms)).any().float()
        counts = 1.0 if scale is None else (scale <= 1).float()
        self._in_a_row = (self._in_a_row + counts) * skip
        self._most_in_a_row = torch.maximum(self._most_in_a_row, self._in_a_row)
        self._flags.append(skip)
        self._own_flags.append((~torch.isfinite(losses)).any().float())
        self._rows.append(tuple(row for batch in batches for row in batch.rows))
        return skip

    def collect(self, step: int) -> list[tuple[int, bool, tuple[int | str, ...]]]:
        """The steps skipped since the last call, which `step` ended; the same ones on all processes.

        Returns:
            (step, whether losses of this process were not finite, rows of this process's batches) of each.
        """
        if not self._flags:
            return []
        flags, own_flags = torch.stack([torch.stack(self._flags), torch.stack(self._own_flags)]).tolist()
        first, rows = step - len(flags) + 1, self._rows
        self._flags, self._own_flags, self._rows = [], [], []
        self.skipped += int(sum(flags))
        return [(first + i, bool(own_flags[i]), rows[i]) for i, is_skipped in enumerate(flags) if is_skipped]

    def stop_if_hopeless(self, learning_rate: float) -> None:
        """Raise a GalipError when `limit` steps in a row were skipped."""
        most = int(self._most_in_a_row)
        if most >= self.limit:
            raise GalipError(
                f"training: {most} steps in a row had losses or gradients that are not finite; the last "
                "checkpoint is from before or among them. Look at the slices named in log.jsonl; lower "
                f"learning_rate (now {learning_rate:g}), set max_gradient_norm, or use mixed_precision=no"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "skipped": self.skipped,
            "in_a_row": float(self._in_a_row),
            "flags": [float(flag) for flag in self._flags],
            "own_flags": [float(flag) for flag in self._own_flags],
            "rows": [list(rows) for rows in self._rows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        device = self._in_a_row.device
        self.skipped = state["skipped"]
        self._in_a_row = torch.tensor(state["in_a_row"], device=device)
        self._flags = [torch.tensor(flag, device=device) for flag in state["flags"]]
        self._own_flags = [torch.tensor(flag, device=device) for flag in state["own_flags"]]
        self._rows = [tuple(rows) for rows in state["rows"]]


__all__ = ["FiniteGuard"]
