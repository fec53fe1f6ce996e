"""Two real processes (gloo) against one: gradients, identical ranks, resuming, skipping, stopping."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeTrainer, tiny_config, tiny_run_recipe
from safetensors.torch import load_file
from test_trainer import gradients_at_the_step, largest_difference

from galip_hf import GalipError
from galip_hf.checkpoint import latest_checkpoint, load_state
from galip_hf.data.sampling import UnpairedSlices
from galip_hf.data.table import load_table
from galip_hf.distributed import ProcessGroup

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, table_directory: Path, clip_directory: Path
) -> tuple[Path, list[dict[str, Any]]]:
    """The output folder of `distributed_run.py`, and what each of its processes reports."""
    output = tmp_path_factory.mktemp("two_processes")
    recipe = tiny_run_recipe(output / "recipe.yaml", table_directory, clip_directory, max_steps=2)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
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
        timeout=300,
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
    trainer = make_trainer(batch_size=2)
    expected = gradients_at_the_step(trainer, next(trainer.loader.steps(0)))
    for rank in (0, 1):
        found: dict[str, Any] = dict.fromkeys(expected)
        found |= load_file(output / f"gradients-{rank}.safetensors")
        assert largest_difference(found, expected) <= 1e-5


@pytest.mark.parametrize("part", ["twenty_steps", "whole", "resumed", "poisoned", "recipe"])
def test_processes_stay_bit_identical(two_processes: tuple[Path, list[dict[str, Any]]], part: str) -> None:
    _, (first, second) = two_processes
    assert first[part] == second[part]


def test_a_resumed_run_equals_an_unbroken_one(two_processes: tuple[Path, list[dict[str, Any]]]) -> None:
    output, results = two_processes
    assert results[0]["whole"] == results[0]["resumed"]
    whole, cut = (
        [json.loads(line) for line in (output / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("whole", "cut")
    )
    kept = ("step", "losses", "discriminator_outputs", "gradient_norms", "learning_rates")
    assert [[entry[key] for key in kept] for entry in whole] == [[e[key] for key in kept] for e in cut]


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
    assert second["blocked"] == "stopped with the first process, which tells why"


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
    processes = ProcessGroup()
    assert processes.size == 1
    assert processes.host_flags([True, False]) == [True, False]
