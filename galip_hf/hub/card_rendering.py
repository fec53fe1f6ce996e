"""The front matter and the text of a model card, rendered from facts with card_template.md."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ..evaluation.report import REGIONS, model_index
from ..evaluation.verdict import findings
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from .model_directory import REPORT, TRAINING

TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("galip", "medical", "unpaired-image-translation", "synthetic-data")


@dataclass
class CardFacts:
    """What a card is generated from."""

    config: GalipConfig
    training: Mapping[str, Any]  # training.json; of a planned model its data, CLIP model and settings
    report: Mapping[str, Any] | None = None  # report.json
    pictures: Sequence[str] = ()  # PNG files, relative to the card
    source: str = ""  # arguments of `from_pretrained` in the usage example, as Python code
    has_code: bool = False  # whether the repository carries the code of the model
    not_for_real_scans: str | None = None  # why, see `IntensityNormalizer`
    recipe: str | None = None  # name of the recipe of a planned model, which has no weights


def render_card(facts: CardFacts, stated: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The front matter and the text of a new card.

    Args:
        facts: to state.
        stated: front matter written by people, of which the text repeats `license` and `co2_eq_emissions`.

    Raises:
        GalipError: training.json or report.json does not have the expected form.
    """
    title = "I2I-Galip: " + ", ".join(facts.config.domain_names)
    provenance = (facts.report or {}).get("provenance", {})
    dataset = Path(str(provenance.get("data", "unknown"))).name
    try:
        text = _ENVIRONMENT.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            vars(facts),
            title=title,
            stated=stated,
            dataset=dataset,
            regions=REGIONS,
            findings=findings(facts.report) if facts.report else [],
        )
        clip = facts.training.get("clip") or ""
        data = {
            "license": stated.get("license"),
            "library_name": "transformers",
            "pipeline_tag": "image-to-image",
            "tags": [*TAGS, *sorted({domain["modality"].lower() for domain in facts.config.domains})],
            "datasets": facts.training.get("data", {}).get("datasets"),
            "base_model": clip.removeprefix("hf-hub:") if clip.startswith("hf-hub:") else None,
        }
        if facts.report:
            split = str(provenance.get("split", "unknown"))
            data["model-index"] = model_index(facts.report, model_name=title, dataset=dataset, split=split)
    except (KeyError, TypeError, AttributeError, ValueError, jinja2.TemplateError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise GalipError(f"{TRAINING} or {REPORT} is not of the expected form ({reason})") from None
    return {key: value for key, value in data.items() if value}, text


# Filters of the template


def _rule(rule: Mapping[str, Any]) -> str:
    if rule["rule"] == "none":
        return "values are in [0, 1]"
    unit = "HU window" if rule["rule"] == "window" else "percentiles"
    return f"{unit} {rule['lower']:g} to {rule['upper']:g}"


def _cell(text: object) -> str:
    """Free text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _code(text: object) -> str | None:
    """Free text as a code span, verbatim; None where there is no text."""
    if not text:
        return None
    text = str(text).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _pairs(values: Mapping[str, Any], form: str = "%s", without: str = "") -> str | None:
    pairs = [f"{_cell(name)} {form % value}" for name, value in (values or {}).items() if name != without]
    return ", ".join(pairs) or None


def _number(value: Any, form: str) -> Any:
    """A number as text, a dash for None (not scored); what is undefined stays so."""
    if value is None:
        return "–"
    return value if isinstance(value, jinja2.Undefined) else form % value


def _known(value: Any) -> Any:
    """A value to print, where what the files do not hold is None or undefined."""
    return "unknown" if value is None or isinstance(value, jinja2.Undefined) else value


_ENVIRONMENT = jinja2.Environment(
    undefined=jinja2.ChainableUndefined,  # a key missing in a missing mapping is unknown, too
    finalize=_known,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "cell": _cell,
    "code": _code,
    "interval": lambda bounds: f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "",
    "number": _number,
    "pairs": _pairs,
    "rule": _rule,
    "string_literal": json.dumps,
}


__all__ = ["TEMPLATE", "CardFacts", "render_card"]
