"""What identifies a patient or a user is in no output: texts of headers, and folders above the data.

A marker is written into every text of a header that the format has and into the folder above the scans, and
looked for in everything that is written. The names of scans themselves are in the names of the outputs.
"""

import csv
import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import write_series
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import dictionary_VR, keyword_dict

from galip_hf.cli import main
from galip_hf.evaluation.report import write_subjects_csv
from galip_hf.prepare.card import card_text

PHANTOM_MODEL = Path(__file__).parents[2] / "examples" / "phantom_model"
MARK = "SECRET"
_TEXT_TYPES = ("LO", "SH", "PN", "LT", "ST", "UT", "UC", "CS", "AE")
# What the image itself is read by.
_NEEDED = ("PhotometricInterpretation", "SpecificCharacterSet", "Modality", "ImageType", "RescaleType")


def head() -> np.ndarray:
    """(X, Y, Z) whole numbers: a noisy box in air."""
    array = np.zeros((32, 32, 3), np.int16)
    array[4:28, 4:28] = np.random.default_rng(0).integers(100, 900, (24, 24, 3))
    return array


def marked_dicom(folder: Path) -> None:
    """A series with the marker in every text element that a data set can have."""
    texts = [
        word
        for word, tag in keyword_dict.items()
        if tag >> 16 >= 8 and dictionary_VR(word) in _TEXT_TYPES and word not in _NEEDED
    ]
    for path in write_series(folder, slices=2):
        image = pydicom.dcmread(path)
        for word in texts:
            setattr(image, word, MARK)
        image.private_block(0x0009, MARK, create=True).add_new(1, "LO", MARK)
        image.save_as(path)


def write_marked(folder: Path) -> None:
    """Scans of several formats, with the marker in all their texts."""
    image = nib.Nifti1Image(head(), np.diag([4.0, 4, 4, 1]))
    for name in ("descrip", "data_type", "db_name", "aux_file", "intent_name"):
        image.header[name] = MARK
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", MARK.encode()))
    nib.save(image, folder / "a.nii.gz")
    itk_image = sitk.GetImageFromArray(head().T)
    itk_image.SetMetaData(MARK, MARK)
    sitk.WriteImage(itk_image, str(folder / "b.nrrd"))
    info = PngInfo()
    info.add_text("Comment", MARK)
    picture = Image.fromarray((head()[..., 1] // 4).astype(np.uint8))
    picture.save(folder / "c.png", pnginfo=info)
    picture.save(folder / "d.tif", description=MARK)
    marked_dicom(folder / "series")


def found(folder: Path) -> list[str]:
    """The files whose content, uncompressed, has the marker."""
    hits = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            content += gzip.decompress(content) if path.suffix == ".gz" else b""
            hits += [path.name] if MARK.encode() in content or str(folder.parent).encode() in content else []
    return hits


def test_no_output_of_translate_names_a_patient_or_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / MARK / "scans"
    scans.mkdir(parents=True)
    write_marked(scans)
    options = [
        "--model",
        str(PHANTOM_MODEL),
        "--force",
        "--from",
        "T1",
        "--to",
        "T2",
        "--figure",
        "--geometry",
        "native",
    ]
    assert main(["translate", str(scans), *options, "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.json"))) == 5
    assert found(tmp_path / "out") == []
    report = json.loads((tmp_path / "out" / "a_T2.json").read_text())
    assert (report["input"], report["model"]) == ("a.nii.gz", PHANTOM_MODEL.name)
    told = capsys.readouterr()
    assert MARK not in told.out + told.err
    # On request.
    full = ["--output", str(tmp_path / "full.npy"), "--full-paths"]
    assert main(["translate", str(scans / "c.png"), *options, *full]) == 0
    assert json.loads((tmp_path / "full.json").read_text())["input"] == str(scans / "c.png")


def test_no_report_of_an_evaluation_names_a_folder(tmp_path: Path) -> None:
    folders = [tmp_path / MARK / name for name in ("prediction", "target")]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for subject in ("=1+1", "<script>"):
            nib.save(nib.Nifti1Image(head() + number, np.diag([4.0, 4, 4, 1])), folder / f"{subject}.nii.gz")
    given = [word for folder in folders for word in (f"--{folder.name}", str(folder))]
    assert main(["evaluate", *given, "--output", str(tmp_path / "out")]) == 0
    assert found(tmp_path / "out") == []
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;" in page and "<script>.nii" not in page and "<td><script>" not in page
    with (tmp_path / "out" / "subjects.csv").open() as file:
        assert {row["subject"] for row in csv.DictReader(file)} == {"'=1+1", "<script>"}


def test_a_subjects_name_does_not_leave_its_block_of_a_card(tmp_path: Path) -> None:
    name = "x\n```\n<script>alert(1)</script>\n````"
    excluded = [{"subject": name, "domain": "T1", "slices": None, "reason": "unreadable"}]
    summary = {"splits": {}, "slice_shape": [4, 4], "excluded": excluded}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    lines = card_text(tmp_path, "table").splitlines()
    begin = lines.index("`````text")
    assert begin < lines.index("<script>alert(1)</script>") < lines.index("`````", begin)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=x", "\r\n=x"])
def test_no_cell_of_a_csv_is_a_formula(name: str, tmp_path: Path) -> None:
    region = {"psnr": -1.0, "ssim": 0.5, "mae": 0.1}
    scores = {
        "model": {"paper": {"full": region, "masked": region}, "fixed": {"full": region, "masked": region}}
    }
    report = {"per_subject": [{"subject": name, "directions": {name: scores}}]}
    shown = "'" + re.sub(r"\s", " ", name)
    path = write_subjects_csv({name: report}, tmp_path / "subjects.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["subject"], row["direction"], row["candidate"]) for row in rows} == {(shown,) * 3}
    assert {row["psnr"] for row in rows} == {"-1.0"}  # numbers stay numbers
