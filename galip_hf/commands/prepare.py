"""`galip-hf prepare`: raw public data to a table of slices."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.errors import GalipError
from .options import INTENSITY_HELP, parse_intensity

if TYPE_CHECKING:
    from ..prepare.sources import Source

SOURCES = ("ixi", "gold-atlas", "syndiff", "brats", "manifest", "folders")


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("prepare", help="make a table of slices from scans, for train and evaluate")
    parser.add_argument("source", choices=SOURCES, help="kind of data; see docs/prepare.md for each layout")
    parser.add_argument("path", help="the data set's folder, or the manifest (CSV or JSON lines)")
    parser.add_argument("--output", required=True, metavar="TABLE", help="folder to make")
    parser.add_argument(
        "--domains", metavar="T1,T2", help="domains to use, in the order of the model's labels"
    )
    parser.add_argument(
        "--preset", choices=("paper",), help="the paper's numbers of subjects (ixi, gold-atlas)"
    )
    parser.add_argument(
        "--split", metavar="TRAIN,VALIDATION,TEST", help="counts or fractions (default: 0.7,0.1,0.2)"
    )
    parser.add_argument(
        "--splits", metavar="FILE", help="assignment of subjects: .json, or .csv (subject,split)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split and the registration (default: 0)")
    parser.add_argument("--image-size", type=int, default=256, help="side of the slices (default: 256)")
    parser.add_argument("--spacing", default="fit", help="mm a pixel, 'native' or 'fit' (default: fit)")
    parser.add_argument(
        "--slices", metavar="N", help="slices of each subject, or 'all' (default: the source's)"
    )
    parser.add_argument("--register", choices=("rigid", "header"), help="(default: the source's)")
    parser.add_argument("--reference", metavar="DOMAIN", help="domain whose grid is used")
    parser.add_argument(
        "--rule", action="append", default=[], metavar="DOMAIN=RULE",
        help=INTENSITY_HELP,
    )  # fmt: skip
    parser.add_argument("--slices-per-subject", type=int, metavar="N", help="of a .mat file (syndiff only)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing table")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="upload the table with a card, private")
    parser.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from ..prepare.run import prepare
    from ..prepare.subjects import Settings

    source = _source(arguments)
    if arguments.domains:
        names = tuple(name.strip() for name in arguments.domains.split(","))
        unknown = [name for name in names if name not in source.domains]
        if unknown or len(set(names)) != len(names):
            raise GalipError(f"--domains {arguments.domains}: expected some of {', '.join(source.domains)}")
        scans = [scan for scan in source.scans if scan.domain in names]
        source = replace(source, domains=names, scans=scans)
    if arguments.reference and arguments.reference not in source.domains:
        raise GalipError(f"--reference {arguments.reference}: expected one of {', '.join(source.domains)}")
    settings = Settings(
        rules=_rules(arguments.rule, source.domains),
        image_size=_positive(arguments.image_size, "--image-size"),
        reference=arguments.reference or source.reference,
        registration=arguments.register or source.registration,
        aligned=source.aligned if arguments.reference in (None, source.reference) else (),
        slices=_slices(arguments.slices, source.slices),
        spacing=_spacing(arguments.spacing),
        seed=arguments.seed,
    )
    if arguments.seed < 0:
        raise GalipError(f"--seed is {arguments.seed}; use 0 or more")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    summary = prepare(
        source,
        arguments.output,
        settings,
        seed=arguments.seed,
        wanted=_wanted(arguments, source),
        split_file=arguments.splits,
        workers=_positive(cores if arguments.workers is None else arguments.workers, "--workers"),
        overwrite=arguments.overwrite,
    )
    _report(arguments.output, summary)
    if arguments.push_to_hub:
        from ..prepare.card import push_table

        print(f"pushed to {push_table(arguments.output, arguments.push_to_hub)}")


def _source(arguments: argparse.Namespace) -> "Source":
    from ..prepare import sources

    data, output = Path(arguments.path).resolve(), Path(arguments.output).resolve()
    if arguments.source == "folders" and output.is_relative_to(data):  # it would be taken for a domain
        raise GalipError(
            f"--output {arguments.output}: lies in the data set's own folder; choose another one"
        )

    if arguments.slices_per_subject is not None and arguments.source != "syndiff":
        raise GalipError("--slices-per-subject is for syndiff only; other sources have a file a scan")
    path = Path(arguments.path)
    if arguments.source == "syndiff":
        length = arguments.slices_per_subject
        return sources.syndiff(path, None if length is None else _positive(length, "--slices-per-subject"))
    return getattr(sources, arguments.source.replace("-", "_"))(path)


def _rules(options: list[str], domains: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    from ..model.domains import DEFAULT_RULES, default_rule

    rules = {name: default_rule(name.upper() if name.upper() in DEFAULT_RULES else "MR") for name in domains}
    for option in options:
        name, _, text = option.partition("=")
        if name not in rules:
            raise GalipError(f"--rule {option}: unknown domain; expected one of {', '.join(rules)}")
        rules[name] = parse_intensity(text, f"--rule {option}")
    return rules


def _positive(value: int, option: str) -> int:
    if value < 1:
        raise GalipError(f"{option} is {value}; expected 1 or more")
    return value


def _slices(text: str | None, default: int | None) -> int | None:
    if text is None:
        return default
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise GalipError(f"--slices {text}: expected a number of 1 or more, or 'all'")
    return int(text)


def _spacing(text: str) -> float | str:
    from ..prepare.subjects import SPACINGS

    if text in SPACINGS:
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise GalipError(f"--spacing {text}: expected mm a pixel, or {' or '.join(SPACINGS)}")
    return value


def _wanted(arguments: argparse.Namespace, source: "Source") -> dict[str, int | float] | None:
    given = [name for name in ("preset", "split", "splits") if getattr(arguments, name)]
    if len(given) > 1:
        raise GalipError(f"--{given[0]} and --{given[1]} were both given; give one")
    if arguments.preset:
        if source.paper_counts is None:
            raise GalipError(f"--preset paper: the paper has no split of {arguments.source}; give --split")
        return dict(zip(("train", "validation", "test"), source.paper_counts, strict=True))
    if not arguments.split:
        return None
    texts = arguments.split.split(",")
    try:
        whole = all(text.strip().isdecimal() for text in texts)
        values: list[int | float] = [int(text) if whole else float(text) for text in texts]
        sizes = dict(zip(("train", "validation", "test"), values, strict=True))
    except ValueError:
        raise GalipError(f"--split {arguments.split}: expected three counts, or three fractions") from None
    return {name: size for name, size in sizes.items() if size}


def _report(output: str, summary: dict[str, Any]) -> None:
    from ..prepare.describe import describe_summary

    print(f"{output}: a table of slices")
    print(describe_summary(summary))
