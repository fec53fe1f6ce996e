"""`galip-hf translate`: scans in, scans out, with what is known about how far to believe them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError
from ..version import DISCLAIMER
from .options import add_force, add_full_paths
from .shares import Share, chosen_share
from .startup import collector_paused, keep_freed_memory
from .translate_plan import made_folders, plan_jobs, target_names, without_existing
from .translate_run import Outcome, Row, run_all, run_one

if TYPE_CHECKING:
    from ..inference.pipeline import GalipPipeline

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
    translate.add_argument(
        "--part",
        metavar="K/N",
        help="only the K-th of N parts of the scans, as 3/16, for the tasks of a queue; each scan is in one",
    )
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
    translate.add_argument(
        "--device", default="auto", help="torch device (default: auto, CUDA, XPU or MPS, else the CPU)"
    )
    translate.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "auto"),
        default="fp32",
        help="fp32 is the reference (default); auto: bf16 on CPUs that compute it, else fp32",
    )
    translate.add_argument(
        "--runtime",
        choices=("torch", "onnxruntime", "openvino"),
        default="torch",
        help="what computes the slices: PyTorch (default), or model.onnx in another runtime, see export",
    )
    add_force(translate)
    translate.set_defaults(run=_translate)


def _translate(arguments: argparse.Namespace) -> int:
    # What can fail early, and costs little, comes first.
    if arguments.batch_size < 1:
        raise GalipError(f"--batch-size is {arguments.batch_size}; expected 1 or more")
    if arguments.resample is not None and not 0 < arguments.resample < float("inf"):
        raise GalipError(f"--resample is {arguments.resample}; expected a pixel size in mm, more than 0")
    if not 0 < arguments.max_size < float("inf"):
        raise GalipError(f"--max-size is {arguments.max_size}; expected a size in GiB, more than 0")
    share = chosen_share(arguments.part)
    with collector_paused():
        jobs = plan_jobs(arguments, share)
        todo = [job for job in (without_existing(job, arguments) for job in jobs) if job.outputs]
        skipped = sum(len(job.outputs) for job in jobs) - sum(len(job.outputs) for job in todo)
        pipeline = _load(arguments, share)
    for name in target_names(arguments):
        pipeline.config.domain_index(name)
    pipeline.source_domain(arguments.source)
    if arguments.dry_run:
        for job in todo:
            for target, output in job.outputs.items():
                print(f"{job.scan.path} -> {target}: {output}")
        print(f"dry run: nothing was written; {sum(len(job.outputs) for job in todo)} to do, {skipped} exist")
        return 0
    with made_folders([job.outputs for job in todo], share):
        computed = f"{pipeline.model.device}, {pipeline.arithmetic}"
        if share.is_alone and len(jobs) == 1 and todo:
            _print_table(run_one(pipeline, todo[0], arguments))
            print(computed)  # not first: the first line is of the scan, should it not fit the model
            code = 0
        else:
            if share.rank == 0:
                print(computed)
            outcome = run_all(pipeline, todo, arguments, shows_progress=share.rank == 0)
            outcome.skipped = skipped
            code = _summary(share.gathered(outcome))
        if arguments.bids and any(output.is_file() for job in jobs for output in job.outputs.values()):
            from ..data.bids import write_dataset_files

            write_dataset_files(Path(arguments.output), Path(arguments.inputs[0]), pipeline.name)
    return code


def _load(arguments: argparse.Namespace, share: Share) -> "GalipPipeline":
    from ..inference.pipeline import GalipPipeline

    keep_freed_memory()
    return GalipPipeline.from_pretrained(
        arguments.model,
        revision=arguments.revision,
        verify=arguments.verify,
        subfolder=arguments.subfolder,
        variant=arguments.variant,
        device=_device(arguments, share),
        precision=arguments.precision,
        runtime=arguments.runtime,
        force=arguments.force,
    )


def _device(arguments: argparse.Namespace, share: Share) -> str:
    """A device of its own for each process of a machine; another runtime than torch chooses for itself."""
    if arguments.runtime != "torch":
        return arguments.device
    from ..devices import chosen_device

    return str(chosen_device(arguments.device, share.local_rank))


def _summary(outcomes: Sequence[Outcome]) -> int:
    """Print what became of the scans of all processes; 1 if any failed.

    Of several processes only the first is given the outcomes, and so fails alone: a launcher would stop the
    others as soon as one does.
    """
    _print_table([row for outcome in outcomes for row in outcome.rows])
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    if skipped := sum(outcome.skipped for outcome in outcomes):
        print(f"{skipped} existed already and were left")
    if failures:
        print(f"{len(failures)} of {sum(outcome.scans for outcome in outcomes)} scans failed:")
        for failure in failures:
            print(f"  {failure}")
    return 1 if failures else 0


def _print_table(rows: Sequence[Row]) -> None:
    """Which scans the model was not made for; what was written, and the three reasons for doubt."""
    if not rows:
        return
    told = [(report["input"], warning) for _, report in rows for warning in report["warnings"]]
    for scan, warning in dict.fromkeys(told):  # once for all targets
        if _is_unlike(warning):
            print(f"warning: {scan}: {warning}")
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
            if not _is_unlike(warning):
                print(f"warning: {output}: {warning}")
    print(f"{DISCLAIMER.capitalize()}.")


def _is_unlike(warning: str) -> bool:
    from ..inference.reliability import UNLIKE

    return warning.startswith(UNLIKE)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
