"""Writes slices of normalised volumes as a table on disk (`data.table`), volume by volume."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter

from ..files import atomic_write
from ..foreground import above_air
from ..model.errors import GalipError
from .table import COLUMNS, MASK_COLUMN, SPLITS, SUMMARY_NAME, quiet_unless_terminal

# A slice is near-empty when less than this fraction of its pixels is more than air: a cap of scalp teaches
# nothing.
MINIMUM_FOREGROUND = 0.02

# Normalised volumes average well below 1 (most voxels are inside [0, 1]); raw intensities or HU do not.
_LARGEST_MEAN_MAGNITUDE = 2.0
_ROWS_PER_RECORD_BATCH = 64
_LISTED_DUPLICATES = 20


@dataclass(frozen=True)
class SubjectVolume:
    """One normalised volume on its way into a table.

    `array` is (S, H, W) float32 in model space, S being the axis that is sliced. `split` is one of `train`,
    `validation` and `test`. `first_slice` is the position of `array[0]` in its scan. `plane` (`axial`,
    `coronal` or `sagittal`) and `pixel_size` (mm between rows and columns) are None where they are unknown.
    `centre` is the (row, column) that a crop keeps in the middle, None for that of the slices. `mask`:
    (S, H, W) bool, the body as the user gave it, for tables written with `masks=True`.
    """

    array: np.ndarray
    domain: str
    subject: str
    split: str
    first_slice: int = 0
    plane: str | None = None
    pixel_size: tuple[float, float] | None = None
    centre: tuple[float, float] | None = None
    mask: np.ndarray | None = None


def crop_or_pad(slices: np.ndarray, size: int, centre: tuple[float, float] | None = None) -> np.ndarray:
    """Crop and zero-pad the last two axes of (..., H, W) to (..., size, size), without resampling.

    Zero is the lower end of the intensity window. `centre` is the (row, column) that comes to the middle, in
    pixels from the outer edge of the first; None: the middle of the slices, where an odd difference leaves
    the extra row or column at the end.
    """
    for axis, middle in zip((-2, -1), centre or (None, None), strict=True):
        length = slices.shape[axis]
        # Towards zero: an extra row is cut from, or added at, the end.
        start = int((length - size) / 2) if middle is None else round(middle - size / 2)
        before, after = max(-start, 0), max(start + size - length, 0)
        slices = slices.take(range(max(start, 0), min(start + size, length)), axis=axis)
        if before or after:
            widths = [(0, 0)] * slices.ndim
            widths[axis] = (before, after)
            slices = np.pad(slices, widths)
    return slices


class _SplitWriters:
    """Arrow files, one a split, that grow volume by volume."""

    def __init__(
        self,
        folder: Path,
        domains: Sequence[str],
        image_size: int | None,
        minimum_foreground: float,
        masks: bool,
    ):
        self.folder = folder
        self.domains = list(domains)
        self.masks = masks
        self.size = None if image_size is None else (image_size, image_size)
        self.image_size = image_size
        self.minimum_foreground = minimum_foreground
        self.writers: dict[str, ArrowWriter] = {}
        self.kept: dict[str, Counter[str]] = {}
        self.left_out: dict[str, Counter[str]] = {}
        self.split_of: dict[str, str] = {}
        self.seen: set[tuple[str, str]] = set()
        self.excluded: list[dict[str, Any]] = []
        self.source_of: dict[bytes, tuple[str, str, str, int]] = {}
        self.duplicates: list[str] = []
        self.hashes: dict[str, Any] = {}
        self.planes: set[str | None] = set()
        self.pixel_sizes: list[tuple[float, float] | None] = []

    def add(self, volume: SubjectVolume) -> None:
        """Check one volume and append its slices that are not near-empty."""
        array, mask = self._checked(volume), self._checked_mask(volume)
        self.planes.add(volume.plane)
        self.pixel_sizes.append(volume.pixel_size)
        if self.image_size is not None:
            array, mask = (crop_or_pad(part, self.image_size, volume.centre) for part in (array, mask))
        if self.size is None:
            self.size = (array.shape[1], array.shape[2])
        if array.shape[1:] != self.size:
            raise GalipError(
                f"subject {volume.subject!r}, {volume.domain}: slices are {array.shape[1]}x{array.shape[2]}, "
                f"earlier ones {self.size[0]}x{self.size[1]}; give image_size to crop or pad all to one size"
            )
        foreground = above_air(array).mean(axis=(1, 2))
        constant = array.min(axis=(1, 2)) == array.max(axis=(1, 2))
        near_empty = foreground < self.minimum_foreground
        rows = np.flatnonzero(~near_empty & ~(constant & (self.minimum_foreground > 0)))
        self._list_excluded(volume, near_empty, constant)
        self.kept.setdefault(volume.split, Counter())[volume.domain] += len(rows)
        self.left_out.setdefault(volume.split, Counter())[volume.domain] += len(array) - len(rows)
        writer = self._writer(volume.split)
        # A volume at a time is all that is ever held: the writer flushes every _ROWS_PER_RECORD_BATCH slices.
        for row in rows:
            position = volume.first_slice + int(row)
            self._check_duplicate(volume, array[row], position)
            values = (array[row], self.domains.index(volume.domain), volume.subject, position)
            example: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
            if self.masks:
                example[MASK_COLUMN] = mask[row]
                self.hashes[volume.split].update(np.packbits(mask[row]).tobytes())
            writer.write(example)

    def _list_excluded(self, volume: SubjectVolume, near_empty: np.ndarray, constant: np.ndarray) -> None:
        if not self.minimum_foreground:
            return
        reasons = (
            (f"near-empty (under {self.minimum_foreground:.0%} is more than air)", near_empty),
            ("corrupt (one value everywhere)", constant & ~near_empty),
        )
        for reason, mask in reasons:
            if mask.any():
                slices = [volume.first_slice + int(row) for row in np.flatnonzero(mask)]
                entry = {"subject": volume.subject, "domain": volume.domain, "slices": slices}
                self.excluded.append({**entry, "reason": reason})

    def _check_duplicate(self, volume: SubjectVolume, image: np.ndarray, position: int) -> None:
        """Refuse a slice that another split holds byte for byte; note one that is twice in a split."""
        content = np.ascontiguousarray(image).tobytes()
        self.hashes.setdefault(volume.split, hashlib.sha256()).update(
            f"{volume.subject}\0{volume.domain}\0{position}\0".encode() + content
        )
        if image.min() == image.max():
            return
        here = (volume.split, volume.subject, volume.domain, position)
        there = self.source_of.setdefault(hashlib.blake2b(content, digest_size=16).digest(), here)
        if there == here:
            return
        places = [
            f"{subject!r} ({split}, {domain}, slice {at})" for split, subject, domain, at in (there, here)
        ]
        if there[0] != here[0]:
            raise GalipError(
                f"subjects {places[0]} and {places[1]} have a byte-identical slice in two splits; they are "
                "the same scan, so give both one split (a group) or leave one out"
            )
        self.duplicates.append(f"{places[0]} = {places[1]}")

    def _checked(self, volume: SubjectVolume) -> np.ndarray:
        where = f"subject {volume.subject!r}, {volume.domain}"
        array = np.asarray(volume.array)
        if volume.split not in SPLITS:
            raise GalipError(f"{where}: split is {volume.split!r}; expected one of {', '.join(SPLITS)}")
        if volume.domain not in self.domains:
            raise GalipError(f"{where}: unknown domain; expected one of {', '.join(self.domains)}")
        earlier = self.split_of.setdefault(volume.subject, volume.split)
        if earlier != volume.split:
            raise GalipError(
                f"subject {volume.subject!r} lies in both {earlier!r} and {volume.split!r}; give all its "
                "volumes the same split, or the test would be on training anatomy"
            )
        if (volume.subject, volume.domain) in self.seen:
            raise GalipError(f"{where}: given twice; expected one volume per subject and domain")
        self.seen.add((volume.subject, volume.domain))
        if array.ndim != 3 or not array.size or array.dtype.kind != "f":
            raise GalipError(f"{where}: found {array.dtype} {array.shape}; expected a float volume (S, H, W)")
        not_finite = array.size - int(np.isfinite(array).sum())
        if not_finite:
            raise GalipError(
                f"{where}: {not_finite} of {array.size} values are NaN or infinite; mend the source file"
            )
        if np.abs(array).mean() > _LARGEST_MEAN_MAGNITUDE:
            raise GalipError(
                f"{where}: values {array.min():g}..{array.max():g} are not in model space (about 0..1); "
                "normalise the volume with GalipImageProcessor.normalize_volume first"
            )
        return array.astype(np.float32, copy=False)

    def _checked_mask(self, volume: SubjectVolume) -> np.ndarray:
        """(S, H, W) uint8: the volume's mask, zeros where it has none."""
        shape = np.shape(volume.array)
        if volume.mask is None:
            return np.zeros(shape, np.uint8)
        mask = np.asarray(volume.mask)
        if mask.dtype != bool or mask.shape != shape or not mask.any() or not self.masks:
            raise GalipError(
                f"subject {volume.subject!r}, {volume.domain}: found a {mask.dtype} mask {mask.shape} with "
                f"{np.count_nonzero(mask)} voxels; expected a bool mask {shape} with at least one, in "
                "a table written with masks=True"
            )
        return mask.astype(np.uint8)

    def _writer(self, split: str) -> ArrowWriter:
        if split not in self.writers:
            columns: dict[str, Any] = {
                "pixel_values": datasets.Array2D(self.size, "float32"),
                "domain": datasets.ClassLabel(names=self.domains),
                "subject": datasets.Value("string"),
                "slice": datasets.Value("int32"),
            }
            if self.masks:
                columns[MASK_COLUMN] = datasets.Array2D(self.size, "uint8")
            features = datasets.Features(columns)
            path = self.folder / f"{split}.arrow"
            self.writers[split] = ArrowWriter(
                path=str(path), features=features, writer_batch_size=_ROWS_PER_RECORD_BATCH
            )
        return self.writers[split]

    def finish(self) -> datasets.DatasetDict:
        """Close the files, check that nothing is empty and return them memory-mapped."""
        for split, counts in self.kept.items():
            if not counts.total():
                raise GalipError(
                    f"{split}: all {self.left_out[split].total()} slices are near-empty; check the range"
                )
        if not self.kept:
            raise GalipError("no volumes were given; a table needs at least one")
        # Training draws every domain; without a training split any slice of the domain will do.
        counts = self.kept.get("train", sum(self.kept.values(), Counter()))
        missing = [domain for domain in self.domains if not counts[domain]]
        if missing:
            where = " in the train split" if "train" in self.kept else ""
            raise GalipError(f"no slices of {', '.join(missing)}{where}; add volumes or leave the domain out")
        for writer in self.writers.values():
            writer.finalize()
        present = [split for split in SPLITS if split in self.writers]
        tables = {}
        for split in present:
            tables[split] = datasets.Dataset.from_file(str(self.folder / f"{split}.arrow"))
            # The default fingerprint, which state.json holds, depends on the time of writing.
            tables[split]._fingerprint = self.hashes[split].hexdigest()[:16]
        return datasets.DatasetDict(tables)

    def close(self) -> None:
        """Release the files; harmless after `finish`."""
        for writer in self.writers.values():
            writer.close()

    def summary(self) -> dict[str, Any]:
        """Counts per split and domain, and the rule by which slices were left out."""
        splits = {}
        for split in SPLITS:
            if split in self.kept:
                splits[split] = {
                    "subjects": sorted(subject for subject, its in self.split_of.items() if its == split),
                    "slices": {domain: self.kept[split][domain] for domain in self.domains},
                    "left_out": {domain: self.left_out[split][domain] for domain in self.domains},
                }
        return {
            "slice_shape": list(self.size or ()),
            "domains": self.domains,
            "minimum_foreground": self.minimum_foreground,
            "splits": splits,
            "geometry": self._geometry(),
            "excluded": self.excluded,
            "identical_slices": self.duplicates[:_LISTED_DUPLICATES],
            "identical_slice_count": len(self.duplicates),
        }

    def _geometry(self) -> dict[str, Any]:
        """Planes and pixel size in mm (rows, columns) of the slices; empty or None where any is unknown."""
        sizes = [size for size in self.pixel_sizes if size is not None]
        known = len(sizes) == len(self.pixel_sizes)
        return {
            "planes": [] if None in self.planes else sorted(plane for plane in self.planes if plane),
            "pixel_size": np.median(sizes, axis=0).tolist() if known else None,
            "pixel_size_range": [float(np.min(sizes)), float(np.max(sizes))] if known else None,
        }


def write_table(
    volumes: Iterable[SubjectVolume],
    directory: str | Path,
    *,
    domains: Sequence[str],
    image_size: int | None,
    minimum_foreground: float = MINIMUM_FOREGROUND,
    masks: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the slices of `volumes` as a table; `volumes` is consumed one at a time and never held in memory.

    The folder appears complete or not at all.

    Args:
        volumes: in any order of subjects, domains and splits.
        directory: the folder to make.
        domains: domain names, in the order of the model's labels.
        image_size: centre-crop and zero-pad slices to (image_size, image_size); None keeps their (one) size.
        minimum_foreground: slices with a smaller fraction of pixels above air are left out (and
            counted in the summary); 0 keeps every slice.
        masks: write the column `mask`.
        overwrite: replace an existing table; a folder that is not a table is never replaced.

    Raises:
        GalipError: an argument out of range; `directory` exists; no volumes; a domain or split without
            slices; a subject, or a byte-identical slice, in two splits; a volume given twice, not (S, H, W)
            floats, not finite, not in
            model space, or of another slice size; a mask of another shape, or empty.
    """
    if not domains or len(set(domains)) != len(domains):
        raise GalipError(f"domains: found {list(domains)}; expected at least one name, each once")
    if image_size is not None and image_size < 1:
        raise GalipError(f"image_size: found {image_size}; expected a number of pixels, or None")
    directory = Path(directory)
    if directory.exists() and not (overwrite and (directory / "dataset_dict.json").is_file()):
        reason = "not a table; name another folder" if overwrite else "give overwrite=True to replace it"
        raise GalipError(f"{directory}: exists already; {reason}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory) as complete, ExitStack() as stack:
        parts = complete.with_name(f"{directory.name}.parts")  # goes with the temporary folder
        parts.mkdir()
        writers = stack.enter_context(
            closing(_SplitWriters(parts, domains, image_size, minimum_foreground, masks))
        )
        for volume in volumes:
            writers.add(volume)
        tables = writers.finish()
        with quiet_unless_terminal():
            tables.save_to_disk(complete)
        (complete / SUMMARY_NAME).write_text(json.dumps(writers.summary(), indent=2) + "\n", encoding="utf-8")
    return directory


__all__ = ["MINIMUM_FOREGROUND", "SubjectVolume", "crop_or_pad", "write_table"]
