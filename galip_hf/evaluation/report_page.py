"""An evaluation report as one self-contained page: no script, no font and no file from elsewhere."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..version import DISCLAIMER
from .box_plots import box_plot
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
from .panels import Panels, webp
from .report import BASELINES
from .verdict import CANDIDATES, findings

REGION_TITLES = {
    ("fixed", "masked"): "Protocol fixed, foreground",
    ("fixed", "full"): "Protocol fixed, full slices",
    ("paper", "full"): "Protocol paper, full slices",
}
WARNING = (
    "Protocol paper divides each slice by its own maximum: it cannot see a gain error (a prediction "
    "multiplied by a constant scores the same), and one hot pixel rescales a whole image. Use it only beside "
    "the paper's tables."
)


def html_report(
    report: Mapping[str, Any],
    *,
    title: str,
    pictures: Mapping[str, Path] | None = None,
    panels: Panels | None = None,
) -> str:
    """The page of a report on pairs.

    Args:
        report: of `evaluate`; `verdict`, `provenance`, `comparison`, `manifest` and `notes` are shown where
            present.
        title: heading of the page.
        pictures: direction -> PNG file of its cases, which the page will contain.
        panels: the worst slice of each subject.
    """
    provenance = report.get("provenance", {})
    skipped = sum(report["skipped_slices"].values())
    date = f"{provenance['date']}: " if "date" in provenance else ""
    lead = (
        f"{date}{report['subjects']} subject{'s' * (report['subjects'] != 1)}, {report['slices']} slices, "
        f"{len(report['exclusions'])} exclusions, {skipped} blank slices skipped by protocol paper. "
        f"Translations: {DISCLAIMER}."
    )
    sections = [
        verdict_line(report["verdict"]) if "verdict" in report else "",
        f"<h1>{escaped(title)}</h1><p class=soft>{escaped(lead)}</p>",
        bullets([*report.get("notes", []), *findings(report)]),
        "<h2>Scores</h2>" + _score_tables(report),
        "<h2>Spread over subjects</h2>" + _plots(report),
        _comparison(report),
        "<h2>What PSNR and SSIM do not see</h2>" + _perceptual(report),
        _measures(report),
        _cases(report, pictures or {}),
        _subjects(report, panels or Panels()),
        "<h2>Exclusions</h2>" + _exclusions(report),
        "<h2>Protocols</h2>" + _protocols(report),
        "<h2>Provenance</h2>" + manifest(report.get("manifest", [])) + definitions(provenance),
    ]
    return html_page(title, sections)


# --- tables ---


def _score_tables(report: Mapping[str, Any]) -> str:
    reference = report["histogram_reference"]
    note = (
        "Mean ± SD over subjects; below it the 95 % bootstrap interval of the mean. Trivial baselines: "
        "the source copied, the source with its histogram matched to the target domain, the mean "
        "training slice, and the best map from source to target intensity, fitted with registered "
        "training pairs where there are some (lookup table): a model below it has learnt nothing about "
        f"anatomy. Histograms are matched to {reference}"
        + (" (an advantage no translator has)." if reference == "the target itself" else ".")
    )
    parts = [f"<p class=soft>{escaped(note)}</p>"]
    for (protocol, region), title in REGION_TITLES.items():
        table = _score_table(report, protocol, region)
        heading = f"{title} (version {report['protocols'][protocol]['version']})"
        warning = f"<p class=warn>{escaped(WARNING)}</p>" if protocol == "paper" else ""
        if (protocol, region) == ("fixed", "masked"):
            parts.append(f"<h3>{heading}: the headline</h3>{table}")
        else:
            parts.append(f"<details><summary>{heading}</summary>{warning}{table}</details>")
    return "".join(parts)


def _score_table(report: Mapping[str, Any], protocol: str, region: str) -> str:
    table = report["protocols"][protocol][region]
    rows = {"model": table["directions"], **table["baselines"]}
    rows = {name: cells for name, cells in rows.items() if cells}
    body = []
    for direction in next(iter(rows.values()), {}):
        mae_digits = 1 if protocol == "fixed" and report["units"]["mae"]["fixed"][direction] == "HU" else 4
        unit = " HU" if mae_digits == 1 else ""
        lines = []
        for position, (name, cells) in enumerate(rows.items()):
            cell = cells[direction]
            head = (
                f"<th scope=rowgroup rowspan={len(rows)}>{arrow(direction)}"
                f"<small>n = {cell['n']}</small></th>"
                if position == 0
                else ""
            )
            numbers = (
                _number(cell, "psnr", 2) + _number(cell, "ssim", 4) + _number(cell, "mae", mae_digits, unit)
            )
            lines.append(
                f'<tr class="{escaped(name)}">{head}<td>{escaped(CANDIDATES[name])}</td>{numbers}</tr>'
            )
        body.append(f"<tbody class=inner>{''.join(lines)}</tbody>")
    head = "<th>direction</th><th></th>" + "".join(
        f"<th class=number>{name}</th>" for name in ("PSNR, dB", "SSIM", "MAE")
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead>{''.join(body)}</table></div>"


def _number(cell: Mapping[str, Any], measure: str, digits: int, unit: str = "") -> str:
    if cell[measure] is None:
        return "<td class=number>–</td>"
    text = f"{cell[measure]:.{digits}f}"
    if cell[f"{measure}_sd"] is not None:
        low, high = cell[f"{measure}_ci95"]
        deviation = f"{cell[f'{measure}_sd']:.{digits}f}{unit}"
        text += (
            f" <span>± {deviation}</span><small><span>{low:.{digits}f} to</span> "
            f"<span>{high:.{digits}f}</span></small>"
        )
    else:
        text += unit
    return f"<td class=number>{text}</td>"


def _perceptual(report: Mapping[str, Any]) -> str:
    if not report["perceptual"]:
        return "<p>No translator was given: only the baselines were scored.</p>"
    distribution = report["distribution"]
    distances = distribution.get("directions", {})
    rows = []
    for direction, cell in report["perceptual"].items():
        collapse = report["identity_collapse"].get(direction)
        row = [
            arrow(direction),
            plain(cell, "sharpness_ratio"),
            plain(cell, "slice_consistency"),
            "–"
            if collapse is None
            else f"{collapse['mae_to_source']:.3f} / {collapse['mae_to_target']:.3f}"
            + (" <strong>collapsed</strong>" if collapse["collapsed"] else ""),
        ]
        if distances:
            row += [_distance(distances[direction], "fid"), _distance(distances[direction], "kid")]
        rows.append(row)
    heads = ["direction", "sharpness", "slice to slice", "MAE to source / to target"]
    heads += ["FID", "KID"] if distances else []
    words = (
        "Sharpness: mean gradient magnitude in the foreground, translation over target; below 1 is blurred. "
        "Slice to slice: mean |difference| of neighbouring slices, translation over target; above 1 it "
        "flickers. "
    )
    words += (
        f"FID and KID: on {distribution['features']}; comparable with each other only. "
        "n: real / translated slices."
        if distances
        else f"FID and KID are left out: {distribution['left_out']}."
    )
    return f"<p class=soft>{escaped(words)}</p>{html_table(heads, rows)}"


def _measures(report: Mapping[str, Any]) -> str:
    """A table for each group of further measures, directions against its names."""
    parts = []
    for group, values in report["measures"].items():
        cells = values["directions"]
        names = list(dict.fromkeys(name for its in cells.values() for name in its))
        rows = [
            [
                arrow(direction),
                *(
                    plain(its[name], "value") + f"<small>n = {its[name]['n']}</small>" if name in its else "–"
                    for name in names
                ),
            ]
            for direction, its in cells.items()
        ]
        parts.append(meanings(group, values["says"], values["blind_to"]))
        parts.append(html_table(["direction", *names], rows))
    return f"<h2>More measures</h2>{''.join(parts)}" if parts else ""


def _distance(cell: Mapping[str, Any], name: str) -> str:
    if cell[name] is None:
        return f"–<small>{escaped(cell[f'{name}_reason'])}</small>"
    return f"{cell[name]:.3g}<small>n = {cell['n_real']} / {cell['n_fake']}</small>"


def _comparison(report: Mapping[str, Any]) -> str:
    comparison = report.get("comparison")
    if not comparison:
        return ""
    parts = [
        "<h2>Comparison of two models</h2>",
        f"<p>A: {escaped(comparison['a'])}<br>B: {escaped(comparison['b'])}</p>",
        f"<p class=soft>{escaped(comparison['psnr']['test'])}; "
        f"{escaped(comparison['psnr']['correction'])}. Effect size: "
        f"{escaped(comparison['psnr']['effect_size_name'])}. Protocol "
        f"{escaped(comparison['protocol'])}, {escaped(comparison['region'])}. Higher PSNR and SSIM are "
        "better, lower MAE is.</p>",
    ]
    for measure in ("psnr", "ssim", "mae"):
        rows = []
        for direction, cell in comparison[measure]["directions"].items():
            interval = cell["mean_difference_ci95"]
            rows.append(
                [
                    arrow(direction),
                    *(significant(cell[key]) for key in ("mean_a", "mean_b", "mean_difference")),
                    "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
                    *(significant(cell[key]) for key in ("effect_size", "p", "p_holm")),
                    escaped(cell["words"]),
                ]
            )
        heads = ["direction", "A", "B", "A − B", "95 %", "effect size", "p", "p (Holm)", "in words"]
        parts.append(f"<h3>{measure.upper()}</h3>{html_table(heads, rows)}")
    return "".join(parts)


def _exclusions(report: Mapping[str, Any]) -> str:
    if not report["exclusions"]:
        return "<p>None: every subject counts in every direction.</p>"
    rows = [
        [escaped(e["subject"]), arrow(e["direction"]), escaped(e["reason"])] for e in report["exclusions"]
    ]
    return html_table(["subject", "direction", "reason"], rows)


def _protocols(report: Mapping[str, Any]) -> str:
    parts = [f"<p class=warn>{escaped(WARNING)}</p>"]
    for name in ("fixed", "paper"):
        protocol = report["protocols"][name]
        parts.append(
            f"<p><strong>{name}</strong>, version {protocol['version']}. "
            f"{escaped(protocol['description'])}</p>"
        )
    return "".join(parts)


# --- subjects ---


def _subjects(report: Mapping[str, Any], panels: Panels) -> str:
    """Each direction's subjects, worst first, with the picture of their worst slice."""
    parts = []
    for direction in report["perceptual"]:
        scored = [
            (entry["subject"], scores)
            for entry in report["per_subject"]
            if "model" in (scores := entry["directions"].get(direction, {}))
        ]
        scored.sort(key=lambda item: item[1]["model"]["fixed"]["masked"]["psnr"])
        rows, captions = [], {}
        for subject, scores in scored:
            masked, worst = scores["model"]["fixed"]["masked"], scores["worst_slice"]
            rows.append(
                [
                    escaped(subject),
                    f"{masked['psnr']:.2f}",
                    f"{masked['ssim']:.4f}",
                    significant(masked["mae"]),
                    f"{worst['index']}: {worst['psnr']:.2f} dB",
                ]
            )
            captions[str(subject)] = f"{subject}, slice {worst['index']}: {worst['psnr']:.1f} dB"
        heads = ["subject", "PSNR, dB", "SSIM", "MAE", "worst slice"]
        parts.append(
            f"<details><summary>{arrow(direction)}: {len(rows)} subjects</summary>{html_table(heads, rows)}"
            f"{strips(panels, direction, captions)}</details>"
        )
    if not parts:
        return ""
    note = (
        "Protocol fixed, in the body; worst subjects first. The worst slice is the one with the largest "
        "mean squared error in the body. Pictures: source (where given), translation, target, "
        "|difference| (0 to 0.5)."
    )
    return f"<h2>Subjects and their worst slices</h2><p class=soft>{note}</p>{''.join(parts)}"


# --- pictures ---


def _plots(report: Mapping[str, Any]) -> str:
    directions = list(report["units"]["mae"]["fixed"])
    values = {
        (measure, direction): _values(report, direction, measure)
        for measure in ("psnr", "ssim")
        for direction in directions
    }
    limits = {}
    for measure in ("psnr", "ssim"):
        flat = [x for d in directions for scores in values[measure, d].values() for x in scores]
        margin = 0.06 * ((max(flat) - min(flat)) or 1.0) if flat else 0.0
        limits[measure] = (min(flat) - margin, max(flat) + margin) if flat else (0.0, 1.0)
    figures = [
        f"<figure>{box_plot(d, {m: values[m, d] for m in limits}, limits)}</figure>" for d in directions
    ]
    note = "Protocol fixed, foreground; a dot a subject, the same axes in all plots."
    return f"<p class=soft>{note}</p><div class=plots>{''.join(figures)}</div>"


def _values(report: Mapping[str, Any], direction: str, measure: str) -> dict[str, list[float]]:
    """Candidate -> scores of its subjects, protocol fixed, masked."""
    found: dict[str, list[float]] = {}
    for entry in report["per_subject"]:
        scores = entry["directions"].get(direction, {})
        for candidate in ("model", *BASELINES):
            if candidate in scores:
                found.setdefault(candidate, []).append(scores[candidate]["fixed"]["masked"][measure])
    return found


def _cases(report: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    if not pictures:
        return ""
    figures = []
    for direction, path in pictures.items():
        with Image.open(path) as picture:
            source = webp(picture)
        alt = html.escape(f"{direction}: source, translation, target and difference", quote=True)
        figures.append(f'<figure><img alt="{alt}" loading="lazy" src="{source}"></figure>')
    note = (
        "Chosen by the volume's PSNR (fixed, foreground); shown at the slice with most foreground. One "
        "intensity scale, 0 to 1, and one difference scale, 0 to 0.5, in all pictures."
    )
    return f"<h2>Best, median and worst</h2><p class=soft>{note}</p><div class=cases>{''.join(figures)}</div>"


__all__ = ["html_report"]
