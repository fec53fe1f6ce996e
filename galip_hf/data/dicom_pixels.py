"""The images of one DICOM file: their values, and what is kept of their headers."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import require
from ..model.errors import GalipError
from .dicom_decoding import PixelDecoder
from .dicom_deflated import pixel_bytes, pixel_source
from .dicom_frames import frame_groups, quiet
from .dicom_geometry import SAME_DIRECTION, numbers
from .dicom_mosaic import read_mosaic, says_mosaic
from .file_checks import check_announced, check_file, corrupt_as_error
from .volumes import checked_float32

GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
PATIENT_TAGS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"),
    *("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "StudyDate", "StudyTime", "StudyID"),
    *("StudyDescription", "AccessionNumber", "ReferringPhysicianName"),
)
# Where the slice lies and how it was stored: says nothing of who was scanned.
PLAIN_TAGS = (
    *(
        "Modality",
        "SliceThickness",
        "SpacingBetweenSlices",
        "PatientPosition",
        "BodyPartExamined",
        "Laterality",
    ),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# What the standard has for coded texts among them; any other text may say something else, and is not kept.
_CODES = {
    "Laterality": "[LR]",
    "PatientPosition": "[HFLRAP]F(S|P|DR|DL)",
    "LossyImageCompression": "0[01]",
    "LossyImageCompressionMethod": "ISO_[0-9_]+",
    # Of PS3.16, annex L.
    "BodyPartExamined": "HEAD|BRAIN|SKULL|FACE|NECK|HEADNECK|[CTL]SPINE|SPINE|CHEST|BREAST|LUNG|HEART|"
    "ABDOMEN|LIVER|KIDNEY|PELVIS|PROSTATE|HIP|LEG|KNEE|ANKLE|FOOT|SHOULDER|ARM|ELBOW|WRIST|HAND|EXTREMITY|WHOLEBODY",
}
# In Enhanced multi-frame images these lie in sequences, one for all frames or one for each.
_FUNCTIONAL_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
}
# No coder makes a slice smaller than this share of its voxels; blank JPEG 2000 slices come closest.
_COMPRESSION_RATIO, _SMALL_IMAGE = 4096, 1 << 24


@dataclass(eq=False)
class Slice:
    """One image.

    Attributes:
        file: where it comes from.
        header: a pydicom dataset of what a derived series and the affine need.
        image: (rows, columns) float32, the stored values after rescaling.
        padding: (rows, columns) where the stored value is PixelPaddingValue or in its range; None: nowhere.
        is_rescaled: whether the file says how stored values become units (rescale tags or a Modality LUT).
        rescale_type: RescaleType, "" where it is missing.
        is_inverted: whether PhotometricInterpretation is MONOCHROME1: the lowest value is shown white.
        from_mosaic: whether it is a tile of a Siemens mosaic; None: ImageType says so and nothing proves it.
        guessed_direction: whether the order of a mosaic's tiles in space was assumed.
    """

    file: Path
    header: Any
    image: np.ndarray
    padding: np.ndarray | None
    is_rescaled: bool
    rescale_type: str
    is_inverted: bool
    from_mosaic: bool | None = False
    guessed_direction: bool = False


def read_slices(path: Path, decoder: PixelDecoder, wanted: frozenset[int] | None) -> list[Slice]:
    """The images of a file.

    Args:
        path: the file.
        decoder: for compressed pixels.
        wanted: numbers of the frames to read, from 0; None for all.

    Raises:
        GalipError: a corrupt file, no grey image, no geometry, or data compressed in a way nothing decodes.
    """
    pydicom = require("pydicom", "dicom")
    from pydicom.pixels import apply_modality_lut

    check_file(path)
    with corrupt_as_error(path), quiet():
        dataset = pydicom.dcmread(pixel_source(path), force=True)
        _check_image(dataset, path)
        compressed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
        stored = decoder.decode(path) if compressed else dataset.pixel_array
        count = int(dataset.get("NumberOfFrames") or 1)
        stored = stored.reshape(count, *stored.shape[-2:])
        padding = _padding(dataset, stored)
        slices = []
        for number, image in enumerate(stored):
            if wanted is not None and number not in wanted:
                continue
            groups = frame_groups(dataset, number)
            rescale = groups.get("PixelValueTransformationSequence", dataset)
            values = checked_float32(
                np.asarray(apply_modality_lut(image, rescale)), f"{path}, frame {number + 1}"
            )
            one = Slice(
                path,
                _kept(dataset, groups, path, number),
                values,
                None if padding is None or not padding[number].any() else padding[number],
                any(rescale.get(tag) is not None for tag in ("RescaleSlope", "ModalityLUTSequence")),
                str(rescale.get("RescaleType") or ""),
                dataset.PhotometricInterpretation == "MONOCHROME1",
                None if says_mosaic(dataset) and "XA" not in str(dataset.get("SoftwareVersions")) else False,
            )
            slices += _untiled(one, dataset)
    return slices


def _untiled(one: Slice, dataset: Any) -> list[Slice]:
    """The slices of a mosaic; any other image as it is."""
    from pydicom import Dataset
    from pydicom.valuerep import format_number_as_ds

    mosaic = read_mosaic(dataset, one.file)
    if mosaic is None:
        return [one]
    images = mosaic.slices(one.image)
    paddings = [None] * mosaic.count if one.padding is None else list(mosaic.slices(one.padding))
    slices = []
    for image, padding, position in zip(images, paddings, mosaic.positions, strict=True):
        header = Dataset()
        header.update(one.header)
        place = [format_number_as_ds(float(value)) for value in position]
        header.add_new("ImagePositionPatient", "DS", place)  # assignment would change that of all tiles
        slices.append(
            Slice(
                *(one.file, header, np.ascontiguousarray(image), padding, one.is_rescaled),
                *(one.rescale_type, one.is_inverted, True, mosaic.guessed),
            )
        )
    return slices


def _padding(dataset: Any, stored: np.ndarray) -> np.ndarray | None:
    """Where stored values are padding (PS3.3, C.7.5.1.1.2), as `stored` is shaped; None: no padding is named.

    PixelPaddingValue is compared with the stored values, before any rescaling; with PixelPaddingRangeLimit it
    is one end of a range, both ends included.
    """
    value = dataset.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [value] if limit is None or limit == "" else [value, limit]
    signed, bits = int(dataset.PixelRepresentation) == 1, int(dataset.BitsAllocated)
    # Some writers store a negative padding value as an unsigned number or the other way round.
    numbers_ = [
        int(end) - (1 << bits) if signed and int(end) >= 1 << (bits - 1)
        else int(end) + (1 << bits) if not signed and int(end) < 0
        else int(end)
        for end in ends
    ]  # fmt: skip
    low, high = min(numbers_), max(numbers_)
    native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    used = int(dataset.get("BitsStored") or bits)
    largest = (1 << (used - 1)) - 1 if signed else (1 << used) - 1
    if native and used < bits and (high > largest or low < -largest - 1):
        # The padding value needs bits that pixels do not use and that decoding clears: look before that.
        from pydicom.pixels import get_decoder

        decode = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array
        options: dict[str, Any] = {"correct_unused_bits": False, "raw": True}
        raw, _ = decode(dataset, **options)
        stored = raw.reshape(stored.shape)
    return (stored >= low) & (stored <= high)


def _check_image(dataset: Any, path: Path) -> None:
    """Refuse what is no grey image, or cannot be decoded, before anything is decoded."""
    from pydicom.pixels import get_decoder

    kind = getattr(dataset.get("SOPClassUID"), "name", None) or "no SOP class"
    if "PixelData" not in dataset:
        raise GalipError(f"{path}: DICOM without an image ({kind}); expected CT, MR or other grey slices")
    if dataset.get("SamplesPerPixel", 1) != 1 or not str(dataset.PhotometricInterpretation).startswith(
        "MONO"
    ):
        raise GalipError(
            f"{path}: is a colour image ({dataset.PhotometricInterpretation}); expected one grey value each"
        )
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is None:  # no file meta information: pydicom has guessed the encoding from the bytes
        implicit, little = dataset.original_encoding
        syntax = _native_syntax(bool(implicit), bool(little))
        if not hasattr(dataset, "file_meta"):
            dataset.file_meta = require("pydicom", "dicom").dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise GalipError(
            f"{path}: compressed as {syntax.name}, which cannot be read; decompress it"
        ) from None
    if not decoder.is_available:
        raise GalipError(
            f"{path}: compressed as {syntax.name}, and nothing installed decodes it; "
            "pip install 'galip-hf[dicom]', or decompress it"
        )
    count = int(dataset.get("NumberOfFrames") or 1)
    if count > 1 and "PerFrameFunctionalGroupsSequence" not in dataset:
        raise GalipError(
            f"{path}: {count} frames without positions ({kind}); expected single slices or Enhanced"
        )
    announced = pixel_bytes(dataset)
    if announced < 1:
        raise GalipError(f"{path}: {count} frames of {dataset.Rows} x {dataset.Columns} pixels hold no image")
    available = len(dataset.PixelData)
    if syntax.is_encapsulated:
        available = max(available * _COMPRESSION_RATIO, _SMALL_IMAGE)
    else:
        _check_surplus(dataset, announced, path)
    check_announced(announced, available, path)


def _check_surplus(dataset: Any, announced: int, path: Path) -> None:
    """Refuse pixels that are longer than Rows and Columns say by more than padding: one of both is wrong.

    Read by wrong Columns, each row begins elsewhere, and the picture is sheared.
    """
    found, shorter = len(dataset.PixelData), min(int(dataset.Rows), int(dataset.Columns))
    if found - announced >= max(shorter * dataset.BitsAllocated // 8, 2):
        raise GalipError(
            f"{path}: the pixels take {found} bytes, and {dataset.Rows} rows of {dataset.Columns} columns of "
            f"{dataset.BitsAllocated} bits {announced}; correct the header, or copy the file again"
        )


def _native_syntax(implicit: bool, little: bool) -> Any:
    from pydicom import uid

    if not little:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian


def _kept(dataset: Any, groups: dict[str, Any], path: Path, number: int) -> Any:
    """A dataset of the tags that a derived series or the affine needs."""
    from pydicom import Dataset

    kept = Dataset()
    for tag in (*_UIDS, *GEOMETRY, *PLAIN_TAGS, *PATIENT_TAGS):
        if tag in dataset:
            kept[tag] = dataset[tag]
    for group, tags in _FUNCTIONAL_GROUPS.items():
        for tag in tags:
            if group in groups and tag in groups[group]:
                kept[tag] = groups[group][tag]
    for tag in ("SliceThickness", "SpacingBetweenSlices"):  # of use, but not needed
        with suppress(ValueError, TypeError):
            if np.isfinite(numbers(kept, tag)).all():
                continue
        del kept[tag]
    for tag, pattern in _CODES.items():
        found = kept.get(tag)
        codes = [found] if isinstance(found, str) else list(found or [])
        if tag in kept and not all(re.fullmatch(pattern, str(code)) for code in codes):
            del kept[tag]
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        kept.ReferencedFrameNumber = number + 1
    for tag, length in zip(GEOMETRY, (3, 6, 2), strict=True):
        values = numbers(kept, tag)
        if len(values) != length or not np.isfinite(values).all():
            raise GalipError(
                f"{path}: has no {tag} of {length} numbers, found {kept.get(tag, 'none')}; "
                "its place in the patient is unknown"
            )
    if not (numbers(kept, "PixelSpacing") > 0).all():
        raise GalipError(f"{path}: PixelSpacing is {list(kept.PixelSpacing)}; expected sizes above 0 mm")
    rows, columns = numbers(kept, "ImageOrientationPatient").reshape(2, 3)
    if not np.allclose([rows @ rows, columns @ columns, rows @ columns], [1, 1, 0], atol=SAME_DIRECTION * 2):
        raise GalipError(
            f"{path}: ImageOrientationPatient {list(kept.ImageOrientationPatient)} is not two directions at "
            "right angles; correct it"
        )
    return kept
