"""DICOM as archives hold it: which images are one scan, and which are several."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import ORIGIN, SPACING, STEP, STRAIGHT, edit, header, set_pixels, write_images, write_series
from pydicom.dataset import Dataset

from galip_hf.data.dicom_series import is_dicom
from galip_hf.data.scans import find_scans, read_scan
from galip_hf.model.errors import GalipError

SLICES, ROWS, COLUMNS = 4, 12, 16


def volumes(count: int) -> np.ndarray:
    """(count, SLICES, ROWS, COLUMNS), whole numbers, no two images alike."""
    return np.random.default_rng(count).integers(0, 900, (count, SLICES, ROWS, COLUMNS))


def read_all(folder: Path, **select: str) -> dict[str, np.ndarray]:
    return {scan.name: read_scan(scan)[0].array for scan in find_scans([folder], select=select)}


def refused(source: object) -> str:
    with pytest.raises(GalipError) as caught:
        read_scan(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def echo(image: Dataset, number: int, index: int) -> None:
    image.EchoTime, image.EchoNumbers = (10, 80)[number], number + 1


def magnitude_and_phase(image: Dataset, number: int, index: int) -> None:
    image.ImageType = ["ORIGINAL", "PRIMARY", "MP"[number], "ND"]


def b_value(image: Dataset, number: int, index: int) -> None:
    image.DiffusionBValue = (0.0, 800.0)[number]


def siemens_b_value(image: Dataset, number: int, index: int) -> None:
    image.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", (0, 800)[number])


def time_position(image: Dataset, number: int, index: int) -> None:
    image.TemporalPositionIdentifier = number + 1


def acquisition_time(image: Dataset, number: int, index: int) -> None:
    image.AcquisitionTime = f"10{number}0{index}0.5"  # another for every slice too


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (echo, ["EchoTime-10", "EchoTime-80"]),
        (magnitude_and_phase, ["ImageType-M", "ImageType-P"]),
        (b_value, ["DiffusionBValue-0", "DiffusionBValue-800"]),
        (siemens_b_value, ["DiffusionBValue-0", "DiffusionBValue-800"]),
        (time_position, ["TemporalPositionIdentifier-1", "TemporalPositionIdentifier-2"]),
        (acquisition_time, ["TimePoint-1", "TimePoint-2"]),
    ],
)
def test_stacks_of_one_series_are_named_after_what_tells_them_apart(
    change: Callable[[Dataset, int, int], None], names: list[str], tmp_path: Path
) -> None:
    both = volumes(2)
    write_images(tmp_path / "mr", both, change)
    found = read_all(tmp_path / "mr")
    assert list(found) == [f"mr_{name}" for name in names]
    for array, expected in zip(found.values(), both, strict=True):
        np.testing.assert_array_equal(array, expected)
    keyword, value = names[1].split("-")
    (only,) = read_all(tmp_path / "mr", **{keyword: value}).values()
    np.testing.assert_array_equal(only, both[1])
    assert f"holds 2 scans ({names[0]}, {names[1]})" in refused(tmp_path / "mr")


def test_echoes_times_phase_are_four_stacks(tmp_path: Path) -> None:
    def change(image: Dataset, number: int, index: int) -> None:
        image.EchoTime, image.ImageType = (5, 10)[number % 2], ["ORIGINAL", "PRIMARY", "MP"[number // 2]]

    write_images(tmp_path / "mr", volumes(4), change)
    found = read_all(tmp_path / "mr")
    np.testing.assert_array_equal(found["mr_EchoTime-10_ImageType-P"], volumes(4)[3])
    assert len(found) == 4
    assert list(read_all(tmp_path / "mr", EchoTime="5.0", ImageType="m")) == ["mr_EchoTime-5_ImageType-M"]


def test_select_finds_nothing_or_no_element(tmp_path: Path) -> None:
    write_images(tmp_path / "mr", volumes(2), echo)
    with pytest.raises(GalipError, match=r"--select EchoTime=7: no DICOM image fits; .* EchoTime: 10, 80"):
        find_scans([tmp_path / "mr"], select={"EchoTime": "7"})
    with pytest.raises(GalipError, match=r"DICOM has no element Echo; expected a keyword such as EchoTime"):
        find_scans([tmp_path / "mr"], select={"Echo": "10"})


def test_what_nothing_tells_apart_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "mr", volumes(2), lambda image, number, index: None)
    assert "4 of 8 slices lie where another lies" in refused(tmp_path / "mr")
    assert "(0-0.dcm and 1-0.dcm)" in refused(tmp_path / "mr")


def test_a_value_that_differs_without_need_splits_nothing(tmp_path: Path) -> None:
    def change(image: Dataset, number: int, index: int) -> None:
        image.EchoTime, image.AcquisitionNumber, image.AcquisitionTime = index, index, f"10000{index}"

    write_images(tmp_path / "mr", volumes(1), change)
    np.testing.assert_array_equal(read_all(tmp_path / "mr")["mr"], volumes(1)[0])


@pytest.mark.parametrize("how", ["echo", "dimension"])
def test_stacks_in_one_enhanced_file(how: str, tmp_path: Path) -> None:
    both = volumes(2)
    image = header("1.2.1", ORIGIN, STRAIGHT)
    image.SOPClassUID, image.Modality = pydicom.uid.EnhancedMRImageStorage, "MR"
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient, measures.PixelSpacing = list(STRAIGHT), list(SPACING)
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    del image.ImagePositionPatient, image.RescaleIntercept, image.RescaleSlope
    frames = []
    for index in range(SLICES):
        for number in range(2):
            frame, place, content, times = Dataset(), Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = list(ORIGIN + index * STEP * np.array([0, 0, 1.0]))
            content.DimensionIndexValues = [index + 1, number + 1]
            times.EffectiveEchoTime = (10.0, 80.0)[number]
            frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
            if how == "echo":
                frame.MREchoSequence = [times]
            frames.append(frame)
    image.PerFrameFunctionalGroupsSequence, image.NumberOfFrames = frames, len(frames)
    place, time = Dataset(), Dataset()
    place.DimensionIndexPointer, time.DimensionIndexPointer = 0x00200032, 0x00189082
    image.DimensionIndexSequence = [place, time]
    set_pixels(image, both.transpose(1, 0, 2, 3).reshape(-1, ROWS, COLUMNS))
    image.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    found = read_all(tmp_path / "enhanced.dcm")
    names = (
        ["EchoTime-10", "EchoTime-80"]
        if how == "echo"
        else ["EffectiveEchoTimeIndex-1", "EffectiveEchoTimeIndex-2"]
    )
    assert list(found) == [f"enhanced_{name}" for name in names]
    for array, expected in zip(found.values(), both, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("tag", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_one_uid_for_two_patients_studies_or_frames(tag: str, tmp_path: Path) -> None:
    def change(image: Dataset, number: int, index: int) -> None:
        setattr(image, tag, f"1.2.{index // 2}")

    write_images(tmp_path / "mr", volumes(1), change)  # without the tag, one even stack
    parts = [array for array in read_all(tmp_path / "mr").values()]
    np.testing.assert_array_equal(np.concatenate(parts), volumes(1)[0])
    assert [len(part) for part in parts] == [2, 2]


@pytest.mark.parametrize("kind", ["none", "one each", "all one each", "none in a folder each"])
def test_images_without_a_common_series_uid_that_fit_one_stack(kind: str, tmp_path: Path) -> None:
    def change(image: Dataset, number: int, index: int) -> None:
        image.SeriesInstanceUID = f"1.9.{index}"
        if kind.startswith("none"):
            del image.SeriesInstanceUID
        if kind == "all one each":
            image.StudyInstanceUID, image.FrameOfReferenceUID = f"1.8.{index}", f"1.7.{index}"

    write_images(tmp_path / "mr", volumes(1), change)
    if kind.endswith("folder each"):
        for path in sorted((tmp_path / "mr").iterdir()):
            path.with_suffix("").mkdir()
            path.rename(path.with_suffix("") / "image.dcm")
    (scan,) = find_scans([tmp_path / "mr"])
    (volume,) = read_scan(scan)
    np.testing.assert_array_equal(volume.array, volumes(1)[0])
    assert (
        scan.series_uid is None and len(volume.notes) == 1 and "taken for one scan because" in volume.notes[0]
    )


def test_images_without_a_common_uid_that_fit_no_stack_stay_apart(tmp_path: Path) -> None:
    def change(image: Dataset, number: int, index: int) -> None:
        image.SeriesInstanceUID = f"1.9.{index}"
        image.ImagePositionPatient = list(ORIGIN + np.array([0, 0, (0, 2.5, 3.6, 90.1)[index]]))

    write_images(tmp_path / "mr", volumes(1), change)
    assert [array.shape for array in read_all(tmp_path / "mr").values()] == [(1, ROWS, COLUMNS)] * 4


def test_copies_are_dropped_and_other_pixels_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "mr", volumes(1), lambda image, number, index: None)
    for path in sorted((tmp_path / "mr").iterdir())[:3]:
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    (volume,) = read_scan(tmp_path / "mr")
    np.testing.assert_array_equal(volume.array, volumes(1)[0])
    assert volume.notes[0].startswith(
        "3 of 7 images are exact copies of others and were left out (copy-0-0.dcm"
    )
    path = tmp_path / "mr" / "copy-0-0.dcm"
    image = pydicom.dcmread(path)
    edit(path, PixelData=image.PixelData[:-2] + b"\x01\x07")
    message = refused(tmp_path / "mr")
    assert "has the SOPInstanceUID of" in message and "but other pixels" in message


def test_a_stray_localiser_is_named(tmp_path: Path) -> None:
    def add(folder: Path, **values: object) -> Path:
        write_series(folder, slices=6, series="1.2.1")
        (extra,) = write_series(tmp_path / "one", slices=1, series="1.2.1")
        edit(extra, **values)
        return extra.rename(folder / "00-first.dcm")

    turned = add(tmp_path / "a", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    assert refused(tmp_path / "a").startswith(f"{turned}: ImageOrientationPatient is [0.0, 1.0")
    add(tmp_path / "b", ImagePositionPatient=[-12, -34.5, 300])
    assert "Without 00-first.dcm the others are evenly spaced" in refused(tmp_path / "b")


def test_two_large_orientations_are_two_scans(tmp_path: Path) -> None:
    def change(image: Dataset, number: int, index: int) -> None:
        if number:
            image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
            image.ImagePositionPatient = [index * 3, 0, 0]

    write_images(tmp_path / "mr", volumes(2), change)
    assert sorted(read_all(tmp_path / "mr")) == ["mr_Plane-axial", "mr_Plane-sagittal"]


def test_files_without_preamble_and_suffix(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "ct"):
        path.with_suffix("").write_bytes(path.read_bytes()[132:])
        path.unlink()
    (volume,) = read_scan(tmp_path / "ct")
    assert volume.array.shape == (4, 48, 64)
    for path in (tmp_path / "ct").iterdir():
        image = pydicom.dcmread(path, force=True)
        del image.file_meta
        image.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(read_scan(tmp_path / "ct")[0].array, volume.array)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\x00", bytes(600), b"\x08\x00\x05\x00CS" + b"\xff" * 500, b"\x02\x00\x08\x00" * 200,
     bytes(range(256)) * 3, b"\x7fELF\x02\x01\x01" + bytes(500), b"PK\x03\x04" + b"a" * 500],
)  # fmt: skip
def test_other_binary_files_are_not_dicom(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert not is_dicom(tmp_path / "file")


def mosaic(path: Path, tiles: np.ndarray, count: int | None, **values: object) -> None:
    """(9, ROWS, COLUMNS) slices as 3 x 3 tiles."""
    image = header("1.2.1", ORIGIN - [COLUMNS * SPACING[1], ROWS * SPACING[0], 0], STRAIGHT)
    image.Modality, image.RescaleIntercept, image.SpacingBetweenSlices = "MR", 0, STEP
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    set_pixels(image, tiles.reshape(3, 3, ROWS, COLUMNS).transpose(0, 2, 1, 3).reshape(3 * ROWS, 3 * COLUMNS))
    if count:
        image.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    for tag, value in values.items():
        setattr(image, tag, value)
    path.parent.mkdir(exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def test_a_mosaic_is_cut_into_its_slices(tmp_path: Path) -> None:
    tiles = np.random.default_rng(2).integers(1, 900, (9, ROWS, COLUMNS))
    mosaic(tmp_path / "a.dcm", tiles, 8)
    (volume,) = read_scan(tmp_path / "a.dcm")
    np.testing.assert_array_equal(volume.array, tiles[:8])
    np.testing.assert_allclose(volume.source.affine[:3, 3], ORIGIN * [-1, -1, 1])
    np.testing.assert_allclose(volume.spacing, (STEP, *SPACING))
    assert "Siemens mosaic without a CSA header" in volume.notes[0]
    for number in (1, 2):
        mosaic(tmp_path / "series" / f"{number}.dcm", tiles + number, 9, InstanceNumber=number)
    found = read_all(tmp_path / "series")
    np.testing.assert_array_equal(found["series_InstanceNumber-2"], tiles + 2)


def test_a_mosaic_of_unknown_tiles_is_refused_but_not_the_mere_word(tmp_path: Path) -> None:
    mosaic(tmp_path / "a.dcm", np.ones((9, ROWS, COLUMNS), int), None)
    assert "ImageType says MOSAIC" in refused(tmp_path / "a.dcm")
    edit(tmp_path / "a.dcm", SoftwareVersions="syngo MR XA30")
    assert read_scan(tmp_path / "a.dcm")[0].array.shape == (1, 3 * ROWS, 3 * COLUMNS)

    def change(image: Dataset, number: int, index: int) -> None:
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]

    write_images(tmp_path / "mr", volumes(1), change)
    np.testing.assert_array_equal(read_all(tmp_path / "mr")["mr"], volumes(1)[0])


def test_a_scanners_mosaic_lies_where_nibabel_puts_it(tmp_path: Path) -> None:
    """The file, with its CSA header, is one of nibabel's own tests."""
    source = Path(nib.__file__).parent / "nicom/tests/data/siemens_dwi_1000.dcm.gz"
    if not source.exists():
        pytest.skip("this nibabel comes without its test data")
    (tmp_path / "mosaic").write_bytes(gzip.decompress(source.read_bytes()))
    (volume,) = read_scan(tmp_path / "mosaic")
    from nibabel.nicom import dicomwrappers

    theirs = dicomwrappers.wrapper_from_file(tmp_path / "mosaic")  # axes: rows, columns, slices; LPS+
    np.testing.assert_array_equal(volume.to_source_array(), theirs.get_data().transpose(1, 0, 2))
    affine = np.diag([-1.0, -1, 1, 1]) @ theirs.affine[:, [1, 0, 2, 3]]
    np.testing.assert_allclose(volume.source.affine, affine, atol=1e-4)
    assert volume.notes == ()
