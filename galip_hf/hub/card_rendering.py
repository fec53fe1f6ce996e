"""From facts to the text and the metadata of a model card; the words are in card_template.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from ..evaluation.report import REGIONS, model_index
from ..evaluation.report_page import findings
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from .model_directory import REPORT, TRAINING

TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("galip", "medical", "unpaired-image-translation", "synthetic-data")


def render_card(config: GalipConfig, base: Any, license: str | None, **facts: Any) -> Any:
    """A card without text by hand, a `ModelCard`.

    Args:
        config: of the model.
        base: card whose metadata state the licence and the emissions, or None.
        license: identifier for the front matter; None for that of `base`.
        **facts: what the template uses: `plan` of a model without weights, or `source`, `has_code`,
            `training`, `report` and `pictures`.

    Raises:
        GalipError: training.json or report.json is not of the form that we write.
    """
    report = facts.get("report")
    training = facts["training"] = {"data": {}, **facts["training"]} if facts.get("training") else None
    stated = base.data.to_dict() if base is not None else {}
    provenance = (report or {}).get("provenance", {})
    dataset = Path(str(provenance.get("data", "unknown"))).name
    known = {
        "config": config,
        "has_weights": "plan" not in facts,
        "license": license or stated.get("license"),
        "emissions": _emissions(stated.get("co2_eq_emissions")),
        "settings": (training or {}).get("settings", {}),
        "provenance": provenance,
        "dataset": dataset,
        **facts,
    }
    try:
        if report is not None:
            known |= {"tables": _tables(report), "findings": findings(report)}
            split = str(provenance.get("split", "unknown"))
            index = model_index(report, model_name=_title(config), dataset=dataset, split=split)
        else:
            index = []
        text = _ENVIRONMENT.from_string(TEMPLATE.read_text(encoding="utf-8")).render(known)
    except (KeyError, TypeError, AttributeError, ValueError, jinja2.TemplateError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise GalipError(f"{TRAINING} or {REPORT} is not of the expected form ({reason})") from None
    scores: dict[str, Any] = {"model-index": index} if index else {}
    card: Any = ModelCard("---\n{}\n---\n\n" + text)
    card.data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-to-image",
        tags=[*TAGS, *sorted({domain["modality"].lower() for domain in config.domains})],
        datasets=(training or {}).get("data", {}).get("datasets"),
        base_model=_base_model((training or facts.get("plan") or {}).get("clip")),
        **scores,
    )
    return card


def _title(config: GalipConfig) -> str:
    return "I2I-Galip: " + ", ".join(config.domain_names)


def _tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The report's tables as texts; the headline, `fixed` inside the foreground, first."""
    tables = []
    for protocol in ("fixed", "paper"):
        values = report["protocols"][protocol]
        for region in REGIONS[protocol]:
            baselines = values[region]["baselines"]
            rows = [
                [
                    _cell(direction),
                    str(cell["n"]),
                    *_scores(cell),
                    *(_short_score(baselines[name][direction]) for name in baselines),
                ]
                for direction, cell in values[region]["directions"].items()
            ]
            tables.append(
                {
                    "protocol": protocol,
                    "version": values["version"],
                    "description": values["description"],
                    "region": region,
                    "baselines": list(baselines),
                    "rows": rows,
                }
            )
    return tables


def _scores(cell: Mapping[str, Any]) -> list[str]:
    if cell["psnr"] is None:
        return ["not scored"] * 3
    interval = cell.get("psnr_ci95")
    psnr = f"{cell['psnr']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
    return [psnr, f"{cell['ssim']:.3f}", f"{cell['mae']:.4g}"]


def _short_score(cell: Mapping[str, Any]) -> str:
    return "not scored" if cell["psnr"] is None else f"{cell['psnr']:.2f} ({cell['ssim']:.3f})"


def _emissions(stated: Any) -> Any:
    """Grams, as the Hub's metadata have them: a number, or a mapping with `emissions`."""
    return stated.get("emissions") if isinstance(stated, Mapping) else stated


def _base_model(clip: str | None) -> str | None:
    return clip.removeprefix("hf-hub:") if clip and clip.startswith("hf-hub:") else None


def _rule(rule: Mapping[str, Any]) -> str:
    if rule["rule"] == "none":
        return "values are in [0, 1]"
    unit = "HU window" if rule["rule"] == "window" else "percentiles"
    return f"{unit} {rule['lower']:g} to {rule['upper']:g}"


def _cell(text: object) -> str:
    """Free text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _code(text: object) -> str:
    """Free text as a code span, verbatim."""
    text = str(text).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _pairs(values: Mapping[str, Any], form: str = "%s") -> str:
    return ", ".join(f"{_cell(name)} {form % value}" for name, value in values.items())


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else form % value


_ENVIRONMENT = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
_ENVIRONMENT.filters |= {
    "cell": _cell,
    "code": _code,
    "number": _number,
    "pairs": _pairs,
    "rule": _rule,
    "string_literal": json.dumps,
    "title_of": lambda path: Path(unquote(path)).stem.replace("_", " "),
    "without_step": lambda values: {name: value for name, value in values.items() if name != "step"},
}


__all__ = ["TEMPLATE", "render_card"]
