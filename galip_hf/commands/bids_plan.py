"""`galip-hf translate --bids`: from a BIDS data set to a derivative data set of synthetic scans."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError

if TYPE_CHECKING:
    from ..data.bids import BidsScan
    from ..inference.translation import Translation


def bids_outputs(
    arguments: argparse.Namespace, targets: Sequence[str]
) -> list[tuple[BidsScan, dict[str, Path]]]:
    """The scans of the contrast `--from`, each with the file to write for every target.

    Raises:
        GalipError: no `--from`, options that BIDS has no place for, not a BIDS data set, none of its scans is
            of that contrast, two outputs of one name, or an output folder that is another data set.
    """
    from ..data.bids import check_derivative, find_scans_of, suffix_of, synthetic_path
    from ..data.contrasts import contrast_of

    if arguments.source is None:
        raise GalipError("--bids: needs --from, the contrast to read (--from T1 reads *_T1w.nii.gz)")
    for option, given in (("--format", arguments.format != "input"), ("--select", bool(arguments.select))):
        if given:
            raise GalipError(f"{option}: does not go with --bids, which reads and writes NIfTI; leave it out")
    if len(arguments.inputs) != 1:
        raise GalipError(f"--bids: found {len(arguments.inputs)} inputs; expected one folder, the data set")
    root, output = Path(arguments.inputs[0]), Path(arguments.output)
    suffix, contrast = suffix_of(arguments.source), contrast_of(arguments.source)
    scans = [scan for scan in find_scans_of(root) if scan.contrast == contrast]
    if not scans:
        raise GalipError(
            f"{root}: holds no {'ce-*_' if contrast == 'T1c' else ''}{suffix} scan in sub-*/[ses-*/]anat; "
            "give another contrast with --from"
        )
    check_derivative(output, root)
    found: list[tuple[BidsScan, dict[str, Path]]] = []
    owners: dict[Path, Path] = {}
    for scan in scans:
        outputs = {target: output / synthetic_path(scan.entities, target) for target in targets}
        for file in outputs.values():
            owner = owners.setdefault(file, scan.path)
            if owner != scan.path:
                raise GalipError(
                    f"{file.name}: would be written for both {owner.name} and {scan.path.name}; "
                    "keep one of them in the data set"
                )
        found.append((scan, outputs))
    return found


def bids_fields(scan: BidsScan, translation: Translation) -> dict[str, Any]:
    """What BIDS wants in the JSON sidecar of a translation, beside its report.

    `SkullStripped` is what the raw scan's sidecar says; else what the scan looks like, and false, as BIDS'
    raw scans usually are, where that is unclear.
    """
    from ..data.bids import sidecar_fields
    from ..data.normalization import scan_body
    from ..data.skull import looks_skull_stripped

    volume, report = translation.source_volume, translation.report
    stripped = looks_skull_stripped(volume.array, scan_body(volume.array), volume.spacing[1:])
    return sidecar_fields(scan, report["source"], report["target"], bool(stripped))


__all__ = ["bids_fields", "bids_outputs"]
