"""What a run of `galip-hf translate` reads and writes: found, and checked for clashes, before it computes."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..model.errors import GalipError
from .bids_plan import bids_outputs
from .shares import Share

if TYPE_CHECKING:
    from ..data.bids import BidsScan
    from ..data.scans import ScanSource


@dataclass(frozen=True)
class Job:
    """One scan and, for each target, the file (or DICOM folder) to write.

    `bids`: the scan's names in its BIDS data set, under `--bids`.
    """

    scan: "ScanSource"
    outputs: dict[str, Path]
    bids: "BidsScan | None" = None


def target_names(arguments: argparse.Namespace) -> list[str]:
    """The domains of `--to`; GalipError for an empty or repeated name."""
    names = [name.strip() for name in arguments.to.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise GalipError(f"--to {arguments.to}: expected domain names separated by commas, each once")
    return names


def _selection(arguments: argparse.Namespace) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for text in arguments.select or ():
        keyword, sign, value = text.partition("=")
        if not (keyword and sign and value) or keyword in chosen:
            raise GalipError(
                f"--select {text}: expected KEYWORD=VALUE such as EchoTime=80, each keyword once"
            )
        chosen[keyword] = value
    return chosen


def _suffix(scan: "ScanSource", wanted: str) -> str:
    """Of the outputs of a scan in a folder; none for a derived DICOM series, which is a folder itself."""
    from ..data.file_checks import supported_suffix

    if wanted == "dicom":
        if not scan.files:
            raise GalipError(f"--format dicom: {scan.path} is no DICOM series; its headers would be needed")
        return ""
    if wanted != "input":
        return f".{wanted}"
    return "" if scan.files else supported_suffix(scan.path)


def plan_jobs(arguments: argparse.Namespace, share: Share) -> list[Job]:
    """The jobs of this share; GalipError for whatever their outputs would clash with."""
    from ..data.file_checks import has_suffix
    from ..data.scans import ScanSource, find_scans
    from ..data.writers import check_output_path

    targets, output = target_names(arguments), Path(arguments.output)
    if arguments.bids:
        jobs = [
            Job(ScanSource(scan.path, None, scan.path.name), outputs, scan)
            for scan, outputs in bids_outputs(arguments, targets)
        ]
        return _checked(jobs, share, arguments)
    scans = find_scans(arguments.inputs, select=_selection(arguments), output=output)
    names_file = has_suffix(output)
    single = len(scans) == 1 and len(targets) == 1 and (names_file or not Path(arguments.inputs[0]).is_dir())
    if single and (names_file or (output.suffix and not output.is_dir())):
        checked = check_output_path(output, overwrite=arguments.overwrite or arguments.skip_existing)
        jobs = [Job(scans[0], {targets[0]: checked})]
        return _checked(jobs, share, arguments)
    if names_file or output.is_file():
        parts = [scan.series.part for scan in scans if scan.series and scan.series.part]
        choice = f", or choose one of {', '.join(parts[:4])} with --select KEYWORD=VALUE" if parts else ""
        raise GalipError(
            f"--output {output}: {len(scans)} scans to {len(targets)} targets need a folder; give its "
            f"name{choice}"
        )
    jobs = []
    for scan in scans:
        suffix = _suffix(scan, arguments.format)
        jobs.append(Job(scan, {name: output / f"{scan.name}_{name}{suffix}" for name in targets}))
    return _checked(jobs, share, arguments)


def _checked(jobs: Sequence[Job], share: Share, arguments: argparse.Namespace) -> list[Job]:
    _check_outputs(jobs, arguments)
    own = share.of(jobs)
    _check_existing(own, arguments)  # of those of other shares, some may be there by now
    return own


def _check_outputs(jobs: Sequence[Job], arguments: argparse.Namespace) -> None:
    """GalipError if an output, or a file written beside it, is an input or is written twice."""
    from ..data.file_checks import COMPANIONS, companion, has_suffix
    from ..data.writers import check_format
    from ..inference.translation import outputs_of

    inputs = set()
    for job in jobs:
        for file in job.scan.files or (job.scan.path,):
            inputs.add(file.resolve())
            if file.suffix.lower() in COMPANIONS:
                inputs.add(Path(companion(file) or file).resolve())
    owners: dict[str, Path] = {}  # without regard to case, as many file systems are
    for job in jobs:
        for scan in job.outputs.values():
            if has_suffix(scan):
                check_format(scan)
            _, files = outputs_of(scan, cycle=arguments.cycle_map, figure=arguments.figure)
            for file in files:
                owner = owners.setdefault(str(file).lower(), scan)
                if owner != scan:
                    raise GalipError(
                        f"{file}: would be written for both {owner.name} and {scan.name}; rename an input, "
                        "or translate them into two folders"
                    )
                if file.resolve() in inputs:
                    raise GalipError(f"{file}: is an input, and would be replaced; choose another --output")


def _check_existing(jobs: Sequence[Job], arguments: argparse.Namespace) -> None:
    """GalipError if an output, or a file written beside it, is there."""
    from ..inference.translation import outputs_of

    existing = []
    for job in jobs:
        for scan in job.outputs.values():
            _, files = outputs_of(scan, cycle=arguments.cycle_map, figure=arguments.figure)
            existing += _in_the_way(scan, files, arguments)
    if existing:
        others = f" (with {len(existing) - 1} more)" if len(existing) > 1 else ""
        remedy = "rename or move it" if arguments.skip_existing else "give --overwrite or --skip-existing"
        raise GalipError(f"{existing[0]}: already exists{others}; {remedy}")


def _in_the_way(scan: Path, files: Sequence[Path], arguments: argparse.Namespace) -> list[Path]:
    """Of the files that will be written for `scan` those that are there and may not be replaced."""
    from ..data.dicom_writer import check_output_folder
    from ..data.file_checks import has_suffix
    from ..data.own_outputs import read_report, report_path

    if arguments.overwrite:
        if not has_suffix(scan) and scan.exists():
            check_output_folder(scan, overwrite=True)
        return []
    present = [file for file in files if file.exists()]
    if not arguments.skip_existing:
        return present
    if scan in present:
        return []  # it is left, with what lies beside it
    # A run killed while it renamed its outputs leaves the report of this very scan: all are written anew.
    report = read_report(report_path(scan))
    return [] if report is not None and report.get("output", scan.name) == scan.name else present


@contextmanager
def made_folders(outputs: Sequence[dict[str, Path]], share: Share) -> Iterator[None]:
    """Make the folders of the outputs; those that stay empty, as nothing could be translated, go again.

    Not where others work beside this process: they may be about to write into them.
    """
    made: list[Path] = []
    for folder in {path.parent for paths in outputs for path in paths.values()}:
        made += [parent for parent in (folder, *folder.parents) if not parent.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GalipError(
                f"--output {folder}: cannot be made ({error.strerror}); choose another"
            ) from None
    try:
        yield
    finally:
        for folder in sorted(made if share.is_alone else (), key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                folder.rmdir()


def without_existing(job: Job, arguments: argparse.Namespace) -> Job:
    """The job without the outputs that exist, under --skip-existing."""
    if not arguments.skip_existing:
        return job
    return replace(job, outputs={name: path for name, path in job.outputs.items() if not path.exists()})


__all__ = ["Job", "made_folders", "plan_jobs", "target_names", "without_existing"]
