"""A decoder in a child process: its results, its failures, its limits, and that it outlives a crash."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from galip_hf.data.child_process import ChildProcess, DecodingError
from galip_hf.data.file_checks import GIB
from galip_hf.data.readers import read_volume
from galip_hf.model.errors import GalipError


def echo(count: int) -> tuple[dict[str, Any], np.ndarray]:
    print("noise on standard output")
    return {"pid": os.getpid()}, np.arange(count, dtype=">i2").reshape(1, count)


def fail(kind: str) -> tuple[dict[str, Any], np.ndarray]:
    if kind == "refuse":
        raise GalipError("x.mat: no such variable")
    if kind == "crash":
        os.abort()
    if kind == "hang":
        time.sleep(60)
    if kind == "memory":
        return {}, np.zeros(20 * GIB, np.uint8)
    raise RuntimeError(kind)


def test_results_failures_and_a_new_start_after_a_crash() -> None:
    with ChildProcess(max_size=GIB // 4, seconds=15) as child:
        facts, array = child.call(__name__, "echo", 3)
        assert facts["pid"] != os.getpid()
        np.testing.assert_array_equal(array, [[0, 1, 2]])
        with pytest.raises(GalipError, match=r"x\.mat: no such variable"):
            child.call(__name__, "fail", "refuse")
        with pytest.raises(DecodingError, match="RuntimeError: other"):
            child.call(__name__, "fail", "other")
        assert child.call(__name__, "echo", 1)[0] == facts  # the same child
        with pytest.raises(DecodingError, match=r"MemoryError|Unable to allocate"):
            child.call(__name__, "fail", "memory")
        with pytest.raises(DecodingError, match="crashed, lacked memory or took more than 15 s"):
            child.call(__name__, "fail", "crash")
        assert child.call(__name__, "echo", 1)[0] != facts


def test_a_child_that_hangs_is_stopped() -> None:
    with ChildProcess(seconds=3) as child, pytest.raises(DecodingError, match="took more than 3 s"):
        child.call(__name__, "fail", "hang")


def test_a_matlab_file_that_crashes_scipy_is_one_line(tmp_path: Path) -> None:
    """SciPy 1.17 dies of a variable whose name is said to be longer than it is."""
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"data_fs": np.zeros((32, 32, 4), np.float32), "note": "text"})
    content = bytearray(path.read_bytes())
    at = content.index(b"data_fs") - 4
    assert content[at] == 7
    content[at] = 17
    path.write_bytes(content)
    with pytest.raises(GalipError, match="cannot be read, the file is truncated, corrupt") as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
