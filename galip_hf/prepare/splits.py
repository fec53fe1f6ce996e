"""Which subject is in which split: drawn from a seed or read from a file, and written out with a hash."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.table import SPLITS
from ..files import file_hash
from ..model.errors import GalipError

SPLITS_NAME = "splits.json"


def split_subjects(
    subjects: Iterable[str],
    counts_or_fractions: Mapping[str, int | float],
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """Assign subjects to splits at random, without overlap; a function of the set of subjects and the seed.

    Args:
        subjects: subject identifiers in any order; repeats (a subject of several domains) count once.
        counts_or_fractions: split name to a number of subjects (integers; others are left unused) or to a
            fraction of them (floats that sum to 1, rounded so that all subjects are used).
        seed: of the permutation.
        groups: subject to group (a family, the repeat scans of a person); a group is never divided.

    Returns:
        The sorted subjects of each split asked for.

    Raises:
        GalipError: an unknown split, counts mixed with fractions, fractions that do not sum to 1, more
            subjects than there are, a split that would be empty, or groups that do not fit the counts.
    """
    members: dict[str, list[str]] = {}
    unique = sorted(set(subjects))
    for subject in unique:
        # A subject without a group is one of its own; the prefix keeps its name apart from the groups' names.
        group = (groups or {}).get(subject)
        members.setdefault(f"subject {subject}" if group is None else f"group {group}", []).append(subject)
    sizes = _split_sizes(len(unique), counts_or_fractions)
    use_all = sum(sizes.values()) == len(unique)
    assigned: dict[str, list[str]] = {split: [] for split in sizes}
    names = sorted(members, key=lambda name: members[name])
    for position in np.random.default_rng(seed).permutation(len(names)):
        its = members[names[position]]
        room = {split: size - len(assigned[split]) for split, size in sizes.items()}
        split = next((split for split in sizes if room[split] >= len(its)), None)
        if split is None and use_all:
            split = max(sizes, key=lambda name: room[name])
        if split is not None:
            assigned[split] += its
    exact = all(isinstance(size, int) for size in counts_or_fractions.values())
    for split, size in sizes.items():
        if (exact and len(assigned[split]) != size) or not assigned[split]:
            raise GalipError(
                f"splits: {split} gets {len(assigned[split])} subjects, expected {size}: the groups "
                "cannot be divided so; give another seed, other counts or a split file"
            )
    return {split: sorted(its) for split, its in assigned.items()}


def _split_sizes(available: int, wanted: Mapping[str, int | float]) -> dict[str, int]:
    unknown = [split for split in wanted if split not in SPLITS]
    if unknown or not wanted:
        raise GalipError(f"splits: found {list(wanted)}; expected some of {', '.join(SPLITS)}")
    values = list(wanted.values())
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        sizes = {split: int(value) for split, value in wanted.items()}
    elif all(isinstance(value, float) for value in values):
        if min(values) < 0 or abs(sum(values) - 1.0) > 1e-6:
            raise GalipError(
                f"splits: fractions {dict(wanted)} sum to {sum(values):g}; expected them to sum to 1"
            )
        # Rounding the cumulative sum uses every subject exactly once.
        edges = [0, *(round(available * edge) for edge in np.cumsum(values))]
        sizes = {split: edges[i + 1] - edges[i] for i, split in enumerate(wanted)}
    else:
        raise GalipError(
            f"splits: found {dict(wanted)}; expected all counts (1, 2) or all fractions (0.8, 0.2)"
        )
    if sum(sizes.values()) > available:
        raise GalipError(
            f"splits: {sum(sizes.values())} subjects asked for, {available} available; ask for fewer"
        )
    for split, size in sizes.items():
        if size < 1:
            raise GalipError(f"splits: {split} would get {size} of {available} subjects; give it at least 1")
    return sizes


def read_splits(path: str | Path, subjects: Iterable[str]) -> dict[str, list[str]]:
    """Read an assignment: JSON (split to a list of subjects, or a `splits.json`) or CSV (subject,split).

    Subjects that the file does not name are not used.

    Raises:
        GalipError: not a readable file of that form, an unknown split, a subject in two splits, or one
            that is not among `subjects`.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _json_rows(json.loads(text)) if path.suffix.lower() == ".json" else _csv_rows(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise GalipError(
            f"{path}: not a readable split file ({error}); expected JSON "
            '{"train": [subjects], ...} or CSV with the columns subject,split'
        ) from None
    assigned = collect_splits(rows, str(path))
    absent = sorted(subject for _, subject in rows if subject not in set(subjects))
    if absent:
        raise GalipError(
            f"{path}: names {len(absent)} subjects that were not found: {listing(absent)}; correct the "
            "names, or take them out"
        )
    return assigned


def _json_rows(values: Any) -> list[tuple[str, str]]:
    assignment = values.get("subjects", values)
    rows = []
    for split, its in assignment.items():
        if not isinstance(its, list):
            raise TypeError(f"{split!r} is not a list of subjects")
        rows += [(split, str(subject)) for subject in its]
    return rows


def _csv_rows(text: str) -> list[tuple[str, str]]:
    return [(row["split"].strip(), row["subject"].strip()) for row in csv.DictReader(text.splitlines())]


def collect_splits(rows: Iterable[tuple[str, str]], where: str) -> dict[str, list[str]]:
    """Sorted subjects by split of (split, subject) pairs; a subject in two splits is an error naming it."""
    split_of: dict[str, str] = {}
    for split, subject in rows:
        if split not in SPLITS:
            raise GalipError(f"{where}: split {split!r} of {subject!r} is unknown; use {', '.join(SPLITS)}")
        if split_of.setdefault(subject, split) != split:
            raise GalipError(
                f"{where}: subject {subject!r} lies in both {split_of[subject]!r} and {split!r}; give it one "
                "split, or the test would be on training anatomy"
            )
    return {
        split: sorted(subject for subject, its in split_of.items() if its == split)
        for split in SPLITS
        if split in split_of.values()
    }


def check_groups(assigned: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> None:
    """Raise GalipError when the subjects of one group lie in two splits; names both."""
    first: dict[str, tuple[str, str]] = {}
    for split, subjects in assigned.items():
        for subject in subjects:
            if subject in groups:
                other, its_split = first.setdefault(groups[subject], (subject, split))
                if its_split != split:
                    raise GalipError(
                        f"group {groups[subject]!r} lies in two splits: {other!r} in {its_split!r}, "
                        f"{subject!r} in {split!r}; keep a group in one"
                    )


def split_hash(assigned: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of the assignment in canonical form: JSON, keys and subjects sorted, no spaces, UTF-8."""
    canonical = {split: sorted(subjects) for split, subjects in assigned.items()}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def split_hash_of_table(table: str | os.PathLike[str], subjects: Iterable[str]) -> tuple[str, str]:
    """(SHA-256, of what): of the table's splits.json where there is one, else of the sorted subject names."""
    path = Path(table) / SPLITS_NAME
    if path.is_file():
        try:
            stated = json.loads(path.read_text(encoding="utf-8")).get("hash")
        except (ValueError, AttributeError):
            raise GalipError(f"{path}: not a splits file; prepare the table again") from None
        if isinstance(stated, str):
            return stated, "splits.json, as stated there"
        return str(file_hash(path)), "splits.json"
    return hashlib.sha256("\n".join(sorted(subjects)).encode()).hexdigest(), "names of the split's subjects"


def splits_document(
    assigned: Mapping[str, Sequence[str]], groups: Mapping[str, str], unused: Iterable[str], origin: str
) -> dict[str, Any]:
    """What `splits.json` holds; `read_splits` takes it back."""
    used = {subject for subjects in assigned.values() for subject in subjects}
    return {
        "hash": split_hash(assigned),
        "origin": origin,
        "subjects": {split: sorted(subjects) for split, subjects in assigned.items()},
        "groups": {subject: groups[subject] for subject in sorted(groups) if subject in used},
        "unused": sorted(set(unused) - used),
    }


def listing(names: Sequence[str], limit: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


__all__ = [
    "SPLITS_NAME",
    "check_groups",
    "collect_splits",
    "listing",
    "read_splits",
    "split_hash",
    "split_hash_of_table",
    "split_subjects",
    "splits_document",
]
