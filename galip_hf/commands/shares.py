"""Which scans of a run are this process's: of `--part K/N`, and of the processes of `accelerate launch`.

Scans are dealt out by their place in the list of all scans, which is the same in every process, and before
existing outputs are looked at, which are not: so each scan belongs to one part and one process, and to the
same ones when a run that was killed is started again with `--skip-existing`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..model.errors import GalipError

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """One of several shares of a list, counted from 0, and this process among those of the run.

    Attributes:
        index, count: this share, and how many there are.
        rank, processes: this process, and how many there are; `local_rank` counts on its machine.
    """

    index: int = 0
    count: int = 1
    rank: int = 0
    processes: int = 1
    local_rank: int = 0

    def of(self, items: Sequence[T]) -> list[T]:
        """Every `count`-th item, from the `index`-th on."""
        return list(items[self.index :: self.count])

    @property
    def is_alone(self) -> bool:
        """Whether nobody else works on the same list."""
        return self.count == 1

    def gathered(self, outcome: T) -> list[T]:
        """What each process passes, on the first one; elsewhere nothing. All processes must call it."""
        if self.processes == 1:
            return [outcome]
        from datetime import timedelta

        import torch.distributed

        # Only now do the processes meet: until here none waits for another, whatever their scans take.
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
        outcomes: list[Any] = [None] * self.processes
        torch.distributed.gather_object(outcome, outcomes if self.rank == 0 else None)
        torch.distributed.barrier()  # a process that ends early would end the run
        torch.distributed.destroy_process_group()
        return outcomes if self.rank == 0 else []


def chosen_share(part: str | None) -> Share:
    """The share of this process.

    Args:
        part: `K/N` with K from 1 to N, as `--part` takes it, or None for all; divided further among the
            processes that `accelerate launch` (or torchrun) started.

    Raises:
        GalipError: another form.
    """
    index, count = 0, 1
    if part is not None:
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise GalipError(f"--part {part}: expected K/N with K from 1 to N, such as 3/16")
        index, count = int(match[1]) - 1, int(match[2])
    rank, processes, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    return Share(index + count * rank, count * processes, rank, processes, local_rank)


__all__ = ["Share", "chosen_share"]
