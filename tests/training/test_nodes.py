"""Two nodes with disks of their own: two processes in different working directories, all paths relative."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DOMAINS, smooth_volume, tiny_run_recipe
from safetensors.torch import load_file
from test_recipe import tiny_recipe, write

from galip_hf.data.table_writer import SubjectVolume, write_table

HERE = Path(__file__).resolve().parent
NAMES = [domain["name"] for domain in DOMAINS]

STEPS = ["training.constant_fraction=1.0", "training.checkpoint_steps=2", "training.logging_steps=1"]
RESUME = "training.resume=true"
# What both nodes run, one after the other; NODE is replaced by the number of the node.
COMMANDS = {
    "whole": ["recipe.yaml", "training.output_dir=whole", "training.max_steps=4", *STEPS],
    "cut": ["recipe.yaml", "training.output_dir=cut", "training.max_steps=2", *STEPS],
    "resumed": ["recipe.yaml", "training.output_dir=cut", "training.max_steps=4", *STEPS, RESUME],
    "damaged": ["recipe.yaml", "training.output_dir=damaged", *STEPS, RESUME],
    "other_pixels": ["own_table.yaml", "training.output_dir=other_pixels"],
    "other_settings": ["recipe.yaml", "training.output_dir=other_settings", "training.max_steps=4NODE"],
    "mistake": ["recipe.yaml", "training.max_step=4"],
}  # fmt: skip


def own_table(folder: Path, gain: float) -> None:
    """A table of the same subjects and slices whatever the `gain` of its pixels."""
    volumes = [
        SubjectVolume(smooth_volume(label) * np.float32(gain), name, f"{name}-0", "train")
        for label, name in enumerate(NAMES)
    ]
    write_table(volumes, folder / "own_table", domains=NAMES, image_size=None)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, clip_directory: Path) -> list[Path]:
    """The folders of both nodes after all commands; `results.json` in each holds exit codes and stderr."""
    folder = tmp_path_factory.mktemp("nodes")
    paths = [folder / f"node{number}" for number in (0, 1)]
    port, running = free_port(), []
    for number, path in enumerate(paths):
        values = tiny_recipe(Path("run"))
        values["training"] |= {"validation_steps": 0, "batch_size": 1}
        (path / "damaged" / "checkpoints" / "step-00000009").mkdir(parents=True)
        write(path / "recipe.yaml", values)
        own_table(path, gain=1.0 - 0.1 * number)
        shutil.copytree(clip_directory, path / "own_clip")
        tiny_run_recipe(path / "own_table.yaml", Path("own_table"), Path("own_clip"), max_steps=1)
        commands = [
            ["train", *(word.replace("NODE", str(number)) for word in words)] for words in COMMANDS.values()
        ]
        # As a launcher sets them on a node with one process.
        environment = {"RANK": str(number), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        running.append(
            subprocess.Popen(
                [sys.executable, str(HERE / "commands_run.py"), json.dumps(commands), "results.json"],
                cwd=path,
                env={**os.environ, **environment},
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
        )
    try:
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in running:
            process.kill()
    return paths


def outcome(node: Path, command: str) -> tuple[int, list[str]]:
    """Exit code and the lines that begin as an error of the command line does."""
    code, errors = json.loads((node / "results.json").read_text())[list(COMMANDS).index(command)]
    assert "Traceback" not in errors
    return code, [line for line in errors.splitlines() if line.startswith("galip-hf: error: ")]


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_each_node_makes_the_data_and_the_first_one_keeps_the_results(nodes: list[Path]) -> None:
    assert [outcome(node, name) for node in nodes for name in ("whole", "cut", "resumed")] == [(0, [])] * 6
    made = [{path.name for path in (node / "whole").iterdir()} for node in nodes]
    assert made[1] == {"clip", "table"}
    assert made[0] == {"clip", "table", "checkpoints", "log.jsonl", "model"}
    for name in ("clip", "table"):
        assert file_hashes(nodes[0] / "whole" / name) == file_hashes(nodes[1] / "whole" / name)


def test_a_run_resumes_from_the_checkpoint_of_the_first_node(nodes: list[Path]) -> None:
    whole, cut = nodes[0] / "whole", nodes[0] / "cut"
    states = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, cut)]
    assert states[0] == states[1] == ["step-00000002", "step-00000004"]
    for name in ("generator", "discriminator", "ema", "generator_optimizer", "discriminator_optimizer"):
        file = Path("checkpoints") / "step-00000004" / f"{name}.safetensors"
        expected, found = load_file(whole / file), load_file(cut / file)
        assert expected.keys() == found.keys()
        assert [key for key in expected if not expected[key].equal(found[key])] == []
    log = [json.loads(line) for line in (cut / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]


def test_a_checkpoint_that_cannot_be_read_stops_both(nodes: list[Path]) -> None:
    (first_code, first), (second_code, second) = (outcome(node, "damaged") for node in nodes)
    assert first_code == second_code == 2
    assert len(first) == 1 and "step-00000009/state.json: not readable as a checkpoint" in first[0]
    assert second == ["galip-hf: error: stopped because process 0 failed; its message says why"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("other_pixels", "has another table of slices than process 0 on"),
        ("other_settings", "has training.max_steps 41, process 0 on"),
        ("mistake", "unknown key 'max_step'"),
    ],
)
def test_what_differs_or_is_wrong_stops_both_with_one_line(
    nodes: list[Path], command: str, message: str
) -> None:
    (first_code, first), (second_code, second) = (outcome(node, command) for node in nodes)
    assert first_code == second_code == 2
    assert len(first) == 1 and message in first[0]
    assert first == second
    assert not any((node / command / "log.jsonl").exists() for node in nodes)
