"""Model cards, made from what lies beside the weights: what was not measured is not in them.

The facts come from config.json, training.json (`training.run_facts`) and report.json (`galip-hf evaluate`);
what is not there is said to be unknown. The sections between `<!-- galip-hf: begin NAME -->` and `end NAME`
are made anew each time. All other text, the headings too, and all keys of the front matter that are not ours
belong to the people who wrote them. `card_check` compares a card with the report.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import ModelCard

from ..files import file_hash
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from .card_rendering import render_card
from .model_directory import CARD, REPORT, TRAINING, read_json, read_text

OUR_KEYS = ("library_name", "pipeline_tag", "tags", "model-index")

SECTION = re.compile(
    r"<!-- galip-hf: begin (?P<name>\w+) -->.*?<!-- galip-hf: end (?P=name) -->", flags=re.DOTALL
)
_MARKER = re.compile(r"<!-- galip-hf: (begin|end) (\w+) -->")


def model_card(
    directory: str | Path,
    *,
    repo: str | None = None,
    pushed: str | None = None,
    loading: Mapping[str, str] | None = None,
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
        loading: more arguments of `from_pretrained` in the usage: `subfolder`, `variant`.
        has_code: whether the repository carries the code; also where config.json has an `auto_map`.
        tags: to add to the front matter.
        license: identifier for the front matter, such as apache-2.0; as it was by default.

    Raises:
        GalipError: one of the files cannot be read, or report.json is of other weights.
    """
    directory = Path(directory)
    path = directory / CARD
    local = parse_card(read_text(path), str(path)) if path.is_file() else None
    remote = parse_card(pushed, f"{repo or directory}: {CARD}") if pushed is not None else None
    if local is not None and remote is not None:
        base = local if _is_edited(local, fresh_card(directory, local)) else remote
    else:
        base = local or remote
    if base is not None and license is not None:
        base.data.license = license
    options = [f"{name}={json.dumps(value)}" for name, value in (loading or {}).items()]
    source = ", ".join([json.dumps(repo or str(directory)), *options])
    fresh = fresh_card(directory, base, license, source, has_code)
    return merged_text(base, fresh, tags)


def fresh_card(
    directory: Path,
    base: Any = None,
    license: str | None = None,
    source: str = '""',
    has_code: bool = False,
) -> Any:
    """The card of a model directory without text by hand; licence and emissions are those `base` states."""
    values = read_json(directory / "config.json")
    report = read_json(directory / REPORT) if (directory / REPORT).is_file() else None
    training = read_json(directory / TRAINING) if (directory / TRAINING).is_file() else None
    if report is not None:
        check_report(directory, report, directory / REPORT)
    return render_card(
        GalipConfig.from_dict(values),
        base,
        license,
        source=source,
        has_code=has_code or "auto_map" in values,
        report=report,
        training=training,
        pictures=[quote(path.relative_to(directory).as_posix()) for path in pictures(directory)],
    )


def evidence(directory: Path) -> list[str]:
    """What the card of a directory rests upon, as names in it: to be pushed beside it."""
    files = [directory / name for name in (REPORT, TRAINING) if (directory / name).is_file()]
    return [path.relative_to(directory).as_posix() for path in [*files, *pictures(directory)]]


def pictures(directory: Path) -> list[Path]:
    """The PNG files of a directory and of its folder `panels`."""
    return [*sorted(directory.glob("*.png")), *sorted(directory.glob("panels/*.png"))]


def check_report(directory: Path, report: Mapping[str, Any], path: Path) -> None:
    """A report of other weights says nothing about these.

    Raises:
        GalipError: the report, read from `path`, is not of the weights in `directory`.
    """
    scored = report.get("provenance", {}).get("model_weights_sha256")
    if scored is None:
        raise GalipError(
            f"{path}: does not say which weights it scored; expected one made by galip-hf evaluate --model"
        )
    weights = sorted(directory.glob("model*.safetensors"))
    if scored not in map(file_hash, weights):
        raise GalipError(
            f"{path}: was made with other weights (SHA-256 {str(scored)[:12]}…) than those in {directory}; "
            "evaluate this model, or remove the report"
        )


# Text by hand and text by us


def parse_card(text: str, where: str) -> Any:
    """A card, its markers checked.

    Raises:
        GalipError: the front matter is not YAML, or a marker lacks its partner.
    """
    try:
        card: Any = ModelCard(text.replace("\r\n", "\n"), ignore_metadata_errors=True)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GalipError(f"{where}: the card's front matter is not readable ({reason}); mend it") from None
    markers = _MARKER.findall(card.text)
    expected = [(word, name) for _, name in markers[::2] for word in ("begin", "end")]
    names = [name for word, name in markers if word == "begin"]
    if markers != expected or len(set(names)) != len(names):
        broken = next((m for m, e in zip(markers, expected, strict=False) if m != e), markers[-1])
        raise GalipError(
            f"{where}: the markers <!-- galip-hf: … --> do not pair up, at '{' '.join(broken)}'; each begin "
            "needs its end after it, once"
        )
    return card


def merged_text(base: Any, fresh: Any, tags: Sequence[str]) -> str:
    card = fresh if base is None else _merge(base, fresh)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
    return str(card).rstrip() + "\n"


def _merge(card: Any, fresh: Any) -> Any:
    """`card` with the generated sections and our keys of the front matter taken from `fresh`."""
    end = 0
    for section in SECTION.finditer(fresh.text):
        name, new = section["name"], section.group()
        heading, end = fresh.text[end : section.start()].strip(), section.end()
        old = next((found for found in SECTION.finditer(card.text) if found["name"] == name), None)
        if old is None:
            heading = heading[heading.rfind("## ") :]  # of the first one: without title and introduction
            card.text = f"{card.text.rstrip()}\n\n{heading}\n\n{new}\n"
        else:
            card.text = card.text[: old.start()] + new + card.text[old.end() :]
    for key in ("library_name", "pipeline_tag", "eval_results", "model_name"):
        setattr(card.data, key, getattr(fresh.data, key))
    if fresh.data.base_model is not None:
        card.data.base_model = fresh.data.base_model
    for key in ("datasets", "tags"):
        values = [*_as_list(card.data.get(key)), *_as_list(fresh.data.get(key))]
        setattr(card.data, key, list(dict.fromkeys(values)) or None)
    return card


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _is_edited(card: Any, fresh: Any) -> bool:
    """Did somebody write anything into a card that we made?"""
    own_tags = set(_as_list(card.data.tags)) - set(_as_list(fresh.data.tags))
    return bool(own_tags) or _own_part(card) != _own_part(fresh)


def _own_part(card: Any) -> tuple[str, dict[str, Any]]:
    """What people wrote: the text outside the sections, blank space aside, and keys that are not ours."""
    data = {key: value for key, value in card.data.to_dict().items() if key not in OUR_KEYS}
    return by_hand(card.text), data


def by_hand(text: str) -> str:
    """The text outside the generated sections, each paragraph on a line."""
    paragraphs = re.split(r"\n\s*\n", SECTION.sub("\n\n", text))
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())


__all__ = ["check_report", "evidence", "fresh_card", "model_card", "parse_card"]
