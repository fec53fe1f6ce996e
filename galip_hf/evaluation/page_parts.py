"""Pieces of a report's page: style, text, tables, the verdict. No script and no file from elsewhere."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .panels import Panels

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1a1c1f;--soft:#5b6168;--line:#d9dde2;--card:#f5f6f8;
--mark:#1f5fa8;--warn:#8a4b00;--warnbg:#fff4e2;
--good:#14632f;--goodbg:#e6f5ea;--bad:#9b1c1c;--badbg:#fdeaea}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--ink:#e6e8eb;--soft:#a2a9b2;
--line:#343940;--card:#1e2126;
--mark:#7fb4f0;--warn:#ffc880;--warnbg:#33270f;
--good:#8fdca6;--goodbg:#12301c;--bad:#ffb0a8;--badbg:#3a1616}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:68rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2.2rem 0 .5rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}p{margin:.4rem 0;max-width:46rem}
.soft,figcaption{color:var(--soft);font-size:.875rem}
.warn{background:var(--warnbg);color:var(--warn);border-left:4px solid;padding:.5rem .8rem;font-size:.92rem}
.verdict{border-left:6px solid;padding:.7rem 1rem;margin:1rem 0;max-width:none}
.verdict strong{display:block;font-size:1.05rem}.verdict p{margin:.2rem 0 0;max-width:none;font-size:.92rem}
.good{background:var(--goodbg);color:var(--good)}.unsure{background:var(--warnbg);color:var(--warn)}
.bad{background:var(--badbg);color:var(--bad)}
.strips{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:.8rem}
.strips figure{margin:0}.strips img{width:100%;height:auto;display:block}
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


def html_page(title: str, sections: Iterable[str]) -> str:
    """A whole HTML page; empty sections are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def verdict_line(verdict: Mapping[str, str]) -> str:
    """The coloured line at the top: what is found, and what it rests on."""
    return (
        f'<div class="verdict {escaped(verdict["level"])}"><strong>{escaped(verdict["says"])}</strong>'
        f"<p>{escaped(verdict['rests_on'])}</p></div>"
    )


def escaped(value: Any) -> str:
    """Escaped for HTML."""
    return html.escape(str(value))


def arrow(direction: Any) -> str:
    """A direction as it is read."""
    return escaped(str(direction).replace("->", " → "))


def significant(value: float | None, digits: int = 4) -> str:
    """Significant digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}g}"


def plain(cell: Mapping[str, Any], measure: str, digits: int = 3) -> str:
    """Mean ± SD, or a dash."""
    if cell[measure] is None:
        return "–"
    deviation = cell[f"{measure}_sd"]
    return f"{cell[measure]:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def bullets(items: Iterable[str]) -> str:
    """A list of plain sentences."""
    lines = "".join(f"<li>{escaped(item)}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`heads` are text, `rows` are HTML."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def definitions(values: Mapping[str, Any]) -> str:
    """Names and values, as of the provenance."""
    items = []
    for key, value in values.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        items.append(
            f"<dt>{escaped(key.replace('_', ' '))}</dt><dd>{escaped('–' if shown is None else shown)}</dd>"
        )
    return f"<dl>{''.join(items)}</dl>"


def meanings(title: str, says: str, blind_to: str) -> str:
    """What a measure says and what it cannot see."""
    return (
        f"<h3>{escaped(title)}</h3><p class=soft>{escaped(says)} <em>Blind to:</em> {escaped(blind_to)}</p>"
    )


def strips(panels: Panels, direction: str, captions: Mapping[str, str]) -> str:
    """Pictures of a direction, those of the subjects in `captions`, in their order."""
    kept = set(panels.subjects(direction))
    figures = [
        f'<figure><img loading="lazy" alt="{html.escape(f"{direction}, {subject}", quote=True)}" '
        f'src="{panels.strip(direction, subject)}"><figcaption>{escaped(caption)}</figcaption></figure>'
        for subject, caption in captions.items()
        if subject in kept
    ]
    return f"<div class=strips>{''.join(figures)}</div>" if figures else ""


def manifest(entries: Sequence[Mapping[str, Any]]) -> str:
    """Subjects and the hashes of what was read of them."""
    rows = [
        [
            escaped(entry["subject"]),
            escaped(name),
            escaped(item["read_from"]),
            f"<code>{escaped(item['sha256'][:16])}…</code>",
        ]
        for entry in entries
        for name, item in entry["data"].items()
    ]
    if not rows:
        return ""
    note = "SHA-256 of each file, or of a table's slices of the subject; in full in report.json."
    shown = html_table(["subject", "role", "read from", "SHA-256"], rows)
    return (
        f"<details><summary>Data: {len(entries)} subjects</summary><p class=soft>{note}</p>{shown}</details>"
    )


__all__ = [
    "arrow",
    "bullets",
    "definitions",
    "escaped",
    "html_page",
    "html_table",
    "manifest",
    "meanings",
    "plain",
    "significant",
    "strips",
    "verdict_line",
]
