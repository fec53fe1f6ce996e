"""Scans divided among parts and processes: each exactly once, also when a process is killed."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galip_hf import GalipError, GalipPipeline
from galip_hf.cli import main
from galip_hf.commands.shares import chosen_share

FORK = multiprocessing.get_context("fork") if sys.platform != "win32" else None


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_each_scan_is_in_one_share(parts: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dealt: list[int] = []
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        for part in range(parts):
            share = chosen_share(f"{part + 1}/{parts}" if parts > 1 else None)
            dealt += share.of(range(40))
            assert len(share.of(range(40))) - 40 // (parts * processes) in (0, 1)
            assert share.of(range(40))[0] % parts == part  # a part is the same with any number of processes
    assert sorted(dealt) == list(range(40))


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_a_part_that_is_none(part: str) -> None:
    with pytest.raises(GalipError, match=rf"--part {part}: expected K/N"):
        chosen_share(part)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(7):
        np.save(folder / f"s{number}.npy", np.random.default_rng(number).random((2, 8, 8)).astype(np.float32))
    return folder


def arguments(scans: Path, model: Path, *more: str) -> list[str]:
    output = str(scans.parent / "out")
    named = ["--model", str(model), "--from", "T1", "--to", "T2", "--output", output, "--device", "cpu"]
    return ["translate", str(scans), *named, *more]


def outputs(scans: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (scans.parent / "out").glob("*.npy")}


def test_parts_one_after_another(
    scans: Path, model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second part is not disturbed by what the first one wrote into the same folder."""
    assert main(arguments(scans, model_directory, "--part", "1/2")) == 0
    first = outputs(scans)
    assert sorted(first) == ["s0_T2.npy", "s2_T2.npy", "s4_T2.npy", "s6_T2.npy"]
    assert main(arguments(scans, model_directory, "--part", "2/2")) == 0
    assert len(outputs(scans)) == 7 and first.items() <= outputs(scans).items()
    capsys.readouterr()
    assert main(arguments(scans, model_directory, "--part", "2/2")) == 2
    assert "s1_T2.json: already exists" in capsys.readouterr().err


def in_process(rank: int, port: int, log: Path, run: Callable[[], int]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with log.open("w", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        code = run()
    os._exit(code)


def two_processes(folder: Path, run: Callable[[], int]) -> list[Any]:
    assert FORK is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        FORK.Process(target=in_process, args=(rank, port, folder / f"log{rank}", run)) for rank in (0, 1)
    ]
    for process in started:
        process.start()
    return started


@pytest.mark.skipif(FORK is None, reason="needs fork and SIGKILL")
def test_two_processes_one_of_them_killed(scans: Path, model_directory: Path) -> None:
    command = arguments(scans, model_directory, "--skip-existing")
    translate, seen = GalipPipeline.__call__, []

    def killed_at_the_third(self: GalipPipeline, scan: Any, *args: Any, **named: Any) -> Any:
        seen.append(scan)
        if os.environ["RANK"] == "1" and len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return translate(self, scan, *args, **named)

    def first_run() -> int:
        GalipPipeline.__call__ = killed_at_the_third  # type: ignore[method-assign]
        return main(command)

    main_process, killed = two_processes(scans.parent, first_run)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    main_process.join(0.1)
    assert main_process.is_alive()  # it waits for the other's part of the summary; a launcher ends it:
    while not {"s0_T2.npy", "s2_T2.npy", "s4_T2.npy", "s6_T2.npy"} <= outputs(scans).keys():  # its own
        main_process.join(0.05)
    main_process.kill()
    main_process.join()
    before = outputs(scans)
    assert (
        {"s0_T2.npy", "s2_T2.npy", "s4_T2.npy", "s6_T2.npy", "s1_T2.npy"}
        <= before.keys()
        < {f"s{number}_T2.npy" for number in range(7)}
    )
    again = two_processes(scans.parent, lambda: main(command))
    for process in again:
        process.join(120)
    assert [process.exitcode for process in again] == [0, 0]
    after = outputs(scans)
    assert len(after) == 7 and before.items() <= after.items()  # the rest, and nothing twice
    logs = [(scans.parent / f"log{rank}").read_text(encoding="utf-8") for rank in (0, 1)]
    done = 7 - len(before)
    assert f"{len(before)} existed already and were left" in logs[0] and logs[0].count(".npy  T1") == done
    assert ".npy" not in logs[1]  # one summary
