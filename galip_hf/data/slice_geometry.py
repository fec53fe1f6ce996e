"""The geometry of a table's training slices, measured for the model that is trained on them."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..foreground import body_extent, body_mask
from ..model.slice_geometry import SliceGeometry
from .skull import looks_skull_stripped
from .table import SUMMARY_NAME, SliceReader

# Volumes that are looked at, evenly spread over the table: the median body does not need more.
SAMPLED_VOLUMES = 48


def measure_geometry(
    table: datasets.Dataset, directory: Path, hounsfield_domains: Collection[str] = ()
) -> SliceGeometry | None:
    """Geometry of the training slices of a table; None where no body is found on them.

    Args:
        table: the split trained on.
        directory: of the table, whose summary says how large its pixels are and which plane they lie in.
        hounsfield_domains: names of the domains in HU, on which a skull is not looked for.
    """
    sizes = _sizes_in_summary(directory / SUMMARY_NAME)
    extents, shares, stripped = [], [], []
    for domain, volume in _sampled_volumes(table):
        body = body_mask([volume])
        extent = body_extent(body)
        if extent is None:
            continue
        extents.append(extent)
        shares.append(float(body.mean()))
        if domain not in hounsfield_domains:
            stripped.append(looks_skull_stripped(volume, body, sizes["pixel_size"]))
    if not extents:
        return None
    height, width = table.features["pixel_values"].shape
    known = [value for value in stripped if value is not None]
    majority = sum(known) / len(known) if known else 0.5
    return SliceGeometry(
        planes=tuple(sizes["planes"]),
        pixel_size=None if sizes["pixel_size"] is None else tuple(sizes["pixel_size"]),  # type: ignore[arg-type]
        pixel_size_range=None if sizes["pixel_size"] is None else tuple(sizes["pixel_size_range"]),  # type: ignore[arg-type]
        canvas=(height, width),
        body_extent=float(np.median(extents)),
        body_extent_range=(min(extents), max(extents)),
        foreground_share=float(np.mean(shares)),
        skull_stripped=None if 0.2 < majority < 0.8 else majority >= 0.8,
    )


def _sizes_in_summary(path: Path) -> dict[str, Any]:
    unknown: dict[str, Any] = {"planes": [], "pixel_size": None, "pixel_size_range": None}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        geometry = summary["geometry"]
        known = {name: geometry[name] for name in unknown}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return unknown  # a table made by other means than ours
    lists = all(value is None or isinstance(value, list) for value in known.values())
    return known if lists and known["planes"] is not None else unknown


def _sampled_volumes(table: datasets.Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Domain and (S, H, W) volume, one at a time."""
    reader, names = SliceReader(table), table.features["domain"].names
    rows: dict[tuple[str, str], list[int]] = {}
    for row, (subject, label) in enumerate(zip(table["subject"], table["domain"], strict=True)):
        rows.setdefault((subject, names[label]), []).append(row)
    keys = list(rows)
    chosen = np.unique(np.linspace(0, len(keys) - 1, min(SAMPLED_VOLUMES, len(keys))).round().astype(int))
    for number in chosen:
        key = keys[number]
        yield key[1], np.stack([reader[row] for row in rows[key]])


__all__ = ["measure_geometry"]
