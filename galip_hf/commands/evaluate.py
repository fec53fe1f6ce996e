"""`galip-hf evaluate`: a model on a table, or folders of volumes, to a report one can defend."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..model.errors import GalipError
from ..shown_paths import short_names, with_short_names
from .evaluate_folders import run_folders
from .evaluate_table import run_table
from .evaluation_run import Run, usable_device
from .options import add_full_paths

# Options that name a folder, a file or a model.
_PATHS = (
    "data", "model", "prediction", "target", "source", "mask", "lesions", "segmentations", "compare", "clip",
)  # fmt: skip
MEASURES = ("ms-ssim", "nmse", "nmi", "displacement")
# Options that say something about folders of volumes, and nothing about a table.
_OF_FOLDERS = (
    "prediction", "target", "source", "direction", "mask", "resample_prediction", "lesions",
    "segmentations", "segment",
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "evaluate", help="score a model on a table, or a folder of volumes against another"
    )
    parser.add_argument("--data", metavar="TABLE", help="table of slices (galip-hf prepare)")
    parser.add_argument("--split", default="test", help="split of the table (default: test)")
    parser.add_argument(
        "--model",
        help="model directory, or a repository of the Hub; without it only the baselines are scored",
    )
    parser.add_argument(
        "--checkpoint",
        type=int,
        metavar="STEP",
        help="--model is the output_dir of a training; score its checkpoint of this step",
    )
    parser.add_argument("--prediction", metavar="FOLDER", help="volumes that some system made")
    parser.add_argument("--target", metavar="FOLDER", help="acquired volumes of the same names")
    parser.add_argument(
        "--source", metavar="FOLDER", help="volumes that were translated: for baselines and identity collapse"
    )
    parser.add_argument(
        "--mask",
        metavar="FOLDER",
        help="body masks of the targets' names; without it NAME_mask beside a target, else it is measured",
    )
    parser.add_argument(
        "--resample-prediction",
        action="store_true",
        help="bring predictions and sources onto the grid of their target instead of refusing other grids",
    )
    parser.add_argument(
        "--direction", metavar="T1->T2", help="domains of --source and --target (default: source->target)"
    )
    parser.add_argument(
        "--ct-window",
        action="append",
        default=[],
        metavar="DOMAIN=LOW,HIGH",
        help="HU window of a CT domain; a model's own configuration states it already",
    )
    parser.add_argument(
        "--unpaired",
        action="store_true",
        help="a report without pairs even where there are some; where there are none it is made anyway",
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        default=[],
        choices=MEASURES,
        metavar="NAME",
        help=f"more of them, on pairs: {', '.join(MEASURES)}",
    )
    parser.add_argument(
        "--protocol",
        choices=("synthrad2025",),
        help="also score CT targets as the SynthRAD2025 challenge does (give its masks by --mask)",
    )
    parser.add_argument("--lesions", metavar="FOLDER", help="lesion masks of the targets' names")
    parser.add_argument(
        "--segmentations",
        metavar="FOLDER",
        help="label maps in FOLDER/prediction and FOLDER/target (and FOLDER/compare), of the targets' names",
    )
    parser.add_argument(
        "--segment",
        metavar="COMMAND",
        help="makes them: run for every prediction and target, with {input} and {output} replaced by files",
    )
    parser.add_argument("--compare", metavar="MODEL2", help="second model, or second folder of predictions")
    parser.add_argument(
        "--clip", metavar="SOURCE", help="CLIP model for FID and KID (hf-hub:… or a directory)"
    )
    parser.add_argument("--output", required=True, help="folder to write: report.html, report.json, …")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing report")
    add_full_paths(parser)
    parser.add_argument(
        "--device", default="auto", help="torch device (default: auto, CUDA, XPU or MPS, else the CPU)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the model (default: fp32)"
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    output = _check_output(Path(arguments.output), arguments.overwrite)
    folders = _check_mode(arguments)
    backbone = None
    arguments.device = usable_device(arguments.device)
    if arguments.clip:
        from ..clip.backbone import ClipBackbone
        from ..extras import require

        require("torchmetrics", "evaluate")
        backbone = ClipBackbone.from_pretrained(arguments.clip, device=arguments.device)
    arguments.measures = sorted({*arguments.measures, *([arguments.protocol] if arguments.protocol else [])})
    run = run_folders(arguments, backbone) if folders else run_table(arguments, backbone)
    if not arguments.full_paths:
        run = _without_folders(run, arguments)
    _write(run, output, arguments)
    _say(run, output)


def _without_folders(run: Run, arguments: argparse.Namespace) -> Run:
    """The run as its report shows it: the folders and models that were given by their last names."""
    given = [getattr(arguments, name) for name in _PATHS]
    names = short_names(path for path in given if path and (os.path.exists(path) or os.path.isabs(path)))
    texts = ("title", "reports", "manifest", "details", "notes")
    return replace(run, **{name: with_short_names(getattr(run, name), names) for name in texts})


def _check_output(output: Path, overwrite: bool) -> Path:
    if output.exists() and not overwrite:
        raise GalipError(f"{output}: already exists; choose another name or pass --overwrite")
    if output.exists() and not (output / "report.json").is_file():
        raise GalipError(f"{output}: exists and is not a report; only a report is overwritten")
    return output


def _check_mode(arguments: argparse.Namespace) -> bool:
    """Whether folders are compared; GalipError when the arguments ask for both or for neither."""
    folders = any(getattr(arguments, name) for name in _OF_FOLDERS)
    if folders and (arguments.data or arguments.model):
        raise GalipError("found --data or --model beside folders; give a table, or --prediction and --target")
    if folders and not (arguments.prediction and arguments.target):
        raise GalipError("--prediction and --target belong together; give a folder for each")
    if not folders and not arguments.data:
        raise GalipError("nothing to evaluate; give --data TABLE and --model, or --prediction and --target")
    if arguments.checkpoint is not None and not arguments.model:
        raise GalipError("--checkpoint: give the output_dir of the training by --model")
    if arguments.model and arguments.ct_window:
        raise GalipError("--ct-window: the model's configuration states the window; leave it out")
    if arguments.segment and arguments.segmentations:
        raise GalipError("--segment and --segmentations: both give label maps; leave one out")
    if arguments.segment and not ("{input}" in arguments.segment and "{output}" in arguments.segment):
        raise GalipError(f"--segment {arguments.segment!r}: expected {{input}} and {{output}} in the command")
    if arguments.compare and arguments.compare in (arguments.model, arguments.prediction):
        raise GalipError(f"--compare {arguments.compare}: is the first one too; name another")
    if arguments.compare and not (arguments.model or folders):
        raise GalipError("--compare: there is no first model; give --model, or --prediction")
    return folders


# --- the report ---


def _write(run: Run, output: Path, arguments: argparse.Namespace) -> None:
    from ..evaluation.report import provenance
    from ..evaluation.verdict import paired_verdict, unpaired_verdict
    from ..files import atomic_write, write_report

    report = next(iter(run.reports.values()))
    paired = report.get("kind") != "unpaired"
    report["verdict"] = paired_verdict(report) if paired else unpaired_verdict(report)
    report["notes"], report["manifest"] = run.notes, run.manifest
    report["provenance"] = provenance(arguments.command_line, arguments.device, 0, **run.details)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as temporary:
        temporary.mkdir()
        page = _paired_files(run, report, temporary) if paired else _unpaired_page(run, report)
        write_report(report, temporary / "report.json")
        (temporary / "report.html").write_text(page, encoding="utf-8")


def _paired_files(run: Run, report: dict[str, Any], folder: Path) -> str:
    """Pictures, CSV and the model card's entries; returns the page."""
    from ..evaluation.case_figures import save_cases
    from ..evaluation.report import compare_reports, model_index, write_subjects_csv
    from ..evaluation.report_page import html_report
    from ..files import write_report

    name, *others = run.reports
    if others:
        comparison = compare_reports(report, run.reports[others[0]])
        report["comparison"] = {"a": name, "b": others[0], **comparison}
    pictures = save_cases(report, run.subjects, run.predict, folder / "panels") if run.predict else {}
    write_subjects_csv(run.reports, folder / "subjects.csv")
    entries = model_index(report, model_name=Path(name).name, dataset=run.dataset, split=run.split)
    write_report({"model-index": entries}, folder / "model_index.json")
    return html_report(report, title=run.title, pictures=pictures, panels=run.panels)


def _unpaired_page(run: Run, report: dict[str, Any]) -> str:
    from ..evaluation.unpaired_page import html_unpaired

    return html_unpaired(report, title=run.title, panels=run.panels)


def _say(run: Run, output: Path) -> None:
    """The verdict and the headline on the terminal."""
    from ..evaluation.verdict import findings, unpaired_findings

    report = next(iter(run.reports.values()))
    print(f"{report['verdict']['says']} {report['verdict']['rests_on']}")
    if report.get("kind") == "unpaired":
        _say_unpaired(report)
        found = unpaired_findings(report)
    else:
        _say_paired(report)
        found = findings(report)
    for line in [*run.notes, *found]:
        print(f"  {line}")
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


def _say_paired(report: dict[str, Any]) -> None:
    table = report["protocols"]["fixed"]["masked"]
    rows = {"model": table["directions"], **table["baselines"]}
    version = report["protocols"]["fixed"]["version"]
    print(
        f"PSNR (dB) / SSIM, protocol fixed v{version}, foreground, mean over subjects; "
        f"{len(report['exclusions'])} exclusions"
    )
    for direction in next((cells for cells in rows.values() if cells), {}):
        shown = [
            f"{name} {cells[direction]['psnr']:.2f} / {cells[direction]['ssim']:.4f}"
            for name, cells in rows.items()
            if cells and cells[direction]["psnr"] is not None
        ]
        n = max(cells[direction]["n"] for cells in rows.values() if cells)
        print(f"  {direction} (n = {n}): " + ", ".join(shown))


def _say_unpaired(report: dict[str, Any]) -> None:
    print(
        "Distance of intensities from real scans of the target domain, part of the window (lower is closer)"
    )
    for direction, cell in report["directions"].items():
        its = cell["histogram"]
        marks = {"translation": its, "untranslated source": its["copy"], "real halves": its["real_halves"]}
        shown = [f"{name} {mark['distance']:.3f}" for name, mark in marks.items() if mark is not None]
        sides = f"{cell['subjects_fake']} translated, {cell['subjects_real']} real subjects"
        print(f"  {direction} ({sides}): " + ", ".join(shown))
