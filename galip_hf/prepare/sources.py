"""Where scans lie in public data sets as downloaded: each function lists them, none reads a voxel.

The layouts, as far as they are public:

- IXI (brain-development.org): `IXI-T1/IXI002-Guys-0828-T1.nii.gz`, one tar file a contrast.
- Gold Atlas male pelvis (Zenodo 583096): a folder a patient (`1_01_P`), its DICOM series mixed in it; the
  CT that was deformed to the MR (`CTtoMR` in its description) is taken when it is there.
- SynDiff: `data_train_T1.mat`, `data_val_T1.mat`, `data_test_T1.mat`; or one file a domain (`T1.mat`).
- BraTS: `BraTS2021_00000/BraTS2021_00000_t1.nii.gz` (2018 to 2021), `BraTS-GLI-00000-000/…-t1n.nii.gz`.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data import dicom_series
from ..data.file_checks import SUFFIXES, one_of_each_pair
from ..data.masks import is_mask, mask_of
from ..files import files_below
from ..model.errors import GalipError


@dataclass(frozen=True)
class Scan:
    """One scan to prepare.

    `slices` (start, stop) takes a part of its slices; `files`: of a DICOM series, and `part` which of its
    stacks (`galip_hf.data.dicom_series.Series.part`), if it has several; `mask`: a volume on the scan's grid,
    not 0 inside the body.
    """

    path: str
    domain: str
    subject: str
    split: str | None = None
    group: str | None = None
    files: tuple[str, ...] = ()
    slices: tuple[int, int] | None = None
    part: str = ""
    mask: str | None = None


@dataclass(frozen=True)
class Source:
    """What a data set holds, and how it is treated unless the user says otherwise.

    Attributes:
        scans: one a subject and domain.
        domains: names, in the order of the model's labels.
        reference: the domain whose grid a subject's other scans are brought to; None: its first.
        registration: `rigid` or `header` (see `galip_hf.prepare.subjects`).
        aligned: domains in register with the reference where they are on its grid (see there).
        slices: slices taken of each subject; None: all.
        complete: whether a subject must have every domain.
        paper_counts: the paper's split, train/validation/test, or None.
        notes: files found that were passed over, and why.
    """

    scans: list[Scan]
    domains: tuple[str, ...]
    reference: str | None = None
    registration: str = "header"
    aligned: tuple[str, ...] = ()
    slices: int | None = None
    complete: bool = False
    paper_counts: tuple[int, int, int] | None = None
    notes: list[dict[str, Any]] = field(default_factory=list)


def ixi(directory: Path) -> Source:
    """IXI: T1, T2 and PD of each subject; T1 is registered to the dual-echo T2/PD scan."""
    pattern = re.compile(r"(IXI\d+)-.*-(T1|T2|PD)\.nii(\.gz)?$", re.IGNORECASE)
    scans = []
    for path in _files(directory, (".nii.gz", ".nii")):
        found = pattern.match(path.name)
        if found:
            scans.append(Scan(str(path), found[2].upper(), found[1].upper()))
    _require(scans, directory, "files such as IXI-T1/IXI002-Guys-0828-T1.nii.gz")
    return Source(
        scans,
        ("T1", "T2", "PD"),
        reference="T2",
        registration="rigid",
        aligned=("PD",),
        slices=100,
        complete=True,
        paper_counts=(25, 5, 10),
    )


def gold_atlas(directory: Path) -> Source:
    """Gold Atlas male pelvis: CT, T1 and T2 of each patient, brought to the T2 grid."""
    scans: list[Scan] = []
    notes: list[dict[str, Any]] = []
    for patient in _folders(directory):
        found: dict[str, Scan] = {}
        for path in _files(patient, SUFFIXES):
            domain = _pelvis_domain(_without_suffix(path.relative_to(patient)), None)
            if domain:
                _take(found, Scan(str(path), domain, patient.name), path.name, notes)
        for series in _dicom_series(patient):
            domain = _pelvis_domain(series.description, series.modality)
            where = f"{series.path.name}: {series.modality} {series.description!r} {series.part}".rstrip()
            if domain:
                files = tuple(map(str, series.files))
                scan = Scan(str(series.path), domain, patient.name, files=files, part=series.part)
                _take(found, scan, where, notes, better="cttomr" in series.description.lower())
            elif series.modality in ("CT", "MR"):
                reason = f"{where}: neither T1 nor T2 in its description"
                notes.append({"subject": patient.name, "domain": None, "reason": reason})
        scans += found.values()
    _require(scans, directory, "a folder a patient, such as 1_01_P, with DICOM series, NIfTI or MetaImage")
    return Source(
        scans,
        ("CT", "T1", "T2"),
        reference="T2",
        registration="rigid",
        aligned=("CT",),
        slices=90,
        complete=True,
        paper_counts=(9, 1, 4),
        notes=notes,
    )


def _dicom_series(directory: Path) -> list[dicom_series.Series]:
    """The DICOM series below a directory, in the order of their folders and UIDs; other files are ignored."""
    found = dicom_series.find_series(dicom_series.dicom_files(files_below(_directory(directory))))
    for series in found:
        if not series.frames:
            raise GalipError(f"{series.path}: not a readable DICOM file; copy it again")
    return sorted(found, key=lambda series: (str(series.path), str(series.uid), series.part))


def _pelvis_domain(description: str, modality: str | None) -> str | None:
    """CT, T1 or T2 from a series' description and modality, or from a file's name."""
    words = description.lower()
    if modality == "CT" or (modality is None and re.search(r"(^|[^a-z])ct", words)):
        return "CT"
    contrasts = set(re.findall(r"(?<![a-z0-9])t([12])(?![0-9])", words))
    return f"T{contrasts.pop()}" if modality in (None, "MR") and len(contrasts) == 1 else None


def _take(
    found: dict[str, Scan], scan: Scan, where: str, notes: list[dict[str, Any]], better: bool = False
) -> None:
    """Keep one scan a domain: the deformed CT over the planning CT, else the first, noting the other."""
    if scan.domain in found and not better:
        reason = f"{where}: another scan of this domain was taken"
        notes.append({"subject": scan.subject, "domain": scan.domain, "reason": reason})
        return
    found[scan.domain] = scan


def syndiff(directory: Path, slices_per_subject: int | None = None) -> Source:
    """SynDiff's `.mat` files. They do not say where a subject ends: all slices of a file are one subject's.

    `data_SPLIT_DOMAIN.mat`: the slices of a split are at the same positions in every domain (its authors ask
    for aligned files), so the subject is named after the split. `DOMAIN.mat`: unpaired, each a subject of its
    own. `slices_per_subject` cuts a file into subjects of so many slices.
    """
    splits = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
    scans: list[Scan] = []
    for path in _files(directory, (".mat",)):
        found = re.fullmatch(r"data_(train|val|validation|test)_(.+)", path.stem, re.IGNORECASE)
        split = splits[found[1].lower()] if found else None
        domain, subject = (found[2], split) if found else (path.stem, path.stem)
        if not found and slices_per_subject is None:
            split = "train"  # two subjects at most: there is nothing to divide
        scans += _cut(Scan(str(path), domain, str(subject), split), slices_per_subject)
    _require(scans, directory, "files such as data_train_T1.mat, or T1.mat")
    return Source(scans, _in_order(scan.domain for scan in scans))


def _cut(scan: Scan, length: int | None) -> Iterator[Scan]:
    if length is None:
        yield scan
        return
    from ..data.readers import read_volume

    count = len(read_volume(scan.path).array)
    for number, start in enumerate(range(0, count, length)):
        stop = min(start + length, count)
        yield Scan(scan.path, scan.domain, f"{scan.subject}-{number:03d}", scan.split, slices=(start, stop))


def brats(directory: Path) -> Source:
    """BraTS: T1, T1 with contrast, T2 and FLAIR, registered and skull-stripped by its makers.

    The scans of one patient at several dates (2023 and later: the last number) are one group.
    """
    names = {"t1": "T1", "t1n": "T1", "t1ce": "T1CE", "t1c": "T1CE", "t2": "T2", "t2w": "T2"}
    names |= {"flair": "FLAIR", "t2f": "FLAIR"}
    pattern = re.compile(r"(BraTS.*)[_-](t1|t1ce|t2|flair|t1n|t1c|t2w|t2f)\.nii(\.gz)?$", re.IGNORECASE)
    scans = []
    for path in _files(directory, (".nii.gz", ".nii")):
        found = pattern.match(path.name)
        if found:
            dated = re.fullmatch(r"(BraTS-\w+-\d+)-\d+", found[1])
            group = dated[1] if dated else None
            scans.append(Scan(str(path), names[found[2].lower()], found[1], group=group))
    _require(scans, directory, "files such as BraTS2021_00000/BraTS2021_00000_t1.nii.gz")
    order = ("T1", "T1CE", "T2", "FLAIR")
    present = {scan.domain for scan in scans}
    return Source(scans, tuple(name for name in order if name in present), slices=100, complete=True)


def manifest(path: Path) -> Source:
    """A table of scans, CSV or JSON lines, with `path, domain, subject` and perhaps `split, group, mask`.

    Relative paths start at the manifest's folder. Domains keep the order in which they appear.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
            rows = [(n, json.loads(line)) for n, line in enumerate(lines, start=1) if line.strip()]
        else:
            rows = list(enumerate(csv.DictReader(lines), start=2))
    except (OSError, ValueError, csv.Error) as error:
        raise GalipError(
            f"{path}: not a readable manifest ({error}); expected CSV or JSON lines (.jsonl)"
        ) from None
    scans = [_manifest_scan(row, f"{path}, line {number}", path.parent) for number, row in rows]
    _require(scans, path, "rows of path, domain, subject[, split, group, mask]")
    return Source(scans, _in_order(scan.domain for scan in scans))


def _manifest_scan(row: Any, where: str, folder: Path) -> Scan:
    known = ("path", "domain", "subject", "split", "group", "mask")
    if not isinstance(row, Mapping):
        raise GalipError(f"{where}: found {row!r}; expected the fields {', '.join(known)}")
    unknown = sorted(str(name) for name in row if name not in known)
    if unknown:
        raise GalipError(f"{where}: unknown field {', '.join(unknown)}; known are {', '.join(known)}")
    values = {name: str(row[name]).strip() if row.get(name) is not None else "" for name in known}
    missing = [name for name in known[:3] if not values[name]]
    if missing:
        raise GalipError(f"{where}: {', '.join(missing)} is missing; every scan needs {', '.join(known[:3])}")
    split, group, mask = (values[name] or None for name in known[3:])
    path = str(folder / values["path"])
    mask = str(folder / mask) if mask else None
    return Scan(path, values["domain"], values["subject"], split, group, mask=mask)


def folders(directory: Path) -> Source:
    """A folder per domain; the file's name, suffix aside, the subject (one name in two folders: a pair).

    A file named `NAME_mask`, or by BIDS, is the body mask of the scan beside it (`galip_hf.data.masks`).
    """
    scans = []
    for folder in _folders(directory):
        files = _files(folder, SUFFIXES)
        for path in files:
            if is_mask(path):
                continue
            subject = _without_suffix(path.relative_to(folder)).replace("/", "-")
            mask = mask_of(path, [file for file in files if file.parent == path.parent])
            scans.append(Scan(str(path), folder.name, subject, mask=None if mask is None else str(mask)))
    _require(scans, directory, "a folder per domain (T1/sub-01.nii.gz, T2/sub-01.nii.gz)")
    return Source(scans, _in_order(scan.domain for scan in scans))


def _directory(directory: Path) -> Path:
    if not directory.is_dir():
        raise GalipError(f"{directory}: no such directory; expected the data set's folder")
    return directory


def _folders(directory: Path) -> list[Path]:
    """Folders in a directory, in order; hidden ones are not."""
    found = (path for path in _directory(directory).iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if path.is_dir())


def _files(directory: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below a directory with one of the suffixes, in the order of their paths; hidden ones are not."""
    files = files_below(_directory(directory))
    return one_of_each_pair(path for path in files if path.name.lower().endswith(suffixes))


def _without_suffix(path: Path) -> str:
    name = path.as_posix()
    suffix = next(s for s in SUFFIXES if name.lower().endswith(s))
    return name[: -len(suffix)]


def _in_order(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _require(scans: list[Scan], where: Path, expected: str) -> None:
    if not scans:
        raise GalipError(f"{where}: no scan found; expected {expected}")
    seen: dict[tuple[str, str], Scan] = {}
    for scan in scans:
        other = seen.setdefault((scan.subject, scan.domain), scan)
        if other is not scan:
            raise GalipError(
                f"subject {scan.subject!r} has two {scan.domain} scans, {other.path} and {scan.path}; "
                "keep one, or give them two subjects of one group"
            )


__all__ = ["Scan", "Source", "brats", "folders", "gold_atlas", "ixi", "manifest", "syndiff"]
