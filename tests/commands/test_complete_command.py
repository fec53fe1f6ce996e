"""`galip-hf complete` on nnU-Net, BraTS and BIDS data sets of a few voxels."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_bids_command import bids_scan, errors_of

from galip_hf import GalipPipeline
from galip_hf.cli import main


@pytest.fixture(scope="module")
def model(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a report that says from where T1 and CT come best."""
    copy = shutil.copytree(model_directory, tmp_path_factory.mktemp("complete") / "model")
    directions = {"T1->T2": {"psnr": 20.0}, "CT->T2": {"psnr": 21.0}, "T2->CT": {"psnr": 9.0}}
    report = {"protocols": {"fixed": {"masked": {"directions": directions}}}}
    (copy / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return copy


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).random((14, 12, 3)).astype(np.float32)
    nib.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(path)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def listed(output: Path) -> dict[str, tuple[str, str]]:
    """File -> (source, target) of the list of what is synthetic."""
    lines = (output / "synthetic.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["file"]: (entry["source"], entry["target"]) for entry in map(json.loads, lines)}


def complete(model: Path, folder: Path, output: Path, *arguments: str) -> int:
    return main(
        ["complete", str(folder), "--model", str(model), "--output", str(output), *map(str, arguments)]
    )


def test_nnunet(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, output = tmp_path / "Dataset001_Head", tmp_path / "completed"
    for name in ("a_0000", "b_0000", "b_0001", "c_0002", "c_0000", "d_0001"):
        image(raw / "imagesTr" / f"{name}.nii.gz", ord(name[0]))
    image(raw / "labelsTr" / "a.nii.gz")
    dataset = {"channel_names": {"0": "T1w"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    arguments = ("--pattern", "nnunet", "--channels", "T1=0000,T2=0001,CT=0002")
    # d has T2 alone, and nothing is asked; c has T1 and CT, of which the report says that CT is the better.
    assert complete(model, raw, output, *arguments, "--dry-run") == 0
    assert "imagesTr/c: T2 from CT" in capsys.readouterr().out and not output.exists()
    assert complete(model, raw, output, *arguments) == 0
    assert listed(output) == {
        "imagesTr/a_0001.nii.gz": ("T1", "T2"),
        "imagesTr/a_0002.nii.gz": ("T1", "CT"),
        "imagesTr/b_0002.nii.gz": ("T2", "CT"),
        "imagesTr/c_0001.nii.gz": ("CT", "T2"),
        "imagesTr/d_0000.nii.gz": ("T2", "T1"),
        "imagesTr/d_0002.nii.gz": ("T2", "CT"),
    }
    images = [f"imagesTr/{case}_000{channel}.nii.gz" for case in "abcd" for channel in range(3)]
    assert files(output) == sorted([*images, "labelsTr/a.nii.gz", "dataset.json", "synthetic.jsonl"])
    assert (output / images[0]).read_bytes() == (raw / images[0]).read_bytes()
    made = nib.load(output / "imagesTr/a_0001.nii.gz")
    expected = GalipPipeline.from_pretrained(model)(raw / "imagesTr/a_0000.nii.gz", "T2", "T1").array
    np.testing.assert_allclose(made.get_fdata(), expected, atol=1e-4)
    assert json.loads((output / "dataset.json").read_text(encoding="utf-8")) == {
        **dataset,
        "channel_names": {"0": "T1w", "1": "T2", "2": "CT"},
    }


def test_a_killed_run_is_continued(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, output = tmp_path / "raw", tmp_path / "out"
    for case in "ab":
        image(raw / f"{case}_0000.nii.gz")
    arguments = ("--pattern", "nnunet", "--channels", "T1=0000,T2=0001")
    assert complete(model, raw, output, *arguments) == 0
    text = (output / "synthetic.jsonl").read_text(encoding="utf-8")
    first = text.splitlines(keepends=True)[0]
    (output / "synthetic.jsonl").write_text(first + '{"file": "b_', encoding="utf-8")  # killed in writing
    (output / "b_0001.nii.gz").unlink()
    before = (output / "a_0001.nii.gz").stat().st_mtime_ns
    assert complete(model, raw, output, *arguments) == 2
    assert "is not empty" in capsys.readouterr().err
    assert complete(model, raw, output, *arguments, "--skip-existing") == 0
    assert "1 files made" in capsys.readouterr().out
    assert (output / "synthetic.jsonl").read_text(encoding="utf-8") == text
    assert (output / "a_0001.nii.gz").stat().st_mtime_ns == before


def test_brats_of_both_conventions(model: Path, tmp_path: Path) -> None:
    names = {"new": ("-t1n", "-t2w"), "old": ("_t1", "_t2")}
    for year, (t1, t2) in names.items():
        raw, output = tmp_path / year, tmp_path / f"{year}-completed"
        image(raw / "BraTS-001" / f"BraTS-001{t1}.nii.gz")
        image(raw / "BraTS-001" / f"BraTS-001{t1[0]}seg.nii.gz")
        assert complete(model, raw, output, "--pattern", "brats") == 0
        assert listed(output) == {f"BraTS-001/BraTS-001{t2}.nii.gz": ("T1", "T2")}
        assert (output / "BraTS-001" / f"BraTS-001{t1[0]}seg.nii.gz").is_file()


def test_bids(model: Path, tmp_path: Path) -> None:
    """The synthetic scans make a derivative data set of their own; BIDS wants raw scans not copied."""
    raw, output = tmp_path / "raw", tmp_path / "out"
    bids_scan(raw, "sub-01/anat/sub-01_acq-mprage_T1w")
    bids_scan(raw, "sub-02/ses-1/anat/sub-02_ses-1_T1w")
    bids_scan(raw, "sub-02/ses-1/anat/sub-02_ses-1_T2w")
    assert complete(model, raw, output, "--pattern", "bids") == 0
    assert listed(output) == {"sub-01/anat/sub-01_desc-synthetic_T2w.nii.gz": ("T1", "T2")}
    assert errors_of(output) == []


def test_mistakes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, output = tmp_path / "raw", tmp_path / "out"
    for channel in ("0000", "0001"):
        image(raw / f"a_{channel}.nii.gz")
    for channels, more, message in (
        ("T1=0", (), "--channels T1=0: expected T1=0000"),
        ("T9=0000", (), "the model has no domain T9; it has T1, T2, CT"),
        ("T1=0003", (), "holds no CASE_0003 image"),
        ("T1=0000,T2=0001,CT=0002", ("--from", "CT"), "a: has T1, T2, and none of --from CT"),
        ("CT=0000,T2=0001,T1=0002", (), "a: T1 could be made from CT or T2"),
        ("T1=0000,T2=0001", ("--output", str(raw / "inside")), "lies inside the data set"),
    ):
        code = complete(model, raw, output, "--pattern", "nnunet", "--channels", channels, *more)
        assert code == 2, message
        assert message in capsys.readouterr().err
        assert files(tmp_path) == ["raw/a_0000.nii.gz", "raw/a_0001.nii.gz"]
    assert complete(model, raw, output, "--pattern", "nnunet") == 2
    assert "dataset.json names no channel" in capsys.readouterr().err
    (raw / "b_0000.nii.gz").write_bytes(b"no NIfTI")
    assert complete(model, raw, output, "--pattern", "nnunet", "--channels", "T1=0000,T2=0001") == 1
    assert "1 failed:\n  b: " in capsys.readouterr().out  # the rest went on
