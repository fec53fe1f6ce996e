"""`galip-hf evaluate --prediction FOLDER --target FOLDER`: what some system made against acquired volumes."""

import argparse
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..model.errors import GalipError
from .evaluation_run import Run, Windows, check_measures, parse_windows

if TYPE_CHECKING:
    from ..clip.backbone import ClipBackbone
    from ..data.folder_subjects import FolderScans, FolderSubjects, Resample
    from ..evaluation.panels import Panels
    from ..evaluation.unpaired import Acquired, Translated


def run_folders(arguments: argparse.Namespace, backbone: "ClipBackbone | None") -> Run:
    """The run; without pairs where predictions and targets share no name, or on request."""
    from ..data.folder_subjects import volumes_in
    from ..evaluation.panels import Panels

    source, arrow, target = (arguments.direction or "source->target").partition("->")
    if not (arrow and source and target and source != target):
        raise GalipError(f"--direction {arguments.direction}: expected two domains, such as 'T1->T2'")
    windows = parse_windows(arguments.ct_window)
    if unknown := sorted(set(windows) - {source, target}):
        raise GalipError(
            f"--ct-window {unknown[0]}: expected {source} or {target}, as --direction names them"
        )
    check_measures(arguments.measures, windows)
    run = Run(
        title=f"{arguments.prediction} against {arguments.target}",
        reports={},
        dataset=Path(arguments.target).resolve().name,
        panels=Panels(),
        details={
            "prediction": arguments.prediction,
            "target": arguments.target,
            "source": arguments.source,
        },
    )
    shared = set(volumes_in(arguments.prediction)) & set(volumes_in(arguments.target))
    if arguments.unpaired or not shared:
        run.notes.append(
            "Pairs were set aside (--unpaired)."
            if shared
            else "Predictions and targets share no name: evaluated without pairs."
        )
        _unpaired(run, arguments, (source, target), windows, backbone)
    else:
        _paired(run, arguments, (source, target), windows, backbone)
    return run


# --- with pairs ---


def _paired(
    run: Run,
    arguments: argparse.Namespace,
    direction: tuple[str, str],
    windows: Windows,
    backbone: "ClipBackbone | None",
) -> None:
    from ..data.folder_subjects import FolderSubjects
    from ..evaluation.evaluate import evaluate_folders
    from ..evaluation.manifest import file_entry

    predictions = [folder for folder in (arguments.prediction, arguments.compare) if folder]
    subjects = FolderSubjects(
        predictions,
        arguments.target,
        arguments.source,
        domains=direction,
        windows=windows,
        masks=arguments.mask,
        resample=_resampler() if arguments.resample_prediction else None,
    )
    run.notes += [
        f"{folder}: {len(names)} of its volumes left out, another folder lacks them: {', '.join(names)}."
        for folder, names in subjects.unmatched.items()
    ]
    if not subjects.has_sources:
        run.notes.append("No sources were given: no baselines and no identity-collapse check.")
    if arguments.lesions:
        subjects.give_lesions(arguments.lesions)
    with tempfile.TemporaryDirectory() as temporary:
        _give_segmentations(subjects, arguments, Path(temporary))
        for number, folder in enumerate(predictions):
            run.reports[folder] = evaluate_folders(
                subjects,
                direction,
                system=number,
                ct_windows=windows,
                backbone=backbone,
                baselines=number == 0,
                measures=arguments.measures,
                panels=run.panels if number == 0 else None,
            )
    run.notes += subjects.notes
    for report in run.reports.values():
        report["unmatched"] = subjects.unmatched
    run.manifest = [file_entry(name, subjects.files(i)) for i, name in enumerate(subjects.names)]
    run.subjects = subjects
    run.predict = lambda index, source, target, wanted: subjects.prediction(index)[wanted]


def _resampler() -> "Resample":
    """Linear resampling by SimpleITK, as `galip-hf prepare` does it."""
    from ..data.grid import grid_of
    from ..extras import require
    from ..prepare.images import ScanImage
    from ..prepare.registration import resample

    require("SimpleITK", "prepare")
    return lambda volume, grid: resample(ScanImage(volume.array, grid_of(volume)), grid)


def _give_segmentations(subjects: "FolderSubjects", arguments: argparse.Namespace, temporary: Path) -> None:
    """Those in the folder of --segmentations, or those that the command of --segment makes."""
    roles = ["target", "prediction", *(["compare"] if arguments.compare else [])]
    folder = temporary
    if arguments.segmentations:
        folder = Path(arguments.segmentations)
    elif arguments.segment:
        for index in range(len(subjects)):
            files = subjects.files(index)
            for role, name in zip(roles, ("target", "prediction", "prediction 2"), strict=False):
                (folder / role).mkdir(exist_ok=True)
                _segment(arguments.segment, files[name], folder / role / files[name].name)
    else:
        return
    subjects.give_segmentations(folder / "target", [folder / role for role in roles[1:]])


def _segment(command: str, scan: Path, output: Path) -> None:
    """Run the user's segmenter on one file."""
    words = [
        word.replace("{input}", str(scan)).replace("{output}", str(output)) for word in shlex.split(command)
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise GalipError(
            f"--segment {words[0]}: cannot be started ({error.strerror}); check the command"
        ) from None
    if done.returncode or not output.is_file():
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise GalipError(
            f"--segment: {words[0]} ended with {done.returncode} on {scan} ({last[:200]}); expected a "
            f"label map at {{output}}"
        )


# --- without pairs ---


def _unpaired(
    run: Run,
    arguments: argparse.Namespace,
    direction: tuple[str, str],
    windows: Windows,
    backbone: "ClipBackbone | None",
) -> None:
    from ..data.folder_subjects import FolderScans
    from ..evaluation.manifest import file_entry
    from ..evaluation.unpaired import evaluate_unpaired

    for option in ("compare", "measures", "mask", "lesions", "segmentations", "segment"):
        if getattr(arguments, option):
            raise GalipError(f"--{option}: needs pairs; leave it out for a report without them")
    source, target = direction
    fakes = FolderScans(arguments.prediction, windows.get(target))
    reals = FolderScans(arguments.target, windows.get(target))
    originals = FolderScans(arguments.source, windows.get(source)) if arguments.source else None
    if originals is None:
        run.notes.append("No sources were given: no identity ratio, and no mark of the untranslated source.")
    folders = {"prediction": fakes, "target": reals} | ({"source": originals} if originals else {})
    run.reports[arguments.prediction] = evaluate_unpaired(
        _scans(fakes, reals, originals, direction, windows, run.panels),
        [direction],
        ct_windows=windows,
        training_slices={target: reals.slices(64)},
        backbone=backbone,
        total=sum(map(len, folders.values())),
    )
    run.manifest = [
        file_entry(name, {role: scans.path(name)}) for role, scans in folders.items() for name in scans.names
    ]


def _scans(
    fakes: "FolderScans",
    reals: "FolderScans",
    originals: "FolderScans | None",
    direction: tuple[str, str],
    windows: Windows,
    panels: "Panels",
) -> "Iterator[Acquired | Translated]":
    """Real scans of both domains and the translations, each with its source where that is given."""
    from ..evaluation.score_subject import body_of
    from ..evaluation.unpaired import Acquired, Translated

    source, target = direction
    for name in reals.names:
        volume = reals[name]
        yield Acquired(f"target {name}", target, volume, body_of({target: volume}, windows))
    for name in fakes.names:
        fake, original = fakes[name], None
        body = body_of({target: fake}, windows)
        if originals is not None and name in originals.names:
            original = originals[name]
            if original.shape != fake.shape:
                raise GalipError(
                    f"{fakes.path(name)}: shape {fake.shape}, its source {originals.path(name)} "
                    f"{original.shape}; expected one"
                )
            body = body_of({source: original}, windows)
        fullest = int(body.sum(axis=(1, 2)).argmax())
        panels.add(
            f"{source}->{target}",
            name,
            None if original is None else original[fullest],
            fake[fullest],
            None,
        )
        yield Translated(name, source, target, fake, body, original)
        if original is not None:
            yield Acquired(name, source, original, body)


__all__ = ["run_folders"]
