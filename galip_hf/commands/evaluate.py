"""`galip-hf evaluate`: a model on a table, or folders of volumes, to a report one can defend."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError

if TYPE_CHECKING:
    import numpy as np

    from ..clip.backbone import ClipBackbone
    from ..data.folder_subjects import Resample
    from ..model.unet import GalipGenerator

Windows = dict[str, tuple[float, float]]


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
    parser.add_argument("--compare", metavar="MODEL2", help="second model, or second folder of predictions")
    parser.add_argument(
        "--clip", metavar="SOURCE", help="CLIP model for FID and KID (hf-hub:… or a directory)"
    )
    parser.add_argument("--output", required=True, help="folder to write: report.html, report.json, …")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing report")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the model (default: fp32)"
    )
    parser.set_defaults(run=_evaluate)


@dataclass
class _Run:
    """What one evaluation gave, and what the pictures and the provenance need."""

    title: str
    reports: dict[str, dict[str, Any]]  # the model's, then that of --compare
    subjects: Sequence[Mapping[str, "np.ndarray"]]
    predict: Callable[[int, str, str, slice], "np.ndarray"] | None
    dataset: str
    split: str
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _evaluate(arguments: argparse.Namespace) -> None:
    output = _check_output(Path(arguments.output), arguments.overwrite)
    folders = _check_mode(arguments)
    backbone = None
    if arguments.clip:
        from ..clip.backbone import ClipBackbone
        from ..extras import require

        require("torchmetrics", "evaluate")
        backbone = ClipBackbone.from_pretrained(arguments.clip, device=_device(arguments.device))
    run = _run_folders(arguments, backbone) if folders else _run_table(arguments, backbone)
    _write(run, output, arguments)
    _say(run, output)


def _check_output(output: Path, overwrite: bool) -> Path:
    if output.exists() and not overwrite:
        raise GalipError(f"{output}: already exists; choose another name or pass --overwrite")
    if output.exists() and not (output / "report.json").is_file():
        raise GalipError(f"{output}: exists and is not a report; only a report is overwritten")
    return output


def _check_mode(arguments: argparse.Namespace) -> bool:
    """Whether folders are compared; GalipError when the arguments ask for both or for neither."""
    folders = any(
        getattr(arguments, name)
        for name in ("prediction", "target", "source", "direction", "mask", "resample_prediction")
    )
    if folders and (arguments.data or arguments.model):
        raise GalipError("found --data or --model beside folders; give a table, or --prediction and --target")
    if folders and not (arguments.prediction and arguments.target):
        raise GalipError("--prediction and --target belong together; give a folder for each")
    if not folders and not arguments.data:
        raise GalipError("nothing to evaluate; give --data TABLE and --model, or --prediction and --target")
    if arguments.model and arguments.ct_window:
        raise GalipError("--ct-window: the model's configuration states the window; leave it out")
    if arguments.compare and arguments.compare in (arguments.model, arguments.prediction):
        raise GalipError(f"--compare {arguments.compare}: is the first one too; name another")
    if arguments.compare and not (arguments.model or folders):
        raise GalipError("--compare: there is no first model; give --model, or --prediction")
    return folders


def _windows(texts: Sequence[str]) -> Windows:
    windows = {}
    for text in texts:
        number = r"([-+]?\d+(?:\.\d+)?)"
        match = re.fullmatch(rf"(.+)={number},{number}", text)
        if not match or float(match[2]) >= float(match[3]):
            raise GalipError(f"--ct-window {text}: expected DOMAIN=LOW,HIGH in HU, such as CT=-1000,1000")
        windows[match[1]] = (float(match[2]), float(match[3]))
    return windows


def _device(name: str) -> str:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise GalipError(f"--device {name}: not usable ({str(error).splitlines()[0]})") from None
    return name


# --- a table ---


def _run_table(arguments: argparse.Namespace, backbone: "ClipBackbone | None") -> _Run:
    import torch

    from ..data.paired_subjects import DomainSlices, TableSubjects
    from ..data.table import load_table
    from ..evaluation.evaluate import evaluate
    from ..inference.slices import precision_in_words, translate_slices
    from ..prepare.splits import split_hash_of_table

    table = load_table(arguments.data)
    if arguments.split not in table:
        raise GalipError(f"{arguments.data}: no split {arguments.split!r}; it has {', '.join(table)}")
    known = table[arguments.split].features["domain"].names
    device = _device(arguments.device)
    sources = [source for source in (arguments.model, arguments.compare) if source]
    models = {source: _load(source, device) for source in sources}
    domains, notes = _shared_domains(known, models)
    subjects = TableSubjects(table[arguments.split], domains)
    if subjects.unmatched_slices:
        notes.append(
            f"{subjects.unmatched_slices} slices left out: another domain of the subject lacks them."
        )
    training, lacking = None, []
    pairs: Sequence[Mapping[str, np.ndarray]] = ()
    if "train" in table:
        pairs = TableSubjects(table["train"], domains)
        training = {domain: DomainSlices(table["train"], domain) for domain in domains}
        lacking = [domain for domain, slices in training.items() if not len(slices)]
    if training is None or lacking:
        training = None
        notes.append(
            "The table has no training slices" + (f" of {', '.join(lacking)}" if lacking else "") + ": no "
            "baseline 'mean', and histograms are matched to the target itself."
        )
    windows = _model_windows(models[sources[0]], notes) if sources else _windows(arguments.ct_window)
    reports = {
        source: evaluate(
            subjects,
            _translator(models[source], arguments.precision) if source in models else None,
            training if number == 0 else None,
            domains=domains,
            ct_windows={d: window for d, window in windows.items() if d in domains},
            names=subjects.names,
            training_pairs=pairs,
            mask_of=subjects.mask,
            backbone=backbone,
            baselines=number == 0,
        )
        for number, source in enumerate(sources or ["baselines"])
    }

    def predict(index: int, source: str, target: str, wanted: slice) -> "np.ndarray":
        volume = subjects[index][source][wanted]
        return translate_slices(models[sources[0]], volume, target, precision=arguments.precision)

    digest, kind = split_hash_of_table(arguments.data, subjects.names)
    details = {
        **_identity(arguments.model, "model"),
        **_identity(arguments.compare, "compared"),
        **({"precision": precision_in_words(torch.device(device), arguments.precision)} if sources else {}),
        "data": str(arguments.data),
        "split": arguments.split,
        "split_hash": digest,
        "split_hash_of": kind,
    }
    title = f"{sources[0] if sources else 'Baselines'} on {arguments.data}, {arguments.split}"
    dataset = Path(arguments.data).resolve().name
    return _Run(
        title, reports, subjects, predict if sources else None, dataset, arguments.split, details, notes
    )


def _load(source: str, device: str) -> "GalipGenerator":
    from ..inference.pipeline import load_model

    return load_model(source)[0].to(device)


def _translator(model: "GalipGenerator", precision: str) -> Callable[["np.ndarray", str, str], "np.ndarray"]:
    from ..inference.slices import translate_slices

    return lambda volume, source, target: translate_slices(model, volume, target, precision=precision)


def _shared_domains(
    known: Sequence[str], models: Mapping[str, "GalipGenerator"]
) -> tuple[list[str], list[str]]:
    """The domains that the table and every model have, in the first model's order, and what is left out."""
    listed = [model.config.domain_names for model in models.values()]
    order = listed[0] if listed else list(known)
    domains = [domain for domain in order if all(domain in names for names in (known, *listed))]
    if len(domains) < 2:
        raise GalipError(
            f"the table has the domains {', '.join(known)}, the model {', '.join(order)}; expected two or "
            "more of the same names"
        )
    left_out = sorted({*known, *(name for names in listed for name in names)} - set(domains))
    return domains, [f"Domains left out: {', '.join(left_out)} (not in the table and every model)."] * bool(
        left_out
    )


def _model_windows(model: "GalipGenerator", notes: list[str]) -> Windows:
    """CT domain -> HU window of the model's configuration."""
    windows = {}
    for domain in model.config.domains:
        if domain["modality"] != "CT":
            continue
        if domain["intensity"]["rule"] == "window":
            windows[domain["name"]] = (domain["intensity"]["lower"], domain["intensity"]["upper"])
        else:
            notes.append(f"{domain['name']}: a CT domain without a HU window, so it is scored as MR is.")
    return windows


def _identity(source: str | None, role: str) -> dict[str, Any]:
    """SHA-256 of a model's weights and configuration, from the files that were loaded."""
    if source is None:
        return {}
    from transformers.utils import cached_file

    from ..files import file_hash

    identity: dict[str, Any] = {role: source}
    for key, name in (("weights_sha256", "model.safetensors"), ("config_sha256", "config.json")):
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        identity[f"{role}_{key}"] = file_hash(path) if path else None
    return identity


# --- folders ---


def _run_folders(arguments: argparse.Namespace, backbone: "ClipBackbone | None") -> _Run:
    from ..data.folder_subjects import FolderSubjects
    from ..evaluation.evaluate import evaluate_folders

    source, arrow, target = (arguments.direction or "source->target").partition("->")
    if not (arrow and source and target and source != target):
        raise GalipError(f"--direction {arguments.direction}: expected two domains, such as 'T1->T2'")
    windows = _windows(arguments.ct_window)
    if unknown := sorted(set(windows) - {source, target}):
        raise GalipError(
            f"--ct-window {unknown[0]}: expected {source} or {target}, as --direction names them"
        )
    predictions = [folder for folder in (arguments.prediction, arguments.compare) if folder]
    subjects = FolderSubjects(
        predictions,
        arguments.target,
        arguments.source,
        domains=(source, target),
        windows=windows,
        masks=arguments.mask,
        resample=_resampler() if arguments.resample_prediction else None,
    )
    notes = [
        f"{folder}: {len(names)} of its volumes left out, another folder lacks them: {', '.join(names)}."
        for folder, names in subjects.unmatched.items()
    ]
    if not subjects.has_sources:
        notes.append("No sources were given: no baselines and no identity-collapse check.")
    reports = {
        folder: evaluate_folders(
            subjects,
            (source, target),
            system=number,
            ct_windows=windows,
            backbone=backbone,
            baselines=number == 0,
        )
        for number, folder in enumerate(predictions)
    }
    notes += subjects.notes
    for report in reports.values():
        report["unmatched"] = subjects.unmatched
    details = {"prediction": arguments.prediction, "target": arguments.target, "source": arguments.source}
    return _Run(
        f"{arguments.prediction} against {arguments.target}",
        reports,
        subjects,
        lambda index, source, target, wanted: subjects.prediction(index)[wanted],
        Path(arguments.target).resolve().name,
        "test",
        details,
        notes,
    )


def _resampler() -> "Resample":
    """Linear resampling by SimpleITK, as `galip-hf prepare` does it."""
    from ..data.grid import grid_of
    from ..extras import require
    from ..prepare.images import ScanImage
    from ..prepare.registration import resample

    require("SimpleITK", "prepare")
    return lambda volume, grid: resample(ScanImage(volume.array, grid_of(volume)), grid)


# --- the report ---


def _write(run: _Run, output: Path, arguments: argparse.Namespace) -> None:
    from ..evaluation.case_figures import save_cases
    from ..evaluation.report import compare_reports, model_index, provenance, write_subjects_csv
    from ..evaluation.report_page import html_report
    from ..files import atomic_write, write_report

    first, *others = run.reports.items()
    name, report = first
    report["notes"] = run.notes
    report["provenance"] = provenance(arguments.command_line, arguments.device, 0, **run.details)
    if others:
        report["comparison"] = {"a": name, "b": others[0][0], **compare_reports(report, others[0][1])}
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as temporary:
        temporary.mkdir()
        pictures = {}
        if run.predict:
            pictures = save_cases(report, run.subjects, run.predict, temporary / "panels")
        write_report(report, temporary / "report.json")
        write_subjects_csv(run.reports, temporary / "subjects.csv")
        entries = model_index(report, model_name=Path(name).name, dataset=run.dataset, split=run.split)
        write_report({"model-index": entries}, temporary / "model_index.json")
        page = html_report(report, title=run.title, pictures=pictures)
        (temporary / "report.html").write_text(page, encoding="utf-8")


def _say(run: _Run, output: Path) -> None:
    """The headline on the terminal."""
    from ..evaluation.report_page import findings

    report = next(iter(run.reports.values()))
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
    for line in [*run.notes, *findings(report)]:
        print(f"  {line}")
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
