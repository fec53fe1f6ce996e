"""One DICOM series may hold several stacks of slices: echoes, time points, b-values, magnitude and phase.

They are told apart only where images collide: where several images lie at one place, a header value is looked
for that splits them into as few stacks as possible. A value that differs from slice to slice without need
(an acquisition time, say) splits nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..model.errors import GalipError
from .dicom_frames import DISTINCTIONS, TIMES, Frame, Value
from .dicom_geometry import SAME_DIRECTION, SAME_POSITION, evenly_spaced, normal_of

_PLANES = ("sagittal", "coronal", "axial")
_SMALLEST_STACK = 3  # slices; fewer beside a stack are strays, such as a localiser


@dataclass(frozen=True)
class Stack:
    """Images at distinct places; `told_apart_by` are keywords and values that other stacks do not share."""

    frames: tuple[Frame, ...]
    told_apart_by: tuple[tuple[str, str], ...] = ()


def form_stacks(frames: Sequence[Frame]) -> list[Stack]:
    """The stacks among the images of one series, in the order of what tells them apart.

    Images whose place is unknown, and those that nothing tells apart, stay together: reading refuses them.
    So do a stack and a few strays of another orientation or size, see `check_one_grid`.
    """
    if not all(frame.has_geometry for frame in frames):
        return [Stack(tuple(frames))]
    grids = grid_groups(frames)
    large = [group for group in grids if len(group) >= _SMALLEST_STACK]
    if len(grids) == 1 or (large and len(large) < len(grids)):
        return _split(list(frames), ()) if len(grids) == 1 else [Stack(tuple(frames))]
    stacks = []
    for group, label in zip(grids, _grid_labels(grids), strict=True):
        stacks += _split(group, label)
    return stacks


def grid_groups(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Images that share size, orientation and pixel spacing, the largest group first."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _same_grid(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return sorted(groups, key=len, reverse=True)


def _same_grid(one: Frame, other: Frame) -> bool:
    return (
        one.size == other.size
        and _close(one.orientation, other.orientation, SAME_DIRECTION)
        and _close(one.spacing, other.spacing, SAME_POSITION)
    )


def _close(one: tuple[float, ...] | None, other: tuple[float, ...] | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def check_one_grid(frames: Sequence[Frame]) -> None:
    """Refuse images of several orientations, sizes or spacings, naming those that are in the minority.

    Raises:
        GalipError: the images do not share one grid.
    """
    main, *others = grid_groups([frame for frame in frames if frame.has_geometry]) or [[]]
    if not others:
        return
    stray, usual = others[0][0], main[0]
    names = ", ".join(str(frame.path) for group in others for frame in group[:3])
    if stray.size != usual.size:
        what = f"has {stray.size} pixels, the other {len(main)} slices {usual.size}"
    else:
        tag, one, other = "ImageOrientationPatient", stray.orientation, usual.orientation
        if _close(one, other, SAME_DIRECTION):
            tag, one, other = "PixelSpacing", stray.spacing, usual.spacing
        what = f"{tag} is {list(one or ())}, that of the other {len(main)} slices {list(other or ())}"
    raise GalipError(f"{names}: {what}; the series is no stack (a localiser?), so leave the file out")


def is_even_stack(frames: Sequence[Frame], *, gaps: bool = False) -> bool:
    """Whether images with places form one stack at even distances; with `gaps`, slices may be missing."""
    positions, normal = _sorted_positions(frames)
    if not gaps or len(positions) < 2:
        return evenly_spaced(positions, normal)
    distances = np.diff(positions @ normal)
    usual = float(np.median(distances))
    if usual < SAME_POSITION:
        return False
    steps = distances / usual
    share = (positions @ normal - positions[0] @ normal)[:, None] / np.ptp(positions @ normal)
    off = np.linalg.norm(positions - positions[0] - share * (positions[-1] - positions[0]), axis=1)
    whole = np.abs(steps - np.rint(steps)) <= 0.1
    return bool(whole.all() and steps.min() > 0.5 and off.max() <= 0.1 * usual)


def _sorted_positions(frames: Sequence[Frame]) -> tuple[np.ndarray, np.ndarray]:
    normal = normal_of(frames[0].orientation or ())
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    return positions[np.argsort(positions @ normal, kind="stable")], normal


def _by_place(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Images at one place along the normal, together; copies of an image (same SOPInstanceUID) count once."""
    normal = normal_of(frames[0].orientation or ())
    places = np.array([frame.position for frame in frames], dtype=np.float64) @ normal
    order = np.argsort(places, kind="stable")
    starts = np.concatenate([[True], np.diff(places[order]) >= SAME_POSITION])
    groups: list[dict[Any, Frame]] = []
    for index, start in zip(order, starts, strict=True):
        if start:
            groups.append({})
        frame = frames[index]
        groups[-1].setdefault((frame.values.get("SOPInstanceUID", frame.path), frame.number), frame)
    return [list(group.values()) for group in groups]


def _split(frames: list[Frame], label: tuple[tuple[str, str], ...]) -> list[Stack]:
    crowd = max(len(group) for group in _by_place(frames))
    parts = _interleaved(frames) if crowd == 1 else _by_value(frames, crowd) or _by_time(frames, crowd)
    if not parts:
        return [Stack(tuple(frames), label)]
    return [stack for name, part in parts for stack in _split(part, (*label, name))]


_Part = tuple[tuple[str, str], list[Frame]]


def _by_value(frames: list[Frame], crowd: int) -> list[_Part]:
    """Parts told apart by the first element that makes no more parts than images lie at one place."""
    # Only of mosaics, each a whole volume, is it sure that the instance number counts volumes.
    last = ("InstanceNumber",) if all(frame.is_mosaic for frame in frames) else ()
    for keyword in (*DISTINCTIONS, *frames[0].dimensions, *last):
        parts = _group(frames, keyword)
        most = max(max(len(group) for group in _by_place(part)) for part in parts.values())
        if 2 <= len(parts) <= crowd and most < crowd:
            return _named(keyword, parts)
    return []


def _by_time(frames: list[Frame], crowd: int) -> list[_Part]:
    """Time points in the order of acquisition at each place, where every place has as many."""
    places = _by_place(frames)
    if any(len(group) != crowd for group in places):
        return []
    for keyword in TIMES:
        known = all(keyword in frame.values for frame in frames)
        if known and all(len({frame.values[keyword] for frame in group}) == crowd for group in places):
            parts = _ranked(places, keyword)
            return [(("TimePoint", str(number)), part) for number, part in enumerate(parts, start=1)]
    return []


def _ranked(places: list[list[Frame]], keyword: str) -> list[list[Frame]]:
    """The earliest image of each place, the second of each, and so on."""

    def time(frame: Frame) -> Any:
        return frame.values[keyword]

    return [list(part) for part in zip(*(sorted(group, key=time) for group in places), strict=True)]


def _interleaved(frames: list[Frame]) -> list[_Part]:
    """Even stacks whose slices lie between one another's, such as two overlapping CT acquisitions."""
    if len(frames) < 2 * _SMALLEST_STACK or is_even_stack(frames):
        return []
    normal = normal_of(frames[0].orientation or ())
    for keyword in DISTINCTIONS:
        parts = _group(frames, keyword)
        if len(parts) < 2 or min(map(len, parts.values())) < _SMALLEST_STACK:
            continue
        ends = sorted(
            (min(places), max(places))
            for part in parts.values()
            for places in [[float(np.dot(frame.position or (), normal)) for frame in part]]
        )
        overlap = all(later[0] < earlier[1] for earlier, later in pairwise(ends))
        if overlap and all(is_even_stack(part) for part in parts.values()):
            return _named(keyword, parts)
    return []


def _group(frames: Sequence[Frame], keyword: str) -> dict[Any, list[Frame]]:
    parts: dict[Any, list[Frame]] = {}
    for frame in frames:
        parts.setdefault(_rounded(frame.values.get(keyword)), []).append(frame)
    return parts


def _rounded(value: Value | None) -> Any:
    if isinstance(value, tuple):
        return tuple(_rounded(part) for part in value)
    return round(value, 3) if isinstance(value, float) else value


def _named(keyword: str, parts: dict[Any, list[Frame]]) -> list[_Part]:
    """Parts with their names, in order; of a list such as ImageType, only what not all parts share."""
    lists = [set(value) for value in parts if isinstance(value, tuple)]
    words = keyword == "ImageType" and len(lists) == len(parts)
    common = set.intersection(*lists) if words else set()
    ordered = sorted(
        parts, key=lambda value: (value is None, str(type(value)), value if value is not None else 0)
    )
    named = []
    for value in ordered:
        shown = [part for part in value if part not in common] if isinstance(value, tuple) else [value]
        text = ",".join("none" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in shown)
        named.append(((keyword, text or "other"), parts[value]))
    return named


def _grid_labels(grids: Sequence[Sequence[Frame]]) -> list[tuple[tuple[str, str], ...]]:
    """Names of groups of images by the plane, the size or the spacing in which they differ."""
    frames = [group[0] for group in grids]
    planes = [_PLANES[int(np.argmax(np.abs(normal_of(frame.orientation or ()))))] for frame in frames]
    columns: list[tuple[str, list[str]]] = [
        ("Plane", planes),
        ("Rows", [str(frame.size[0]) for frame in frames]),
        ("Columns", [str(frame.size[1]) for frame in frames]),
        ("PixelSpacing", [",".join(f"{size:g}" for size in frame.spacing or ()) for frame in frames]),
    ]
    used = [(name, texts) for name, texts in columns if len(set(texts)) > 1]
    labels = [tuple((name, texts[index]) for name, texts in used) for index in range(len(grids))]
    if len(set(labels)) == len(labels):
        return labels
    return [(*label, ("Orientation", str(index + 1))) for index, label in enumerate(labels)]
