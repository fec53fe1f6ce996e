"""The batches of a run, from any step on: which items each process takes is a function of the step alone.

An optimiser step takes `batch_size * gradient_accumulation_steps * processes` items of the epoch in order;
what is left at the end of an epoch, less than that, is not used. Of each batch of all processes, process r
takes the r-th part: so several processes, or accumulated batches, see together what one large batch would.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from ..data.unpaired_batch import UnpairedBatch
from ..model.errors import GalipError
from .signals import SignalsOfWorkers
from .training_args import GalipTrainingArguments


class _Positions:
    """Batch sampler: the item numbers of this process's batches, from a batch of the epoch on."""

    def __init__(self, batches: int, size: int, processes: int, process: int) -> None:
        self.batches, self.size, self.processes, self.process = batches, size, processes, process
        self.first = 0

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, self.batches):
            start = (batch * self.processes + self.process) * self.size
            yield list(range(start, start + self.size))


class StepLoader:
    """Reads batches ahead of the steps.

    Args:
        dataset: map-style, items as those of `UnpairedSlices`, an index being a position in its epoch; or a
            stream, `StreamedSlices`, which gives the items of this process in order.
        arguments: of the run.
        processes, process: number of processes, and which of them this is.
        device: where batches go.

    Raises:
        GalipError: an epoch is shorter than one step.
    """

    def __init__(
        self,
        dataset: Any,
        arguments: GalipTrainingArguments,
        processes: int,
        process: int,
        device: torch.device,
    ) -> None:
        self.dataset = dataset
        self.device = device
        self.accumulation = arguments.gradient_accumulation_steps
        self._is_stream = isinstance(dataset, torch.utils.data.IterableDataset)
        if self._is_stream:
            processes = 1  # the length of a stream is that of one process's share
        pairs = arguments.batch_size * self.accumulation * processes
        # What determines the items besides the training arguments; for a stream also the number of workers.
        self.fingerprint: str = dataset.fingerprint + (
            f", {arguments.num_workers} workers" if self._is_stream else ""
        )
        self.steps_per_epoch = len(self.dataset) // pairs
        if not self.steps_per_epoch:
            raise GalipError(
                f"training: an epoch has {len(self.dataset)} pairs, fewer than the {pairs} of a step "
                f"(batch_size {arguments.batch_size} x gradient_accumulation_steps {self.accumulation} x "
                f"{processes} processes); prepare more slices or lower batch_size"
            )
        self._arguments = arguments
        self._processes, self._process = processes, process

    def steps(self, start: int) -> Generator[list[UnpairedBatch], None, None]:
        """Batches of step `start` and of all later steps, without end; closing it ends the workers."""
        # Nothing else holds the loader, so its workers end with this generator.
        positions = _Positions(
            self.steps_per_epoch * self.accumulation,
            self._arguments.batch_size,
            self._processes,
            self._process,
        )
        loader = self._make_loader(positions)
        epoch, done = divmod(start, self.steps_per_epoch)
        while True:
            self.dataset.set_epoch(epoch)
            positions.first = done * self.accumulation
            batches = iter(loader)
            if self._is_stream:  # no random access: what was used is read again
                for _ in range(done * self.accumulation):
                    next(batches)
            for _ in range(done, self.steps_per_epoch):
                yield [next(batches).to(self.device) for _ in range(self.accumulation)]
            epoch, done = epoch + 1, 0

    def _make_loader(self, positions: _Positions) -> DataLoader:
        arguments = self._arguments
        batches: dict[str, Any] = (
            {"batch_size": arguments.batch_size, "drop_last": True}
            if self._is_stream
            else {"batch_sampler": positions}
        )
        return DataLoader(
            self.dataset,
            **batches,
            collate_fn=_collate,
            num_workers=arguments.num_workers,
            worker_init_fn=SignalsOfWorkers() if arguments.num_workers else None,
            persistent_workers=arguments.num_workers > 0,
            pin_memory=self.device.type == "cuda",
            # Unused for the order, which is the dataset's: it keeps the loader off the global generator.
            generator=torch.Generator().manual_seed(arguments.seed),
        )


@contextmanager
def told_if_killed() -> Iterator[None]:
    """Turn torch's error about a worker process that has ended into one line.

    Raises:
        GalipError: a worker of a loader was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or isinstance(error, GalipError):
            raise
        raise GalipError(
            "training: a worker process that reads slices was killed, as happens when memory is short; "
            "set resume=true to go on, with fewer num_workers if it happens again"
        ) from None


def _collate(items: list[dict[str, Any]]) -> UnpairedBatch:
    return UnpairedBatch.of(default_collate(items))


__all__ = ["StepLoader", "told_if_killed"]
