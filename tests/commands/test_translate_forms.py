"""`galip-hf translate` on DICOM series, 4-D NIfTI and other planes, with a tiny model."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import hounsfield, write_images, write_series
from pydicom.dataset import Dataset

from galip_hf import GalipPipeline
from galip_hf.cli import main
from galip_hf.data.scans import read_scan

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def model(model_directory: Path) -> Path:
    return model_directory


def translate(*arguments: object) -> int:
    return main(["translate", *map(str, arguments)])


def test_a_dicom_series_becomes_nifti(model: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    code = translate(
        tmp_path / "ct", "--model", model, "--from", "CT", "--to", "T1", "--output", tmp_path / "t1.nii.gz"
    )
    assert code == 0
    image = nib.load(tmp_path / "t1.nii.gz")
    (volume,) = read_scan(tmp_path / "ct")
    assert image.shape == volume.to_source_array().shape
    np.testing.assert_allclose(image.affine, volume.source.affine, atol=1e-5)
    expected = GalipPipeline.from_pretrained(model)(tmp_path / "ct", "T1", "CT")
    np.testing.assert_allclose(image.get_fdata(), expected.array, atol=1e-2)


@pytest.mark.parametrize("keep", [False, True])
def test_a_dicom_series_becomes_a_derived_one(model: Path, tmp_path: Path, keep: bool) -> None:
    write_series(tmp_path / "in" / "ct")
    flags = ["--keep-patient-tags"] if keep else []
    arguments = ("--model", model, "--from", "CT", "--to", "T1,CT", "--output", tmp_path / "out", *flags)
    assert translate(tmp_path / "in", *arguments) == 0
    folders = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert [folder.name.rsplit("_", 1)[1] for folder in folders] == ["CT", "T1"]
    source = pydicom.dcmread(next((tmp_path / "in" / "ct").iterdir()))
    for folder, modality in zip(folders, ("CT", "MR"), strict=True):
        files = sorted(folder.iterdir())
        assert len(files) == len(hounsfield())
        derived = pydicom.dcmread(files[0])
        assert list(derived.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert derived.Modality == modality
        assert "synthetic, not for diagnosis" in derived.SeriesDescription
        assert derived.SeriesInstanceUID != source.SeriesInstanceUID
        assert (str(derived.PatientName) == str(source.PatientName)) == keep
        report = json.loads(folder.with_name(f"{folder.name}.json").read_text(encoding="utf-8"))
        assert report["target"] == folder.name.rsplit("_", 1)[1]
    (back,) = read_scan(folders[0])
    expected = GalipPipeline.from_pretrained(model)(tmp_path / "in" / "ct", "CT", "CT")
    span = expected.array.max() - expected.array.min()
    np.testing.assert_allclose(back.to_source_array(), expected.array, atol=span / 65535)


def test_a_4d_nifti_is_translated_volume_by_volume(model: Path, tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((14, 12, 3, 2)).astype(np.float32)
    nib.Nifti1Image(array, AFFINE).to_filename(tmp_path / "series.nii.gz")
    arguments = (
        "--model",
        model,
        "--from",
        "T1",
        "--to",
        "T2",
        "--output",
        tmp_path / "t2.nii.gz",
        "--cycle-map",
    )
    assert translate(tmp_path / "series.nii.gz", *arguments) == 0
    image = nib.load(tmp_path / "t2.nii.gz")
    assert image.shape == array.shape
    assert nib.load(tmp_path / "t2_cycle.nii.gz").shape == array.shape
    reports = json.loads((tmp_path / "t2.json").read_text(encoding="utf-8"))["volumes"]
    assert [report["slices"] for report in reports] == [3, 3]
    pipeline = GalipPipeline.from_pretrained(model)
    for number in (0, 1):
        single = pipeline(nib.Nifti1Image(array[..., number], AFFINE), "T2", "T1")
        np.testing.assert_allclose(image.get_fdata()[..., number], single.array, atol=1e-4)


def test_the_plane_of_the_slices(model: Path, tmp_path: Path) -> None:
    array = np.random.default_rng(1).random((14, 12, 10)).astype(np.float32)
    nib.Nifti1Image(array, AFFINE).to_filename(tmp_path / "scan.nii.gz")
    found = {}
    for axis in ("axial", "sagittal"):
        output = tmp_path / f"{axis}.nii.gz"
        arguments = ("--model", model, "--from", "T1", "--to", "T2", "--axis", axis, "--output", output)
        assert translate(tmp_path / "scan.nii.gz", *arguments) == 0
        found[axis] = nib.load(output)
        assert (found[axis].affine == AFFINE).all()
        assert (
            json.loads(output.with_name(f"{axis}.json").read_text(encoding="utf-8"))["slices"]
            == {"axial": 10, "sagittal": 14}[axis]
        )
    assert np.abs(found["axial"].get_fdata() - found["sagittal"].get_fdata()).max() > 1e-2


def test_dicom_out_needs_dicom_in(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "scan.npy", np.random.default_rng(2).random((2, 12, 12)))
    arguments = (
        "--model",
        model,
        "--from",
        "T1",
        "--to",
        "T2",
        "--output",
        tmp_path / "out",
        "--format",
        "dicom",
    )
    assert translate(tmp_path / "scan.npy", *arguments) == 2
    assert "is no DICOM series; its headers would be needed" in capsys.readouterr().err


def test_an_echo_is_selected(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(image: Dataset, number: int, index: int) -> None:
        image.EchoTime = (10, 80)[number]

    echoes = np.random.default_rng(0).integers(0, 900, (2, 3, 32, 32))
    write_images(tmp_path / "mr", echoes, change)
    arguments = (tmp_path / "mr", "--model", model, "--from", "T1", "--to", "T2", "--output")
    assert translate(*arguments, tmp_path / "one.nii.gz") == 2
    assert "choose one of EchoTime-10, EchoTime-80 with --select KEYWORD=VALUE" in capsys.readouterr().err
    assert translate(*arguments, tmp_path / "one.nii.gz", "--select", "EchoTime=80") == 0
    expected = GalipPipeline.from_pretrained(model)(echoes[1].astype(np.float32), "T2", "T1").array
    (volume,) = read_scan(tmp_path / "one.nii.gz")
    np.testing.assert_allclose(volume.array, expected, atol=1e-2)
    assert translate(*arguments, tmp_path / "both") == 0
    names = sorted(path.name for path in (tmp_path / "both").iterdir() if path.is_dir())
    assert names == ["mr_EchoTime-10_T2", "mr_EchoTime-80_T2"]
    for wrong in ("EchoTime", "EchoTime=", "=80"):
        assert translate(*arguments, tmp_path / "x.nii.gz", "--select", wrong) == 2
        assert f"--select {wrong}: expected KEYWORD=VALUE" in capsys.readouterr().err


def test_uneven_slices_are_resampled_on_request_and_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "ct", slices=6)[2].unlink()
    arguments = (
        tmp_path / "ct",
        "--model",
        model,
        "--from",
        "CT",
        "--to",
        "T1",
        "--output",
        tmp_path / "out",
    )
    assert translate(*arguments) == 2
    assert "--uneven resample" in capsys.readouterr().err
    assert translate(*arguments, "--uneven", "resample") == 0
    assert "5 slices were resampled to 6, 2.5 mm apart" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "ct_T1").iterdir())) == 5  # at the positions of the source
