"""What tells DICOM images apart: each image of a file by its place, its size and the header values it has.

A file holds one image, or (Enhanced multi-frame) many, each with values of its own in the functional groups
(PS3.3, C.7.6.16). Both become `Frame`s, from which `dicom_stacks` and `dicom_series` form scans. No pixels
are read here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..extras import require
from .dicom_deflated import header_source
from .dicom_mosaic import mosaic_count
from .file_checks import check_file, corrupt_as_error

Value = str | float | tuple[Any, ...]

IDENTITY = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")
DESCRIPTION = ("Modality", "SeriesNumber", "SeriesDescription", "ProtocolName")
# What may tell two images at the same place apart; of several that do, the earlier ones are used.
DISTINCTIONS = (
    *("EchoTime", "EchoNumbers", "ImageType", "ComplexImageComponent", "DiffusionBValue", "InversionTime"),
    *("TemporalPositionIdentifier", "TriggerTime", "NominalPercentageOfCardiacPhase", "FrameReferenceTime"),
    *("AcquisitionNumber", "ConvolutionKernel", "KVP", "FlipAngle", "RepetitionTime", "StackID"),
    *("DiffusionGradientOrientation", "AcquisitionTime", "AcquisitionDateTime", "SeriesTime"),
    *("ContrastBolusAgent", "SeriesNumber", "SeriesDescription", "ProtocolName"),
)
# Times that differ from slice to slice too: only their order at each place can tell time points apart.
TIMES = ("TriggerTime", "FrameReferenceTime", "AcquisitionTime", "AcquisitionDateTime", "ContentTime")
# Enhanced multi-frame images have other names for some values.
_ENHANCED_NAMES = {
    "EchoTime": ("EffectiveEchoTime",),
    "ImageType": ("FrameType",),
    "InversionTime": ("InversionTimes",),
    "TemporalPositionIdentifier": ("TemporalPositionIndex",),
    "TriggerTime": ("NominalCardiacTriggerDelayTime", "CardiacTriggerDelayTime"),
    "AcquisitionNumber": ("FrameAcquisitionNumber",),
    "AcquisitionDateTime": ("FrameAcquisitionDateTime",),
}
_KEPT = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", *IDENTITY, *DESCRIPTION),
    *("InstanceNumber", *DISTINCTIONS, *TIMES),
)
# Where vendors keep the b-value when the standard's element is missing: group, private creator, element.
_VENDOR_B_VALUES = (
    (0x0019, "SIEMENS MR HEADER", 0x0C),
    (0x0043, "GEMS_PARM_01", 0x39),
    (0x2001, "Philips Imaging DD 001", 0x03),
)
_GE_OFFSET = 10**9  # GE adds it to b-values of some sequences


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a file, without its pixels.

    Attributes:
        path: the file.
        number: which image of a multi-frame file, from 0; None for a file's only image.
        size: rows and columns.
        position: ImagePositionPatient, LPS+ mm; None where it is missing or no three finite numbers.
        orientation: ImageOrientationPatient, six numbers, or None.
        spacing: PixelSpacing, mm between rows and between columns, or None.
        values: other elements by keyword, without those that are missing or empty.
        dimensions: keys in `values` from DimensionIndexSequence, such as EffectiveEchoTimeIndex.
        is_mosaic: whether the image is a Siemens mosaic, the tiles of a whole volume.
    """

    path: Path
    number: int | None
    size: tuple[int, int]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    values: Mapping[str, Value]
    dimensions: tuple[str, ...] = ()
    is_mosaic: bool = False

    @property
    def has_geometry(self) -> bool:
        return None not in (self.position, self.orientation, self.spacing)

    def text(self, keyword: str) -> str:
        """A value as text; "" where there is none."""
        value = self.values.get(keyword, "")
        return f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns of each value that bends the standard, which many scanners' files do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_frames(path: Path, keywords: Sequence[str] = ()) -> list[Frame]:
    """The images of a file: one, or those of a multi-frame file whose frames have places of their own.

    Args:
        path: a file taken for DICOM.
        keywords: elements to keep in `Frame.values` beside the usual ones.

    Raises:
        GalipError: the file is missing, empty or corrupt, or pydicom is not installed.
    """
    pydicom = require("pydicom", "dicom")
    check_file(path)
    with corrupt_as_error(path), quiet():
        dataset = pydicom.dcmread(header_source(path), stop_before_pixels=True, force=True)
        wanted = (*_KEPT, *keywords)
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
        count = int(dataset.get("NumberOfFrames") or 1)
        if not per_frame or count != len(per_frame):
            return [_frame(dataset, {}, path, None, wanted)]
        shared = _flat(dataset.get("SharedFunctionalGroupsSequence") or ())
        pointers = _dimension_keywords(dataset)
        return [
            _frame(dataset, shared | _flat([groups]), path, number, wanted, pointers)
            for number, groups in enumerate(per_frame)
        ]


def frame_groups(dataset: Any, number: int) -> dict[str, Any]:
    """The functional groups (PS3.3, C.7.6.16) of a frame by name; none for a single-frame image."""
    groups: dict[str, Any] = {}
    for name, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", number)):
        sequence = dataset.get(name)
        if sequence:
            groups |= {
                element.keyword: element.value[0]
                for element in sequence[index]
                if element.VR == "SQ" and element.value
            }
    return groups


def _frame(
    dataset: Any,
    groups: dict[str, Any],
    path: Path,
    number: int | None,
    wanted: Sequence[str],
    dimensions: Sequence[str] = (),
) -> Frame:
    values: dict[str, Value] = {}
    for keyword in wanted:
        for name in (keyword, *_ENHANCED_NAMES.get(keyword, ())):
            value = groups[name] if name in groups else _plain(_value(dataset, name))
            if value is not None:
                values[keyword] = value
                break
    if "DiffusionBValue" not in values:
        b_value = _vendor_b_value(dataset)
        if b_value is not None:
            values["DiffusionBValue"] = b_value
    indices = groups.get("DimensionIndexValues", ())
    indices = indices if isinstance(indices, tuple) else (indices,)
    added = {name: index for name, index in zip(dimensions, indices, strict=False) if name not in values}
    place = {
        tag: groups[tag] if tag in groups else _plain(_value(dataset, tag))
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    }
    return Frame(
        path,
        number,
        (int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)),
        _numbers(place["ImagePositionPatient"], 3),
        _numbers(place["ImageOrientationPatient"], 6),
        _numbers(place["PixelSpacing"], 2),
        values | added,
        tuple(added),
        number is None and mosaic_count(dataset) is not None,
    )


@cache
def _tag(keyword: str) -> int | None:
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(keyword)


def _value(dataset: Any, keyword: str) -> Any:
    """`dataset.get(keyword)`, but quick for the many elements that most files do not have."""
    tag = _tag(keyword)
    return dataset[tag].value if tag is not None and tag in dataset else None


def _flat(items: Sequence[Any]) -> dict[str, Any]:
    """The values in the items of a sequence and in the sequences within them, by keyword."""
    found: dict[str, Any] = {}
    for item in items:
        for element in item:
            if element.VR == "SQ":
                found = _flat(element.value[:1]) | found
            elif element.keyword:
                value = _plain(element.value)
                if value is not None:
                    found[element.keyword] = value
    return found


def _plain(value: Any) -> Value | None:
    """An element's value as a number, text or a tuple of them; None for an empty one."""
    if value is None or isinstance(value, (bytes, bytearray)):
        return None
    if isinstance(value, (int, float)) or type(value).__name__ == "DSdecimal":
        return float(value)
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        parts = tuple(_plain(part) for part in value)
        return parts if parts and None not in parts else None
    text = str(value).strip()
    return text or None


def _numbers(value: Any, length: int) -> tuple[float, ...] | None:
    if not isinstance(value, tuple) or len(value) != length:
        return None
    finite = all(isinstance(part, float) and math.isfinite(part) for part in value)
    return value if finite else None


def _dimension_keywords(dataset: Any) -> tuple[str, ...]:
    """What each of DimensionIndexValues counts (PS3.3, C.7.6.17): a keyword, ending in Index."""
    from pydicom.datadict import keyword_for_tag

    names = []
    for position, item in enumerate(dataset.get("DimensionIndexSequence") or (), start=1):
        pointer = item.get("DimensionIndexPointer")
        name = (keyword_for_tag(pointer) if pointer is not None else "") or f"Dimension{position}"
        names.append(name if name.endswith("Index") else f"{name}Index")
    return tuple(names)


def _vendor_b_value(dataset: Any) -> float | None:
    groups = {int(tag) >> 16 for tag in dataset.keys()}  # noqa: SIM118 (iterating decodes every element)
    for group, creator, element in _VENDOR_B_VALUES:
        if group not in groups:
            continue
        try:
            value = dataset.private_block(group, creator)[element].value
        except KeyError:
            continue
        if isinstance(value, bytes):  # a private element whose type pydicom does not know
            value = value.decode("ascii", "ignore").strip("\0 ").split("\\")
        first = (
            value[0] if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else value
        )
        try:
            return float(first) % _GE_OFFSET
        except (TypeError, ValueError):
            continue
    return None
