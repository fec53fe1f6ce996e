"""DICOM series: files in, `Volume` out, and back as a series of derived images.

DICOM's world axes are LPS+ (PS3.3, C.7.6.2.1): x towards the patient's left, y posterior. A series becomes
a `Volume` whose file axes are (columns, rows, slices), the slices sorted along their normal, under the RAS+
affine that NIfTI has for the same scan; what is kept of each slice's header is `FileLayout.instances`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..extras import require
from ..model.errors import GalipError
from .dicom_decoding import PixelDecoder
from .file_checks import check_announced, check_file, corrupt_as_error
from .volumes import Volume, checked_float32, nifti_layout, nifti_spacing

SUFFIXES = (".dcm", ".dicom", ".ima")
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
PATIENT_TAGS = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"),
    *("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "StudyDate", "StudyTime", "StudyID"),
    *("StudyDescription", "AccessionNumber", "ReferringPhysicianName"),
)
# Where the slice lies and how it was stored: says nothing of who was scanned.
PLAIN_TAGS = (
    *("Modality", "SliceThickness", "SpacingBetweenSlices", "PatientPosition", "BodyPartExamined"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# In Enhanced multi-frame images these lie in sequences, one for all frames or one for each.
_FUNCTIONAL_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
}
# No coder makes a slice smaller than this share of its voxels; blank JPEG 2000 slices come closest.
_COMPRESSION_RATIO, _SMALL_IMAGE = 4096, 1 << 24
_SAME_DIRECTION, _SAME_POSITION, _UNEVEN = 1e-3, 1e-3, 0.1  # of unit vectors, in mm, of the slices' distance


@dataclass(frozen=True)
class Series:
    """Files of one SeriesInstanceUID; `uid` is None for a file whose header cannot be read.

    `path` is the file, or the folder that holds them all; `label` tells apart series of one folder.
    `modality` (CT, MR, …) and `description` (SeriesDescription, ProtocolName) are as the first file says.
    """

    path: Path
    uid: str | None
    label: str
    files: tuple[Path, ...]
    modality: str = ""
    description: str = ""


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its suffix or its first bytes. DICOM often has no suffix at all."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(files: Iterable[Path]) -> list[Path]:
    """The DICOM files among some files; the index DICOMDIR is none of them."""
    return [file for file in files if file.stem.upper() != "DICOMDIR" and is_dicom(file)]


def find_series(files: Sequence[Path]) -> list[Series]:
    """DICOM files grouped by SeriesInstanceUID, sorted by name; no pixels are read.

    Raises:
        GalipError: pydicom is not installed.
    """
    if not files:
        return []
    groups: dict[str, list[Path]] = {}
    words: dict[str, tuple[str, str, str]] = {}
    unreadable = []
    for file in files:
        try:
            header = _read_header(file)
            uid = str(header.SeriesInstanceUID)
            description, protocol = (
                str(header.get(tag, "")) for tag in ("SeriesDescription", "ProtocolName")
            )
            label = f"{header.get('SeriesNumber', '')}_{description}".strip("_") or "series"
            said = label, str(header.get("Modality", "")), f"{description} {protocol}".strip()
        except (GalipError, AttributeError):
            unreadable.append(Series(file, None, file.name, (file,)))
            continue
        groups.setdefault(uid, []).append(file)
        words.setdefault(uid, said)
    folders = {uid: _common_folder(members) for uid, members in groups.items()}
    series = []
    for uid, members in groups.items():
        alone = list(folders.values()).count(folders[uid]) == 1
        path = members[0] if len(members) == 1 else folders[uid]
        label, modality, description = words[uid]
        series.append(
            Series(path, uid, "" if alone else label, tuple(sorted(members)), modality, description)
        )
    return series + unreadable


def _common_folder(files: Sequence[Path]) -> Path:
    folder = files[0].parent
    while not all(folder in file.parents for file in files):
        folder = folder.parent
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom warns of each value that bends the standard, which many scanners' files do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read_header(path: Path) -> Any:
    pydicom = require("pydicom", "dicom")
    check_file(path)
    tags = [
        *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "Modality"),
        "SpecificCharacterSet",
    ]
    with corrupt_as_error(path), _quiet():
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
        for tag in tags:
            header.get(tag)  # decodes the value, which may fail
        return header


def read_series(files: Sequence[Path], *, axis: str | None = None) -> Volume:
    """Read the files of one DICOM series, or one Enhanced multi-frame file.

    Rescale slope and intercept (or the Modality LUT) are applied: CT comes in HU. Transfer syntaxes: all
    those pydicom decodes by itself or through GDCM (RLE, JPEG lossless, JPEG-LS, JPEG 2000, deflated).

    Args:
        files: single-frame images at even distances along their normal (a tilted gantry is allowed), in any
            order; or one multi-frame image with a position for each frame.
        axis: `axial`, `coronal` or `sagittal` slices by the affine; None: axial, see `Volume`.

    Raises:
        GalipError: a corrupt file, DICOM without a grey image or without geometry, data compressed in a way
            nothing installed decodes, files of several series, slices that are missing, double or differ in
            size or orientation.
    """
    name = str(files[0] if len(files) == 1 else _common_folder(files))
    headers: list[Any] = []
    images: list[np.ndarray] = []
    with PixelDecoder() as decoder:
        for file in files:
            for header, image in _read_frames(file, decoder):
                headers.append(header)
                images.append(image)
                _check_same(headers[0], header, images[0], image, file)
    order, step = _sorted_slices(headers, name)
    headers = [headers[index] for index in order]
    voxels = np.stack([images[index] for index in order]).transpose(2, 1, 0)
    del images
    layout = nifti_layout(_nifti_header(headers[0], step, voxels.shape), name, axis)
    layout = replace(layout, instances=tuple(headers))
    return Volume(array=layout.arrange(voxels), path=Path(name), spacing=nifti_spacing(layout), source=layout)


def _read_frames(path: Path, decoder: PixelDecoder) -> list[tuple[Any, np.ndarray]]:
    """For each frame of a file, what is kept of its header and its values (rows, columns) float32."""
    pydicom = require("pydicom", "dicom")
    from pydicom.pixels import apply_modality_lut

    check_file(path)
    with corrupt_as_error(path), _quiet():
        dataset = pydicom.dcmread(path, force=path.name.lower().endswith(SUFFIXES))
        _check_image(dataset, path)
        compressed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
        stored = decoder.decode(path) if compressed else dataset.pixel_array
        frames = []
        count = int(dataset.get("NumberOfFrames") or 1)
        for number, image in enumerate(stored.reshape(count, *stored.shape[-2:])):
            groups = _frame_groups(dataset, number)
            header = _kept(dataset, groups, path, number)
            rescaled = apply_modality_lut(image, groups.get("PixelValueTransformationSequence", dataset))
            frames.append((header, checked_float32(np.asarray(rescaled), f"{path}, frame {number + 1}")))
    return frames


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
    announced = dataset.Rows * dataset.Columns * count * dataset.BitsAllocated // 8
    if announced < 1:
        raise GalipError(f"{path}: {count} frames of {dataset.Rows} x {dataset.Columns} pixels hold no image")
    available = len(dataset.PixelData)
    if syntax.is_encapsulated:
        available = max(available * _COMPRESSION_RATIO, _SMALL_IMAGE)
    check_announced(announced, available, path)


def _native_syntax(implicit: bool, little: bool) -> Any:
    from pydicom import uid

    if not little:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian


def _frame_groups(dataset: Any, number: int) -> dict[str, Any]:
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
            if np.isfinite(_numbers(kept, tag)).all():
                continue
        del kept[tag]
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        kept.ReferencedFrameNumber = number + 1
    for tag, length in zip(GEOMETRY, (3, 6, 2), strict=True):
        values = _numbers(kept, tag)
        if len(values) != length or not np.isfinite(values).all():
            raise GalipError(
                f"{path}: has no {tag} of {length} numbers, found {kept.get(tag, 'none')}; "
                "its place in the patient is unknown"
            )
    if not (_numbers(kept, "PixelSpacing") > 0).all():
        raise GalipError(f"{path}: PixelSpacing is {list(kept.PixelSpacing)}; expected sizes above 0 mm")
    rows, columns = _numbers(kept, "ImageOrientationPatient").reshape(2, 3)
    if not np.allclose([rows @ rows, columns @ columns, rows @ columns], [1, 1, 0], atol=_SAME_DIRECTION * 2):
        raise GalipError(
            f"{path}: ImageOrientationPatient {list(kept.ImageOrientationPatient)} is not two directions at "
            "right angles; correct it"
        )
    return kept


def _numbers(dataset: Any, tag: str) -> np.ndarray:
    value = dataset.get(tag)
    return np.array([] if value is None else value, dtype=np.float64).reshape(-1)


def _check_same(first: Any, header: Any, first_image: np.ndarray, image: np.ndarray, path: Path) -> None:
    """Refuse a file that is not of the same series and grid as the first."""
    if header.get("SeriesInstanceUID") != first.get("SeriesInstanceUID"):
        raise GalipError(
            f"{path}: is of another series ({header.get('SeriesInstanceUID')}) than the files before it "
            f"({first.get('SeriesInstanceUID')}); give each series by itself"
        )
    if image.shape != first_image.shape:
        raise GalipError(f"{path}: has {image.shape} pixels, the slices before it {first_image.shape}")
    for tag, tolerance in (("ImageOrientationPatient", _SAME_DIRECTION), ("PixelSpacing", _SAME_POSITION)):
        if not np.allclose(_numbers(header, tag), _numbers(first, tag), rtol=0, atol=tolerance):
            raise GalipError(
                f"{path}: {tag} is {list(header[tag].value)}, that of the slices before it "
                f"{list(first[tag].value)}; the series is no stack (a localiser?), so split it"
            )


def _sorted_slices(headers: Sequence[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The order along the normal, and the step from slice to slice in LPS+, mm."""
    rows, columns = _numbers(headers[0], "ImageOrientationPatient").reshape(2, 3)
    normal = np.cross(rows, columns)
    positions = np.array([_numbers(header, "ImagePositionPatient") for header in headers])
    order = np.argsort(positions @ normal, kind="stable")
    if len(headers) == 1:
        thickness = [_numbers(headers[0], tag) for tag in ("SpacingBetweenSlices", "SliceThickness")]
        usable = [
            float(value[0]) for value in thickness if len(value) and np.isfinite(value[0]) and value[0] > 0
        ]
        return order, normal * (usable[0] if usable else 1.0)
    positions = positions[order]
    places = positions @ normal
    distances = np.diff(places)
    double = np.flatnonzero(distances < _SAME_POSITION)
    if len(double):
        raise GalipError(
            f"{name}: {len(double)} of {len(headers)} slices lie where another lies, the first at "
            f"{places[double[0]]:g} mm; remove duplicates, or split the echoes or time points"
        )
    step = (positions[-1] - positions[0]) / (len(headers) - 1)
    usual = float(np.median(distances))
    strays = np.linalg.norm(positions - positions[0] - np.arange(len(headers))[:, None] * step, axis=1)
    if strays.max() > _UNEVEN * usual or np.abs(distances - usual).max() > _UNEVEN * usual:
        worst = int(np.argmax(np.abs(distances - usual)))
        raise GalipError(
            f"{name}: the slices are not evenly spaced: {distances[worst]:g} mm between those at "
            f"{places[worst]:g} and {places[worst + 1]:g} mm, usually {usual:g} mm; are slices missing?"
        )
    return order, step


def _nifti_header(first: Any, step: np.ndarray, shape: tuple[int, ...]) -> nib.Nifti1Header:
    rows, columns = _numbers(first, "ImageOrientationPatient").reshape(2, 3)
    row_distance, column_distance = _numbers(first, "PixelSpacing")
    # The first direction is that in which the column index grows, by the distance between columns.
    lps = np.column_stack([rows * column_distance, columns * row_distance, step])
    to_ras = np.diag([-1.0, -1.0, 1.0])
    affine = nib.affines.from_matvec(to_ras @ lps, to_ras @ _numbers(first, "ImagePositionPatient"))
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float32)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    if not np.allclose(header.get_qform(), affine, atol=_SAME_POSITION):
        header["qform_code"] = 0  # a tilted gantry: quaternions cannot say it
    return header
