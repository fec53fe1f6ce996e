"""Options that several commands take."""

import argparse
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError
from .startup import keep_freed_memory

if TYPE_CHECKING:
    from ..inference.pipeline import GalipPipeline

INTENSITY_HELP = (
    "percentile:LOWER:UPPER, window:LOWER:UPPER or none "
    "(default: percentile:0.5:99.5 for MR, window:-1000:1000 for CT)"
)


def add_loaded_model(parser: argparse.ArgumentParser) -> None:
    """Declare `--model`, `--device`, `--precision` and `--force`, see `load_pipeline`."""
    parser.add_argument(
        "--model", required=True, help="model directory, or a repository of the Hub (user/name)"
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="default: fp32")
    add_force(parser)


def add_force(parser: argparse.ArgumentParser) -> None:
    """Declare `--force`, for `GalipPipeline`."""
    parser.add_argument(
        "--force",
        action="store_true",
        help="translate scans that seem to be acquired with a model that is not for real scans",
    )


def load_pipeline(arguments: argparse.Namespace) -> "GalipPipeline":
    """The pipeline of the options that `add_loaded_model` declares."""
    from ..inference.pipeline import GalipPipeline

    keep_freed_memory()
    return GalipPipeline.from_pretrained(
        arguments.model, device=arguments.device, precision=arguments.precision, force=arguments.force
    )


def add_full_paths(parser: argparse.ArgumentParser) -> None:
    """Declare `--full-paths`."""
    parser.add_argument(
        "--full-paths",
        action="store_true",
        help="name files in reports with all folders above them, which may name patients or users",
    )


def parse_intensity(text: str, option: str) -> dict[str, Any]:
    """An intensity rule from `percentile:0.5:99.5`, `window:-1000:1000` or `none`.

    Args:
        text: the rule.
        option: what the user wrote, for the message.

    Raises:
        GalipError: another form, or values that `validate_intensity_rule` refuses.
    """
    from ..model.domains import validate_intensity_rule

    kind, *bounds = text.split(":")
    try:
        numbers = [float(bound) for bound in bounds]
    except ValueError:
        numbers = []
    if (kind, len(bounds), len(numbers)) not in (("none", 0, 0), ("percentile", 2, 2), ("window", 2, 2)):
        raise GalipError(f"{option}: expected percentile:LOWER:UPPER, window:LOWER:UPPER or none")
    rule = {"rule": kind, **dict(zip(("lower", "upper"), numbers, strict=False))}
    validate_intensity_rule(rule, option)
    return rule


__all__ = [
    "INTENSITY_HELP",
    "add_force",
    "add_full_paths",
    "add_loaded_model",
    "load_pipeline",
    "parse_intensity",
]
