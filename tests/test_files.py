"""Writing whole or not at all."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import pytest

from galip_hf import GalipError
from galip_hf.data.volumes import Volume
from galip_hf.data.writers import write_volume
from galip_hf.extras import require
from galip_hf.files import atomic_group, atomic_write


@pytest.mark.parametrize("existing", [False, True])
def test_a_file_appears_when_the_block_ends(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "a.txt"
    if existing:
        path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt"
        assert path.exists() == existing
    assert path.read_text(encoding="utf-8") == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_replaces_a_full_one(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "a"
    if existing:
        path.mkdir()
        (path / "old").touch()
    with atomic_write(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    (tmp_path / "b").mkdir()
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode  # the user's permissions


def test_an_error_leaves_all_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_missing_package_prints_the_line_that_installs_it() -> None:
    assert require("json", "dicom").dumps([]) == "[]"
    with pytest.raises(GalipError, match=r"pip install 'galip-hf\[dicom\]'"):
        require("no_such_module", "dicom")


# The processes are forked: what they inherit is loaded already, and SIGKILL is as real.
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, SIGKILL and flock")


def _write_half(path: Path, pipe: Connection) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        pipe.send("writing")
        time.sleep(60)


def _write_scan(path: Path, pipe: Connection) -> None:
    """8 million random voxels: gzip takes seconds."""
    volume = Volume.from_array(np.random.default_rng(1).random((200, 200, 200), dtype=np.float32))
    pipe.send("writing")
    write_volume(volume, path, overwrite=True)


def started(target: Callable[[Path, Connection], None], path: Path) -> ForkProcess:
    """A process that has begun to write."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(path, theirs))
    process.start()
    assert ours.recv() == "writing"
    return process


def kill(process: ForkProcess) -> None:
    process.kill()  # SIGKILL
    process.join()
    assert process.exitcode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@needs_fork
def test_what_a_killed_run_leaves_goes_with_the_next_and_live_runs_are_spared(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    killed, alive = started(_write_half, path), started(_write_half, path)
    other = started(_write_half, tmp_path / "other.nii")
    try:
        kill(killed)
        assert len(names(tmp_path)) == 3 and not path.exists()
        with atomic_write(path) as temporary:
            temporary.write_text("whole")
        assert path.read_text(encoding="utf-8") == "whole"
        left = names(tmp_path)
        assert len(left) == 3 and left[0].startswith(".other.nii.") and left[1].startswith(".scan.nii.")
        kill(alive)
        kill(other)
        with atomic_write(path) as temporary:
            temporary.write_text("again")
        assert [name for name in names(tmp_path) if "scan" in name] == ["scan.nii"]
        assert names(tmp_path)[0].startswith(".other.nii.")  # until other.nii is written again
    finally:
        for process in (killed, alive, other):
            kill(process)


@needs_fork
@pytest.mark.parametrize("seconds", [0.02, 0.2, 0.6])
def test_a_scan_killed_in_the_middle_is_absent_and_the_next_run_whole(seconds: float, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    process = started(_write_scan, path)
    time.sleep(seconds)
    kill(process)
    assert not path.exists()  # gzip had not finished; a machine fast enough for that would show a whole file
    write_volume(Volume.from_array(np.ones((2, 3, 4), dtype=np.float32)), path)
    assert names(tmp_path) == ["scan.nii.gz"]


def test_folders_that_only_look_alike_are_left_alone(tmp_path: Path) -> None:
    full, file = tmp_path / ".a.txt.writing-abcdefgh", tmp_path / ".a.txt.writing-12345678"
    empty = tmp_path / ".a.txt.abcdefgh"  # of tempfile, used by somebody else
    full.mkdir()
    empty.mkdir()
    (full / "precious").touch()
    file.touch()
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (full / "precious").exists() and file.exists() and empty.exists()


def test_a_run_killed_between_the_two_renames_of_a_folder_loses_nothing(tmp_path: Path) -> None:
    stale = tmp_path / ".a.writing-abcdefgh"
    for name in ("a", ".galip-replaced"):
        (stale / name).mkdir(parents=True)
        (stale / name / name).touch()
    (stale / ".galip-lock").touch()
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a"):
        raise RuntimeError
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["a"]


def test_messages_are_one_line_whatever_they_quote() -> None:
    assert (
        str(GalipError("a.mat: no variable 'x\r\n\x1b[2J\u2028y' → b"))
        == "a.mat: no variable 'x   [2J y' → b"
    )


def test_a_group_appears_together_and_the_named_one_last(tmp_path: Path) -> None:
    (tmp_path / "z.json").write_text("old")
    with atomic_group(tmp_path / "a.nii") as folder:
        for name in ("a.nii", "z.json", "b.png"):
            (folder / name).write_text("new")
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["z.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "b.png", "z.json"]
    assert {path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"new"}


@pytest.mark.parametrize("moment", ["in the block", "at the second renaming", "at the last renaming"])
@pytest.mark.parametrize("folder_output", [False, True])
def test_a_group_that_fails_leaves_all_as_it_was(
    moment: str, folder_output: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(folder: Path, text: str) -> None:
        (folder / "a.json").write_text(text)
        if folder_output:
            (folder / "z").mkdir()
        (folder / "z" / "image" if folder_output else folder / "z").write_text(text)

    fill(tmp_path, "old")
    rename, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        stop = {"at the second renaming": "b.png", "at the last renaming": "z"}.get(moment)
        if Path(target).parent == tmp_path and Path(target).name == stop and ".galip" not in str(source):
            monkeypatch.setattr(os, "replace", rename)
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="No space left"), atomic_group(tmp_path / "z") as folder:
        fill(folder, "new")
        (folder / "b.png").write_text("new")
        if moment == "in the block":
            raise OSError(28, "No space left on device")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "z"]
    for file in (tmp_path / "a.json", tmp_path / "z" / "image" if folder_output else tmp_path / "z"):
        assert file.read_text(encoding="utf-8") == "old"
