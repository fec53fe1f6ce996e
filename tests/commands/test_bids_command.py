"""`galip-hf translate --bids`: a data set in, a valid derivative data set out."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from galip_hf.cli import main

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


def bids_scan(root: Path, name: str, **sidecar: object) -> Path:
    path = root / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    array = np.random.default_rng(len(name)).random((14, 12, 3)).astype(np.float32)
    image = nib.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    (root / f"{name}.json").write_text(json.dumps(sidecar), encoding="utf-8")
    return path


def errors_of(root: Path) -> list[str]:
    """What the schema validator of the BIDS maintainers finds wrong."""
    if not VALIDATOR.is_file():
        pytest.skip("pip install 'galip-hf[test]' (bids-validator-deno)")
    done = subprocess.run([VALIDATOR, root, "--format", "json"], capture_output=True, encoding="utf-8")
    result = json.loads(done.stdout)
    assert result["summary"]["totalFiles"] >= 4  # it has looked at the data set
    return [
        f"{issue['location']}: {issue['code']}"
        for issue in result["issues"]["issues"]
        if issue["severity"] == "error"
    ]


def test_a_valid_derivative_data_set(
    model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, output = tmp_path / "raw", tmp_path / "raw" / "derivatives" / "galip"
    bids_scan(raw, "sub-01/anat/sub-01_T1w", SkullStripped=True)
    bids_scan(raw, "sub-02/ses-1/anat/sub-02_ses-1_run-1_T1w")
    bids_scan(raw, "sub-02/ses-1/anat/sub-02_ses-1_T2w")
    command = ["translate", str(raw), "--bids", "--model", str(model_directory), "--output", str(output)]
    assert main([*command, "--to", "T2"]) == 2
    assert "--bids: needs --from" in capsys.readouterr().err
    assert main([*command, "--from", "CT", "--to", "T2"]) == 2
    assert "holds no CT scan" in capsys.readouterr().err
    assert not output.exists()
    assert main([*command, "--from", "T1", "--to", "T2,CT", "--cycle-map", "--figure"]) == 0
    name = "sub-02/ses-1/anat/sub-02_ses-1_run-1_desc-synthetic"
    sidecar = json.loads((output / f"{name}_T2w.json").read_text(encoding="utf-8"))
    assert sidecar["Sources"] == ["bids:source:sub-02/ses-1/anat/sub-02_ses-1_run-1_T1w.nii.gz"]
    assert sidecar["SkullStripped"] is False and sidecar["target"] == "T2"
    other = json.loads((output / "sub-01/anat/sub-01_desc-synthetic_CT.json").read_text(encoding="utf-8"))
    assert other["SkullStripped"] is True  # as the raw sidecar says
    assert nib.load(output / f"{name}_T2w.nii.gz").shape == (14, 12, 3)
    assert errors_of(output) == []
    assert main([*command, "--from", "T1", "--to", "T2"]) == 2
    assert "already exists" in capsys.readouterr().err
