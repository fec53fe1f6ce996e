"""DICOM files grouped into scans.

A scan is a stack of images with one patient, study, series and frame of reference. Archives break that rule
in both directions: one SeriesInstanceUID covers two patients or several echoes, or every slice of a stack has
a UID of its own, or none. What was assumed to put it right is in `Series.notes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..extras import require
from ..model.errors import GalipError
from .dicom_frames import DESCRIPTION, IDENTITY, Frame, Value, read_frames
from .dicom_stacks import Stack, form_stacks, grid_groups, is_even_stack

SUFFIXES = (".dcm", ".dicom", ".ima")
_SMALLEST_MERGED = 3  # slices: any two are "evenly spaced"
_SHORT_TYPES = {
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FL", "FD", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST"),
    *("TM", "UI", "UL", "US"),
}
# Value types with two reserved bytes and four of length.
_LONG_TYPES = {"OB", "OD", "OF", "OL", "OW", "SQ", "UC", "UN", "UR", "UT"}


@dataclass(frozen=True)
class Series:
    """The images of one scan.

    Attributes:
        path: the file, or the folder that holds them all.
        uid: SeriesInstanceUID; None where there is none, or several.
        label: tells apart series of one folder.
        files: the files, sorted by name.
        modality: CT, MR, …, as the first file says.
        description: SeriesDescription and ProtocolName.
        frames: the images; empty for a file whose header cannot be read.
        told_apart_by: keywords and values by which several stacks of one series differ.
        notes: what was assumed, a sentence each.
    """

    path: Path
    uid: str | None
    label: str
    files: tuple[Path, ...]
    modality: str = ""
    description: str = ""
    frames: tuple[Frame, ...] = field(default=(), compare=False, repr=False)
    told_apart_by: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """Which stack of its series this is, such as `EchoTime-80`; "" for the only one."""
        return "_".join(f"{keyword}-{value}" for keyword, value in self.told_apart_by)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its suffix or its first bytes. DICOM often has no suffix at all."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(512)
        return start[128:132] == b"DICM" or _starts_with_elements(start, path.stat().st_size)
    except OSError:
        return False


def _starts_with_elements(start: bytes, size: int) -> bool:
    """Whether bytes are DICOM elements without the preamble: three at least, of groups 2 or 8, ascending."""
    at, previous, found = 0, (0, 0), 0
    while at + 12 <= len(start):
        group, element = (int.from_bytes(start[at + k : at + k + 2], "little") for k in (0, 2))
        value_type = start[at + 4 : at + 6].decode("ascii", "replace")
        if value_type in _LONG_TYPES:
            head, length = 12, int.from_bytes(start[at + 8 : at + 12], "little")
        elif value_type in _SHORT_TYPES:
            head, length = 8, int.from_bytes(start[at + 6 : at + 8], "little")
        else:  # implicit value types
            head, length = 8, int.from_bytes(start[at + 4 : at + 8], "little")
        if (group, element) <= previous or (found < 3 and group not in (2, 8)):
            return False
        if length == 0xFFFFFFFF or found >= 3:  # a sequence of unknown length ends what can be checked
            return found >= 3
        if length % 2 or at + head + length > size:
            return False
        at, previous, found = at + head + length, (group, element), found + 1
    return found >= 3


def dicom_files(files: Iterable[Path]) -> list[Path]:
    """The DICOM files among some files; the index DICOMDIR is none of them."""
    return [file for file in files if file.stem.upper() != "DICOMDIR" and is_dicom(file)]


def find_series(files: Sequence[Path], select: Mapping[str, str] | None = None) -> list[Series]:
    """DICOM files grouped into scans; no pixels are read.

    Args:
        files: DICOM files.
        select: keep only images whose elements, by keyword, have these values (`{"EchoTime": "80"}`).

    Raises:
        GalipError: pydicom is not installed, an unknown keyword, or nothing that fits `select`.
    """
    if not files:
        return []
    _check_keywords(select or {})
    images: list[Frame] = []
    unreadable: list[Series] = []
    for file in files:
        try:
            frames = read_frames(file, tuple(select or ()))
        except GalipError:
            frames = []
        if not any(_is_known(frame) for frame in frames):
            unreadable.append(Series(file, None, file.name, (file,)))
        else:
            images += frames
    require("pydicom", "dicom")
    groups = _merged(_by_identity(images))
    folders = [_common_folder([frame.path for frame in group.frames]) for group in groups]
    found = []
    for group, folder in zip(groups, folders, strict=True):
        base = _series(group, folder, alone=folders.count(folder) == 1)
        found += [_with_stack(base, stack) for stack in form_stacks(group.frames)]
    return _selected(found, select) if select else found + unreadable


def _is_known(frame: Frame) -> bool:
    """Whether the header is that of DICOM at all: pydicom reads something from nearly any bytes."""
    return bool({"SeriesInstanceUID", "SOPClassUID", "Modality"} & set(frame.values))


@dataclass(frozen=True)
class _Group:
    """Images that belong together by their identity, before stacks are formed."""

    frames: tuple[Frame, ...]
    uid: str | None
    notes: tuple[str, ...] = ()


def _by_identity(images: Sequence[Frame]) -> list[_Group]:
    """By SeriesInstanceUID (without one by folder, description and grid), then patient, study and frame of
    reference. An image that lacks one of these three belongs with the others if they agree in it."""
    groups: dict[tuple[Any, ...], list[Frame]] = {}
    for frame in images:
        uid = frame.values.get("SeriesInstanceUID")
        described = () if uid else (frame.path.parent, *(frame.values.get(tag) for tag in DESCRIPTION))
        groups.setdefault((uid, *described), []).append(frame)
    found = []
    for (uid, *_), frames in groups.items():
        tags = [tag for tag in IDENTITY if len({frame.values.get(tag) for frame in frames} - {None}) > 1]
        parts: dict[tuple[Any, ...], list[Frame]] = {}
        for frame in frames:
            parts.setdefault(tuple(frame.values.get(tag) for tag in tags), []).append(frame)
        for part in parts.values():
            if uid is None:
                found += _without_uid(part)
            else:
                found.append(_Group(tuple(part), str(uid)))
    return found


def _without_uid(frames: list[Frame]) -> list[_Group]:
    if not all(frame.has_geometry for frame in frames):
        return [_Group((frame,), None) for frame in frames if not frame.number]
    groups = []
    for group in grid_groups(frames):
        note = (
            f"{len(group)} images have no SeriesInstanceUID; they are taken for one scan because folder, "
            "description, size, orientation and pixel spacing agree"
        )
        groups.append(_Group(tuple(group), None, (note,) if len({f.path for f in group}) > 1 else ()))
    return groups


def _merged(groups: Sequence[_Group]) -> list[_Group]:
    """Groups of one image each that fit one stack, joined: first within a folder, then within a study."""
    for scope in (
        lambda frame: ("folder", frame.path.parent),
        lambda frame: ("study", frame.values.get("StudyInstanceUID")),
    ):
        buckets: dict[tuple[Any, ...], list[_Group]] = {}
        rest = []
        for group in groups:
            frame = group.frames[0]
            where = scope(frame)
            single = len(group.frames) == 1 and frame.has_geometry and not frame.is_mosaic
            if single and frame.number is None and where[1]:
                words = [
                    frame.values.get(tag) for tag in ("PatientID", *DESCRIPTION) if tag != "SeriesNumber"
                ]
                buckets.setdefault((where, *words), []).append(group)
            else:
                rest.append(group)
        for bucket in buckets.values():
            rest += _joined(bucket, "folder" if scope(bucket[0].frames[0])[0] == "folder" else "study")
        groups = rest
    return list(groups)


def _joined(groups: Sequence[_Group], scope: str) -> list[_Group]:
    of_frame = {group.frames[0]: group for group in groups} if len(groups) >= _SMALLEST_MERGED else {}
    if not of_frame:
        return list(groups)
    joined: list[_Group] = []
    for frames in grid_groups(list(of_frame)):
        stacks = form_stacks(frames)
        if all(len(s.frames) >= _SMALLEST_MERGED and is_even_stack(s.frames, gaps=True) for s in stacks):
            note = (
                f"{len(frames)} series of one image each (every image has a SeriesInstanceUID of its own, or "
                f"none) are taken for one scan because {scope}, description, size, orientation, pixel "
                "spacing and positions fit one stack"
            )
            joined.append(_Group(tuple(frames), None, (note,)))
        else:
            joined += [of_frame[frame] for frame in frames]
    return joined


def _series(group: _Group, folder: Path, *, alone: bool) -> Series:
    first = group.frames[0]
    files = tuple(sorted({frame.path for frame in group.frames}))
    description, protocol = first.text("SeriesDescription"), first.text("ProtocolName")
    label = f"{first.text('SeriesNumber')}_{description}".strip("_") or "series"
    return Series(
        files[0] if len(files) == 1 else folder,
        group.uid,
        "" if alone else label,
        files,
        first.text("Modality"),
        f"{description} {protocol}".strip(),
        notes=group.notes,
    )


def _with_stack(series: Series, stack: Stack) -> Series:
    files = tuple(sorted({frame.path for frame in stack.frames}))
    return replace(series, files=files, frames=stack.frames, told_apart_by=stack.told_apart_by)


def _common_folder(files: Sequence[Path]) -> Path:
    folder = files[0].parent
    while not all(folder in file.parents for file in files):
        folder = folder.parent
    return folder


# What the user selects


def _check_keywords(select: Mapping[str, str]) -> None:
    if not select:
        return
    require("pydicom", "dicom")
    from pydicom.datadict import tag_for_keyword

    for keyword in select:
        ours = keyword in ("TimePoint", "Plane", "Orientation") or keyword.endswith("Index")
        if not ours and tag_for_keyword(keyword) is None:
            raise GalipError(
                f"--select {keyword}={select[keyword]}: DICOM has no element {keyword}; expected a keyword "
                "such as EchoTime, DiffusionBValue or SeriesNumber"
            )


def _selected(series: Sequence[Series], select: Mapping[str, str]) -> list[Series]:
    """The series cut down to the images that fit. What is left of a series that was no stack may be one."""
    found = []
    for one in series:
        labels = dict(one.told_apart_by)
        open_ = {word: text for word, text in select.items() if not _fits(labels.get(word), text)}
        kept = tuple(
            frame for frame in one.frames if all(_fits(frame.values.get(w), t) for w, t in open_.items())
        )
        if len(kept) == len(one.frames):
            found.append(one)
        elif kept:
            chosen = (*one.told_apart_by, *open_.items())
            found += [
                _with_stack(one, Stack(stack.frames, (*chosen, *stack.told_apart_by)))
                for stack in form_stacks(kept)
            ]
    if not found:
        wanted = " ".join(f"{word}={text}" for word, text in select.items())
        there = {
            word: sorted({_shown(f.values[word]) for s in series for f in s.frames if word in f.values})[:8]
            for word in select
        }
        listing = "; ".join(f"{word}: {', '.join(values) or 'none'}" for word, values in there.items())
        raise GalipError(f"--select {wanted}: no DICOM image fits; the images have {listing}")
    return found


def _fits(value: Value | None, text: str) -> bool:
    """Whether an element has a value, or has it among several; numbers are compared as numbers."""
    if value is None:
        return False
    if isinstance(value, tuple):
        parts = text.replace("\\", ",").split(",")
        if len(parts) == len(value) and len(parts) > 1:
            return all(_fits(one, part.strip()) for one, part in zip(value, parts, strict=True))
        return any(_fits(part, text) for part in value)
    try:
        return abs(float(value) - float(text)) <= 1e-3
    except ValueError:
        return str(value).casefold() == text.strip().casefold()


def _shown(value: Value) -> str:
    if isinstance(value, tuple):
        return "\\".join(_shown(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else value
