"""The files that a translation consists of, and how to tell them from scans of patients.

Beside the scan NAME lies its report NAME.json, and on request the map NAME_cycle and the picture
NAME_figure.png.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .file_checks import has_suffix, stem_of

_LONGEST_REPORT = 1 << 24  # bytes


def report_path(path: Path) -> Path:
    """Where the report of the scan at `path` (a file, or a folder of DICOM) lies."""
    return path.with_name(f"{stem_of(path)}.json")


def cycle_path(path: Path) -> Path:
    """Where the cycle map of the scan at `path` lies."""
    stem = stem_of(path)
    return path.with_name(f"{stem}_cycle{path.name[len(stem) :]}")


def figure_path(path: Path) -> Path:
    """Where the picture of the scan at `path` lies."""
    return path.with_name(f"{stem_of(path)}_figure.png")


def read_report(path: Path) -> dict[str, Any] | None:
    """The report of a translation of ours; of a series that of its first volume. None for any other file."""
    try:
        if path.stat().st_size > _LONGEST_REPORT:
            return None
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(report, dict) and isinstance(report.get("volumes"), list) and report["volumes"]:
        output, report = report.get("output"), report["volumes"][0]
        report = report | {"output": output} if isinstance(report, dict) else None
    return report if isinstance(report, dict) and {"galip_hf", "target"} <= set(report) else None


def is_own_output(path: Path) -> bool:
    """Whether a file or folder of DICOM is a translation of ours, its map or picture, by its report."""
    stem = stem_of(path)
    for ending in ("", "_cycle", "_figure"):
        if not stem.endswith(ending):
            continue
        report = read_report(path.with_name(f"{stem.removesuffix(ending)}.json"))
        if report is None:
            continue
        output = report.get("output")
        if not isinstance(output, str):  # written before reports named their scan
            return True
        scan = path.with_name(Path(output).name)
        if path in (scan, figure_path(scan)) or (has_suffix(scan) and path == cycle_path(scan)):
            return True
    return False


__all__ = ["cycle_path", "figure_path", "is_own_output", "read_report", "report_path"]
