"""What is worth a look before training: intensities, registration, scans that are there twice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..figures import save_montage
from ..model.errors import GalipError

LARGEST_SHIFT = 2.0  # mm; or a voxel where that is larger
_FEWEST_FOR_OUTLIERS = 5
_OUTLIER_DEVIATIONS = 5.0  # scaled median absolute deviations below the median
_PANELS = 12
_TILES = 8

Records = Mapping[str, dict[str, Any]]


def domain_statistics(records: Records, domains: Mapping[str, Any]) -> dict[str, Any]:
    """Per domain, over its scans: extremes, and means of the scans' own statistics, raw and normalised."""
    report = {}
    for domain in domains:
        scans = [record["scans"][domain] for record in records.values() if domain in record["scans"]]
        if not scans:
            continue
        report[domain] = {
            "scans": len(scans),
            "window": [_mean([s["window"][end] for s in scans]) for end in (0, 1)],
            "outside_fraction": _mean([s["outside_fraction"] for s in scans]),
            **{kind: _summary([s[kind] for s in scans]) for kind in ("raw", "normalised")},
        }
    return report


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _summary(scans: list[dict[str, float]]) -> dict[str, float]:
    means = {name: _mean([scan[name] for scan in scans]) for name in ("mean", "sd", "p1", "p50", "p99")}
    return {"min": min(s["min"] for s in scans), "max": max(s["max"] for s in scans), **means}


def raw_duplicates(records: Records, split_of: Mapping[str, str]) -> list[str]:
    """Slices that are in two scans byte for byte, as read: between splits an error, within one a warning."""
    first: dict[str, tuple[str, str, int]] = {}
    found: dict[tuple[str, str, str, str], int] = {}
    for subject, record in records.items():
        for domain, scan in record["scans"].items():
            for position, digest in enumerate(scan["slice_digests"]):
                other = first.setdefault(digest, (subject, domain, position))
                if not digest or other[:2] == (subject, domain):
                    continue
                if split_of[other[0]] != split_of[subject]:
                    raise GalipError(
                        f"leakage: slice {other[2]} of {other[0]!r} ({split_of[other[0]]}, {other[1]}), "
                        f"slice {position} of {subject!r} ({split_of[subject]}, {domain}): byte-identical; "
                        "they are the same scan, so give both one split (a group) or leave one out"
                    )
                key = (other[0], other[1], subject, domain)
                found[key] = found.get(key, 0) + 1
    return [f"{a!r} {x} and {b!r} {y}: {n} byte-identical slices" for (a, x, b, y), n in found.items()]


def registration_warnings(records: Records) -> list[str]:
    """Pairs that may not lie on each other, worst first, with their subjects named."""
    warnings = []
    for name in sorted({pair for record in records.values() for pair in record["pairs"]}):
        pairs = {
            subject: record["pairs"][name] for subject, record in records.items() if name in record["pairs"]
        }
        values = np.array([pair["mutual_information"] for pair in pairs.values()])
        median = float(np.median(values))
        spread = max(1.4826 * float(np.median(np.abs(values - median))), 0.005)
        floor = median - _OUTLIER_DEVIATIONS * spread if len(values) >= _FEWEST_FOR_OUTLIERS else 0.0
        for subject, pair in sorted(pairs.items(), key=lambda item: -item[1]["distance_mm"]):
            reasons = []
            limit = max(LARGEST_SHIFT, *records[subject]["spacing"])
            if pair["distance_mm"] > limit:
                reasons.append(f"shifted by about {pair['distance_mm']:.1f} mm (limit {limit:.3g})")
            if pair["mutual_information"] < floor:
                information = pair["mutual_information"]
                reasons.append(f"mutual information {information:.3f} is far below the usual {median:.3f}")
            if reasons:
                warnings.append(f"registration of {subject!r}, {name}: {'; '.join(reasons)}")
    return warnings


def save_pair_montage(path: Path, records: Records, shards: Mapping[str, Path]) -> None:
    """Checkerboards of reference and other scan in the middle slice, largest shift first; none without pairs.

    Edges that run on across the tiles are in register.
    """
    pairs = [
        (-pair["distance_mm"], subject, name)
        for subject, record in records.items()
        for name, pair in record["pairs"].items()
    ]
    boards, titles = [], []
    for distance, subject, name in sorted(pairs)[:_PANELS]:
        with np.load(shards[subject]) as arrays:
            reference = records[subject]["reference"]
            pair = arrays[reference], arrays[name[len(reference) + 1 :]]
            boards.append(checkerboard(*(volume[len(volume) // 2] for volume in pair)))
        titles.append(f"{subject} {name} {-distance:.1f} mm")
    if not boards:
        return
    size = max(max(board.shape) for board in boards)
    padded = [np.pad(b, [((size - n) // 2, size - n - (size - n) // 2) for n in b.shape]) for b in boards]
    save_montage(np.stack(padded), path, titles=titles, title="registration: largest shift first")


def checkerboard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Tiles of two (H, W) images in turn, clipped to [0, 1]."""
    rows, columns = (np.arange(length) * _TILES // length for length in first.shape)
    return np.clip(np.where((rows[:, None] + columns) % 2 == 0, first, second), 0, 1)


__all__ = [
    "checkerboard",
    "domain_statistics",
    "raw_duplicates",
    "registration_warnings",
    "save_pair_montage",
]
