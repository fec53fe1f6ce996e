"""`galip-hf evaluate` on real tables and folders: what it writes and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import DOMAINS, filled_model, smooth_volume, tiny_config

from galip_hf import GalipImageProcessor
from galip_hf.cli import main
from galip_hf.data.table import SubjectVolume, write_table
from galip_hf.report import file_hash

NAMES = [domain["name"] for domain in DOMAINS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    filled_model(tiny_config()).save_pretrained(directory)
    GalipImageProcessor.from_config(tiny_config()).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two test subjects, the second without CT, and a training split."""
    volumes = [
        SubjectVolume(smooth_volume(9 * k + label), name, f"{split}-{k}", split)
        for split, numbers in (("train", (0, 1)), ("test", (2, 3)))
        for k in numbers
        for label, name in enumerate(NAMES)
        if (k, name) != (3, "CT")
    ]
    path = tmp_path_factory.mktemp("data") / "table"
    return write_table(volumes, path, domains=NAMES, image_size=None)


def test_a_model_on_a_table(model: Path, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ["evaluate", "--model", str(model), "--data", str(table), "--output", str(output)]
    assert main([*command, "--compare", str(model)]) == 2  # the same one twice
    second = shutil.copytree(model, tmp_path / "second")
    assert main([*command, "--compare", str(second)]) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["provenance"]["model_weights_sha256"] == file_hash(model / "model.safetensors")
    assert report["provenance"]["command"].startswith("galip-hf evaluate --model")
    assert report["units"]["mae"]["fixed"]["T1->CT"] == "HU"
    assert {e["reason"] for e in report["exclusions"]} == {"CT missing"}
    assert "the same in every subject" in report["comparison"]["psnr"]["directions"]["T1->T2"]["words"]
    with open(output / "subjects.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (row,) = [
        r for r in rows
        if (r["subject"], r["direction"], r["candidate"], r["protocol"], r["region"])
        == ("test-2", "T1->T2", "copy", "fixed", "masked")
    ]  # fmt: skip
    scores = report["per_subject"][0]["directions"]["T1->T2"]["copy"]["fixed"]["masked"]
    assert float(row["psnr"]) == scores["psnr"]
    index = json.loads((output / "model_index.json").read_text(encoding="utf-8"))["model-index"][0]
    assert index["results"][0]["task"]["type"] == "image-to-image"
    assert any("protocol paper v1" in m["name"] for r in index["results"] for m in r["metrics"])
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6 and "cannot see a gain error" in page
    assert "<script" not in page and 'src="http' not in page and "<link" not in page
    assert len(list((output / "panels").glob("*.png"))) == 6
    assert main(command) == 2  # there already


def test_folders_of_volumes(tmp_path: Path) -> None:
    for name in ("prediction", "target", "source"):
        (tmp_path / name).mkdir()
    for k in range(3):
        target = smooth_volume(k) * 500
        np.save(tmp_path / "target" / f"{k}.npy", target)
        np.save(tmp_path / "prediction" / f"{k}.npy", target * np.float32(0.9))
        np.save(tmp_path / "source" / f"{k}.npy", smooth_volume(k + 50) * 80)
    np.save(tmp_path / "prediction" / "more.npy", target)
    folders = [f"--{name}={tmp_path / name}" for name in ("prediction", "target", "source")]
    assert main(["evaluate", *folders, "--direction=T1->T2", f"--output={tmp_path / 'out'}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    paper = report["protocols"]["paper"]["full"]["directions"]["T1->T2"]
    fixed = report["protocols"]["fixed"]["full"]["directions"]["T1->T2"]
    assert paper["psnr"] == 100.0 and fixed["psnr"] < 35 and fixed["n"] == 3  # a gain error of 0.9
    assert report["unmatched"] == {str(tmp_path / "prediction"): ["more"]}


def test_mistakes_are_one_line(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output", str(tmp_path / "out")]
    for arguments, message in (
        ([], "nothing to evaluate"),
        (["--prediction", "x"], "belong together"),
        (["--data", str(table), "--split", "validation"], "no split 'validation'"),
        (["--data", str(table), "--ct-window", "CT=5"], "expected DOMAIN=LOW,HIGH"),
        (["--data", str(table), "--compare", "x"], "there is no first model"),
    ):
        assert main(["evaluate", *arguments, *out]) == 2
        assert message in capsys.readouterr().err
