"""An evaluation report as one self-contained page: no script, no font and no file from elsewhere."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..version import DISCLAIMER
from .box_plots import box_plot
from .report import BASELINES

CANDIDATES = {
    "model": "model",
    "copy": "source copied",
    "histogram": "histogram matched",
    "mean": "mean slice",
    "lookup": "lookup table",
}
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

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1a1c1f;--soft:#5b6168;--line:#d9dde2;--card:#f5f6f8;
--mark:#1f5fa8;--warn:#8a4b00;--warnbg:#fff4e2}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--ink:#e6e8eb;--soft:#a2a9b2;
--line:#343940;--card:#1e2126;
--mark:#7fb4f0;--warn:#ffc880;--warnbg:#33270f}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:68rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2.2rem 0 .5rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}p{margin:.4rem 0;max-width:46rem}
.soft,figcaption{color:var(--soft);font-size:.875rem}
.warn{background:var(--warnbg);color:var(--warn);border-left:4px solid;padding:.5rem .8rem;font-size:.92rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem .3rem 0;text-align:left;vertical-align:top;border-top:1px solid var(--line)}
th,td{overflow-wrap:normal}td.number span{white-space:nowrap}
@media(max-width:34rem){th,td{padding-right:.45rem;font-size:.8rem}}
thead th{border-top:0;color:var(--soft);font-weight:500}
th[scope=rowgroup]{white-space:nowrap}tr.model td{font-weight:600;color:var(--mark)}
tr.model small{font-weight:400}small{color:var(--soft);font-size:.8em;display:block}
tbody.inner tr+tr td{border-top:0}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem}
.plots figure{margin:0;background:var(--card);border-radius:6px;padding:.5rem}
.plots svg{width:100%;height:auto}
.cases figure{margin:1rem 0}.cases img{width:100%;max-width:46rem;height:auto;border:1px solid var(--line)}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--mark)}
dl{display:grid;grid-template-columns:minmax(7rem,auto) 1fr;gap:.2rem 1rem;font-size:.875rem}
dt{color:var(--soft)}dd{margin:0;font-family:ui-monospace,monospace;font-size:.82rem}
"""


def html_report(report: Mapping[str, Any], *, title: str, pictures: Mapping[str, Path] | None = None) -> str:
    """The page.

    Args:
        report: of `evaluate`; `provenance`, `comparison` and `notes` are shown where present.
        title: heading of the page.
        pictures: direction -> PNG file of its cases, which the page will contain.
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
        f"<h1>{_text(title)}</h1><p class=soft>{_text(lead)}</p>",
        _list([*report.get("notes", []), *findings(report)]),
        "<h2>Scores</h2>" + _score_tables(report),
        "<h2>Spread over subjects</h2>" + _plots(report),
        _comparison(report),
        "<h2>What PSNR and SSIM do not see</h2>" + _perceptual(report),
        _cases(report, pictures or {}),
        "<h2>Exclusions</h2>" + _exclusions(report),
        "<h2>Protocols</h2>" + _protocols(report),
        "<h2>Provenance</h2>" + _definitions(provenance),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def findings(report: Mapping[str, Any]) -> list[str]:
    """What a reader should not overlook, in plain words."""
    table = report["protocols"]["fixed"]["masked"]
    found = []
    if report["subjects"] == 1:
        found.append("One subject: there is no spread, and nothing can be said about others.")
    for direction, cell in table["directions"].items():
        if cell["psnr"] is None:
            found.append(f"{direction}: no subject could be scored.")
            continue
        better = [
            f"{CANDIDATES[name]} ({cells[direction]['psnr']:.2f} dB)"
            for name, cells in table["baselines"].items()
            if cells[direction]["psnr"] is not None and cells[direction]["psnr"] >= cell["psnr"]
        ]
        if better:
            found.append(
                f"{direction}: the model ({cell['psnr']:.2f} dB) is not above {', nor above '.join(better)}."
            )
    for direction, collapse in report["identity_collapse"].items():
        if collapse["collapsed"]:
            found.append(
                f"{direction}: identity collapse, the output is closer to its source than its target."
            )
        elif collapse["subjects_collapsed"]:
            found.append(
                f"{direction}: in {collapse['subjects_collapsed']} subjects the output is closer to its "
                "source than to its target."
            )
    return found


# --- tables ---


def _score_tables(report: Mapping[str, Any]) -> str:
    reference = report["histogram_reference"]
    note = (
        "Mean ± SD over subjects; below it the 95 % bootstrap interval of the mean. Trivial baselines: the "
        "source copied, the source with its histogram matched to the target domain, the mean training "
        "slice, and "
        "the best map from source to target intensity, fitted with registered training pairs where there "
        "are some "
        "(lookup table): a model below it has learnt nothing about anatomy. "
        f"Histograms are matched to {reference}"
        + (" (an advantage no translator has)." if reference == "the target itself" else ".")
    )
    parts = [f"<p class=soft>{_text(note)}</p>"]
    for (protocol, region), title in REGION_TITLES.items():
        table = _score_table(report, protocol, region)
        heading = f"{title} (version {report['protocols'][protocol]['version']})"
        warning = f"<p class=warn>{_text(WARNING)}</p>" if protocol == "paper" else ""
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
                f"<th scope=rowgroup rowspan={len(rows)}>{_arrow(direction)}"
                f"<small>n = {cell['n']}</small></th>"
                if position == 0
                else ""
            )
            numbers = (
                _number(cell, "psnr", 2) + _number(cell, "ssim", 4) + _number(cell, "mae", mae_digits, unit)
            )
            lines.append(f'<tr class="{_text(name)}">{head}<td>{_text(CANDIDATES[name])}</td>{numbers}</tr>')
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
            f" <span>± {deviation}</span>"
            f"<small><span>{low:.{digits}f} to</span> <span>{high:.{digits}f}</span></small>"
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
            _arrow(direction),
            _plain(cell, "sharpness_ratio"),
            _plain(cell, "slice_consistency"),
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
    return f"<p class=soft>{_text(words)}</p>{_table(heads, rows)}"


def _plain(cell: Mapping[str, Any], measure: str) -> str:
    if cell[measure] is None:
        return "–"
    deviation = cell[f"{measure}_sd"]
    return f"{cell[measure]:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def _distance(cell: Mapping[str, Any], name: str) -> str:
    if cell[name] is None:
        return f"–<small>{_text(cell[f'{name}_reason'])}</small>"
    return f"{cell[name]:.3g}<small>n = {cell['n_real']} / {cell['n_fake']}</small>"


def _comparison(report: Mapping[str, Any]) -> str:
    comparison = report.get("comparison")
    if not comparison:
        return ""
    parts = [
        "<h2>Comparison of two models</h2>",
        f"<p>A: {_text(comparison['a'])}<br>B: {_text(comparison['b'])}</p>",
        f"<p class=soft>{_text(comparison['psnr']['test'])}; {_text(comparison['psnr']['correction'])}. "
        f"Effect size: {_text(comparison['psnr']['effect_size_name'])}. "
        f"Protocol {_text(comparison['protocol'])}, {_text(comparison['region'])}. Higher PSNR and SSIM are "
        "better, lower MAE is.</p>",
    ]
    for measure in ("psnr", "ssim", "mae"):
        rows = []
        for direction, cell in comparison[measure]["directions"].items():
            interval = cell["mean_difference_ci95"]
            rows.append(
                [
                    _arrow(direction),
                    *(_maybe(cell[key]) for key in ("mean_a", "mean_b", "mean_difference")),
                    "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
                    *(_maybe(cell[key]) for key in ("effect_size", "p", "p_holm")),
                    _text(cell["words"]),
                ]
            )
        heads = ["direction", "A", "B", "A − B", "95 %", "effect size", "p", "p (Holm)", "in words"]
        parts.append(f"<h3>{measure.upper()}</h3>{_table(heads, rows)}")
    return "".join(parts)


def _exclusions(report: Mapping[str, Any]) -> str:
    if not report["exclusions"]:
        return "<p>None: every subject counts in every direction.</p>"
    rows = [[_text(e["subject"]), _arrow(e["direction"]), _text(e["reason"])] for e in report["exclusions"]]
    return _table(["subject", "direction", "reason"], rows)


def _protocols(report: Mapping[str, Any]) -> str:
    parts = [f"<p class=warn>{_text(WARNING)}</p>"]
    for name in ("fixed", "paper"):
        protocol = report["protocols"][name]
        parts.append(
            f"<p><strong>{name}</strong>, version {protocol['version']}. {_text(protocol['description'])}</p>"
        )
    return "".join(parts)


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
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        alt = html.escape(f"{direction}: source, translation, target and difference", quote=True)
        figures.append(f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"></figure>')
    note = (
        "Chosen by the volume's PSNR (fixed, foreground); shown at the slice with most foreground. One "
        "intensity scale, 0 to 1, and one difference scale, 0 to 0.5, in all pictures."
    )
    return f"<h2>Best, median and worst</h2><p class=soft>{note}</p><div class=cases>{''.join(figures)}</div>"


# --- pieces ---


def _text(value: Any) -> str:
    return html.escape(str(value))


def _arrow(direction: Any) -> str:
    return _text(str(direction).replace("->", " → "))


def _maybe(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _list(items: Iterable[str]) -> str:
    lines = "".join(f"<li>{_text(item)}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`heads` are text, `rows` are HTML."""
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _definitions(values: Mapping[str, Any]) -> str:
    items = []
    for key, value in values.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        items.append(
            f"<dt>{_text(key.replace('_', ' '))}</dt><dd>{_text('–' if shown is None else shown)}</dd>"
        )
    return f"<dl>{''.join(items)}</dl>"


__all__ = ["findings", "html_report"]
