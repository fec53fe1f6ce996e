"""Unpaired sampling for training: which two slices, of which two domains, make up each item of an epoch.

The paper draws x_A and x_B at random from two domains ("unpaired"). Here the draw is a plan, made once an
epoch as a function of (seed, epoch) alone, so that item i is the same in every worker and after a resume:

- each ordered pair of different domains occurs equally often (to within one), in shuffled order;
- each domain's slices are used in shuffled order, none twice before all were used once;
- the two slices of an item come from different subjects: where the shuffled order puts one subject in both
  places, slices are exchanged with another item. Only when no exchange helps (one subject owns most slices)
  is a slice repeated, and only when both domains have one and the same subject do the two slices share it;
- where asked for, a share of the items are registered pairs instead: one subject and slice in two domains.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import datasets
import numpy as np
import torch

from ..model.errors import GalipError
from .augmentation import SliceAugmentation
from .registered_pairs import registered_rows
from .table import SliceReader, domain_rows

_FIRST_DRAW = 64  # slots tried first when looking for an exchange


@dataclass(frozen=True)
class EpochPlan:
    """Items of one epoch; the last axis is (a, b).

    `rows`: (N, 2) int64 rows of the table. `domains`: (N, 2) int64 domain labels. `flips`: (N, 2) bool.
    `registered`: (N,) bool, is the item a registered pair?
    """

    rows: np.ndarray
    domains: np.ndarray
    flips: np.ndarray
    registered: np.ndarray


@dataclass(frozen=True)
class RegisteredPairs:
    """What a share of the items are drawn from: `rows` and `domains` (labels), (M, 2) each, M at least 1."""

    rows: np.ndarray
    domains: np.ndarray
    share: float


def plan_epoch(
    rows_of_domain: Sequence[np.ndarray],
    subject_of_row: np.ndarray,
    length: int,
    seed: int,
    epoch: int,
    pairs: RegisteredPairs | None = None,
) -> EpochPlan:
    """Draw the items of one epoch, as the module describes.

    Args:
        rows_of_domain: for each domain, the rows of its slices.
        subject_of_row: (rows,) integer subject of every row of the table.
        length: number of items, N.
        seed: of the run.
        epoch: number of the epoch, from 0.
        pairs: registered pairs, which take their share of the items; none of them twice before all were used.
    """
    rng = np.random.default_rng([seed, epoch])
    if pairs is None:
        rows, domains = _unpaired_items(rows_of_domain, subject_of_row, length, rng)
        return EpochPlan(rows, domains, rng.random((length, 2)) < 0.5, np.zeros(length, dtype=bool))
    paired = round(length * pairs.share)
    rows, domains = _unpaired_items(rows_of_domain, subject_of_row, length - paired, rng)
    repeats = -(-paired // len(pairs.rows))
    chosen = np.concatenate([rng.permutation(len(pairs.rows)) for _ in range(max(1, repeats))])[:paired]
    order = rng.permutation(length)
    registered = np.arange(length)[order] >= length - paired
    flips = rng.random((length, 2)) < 0.5
    flips[registered, 1] = flips[registered, 0]
    return EpochPlan(
        np.concatenate([rows, pairs.rows[chosen]])[order],
        np.concatenate([domains, pairs.domains[chosen]])[order],
        flips,
        registered,
    )


def _unpaired_items(
    rows_of_domain: Sequence[np.ndarray], subject_of_row: np.ndarray, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and domains, (length, 2) each."""
    pairs = np.array(list(permutations(range(len(rows_of_domain)), 2)))
    # Whole rounds of all pairs, then a random part of one more: no pair is ahead of another by more than one.
    rounds = np.tile(np.arange(len(pairs)), length // len(pairs))
    rest = rng.permutation(len(pairs))[: length % len(pairs)]
    domains = pairs[rng.permutation(np.concatenate([rounds, rest]))]
    rows = np.empty((length, 2), dtype=np.int64)
    for domain, available in enumerate(rows_of_domain):
        slots = np.flatnonzero(domains.ravel() == domain)
        repeats = -(-len(slots) // len(available))
        order = [rng.permutation(available) for _ in range(repeats)]
        rows.ravel()[slots] = np.concatenate([*order, np.empty(0, dtype=np.int64)])[: len(slots)]
    _separate_subjects(rows, domains, rows_of_domain, subject_of_row, rng)
    return rows, domains


def _separate_subjects(
    rows: np.ndarray,
    domains: np.ndarray,
    rows_of_domain: Sequence[np.ndarray],
    subject_of_row: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Exchange slices within their domain, in place, until no item of `rows` shows one subject twice."""
    domain_of_slot, row_of_slot = domains.ravel(), rows.ravel()
    slots_of_domain = [np.flatnonzero(domain_of_slot == domain) for domain in range(len(rows_of_domain))]
    for item in np.flatnonzero(subject_of_row[rows[:, 0]] == subject_of_row[rows[:, 1]]).tolist():
        subject = subject_of_row[rows[item, 0]]
        if subject != subject_of_row[rows[item, 1]]:
            continue  # mended by an earlier exchange
        slots = (2 * item, 2 * item + 1)
        if any(_exchange(rows, s, slots_of_domain[domain_of_slot[s]], subject_of_row, rng) for s in slots):
            continue
        for slot in slots:
            available = rows_of_domain[domain_of_slot[slot]]
            others = available[subject_of_row[available] != subject]
            if len(others):
                row_of_slot[slot] = rng.choice(others)
                break


def _exchange(
    rows: np.ndarray, slot: int, candidates: np.ndarray, subject_of_row: np.ndarray, rng: np.random.Generator
) -> bool:
    """Swap the slice in `slot` with that of a candidate slot such that both items then show two subjects.

    Slots number the flattened (N, 2) rows, so that `slot ^ 1` is the other place of the same item.
    """
    flat = rows.ravel()
    # A few random slots nearly always hold a match; all are tried only when they do not.
    for window in (rng.choice(candidates, _FIRST_DRAW), candidates):
        fits_here = subject_of_row[flat[window]] != subject_of_row[flat[slot ^ 1]]
        fits_there = subject_of_row[flat[window ^ 1]] != subject_of_row[flat[slot]]
        matches = window[fits_here & fits_there]
        if len(matches):
            flat[[slot, matches[0]]] = flat[[matches[0], slot]]
            return True
    return False


class UnpairedSlices(torch.utils.data.Dataset):
    """Map-style dataset of unpaired slices; an index is a position in the epoch, which is already shuffled.

    So give the DataLoader `shuffle=False`, and call `set_epoch` before each epoch. The epoch number lives in
    shared memory: persistent workers see the change too.

    Args:
        table: one split of a table (see `galip_hf.data.table`), memory-mapped; it is never read as a whole.
        domains: at least two domain names; labels in the items are positions in this sequence. Slices
            of other domains are not used.
        seed: of the sampling.
        horizontal_flip: mirror each slice along its last axis with probability 1/2.
        augmentation: further changes of each slice. The two of a registered pair get one and the same map,
            and keep their intensities.
        fixed_scale: domains whose intensities mean something (CT in HU) and are never changed.
        paired_share: fraction of the items that are registered pairs, see `registered_rows`.
        length: items an epoch; None means half the number of slices, so that each is seen about once.

    Raises:
        GalipError: fewer than two domains, a repeated or unknown domain, one without slices, length < 1, or
            registered pairs asked for where there are none.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        *,
        domains: Sequence[str],
        seed: int,
        horizontal_flip: bool = False,
        augmentation: SliceAugmentation | None = None,
        fixed_scale: Collection[str] = (),
        paired_share: float = 0.0,
        length: int | None = None,
    ) -> None:
        if len(domains) < 2 or len(set(domains)) != len(domains):
            raise GalipError(f"domains: found {list(domains)}; expected at least two different names")
        self._reader = SliceReader(table)
        self._table = table.select_columns(["subject", "slice"])
        self._rows_of_domain = [domain_rows(table, domain) for domain in domains]
        for domain, rows in zip(domains, self._rows_of_domain, strict=True):
            if not len(rows):
                raise GalipError(
                    f"domain {domain!r} has no slices in this split; add some or leave the domain out"
                )
        subjects = table.data.column("subject").to_numpy()
        self._subject_of_row = np.unique(subjects, return_inverse=True)[1]
        self._length = sum(map(len, self._rows_of_domain)) // 2 if length is None else length
        if self._length < 1:
            raise GalipError(f"length is {self._length}; expected at least 1 item an epoch")
        self._seed = seed
        self._horizontal_flip = horizontal_flip
        self._augmentation = augmentation or SliceAugmentation()
        self._keeps_intensity = [domain in fixed_scale for domain in domains]
        self._pairs = _registered_pairs(table, domains, paired_share) if paired_share else None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._plan: tuple[int, EpochPlan] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0; the items of an epoch are always the same."""
        self._epoch.fill_(epoch)

    @property
    def plan(self) -> EpochPlan:
        """The items of the current epoch, drawn when first asked for (35 bytes an item)."""
        epoch = int(self._epoch)
        if self._plan is None or self._plan[0] != epoch:
            drawn = plan_epoch(
                self._rows_of_domain, self._subject_of_row, self._length, self._seed, epoch, self._pairs
            )
            self._plan = (epoch, drawn)
        return self._plan[1]

    @property
    def rows(self) -> int:
        """Rows of the table; `row_a` and `row_b` are below."""
        return len(self._table)

    @property
    def views(self) -> int:
        """Slices and, if there are any, mirrored slices of the table; `view_a` and `view_b` are below."""
        return self.rows * (2 if self._horizontal_flip else 1)

    @property
    def fingerprint(self) -> str:
        """Number of items an epoch, and a hash of which slices of which subjects they are drawn from."""
        digest = hashlib.sha256()
        for rows in self._rows_of_domain:
            digest.update(np.asarray(rows, dtype=np.int64).tobytes() + b"domain")
        digest.update(self._table.data.column("slice").to_numpy().tobytes())
        digest.update("\n".join(self._table.data.column("subject").to_pylist()).encode())
        return f"{self._length} items of slices {digest.hexdigest()[:16]}"

    def subject_and_slice(self, row: int) -> str:
        """What a row of the table shows, for messages."""
        entry = self._table[row]
        return f"{entry['subject']} slice {entry['slice']}"

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Slices `image_a`, `image_b`, (1, H, W) float32; labels `domain_a`, `domain_b`; `row_a`, `row_b`;
        `view_a`, `view_b`, which tell a mirrored slice from the plain one; `registered`, True where the two
        are one subject and slice."""
        if not 0 <= index < self._length:
            raise IndexError(f"item {index} of an epoch of {self._length}")
        plan = self.plan
        registered = bool(plan.registered[index])
        item: dict[str, Any] = {"registered": registered}
        for place, letter in enumerate("ab"):
            row, domain = int(plan.rows[index, place]), int(plan.domains[index, place])
            image = self._reader[row]
            mirrored = self._horizontal_flip and bool(plan.flips[index, place])
            if mirrored:
                image = image[:, ::-1]
            # A registered pair draws the same numbers in both places: so it stays registered.
            draw = np.random.default_rng([self._seed, int(self._epoch), index, 0 if registered else place])
            item[f"image_{letter}"] = self._augmentation.apply(
                torch.from_numpy(image[None].copy()),
                draw,
                changes_intensity=not (registered or self._keeps_intensity[domain]),
            )
            item[f"domain_{letter}"] = domain
            item[f"row_{letter}"] = row
            item[f"view_{letter}"] = row + self.rows * mirrored
        return item


def _registered_pairs(table: datasets.Dataset, domains: Sequence[str], share: float) -> RegisteredPairs:
    found = {
        (a, b): registered_rows(table, domains[a], domains[b])
        for a, b in permutations(range(len(domains)), 2)
    }
    rows = np.concatenate(list(found.values()))
    if not len(rows):
        raise GalipError(
            "registered pairs are asked for (loss weight 'paired'), but no subject of the train split has "
            f"one slice in two of {', '.join(domains)}; add registered volumes or set the weight to 0"
        )
    labels = np.concatenate([np.full((len(pair_rows), 2), pair) for pair, pair_rows in found.items()])
    return RegisteredPairs(rows, labels, share)
