"""Slices as a `datasets` table on disk: written once, memory-mapped afterwards, readable without galip_hf.

A table is a `datasets.DatasetDict` folder (Arrow files) with the splits `train`, `validation` and `test`, as
present, and one row a slice:

    pixel_values  Array2D((H, W), "float32")   model space: [0, 1] inside the intensity window
    domain        ClassLabel                   names in the order of the model's domains
    subject       string                       a subject lies in one split only
    slice         int32                        position of the slice in its volume
    mask          Array2D((H, W), "uint8")     optional: 1 inside the body; all 0: none was given

`datasets.load_from_disk(folder)` reads it too. `summary.json` in the same folder, which `datasets` ignores,
counts the slices kept and lists those left out. The same volumes in the same order give the same bytes.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np

from ..model.errors import GalipError

SPLITS = ("train", "validation", "test")
COLUMNS = ("pixel_values", "domain", "subject", "slice")
MASK_COLUMN = "mask"
SUMMARY_NAME = "summary.json"


@contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """No progress bars of `datasets` inside the block when stderr is a file or a pipe."""
    quiet = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            datasets.enable_progress_bars()


def load_table(directory: str | Path) -> datasets.DatasetDict:
    """Open a table memory-mapped; raises GalipError when the folder is absent or not a table of slices."""
    directory = Path(directory)
    if not (directory / "dataset_dict.json").is_file():
        found = "no table in this folder" if directory.is_dir() else "no such folder"
        raise GalipError(f"{directory}: {found}; expected one made by write_table (galip-hf prepare)")
    try:
        tables = datasets.load_from_disk(str(directory))
    except Exception as error:  # of a damaged file `datasets` and Arrow raise nearly every kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise GalipError(f"{directory}: the table cannot be read ({reason}); write it again") from error
    if not isinstance(tables, datasets.DatasetDict) or not tables:
        raise GalipError(f"{directory}: the table has no split; write it again")
    for split, table in tables.items():
        _check_columns(table, f"{directory}: {split}")
    return tables


def _check_columns(table: datasets.Dataset, name: str) -> None:
    """GalipError unless a split has the columns of a table of slices, of `write_table`'s types."""
    columns = set(table.column_names) & set(table.format["columns"])
    if not set(COLUMNS) <= columns:
        raise GalipError(f"{name} has columns {sorted(columns)}; expected {', '.join(COLUMNS)}")
    features = table.features
    pixels, domain = features["pixel_values"], features["domain"]
    if (
        not isinstance(pixels, datasets.Array2D)
        or pixels.dtype != "float32"
        or not all(isinstance(length, int) and length > 0 for length in pixels.shape)
        or not isinstance(domain, datasets.ClassLabel)
        or not domain.names
        or not all(isinstance(label, str) for label in domain.names)
        or features["subject"] != datasets.Value("string")
    ):
        raise GalipError(
            f"{name} has columns of other types; expected pixel_values of float32 (Array2D), domain as a "
            "class label, subject as text; write the table again"
        )


class SliceReader:
    """Rows of a table as read-only (H, W) views of the memory-mapped file: nothing is copied or held.

    `column` is `pixel_values` (float32) or `mask` (uint8).

    This takes 0.01 ms a slice of 64x64, where the formatting of `datasets` takes 1 ms. Pickles as the path of
    the file (for DataLoader workers).

    Raises:
        GalipError: the table was filtered, selected or shuffled, so that its rows are not those of the file.
    """

    def __init__(self, table: datasets.Dataset, column: str = "pixel_values") -> None:
        if table._indices is not None:
            raise GalipError("table: its rows were filtered or shuffled; call table.flatten_indices() first")
        self._table, self._column = table, column
        height, width = table.features[column].shape
        self._chunks = [
            chunk.storage.flatten().flatten().to_numpy(zero_copy_only=True).reshape(-1, height, width)
            for chunk in table.data.column(column).chunks
        ]
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a table of {len(self)}")
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._chunks[chunk][row - self._starts[chunk]]

    def __reduce__(self) -> tuple[type["SliceReader"], tuple[datasets.Dataset, str]]:
        return SliceReader, (self._table, self._column)


def domain_rows(table: datasets.Dataset, domain: str) -> np.ndarray:
    """Ascending row numbers of one domain's slices; GalipError when the table does not know the domain."""
    names = table.features["domain"].names
    if domain not in names:
        raise GalipError(f"domain {domain!r} is not in the table; its domains are {', '.join(names)}")
    return np.flatnonzero(np.asarray(table.data.column("domain")) == names.index(domain))


def domain_slices(table: datasets.Dataset, domain: str, limit: int | None = None) -> np.ndarray:
    """The first `limit` (None: all) slices of one domain, in table order, as an (N, H, W) float32 array."""
    reader = SliceReader(table)
    rows = domain_rows(table, domain)[:limit]
    slices = np.empty((len(rows), *table.features["pixel_values"].shape), dtype=np.float32)
    for position, row in enumerate(rows):
        slices[position] = reader[row]
    return slices
