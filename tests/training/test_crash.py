"""Runs that end badly: killed at random moments, a full disk, signals, losses that are not finite."""

import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeTrainer, tiny_run_recipe
from test_trainer import state_of

from galip_hf import GalipError
from galip_hf.cli import main
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.training.checkpoint_files import latest_checkpoint, load_state, load_tensors
from galip_hf.training.nonfinite_guard import FiniteGuard
from galip_hf.training.step import first_gradient
from galip_hf.training.step_loader import told_if_killed
from galip_hf.training.trainer import GalipTrainer

KILLS = 12
# Forked: the child has all imports done, and is killed in the middle of training, not of starting.
FORK = multiprocessing.get_context("fork")


def saved_step(checkpoints: Path) -> int:
    """Step of the latest checkpoint, 0 where there is none."""
    return max((int(path.name[5:]) for path in checkpoints.glob("step-*")), default=0)


def killed(make_trainer: MakeTrainer, more_steps: int, seconds: float, **arguments: Any) -> bool:
    """Train in a process that is killed `seconds` after it saved `more_steps` steps; False when it ended."""
    checkpoints = Path(arguments["output_dir"]) / "checkpoints"
    began, child_began = FORK.Pipe(duplex=False)

    def run() -> None:
        trainer = make_trainer(resume=True, **arguments)
        child_began.send(True)
        trainer.train()
        os._exit(0)

    process = FORK.Process(target=run)
    goal = saved_step(checkpoints) + more_steps
    process.start()
    began.recv()
    while saved_step(checkpoints) < goal and process.is_alive():
        time.sleep(0.005)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_a_run_killed_a_dozen_times_ends_as_an_unbroken_one(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    steps = {"max_steps": 40, "checkpoint_steps": 1, "logging_steps": 7, "batch_size": 1}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **steps)
    whole.train()
    rng = np.random.default_rng(3)
    cut = {**steps, "output_dir": str(tmp_path / "killed")}
    reached = []
    for _ in range(KILLS):
        # From the very start to some steps later; saving takes about half of the time.
        assert killed(make_trainer, int(rng.integers(0, 3)), rng.uniform(0, 0.2), **cut), "ended too soon"
        path = latest_checkpoint(tmp_path / "killed" / "checkpoints")
        reached.append(load_state(path)["step"] if path else 0)
    assert reached == sorted(reached)
    assert len(set(reached)) > 3
    resumed = make_trainer(resume=True, **cut)
    resumed.train()
    expected, found = state_of(whole), state_of(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    logs = [
        [
            json.loads(line)
            for line in (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for name in ("whole", "killed")
    ]
    assert [(e["step"], e["losses"]) for e in logs[0]] == [(e["step"], e["losses"]) for e in logs[1]]
    left = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert left == ["step-00000039", "step-00000040"]


def killed_at(call: int, trainer: GalipTrainer) -> bool:
    """Save a checkpoint in a process that is killed at one of its writes; False if it has fewer."""

    def run() -> None:
        seen = 0

        def kill(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
                seen += 1
                if seen > call:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        trainer.save_checkpoint()
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_a_save_that_is_killed_anywhere_leaves_a_whole_checkpoint(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    keep_one = {"max_steps": 2, "total_limit": 1}  # the hardest case: none other to fall back to
    make_trainer(checkpoint_steps=1, **keep_one).train()
    trainer = make_trainer(resume=True, **keep_one)
    trainer._resume()
    checkpoints, reached = tmp_path / "run" / "checkpoints", []
    for call in range(100):
        trainer.state.step = 3 + call
        was_killed = killed_at(call, trainer)
        latest = latest_checkpoint(checkpoints)
        assert latest is not None
        reached.append(load_state(latest)["step"] == trainer.state.step)
        for path in checkpoints.glob("step-*"):  # none that is there is half there
            load_state(path)
            for name in (
                "generator",
                "discriminator",
                "ema",
                "generator_optimizer",
                "discriminator_optimizer",
            ):
                load_tensors(path, name)
        if not was_killed:
            break
    assert not was_killed and len(reached) > 10
    # Once it is there, it is there.
    assert reached == sorted(reached) and reached[0] is False
    assert len(list(checkpoints.iterdir())) == 1


def test_a_full_disk_is_told_and_the_earlier_checkpoint_stays(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=2, checkpoint_steps=2)
    trainer.train()
    checkpoints = tmp_path / "run" / "checkpoints"
    before = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    trainer.state.step = 3
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file grows beyond: as on a full disk
    try:
        with pytest.raises(GalipError, match=r"step-00000003: cannot be written \(.+earlier ones are whole"):
            trainer.save_checkpoint()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()} == before


def test_a_disk_that_is_full_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While data and CLIP model are made: one line, nothing half-written."""
    monkeypatch.chdir(tmp_path)
    text = "clip: {tiny: {image_size: 32, patch_size: 8, width: 32, subjects: 1, steps: 1, batch_size: 2}}\n"
    text += "data: {phantom: {train_subjects: 1, validation_subjects: 1, size: 32, slices: 2}}\n"
    Path("recipe.yaml").write_text(text + "training: {output_dir: run}\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert main(["train", "recipe.yaml"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("galip-hf: error: run") and "cannot be written (File too large)" in last
    assert list(Path("run").rglob("*")) == []


class Deadly(UnpairedSlices):
    """Reading an item kills the worker, as a system short of memory does."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_worker_is_one_line(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(num_workers=1)
    trainer.loader.dataset.__class__ = Deadly
    with (
        pytest.raises(GalipError, match="a worker process that reads slices was killed") as caught,
        told_if_killed(),
    ):
        trainer.train()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_ends_the_command(
    name: str,
    tmp_path: Path,
    table_directory: Path,
    clip_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    recipe = tiny_run_recipe(
        tmp_path / "recipe.yaml", table_directory, clip_directory, max_steps=100000, logging_steps=5
    )

    def send() -> None:
        while not (output / "log.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.Signals[name])

    before = signal.getsignal(signal.Signals[name])
    threading.Thread(target=send, daemon=True).start()
    code = main(["train", str(recipe)])
    assert code == 128 + signal.Signals[name]
    assert f"{name}; go on with training.resume=true" in capsys.readouterr().err
    path = latest_checkpoint(output / "checkpoints")
    assert path is not None and load_state(path)["step"] >= 5
    assert signal.getsignal(signal.Signals[name]) is before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_all_processes_of_a_job_finds_the_workers_in_peace(
    name: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def run() -> None:
        os.setsid()
        trainer = make_trainer(max_steps=100_000, logging_steps=5, num_workers=2)
        trainer.train()
        assert trainer.stopped_by == name  # and the process ends: its workers hear of it

    process = FORK.Process(target=run)
    process.start()
    log = tmp_path / "run" / "log.jsonl"
    while not log.exists():
        time.sleep(0.05)
    assert process.pid is not None
    os.killpg(process.pid, signal.Signals[name])
    process.join(60)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.exitcode == 0
    path = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert path is not None and load_state(path)["step"] >= 5


# Not finite


def poison(trainer: GalipTrainer, items: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some items of an epoch hold NaN."""
    original = UnpairedSlices.__getitem__

    def read(self: UnpairedSlices, index: int) -> dict[str, Any]:
        item = original(self, index)
        if index in items:
            item["image_a"] = torch.full_like(item["image_a"], float("nan"))
        return item

    monkeypatch.setattr(UnpairedSlices, "__getitem__", read)


def entries(path: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line, parse_constant=pytest.fail) for line in path.read_text(encoding="utf-8").splitlines()
    ]


def test_a_step_that_is_not_finite_is_skipped_and_named(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(max_steps=4, batch_size=1, logging_steps=2, ema_decay=0.5)
    poison(trainer, {2}, monkeypatch)  # the third step
    states = []
    trainer.state.guard.check = lambda *args, check=trainer.state.guard.check: (  # type: ignore[method-assign]
        states.append(state_of(trainer)),
        check(*args),
    )[1]
    trainer.train()
    # The skipped step has changed nothing: the fourth sees what the third saw.
    changed = [name for name, value in states[2].items() if not torch.equal(value, states[3][name])]
    assert all(name.endswith(("left", "right")) for name in changed)  # power iteration of unmoved weights
    assert any(not torch.equal(value, states[2][name]) for name, value in states[1].items())
    log = entries(tmp_path / "run" / "log.jsonl")
    (skipped,) = [entry for entry in log if "skipped" in entry]
    assert skipped["step"] == 3
    assert len(skipped["skipped"]["slices"]) == 2
    assert all(" slice " in text for text in skipped["skipped"]["slices"])
    assert [entry["skipped_steps"] for entry in log if "losses" in entry] == [0, 1]
    assert all(np.isfinite(list(entry["losses"].values())).all() for entry in log if "losses" in entry)


def test_too_many_in_a_row_end_the_run_with_advice(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(max_steps=9, batch_size=1, max_skipped_steps=3, logging_steps=100)
    poison(trainer, {1, 2, 3, 4, 5}, monkeypatch)
    before = state_of(trainer)["G.conv_in.weight"]
    with pytest.raises(GalipError, match=r"5 steps in a row .+ lower learning_rate \(now 0.0002\)"):
        trainer.train()
    assert trainer.state.step == 6
    assert torch.isfinite(state_of(trainer)["G.conv_in.weight"]).all()
    assert not torch.equal(before, state_of(trainer)["G.conv_in.weight"])


def test_the_search_for_a_scale_ends_no_run() -> None:
    """float16: a skipped step counts only where a smaller scale of the losses would not help."""
    guard = FiniteGuard(limit=3, device=torch.device("cpu"))
    bad, good = torch.tensor([torch.inf, 1.0]), torch.ones(2)
    for scale in (2.0**16, 2.0**15, 4.0, 2.0, 1.0, 0.5):
        assert guard.check(bad, good, [], torch.tensor(scale)) == 1
    guard.stop_if_hopeless(2e-4)
    assert [step for step, _, _ in guard.collect(6)] == [1, 2, 3, 4, 5, 6]
    guard.check(bad, good, [], torch.tensor(0.25))
    with pytest.raises(GalipError, match="3 steps in a row"):
        guard.stop_if_hopeless(2e-4)


def test_a_loss_that_is_not_finite_makes_the_gradients_so() -> None:
    weight = torch.ones(3, requires_grad=True)
    for largest, is_finite in ((1.0, True), (3e38, False)):
        loss = (weight * largest).sum()  # its sum overflows; the gradients, `largest`, do not
        weight.grad = None
        loss.backward(first_gradient(loss))
        assert weight.grad is not None
        assert bool(weight.grad.isfinite().all()) is is_finite
        assert not is_finite or torch.equal(weight.grad, torch.full((3,), largest))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(make_trainer: MakeTrainer, precision: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        max_steps=30, mixed_precision=precision, logging_steps=10, learning_rate=2e-3, max_skipped_steps=3
    )
    trainer.train()
    log = entries(tmp_path / "run" / "log.jsonl")
    losses = [entry["losses"]["cycle"] for entry in log if "losses" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.state.generator.parameters())
    if precision == "fp16":
        assert trainer.state.scaler.get_scale() > 0
        resumed = make_trainer(resume=True, max_steps=31, mixed_precision=precision, max_skipped_steps=20)
        assert resumed.state.scaler.is_enabled()
