"""Is each score of a card one that somebody measured?

Generated sections and front matter must be what the files beside the card give now. Text by hand is checked
for scores: a decimal number in a paragraph that mentions PSNR, SSIM, MAE, FID, KID or dB must be in
report.json, unless the paragraph links to a source and so is a quotation.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import read_text
from ..model.errors import GalipError
from .card import Card, by_hand, model_facts, parse_card, updated_card
from .card_rendering import CardFacts
from .model_directory import CARD, REPORT

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w|\.\d)")
_DECIMAL = re.compile(
    r"(?<![\w.])[-−]?\d[\d,]*\.\d+(?=dB|(?!\w|\.\d))"
)  # neither a version nor part of a name
_MEASURE = re.compile(r"\b(PSNR|SSIM|MAE|FID|KID)\b|(\b|\d)dB\b")
_LINK = re.compile(r"https?://|doi:|arXiv:", flags=re.IGNORECASE)
_NAME = re.compile(r"`[^`]*`|\]\([^)]*\)")  # code spans and the targets of links: their digits are no scores


def check_card(directory: str | Path, text: str | None = None) -> list[str]:
    """What is wrong with the card of a model directory, one line each; empty when all is right.

    Args:
        directory: with config.json and what the card rests upon.
        text: of the card; that of the directory's README.md by default.

    Raises:
        GalipError: there is no card, or it cannot be read.
    """
    directory = Path(directory)
    path = directory / CARD
    card = parse_card(read_text(path) if text is None else text, str(path))
    try:
        return card_faults(card, model_facts(directory), CARD)
    except GalipError as error:
        return [str(error)]


def card_faults(card: Card, facts: CardFacts, where: str) -> list[str]:
    """Scores by hand that are not in the report, and what differs from a newly generated card.

    Args:
        card: to check.
        facts: that the card must state.
        where: names the card in the lines returned.

    Raises:
        GalipError: training.json or report.json does not have the expected form.
    """
    reason = ", but there are no weights" if facts.recipe else f" is in no {REPORT} beside it"
    sections, updated = card.sections(), updated_card(card, facts)
    # The usage example names a repository that the files do not: read it like text by hand.
    written = [*by_hand(card.text), sections.get("use", "")]
    measured = [float(number) for number in _NUMBER.findall(json.dumps(facts.report))]
    stale = [
        f"section {name}"
        for name, section in updated.sections().items()
        if name != "use" and sections.get(name, "").split() != section.split()
    ]
    stale += [key for key in {**card.data, **updated.data} if card.data.get(key) != updated.data.get(key)]
    return [
        *(
            f"{where}, text by hand: {number}{reason}; correct it, or link to the source of a quotation"
            for number in _scores(written)
            if not _is_among(number, measured)
        ),
        *(f"{where}, {part}: not what the files beside it give; run galip-hf card again" for part in stale),
    ]


def _scores(paragraphs: Iterable[str]) -> list[str]:
    """The decimal numbers in paragraphs that mention a measure and do not link to a source, each once."""
    claims = [text for text in paragraphs if _MEASURE.search(text) and not _LINK.search(text)]
    return list(dict.fromkeys(number for text in claims for number in _DECIMAL.findall(_NAME.sub(" ", text))))


def _is_among(number: str, measured: Sequence[float]) -> bool:
    """Is `number` one of `measured`, rounded to as many digits?"""
    digits = len(number.partition(".")[2])
    value = float(number.replace(",", "").replace("−", "-"))
    return any(abs(value - other) <= 0.5000001 * 10.0**-digits for other in measured)


__all__ = ["card_faults", "check_card"]
