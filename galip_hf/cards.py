"""Model cards, made from config.json: what was not measured is not in them.

The sections between `<!-- galip-hf: begin NAME -->` and `end NAME` are made anew each time; all other text,
and all keys of the front matter that are not ours, belong to the people who wrote them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from .configuration_galip import GalipConfig
from .errors import GalipError

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("galip", "medical", "unpaired-image-translation", "synthetic-data")

_SECTION = re.compile(
    r"<!-- galip-hf: begin (?P<name>\w+) -->.*?<!-- galip-hf: end (?P=name) -->", flags=re.DOTALL
)


def model_card(directory: Path, *, repo: str, pushed: str | None = None, tags: Sequence[str] = ()) -> str:
    """The card of a model directory, for its README.md in the repository `repo`.

    Text written by hand comes from the directory's README.md if there is one, else from `pushed`, the card
    that the repository has. `tags` are added to the front matter.

    Raises:
        GalipError: config.json or the card cannot be read.
    """
    fresh = _fresh_card(directory, repo)
    base = _read(directory / CARD) if (directory / CARD).is_file() else pushed
    card = fresh if base is None else _merge(_parse(base, str(directory / CARD)), fresh)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    return str(card).rstrip() + "\n"


def _fresh_card(directory: Path, repo: str) -> Any:
    config = GalipConfig.from_dict(_read_json(directory / "config.json"))
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-to-image",
        tags=[*TAGS, *sorted({domain["modality"].lower() for domain in config.domains})],
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        domains=[{**domain, "rule": _rule(domain["intensity"])} for domain in config.domains],
        parameters=f"{config.num_parameters:,}",
        image_size=config.image_size,
        text_conditioning=config.text_conditioning,
        repo=json.dumps(repo),
    )


def _rule(rule: Mapping[str, Any]) -> str:
    if rule["rule"] == "none":
        return "values are in [0, 1]"
    unit = "HU window" if rule["rule"] == "window" else "percentiles"
    return f"{unit} {rule['lower']:g} to {rule['upper']:g}"


# Text by hand and text by us


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
    for key in ("library_name", "pipeline_tag"):
        setattr(card.data, key, getattr(fresh.data, key))
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


__all__ = ["model_card"]
