"""Model cards: made from what lies beside the weights, and checked against it.

A card's facts come from config.json, training.json (the run, see `training_facts`) and report.json (the
evaluation, see `evaluation.write_report`). What is not there is said to be unknown. The sections between
`<!-- galip-hf: begin NAME -->` and `end NAME` are made anew each time; all other text, and all keys of the
front matter that are not ours, belong to the people who wrote them.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .configuration_galip import GalipConfig
from .errors import GalipError

CARD, REPORT, TRAINING = "README.md", "report.json", "training.json"
TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("galip", "medical", "unpaired-image-translation", "synthetic-data")
PICTURES = (".png", ".svg", ".jpg")
UNKNOWN = "unknown"

_SECTION = re.compile(
    r"<!-- galip-hf: begin (?P<name>\w+) -->.*?<!-- galip-hf: end (?P=name) -->", flags=re.DOTALL
)
# A number of its own: not the digits of a name (T1) nor of a hash.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|\.\d)")
_DECIBELS = re.compile(r"(-?\d+(?:\.\d+)?)\s*dB\b")


def model_card(
    directory: str | Path,
    *,
    repo: str | None = None,
    subfolder: str = "",
    variant: str | None = None,
    pushed: str | None = None,
    tags: Sequence[str] = (),
    has_code: bool = False,
    license: str | None = None,
) -> str:
    """The card of a model directory.

    Text written by hand comes from the directory's README.md if anybody edited it there, else from `pushed`.

    Args:
        directory: with config.json; the weights, training.json, report.json and pictures may be missing.
        repo: repository that the usage example names; the directory by default.
        subfolder, variant: of the repository, for the usage example.
        pushed: card that the repository has.
        tags: to add to the front matter.
        has_code: whether the repository carries the code; also seen from config.json's auto_map.
        license: identifier for the front matter, such as apache-2.0; kept as it was by default.

    Raises:
        GalipError: no model directory, or one of its files cannot be read.
    """
    directory = Path(directory)
    fresh = _fresh_card(directory, repo or str(directory), subfolder, variant, has_code)
    local = _read(directory / CARD) if (directory / CARD).is_file() else None
    is_edited = local is not None and _hand_written(local) != _hand_written(str(fresh))
    base = local if is_edited else pushed if pushed is not None else local
    card = fresh if base is None else _merge(_parse(base, str(directory / CARD)), fresh)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    if license is not None:
        card.data.license = license
    return str(card).rstrip() + "\n"


def _fresh_card(directory: Path, repo: str, subfolder: str, variant: str | None, has_code: bool) -> Any:
    values = _read_json(directory / "config.json")
    config = GalipConfig.from_dict(values)
    training = _read_json(directory / TRAINING) if (directory / TRAINING).is_file() else {}
    report = _read_json(directory / REPORT) if (directory / REPORT).is_file() else {}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-to-image",
        tags=[*TAGS, *sorted({domain["modality"].lower() for domain in config.domains})],
        datasets=training.get("datasets"),
        base_model=_base_model(training),
        co2_eq_emissions={"emissions": 1000 * training["emissions_kg"]}
        if "emissions_kg" in training
        else None,
        eval_results=_eval_results(report) or None,
        model_name="I2I-Galip: " + ", ".join(config.domain_names),
    )
    place = {"subfolder": subfolder} if subfolder else {}
    weights = {"variant": variant} if variant else {}
    try:
        return ModelCard.from_template(
            data,
            template_str=TEMPLATE.read_text(encoding="utf-8"),
            domains=[{**domain, "rule": _rule(domain["intensity"])} for domain in config.domains],
            parameters=f"{config.num_parameters:,}",
            image_size=config.image_size,
            text_conditioning=config.text_conditioning,
            has_weights=any(directory.glob("model*.safetensors")),
            has_code=has_code or "auto_map" in values,
            arguments=_arguments(repo, {**place, **weights}),
            processor_arguments=_arguments(repo, place),
            training={"data": {}, "versions": {}, **training} if training else None,
            tables=_tables(report),
            subjects=report.get("subjects", UNKNOWN),
            slices=report.get("slices", UNKNOWN),
            pictures=sorted(path.name for path in directory.iterdir() if path.suffix in PICTURES),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise GalipError(
            f"{directory}: {TRAINING} or {REPORT} is not of the expected form "
            f"({type(error).__name__}: {error})"
        ) from None


def _arguments(repo: str, options: Mapping[str, str]) -> str:
    return ", ".join([json.dumps(repo), *(f"{name}={json.dumps(value)}" for name, value in options.items())])


def _rule(rule: Mapping[str, Any]) -> str:
    if rule["rule"] == "none":
        return "values are in [0, 1]"
    unit = "HU window" if rule["rule"] == "window" else "percentiles"
    return f"{unit} {rule['lower']:g} to {rule['upper']:g}"


def _base_model(training: Mapping[str, Any]) -> str | None:
    source = str(training.get("clip", ""))
    return source.removeprefix("hf-hub:") if source.startswith("hf-hub:") else None


# Metrics


def _tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The report's tables, the masked region of the protocol `fixed` first."""
    tables = []
    for protocol, values in sorted(report.get("protocols", {}).items()):
        for region in sorted(set(values) - {"version", "description"}, reverse=True):
            baselines = values[region].get("baselines", {})
            columns = [values[region]["directions"], *baselines.values()]
            rows = [
                (direction, [_cell(column.get(direction) or {}) for column in columns])
                for direction in columns[0]
            ]
            names = {name: values[name] for name in ("version", "description")}
            tables.append(
                {"protocol": protocol, "region": region, "baselines": list(baselines), "rows": rows, **names}
            )
    return tables


def _cell(scores: Mapping[str, Any]) -> str:
    psnr, ssim = scores.get("psnr"), scores.get("ssim")
    return "not scored" if psnr is None or ssim is None else f"{psnr:.2f} ({ssim:.3f})"


def _eval_results(report: Mapping[str, Any]) -> list[EvalResult]:
    """`model-index` entries: PSNR and SSIM of each direction; the metric's name says protocol and region."""
    results = []
    name = str(report.get("data") or UNKNOWN)
    for table in _tables(report):
        cells = report["protocols"][table["protocol"]][table["region"]]["directions"]
        for direction, cell in cells.items():
            for metric, unit, digits in (("psnr", " (dB)", 2), ("ssim", "", 3)):
                if cell.get(metric) is None:
                    continue
                protocol = f"protocol {table['protocol']} version {table['version']}, {table['region']}"
                results.append(
                    EvalResult(
                        task_type="image-to-image",
                        task_name=f"{direction}, {protocol}",
                        dataset_type=name,
                        dataset_name=name,
                        dataset_config=direction,
                        dataset_split="test",
                        metric_type=metric,
                        metric_name=f"{metric.upper()}{unit}, {protocol}",
                        metric_value=round(cell[metric], digits),
                    )
                )
    return results


# Text by hand and text by us


def _hand_written(card: str) -> str:
    """The body without the generated sections and without differences in blank space."""
    body = re.sub(r"\A\s*---\n.*?\n---\n", "", card.replace("\r\n", "\n"), flags=re.DOTALL)
    return " ".join(_SECTION.sub("", body).split())


def _merge(card: Any, fresh: Any) -> Any:
    """`card` with the generated sections and our keys of the front matter taken from `fresh`."""
    for section in _SECTION.finditer(fresh.text):
        name, new = section["name"], section.group()
        old = next((found for found in _SECTION.finditer(card.text) if found["name"] == name), None)
        if old is None:
            card.text = f"{card.text.rstrip()}\n\n{new}\n"
        else:
            card.text = card.text[: old.start()] + new + card.text[old.end() :]
    old_tags = card.data.tags or []
    for key in ("library_name", "pipeline_tag", "eval_results", "model_name"):
        setattr(card.data, key, getattr(fresh.data, key))
    for key in ("datasets", "base_model", "co2_eq_emissions"):  # kept where we know nothing
        if (known := fresh.data.get(key)) is not None:
            setattr(card.data, key, known)
    card.data.tags = list(dict.fromkeys([*old_tags, *(fresh.data.tags or [])]))
    return card


def _parse(text: str, where: str) -> Any:
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GalipError(f"{where}: the card's front matter is not readable ({reason}); mend it") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise GalipError(f"{path}: not readable; expected a text file") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise GalipError(f"{path}: not readable as JSON; expected an object")
    return values


# The run


def training_facts(
    arguments: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    splits: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    description: str,
    clip: str,
    command: str,
    hardware: str,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """What training.json holds: the facts of a run that its log and its table tell.

    Args:
        arguments: of the training (`GalipTrainingArguments.to_dict`).
        log: entries of log.jsonl.
        splits: split -> domain -> subjects.
        description: of the data, a phrase.
        clip: source of the CLIP model.
        command: that made the run.
        hardware: device and threads.
        versions: of the software.
    """
    losses = [entry for entry in log if "losses" in entry]
    steps = arguments["max_steps"]
    lines = sorted(
        f"{split}\t{domain}\t{subject}"
        for split, domains in splits.items()
        for domain, subjects in domains.items()
        for subject in subjects
    )
    facts: dict[str, Any] = {
        "command": command,
        "seed": arguments["seed"],
        "steps": steps,
        "clip": clip,
        "data": {
            "description": description,
            "subjects": {domain: len(subjects) for domain, subjects in splits["train"].items()},
            "split_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        },
        "hardware": hardware,
        "versions": dict(versions),
        "arguments": dict(arguments),
    }
    seconds = [entry["seconds_per_step"] for entry in losses if "seconds_per_step" in entry]
    if seconds:
        facts["minutes"] = round(sum(seconds) / len(seconds) * steps / 60, 1)
    if losses:
        facts["losses"] = {
            "averaged_steps": arguments["logging_steps"],
            "first": dict(losses[0]["losses"]),
            "last": dict(losses[-1]["losses"]),
        }
    return facts


# The linter


def lint_card(directory: str | Path) -> list[str]:
    """What is wrong with the numbers of a directory's card; nothing is an empty list.

    Each number of the section `evaluation` and of `model-index`, and each number of dB anywhere, must be in
    report.json, rounded as it is printed; each of the section `training`, in training.json. The generated
    sections must be what the files beside the card give now.

    Raises:
        GalipError: no card, or a file that cannot be read.
    """
    directory = Path(directory)
    text = _read(directory / CARD)
    card = _parse(text, str(directory / CARD))
    evidence = {
        name: list(_numbers(_read_json(directory / name))) if (directory / name).is_file() else []
        for name in (REPORT, TRAINING)
    }
    sections = {found["name"]: found.group() for found in _SECTION.finditer(card.text)}
    checks = [
        ("section evaluation", _NUMBER.findall(_without_urls(sections.get("evaluation", ""))), REPORT),
        ("section training", _NUMBER.findall(_without_urls(sections.get("training", ""))), TRAINING),
        ("the text", _DECIBELS.findall(card.text), REPORT),
        ("model-index", [str(result.metric_value) for result in card.data.eval_results or []], REPORT),
    ]
    faults = [
        f"{where}: {number} is in no {file} beside the card"
        for where, numbers, file in checks
        for number in dict.fromkeys(numbers)
        if not _is_among(number, evidence[file])
    ]
    fresh = _fresh_card(directory, "", "", None, False)
    for found in _SECTION.finditer(fresh.text):
        name = found["name"]
        if name != "use" and sections.get(name, "").split() != found.group().split():
            faults.append(f"section {name}: not what the files beside the card give; run galip-hf card again")
    return faults


def _without_urls(section: str) -> str:
    """The section without what is code or a name: links, pictures, code spans."""
    return re.sub(r"`[^`]*`|!?\[[^\]]*\]\([^)]*\)", " ", section)


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value, those inside its texts too."""
    if isinstance(value, str):
        yield from (float(number.replace(",", "")) for number in _NUMBER.findall(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(str(key))
            yield from _numbers(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield float(value)


def _is_among(number: str, known: Sequence[float]) -> bool:
    """Is `number` one of `known`, rounded to as many digits?"""
    digits = len(number.partition(".")[2])
    printed = float(number.replace(",", ""))
    return any(abs(round(value, digits) - printed) < 1e-9 for value in known)


__all__ = ["lint_card", "model_card", "training_facts"]
