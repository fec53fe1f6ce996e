"""`galip-hf distill`: a narrower, faster model learns a trained one's translations."""

import argparse
from pathlib import Path
from typing import Any

from ..model.errors import GalipError
from .outputs import checked_model_output, save_derived_model

_BATCHES_TO_COMPARE = 16


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("distill", help="train a narrower, faster model on a model's translations")
    parser.add_argument("teacher", help="model directory, or a repository of the Hub (user/name)")
    parser.add_argument(
        "--data", required=True, metavar="TABLE", help="table made by galip-hf prepare; no pairs are needed"
    )
    parser.add_argument("--output", required=True, help="model directory to write")
    parser.add_argument(
        "--base-channels",
        type=int,
        metavar="N",
        help="width of the student's first level (default: half the teacher's, a quarter of the operations)",
    )
    parser.add_argument("--steps", type=int, default=10_000, help="optimiser steps (default: 10000)")
    parser.add_argument("--batch-size", type=int, default=4, help="slices a step (default: 4)")
    parser.add_argument("--learning-rate", type=float, default=4e-4, help="of Adam (default: 4e-4)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and draws (default: 0)")
    parser.add_argument("--device", default="auto", help="torch device (default: auto)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model directory")
    parser.set_defaults(run=_distill)


def _distill(arguments: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from ..data.table import load_table
    from ..devices import chosen_device
    from ..inference.pipeline import load_model
    from ..training.distill import DistillationSettings, Draws, agreement, distill, new_student, operations

    output = checked_model_output(arguments)
    settings = DistillationSettings(
        arguments.steps, arguments.batch_size, arguments.learning_rate, arguments.seed
    )
    device = chosen_device(arguments.device)
    teacher, processor = load_model(arguments.teacher)
    teacher.to(device)
    width = arguments.base_channels or teacher.config.base_channels // 2
    student = new_student(teacher, width, settings.seed)
    tables = load_table(arguments.data)
    if "train" not in tables:
        raise GalipError(f"{arguments.data}: no split train in it; expected one to learn from")
    draws = Draws(tables["train"], teacher.config.domain_names, settings)
    held_out = next((name for name in ("validation", "test") if name in tables), None)
    share = operations(student) / operations(teacher)
    print(f"{width} base channels, {share:.2f} of the teacher's operations, on {device}", flush=True)
    losses: list[float] = []
    with tqdm(total=settings.steps, unit="step", disable=None) as bar:

        def advance(loss: float) -> None:
            losses.append(loss)
            bar.update()

        student = distill(teacher, student, draws, settings, advance)
    report: dict[str, Any] = {
        "teacher": Path(arguments.teacher).name,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "operations_of_the_teacher": share,
        "last_loss": sum(losses[-100:]) / len(losses[-100:]),
    }
    if held_out is not None:
        others = Draws(tables[held_out], teacher.config.domain_names, settings)
        report["agreement"] = {
            "split": held_out, **agreement(teacher, student, others, _BATCHES_TO_COMPARE)
        }  # fmt: skip
    _save(student, processor, report, output)
    _say(output, report)


def _save(student: Any, processor: Any, report: dict[str, Any], output: Path) -> None:
    """Weights, rules, and the report as distillation.json; the statistics of inputs are the teacher's."""
    from ..files import atomic_write, write_report

    with atomic_write(output) as temporary:
        save_derived_model(student, processor, temporary)
        write_report(report, temporary / "distillation.json")


def _say(output: Path, report: dict[str, Any]) -> None:
    found = report.get("agreement")
    print(f"{output}: mean difference from the teacher in the last steps {report['last_loss']:.4f}")
    if found:
        print(
            f"on the split {found['split']}: {found['mean_difference']:.4f}, {found['psnr']:.1f} dB against "
            "the teacher's translations. What that costs against the truth says: galip-hf evaluate --model "
            f"{output} --compare TEACHER --data TABLE"
        )
