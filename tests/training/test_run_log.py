"""The log and the trackers: what is written, and that no tracker can stop a run."""

import json
import logging
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from PIL import Image

from galip_hf import GalipError
from galip_hf.training.run_log import RunLog, StepRecord, peak_memory_bytes

ENTRIES = [
    {"step": 1, "losses": {"cycle": 0.5, "clip": -0.25}, "images_per_second": 3.0},
    {"step": 2, "validation": {"psnr T1->T2": 21.5}},
]


@pytest.fixture(autouse=True)
def state() -> None:
    PartialState()  # a trainer has one


def entries_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def fill(log: RunLog, directory: Path) -> None:
    Image.linear_gradient("L").save(directory / "grid.png")
    for entry in ENTRIES:
        log.write(entry)
    log.picture("translations", directory / "grid.png", 2)
    log.close()
    log.close()


def test_the_log_needs_no_tracker(tmp_path: Path) -> None:
    fill(RunLog(tmp_path), tmp_path)
    assert entries_of(tmp_path) == ENTRIES


def test_a_resumed_log_goes_on_from_its_step(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 4)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "los')
    log = RunLog(tmp_path, step=3)
    log.write({"step": 4, "again": True})
    assert entries_of(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_a_log_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(
        GalipError, match=r"log\.jsonl: cannot be written \(No space left on device\); make room"
    ):
        log.write({"step": 1})


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(RunLog(tmp_path, ["tensorboard"], settings={"loss_weights": {"cycle": 10.0}}), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "losses/cycle",
        "losses/clip",
        "images_per_second",
        "validation/psnr/T1_to_T2",
    }
    (scalar,) = events.Scalars("validation/psnr/T1_to_T2")
    assert (scalar.step, scalar.value) == (2, 21.5)
    assert events.Tags()["images"] == ["translations"]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fill(RunLog(tmp_path, ["wandb"]), tmp_path)
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    # A resumed run has the same identifier.
    assert written.stem == f"run-{(tmp_path / 'wandb_run_id').read_text(encoding='utf-8')}"
    deadline = time.monotonic() + 30  # its service may still be writing when the run has ended
    while b"psnr/T1_to_T2" not in written.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert b"psnr/T1_to_T2" in written.read_bytes()
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))


def test_trackio_without_a_network(tmp_path: Path) -> None:
    """In a process of its own: trackio reads where it writes when it is imported."""
    run = tmp_path / "run"
    run.mkdir()
    code = (
        "import sys; from pathlib import Path; from accelerate import PartialState; PartialState()\n"
        "from test_run_log import fill; from galip_hf.training.run_log import RunLog\n"
        "directory = Path(sys.argv[1]); fill(RunLog(directory, ['trackio'], project='tests'), directory)\n"
    )
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    environment["PYTHONPATH"] = ":".join(str(folder) for folder in Path(__file__).resolve().parents[:3])
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "not reported" not in done.stderr
    with sqlite3.connect(tmp_path / "trackio" / "tests.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    logged: dict[int, dict] = {}
    for step, metrics in rows:
        logged.setdefault(step, {}).update(json.loads(metrics))
    assert logged[1]["losses/cycle"] == 0.5 and logged[2]["validation/psnr/T1_to_T2"] == 21.5
    assert logged[2]["translations"]["_type"] == "trackio.image"


def test_a_tracker_that_is_not_installed_gives_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # as Python marks a module that is not there
    with caplog.at_level(logging.WARNING, logger="galip_hf.training.run_log"):
        fill(RunLog(tmp_path, ["trackio", "tensorboard"]), tmp_path)
    (record,) = caplog.records
    assert "trackio: not reported to any more" in record.message
    assert "pip install 'galip-hf[track]'" in record.message and "training goes on" in record.message
    assert entries_of(tmp_path) == ENTRIES
    assert list((tmp_path / "tensorboard").glob("events*"))  # the other one works


def test_a_tracker_that_cannot_start_gives_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="galip_hf.training.run_log"):
        fill(RunLog(tmp_path, ["tensorboard"]), tmp_path)
    assert len(caplog.records) == 1
    assert entries_of(tmp_path) == ENTRIES


def test_a_tracker_that_fails_to_log_gives_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLog(tmp_path, ["tensorboard"])
    with caplog.at_level(logging.WARNING, logger="galip_hf.training.run_log"):
        for step in (1, 2):
            log.picture("translations", tmp_path / "absent.png", step)
            log.write({"step": step})
    (record,) = caplog.records
    assert record.message.startswith("tensorboard: not reported to any more (")
    assert [entry["step"] for entry in entries_of(tmp_path)] == [1, 2]


def test_a_record_is_the_mean_over_its_steps() -> None:
    record = StepRecord()
    for value in (1.0, 2.0, 6.0):
        record.add({"losses": {"cycle": torch.tensor(value)}, "norms": {"generator": torch.tensor(-value)}})
        record.waited(1e-9)
    entry = record.entry(3, 8, {"generator": 2e-4}, reduce=lambda values: values + 1)
    assert (entry["step"], entry["losses"], entry["norms"]) == (3, {"cycle": 4.0}, {"generator": -2.0})
    assert entry["learning_rates"] == {"generator": 2e-4}
    assert entry["seconds_per_step"] * entry["images_per_second"] == pytest.approx(8)
    assert 0 < entry["data_wait_share"] < 1
    record.add({"losses": {"cycle": torch.tensor(7.0)}})
    assert record.entry(4, 8, {})["losses"] == {"cycle": 7.0}  # it starts anew


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(40_000_000)  # 160 MB
    after = peak_memory_bytes(torch.device("cpu"))
    del held
    assert 50e6 < before <= after <= peak_memory_bytes(torch.device("cpu")) < 200e9
    assert json.loads(json.dumps(after)) == after
