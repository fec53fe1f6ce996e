"""The scans of `galip-hf translate`, one after another: read, translated, written.

While one scan is translated, the next is read and the last one written, each in a thread of its own, so that
the device need not wait for the disk or for gzip. At most three scans are in memory.
"""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError
from .bids_plan import bids_fields
from .translate_plan import Job

if TYPE_CHECKING:
    from ..data.volumes import Volume
    from ..inference.pipeline import GalipPipeline
    from ..inference.translation import Translation

Row = tuple[Path, dict[str, Any]]  # a file written, and its report

# What one scan may fail with while the others go on.
_OF_ONE_SCAN = (GalipError, OSError, MemoryError, RuntimeError)


@dataclass
class Outcome:
    """What became of some scans.

    Attributes:
        rows: the files written, with their reports.
        failures: a line for each scan that failed.
        scans: number of scans tried.
        skipped: number of outputs that were there already.
    """

    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    scans: int = 0
    skipped: int = 0


def run_one(pipeline: "GalipPipeline", job: Job, arguments: argparse.Namespace) -> list[Row]:
    """Translate one scan and write it to every target; the files written, with their reports."""
    return _write(job, _translate(pipeline, job, _read(job, arguments), arguments), arguments)


def run_all(
    pipeline: "GalipPipeline", jobs: Sequence[Job], arguments: argparse.Namespace, *, shows_progress: bool
) -> Outcome:
    """Every job, going on after failures."""
    from tqdm.auto import tqdm

    outcome = Outcome(scans=len(jobs))
    with (
        ThreadPoolExecutor(1, "read") as reader,
        ThreadPoolExecutor(1, "write") as writer,
        tqdm(total=len(jobs), unit="scan", desc="scans", disable=None if shows_progress else True) as bar,
    ):
        ahead = reader.submit(_read, jobs[0], arguments) if jobs else None
        behind: tuple[Job, Future[list[Row]]] | None = None
        for number, job in enumerate(jobs):
            assert ahead is not None
            reading, rest = ahead, jobs[number + 1 :]
            with _noted(outcome, job):
                volumes = reading.result()
                ahead = reader.submit(_read, rest[0], arguments) if rest else None
                translated = _translate(pipeline, job, volumes, arguments)
                _finish(behind, outcome)
                behind = job, writer.submit(_write, job, translated, arguments)
            if ahead is reading:  # it could not be read
                ahead = reader.submit(_read, rest[0], arguments) if rest else None
            bar.update()
        _finish(behind, outcome)
    return outcome


def _finish(behind: "tuple[Job, Future[list[Row]]] | None", outcome: Outcome) -> None:
    """Wait for the scan that is being written, if there is one."""
    if behind is not None:
        job, writing = behind
        with _noted(outcome, job):
            outcome.rows += writing.result()


@contextmanager
def _noted(outcome: Outcome, job: Job) -> Iterator[None]:
    """A failure in the block is the scan's, and is noted."""
    try:
        yield
    except _OF_ONE_SCAN as error:
        message = " ".join(str(error).split()).removeprefix(f"{job.scan.path}: ")
        outcome.failures.append(f"{job.scan.path}: {message}")


def _read(job: Job, arguments: argparse.Namespace) -> "list[Volume]":
    from ..data.file_checks import GIB, has_suffix
    from ..data.scans import read_scan
    from ..data.writers import check_fits

    volumes = read_scan(
        job.scan,
        axis=arguments.axis,
        uneven=arguments.uneven,
        nan_background=arguments.nan_background,
        max_size=round(arguments.max_size * GIB),
    )
    for output in job.outputs.values():
        if has_suffix(output):
            check_fits(volumes, output)
    return volumes


def _translate(
    pipeline: "GalipPipeline", job: Job, volumes: "Sequence[Volume]", arguments: argparse.Namespace
) -> "list[list[Translation]]":
    """The translations of each volume, target by target."""
    from tqdm.auto import tqdm

    slices = sum(len(volume.array) for volume in volumes)
    total = slices * len(job.outputs) * (2 if arguments.cycle_map else 1)
    with tqdm(total=total, unit="slice", desc=job.scan.name, leave=False, disable=None) as bar:
        return [
            pipeline(
                volume,
                list(job.outputs),
                arguments.source,
                batch_size=arguments.batch_size,
                cycle=arguments.cycle_map,
                geometry=arguments.geometry,
                crop=arguments.crop,
                resample=arguments.resample,
                axis=arguments.axis,
                advance=bar.update,
            )
            for volume in volumes
        ]


def _write(
    job: Job, translations: "Sequence[Sequence[Translation]]", arguments: argparse.Namespace
) -> list[Row]:
    from ..data.file_checks import has_suffix
    from ..inference.translation import save_dicom, save_translations

    # With --skip-existing the scan is not there: what lies beside it is left over from a killed run.
    overwrite = arguments.overwrite or arguments.skip_existing
    for translation in (one for of_volume in translations for one in of_volume):
        translation.report["input"] = job.scan.shown
        if arguments.full_paths:
            translation.report["input"] = str(job.scan.path.absolute())
            translation.report["model"] = arguments.model
        if job.bids is not None:
            translation.report.update(bids_fields(job.bids, translation))
    rows: list[Row] = []
    for of_target, output in zip(zip(*translations, strict=True), job.outputs.values(), strict=True):
        if has_suffix(output):
            save_translations(of_target, output, overwrite=overwrite, figure=arguments.figure)
        else:
            save_dicom(
                of_target[0],
                output,
                keep_patient_tags=arguments.keep_patient_tags,
                overwrite=overwrite,
                figure=arguments.figure,
            )
        rows += [(output, translation.report) for translation in of_target]
    return rows


__all__ = ["Outcome", "Row", "run_all", "run_one"]
