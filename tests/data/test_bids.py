"""BIDS names in, BIDS names out."""

import json
from pathlib import Path

import pytest

from galip_hf import GalipError
from galip_hf.data.bids import check_derivative, find_scans_of, synthetic_path, write_dataset_files
from galip_hf.data.contrasts import contrast_of, domains_by_contrast


def test_raw_scans_are_found_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_ce-gad_T1w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_acq-x_run-2_FLAIR.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_part-phase_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_desc-preproc_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.json",
        "sub-02/ses-b/func/sub-02_ses-b_T1w.nii.gz",
        "derivatives/other/sub-01/anat/sub-01_T1w.nii.gz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(GalipError, match=r"no dataset_description\.json"):
        find_scans_of(tmp_path)
    (tmp_path / "dataset_description.json").write_text("{}", encoding="utf-8")
    scans = find_scans_of(tmp_path)
    assert [scan.contrast for scan in scans] == ["T1", "T1c", "FLAIR"]
    assert scans[2].session == ("02", "b") and scans[0].session == ("01", "")
    assert scans[0].uri == "bids:source:sub-01/anat/sub-01_T1w.nii.gz"
    assert synthetic_path(scans[2].entities, "T2").as_posix() == (
        "sub-02/ses-b/anat/sub-02_ses-b_acq-x_run-2_desc-synthetic_T2w.nii.gz"
    )
    # The agent is that of the target: lost on the way to T2, gained on the way to T1c, in its place.
    assert synthetic_path(scans[1].entities, "T2").name == "sub-01_desc-synthetic_T2w.nii.gz"
    assert synthetic_path(scans[2].entities, "T1ce").name == (
        "sub-02_ses-b_acq-x_ce-gadolinium_run-2_desc-synthetic_T1w.nii.gz"
    )
    with pytest.raises(GalipError, match="domain PET: has no suffix in BIDS"):
        synthetic_path(scans[0].entities, "PET")


def test_names_of_contrasts() -> None:
    assert [contrast_of(name) for name in ("t1n", "T1ce", "T2-FLAIR", "PDw", "T2star")] == [
        *("T1", "T1c", "FLAIR", "PD"),
        None,
    ]
    assert domains_by_contrast(["T1w", "CBCT", "ct"]) == {"T1": "T1w", "CT": "ct"}
    with pytest.raises(GalipError, match="T1 and T1w both mean T1"):
        domains_by_contrast(["T1", "T1w"])


def test_a_foreign_data_set_is_not_written_into(tmp_path: Path) -> None:
    raw, output = tmp_path / "raw", tmp_path / "raw" / "derivatives" / "galip"
    output.mkdir(parents=True)
    description = {"Name": "N", "DatasetDOI": "doi:10.1/x", "License": "CC0"}
    (raw / "dataset_description.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(GalipError, match="is the raw data set"):
        check_derivative(raw, raw)
    check_derivative(output, raw)
    write_dataset_files(output, raw, "user/model")
    check_derivative(output, raw)  # ours: more may be added
    written = json.loads((output / "dataset_description.json").read_text(encoding="utf-8"))
    assert written["License"] == "CC0" and written["SourceDatasets"] == [{"DOI": "doi:10.1/x"}]
    assert written["DatasetLinks"] == {"source": "../.."}
    written["GeneratedBy"][0]["Name"] = "fMRIPrep"
    (output / "dataset_description.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(GalipError, match="not made by galip-hf"):
        check_derivative(output, raw)
