"""Unpaired sampling from a stream: a published table that is read as it is needed and never stored.

A stream has no random access, so there is no plan of the epoch as in `unpaired_dataset`. Instead each
consumer (a worker of a process) reads its own part of the rows, keeps some slices of each domain at hand, and
draws an item's two slices among them:

- the rows are divided among processes and workers without overlap: by files where their number is a multiple
  of the consumers', else row by row (each consumer then reads everything and keeps its share);
- the first domain is drawn in proportion to the slices at hand, so is the second among the others; the two
  slices are of different subjects wherever there are any;
- a slice that was used makes room for the next row, unless its domain has become scarce: then it stays, so
  that unequal domains are used equally often;
- all draws depend on (seed, epoch, process, worker) alone. After a resume the epoch's rows are read again
  up to where it stopped.

Publish rows of mixed domains (`table.shuffle().push_to_hub(…, num_shards=…)`): a consumer that meets a single
domain in all the slices it can hold gives up.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node

from ..model.errors import GalipError
from .augmentation import SliceAugmentation
from .table import COLUMNS

_ROWS_PER_READ = 16
# A domain with fewer slices at hand than this part of an equal share keeps those it has.
_SCARCE = 0.5


def open_stream(source: str, split: str, revision: str | None = None) -> datasets.IterableDataset:
    """A split of a published table (Hub repository or local folder of Parquet files) as a stream.

    Raises:
        GalipError: it cannot be opened, or its columns are not those of a table.
    """
    try:
        stream = datasets.load_dataset(source, split=split, revision=revision, streaming=True)
    except Exception as error:  # of the Hub client, the file system and `datasets`, each kinds of their own
        reason = " ".join(str(error).split())[:300]
        raise GalipError(
            f"data.streaming: {source}, split {split!r}, cannot be opened ({reason}); expected a Hub "
            "repository or a local folder of Parquet files, as push_to_hub writes them"
        ) from error
    columns = list(stream.features or {})
    if not set(COLUMNS) <= set(columns) or not isinstance(stream.features["domain"], datasets.ClassLabel):
        raise GalipError(
            f"data.streaming: {source} has columns {columns}; expected those of a table: "
            f"{', '.join(COLUMNS)}, with domain a ClassLabel"
        )
    return stream


@dataclass(frozen=True)
class _Slice:
    """One row: its image (H, W), what it shows, and its number in its volume."""

    image: np.ndarray
    subject: str
    number: int


class StreamedSlices(torch.utils.data.IterableDataset):
    """Items as those of `UnpairedSlices`, from a stream; the process's share of an epoch.

    `row_a` and `row_b` are text, "SUBJECT slice NUMBER": a stream has no row numbers. Call
    `set_epoch` before each epoch.

    Args:
        stream: rows of a table; not shuffled or divided yet.
        domains: at least two domain names; labels in the items are positions in this sequence.
        seed: of the sampling.
        length: items an epoch of this process. Each worker gives an equal part (rounded down).
        buffer_size: slices that each worker keeps at hand (256 KB each at 256 x 256).
        horizontal_flip, augmentation, fixed_scale: as in `UnpairedSlices`.
        process_index, num_processes: this process among all.

    Raises:
        GalipError: fewer than two domains, a repeated or unknown one, or numbers out of range. While reading:
            all slices at hand are of one domain.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        *,
        domains: Sequence[str],
        seed: int,
        length: int,
        buffer_size: int = 1000,
        horizontal_flip: bool = False,
        augmentation: SliceAugmentation | None = None,
        fixed_scale: Collection[str] = (),
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        if len(domains) < 2 or len(set(domains)) != len(domains):
            raise GalipError(f"domains: found {list(domains)}; expected at least two different names")
        names = stream.features["domain"].names
        if unknown := [domain for domain in domains if domain not in names]:
            raise GalipError(
                f"domain {unknown[0]!r} is not in the stream; its domains are {', '.join(names)}"
            )
        if length < 1 or buffer_size < 2 * len(domains):
            raise GalipError(
                f"length is {length}, buffer_size {buffer_size}; expected at least 1 and {2 * len(domains)}"
            )
        self._stream = stream.select_columns(list(COLUMNS)).with_format("arrow")
        self._label_of = {names.index(domain): label for label, domain in enumerate(domains)}
        self._shape = stream.features["pixel_values"].shape
        self._domains, self._seed, self._length = list(domains), seed, length
        self._buffer_size = buffer_size
        self._horizontal_flip = horizontal_flip
        self._augmentation = augmentation or SliceAugmentation()
        self._keeps_intensity = [domain in fixed_scale for domain in domains]
        self._process_index, self._num_processes = process_index, num_processes
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, of the next iteration; the items of an epoch are always the same."""
        self._epoch.fill_(epoch)

    @property
    def fingerprint(self) -> str:
        """Number of items an epoch and what settles their order: its rows are not known beforehand."""
        return f"{self._length} items of a stream through {self._buffer_size} slices"

    def subject_and_slice(self, row: str) -> str:
        """What a row shows, for messages."""
        return row

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        consumer = self._process_index * workers + number
        epoch = int(self._epoch)
        rng = np.random.default_rng([self._seed, epoch, consumer])
        draws = self._draws(epoch, consumer, self._num_processes * workers, rng)
        for _, pair in zip(range(self._length // workers), draws, strict=False):
            yield self._item(pair, rng)

    def _item(self, pair: list[tuple[int, _Slice]], rng: np.random.Generator) -> dict[str, Any]:
        item: dict[str, Any] = {"registered": False}
        for letter, (label, drawn) in zip("ab", pair, strict=True):
            flips = rng.random() < 0.5
            image = drawn.image[:, ::-1] if self._horizontal_flip and flips else drawn.image
            item[f"image_{letter}"] = self._augmentation.apply(
                torch.from_numpy(image[None].copy()), rng, changes_intensity=not self._keeps_intensity[label]
            )
            item[f"domain_{letter}"] = label
            item[f"row_{letter}"] = f"{drawn.subject} slice {drawn.number}"
        return item

    def _draws(
        self, epoch: int, consumer: int, consumers: int, rng: np.random.Generator
    ) -> Iterator[list[tuple[int, _Slice]]]:
        """Pairs of (label, slice), without end: the rows are read again when they are used up."""
        while True:
            # The same order again: another one would give the consumer rows of its neighbours.
            rows = self._rows([self._seed, epoch], consumer, consumers)
            pools: list[list[_Slice]] = [[] for _ in self._domains]
            exhausted, found = False, False
            while True:
                while not exhausted and sum(map(len, pools)) < self._buffer_size:
                    row = next(rows, None)
                    if row is None:
                        exhausted = True
                    else:
                        pools[row[0]].append(row[1])
                if sum(map(bool, pools)) < 2:
                    break
                found = True
                yield self._draw(pools, rng)
            if not found or not exhausted:
                self._refuse(pools)

    def _draw(self, pools: list[list[_Slice]], rng: np.random.Generator) -> list[tuple[int, _Slice]]:
        sizes = np.array([len(pool) for pool in pools], dtype=np.float64)
        first = int(rng.choice(len(pools), p=sizes / sizes.sum()))
        others = np.where(np.arange(len(pools)) == first, 0, sizes)
        second = int(rng.choice(len(pools), p=others / others.sum()))
        places = self._places(pools[first], pools[second], rng)
        pair = []
        for label, position in zip((first, second), places, strict=True):
            pool = pools[label]
            pair.append((label, pool[position]))
            if len(pool) > _SCARCE * sizes.sum() / len(pools) or sizes.sum() < self._buffer_size:
                pool[position] = pool[-1]
                pool.pop()
        return pair

    @staticmethod
    def _places(first: list[_Slice], second: list[_Slice], rng: np.random.Generator) -> tuple[int, int]:
        """Positions of two slices of different subjects; of one subject where the pools hold no other."""
        place = int(rng.integers(len(first)))
        order = rng.permutation(len(second))
        for other in order:  # nearly always the first one
            if second[other].subject != first[place].subject:
                return place, int(other)
        for place, candidate in enumerate(first):
            if candidate.subject != second[order[0]].subject:
                return place, int(order[0])
        return place, int(order[0])

    def _rows(self, seeds: list[int], consumer: int, consumers: int) -> Iterator[tuple[int, _Slice]]:
        """(label, slice) of the consumer's rows, files in random order."""
        seed = int(np.random.default_rng(seeds).integers(2**31))
        # The order of the files alone: the pools do the rest.
        shuffled = self._stream.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        # `iter` and not `__iter__`, which would divide among the workers a second time.
        for rows in split_dataset_by_node(shuffled, consumer, consumers).iter(batch_size=_ROWS_PER_READ):
            images = rows.column("pixel_values").combine_chunks()
            pixels = images.storage.flatten().flatten().to_numpy(zero_copy_only=True)
            pixels = pixels.reshape(-1, *self._shape)
            columns = (rows.column(name).to_pylist() for name in ("domain", "subject", "slice"))
            for image, domain, subject, number in zip(pixels, *columns, strict=True):
                if domain in self._label_of:
                    # A copy: a view would keep the whole read in memory.
                    yield self._label_of[domain], _Slice(image.copy(), subject, number)

    def _refuse(self, pools: list[list[_Slice]]) -> None:
        found = [domain for domain, pool in zip(self._domains, pools, strict=True) if pool]
        raise GalipError(
            f"data.streaming: {sum(map(len, pools))} slices in a row are of "
            f"{' and '.join(found) or 'no domain'} alone; publish the rows in mixed order (table.shuffle() "
            "before push_to_hub), in more files, or raise buffer_size"
        )


__all__ = ["StreamedSlices", "open_stream"]
