"""From scores per subject to what is written down: the report, a CSV of subjects, a model card's entries."""

import csv
import datetime
import importlib.metadata
import io
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_write
from ..version import __version__
from .metrics import FIXED, PAPER, Window
from .more_measures import GROUP_MEANINGS
from .significance import compare, spread

BASELINES = ("copy", "histogram", "mean", "lookup")
MEASURES = ("psnr", "ssim", "mae")
REGIONS = {"paper": ("full",), "fixed": ("masked", "full")}
PERCEPTUAL = ("sharpness_ratio", "slice_consistency")
METRIC_NAMES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "mae": "MAE"}
CSV_COLUMNS = (
    "subject", "direction", "candidate", "protocol", "version", "region", *MEASURES, "skipped_slices",
    *PERCEPTUAL, "mae_to_source", "mae_to_target",
)  # fmt: skip


def build_report(
    per_subject: list[dict[str, Any]],
    directions: list[str],
    windows: Mapping[str, Window],
    exclusions: list[dict[str, Any]],
) -> dict[str, Any]:
    """Statistics over subjects of every direction, candidate, protocol, region and measure."""
    scored = {
        d: [entry["directions"][d] for entry in per_subject if d in entry["directions"]] for d in directions
    }
    everything = [scores for of_direction in scored.values() for scores in of_direction]
    candidates = [c for c in ("model", *BASELINES) if any(c in scores for scores in everything)]
    protocols: dict[str, dict[str, Any]] = {}
    for protocol in (PAPER, FIXED):
        protocols[protocol.name] = {"version": protocol.version, "description": protocol.description}
        for region in REGIONS[protocol.name]:
            tables = {
                c: {d: _cell([s[c][protocol.name][region] for s in scored[d] if c in s]) for d in directions}
                for c in candidates
            }
            protocols[protocol.name][region] = {
                "directions": tables.pop("model", {}),
                "baselines": tables,
            }
    modelled = {d: scores for d, scores in scored.items() if any("model" in s for s in scores)}
    return {
        "protocols": protocols,
        "units": _units(directions, windows),
        "summary": _summary(protocols["fixed"]["masked"]),
        "identity_collapse": {
            d: _collapse(scores) for d, scores in modelled.items() if "mae_to_source" in scores[0]
        },
        "perceptual": {d: _perceptual(scores) for d, scores in modelled.items()},
        "measures": _measures(modelled),
        "subjects": len(per_subject),
        "slices": sum(entry["slices"] for entry in per_subject),
        "skipped_slices": {
            d: sum(s[candidates[0]]["paper"]["full"]["skipped_slices"] for s in scores)
            for d, scores in scored.items()
        },
        "exclusions": exclusions,
        "per_subject": per_subject,
    }


def _cell(scores: list[dict[str, float | None]]) -> dict[str, Any]:
    """Mean, SD, median and 95 % interval over subjects of each measure."""
    cell: dict[str, Any] = {"n": sum(score["psnr"] is not None for score in scores)}
    for measure in MEASURES:
        cell |= spread([value for score in scores if (value := score[measure]) is not None], measure)
    return cell


def _perceptual(scores: list[dict[str, Any]]) -> dict[str, Any]:
    cell: dict[str, Any] = {"n": len(scores)}
    for measure in PERCEPTUAL:
        cell |= spread([score[measure] for score in scores if score[measure] is not None], measure)
    return cell


def _measures(modelled: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Group -> its meaning, and direction -> name -> spread over subjects with `n`."""
    groups: dict[str, Any] = {}
    for direction, scores in modelled.items():
        for group in dict.fromkeys(name for score in scores for name in score["measures"]):
            says, blind_to = GROUP_MEANINGS[group]
            tables = groups.setdefault(group, {"says": says, "blind_to": blind_to, "directions": {}})
            its = [score["measures"].get(group, {}) for score in scores]
            cells = tables["directions"][direction] = {}
            for name in dict.fromkeys(name for values in its for name in values):
                numbers = [values[name] for values in its if values.get(name) is not None]
                cells[name] = {"n": len(numbers), **spread(numbers, "value")}
    return groups


def _summary(table: Mapping[str, Any]) -> dict[str, Any]:
    def mean_over_directions(cells: Mapping[str, Any]) -> dict[str, float | None]:
        means: dict[str, float | None] = {}
        for measure in ("psnr", "ssim"):
            values = [cell[measure] for cell in cells.values() if cell[measure] is not None]
            means[measure] = float(np.mean(values)) if values else None
        return means

    return {
        "protocol": FIXED.name,
        "version": FIXED.version,
        "region": "masked",
        "model": mean_over_directions(table["directions"]),
        "baselines": {name: mean_over_directions(cells) for name, cells in table["baselines"].items()},
    }


def _collapse(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Is the output closer to its source than to its target? MAE in model space, target's foreground."""
    to_source = [score["mae_to_source"] for score in scores]
    to_target = [score["mae_to_target"] for score in scores]
    return {
        "mae_to_source": float(np.mean(to_source)),
        "mae_to_target": float(np.mean(to_target)),
        "collapsed": bool(np.mean(to_source) < np.mean(to_target)),
        "subjects_collapsed": sum(a < b for a, b in zip(to_source, to_target, strict=True)),
    }


def _units(directions: list[str], windows: Mapping[str, Window]) -> dict[str, Any]:
    fixed = {
        d: "HU" if d.split("->")[1] in windows else "fraction of the target's 99.5th percentile"
        for d in directions
    }
    return {
        "psnr": "dB",
        "ssim": "0..1, 1 is identical (not percent)",
        "mae": {"paper": "fraction of the slice's maximum", "fixed": fixed},
        "sharpness_ratio": "mean gradient magnitude in the foreground, translation / target; 1 is as sharp",
        "slice_consistency": "mean |difference| of neighbouring slices, translation / target; 1 is as smooth",
    }


# --- two reports compared ---


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """A (`first`) against B (`second`), protocol `fixed`, masked: one `compare` for each measure."""
    comparison: dict[str, Any] = {"protocol": FIXED.name, "version": FIXED.version, "region": "masked"}
    for measure in MEASURES:
        sides = [_scores_by_direction(report, measure) for report in (first, second)]
        comparison[measure] = compare(*sides)
        for direction, cell in comparison[measure]["directions"].items():
            for side, report in (("a", first), ("b", second)):
                cells = report["protocols"]["fixed"]["masked"]["directions"]
                cell[f"mean_{side}"] = cells[direction][measure]
    return comparison


def _scores_by_direction(report: Mapping[str, Any], measure: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {d: {} for d in report["protocols"]["fixed"]["masked"]["directions"]}
    for entry in report["per_subject"]:
        for direction, scores in entry["directions"].items():
            found[direction][str(entry["subject"])] = scores["model"]["fixed"]["masked"][measure]
    return found


# --- files ---


def write_subjects_csv(reports: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """One row per subject, direction, candidate, protocol and region.

    Args:
        reports: name of the model -> report; the first one's baselines are written too.
        path: the file to write.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for number, (model, report) in enumerate(reports.items()):
        candidates = {"model": model} | ({name: name for name in BASELINES} if number == 0 else {})
        for entry in report["per_subject"]:
            writer.writerows(_csv_rows(entry, candidates))
    path = Path(path)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


def _csv_rows(entry: Mapping[str, Any], candidates: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for direction, scores in entry["directions"].items():
        for candidate, name in candidates.items():
            for protocol in (PAPER, FIXED) if candidate in scores else ():
                for region in REGIONS[protocol.name]:
                    row = {
                        "subject": entry["subject"],
                        "direction": direction,
                        "candidate": name,
                        "protocol": protocol.name,
                        "version": protocol.version,
                        "region": region,
                        **scores[candidate][protocol.name][region],
                    }
                    if candidate == "model":
                        row |= {key: scores.get(key) for key in CSV_COLUMNS[-4:]}
                    yield {key: _no_formula(value) for key, value in row.items()}


def _no_formula(value: Any) -> Any:
    """A cell on one line that no spreadsheet takes for a formula, and so runs when opened."""
    if not isinstance(value, str):
        return value
    text = "".join(sign if sign.isprintable() else " " for sign in value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def model_index(report: Mapping[str, Any], *, model_name: str, dataset: str, split: str) -> list[Any]:
    """The report's means as a model card's `model-index`: every protocol, region, direction and measure.

    Args:
        report: of `evaluate`.
        model_name: as the card is to show it.
        dataset: name of the data set.
        split: the split evaluated.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for protocol in (FIXED, PAPER):
        version = report["protocols"][protocol.name]["version"]  # a report may be older than this code
        for region in REGIONS[protocol.name]:
            cells = report["protocols"][protocol.name][region]["directions"]
            for direction, cell in cells.items():
                for measure in MEASURES:
                    if cell[measure] is None:
                        continue
                    hounsfield = report["units"]["mae"]["fixed"][direction] == "HU"
                    unit = " (HU)" if measure == "mae" and hounsfield and protocol is FIXED else ""
                    name = (
                        f"{METRIC_NAMES[measure]}{unit} {direction}, protocol {protocol.name} "
                        f"v{version}, {region}, mean of {cell['n']} subjects"
                    )
                    results.append(
                        EvalResult(
                            task_type="image-to-image",
                            dataset_type=dataset.lower().replace(" ", "-"),
                            dataset_name=dataset,
                            dataset_split=split,
                            metric_type=measure,
                            metric_value=round(cell[measure], 4),
                            metric_name=name,
                        )
                    )
    if not results:
        return []
    return ModelCardData(model_name=model_name, eval_results=results).to_dict()["model-index"]


# --- provenance ---


def provenance(
    command: str, device: str, seed: int, precision: str = "as the predictions were given", **details: Any
) -> dict[str, Any]:
    """What is needed to repeat a number: code, versions, device, precision, command, date, and `details`."""
    import torch

    return {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "galip_hf": __version__,
        "torch": torch.__version__,
        "scikit_image": importlib.metadata.version("scikit-image"),
        "python": platform.python_version(),
        "device": device,
        "precision": f"{precision} (scores in float64)",
        "seed": seed,
        "protocols": {protocol.name: protocol.version for protocol in (PAPER, FIXED)},
        **details,
    }


__all__ = [
    "build_report",
    "compare_reports",
    "model_index",
    "provenance",
    "write_subjects_csv",
]
