"""`galip-hf evaluate` on real tables and folders: what it writes and what it refuses."""

import csv
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import DOMAINS, MakeTrainer, smooth_volume

from galip_hf.cli import main
from galip_hf.data.paired_subjects import TableSubjects
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.evaluation.case_figures import choose_cases
from galip_hf.files import file_hash

NAMES = [domain["name"] for domain in DOMAINS]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def model(model_directory: Path) -> Path:
    return model_directory


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two test subjects, the second without CT, and a training split."""
    volumes = [
        SubjectVolume(smooth_volume(9 * k + label, slices=6), name, f"{split}-{k}", split)
        for split, numbers in (("train", (0, 1)), ("test", (2, 3)))
        for k in numbers
        for label, name in enumerate(NAMES)
        if (k, name) != (3, "CT")
    ]
    path = tmp_path_factory.mktemp("data") / "table"
    return write_table(volumes, path, domains=NAMES, image_size=None)


def test_a_checkpoint_of_a_run(
    make_trainer: MakeTrainer, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(max_steps=2, checkpoint_steps=1)
    trainer.train()
    run, output = tmp_path / "run", tmp_path / "out"
    command = ["evaluate", "--data", str(table), "--output", str(output)]
    assert main([*command, "--model", str(run), "--checkpoint", "2", "--compare", str(run / "model")]) == 0
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    # The last checkpoint is the model that was saved.
    comparison = report["comparison"]["psnr"]["directions"]
    assert all(cell["mean_a"] == pytest.approx(cell["mean_b"], rel=1e-6) for cell in comparison.values())
    assert report["provenance"]["checkpoint"] == 2
    weights = run / "checkpoints" / "step-00000002" / "ema.safetensors"
    assert report["provenance"]["model_weights_sha256"] == file_hash(weights)
    capsys.readouterr()
    assert main([*command, "--model", str(run), "--checkpoint", "3", "--overwrite"]) == 2
    assert "no checkpoint of step 3; it has 1, 2" in capsys.readouterr().err
    assert main([*command, "--checkpoint", "1", "--overwrite"]) == 2
    assert "--checkpoint: give the output_dir" in capsys.readouterr().err


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
    assert page.count("data:image/webp;base64,") == 6 + 8 and "cannot see a gain error" in page
    assert '<div class="verdict bad">' in page and report["verdict"]["says"] in page.replace("&gt;", ">")
    assert page.index("verdict bad") < page.index("<h1>")
    (entry,) = [e for e in report["manifest"] if e["subject"] == "test-2"]
    rows = TableSubjects(load_table(table)["test"], NAMES)[0]["T1"]
    assert entry["data"]["T1"]["sha256"] == hashlib.sha256(rows.tobytes()).hexdigest()
    assert page.count("<svg") == 6  # box plots
    assert "<script" not in page and 'src="http' not in page and "<link" not in page
    assert len(list((output / "panels").glob("*.png"))) == 6
    assert main(command) == 2  # there already


def write_folders(prediction: Path, target: Path, source: Path) -> None:
    """Three volumes, the prediction 0.9 of the target."""
    for folder in (prediction, target, source):
        folder.mkdir()
    for k in range(3):
        volume = smooth_volume(k) * 500
        np.save(target / f"{k}.npy", volume)
        np.save(prediction / f"{k}.npy", volume * np.float32(0.9))
        np.save(source / f"{k}.npy", smooth_volume(k + 50) * 80)


def test_the_commands_of_the_page(
    model: Path, table: Path, clip_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    volumes = [
        SubjectVolume(smooth_volume(5 * k + label, slices=3), name, f"{name}-{k}", split)
        for k, split in enumerate(("train", "test", "test"))
        for label, name in enumerate(NAMES)
    ]
    write_table(volumes, "UNPAIRED", domains=NAMES, image_size=None)
    shutil.copytree(model, "MODEL2")
    for name, path in (("MODEL", model), ("TABLE", table), ("CLIP", clip_directory)):
        Path(name).symlink_to(path)
    write_folders(Path("PREDICTIONS"), Path("TARGETS"), Path("SOURCES"))
    (block,) = re.findall(r"```bash\n(galip-hf evaluate.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    reports = []
    for command in block.splitlines():
        assert main(shlex.split(command, comments=True)[1:]) == 0, command
        page = Path("report/report.html").read_text(encoding="utf-8")
        if "UNPAIRED" in command:
            assert "There are no pairs" in page
        else:
            assert "source copied" in page and Path("report/subjects.csv").is_file()
        reports.append(json.loads(Path("report/report.json").read_text(encoding="utf-8")))
        shutil.rmtree("report")
    alone, compared, baselines, folders, clip, more, synthrad, unpaired = reports
    assert alone["distribution"] == {"left_out": "no CLIP model was given (--clip SOURCE)"}
    assert compared["comparison"]["b"] == "MODEL2" and not baselines["perceptual"]
    assert folders["summary"]["baselines"]["copy"]["psnr"] < folders["summary"]["model"]["psnr"]
    cell = clip["distribution"]["directions"]["T1->T2"]
    assert (cell["n_real"], cell["n_fake"]) == (12, 12) and isinstance(cell["kid"], float)
    assert "n = 12 is not above" in cell["fid_reason"]
    assert set(more["measures"]) == {"ms-ssim", "nmse", "nmi", "displacement", "ct tissues"}
    assert set(synthrad["measures"]) == {"synthrad2025", "ct tissues"}
    assert set(synthrad["measures"]["synthrad2025"]["directions"]) == {"T1->CT", "T2->CT"}
    assert unpaired["kind"] == "unpaired" and len(unpaired["directions"]) == 6
    assert clip["summary"] == alone["summary"] == more["summary"]  # FID and KID beside the same scores


def test_cases_are_the_best_the_middle_one_and_the_worst() -> None:
    def report(*psnr: float) -> dict:
        scores = [{"model": {"fixed": {"masked": {"psnr": value}}}} for value in psnr]
        return {"per_subject": [{"directions": {"a->b": its}} for its in scores]}

    several = choose_cases(report(20.0, 30.0, 10.0, 25.0, 15.0), "a->b")
    assert several == {"best": (1, 30.0), "median": (0, 20.0), "worst": (2, 10.0)}
    assert choose_cases(report(20.0, 30.0), "a->b") == {"best": (1, 30.0), "worst": (0, 20.0)}
    assert choose_cases(report(20.0), "a->b") == {"only": (0, 20.0)}
    assert choose_cases(report(20.0), "b->a") == {}


def test_folders_of_volumes(tmp_path: Path) -> None:
    write_folders(*(tmp_path / name for name in ("prediction", "target", "source")))
    np.save(tmp_path / "prediction" / "more.npy", smooth_volume(2))
    folders = [f"--{name}={tmp_path / name}" for name in ("prediction", "target", "source")]
    assert main(["evaluate", *folders, "--direction=T1->T2", f"--output={tmp_path / 'out'}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    paper = report["protocols"]["paper"]["full"]["directions"]["T1->T2"]
    fixed = report["protocols"]["fixed"]["full"]["directions"]["T1->T2"]
    assert paper["psnr"] == 100.0 and fixed["psnr"] < 35 and fixed["n"] == 3  # a gain error of 0.9
    assert report["unmatched"] == {"prediction": ["more"]}  # named without the folders above


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
