"""DICOM files for the tests: CT series in every transfer syntax, written with pydicom and GDCM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACING = (0.75, 0.5)  # between rows, between columns
STEP = 2.5
ORIGIN = np.array([-12.0, -34.5, 100.0])
STRAIGHT = np.array([1.0, 0, 0, 0, 1, 0])
OBLIQUE = nib.eulerangles.euler2mat(0.3, -0.25, 0.35).T[:2].ravel().round(6)


def hounsfield(slices: int = 4) -> np.ndarray:
    """(slices, rows, columns), whole HU."""
    rng = np.random.default_rng([3, slices])
    return rng.integers(-1024, 2000, (slices, 48, 64)).astype(np.float32)


def header(series: str, position: np.ndarray, orientation: np.ndarray) -> Dataset:
    """What a CT slice has besides its pixels."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SpecificCharacterSet = "ISO_IR 100"
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3.4", series
    image.FrameOfReferenceUID = "1.2.3.4.9"
    image.Modality, image.PatientName, image.PatientID = "CT", "Müller^Eva", "P-17"
    image.PatientBirthDate, image.StudyDate, image.AccessionNumber = "19700101", "20240102", "A-5"
    image.InstitutionName = "St Elsewhere"
    image.ImagePositionPatient = [f"{value:.6f}" for value in position]
    image.ImageOrientationPatient = [f"{value:.6f}" for value in orientation]
    image.PixelSpacing, image.SliceThickness = list(SPACING), "3"
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    return image


def set_pixels(image: Dataset, stored: np.ndarray) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = stored.shape[-2:]
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.PixelData = np.ascontiguousarray(stored, dtype="<u2").tobytes()
    image["PixelData"].VR = "OW"


def write_series(
    folder: Path,
    *,
    slices: int = 4,
    orientation: np.ndarray = STRAIGHT,
    series: str | None = None,
    suffix: str = ".dcm",
    shear: float = 0.0,
) -> list[Path]:
    """A CT series of `hounsfield(slices)`, its files named in another order than the slices have."""
    folder.mkdir(parents=True, exist_ok=True)
    series = series or generate_uid()
    rows, columns = orientation.reshape(2, 3)
    step = STEP * np.cross(rows, columns) + shear * columns
    paths = []
    for index, values in enumerate(hounsfield(slices)):
        image = header(series, ORIGIN + index * step, orientation)
        set_pixels(image, values + 1024)
        path = folder / f"{(index * 7 + 3) % 11:02d}{suffix}"
        image.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def transcode(path: Path, syntax: Any) -> None:
    """Compress a file in place with GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def edit(path: Path, **values: Any) -> None:
    """Change or, with None, remove elements of a file."""
    image = pydicom.dcmread(path)
    for tag, value in values.items():
        if value is None:
            delattr(image, tag)
        elif tag.startswith("PixelPadding"):  # signed or unsigned, which pydicom cannot tell by itself
            image.add_new(tag, "SS" if value < 0 else "US", value)
        else:
            setattr(image, tag, value)
    image.save_as(path)


def write_enhanced(path: Path, slices: int = 4) -> None:
    """The same scan as one Enhanced CT file, its frames in reverse order."""
    image = header(generate_uid(), ORIGIN, STRAIGHT)
    image.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(image, tag)
    del image.RescaleSlope, image.RescaleIntercept
    shared, plane, measures, values = Dataset(), Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = list(STRAIGHT)
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), 3
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    shared.PixelValueTransformationSequence = [values]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in reversed(range(slices)):
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = list(ORIGIN + index * STEP * np.array([0, 0, 1.0]))
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    image.NumberOfFrames = slices
    set_pixels(image, hounsfield(slices)[::-1] + 1024)
    image.save_as(path, enforce_file_format=True)


def write_images(
    folder: Path, volumes: np.ndarray, change: Callable[[Dataset, int, int], None], series: str = "1.2.1"
) -> None:
    """MR volumes (volumes, slices, rows, columns) at the same places, a file an image.

    `change(image, volume, slice)` edits each header before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, volume in enumerate(volumes):
        for index, values in enumerate(volume):
            image = header(series, ORIGIN + index * STEP * np.array([0, 0, 1.0]), STRAIGHT)
            image.Modality, image.SOPClassUID = "MR", pydicom.uid.MRImageStorage
            image.RescaleIntercept = 0
            set_pixels(image, values)
            change(image, number, index)
            image.save_as(folder / f"{number}-{index}.dcm", enforce_file_format=True)
