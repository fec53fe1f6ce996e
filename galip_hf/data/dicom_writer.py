"""A translation as a DICOM series of derived images, on the grid of the series it was made from.

CT and MR become CT and MR Image Storage (PS3.3, A.3 and A.4), so that viewers stack and reformat them,
anything else Secondary Capture. ImageType starts with DERIVED\\SECONDARY and SeriesDescription says that the
images are synthetic. Rescale slope and intercept in MR images are an extension that readers follow.

All UIDs are new. Study and frame of reference get one new UID for each of the source's within a run, so that
translations of one scan stay together and nothing leads back to the patient; with `keep_patient_tags` the
images join the source's study and frame of reference and name the images they were derived from.
"""

from __future__ import annotations

import datetime
import os
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import require
from ..files import atomic_write
from ..model.errors import GalipError
from ..version import DISCLAIMER, __version__
from .dicom_geometry import interpolate_slices
from .dicom_pixels import GEOMETRY, PATIENT_TAGS, PLAIN_TAGS
from .volumes import Volume, checked_float32

_LONGEST_DESCRIPTION = 64  # of a DICOM LO: characters, which some count as bytes
_LARGEST_STORED = 65535  # 16 bits, unsigned
_FILE_NAME = "IM{:05d}.dcm"
_RUN = secrets.token_hex(16)  # known to this process only: nobody can find the source's UID from ours

# DICOM's own words for modalities that users call by other names.
_MODALITY_WORDS = {"CBCT": "CT", "PET": "PT"}
_STORAGE = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# What the standard demands beside the pixels: empty where it may be, as a synthetic image has none of it.
_DEMANDED: dict[str, dict[str, Any]] = {
    "CT": {"KVP": None, "AcquisitionNumber": None, "PatientPosition": None},
    "MR": {
        **{"ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": None},
        **{"MRAcquisitionType": None, "RepetitionTime": None, "EchoTime": None, "EchoTrainLength": None},
        "PatientPosition": None,
    },
    "OT": {"ConversionType": "WSD", "PatientOrientation": None},
}
_IMAGE_TYPE = {"CT": ["AXIAL"], "MR": ["OTHER"], "OT": []}


def write_dicom_series(
    volume: Volume,
    folder: str | Path,
    *,
    description: str,
    modality: str | None = None,
    keep_patient_tags: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a volume read from DICOM as a folder of derived single-frame images, whole or not at all.

    Values are stored in 16 bits: exactly where all are whole numbers less than 65536 apart, otherwise to
    within (largest - smallest) / 131070 of them; rescale slope and intercept, one for the series, lead back.

    Args:
        volume: finite values; those of CT in HU.
        folder: the folder to make, in an existing directory; one file a slice.
        description: what made the images, such as the model and the direction; cut to fit SeriesDescription
            beside the notice that they are synthetic, and given whole in DerivationDescription.
        modality: that of the new images, as in a domain (`MR`, `CT`, `CBCT`, `PET`, …); None: the source's.
        keep_patient_tags: whether patient and study (`PATIENT_TAGS`, StudyInstanceUID, FrameOfReferenceUID,
            and references to the source's images) are copied.
        overwrite: whether a folder that holds nothing but such images may be replaced.

    Returns:
        The folder.

    Raises:
        GalipError: a volume not read from DICOM, values not finite, an existing folder, a directory that is
            missing or cannot be written, or pydicom is not installed.
    """
    require("pydicom", "dicom")
    folder = check_output_folder(Path(folder), overwrite)
    sources = volume.source.instances
    if not sources:
        raise GalipError(
            f"{folder}: the scan was not read from DICOM, whose headers a derived series needs; "
            "write NIfTI instead"
        )
    array = checked_float32(volume.array, f"volume for {folder}")
    voxels = volume.with_array(array).to_source_array().reshape(volume.source.grid)
    places = volume.source.instance_places
    if places is not None:  # back to where the source's slices lie
        grid = np.arange(voxels.shape[2], dtype=np.float64)
        voxels = interpolate_slices(voxels, grid, np.array(places))
    stored, slope, intercept = _quantised(voxels)
    common = _common(sources[0], description, modality, keep_patient_tags)
    common.RescaleSlope, common.RescaleIntercept = slope, intercept
    inverted = volume.source.inverted_at is not None
    common.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    _set_window(common, voxels)
    try:
        with atomic_write(folder) as temporary:
            temporary.mkdir()
            for index, source in enumerate(sources):
                image = _image(common, source, stored[:, :, index].T, index, keep_patient_tags)
                image.save_as(temporary / _FILE_NAME.format(index + 1), enforce_file_format=True)
    except OSError as error:
        raise GalipError(
            f"{folder}: cannot be written ({error.strerror or error}); check permissions and free space"
        ) from error
    return folder


def check_output_folder(folder: Path, overwrite: bool) -> Path:
    """Whether a derived series may be written to `folder`, before anything is computed for it; returns it.

    Raises:
        GalipError: it exists and may not be replaced, or the directory for it is missing or not writable.
    """
    if folder.exists() and not overwrite:
        raise GalipError(
            f"{folder}: already exists; choose another name or allow overwriting "
            "(--overwrite, overwrite=True)"
        )
    if folder.exists():
        ours = re.compile(r"IM\d{5,}\.dcm")
        foreign = [] if not folder.is_dir() else [n for n in os.listdir(folder) if not ours.fullmatch(n)]
        if not folder.is_dir() or foreign:
            raise GalipError(
                f"{folder}: is a file, or holds other files than a series of ours"
                f"{f' ({sorted(foreign)[0]})' if foreign else ''}; choose another folder"
            )
    if not folder.parent.is_dir() or not os.access(folder.parent, os.W_OK):
        raise GalipError(f"{folder}: the directory {folder.parent} does not exist or is not writable")
    return folder


def _quantised(voxels: np.ndarray) -> tuple[np.ndarray, Any, Any]:
    """uint16 values, slope and intercept (decimal strings): voxels are stored * slope + intercept."""
    low, high = float(voxels.min()), float(voxels.max())
    whole = high - low <= _LARGEST_STORED and bool((voxels == np.rint(voxels)).all())
    slope = 1.0 if whole or low == high else (high - low) / _LARGEST_STORED
    slope_text, intercept_text = _decimal(slope), _decimal(low)
    stored = np.rint((voxels.astype(np.float64) - float(intercept_text)) / float(slope_text))
    return np.clip(stored, 0, _LARGEST_STORED).astype(np.uint16), slope_text, intercept_text


def _decimal(value: float) -> Any:
    """A decimal string (DS): at most 16 characters."""
    from pydicom.valuerep import DS, format_number_as_ds

    return DS(format_number_as_ds(value))


def _common(source: Any, description: str, modality: str | None, keep_patient_tags: bool) -> Any:
    """What all images of the series share."""
    from pydicom import Dataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    modality = modality or str(source.get("Modality") or "OT")
    modality = _MODALITY_WORDS.get(modality, modality)
    kind = modality if modality in _STORAGE else "OT"
    now = datetime.datetime.now()
    new = Dataset()
    new.file_meta = _file_meta(ExplicitVRLittleEndian)
    new.SpecificCharacterSet = "ISO_IR 192"
    new.ImageType = ["DERIVED", "SECONDARY", *_IMAGE_TYPE[kind]]
    new.SOPClassUID = _STORAGE.get(kind, _SECONDARY_CAPTURE)
    for tag in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        setattr(new, tag, None)  # these and the next must be there, but may be empty
    for tag in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PositionReferenceIndicator"):
        setattr(new, tag, None)
    for tag in PLAIN_TAGS + (PATIENT_TAGS if keep_patient_tags else ()):
        if tag in source:
            new[tag] = source[tag]
    for tag in ("StudyInstanceUID", "FrameOfReferenceUID"):
        old = source.get(tag)
        # With the patient in it: archives exist in which two patients have one StudyInstanceUID.
        entropy = [_RUN, str(old), str(source.get("PatientID"))]
        setattr(new, tag, old if keep_patient_tags and old else generate_uid(entropy_srcs=entropy))
    if not keep_patient_tags:
        new.PatientIdentityRemoved = "YES"
        new.DeidentificationMethod = "galip_hf: new UIDs, only geometry of the source kept"
    new.SeriesInstanceUID = generate_uid()
    new.SeriesNumber = None
    new.Modality = modality
    new.InstanceCreationDate = new.ContentDate = now.strftime("%Y%m%d")
    new.InstanceCreationTime = new.ContentTime = now.strftime("%H%M%S")
    new.Manufacturer, new.SoftwareVersions = "galip_hf", __version__
    room = _LONGEST_DESCRIPTION - len(DISCLAIMER) - 2
    text = " ".join(description.replace("\\", "/").split())
    short = text.encode()[:room].decode(errors="ignore")
    new.SeriesDescription = f"{short}: {DISCLAIMER}"
    new.DerivationDescription = f"{text[:900]}: {DISCLAIMER} (galip_hf {__version__})"
    new.RescaleType = "HU" if kind == "CT" else "US"
    for tag, value in {"Laterality": None, **_DEMANDED[kind]}.items():
        if tag not in new:
            setattr(new, tag, value)
    return new


def _file_meta(syntax: Any) -> Any:
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    return meta


def _set_window(common: Any, voxels: np.ndarray) -> None:
    """A display window, without which viewers show what they like: DICOM allows widths from 1."""
    low, high = np.percentile(voxels, (0.5, 99.5))
    if high - low >= 1:
        common.WindowCenter, common.WindowWidth = _decimal(float(low + high) / 2), _decimal(float(high - low))


def _image(common: Any, source: Any, stored: np.ndarray, index: int, keep_patient_tags: bool) -> Any:
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    image = Dataset()
    image.update(common)
    image.file_meta = _file_meta(common.file_meta.TransferSyntaxUID)
    image.SOPInstanceUID = generate_uid()
    image.InstanceNumber = index + 1
    for tag in GEOMETRY:
        image[tag] = source[tag]
    if keep_patient_tags and "SOPInstanceUID" in source and "SOPClassUID" in source:
        reference = Dataset()
        reference.ReferencedSOPClassUID = source.SOPClassUID
        reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
        if "ReferencedFrameNumber" in source:
            reference.ReferencedFrameNumber = source.ReferencedFrameNumber
        image.SourceImageSequence = [reference]
    image.SamplesPerPixel = 1
    image.Rows, image.Columns = stored.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.PixelData = np.ascontiguousarray(stored, dtype="<u2").tobytes()
    image["PixelData"].VR = "OW"
    return image


__all__ = ["check_output_folder", "write_dicom_series"]
