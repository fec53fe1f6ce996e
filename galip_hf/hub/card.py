"""Model cards: the README.md of a model, generated from config.json, training.json and report.json.

The sections between `<!-- galip-hf: begin NAME -->` and `<!-- galip-hf: end NAME -->` are generated again
each time. The text and headings outside of them, and front-matter keys other than the generated ones, are
kept as people wrote them. A fact that none of the three files holds is given as unknown.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..files import file_hash, read_json, read_text
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from ..strict_yaml import parse_yaml
from .card_rendering import CardFacts, render_card
from .model_directory import CARD, CONFIG, PROCESSOR, REPORT, TRAINING

_NAMES = "model|use|limits|training|evaluation|citation"
_MARKER = re.compile(rf"<!-- galip-hf: (begin|end) ({_NAMES}) -->")
_SECTION = re.compile(
    rf"<!-- galip-hf: begin (?P<name>{_NAMES}) -->.*?<!-- galip-hf: end (?P=name) -->", flags=re.DOTALL
)
_FRONT_MATTER = re.compile(r"\s*^---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """A model card: `data`, its front matter, and `text`, the Markdown after it."""

    data: dict[str, Any]
    text: str

    def __str__(self) -> str:
        data = yaml.safe_dump(self.data, sort_keys=False, allow_unicode=True)
        return f"---\n{data}---\n\n{self.text.strip()}\n"

    def sections(self) -> dict[str, str]:
        """The generated sections with their markers, by name."""
        return {found["name"]: found.group() for found in _SECTION.finditer(self.text)}


# The card of a model directory


def model_card(
    directory: str | Path,
    *,
    repo: str | None = None,
    pushed: str | None = None,
    loading: Mapping[str, str | None] | None = None,
    has_code: bool = False,
    tags: Sequence[str] = (),
    license: str | None = None,
) -> str:
    """The card of a model directory, for its README.md.

    Text written by hand comes from the directory's README.md where somebody edited it, else from `pushed`.

    Args:
        directory: with config.json and weights; training.json, report.json and pictures may be missing.
        repo: repository that the usage example names; the directory by default.
        pushed: the card that the repository has.
        loading: more arguments of `from_pretrained` in the usage example, such as `subfolder` and `variant`;
            empty ones are left out.
        has_code: whether the repository carries the code; also true where config.json has an `auto_map`.
        tags: to add to the front matter.
        license: identifier for the front matter, such as apache-2.0; None keeps the one that is there.

    Raises:
        GalipError: one of the files cannot be read, or report.json is of other weights.
    """
    directory = Path(directory)
    facts = model_facts(directory)
    options = [f"{name}={json.dumps(value)}" for name, value in (loading or {}).items() if value]
    facts.source = ", ".join([json.dumps(repo or _shown(directory)), *options])
    facts.has_code = facts.has_code or has_code
    base = read_card(directory / CARD)
    if pushed is not None and (base is None or not _is_edited(base, facts)):
        base = parse_card(pushed, f"{repo or directory}: {CARD}")
    return str(updated_card(base, facts, license, tags))


def model_facts(directory: Path) -> CardFacts:
    """What the files of a model directory say for its card.

    Raises:
        GalipError: one of them cannot be read, or report.json is of other weights.
    """
    values = read_json(directory / CONFIG)
    report = read_json(directory / REPORT) if (directory / REPORT).is_file() else None
    if report is not None:
        check_report(directory, report, directory / REPORT)
    processor = read_json(directory / PROCESSOR) if (directory / PROCESSOR).is_file() else {}
    return CardFacts(
        config=GalipConfig.from_dict(values),
        training=read_json(directory / TRAINING) if (directory / TRAINING).is_file() else {},
        report=report,
        pictures=_pictures(directory),
        has_code="auto_map" in values,
        not_for_real_scans=processor.get("not_for_real_scans"),
    )


def evidence(directory: Path) -> list[str]:
    """Files that the card of a directory rests upon, relative to it: they are pushed with the card."""
    return [name for name in (REPORT, TRAINING) if (directory / name).is_file()] + _pictures(directory)


def _pictures(directory: Path) -> list[str]:
    paths = [*sorted(directory.glob("*.png")), *sorted(directory.glob("panels/*.png"))]
    return [path.relative_to(directory).as_posix() for path in paths]


def _shown(directory: Path) -> str:
    """A directory as the usage example names it: a card may be published, so no absolute path."""
    return directory.name if directory.is_absolute() else str(directory)


def check_report(directory: Path, report: Mapping[str, Any], path: Path) -> None:
    """Make sure that a report is of the weights in a directory.

    Raises:
        GalipError: the report, read from `path`, is of other weights or does not say of which.
    """
    scored = report.get("provenance", {}).get("model_weights_sha256")
    if scored is None:
        raise GalipError(
            f"{path}: does not say which weights it scored; expected one made by galip-hf evaluate --model"
        )
    if scored not in map(file_hash, sorted(directory.glob("model*.safetensors"))):
        raise GalipError(
            f"{path}: was made with other weights (SHA-256 {str(scored)[:12]}…) than those in {directory}; "
            "evaluate this model, or remove the report"
        )


# Reading a card, and generating its sections again


def read_card(path: Path) -> Card | None:
    """The card at `path`, or None where there is no file; errors as of `parse_card`."""
    return parse_card(read_text(path), str(path)) if path.is_file() else None


def parse_card(text: str, where: str) -> Card:
    """A card from its text; `where` names it in errors.

    Raises:
        GalipError: the front matter is not a YAML mapping, its tags or datasets are no list, or the section
            markers do not pair up.
    """
    text = text.replace("\r\n", "\n")
    front_matter = _FRONT_MATTER.match(text)
    try:
        # The line before it, ---, counts too.
        data = (parse_yaml(f"\n{front_matter[1]}", "front matter")[0] or {}) if front_matter else {}
        if not isinstance(data, dict):
            raise ValueError(f"expected keys with values, not a {type(data).__name__}")
        data = {key: value for key, value in data.items() if value is not None}
        for key in {"tags", "datasets"} & data.keys():
            data[key] = list(dict.fromkeys([data[key]] if isinstance(data[key], str) else data[key]))
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GalipError(f"{where}: the card's front matter is not readable ({reason}); mend it") from None
    markers = _MARKER.findall(text)
    names = dict.fromkeys(name for _, name in markers)
    if markers != [(word, name) for name in names for word in ("begin", "end")]:
        found = ", ".join(f"{word} {name}" for word, name in markers)
        raise GalipError(
            f"{where}: the markers <!-- galip-hf: … --> do not pair up ({found}); each section needs a begin "
            "and, after it, an end"
        )
    return Card(data, text[front_matter.end() :] if front_matter else text)


def by_hand(text: str) -> list[str]:
    """The paragraphs outside the generated sections, each on one line."""
    paragraphs = re.split(r"\n\s*\n", _SECTION.sub("\n\n", text))
    return [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()]


def updated_card(
    base: Card | None, facts: CardFacts, license: str | None = None, tags: Sequence[str] = ()
) -> Card:
    """`base`, or a new card, with sections and generated front matter from `facts`.

    Args:
        base: card whose hand-written text and front matter are kept.
        facts: of the model.
        license, tags: as in `model_card`.

    Raises:
        GalipError: training.json or report.json does not have the expected form.
    """
    stated = dict(base.data) if base else {}
    if license is not None:
        stated["license"] = license
    fresh = Card(*render_card(facts, stated))
    base = base or fresh
    data = {key: value for key, value in base.data.items() if key != "model-index"} | fresh.data
    for key, added in (("tags", tags), ("datasets", ())):
        if values := [*base.data.get(key, []), *fresh.data.get(key, []), *added]:
            data[key] = list(dict.fromkeys(values))
    return Card(data, _with_sections(base.text, fresh.text))


def _with_sections(text: str, fresh: str) -> str:
    """`text` with the sections of `fresh`; a missing one is appended with its heading."""
    sections = {found["name"]: found for found in _SECTION.finditer(fresh)}
    text = _SECTION.sub(lambda old: sections.pop(old["name"]).group(), text)
    for missing in sections.values():
        heading = fresh[: missing.start()].rstrip().rpartition("\n")[2]
        text = f"{text.rstrip()}\n\n{heading}\n\n{missing.group()}\n"
    return text


def _is_edited(card: Card, facts: CardFacts) -> bool:
    """Whether people changed anything in a generated card."""
    fresh = Card(*render_card(facts, card.data))
    generated = ("library_name", "pipeline_tag", "tags", "model-index")
    stated, unedited = (
        {key: value for key, value in each.data.items() if key not in generated} for each in (card, fresh)
    )
    has_own_tags = not set(card.data.get("tags", [])) <= set(fresh.data["tags"])
    return has_own_tags or stated != unedited or by_hand(card.text) != by_hand(fresh.text)


__all__ = [
    "Card", "by_hand", "check_report", "evidence", "model_card", "model_facts", "parse_card", "read_card",
    "updated_card",
]  # fmt: skip
