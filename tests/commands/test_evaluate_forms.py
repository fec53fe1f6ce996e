"""`galip-hf evaluate` on data of other forms: without pairs, with masks, lesions and segmentations, as CT."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import DOMAINS, smooth_volume

from galip_hf.cli import main
from galip_hf.data import phantom
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.evaluation.metrics import fixed_scores
from galip_hf.evaluation.synthrad import synthrad_scores
from galip_hf.files import file_hash

NAMES = [domain["name"] for domain in DOMAINS]
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
REAL = os.environ.get("GALIP_HF_TEST_DATA")


def read_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def write(path: Path, volume: np.ndarray) -> None:
    """(S, H, W) in display order as a NIfTI file that is read back as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.flip(volume.transpose(2, 1, 0), (0, 1)), AFFINE), path)


def head(seed: int, contrast: str) -> np.ndarray:
    return phantom.render(phantom.make_subject(seed, size=48, slices=5), contrast)


@pytest.fixture(scope="module")
def unpaired_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each subject has one domain."""
    volumes = [
        SubjectVolume(smooth_volume(9 * k + label, slices=4), name, f"{split}-{k}-{name}", split)
        for split, numbers in (("train", (0, 1)), ("test", (2, 3)))
        for k in numbers
        for label, name in enumerate(NAMES)
    ]
    return write_table(volumes, tmp_path_factory.mktemp("data") / "table", domains=NAMES, image_size=None)


def test_a_table_without_pairs_gets_a_report(
    model_directory: Path, unpaired_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--model", str(model_directory), "--data", str(unpaired_table)]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    report = read_report(tmp_path / "out")
    assert report["kind"] == "unpaired" and len(report["directions"]) == 6
    cell = report["directions"]["T1->CT"]
    assert (cell["subjects_fake"], cell["subjects_real"]) == (2, 2)
    assert [row["name"] for row in cell["histogram"]["classes"]] == ["air", "soft tissue", "bone"]
    assert cell["cycle_error"] > 0 and cell["identity_ratio"] > 0 and cell["cycle_error_sd"] is not None
    assert report["clip"]["left_out"].startswith("no CLIP model")
    assert len(report["manifest"]) == 6 and "evaluated without pairs" in report["notes"][0]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.index('class="verdict') < page.index("<h1>") and page.count("data:image/webp") == 12
    assert "There are no pairs" in capsys.readouterr().out
    for arguments, message in (
        ([*command, "--measures", "nmi"], "--measures: needs subjects with two domains"),
        (["evaluate", "--data", str(unpaired_table)], "no baseline to score"),
    ):
        assert main([*arguments, "--output", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_clip_joins_a_report_without_pairs(
    model_directory: Path, unpaired_table: Path, clip_directory: Path, tmp_path: Path
) -> None:
    command = ["evaluate", "--model", str(model_directory), "--data", str(unpaired_table)]
    assert main([*command, "--clip", str(clip_directory), "--output", str(tmp_path / "out")]) == 0
    cell = read_report(tmp_path / "out")["directions"]["T1->T2"]["clip"]
    assert cell["n_real"] == cell["n_fake"] == 8 and isinstance(cell["kid"], float)


def test_folders_that_share_no_name_are_compared_without_pairs(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / "source" / f"a{k}.nii.gz", head(800 + k, "T1"))
        write(tmp_path / "prediction" / f"a{k}.nii.gz", head(800 + k, "T2") * np.float32(3))
        write(tmp_path / "target" / f"b{k}.nii.gz", head(820 + k, "T2"))
    folders = [f"--{name}={tmp_path / name}" for name in ("prediction", "target", "source")]
    assert main(["evaluate", *folders, "--direction=T1->T2", f"--output={tmp_path / 'out'}"]) == 0
    report = read_report(tmp_path / "out")
    cell = report["directions"]["T1->T2"]
    assert cell["histogram"]["distance"] < cell["histogram"]["copy"]["distance"]
    assert cell["identity_ratio"] > 0.5 and cell["cycle_error"] is None
    assert report["classifier"]["directions"]["T1->T2"]["as_target"] > 0.9
    hashes = {item["data"][role]["sha256"] for item in report["manifest"] for role in item["data"]}
    assert file_hash(tmp_path / "prediction" / "a1.nii.gz") in hashes and len(hashes) == 9
    # Where names are shared, pairs are set aside on request only.
    write(tmp_path / "target" / "a0.nii.gz", head(800, "T2"))
    assert main(["evaluate", *folders, f"--output={tmp_path / 'paired'}"]) == 0
    assert read_report(tmp_path / "paired")["subjects"] == 1
    assert main(["evaluate", *folders, "--unpaired", f"--output={tmp_path / 'aside'}"]) == 0
    assert read_report(tmp_path / "aside")["kind"] == "unpaired"


def test_masks_lesions_and_segmentations_of_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("monai")
    target, source = head(830, "T2"), head(830, "T1")
    prediction = target.copy()
    prediction[2, 20:26, 20:26] *= np.float32(1.5)
    mask, lesions, labels = (np.zeros(target.shape, np.uint8) for _ in range(3))
    mask[:, 10:38, 12:36] = 1
    lesions[2, 20:26, 20:26] = 1
    labels[1:4, 15:30, 15:30] = 1
    labels[2, 30:34, 15:30] = 7
    shifted = np.roll(labels, 1, axis=2)
    for folder, volume in (
        ("prediction", prediction), ("target", target), ("source", source), ("mask", mask),
        ("lesions", lesions), ("labels/target", labels), ("labels/prediction", shifted),
    ):  # fmt: skip
        write(tmp_path / folder / "a.nii.gz", volume)
    folders = [
        f"--{name}={tmp_path / name}" for name in ("prediction", "target", "source", "mask", "lesions")
    ]
    options = [f"--segmentations={tmp_path / 'labels'}", "--measures", "nmi", "displacement"]
    assert main(["evaluate", *folders, *options, f"--output={tmp_path / 'out'}"]) == 0
    report = read_report(tmp_path / "out")
    (subject,) = report["per_subject"]
    scores = subject["directions"]["source->target"]
    expected = fixed_scores(prediction, target, mask=mask.astype(bool))["masked"]
    assert subject["mask"] == "given"
    assert scores["model"]["fixed"]["masked"]["psnr"] == pytest.approx(expected.psnr, abs=1e-3)
    assert scores["worst_slice"]["index"] == 2
    groups = scores["measures"]
    assert set(groups) == {"nmi", "displacement", "lesions", "segmentations"}
    assert groups["lesions"]["lesions"] == 1.0 and groups["displacement"]["median"] < 0.3
    overlap = 2 * (labels[labels == shifted] == 1).sum() / ((labels == 1).sum() + (shifted == 1).sum())
    assert groups["segmentations"]["dice 1"] == pytest.approx(overlap)
    assert groups["segmentations"]["hd95 7"] == pytest.approx(1.0)
    assert report["measures"]["segmentations"]["directions"]["source->target"]["dice 7"]["n"] == 1
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (
        "Blind to:" in page
        and "dice 7" in page
        and report["manifest"][0]["data"]["mask"]["sha256"] in str(report)
    )
    # The same label maps, made by a command for each file.
    script = tmp_path / "segment.py"
    script.write_text(
        "import shutil, sys\nfrom pathlib import Path\n"
        f"labels = Path({str(tmp_path / 'labels')!r})\n"
        "shutil.copy(labels / Path(sys.argv[1]).parent.name / 'a.nii.gz', sys.argv[2])\n",
        encoding="utf-8",
    )
    made = f"--segment={sys.executable} {script} {{input}} {{output}}"
    assert main(["evaluate", *folders, made, f"--output={tmp_path / 'made'}"]) == 0
    again = read_report(tmp_path / "made")["per_subject"][0]["directions"]["source->target"]["measures"]
    assert again["segmentations"] == groups["segmentations"]
    capsys.readouterr()
    for command, message in (
        (f"{sys.executable} -c raise(ValueError(5)) {{input}} {{output}}", "ended with 1"),
        ("/no/such/segmenter {input} {output}", "cannot be started"),
        ("segmenter {input}", "expected {input} and {output}"),
    ):
        assert main(["evaluate", *folders, f"--segment={command}", f"--output={tmp_path / 'no'}"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "no").exists()


def test_synthrad2025_and_tissues_of_ct_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng([6])
    target = np.full((6, 40, 44), -1000.0)
    target[:, 6:34, 6:38] = 40 + 20 * rng.normal(size=(6, 28, 32))
    target[:, 15:20, 10:16] = 900
    prediction = target + 30 * rng.normal(size=target.shape)
    for folder, volume in (("prediction", prediction), ("target", target)):
        write(tmp_path / folder / "a.nii.gz", volume.astype(np.float32))
    mask = np.zeros(target.shape, np.uint8)
    mask[:, 5:35, 5:39] = 1
    write(tmp_path / "target" / "a_mask.nii.gz", mask)
    folders = ["evaluate", f"--prediction={tmp_path / 'prediction'}", f"--target={tmp_path / 'target'}"]
    options = ["--protocol=synthrad2025", "--direction=MR->CT"]
    assert main([*folders, *options, f"--output={tmp_path / 'no'}"]) == 2
    assert "give --ct-window" in capsys.readouterr().err
    window = "--ct-window=CT=-1024,3071"
    assert main([*folders, *options, window, f"--output={tmp_path / 'out'}"]) == 0
    report = read_report(tmp_path / "out")
    groups = report["per_subject"][0]["directions"]["MR->CT"]["measures"]
    expected = synthrad_scores(
        prediction.astype(np.float32).astype(float),
        target.astype(np.float32).astype(float),
        mask.astype(bool),
    )
    for name, value in expected.items():
        assert groups["synthrad2025"][name] == pytest.approx(value, rel=1e-4)
    bone = target >= 200
    assert groups["ct tissues"]["mae, bone"] == pytest.approx(
        np.abs(prediction - target)[bone].mean(), rel=1e-3
    )
    assert "17cac47" in report["measures"]["synthrad2025"]["says"]


@pytest.mark.skipif(not REAL, reason="GALIP_HF_TEST_DATA is not set")
def test_another_systems_outputs_on_real_files(tmp_path: Path) -> None:
    """The MNI average T1 inverted, saved in another orientation, against the average T2."""
    folder = Path(str(REAL)) / "mni152_2mm"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    source, target = (nib.load(folder / f"avg152{name}.nii") for name in ("T1", "T2"))
    values = source.get_fdata()
    inverted = np.where(values > 0.1 * values.max(), 1.1 * values.max() - values, 0)
    inverted *= np.percentile(target.get_fdata(), 99.5) / np.percentile(inverted, 99.5)
    image = nib.Nifti1Image(inverted.astype(np.float32), source.affine)
    for name in ("prediction", "target", "source"):
        (tmp_path / name).mkdir()
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(source.affine), nib.orientations.axcodes2ornt("SRP")
    )
    nib.save(image.as_reoriented(turn), tmp_path / "prediction" / "avg152.nii.gz")
    nib.save(target, tmp_path / "target" / "avg152.nii.gz")
    nib.save(source, tmp_path / "source" / "avg152.nii.gz")
    folders = [f"--{name}={tmp_path / name}" for name in ("prediction", "target", "source")]
    assert main(["evaluate", *folders, "--direction=T1->T2", f"--output={tmp_path / 'out'}"]) == 0
    report = read_report(tmp_path / "out")
    cells = report["protocols"]["fixed"]["masked"]
    assert 5 < cells["directions"]["T1->T2"]["psnr"] < 30
    truth = target.get_fdata().transpose(2, 1, 0)[:, ::-1]  # display order, up to left and right
    made = inverted.transpose(2, 1, 0)[:, ::-1]
    expected = fixed_scores(made, truth)["full"].mae
    assert report["protocols"]["fixed"]["full"]["directions"]["T1->T2"]["mae"] == pytest.approx(
        expected, rel=1e-3
    )
