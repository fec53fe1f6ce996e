"""The registered subjects of a table, read when asked for.

A lazy sequence of mappings, domain -> (S, H, W) float32 in model space: one subject is in memory at a time,
however many there are.
"""

from collections.abc import Sequence

import datasets
import numpy as np

from .table import MASK_COLUMN, SliceReader, domain_rows

Subject = dict[str, np.ndarray]


class TableSubjects(Sequence[Subject]):
    """The subjects of one split of a table, in the order of their names.

    A subject holds the domains it has, on the slices that all of these share.

    Attributes:
        names: one name per subject.
        unmatched_slices: rows whose position in the volume another domain of the subject lacks.
    """

    def __init__(self, table: datasets.Dataset, domains: Sequence[str]) -> None:
        self._reader = SliceReader(table)
        self._mask_reader = SliceReader(table, MASK_COLUMN) if MASK_COLUMN in table.column_names else None
        labels = table.features["domain"].names
        # subject -> domain -> position in the volume -> row
        rows: dict[str, dict[str, dict[int, int]]] = {}
        columns = (table.data.column(name).to_pylist() for name in ("subject", "slice", "domain"))
        for row, (subject, position, label) in enumerate(zip(*columns, strict=True)):
            if labels[label] in domains:
                rows.setdefault(subject, {}).setdefault(labels[label], {})[position] = row
        self.names = sorted(rows)
        self.unmatched_slices = 0
        self._rows: list[dict[str, list[int]]] = []
        for name in self.names:
            shared = sorted(set.intersection(*(set(positions) for positions in rows[name].values())))
            self._rows.append({d: [its[position] for position in shared] for d, its in rows[name].items()})
            self.unmatched_slices += sum(len(its) - len(shared) for its in rows[name].values())

    def mask(self, index: int) -> np.ndarray | None:
        """(S, H, W) bool: the body mask that the table holds for a subject; None where it has none.

        Each domain's rows have the mask that was given for it; a subject's mask is all of them together, the
        same for every direction.
        """
        rows = [its for its in self._rows[index].values() if its]
        if self._mask_reader is None or not rows:
            return None
        mask = np.any([[self._mask_reader[row] for row in its] for its in rows], axis=0)
        return mask if mask.any() else None

    @property
    def paired(self) -> bool:
        """Whether any subject has two domains."""
        return any(sum(map(bool, rows.values())) > 1 for rows in self._rows)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Subject:  # type: ignore[override]  # no slices of subjects
        return {
            domain: np.stack([self._reader[row] for row in rows])
            for domain, rows in self._rows[index].items()
            if rows
        }


class DomainSlices(Sequence[np.ndarray]):
    """The (H, W) slices of one domain of a table, each read when asked for."""

    def __init__(self, table: datasets.Dataset, domain: str) -> None:
        self._reader, self._rows = SliceReader(table), domain_rows(table, domain)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        return self._reader[int(self._rows[index])]


__all__ = ["DomainSlices", "Subject", "TableSubjects"]
