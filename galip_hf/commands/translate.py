"""`galip-hf translate`: scans in, scans out, with what is known about how far to believe them."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError
from ..version import DISCLAIMER
from .bids_plan import bids_fields
from .options import add_full_paths
from .startup import collector_paused, keep_freed_memory
from .translate_plan import Job, made_folders, plan_jobs, target_names, without_existing

if TYPE_CHECKING:
    from ..inference.pipeline import GalipPipeline
    from ..inference.translation import Translation

FORMATS = (
    *("input", "nii.gz", "nii", "img", "mgz", "mgh", "nrrd", "nhdr", "mha", "mhd"),
    *("mat", "npy", "npz", "png", "tif", "dicom"),
)


def add_parser(commands: Any) -> None:
    """Declare the command."""
    translate = commands.add_parser("translate", help="translate scans to other domains")
    translate.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="scans: NIfTI, DICOM, NRRD, MetaImage, MGH, Analyze, MATLAB, NumPy, PNG, TIFF, or folders of "
        "these (all levels)",
    )
    translate.add_argument(
        "--model", required=True, help="model directory, or a repository of the Hub (user/name)"
    )
    translate.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    translate.add_argument("--subfolder", default="", help="folder of the directory or repository")
    translate.add_argument("--variant", help="of the weights: 'ema' stands for model.ema.safetensors")
    translate.add_argument(
        "--verify",
        action="store_true",
        default=None,
        help="ask the Hub for the checksums anew (default: compare with those it sent with the download)",
    )
    translate.add_argument(
        "--to", required=True, metavar="DOMAIN[,DOMAIN]", help="target domains, names that the model knows"
    )
    translate.add_argument(
        "--from",
        dest="source",
        metavar="DOMAIN",
        help="domain of the inputs; needed if the domains' intensity rules differ",
    )
    translate.add_argument(
        "--output",
        required=True,
        help="file to write, for one input and one target (its suffix decides the format); else a folder, "
        "for NAME_DOMAIN files",
    )
    translate.add_argument(
        "--format",
        choices=FORMATS,
        default="input",
        help="format in an output folder (default: the input's; dicom makes derived series)",
    )
    translate.add_argument(
        "--keep-patient-tags",
        action="store_true",
        help="copy patient and study into derived DICOM series (default: nothing of them)",
    )
    translate.add_argument(
        "--axis",
        choices=("axial", "coronal", "sagittal"),
        help="plane of the slices (default: that of the training, else axial, by the scan's affine)",
    )
    translate.add_argument(
        "--select",
        action="append",
        metavar="KEYWORD=VALUE",
        help="of DICOM, only images with this value (EchoTime=80, ImageType=M); may be repeated",
    )
    translate.add_argument(
        "--uneven",
        choices=("refuse", "resample"),
        default="refuse",
        help="DICOM slices at uneven distances: refuse them (default), or interpolate to even ones",
    )
    translate.add_argument(
        "--nan-background",
        action="store_true",
        help="take NaN as air: 0, or the lowest value of the scan where that is negative",
    )
    translate.add_argument(
        "--max-size",
        type=float,
        default=2.0,
        metavar="GIB",
        help="largest scan read, in GiB as float32; one slice may have an eighth of it (default: 2)",
    )
    translate.add_argument(
        "--bids",
        action="store_true",
        help="INPUT is a BIDS data set: read sub-*/[ses-*/]anat scans of --from, and write a derivative data "
        "set of desc-synthetic scans",
    )
    existing = translate.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    existing.add_argument(
        "--skip-existing", action="store_true", help="leave existing outputs and make the rest"
    )
    add_full_paths(translate)
    translate.add_argument("--dry-run", action="store_true", help="say what would be written, and stop")
    translate.add_argument(
        "--cycle-map",
        action="store_true",
        help="also translate back: NAME_cycle and a number (twice the time)",
    )
    translate.add_argument(
        "--geometry",
        choices=("model", "native"),
        default="model",
        help="model (default): bring the scan to plane, pixel size and canvas of the training slices, and "
        "the translation back; native: take the scan as it is",
    )
    translate.add_argument(
        "--crop",
        action="store_true",
        help="with --geometry native: translate the foreground's box only (a multiple of 32)",
    )
    translate.add_argument(
        "--resample",
        type=float,
        metavar="MM",
        help="translate at this pixel size (default: that of the training); undone afterwards",
    )
    translate.add_argument("--figure", action="store_true", help="also write NAME_figure.png, three slices")
    translate.add_argument("--batch-size", type=int, default=4, help="slices translated at once (default: 4)")
    translate.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    translate.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="fp32 is the reference (default)",
    )
    translate.set_defaults(run=_translate)


def _translate(arguments: argparse.Namespace) -> int:
    # What can fail early, and costs little, comes first.
    if arguments.batch_size < 1:
        raise GalipError(f"--batch-size is {arguments.batch_size}; expected 1 or more")
    if arguments.resample is not None and not 0 < arguments.resample < float("inf"):
        raise GalipError(f"--resample is {arguments.resample}; expected a pixel size in mm, more than 0")
    if not 0 < arguments.max_size < float("inf"):
        raise GalipError(f"--max-size is {arguments.max_size}; expected a size in GiB, more than 0")
    with collector_paused():
        jobs = plan_jobs(arguments)
        todo = [job for job in (without_existing(job, arguments) for job in jobs) if job.outputs]
        skipped = sum(len(job.outputs) for job in jobs) - sum(len(job.outputs) for job in todo)
        pipeline = _load(arguments)
    for name in target_names(arguments):
        pipeline.config.domain_index(name)
    pipeline.source_domain(arguments.source)
    if arguments.dry_run:
        for job in todo:
            for target, output in job.outputs.items():
                print(f"{job.scan.path} -> {target}: {output}")
        print(f"dry run: nothing was written; {sum(len(job.outputs) for job in todo)} to do, {skipped} exist")
        return 0
    with made_folders([job.outputs for job in todo]):
        if len(jobs) == 1 and todo:
            _print_table(list(_run(pipeline, todo[0], arguments)))
            code = 0
        else:
            code = _run_all(pipeline, todo, skipped, arguments)
        if arguments.bids and any(output.is_file() for job in jobs for output in job.outputs.values()):
            from ..data.bids import write_dataset_files

            write_dataset_files(Path(arguments.output), Path(arguments.inputs[0]), pipeline.name)
        return code


def _load(arguments: argparse.Namespace) -> "GalipPipeline":
    from ..inference.pipeline import GalipPipeline

    keep_freed_memory()
    return GalipPipeline.from_pretrained(
        arguments.model,
        revision=arguments.revision,
        verify=arguments.verify,
        subfolder=arguments.subfolder,
        variant=arguments.variant,
        device=arguments.device,
        precision=arguments.precision,
    )


def _run_all(
    pipeline: "GalipPipeline", jobs: Sequence[Job], skipped: int, arguments: argparse.Namespace
) -> int:
    """Every job, going on after failures; 1 if there were any."""
    from tqdm.auto import tqdm

    rows, failures = [], []
    for job in tqdm(jobs, unit="scan", desc="scans", disable=None):
        try:
            rows += list(_run(pipeline, job, arguments))
        except (GalipError, OSError, MemoryError, RuntimeError) as error:
            message = " ".join(str(error).split()).removeprefix(f"{job.scan.path}: ")
            failures.append(f"{job.scan.path}: {message}")
    _print_table(rows)
    if skipped:
        print(f"{skipped} existed already and were left")
    if failures:
        print(f"{len(failures)} of {len(jobs)} scans failed:")
        for failure in failures:
            print(f"  {failure}")
    return 1 if failures else 0


def _run(
    pipeline: "GalipPipeline", job: Job, arguments: argparse.Namespace
) -> Iterator[tuple[Path, "dict[str, Any]"]]:
    """Translate one scan and write it to every target; yields each file written and its report."""
    from tqdm.auto import tqdm

    from ..data.file_checks import GIB, has_suffix
    from ..data.scans import read_scan
    from ..data.writers import check_fits
    from ..inference.translation import save_dicom, save_translations

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
    slices = sum(len(volume.array) for volume in volumes)
    total = slices * len(job.outputs) * (2 if arguments.cycle_map else 1)
    with tqdm(total=total, unit="slice", desc=job.scan.name, leave=False, disable=None) as bar:
        translations: list[list[Translation]] = [
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
    # With --skip-existing the scan is not there: what lies beside it is left over from a killed run.
    overwrite = arguments.overwrite or arguments.skip_existing
    for translation in (one for of_volume in translations for one in of_volume):
        translation.report["input"] = job.scan.shown
        if arguments.full_paths:
            translation.report["input"] = str(job.scan.path.absolute())
            translation.report["model"] = arguments.model
    if job.bids is not None:
        for translation in (one for of_volume in translations for one in of_volume):
            translation.report.update(bids_fields(job.bids, translation))
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
        for translation in of_target:
            yield output, translation.report


def _print_table(rows: Sequence[tuple[Path, "dict[str, Any]"]]) -> None:
    """What was written, and the three reasons for doubt."""
    if not rows:
        return
    cells = [("output", "from", "to", "slices", "input check", "cycle error", "changed by")]
    for output, report in rows:
        look, cycle = report["input_check"], report["cycle_error"] or {}
        shown = look["verdict"] + (
            "" if look["score"] is None else f" ({look['score']:.2f}/{look['limit']:.2f})"
        )
        cells.append(
            (
                str(output), report["source"], report["target"], str(report["slices"]), shown,
                _number(cycle.get("mean")), _number(report["identity"]["mean_difference"]),
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for output, report in rows:
        for warning in report["warnings"]:
            print(f"warning: {output}: {warning}")
    print(f"{DISCLAIMER.capitalize()}.")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
