"""Is each number of a card one that somebody measured? Compares a card with the report beside the weights.

In the sections that we make, each number must be in report.json (evaluation) or training.json (training),
and the sections must be what those files give now. In text by hand, each score (a decimal number in a
paragraph that speaks of PSNR, SSIM, MAE, FID, KID or dB) must be in report.json, unless the paragraph links
to a source: then it is a quotation.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..model.errors import GalipError
from .card import SECTION, by_hand, fresh_card, parse_card
from .model_directory import CARD, REPORT, TRAINING, read_json, read_text

# A number of its own: not the digits of a name (T1), of a version (2.14.1) nor of a hash.
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?![\w]|\.\d)")
_DECIMAL = re.compile(r"(?<![\w.])[-−]?\d+\.\d+(?![\w]|\.\d)")
_SCORES = re.compile(r"\b(PSNR|SSIM|MAE|FID|KID|dB)\b")
_LINK = re.compile(r"https?://|doi:|arXiv:", flags=re.IGNORECASE)
# Links, pictures and code spans: names, not numbers.
_NAMES = re.compile(r"`[^`]*`|!?\[[^\]]*\]\([^)]*\)")


def check_card(directory: str | Path, text: str | None = None) -> list[str]:
    """What is wrong with the numbers of a model directory's card, one line each; empty when all is right.

    Args:
        directory: with config.json and what the card rests upon.
        text: of the card; that of the directory's README.md by default.

    Raises:
        GalipError: no card, or a file that cannot be read.
    """
    directory = Path(directory)
    path = directory / CARD
    card = parse_card(read_text(path) if text is None else text, str(path))
    known = {name: _known_numbers(directory / name) for name in (REPORT, TRAINING)}
    known[TRAINING] += list(_numbers(card.data.to_dict().get("co2_eq_emissions")))
    sections = {found["name"]: found.group() for found in SECTION.finditer(card.text)}
    claims = [
        ("section evaluation", _of_section(sections.get("evaluation", "")), REPORT),
        ("section training", _of_section(sections.get("training", "")), TRAINING),
        ("model-index", [str(result.metric_value) for result in card.data.eval_results or []], REPORT),
        ("text by hand", scores_by_hand(card.text), REPORT),
    ]
    faults = [
        f"{CARD}, {where}: {number} is in no {file} beside it"
        for where, numbers, file in claims
        for number in dict.fromkeys(numbers)
        if not _is_among(number, known[file])
    ]
    try:
        fresh = fresh_card(directory, card)
    except GalipError as error:
        return [*faults, str(error)]
    return faults + _stale(sections, card, fresh)


def scores_by_hand(text: str) -> list[str]:
    """The scores that text outside the generated sections claims, quotations aside."""
    return [
        number
        for paragraph in by_hand(text).splitlines()
        if _SCORES.search(paragraph) and not _LINK.search(paragraph)
        for number in _DECIMAL.findall(_NAMES.sub(" ", paragraph))
    ]


def _stale(sections: Mapping[str, str], card: Any, fresh: Any) -> list[str]:
    """Sections and metrics that are not what the files give. The usage names a repository we do not know."""
    faults = [
        f"{CARD}, section {found['name']}: not what the files beside it give; write it again (galip-hf card)"
        for found in SECTION.finditer(fresh.text)
        if found["name"] != "use" and sections.get(found["name"], "").split() != found.group().split()
    ]
    if card.data.to_dict().get("model-index") != fresh.data.to_dict().get("model-index"):
        faults.append(f"{CARD}, model-index: not what {REPORT} gives; write it again (galip-hf card)")
    return faults


def _of_section(section: str) -> list[str]:
    return _NUMBER.findall(_NAMES.sub(" ", section))


def _known_numbers(path: Path) -> list[float]:
    return list(_numbers(read_json(path))) if path.is_file() else []


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value, those inside its texts and the lengths of its lists too."""
    if isinstance(value, str):
        yield from map(_value, _NUMBER.findall(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(str(key))
            yield from _numbers(item)
    elif isinstance(value, Sequence):
        yield float(len(value))
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield float(value)


def _value(number: str) -> float:
    return float(number.replace(",", "").replace("−", "-"))


def _is_among(number: str, known: Sequence[float]) -> bool:
    """Is `number` one of `known`, rounded to as many digits?"""
    mantissa, _, exponent = number.partition("e")
    digits = len(mantissa.partition(".")[2]) - int(exponent or 0)
    printed = _value(number)
    return any(abs(value - printed) <= 0.5000001 * 10.0**-digits for value in known)


__all__ = ["check_card", "scores_by_hand"]
