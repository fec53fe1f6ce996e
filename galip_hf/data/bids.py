"""BIDS data sets: their anatomical scans, and derivative data sets of synthetic scans.

Names follow the Brain Imaging Data Structure 1.10 (bids-specification.readthedocs.io): a raw scan is
`sub-01[_ses-1]_…_T1w.nii.gz` in `sub-01/[ses-1/]anat`, and its translation, in a data set of its own,
`sub-01[_ses-1]_…_desc-synthetic_T2w.nii.gz` with a JSON sidecar. CT is not part of BIDS: it is written under
the same scheme with the suffix `CT` and listed in `.bidsignore`, which validators honour.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import atomic_write, write_report
from ..model.errors import GalipError
from ..version import DISCLAIMER, __version__
from .contrasts import contrast_of

BIDS_VERSION = "1.10.0"
DESCRIPTION_FILE, IGNORE_FILE = "dataset_description.json", ".bidsignore"
LINK = "source"  # name of the raw data set in BIDS URIs: bids:source:sub-01/anat/sub-01_T1w.nii.gz
_SUFFIXES = {"T1": "T1w", "T1c": "T1w", "T2": "T2w", "FLAIR": "FLAIR", "PD": "PDw", "CT": "CT"}
_ENTITY_ORDER = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "chunk", "desc")
_SCAN = re.compile(r"(?P<entities>(?:[a-z]+-[A-Za-z0-9+]+_)+)(?P<suffix>[A-Za-z0-9]+)\.nii(?:\.gz)?")
_DERIVED = {"desc", "space", "res", "den", "label"}  # entities that a raw scan does not have
_NOT_IN_BIDS = ("*_CT.nii.gz", "*_CT.json", "*_cycle.nii.gz", "*_figure.png")


@dataclass(frozen=True)
class BidsScan:
    """One raw scan of a BIDS data set.

    Attributes:
        root: folder of the data set.
        path: the file, below `root`.
        entities: key -> value, in the order of the name: `{"sub": "01", "run": "2"}`.
        contrast: one of `contrasts.CONTRASTS`.
    """

    root: Path
    path: Path
    entities: Mapping[str, str]
    contrast: str

    @property
    def session(self) -> tuple[str, str]:
        """Subject and session, "" where the data set has no sessions."""
        return self.entities["sub"], self.entities.get("ses", "")

    @property
    def uri(self) -> str:
        """The BIDS URI of the scan, as `Sources` of a sidecar holds it."""
        return f"bids:{LINK}:{self.path.relative_to(self.root).as_posix()}"

    def sidecar(self) -> dict[str, Any]:
        """What the JSON file beside the scan says; nothing where there is none that can be read."""
        name = self.path.name[: self.path.name.index(".nii")]
        return _read_json(self.path.with_name(f"{name}.json"))


def suffix_of(domain: str) -> str:
    """The BIDS suffix of a domain, such as `T2w`; `CT` for CT, which BIDS does not have.

    Raises:
        GalipError: a domain that stands for no contrast with a suffix.
    """
    contrast = contrast_of(domain)
    if contrast is None:
        raise GalipError(
            f"domain {domain}: has no suffix in BIDS; those that have one are {', '.join(_SUFFIXES)}"
        )
    return _SUFFIXES[contrast]


def find_scans_of(root: Path) -> list[BidsScan]:
    """The raw anatomical scans of a data set, `sub-*/[ses-*/]anat/*.nii[.gz]`, in the order of their paths.

    Scans that are already derived (`desc-`, `space-`, …), phase and complex images (`part-`), and suffixes
    of other contrasts (`T2star`, `angio`, …) are passed over.

    Raises:
        GalipError: `root` is no BIDS data set.
    """
    if not (root / DESCRIPTION_FILE).is_file():
        raise GalipError(
            f"{root}: not a BIDS data set, it has no {DESCRIPTION_FILE}; give the folder that holds it"
        )
    scans = []
    for pattern in ("sub-*/anat/*", "sub-*/ses-*/anat/*"):
        scans += [scan for path in root.glob(pattern) if (scan := _scan_at(root, path)) is not None]
    return sorted(scans, key=lambda scan: str(scan.path))


def _scan_at(root: Path, path: Path) -> BidsScan | None:
    match = _SCAN.fullmatch(path.name)
    if match is None or not path.is_file():
        return None
    entities = dict(part.split("-", 1) for part in match["entities"].strip("_").split("_"))
    if "sub" not in entities or _DERIVED & set(entities) or entities.get("part", "mag") != "mag":
        return None
    contrast = next((name for name, suffix in _SUFFIXES.items() if suffix == match["suffix"]), None)
    if contrast == "T1" and "ce" in entities:
        contrast = "T1c"
    return None if contrast is None else BidsScan(root, path, entities, contrast)


def synthetic_path(entities: Mapping[str, str], domain: str) -> Path:
    """Where in a derivative data set the synthetic scan of a domain lies.

    Args:
        entities: of the scan it is made from; `ce`, the contrast agent, is that of the domain instead.

    Returns:
        Such as `sub-01/ses-1/anat/sub-01_ses-1_run-2_desc-synthetic_T2w.nii.gz`.

    Raises:
        GalipError: as `suffix_of`.
    """
    suffix = suffix_of(domain)
    kept = {key: value for key, value in entities.items() if key != "ce"} | {"desc": "synthetic"}
    if contrast_of(domain) == "T1c":
        kept["ce"] = "gadolinium"
    known = [key for key in _ENTITY_ORDER if key in kept]
    others = [key for key in kept if key not in _ENTITY_ORDER]  # inv-, flip-: before desc, as they came
    keys = [*known[:-1], *others, "desc"]
    name = "_".join(f"{key}-{kept[key]}" for key in keys) + f"_{suffix}.nii.gz"
    folders = [f"{key}-{kept[key]}" for key in ("sub", "ses") if key in kept]
    return Path(*folders, "anat", name)


def sidecar_fields(scan: BidsScan, source: str, target: str, skull_stripped: bool) -> dict[str, Any]:
    """What BIDS wants in the JSON sidecar of a synthetic scan, beside the report of its translation."""
    return {
        "Description": f"{target} translated from {source}: {DISCLAIMER}",
        "Sources": [scan.uri],
        "SkullStripped": bool(scan.sidecar().get("SkullStripped", skull_stripped)),
    }


def check_derivative(output: Path, source: Path) -> None:
    """Whether synthetic scans of the data set `source` may be written to the folder `output`.

    Raises:
        GalipError: `output` is the raw data set itself, or a data set that is not of our making.
    """
    if output.resolve() == source.resolve():
        raise GalipError(
            f"--output {output}: is the raw data set; give a folder of its own, such as "
            f"{source / 'derivatives' / 'galip'}"
        )
    description = output / DESCRIPTION_FILE
    if description.is_file():
        makers = _read_json(description).get("GeneratedBy")
        first = makers[0] if isinstance(makers, list) and makers else None
        if not isinstance(first, dict) or first.get("Name") != "galip_hf":
            raise GalipError(
                f"--output {output}: holds a BIDS data set that was not made by galip-hf; give another folder"
            )


def write_dataset_files(output: Path, source: Path, model: str, ignored: Iterable[str] = ()) -> None:
    """Write what makes the folder `output` a derivative data set of `source`.

    These are dataset_description.json (with GeneratedBy, SourceDatasets, and the source's licence and DOI
    where it states them), README.md and .bidsignore.

    Args:
        model: name of the model, for GeneratedBy.
        ignored: patterns for .bidsignore, besides those of CT, cycle maps and figures.
    """
    raw = _read_json(source / DESCRIPTION_FILE)
    origin: dict[str, str] = {"URL": source.resolve().as_uri()}
    if isinstance(raw.get("DatasetDOI"), str):
        origin = {"DOI": raw["DatasetDOI"]}
    description: dict[str, Any] = {
        "Name": f"Synthetic scans of {raw.get('Name') or source.resolve().name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": "galip_hf", "Version": __version__, "Description": f"translated by the model {model}"}
        ],
        "SourceDatasets": [origin],
        "DatasetLinks": {LINK: Path(os.path.relpath(source.resolve(), output.resolve())).as_posix()},
    }
    if isinstance(raw.get("License"), str):
        description["License"] = raw["License"]
    write_report(description, output / DESCRIPTION_FILE)
    patterns = [*_NOT_IN_BIDS, *ignored]
    for name, text in ((IGNORE_FILE, "\n".join(patterns) + "\n"), ("README.md", _README)):
        with atomic_write(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


_README = f"""# Synthetic scans

Every image here was made by galip-hf from the raw data set that `{DESCRIPTION_FILE}` names under
`SourceDatasets`: {DISCLAIMER}. `desc-synthetic` marks them. The JSON file beside an image says which scan it
was translated from (`Sources`), by which model, and what gives reason to doubt it (`warnings`).

CT has no suffix in BIDS. Synthetic CT is named `*_CT.nii.gz` after the same scheme and listed in
`{IGNORE_FILE}`, as are cycle maps (`*_cycle.nii.gz`) and figures (`*_figure.png`).
"""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


__all__ = [
    "BidsScan",
    "check_derivative",
    "find_scans_of",
    "sidecar_fields",
    "suffix_of",
    "synthetic_path",
    "write_dataset_files",
]
