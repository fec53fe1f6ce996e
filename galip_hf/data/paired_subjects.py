"""Registered subjects, read when asked for: from a table, or from folders of volumes matched by name.

Both are lazy sequences of mappings, domain -> (S, H, W) float32 in model space: one subject is in memory at a
time, however many there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np

from ..model.domains import MR_PERCENTILE
from ..model.errors import GalipError
from .file_checks import SUFFIXES, has_suffix, one_of_each_pair, stem_of
from .readers import read_volume
from .table import SliceReader, domain_rows

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


class FolderSubjects(Sequence[Subject]):
    """Volumes of several folders that have one name, suffix aside: predictions, targets and perhaps sources.

    Files keep their own scale; in model space the target's 99.5th percentile is 1 for its prediction too (CT:
    the window), and the source's own is 1 for the source. The protocols do not see the common factor.

    Args:
        prediction: a folder per system.
        target: the folder of acquired volumes.
        source: the folder of the volumes that were translated, or None.
        domains: names of the source's and target's domains.
        windows: CT domain -> (HU at 0, HU at 1).

    Attributes:
        names: of the volumes that every folder holds, in order.
        unmatched: folder -> names that another folder lacks.

    Raises:
        GalipError: a folder is absent, holds no volume, two of one name, or the folders share no name.
    """

    def __init__(
        self,
        predictions: Sequence[str | Path],
        target: str | Path,
        source: str | Path | None,
        *,
        domains: tuple[str, str],
        windows: Mapping[str, tuple[float, float]],
    ) -> None:
        self._domains, self._windows = domains, windows
        self._predictions = [_volumes_in(folder) for folder in predictions]
        self._target = _volumes_in(target)
        self._source = None if source is None else _volumes_in(source)
        self._highest: dict[Path, float] = {}  # what is 1 in model space, of files read already
        listed = dict(zip(map(str, predictions), self._predictions, strict=True))
        listed |= {str(target): self._target}
        listed |= {} if self._source is None else {str(source): self._source}
        shared = set.intersection(*(set(files) for files in listed.values()))
        self.names = sorted(shared)
        self.unmatched = {
            folder: sorted(set(files) - shared) for folder, files in listed.items() if set(files) - shared
        }
        if not shared:
            raise GalipError(
                f"{', '.join(listed)}: share no name; expected volumes of the same names (suffix aside)"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Subject:  # type: ignore[override]
        name = self.names[index]
        subject = {}
        if self._source is not None:
            subject[self._domains[0]] = self._scaled(self._source[name], self._source[name], 0)
        subject[self._domains[1]] = self._scaled(self._target[name], self._target[name], 1)
        return subject

    @property
    def has_sources(self) -> bool:
        """Whether the volumes that were translated are there."""
        return self._source is not None

    def prediction(self, index: int, system: int = 0) -> np.ndarray:
        """(S, H, W) float32: the prediction of one system for a subject, scaled as its target."""
        name = self.names[index]
        return self._scaled(self._predictions[system][name], self._target[name], 1)

    def _scaled(self, path: Path, reference: Path, side: int) -> np.ndarray:
        array = read_volume(path).array.astype(np.float64)
        low, high = self._windows.get(self._domains[side], (0.0, 0.0))
        if high == low:
            if reference not in self._highest:
                values = array if reference == path else read_volume(reference).array.astype(np.float64)
                self._highest[reference] = float(np.percentile(values, MR_PERCENTILE))
            high = self._highest[reference]
        # A blank volume keeps its zeros: the evaluation counts it as excluded.
        return ((array - low) / (high - low if high > low else 1.0)).astype(np.float32)


def _volumes_in(folder: str | Path) -> dict[str, Path]:
    """Name without suffix -> file, of every volume in a folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise GalipError(f"{folder}: no such folder; expected one of volumes ({', '.join(SUFFIXES)})")
    found: dict[str, Path] = {}
    for name, path in _named_files(folder):
        if name in found:
            raise GalipError(f"{folder}: {path.name} and {found[name].name} share a name; keep one of them")
        found[name] = path
    if not found:
        raise GalipError(f"{folder}: holds no volume; expected files ending in {', '.join(SUFFIXES)}")
    return found


def _named_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in one_of_each_pair(sorted(folder.iterdir())):
        if has_suffix(path) and path.is_file() and not path.name.startswith("."):
            yield stem_of(path), path


__all__ = ["DomainSlices", "FolderSubjects", "Subject", "TableSubjects"]
