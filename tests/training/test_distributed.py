"""Two real processes (gloo) against one: gradients, identical ranks, validation, data, resuming, stopping."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DOMAINS, MakeTrainer, smooth_volume, tiny_config, tiny_run_recipe
from PIL import Image
from published_tables import make_table, publish
from safetensors.torch import load_file
from test_trainer import gradients_at_the_step, largest_difference

from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.data.streamed_dataset import StreamedSlices, open_stream
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.training import attendance
from galip_hf.training.checkpoint_files import latest_checkpoint, load_state
from galip_hf.training.distributed import ProcessGroup
from galip_hf.training.step_loader import StepLoader
from galip_hf.training.trainer import GalipTrainer
from galip_hf.training.training_args import GalipLossWeights, GalipTrainingArguments
from galip_hf.training.validation import Validation

HERE = Path(__file__).resolve().parent
NAMES = [domain["name"] for domain in DOMAINS]
LEARNING_RATE = 2e-3


# What `distributed_run.py` does too


def prepare(output: Path) -> None:
    """A table with a validation split, and two streams."""
    volumes = [
        SubjectVolume(smooth_volume(10 * label + index), name, f"{name}-{index}", "train")
        for label, name in enumerate(NAMES)
        for index in range(3)
    ]
    # T1 and T2 have two registered subjects; CT has subjects of its own.
    subjects = [("T1", 5), ("T2", 5), ("T1", 6), ("T2", 6), ("T1", 7), ("CT", 8), ("CT", 9)]
    volumes += [
        SubjectVolume(
            smooth_volume(10 * NAMES.index(name) + subject, slices=6), name, f"s{subject}", "validation"
        )
        for name, subject in subjects
    ]
    write_table(volumes, output / "table", domains=NAMES, image_size=None)
    rows = make_table(output / "rows")
    # A file for each of the four consumers, with as many slices of T1 as of T2; and what divides by nothing.
    publish(rows, output / "even", files=4)
    publish(rows.select(range(119)).shuffle(seed=0), output / "uneven", files=5)


def validated_run(output: Path, table: Path, clip: Path, batch_size: int) -> dict[str, Any]:
    """A run with validation of all kinds, pictures, the best model and early stopping; what it did."""
    arguments = GalipTrainingArguments(
        output_dir=str(output),
        max_steps=12,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        ema_half_life_images=2.0,
        validation_steps=1,
        checkpoint_steps=0,
        metric_for_best="psnr",
        early_stopping_patience=2,
    )
    torch.manual_seed(0)
    model = GalipForImageTranslation(tiny_config())
    tables, processor = load_table(table), GalipImageProcessor.from_config(model.config)
    dataset = UnpairedSlices(tables["train"], domains=NAMES, seed=0)
    backbone = ClipBackbone.from_pretrained(clip)
    validation = Validation(tables, NAMES, processor, backbone)
    seen = []

    def validate(averaged: GalipForImageTranslation) -> dict[str, float]:
        seen.append(validation(averaged))
        return seen[-1]

    trainer = GalipTrainer(model, processor, backbone, arguments, dataset, validate, validation.save_pictures)
    trainer.train()
    assert trainer.state.best is not None
    return {
        "figures": seen,
        "stopped": trainer.state.step,
        "best": trainer.state.best.step,
        "decay": trainer.state.ema.decay,
    }


def consumed(kind: str, table: Path, output: Path, processes: int, process: int) -> list[list[Any]]:
    """(label, row) of the slices that each of two workers of a process gives in an epoch."""
    workers = 2
    if kind == "table":
        dataset: Any = UnpairedSlices(load_table(table)["train"], domains=NAMES, seed=0)
    else:
        share = {"process_index": process, "num_processes": processes}
        # Even: what the stream holds of the two domains. Uneven: so long that all of it is read again.
        options: dict[str, Any] = (
            {"domains": NAMES[:2], "length": 20} if kind == "even" else {"domains": NAMES, "length": 200}
        )
        stream = open_stream(str(output / kind), "train")
        dataset = StreamedSlices(stream, seed=0, buffer_size=30, **options, **share)
    arguments = GalipTrainingArguments(output_dir=str(output), batch_size=1, num_workers=workers)
    loader = StepLoader(dataset, arguments, processes, process, torch.device("cpu"))
    rows: list[list[Any]] = [[] for _ in range(workers)]
    steps = loader.steps(0)
    for number in range(loader.steps_per_epoch):
        (batch,) = next(steps)
        # The loader takes from one worker after the other.
        rows[number % workers] += zip(batch.source_labels.tolist(), batch.rows, strict=True)
    steps.close()
    return rows


# The launch


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, table_directory: Path, clip_directory: Path
) -> tuple[Path, list[dict[str, Any]]]:
    """The output folder of `distributed_run.py`, and what each of its processes reports."""
    output = tmp_path_factory.mktemp("two_processes")
    prepare(output)
    recipe = tiny_run_recipe(output / "recipe.yaml", table_directory, clip_directory, max_steps=2)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [*map(str, (HERE.parents[1], HERE.parent, HERE)), os.environ.get("PYTHONPATH", "")]
    )
    # --multi_gpu with ACCELERATE_USE_CPU is what starts two processes on a CPU; --cpu starts one.
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, str(HERE / "distributed_run.py")]
    done = subprocess.run(
        [*command, str(table_directory), str(clip_directory), str(output), str(recipe)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output, [
        json.loads((output / f"result-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)
    ]


def test_gradients_are_those_of_one_process_with_the_whole_batch(
    two_processes: tuple[Path, list[dict[str, Any]]], make_trainer: MakeTrainer
) -> None:
    output, results = two_processes
    assert [result["processes"] for result in results] == [2, 2]
    # The case that matters: a domain that one of the processes did not draw.
    own = [set(result["domains"][0]) for result in results]
    assert own[0] != own[1]
    assert all(set(result["domains"][1]) == own[0] | own[1] for result in results)
    trainer = make_trainer(batch_size=2, loss_weights=GalipLossWeights(patch=1.0))
    expected = gradients_at_the_step(trainer, next(trainer.loader.steps(0)))
    for rank in (0, 1):
        found: dict[str, Any] = dict.fromkeys(expected)
        found |= load_file(output / f"gradients-{rank}.safetensors")
        assert largest_difference(found, expected) <= 1e-5


@pytest.mark.parametrize("part", ["twenty_steps", "whole", "resumed", "poisoned", "recipe", "stream_whole"])
def test_processes_stay_bit_identical(two_processes: tuple[Path, list[dict[str, Any]]], part: str) -> None:
    _, (first, second) = two_processes
    assert first[part] == second[part]


@pytest.mark.parametrize("kind", ["", "stream_"])
def test_a_resumed_run_equals_an_unbroken_one(
    two_processes: tuple[Path, list[dict[str, Any]]], kind: str
) -> None:
    output, results = two_processes
    assert all(result[f"{kind}whole"] == result[f"{kind}resumed"] for result in results)
    whole, cut = (
        [
            json.loads(line)
            for line in (output / f"{kind}{name}" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for name in ("whole", "cut")
    )
    kept = ("step", "losses", "discriminator_outputs", "gradient_norms", "learning_rates")
    assert [[entry[key] for key in kept] for entry in whole] == [[e[key] for key in kept] for e in cut]


def test_time_ends_all_processes_after_the_same_step(
    two_processes: tuple[Path, list[dict[str, Any]]],
) -> None:
    assert [result["timed"] for result in two_processes[1]] == [4, 4]  # by the first one's clock


def test_validation_is_that_of_one_process(
    two_processes: tuple[Path, list[dict[str, Any]]], tiny_backbone: ClipBackbone
) -> None:
    """The model that both found best, scored by one: the same figures, with and without pairs."""
    output, results = two_processes
    first, second = (result["validated"] for result in results)
    assert first == second
    best = GalipForImageTranslation.from_pretrained(output / "validated" / "best")
    processor = GalipImageProcessor.from_pretrained(output / "validated" / "best")
    figures = Validation(load_table(output / "table"), NAMES, processor, tiny_backbone)(best)
    paired, unpaired = ["T1->T2", "T2->T1"], ["T1->CT", "T2->CT", "CT->T1", "CT->T2"]
    expected = {f"psnr {direction}" for direction in paired} | {f"kid {direction}" for direction in unpaired}
    found = first["figures"][first["best"] - 1]
    assert list(found) == list(figures) and expected <= set(figures)
    assert found == pytest.approx(figures, rel=1e-4, abs=1e-4)


def test_a_validated_run_is_that_of_one_process(
    two_processes: tuple[Path, list[dict[str, Any]]], clip_directory: Path, tmp_path: Path
) -> None:
    output, results = two_processes
    found = results[0]["validated"]
    # A batch of two, as the two processes have together.
    alone = validated_run(tmp_path / "alone", output / "table", clip_directory, batch_size=2)
    assert (found["stopped"], found["best"]) == (alone["stopped"], alone["best"])
    assert 1 < alone["best"] < alone["stopped"] < 12  # better at first, then no more
    for both, one in zip(found["figures"], alone["figures"], strict=True):
        assert list(both) == list(one)
        assert both == pytest.approx(one, rel=1e-2, abs=1e-3)
    folders = [output / "validated" / "pictures", tmp_path / "alone" / "pictures"]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1] == [f"step-{step:08d}.png" for step in range(1, alone["stopped"] + 1)]
    for name in names[0]:
        both, one = (np.asarray(Image.open(folder / name).convert("L"), int) for folder in folders)
        assert np.abs(both - one).mean() < 0.5  # of 255


def test_the_half_life_is_in_images_of_all_processes(
    two_processes: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, results = two_processes
    # Four images a step, by both: two half-lives. The averages are compared above.
    assert [result["validated"]["decay"] for result in results] == [0.25, 0.25]


def test_what_is_best_is_so_for_all_processes(two_processes: tuple[Path, list[dict[str, Any]]]) -> None:
    _, results = two_processes
    assert [result["disagreeing"] for result in results] == [
        [4, 2, 2.0]
    ] * 2  # as the first one's figures say


def test_processes_and_workers_share_the_rows_of_a_table(
    two_processes: tuple[Path, list[dict[str, Any]]], table_directory: Path
) -> None:
    _, results = two_processes
    rows = [row for result in results for worker in result["consumed"]["table"] for _, row in worker]
    assert sorted(rows) == list(range(len(load_table(table_directory)["train"])))  # each exactly once


def test_processes_and_workers_share_the_rows_of_a_stream(
    two_processes: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    _, results = two_processes
    stored = [
        (row["domain"], f"{row['subject']} slice {row['slice']}") for row in make_table(tmp_path / "rows")
    ]
    given = {
        kind: [list(map(tuple, worker)) for result in results for worker in result["consumed"][kind]]
        for kind in ("even", "uneven")
    }
    # A file for each worker: each slice exactly once, as from a table.
    assert Counter(row for worker in given["even"] for row in worker) == Counter(
        row for row in stored if row[0] < 2
    )
    # 119 rows in five files for four workers, longer than an epoch: all are given, each by one worker alone.
    own = [set(worker) for worker in given["uneven"]]
    assert sorted(map(len, own)) == [29, 30, 30, 30]
    assert set.union(*own) == set(stored[:119])


# One process


def test_all_processes_skip_a_step_that_is_not_finite_on_one(
    two_processes: tuple[Path, list[dict[str, Any]]], table_directory: Path
) -> None:
    output, results = two_processes
    assert [result["skipped"] for result in results] == [1, 1]
    # Named are the slices of the process whose batch it was, though the other one writes the log.
    log = [json.loads(line) for line in (output / "poisoned" / "log.jsonl").read_text().splitlines()]
    (entry,) = [entry for entry in log if "skipped" in entry]
    assert entry["step"] == 2 and entry["skipped"]["processes"] == [1]
    table = load_table(table_directory)["train"]
    domains = tiny_config().domain_names
    plan = UnpairedSlices(table, domains=domains, seed=0).plan
    named = [f"{table[row]['subject']} slice {table[row]['slice']}" for row in plan.rows[3].tolist()]
    assert entry["skipped"]["slices"] == named


def test_all_processes_fail_with_one_that_cannot_save(
    two_processes: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, (first, second) = two_processes
    assert "step-00000001: cannot be written" in first["blocked"]
    assert "log.jsonl: cannot be written" in first["full"]
    assert second["blocked"] == second["full"] == "stopped because process 0 failed; its message says why"


def test_a_process_that_is_gone_is_one_line(two_processes: tuple[Path, list[dict[str, Any]]]) -> None:
    _, (first, _) = two_processes
    assert first["lost"].startswith("process 0 lost another process") and "\n" not in first["lost"]


@pytest.mark.parametrize(("alive", "said"), [(False, "stopped or not reachable"), (True, "busy, or stuck")])
def test_who_is_waited_for_is_said(
    alive: bool, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Process 1 has come to no exchange; of a stopped process the beat stands still too."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(attendance, "_get_default_store", lambda: store)
    monkeypatch.setattr(attendance, "PATIENCE", 0.4)
    monkeypatch.setattr(attendance, "_BEAT", 0.05)
    if alive:
        attendance.Attendance(1, 2, None)
    else:
        store.set("galip_hf/attendance/1", "7 0")
    with attendance.Attendance(0, 2, timedelta(minutes=5)).exchange():
        time.sleep(0.7)
    (message,) = caplog.messages
    assert message.startswith("process 0 has waited 0 s for process 1") and said in message
    assert message.endswith("it gives up after 0:05:00")


def test_a_signal_to_one_process_stops_all_with_a_checkpoint(
    two_processes: tuple[Path, list[dict[str, Any]]],
) -> None:
    output, results = two_processes
    assert [(result["stopped_by"], result["stopped_at"]) for result in results] == [("SIGTERM", 2)] * 2
    path = latest_checkpoint(output / "stopped" / "checkpoints")
    assert path is not None and path.name == "step-00000002"


def test_a_recipe_trains_on_both(two_processes: tuple[Path, list[dict[str, Any]]]) -> None:
    output, _ = two_processes
    path = latest_checkpoint(output / "recipe" / "checkpoints")
    assert path is not None and load_state(path)["processes"] == 2


def test_processes_that_do_not_see_each_other_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as the launcher sets it, in a process that is on its own
    with pytest.raises(GalipError, match=r"2 processes were launched.+set ACCELERATE_USE_CPU=true"):
        ProcessGroup()


def test_one_process_needs_no_group() -> None:
    processes = ProcessGroup(timedelta(minutes=1))
    assert processes.size == 1
    assert processes.host_flags([True, False]) == [True, False]
    tensors = {"a": torch.arange(3.0)}
    assert processes.on_main(lambda: 5) == processes.in_turns(lambda: 5) == processes.together(lambda: 5) == 5
    assert processes.tensors_of_main(lambda: tensors) == tensors


def test_the_timeout_is_that_of_the_arguments(two_processes: tuple[Path, list[dict[str, Any]]]) -> None:
    _, results = two_processes
    assert [result["timeouts"] for result in results] == [[420.0, 420.0]] * 2


def test_turns(two_processes: tuple[Path, list[dict[str, Any]]]) -> None:
    """The first process, then those that have its files to read; after a failure no later turn begins."""
    _, (first, second) = two_processes
    assert first["turns"] == [["0"], "no data"]
    assert second["turns"] == [["0", "1"], "stopped because process 0 failed; its message says why"]
