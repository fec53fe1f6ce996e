"""The page of a report without pairs."""

from collections.abc import Mapping
from typing import Any

from ..version import DISCLAIMER
from .page_parts import (
    arrow,
    bullets,
    definitions,
    escaped,
    html_page,
    html_table,
    manifest,
    meanings,
    plain,
    significant,
    strips,
    verdict_line,
)
from .panels import Panels
from .verdict import unpaired_findings

_DISTANCE_MARKS = {
    "translation": None,
    "untranslated source": "copy",
    "real, half against half": "real_halves",
}


def html_unpaired(report: Mapping[str, Any], *, title: str, panels: Panels | None = None) -> str:
    """The page.

    Args:
        report: of `evaluate_unpaired` with its `verdict`; `provenance`, `manifest` and `notes` are shown
            where present.
        title: heading of the page.
        panels: a slice of each translation.
    """
    counts = f"{report['subjects']} subjects, {report['slices']} slices, without pairs."
    lead = f"{counts} Translations: {DISCLAIMER}."
    said = {name: (its["says"], its["blind_to"]) for name, its in report["meanings"].items()}
    sections = [
        verdict_line(report["verdict"]),
        f"<h1>{escaped(title)}</h1><p class=soft>{escaped(lead)}</p>",
        bullets([*report.get("notes", []), *unpaired_findings(report)]),
        "<h2>Closeness to the target domain</h2>",
        meanings("Texture features", *said["texture"]) + _distances(report, "texture"),
        meanings("CLIP embeddings", *said["clip"]) + _distances(report, "clip"),
        meanings("Intensities", *said["histogram"]) + _histograms(report),
        meanings("Classifier", *said["classifier"]) + _classifier(report),
        "<h2>The volumes</h2>",
        *(
            meanings(heading, *said[name]) + _spreads(report, names)
            for heading, name, names in (
                ("Sharpness ratio", "sharpness_ratio", ("sharpness_ratio",)),
                ("Slice to slice", "slice_consistency", ("slice_consistency",)),
                ("Cycle error", "cycle_error", ("cycle_error",)),
                ("Identity ratio", "identity_ratio", ("identity_ratio",)),
                ("Input check", "input_score", ("input_score_source", "input_score", "input_score_real")),
            )
        ),
        _pictures(report, panels or Panels()),
        "<h2>Exclusions</h2>" + _exclusions(report),
        "<h2>Provenance</h2>"
        + manifest(report.get("manifest", []))
        + definitions(report.get("provenance", {})),
    ]
    return html_page(title, sections)


def _distances(report: Mapping[str, Any], name: str) -> str:
    if "left_out" in report.get(name, {}):
        return f"<p>Left out: {escaped(report[name]['left_out'])}.</p>"
    rows = []
    for direction, cells in report["directions"].items():
        for label, mark in _DISTANCE_MARKS.items():
            cell = cells[name] if mark is None else cells[name][mark]
            if cell is None:
                continue
            counts = f"{cell['subjects_real']} / {cell['subjects_fake']}, {cell['n_real']} / {cell['n_fake']}"
            rows.append(
                [
                    arrow(direction) if mark is None else "",
                    f"<strong>{label}</strong>" if mark is None else label,
                    _with_interval(cell, "kid"),
                    _with_interval(cell, "fid"),
                    counts,
                ]
            )
    heads = ["direction", "compared with the real target", "KID", "FID", "subjects, slices (real / compared)"]
    return html_table(heads, rows)


def _with_interval(cell: Mapping[str, Any], name: str) -> str:
    if cell[name] is None:
        return f"–<small>{escaped(cell.get(f'{name}_reason') or '')}</small>"
    interval = cell[f"{name}_ci95"]
    shown = "" if interval is None else f"<small>{interval[0]:.3g} to {interval[1]:.3g}</small>"
    return f"{cell[name]:.3g}{shown}"


def _histograms(report: Mapping[str, Any]) -> str:
    rows, classes = [], []
    for direction, cells in report["directions"].items():
        its = cells["histogram"]
        marks = [its, its["copy"], its["real_halves"]]
        rows.append([arrow(direction), *("–" if m is None else _with_interval(m, "distance") for m in marks)])
        for row in its["classes"]:
            classes.append(
                [
                    arrow(direction),
                    escaped(row["name"]),
                    f"{row['share_fake']:.1%} / {row['share_real']:.1%}",
                    f"{significant(row['mean_fake'], 3)} / {significant(row['mean_real'], 3)}",
                ]
            )
    heads = ["direction", *_DISTANCE_MARKS]
    class_heads = ["direction", "class", "share, translation / real", "mean, translation / real"]
    return html_table(heads, rows) + (html_table(class_heads, classes) if classes else "")


def _classifier(report: Mapping[str, Any]) -> str:
    classifier = report["classifier"]
    if "left_out" in classifier:
        return f"<p>Left out: {escaped(classifier['left_out'])}.</p>"
    rows = [
        [
            arrow(direction),
            "–" if cell["as_target"] is None else f"{cell['as_target']:.0%}",
            "–" if cell["as_source"] is None else f"{cell['as_source']:.0%}",
            str(cell["n"]),
        ]
        for direction, cell in classifier["directions"].items()
    ]
    note = f"Accuracy on real slices of subjects that it has not seen: {classifier['accuracy']:.0%}."
    return f"<p>{note}</p>" + html_table(["direction", "taken for target", "for source", "slices"], rows)


def _spreads(report: Mapping[str, Any], names: tuple[str, ...]) -> str:
    if all(cell[name] is None for cell in report["directions"].values() for name in names):
        return "<p>Left out: it needs a model, sources or training slices that were not given.</p>"
    heads = {
        "input_score_source": "sources",
        "input_score": "translations",
        "input_score_real": "real scans of the target",
    }
    rows = [[arrow(d), *(plain(cell, name) for name in names)] for d, cell in report["directions"].items()]
    return html_table(["direction", *(heads.get(name, "mean ± SD") for name in names)], rows)


def _pictures(report: Mapping[str, Any], panels: Panels) -> str:
    parts = []
    for direction in report["directions"]:
        captions = {
            str(entry["subject"]): str(entry["subject"])
            for entry in report["per_subject"]
            if entry["direction"] == direction
        }
        if shown := strips(panels, direction, captions):
            parts.append(f"<details><summary>{arrow(direction)}</summary>{shown}</details>")
    note = "Source (where given) and translation, at the slice with most of the body; one scale, 0 to 1."
    return f"<h2>Pictures</h2><p class=soft>{note}</p>{''.join(parts)}" if parts else ""


def _exclusions(report: Mapping[str, Any]) -> str:
    if not report["exclusions"]:
        return "<p>None.</p>"
    rows = [[arrow(e["direction"]), escaped(e["reason"])] for e in report["exclusions"]]
    return html_table(["direction", "reason"], rows)


__all__ = ["html_unpaired"]
