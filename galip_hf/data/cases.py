"""Cases of several contrasts as nnU-Net, BraTS and BIDS lay them out: which files are there, which not.

nnU-Net (v2): `imagesTr/CASE_0000.nii.gz`, one file a channel, labels in `labelsTr`, names of the channels in
`dataset.json`. BraTS: `CASE/CASE-t1n.nii.gz`, `-t1c`, `-t2w`, `-t2f` (since 2023) or `CASE/CASE_t1.nii.gz`,
`_t1ce`, `_t2`, `_flair` (before). BIDS: see `galip_hf.data.bids`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import files_below
from ..model.errors import GalipError
from .bids import BidsScan, find_scans_of, suffix_of, synthetic_path
from .contrasts import contrast_of, domains_by_contrast
from .file_checks import has_suffix, stem_of, supported_suffix

DATASET_FILE = "dataset.json"
_BRATS_ENDINGS = (
    {"T1": "t1n", "T1c": "t1c", "T2": "t2w", "FLAIR": "t2f"},
    {"T1": "t1", "T1c": "t1ce", "T2": "t2", "FLAIR": "flair"},
)
_BRATS_FILE = re.compile(r"(?P<case>.+)(?P<separator>[-_])(?P<ending>[A-Za-z0-9]+)")


@dataclass
class Case:
    """One subject (or session), with a file for some of its contrasts.

    Attributes:
        name: of the case, for messages and the list of what is synthetic.
        present: domain -> file.
        missing: domain -> file to make, relative to the output folder.
        scans: the BIDS names of `present`, where the data set is BIDS.
    """

    name: str
    present: dict[str, Path]
    missing: dict[str, Path]
    scans: dict[str, BidsScan] = field(default_factory=dict)


def nnunet_channels(folder: Path, domains: Sequence[str]) -> dict[str, str]:
    """Domain -> four digits, from the `channel_names` of dataset.json that are domains of the model.

    Raises:
        GalipError: there are none.
    """
    names = _dataset(folder).get("channel_names")
    known = domains_by_contrast(domains)
    found = {}
    for number, name in names.items() if isinstance(names, dict) else ():
        domain = name if name in domains else known.get(contrast_of(str(name)) or "")
        if domain is not None and str(number).isdigit():
            found[domain] = f"{int(number):04d}"
    if not found:
        raise GalipError(
            f"{folder}: {DATASET_FILE} names no channel that is a domain of the model "
            f"({', '.join(domains)}); give --channels DOMAIN=0000,…"
        )
    return found


def nnunet_cases(folder: Path, channels: Mapping[str, str]) -> list[Case]:
    """The cases of an nnU-Net data set, or of one folder of images.

    Args:
        folder: a data set with `imagesTr` (and `imagesTs`, …), or a folder of `CASE_0000` files.
        channels: domain -> four digits.

    Raises:
        GalipError: no image there has one of the channels.
    """
    numbers = {number: domain for domain, number in channels.items()}
    inside = sorted(path for path in folder.glob("images*") if path.is_dir())
    found: dict[tuple[Path, str], dict[str, Path]] = {}
    for images in inside or [folder]:
        for path in sorted(images.iterdir()):
            match = re.fullmatch(r"(.+_)(\d{4})", stem_of(path)) if has_suffix(path) else None
            if match is not None and match[2] in numbers:
                found.setdefault((images, match[1]), {})[numbers[match[2]]] = path
    if not found:
        raise GalipError(
            f"{folder}: holds no CASE_{next(iter(numbers))} image, nor one of another channel; expected "
            "an nnU-Net data set (imagesTr) or a folder of such images"
        )
    return _cases(folder, found, channels)


def completed_dataset(folder: Path, channels: Mapping[str, str]) -> dict[str, Any] | None:
    """The dataset.json of the completed nnU-Net data set: all channels named; None where there is none."""
    dataset = _dataset(folder)
    if not dataset:
        return None
    names = dataset.get("channel_names")
    names = dict(names) if isinstance(names, dict) else {}
    for domain, number in channels.items():
        names.setdefault(str(int(number)), domain)
    dataset["channel_names"] = dict(sorted(names.items(), key=lambda item: int(item[0])))
    return dataset


def _dataset(folder: Path) -> dict[str, Any]:
    path = folder / DATASET_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise GalipError(f"{path}: not readable as a JSON object; mend or remove it")
    return content


def brats_channels(folder: Path, domains: Sequence[str]) -> dict[str, str]:
    """Domain -> ending of the file, for the domains that BraTS has; of the two conventions the one in use.

    Raises:
        GalipError: the model has no such domain.
    """
    known = domains_by_contrast(domains)
    endings = [
        match["ending"].lower()
        for path in files_below(folder)
        if has_suffix(path) and (match := _BRATS_FILE.fullmatch(stem_of(path)))
    ]
    used = max(_BRATS_ENDINGS, key=lambda names: sum(ending in names.values() for ending in endings))
    found = {known[contrast]: ending for contrast, ending in used.items() if contrast in known}
    if not found:
        raise GalipError(
            f"--pattern brats: the model's domains ({', '.join(domains)}) are none of T1, T1c, T2, FLAIR; "
            "give --channels DOMAIN=ENDING,…"
        )
    return found


def brats_cases(folder: Path, channels: Mapping[str, str]) -> list[Case]:
    """The cases below a folder of BraTS, one folder a case or all in one.

    Args:
        folder: searched through all its levels.
        channels: domain -> ending of the file, such as `t1n`; upper and lower case are the same.

    Raises:
        GalipError: no file has one of the endings.
    """
    domains = {ending.lower(): domain for domain, ending in channels.items()}
    found: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in files_below(folder):
        match = _BRATS_FILE.fullmatch(stem_of(path)) if has_suffix(path) else None
        if match is not None and match["ending"].lower() in domains:
            key = (path.parent, match["case"] + match["separator"])
            found.setdefault(key, {})[domains[match["ending"].lower()]] = path
    if not found:
        raise GalipError(
            f"{folder}: holds no file that ends in {', '.join(channels.values())}; expected CASE/CASE-"
            f"{next(iter(channels.values()))}.nii.gz, or name the endings with --channels"
        )
    return _cases(folder, found, channels)


def _cases(
    folder: Path, found: Mapping[tuple[Path, str], dict[str, Path]], channels: Mapping[str, str]
) -> list[Case]:
    """The cases of files that are named by a case's start, separator included, and a channel's ending.

    Args:
        folder: the data set.
        found: (folder of the files, start of their names) -> domain -> file.
        channels: domain -> ending.
    """
    cases = []
    for (parent, start), present in found.items():
        suffix = supported_suffix(next(iter(present.values())))
        place = parent.relative_to(folder)
        missing = {
            domain: place / f"{start}{ending}{suffix}"
            for domain, ending in channels.items()
            if domain not in present
        }
        cases.append(Case((place / start[:-1]).as_posix(), present, missing))
    return cases


def bids_cases(folder: Path, domains: Sequence[str]) -> list[Case]:
    """The sessions of a BIDS data set, each with the first raw scan of every contrast.

    Args:
        folder: of the data set.
        domains: wanted of every session.

    Raises:
        GalipError: not a BIDS data set, a domain without a suffix in BIDS, two of one contrast, or no scan.
    """
    for domain in domains:
        suffix_of(domain)
    known = domains_by_contrast(domains)
    sessions: dict[tuple[str, str], dict[str, BidsScan]] = {}
    for scan in find_scans_of(folder):
        if scan.contrast in known:
            sessions.setdefault(scan.session, {}).setdefault(known[scan.contrast], scan)
    if not sessions:
        raise GalipError(f"{folder}: holds no scan of {', '.join(domains)} in sub-*/[ses-*/]anat")
    cases = []
    for (subject, session), scans in sessions.items():
        entities = {"sub": subject} | ({"ses": session} if session else {})
        missing = {domain: synthetic_path(entities, domain) for domain in domains if domain not in scans}
        present = {domain: scan.path for domain, scan in scans.items()}
        name = "_".join(f"{key}-{value}" for key, value in entities.items())
        cases.append(Case(name, present, missing, scans))
    return cases


__all__ = [
    "DATASET_FILE",
    "Case",
    "bids_cases",
    "brats_cases",
    "brats_channels",
    "completed_dataset",
    "nnunet_cases",
    "nnunet_channels",
]
