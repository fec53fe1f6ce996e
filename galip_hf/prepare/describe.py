"""A table in words: what `galip-hf prepare` and `galip-hf inspect` print, and the dataset card holds."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from ..data.table import SPLITS, SliceReader, domain_rows
from ..model.errors import GalipError
from .splits import listing

_LISTED = 12


def describe_summary(summary: Mapping[str, Any]) -> str:
    """Splits, intensities, exclusions and warnings of a `summary.json`.

    Raises:
        GalipError: it has not the form that `galip-hf prepare` gives it.
    """
    try:
        return "\n".join(_described(summary))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise GalipError(
            f"summary.json: not as galip-hf prepare writes it ({type(error).__name__}: {error}); prepare the "
            "table again"
        ) from None


def _described(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for split, its in summary["splits"].items():
        slices = ", ".join(f"{domain} {count}" for domain, count in its["slices"].items())
        lines.append(f"  {split}: {len(its['subjects'])} subjects; slices: {slices}")
    lines.append(
        f"  slices of {'x'.join(map(str, summary['slice_shape']))}; split hash {summary.get('split_hash')}"
    )
    for domain, values in summary.get("intensities", {}).items():
        raw, normal = values["raw"], values["normalised"]
        lines.append(
            f"  {domain}: as read {raw['min']:.4g}..{raw['max']:.4g}, mean {raw['mean']:.4g}; window "
            f"{values['window'][0]:.4g}..{values['window'][1]:.4g}; in the table mean {normal['mean']:.3f}, "
            f"SD {normal['sd']:.3f}, {values['outside_fraction']:.2%} of voxels outside"
        )
    lines += [f"  left out: {line}" for line in describe_excluded(summary.get("excluded", []))]
    lines += [f"  WARNING {warning}" for warning in summary.get("warnings", [])[:_LISTED]]
    more = len(summary.get("warnings", [])) - _LISTED
    return lines + ([f"  WARNING and {more} more, in summary.json"] if more > 0 else [])


def describe_excluded(excluded: list[dict[str, Any]]) -> list[str]:
    """One line a reason: how much was left out, and of whom. Scans are named with their own reason."""
    lines, slices = [], Counter[str]()
    subjects: dict[str, list[str]] = {}
    for entry in excluded:
        if entry.get("slices") is None:
            lines.append(f"{entry['subject']} {entry['domain'] or ''}: {entry['reason']}".replace(" :", ":"))
        else:
            slices[entry["reason"]] += len(entry["slices"])
            subjects.setdefault(entry["reason"], []).append(f"{entry['subject']} {entry['domain']}")
    if len(lines) > _LISTED:
        lines = [*lines[:_LISTED], f"and {len(lines) - _LISTED} more scans, in summary.json"]
    return lines + [f"{n} slices: {reason}; {listing(subjects[reason], 4)}" for reason, n in slices.items()]


def count_table(tables: datasets.DatasetDict) -> dict[str, Any]:
    """Splits, subjects, slices and intensities of a table that has no summary, as far as its rows tell."""
    splits: dict[str, Any] = {}
    values: dict[str, tuple[float, float, float, float, int]] = {}
    for split in [name for name in SPLITS if name in tables] or list(tables):
        table = tables[split]
        names = table.features["domain"].names
        counts = {domain: len(domain_rows(table, domain)) for domain in names}
        splits[split] = {"subjects": sorted(set(table["subject"])), "slices": counts}
        reader = SliceReader(table)
        for domain in names:
            for row in domain_rows(table, domain):
                image = reader[int(row)]
                low, high, total, square, n = values.get(domain, (np.inf, -np.inf, 0.0, 0.0, 0))
                values[domain] = (
                    min(low, float(image.min())),
                    max(high, float(image.max())),
                    total + float(image.sum(dtype=np.float64)),
                    square + float(np.square(image, dtype=np.float64).sum()),
                    n + image.size,
                )
    intensities = {
        domain: {"min": low, "max": high, "mean": s / n, "sd": float(np.sqrt(max(0.0, q / n - (s / n) ** 2)))}
        for domain, (low, high, s, q, n) in values.items()
    }
    first = next(iter(tables.values()))
    return {
        "slice_shape": list(first.features["pixel_values"].shape),
        "splits": splits,
        "intensities_in_table": intensities,
    }


def sample_slices(tables: datasets.DatasetDict) -> tuple[np.ndarray, list[str]]:
    """(N, H, W) slices in [0, 1] for a square montage, each domain filling whole rows, and their titles."""
    domains = next(iter(tables.values())).features["domain"].names
    columns = len(domains) * -(-4 // len(domains))
    slices, titles = [], []
    for domain in domains:
        places = [(s, int(row)) for s in tables for row in domain_rows(tables[s], domain)]
        number = columns * columns // len(domains)
        chosen = (
            np.unique(np.linspace(0, len(places) - 1, number).round().astype(int)) if places else np.empty(0)
        )
        for split, row in (places[int(index)] for index in chosen):
            entry = tables[split].select_columns(["subject", "slice"])[row]
            slices.append(np.clip(SliceReader(tables[split])[row], 0, 1))
            titles.append(f"{domain} {entry['subject']} #{entry['slice']}")
    return np.stack(slices), titles


__all__ = ["count_table", "describe_excluded", "describe_summary", "sample_slices"]
