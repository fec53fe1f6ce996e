"""DICOM series in, NIfTI or derived series out: values, geometry, identity, and what is refused."""

import zlib
from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import (
    OBLIQUE,
    ORIGIN,
    SPACING,
    STEP,
    STRAIGHT,
    edit,
    hounsfield,
    transcode,
    write_enhanced,
    write_series,
)
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from galip_hf.data.dicom_writer import write_dicom_series
from galip_hf.data.readers import read_volume
from galip_hf.data.scans import find_scans, read_scan, write_scan
from galip_hf.model.errors import GalipError
from galip_hf.version import DISCLAIMER


def refused(source: object) -> str:
    with pytest.raises(GalipError) as caught:
        read_scan(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def expected_affine(orientation: np.ndarray, shear: float = 0.0) -> np.ndarray:
    """RAS+, from the definition in PS3.3 C.7.6.2.1.1: columns, rows, slices."""
    rows, columns = orientation.reshape(2, 3)
    step = STEP * np.cross(rows, columns) + shear * columns
    lps = np.column_stack([rows * SPACING[1], columns * SPACING[0], step])
    return np.diag([-1.0, -1, 1, 1]) @ nib.affines.from_matvec(lps, ORIGIN)


@pytest.mark.parametrize("orientation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_a_series_has_its_values_and_place_and_becomes_nifti(
    orientation: np.ndarray, suffix: str, tmp_path: Path
) -> None:
    write_series(tmp_path / "ct", orientation=orientation, suffix=suffix)
    (volume,) = read_scan(tmp_path / "ct")
    np.testing.assert_array_equal(volume.to_source_array(), hounsfield().transpose(2, 1, 0))
    np.testing.assert_allclose(volume.spacing, (STEP, *SPACING), rtol=1e-6)
    image = nib.load(write_scan([volume], tmp_path / "ct.nii.gz"))
    np.testing.assert_allclose(image.affine, expected_affine(orientation), atol=1e-5)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
    again = read_volume(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(again.array, volume.array)


def test_a_straight_series_is_shown_upright(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")  # rows run to the left, columns to posterior: as a screen shows them
    np.testing.assert_array_equal(read_scan(tmp_path / "ct")[0].array, hounsfield())
    (coronal,) = read_scan(tmp_path / "ct", axis="coronal")
    np.testing.assert_array_equal(coronal.array, hounsfield()[::-1].transpose(1, 0, 2)[::-1])
    np.testing.assert_array_equal(coronal.to_source_array(), hounsfield().transpose(2, 1, 0))


def test_a_tilted_gantry_is_a_sheared_affine(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", shear=1.0)
    (volume,) = read_scan(tmp_path / "ct")
    np.testing.assert_allclose(volume.source.affine, expected_affine(STRAIGHT, 1.0), atol=1e-5)
    assert int(volume.source.header["qform_code"]) == 0


SYNTAXES = {
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG-LS lossless": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000 lossless": gdcm.TransferSyntax.JPEG2000Lossless,
    "RLE": gdcm.TransferSyntax.RLELossless,
}


@pytest.mark.parametrize("name", [*SYNTAXES, "deflated", "implicit", "big endian", "RLE by pydicom"])
def test_transfer_syntaxes(name: str, tmp_path: Path) -> None:
    for path in write_series(tmp_path / "ct"):
        if name in SYNTAXES:
            transcode(path, SYNTAXES[name])
            assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
            continue
        image = pydicom.dcmread(path)
        if name == "RLE by pydicom":
            image.compress(RLELossless, generate_instance_uid=False)
        elif name == "deflated":
            image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        elif name == "implicit":
            image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        else:
            image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
            image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
            image["PixelData"].VR = "OW"
            pydicom.dcmwrite(path, image, implicit_vr=False, little_endian=False, enforce_file_format=True)
            continue
        image.save_as(path, enforce_file_format=True)
    (volume,) = read_scan(tmp_path / "ct")
    np.testing.assert_array_equal(volume.array, hounsfield())


def test_an_enhanced_multi_frame_file(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "enhanced.dcm")
    (volume,) = read_scan(tmp_path / "enhanced.dcm")
    np.testing.assert_array_equal(volume.array, hounsfield())
    np.testing.assert_allclose(volume.source.affine, expected_affine(STRAIGHT), atol=1e-5)
    folder = write_dicom_series(volume, tmp_path / "out", description="m", keep_patient_tags=True)
    np.testing.assert_array_equal(read_scan(folder)[0].array, hounsfield())
    first = pydicom.dcmread(folder / "IM00001.dcm")
    assert first.SourceImageSequence[0].ReferencedFrameNumber == 4  # the frames were in reverse order


@pytest.mark.parametrize("axis", [None, "sagittal"])
@pytest.mark.parametrize("orientation", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_a_derived_series_has_the_same_geometry_and_no_patient(
    orientation: np.ndarray, axis: str | None, tmp_path: Path
) -> None:
    sources = [pydicom.dcmread(path) for path in write_series(tmp_path / "ct", orientation=orientation)]
    (volume,) = read_scan(tmp_path / "ct", axis=axis)
    description = "some/model T1→CT, a name far too long for the element that holds it"
    values = volume.array + np.float32(0.37) * np.arange(len(volume.array), dtype=np.float32)[:, None, None]
    folder = write_dicom_series(volume.with_array(values), tmp_path / "out", description=description)
    (again,) = read_scan(folder, axis=axis)
    span = float(values.max() - values.min())
    np.testing.assert_allclose(again.array, values, rtol=0, atol=span / 131070 * 1.001 + 1e-4)
    np.testing.assert_array_equal(again.source.affine, volume.source.affine)
    images = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    for image, source in zip(images, sources, strict=True):
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert [str(v) for v in image[tag].value] == [str(v) for v in source[tag].value]
        assert image.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
        assert image.SOPClassUID == source.SOPClassUID and image.RescaleType == "HU"
        assert len(image.SeriesDescription) <= 64 and image.SeriesDescription.endswith(DISCLAIMER)
        assert image.SeriesDescription.startswith("some/model T1→CT")
        assert description in image.DerivationDescription
        assert image.PatientIdentityRemoved == "YES"
        text = str(image) + str(image.file_meta)
        for private in ("ller", "P-17", "19700101", "20240102", "A-5", "Elsewhere", "'1.2.3.4'"):
            assert private not in text
        for tag in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            assert image[tag].value not in {source[t].value for t in ("StudyInstanceUID", tag)}
            assert source[tag].value not in [element.value for element in image.iterall()]
    assert len({image.SOPInstanceUID for image in images}) == 4
    assert len({image.SeriesInstanceUID for image in images}) == 1
    second = write_dicom_series(volume, tmp_path / "second", description="m", modality="MR")
    image = pydicom.dcmread(second / "IM00001.dcm")  # another target of the same scan: found beside the first
    assert image.StudyInstanceUID == images[0].StudyInstanceUID
    assert image.FrameOfReferenceUID == images[0].FrameOfReferenceUID
    assert image.SeriesInstanceUID != images[0].SeriesInstanceUID
    assert image.Modality == "MR" and image.SOPClassUID == pydicom.uid.MRImageStorage
    for modality, word in (("PET", "PT"), ("CBCT", "CT")):  # DICOM's words for them
        folder = write_dicom_series(volume, tmp_path / modality, description="m", modality=modality)
        assert pydicom.dcmread(folder / "IM00001.dcm").Modality == word


def test_patient_tags_are_kept_when_asked_for(tmp_path: Path) -> None:
    (source, *_) = [pydicom.dcmread(path) for path in write_series(tmp_path / "ct")]
    (volume,) = read_scan(tmp_path / "ct")
    folder = write_dicom_series(volume, tmp_path / "out", description="m→n", keep_patient_tags=True)
    image = pydicom.dcmread(folder / "IM00001.dcm")
    for tag in ("PatientID", "PatientBirthDate", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert image[tag].value == source[tag].value
    assert str(image.PatientName) == "Müller^Eva" and "→" in image.SeriesDescription
    assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert image.SOPInstanceUID != source.SOPInstanceUID
    assert image.SeriesInstanceUID != source.SeriesInstanceUID
    assert "PatientIdentityRemoved" not in image and "InstitutionName" not in image


@pytest.mark.parametrize("offset", [0.0, -1024.0, 30000.0])
def test_whole_numbers_are_stored_exactly(offset: float, tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    (volume,) = read_scan(tmp_path / "ct")
    folder = write_dicom_series(volume.with_array(volume.array + offset), tmp_path / "out", description="m")
    np.testing.assert_array_equal(read_scan(folder)[0].array, volume.array + offset)
    assert pydicom.dcmread(folder / "IM00001.dcm").RescaleSlope == 1


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 12345.0, 1e9])
def test_16_bits_lose_half_a_step_at_most(scale: float, tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    (volume,) = read_scan(tmp_path / "ct")
    values = (np.random.default_rng(5).normal(size=volume.array.shape) * scale).astype(np.float32)
    folder = write_dicom_series(volume.with_array(values), tmp_path / "out", description="m")
    error = np.abs(read_scan(folder)[0].array.astype(np.float64) - values).max()
    # Beside the half step: 16 characters for the slope, and float32.
    assert 0 < error <= (values.max() - values.min()) / 131070 * 1.01


def test_series_are_replaced_but_nothing_else_is(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    (volume,) = read_scan(tmp_path / "ct")
    out = write_dicom_series(volume, tmp_path / "out", description="m")
    with pytest.raises(GalipError, match="already exists"):
        write_dicom_series(volume, out, description="m")
    old = {path.name: path.read_bytes() for path in out.iterdir()}
    write_dicom_series(volume, out, description="m", overwrite=True)
    assert {path.name for path in out.iterdir()} == set(old)
    assert all(path.read_bytes() != old[path.name] for path in out.iterdir())  # new UIDs
    (out / "thesis.doc").touch()
    with pytest.raises(GalipError, match=r"other files .*thesis\.doc"):
        write_dicom_series(volume, out, description="m", overwrite=True)
    assert len(list(out.iterdir())) == 5
    with pytest.raises(GalipError, match="does not exist"):
        write_dicom_series(volume, tmp_path / "none" / "out", description="m")
    with pytest.raises(GalipError, match="not read from DICOM"):
        nifti = read_volume(write_scan([volume], tmp_path / "a.nii"))
        write_dicom_series(nifti, tmp_path / "other", description="m")


def test_mixed_series_are_told_apart_and_refused_as_one(tmp_path: Path) -> None:
    write_series(tmp_path / "all", slices=4, series="1.2.1")
    for path in write_series(tmp_path / "more", slices=3, series="1.2.2"):
        path.rename(tmp_path / "all" / f"b{path.name}")
    scans = find_scans([tmp_path / "all"])
    assert {scan.series_uid: len(read_scan(scan)[0].array) for scan in scans} == {"1.2.1": 4, "1.2.2": 3}
    assert len({scan.name for scan in scans}) == 2
    assert "holds 2 scans (1.2.1, 1.2.2)" in refused(tmp_path / "all")
    from galip_hf.data.dicom import read_series

    with pytest.raises(GalipError, match=r"is of another series \(1\.2\.2\)"):
        read_series(sorted((tmp_path / "all").iterdir()))


def test_series_that_are_no_even_stack(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "gap", slices=6)
    paths[2].unlink()
    message = refused(tmp_path / "gap")
    assert "not evenly spaced: 5 mm between those at 102.5 and 107.5 mm, usually 2.5 mm" in message
    paths = write_series(tmp_path / "double")
    (tmp_path / "double" / "copy.dcm").write_bytes(paths[0].read_bytes())
    edit(
        tmp_path / "double" / "copy.dcm",
        SOPInstanceUID=generate_uid(),
        ImagePositionPatient=pydicom.dcmread(paths[1]).ImagePositionPatient,
    )
    assert "1 of 5 slices lie where another lies, the first at 102.5 mm" in refused(tmp_path / "double")
    paths = write_series(tmp_path / "turned")
    edit(paths[0], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    assert "no stack" in refused(tmp_path / "turned")
    paths = write_series(tmp_path / "sizes")
    edit(paths[0], PixelSpacing=[1, 1])
    assert "PixelSpacing" in refused(tmp_path / "sizes")
    paths = write_series(tmp_path / "rows")
    image = pydicom.dcmread(paths[0])
    edit(paths[0], Rows=24, PixelData=image.PixelData[: len(image.PixelData) // 2])
    assert "(24, 64)" in refused(tmp_path / "rows")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"PixelData": None}, "DICOM without an image (CT Image Storage)"),
        ({"SOPClassUID": pydicom.uid.RTStructureSetStorage, "PixelData": None}, "RT Structure Set"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour image (RGB)"),
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient of 3 numbers"),
        ({"ImageOrientationPatient": None}, "has no ImageOrientationPatient"),
        ({"PixelSpacing": None}, "has no PixelSpacing"),
        ({"PixelSpacing": [0, 1]}, "expected sizes above 0 mm"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "right angles"),
        ({"Rows": 60000, "Columns": 60000}, "announces 7200000000 bytes"),
        ({"Rows": 0}, "hold no image"),
        ({"NumberOfFrames": 2}, "2 frames without positions"),
    ],
)
def test_files_that_are_no_slices(changes: dict, expected: str, tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "ct", slices=1)
    edit(path, **changes)
    assert expected in refused(path)
    assert refused(path).startswith(str(path))


def test_compressed_data_that_nothing_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_series(tmp_path / "ct", slices=1)
    transcode(path, SYNTAXES["JPEG 2000 lossless"])
    with monkeypatch.context() as patch:  # as on a machine without GDCM
        patch.setattr(pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless), "_available", {})
        assert "pip install 'galip-hf[dicom]'" in refused(path)
    image = pydicom.dcmread(path)
    image.file_meta.TransferSyntaxUID = MPEG2MPML
    image.save_as(path)
    assert "MPEG2 Main Profile" in refused(path) and "decompress it" in refused(path)


def test_truncated_and_garbled_files(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "ct")
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-20])
    assert refused(tmp_path / "ct").startswith(str(paths[1])) and "truncated" in refused(tmp_path / "ct")
    paths[1].write_bytes(b"")
    assert len(find_scans([tmp_path / "ct"])) == 2  # not silently dropped
    assert "0 bytes" in refused(paths[1])
    paths[1].write_bytes(b"no DICOM at all" * 50)
    assert "DICOM without an image" in refused(paths[1]) or "cannot be read" in refused(paths[1])


def test_a_deflated_bomb_stays_small(tmp_path: Path) -> None:
    """pydicom alone would inflate 40 kB to 40 MB; where that ends, only the disk's size says."""
    (plain,) = write_series(tmp_path / "ct", slices=1)
    image = pydicom.dcmread(plain)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(plain, enforce_file_format=True)
    content = plain.read_bytes()
    meta = 144 + int.from_bytes(content[140:144], "little")
    stream = zlib.compressobj(wbits=-15)
    bomb = stream.compress(zlib.decompress(content[meta:], wbits=-15))
    bomb += stream.compress(b"\x09\x00\x10\x00OB\0\0" + (40 << 20).to_bytes(4, "little"))
    bomb += b"".join(stream.compress(bytes(1 << 20)) for _ in range(40)) + stream.flush()
    plain.write_bytes(content[:meta] + bomb)
    assert "holds much more uncompressed than the 6144 bytes" in refused(plain)


@pytest.mark.parametrize("columns", [62, 63])
def test_columns_that_do_not_fit_the_pixels(columns: int, tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "ct", slices=1)
    edit(path, Columns=columns)
    said = refused(path)
    assert f"take 6144 bytes, and 48 rows of {columns} columns of 16 bits {96 * columns}" in said


@pytest.mark.parametrize("derived", [False, True])
def test_itk_sees_the_same_values_at_the_same_places(derived: bool, tmp_path: Path) -> None:
    """SimpleITK reads DICOM through GDCM, with nothing of ours in between; it speaks LPS+."""
    SimpleITK = pytest.importorskip("SimpleITK")
    write_series(tmp_path / "ct", orientation=OBLIQUE)
    (volume,) = read_scan(tmp_path / "ct")
    folder = tmp_path / "ct"
    if derived:
        folder = write_dicom_series(volume.with_array(volume.array + 0.5), tmp_path / "out", description="m")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    values = hounsfield() + (0.5 if derived else 0)
    span = float(values.max() - values.min())
    np.testing.assert_allclose(SimpleITK.GetArrayFromImage(image), values, atol=span / 131070 * 1.01)
    for index in ((0, 0, 0), (63, 0, 0), (0, 47, 0), (63, 47, 3)):
        place = np.diag([-1.0, -1, 1]) @ image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(nib.affines.apply_affine(volume.source.affine, index), place, atol=1e-4)
