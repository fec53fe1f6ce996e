"""`make gpu-check` without a GPU: its comparisons run on the CPU, and tell right from wrong."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check


def test_it_runs_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "check.json"
    assert (
        gpu_check.main(["--device", "cpu", "--repeats", "1", "--threads", "1", "--output", str(output)]) == 0
    )
    rows = json.loads(output.read_text(encoding="utf-8"))["precisions"]
    assert set(rows) == {"fp32", "bf16"}
    assert rows["fp32"]["parity"]["largest"] < 1e-4 < rows["bf16"]["parity"]["largest"] < 0.2
    assert rows["fp32"]["training"]["loss_difference"] < 1e-4
    text = output.with_suffix(".md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text.count("\n| fp32 |") == text.count("\n| bf16 |") == 4


def test_what_differs_is_a_fault() -> None:
    right = {"parity": {"largest": 1e-5}, "training": {"loss_difference": 1e-5}}
    assert gpu_check.faults({"precisions": {"fp32": right}}) == []
    wrong = {"parity": {"largest": 0.1}, "training": {"loss_difference": 0.2}}
    assert len(gpu_check.faults({"precisions": {"fp32": wrong}})) == 2


def test_settings_are_put_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with gpu_check.computing_in("tf32", torch.device("cpu")):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    with gpu_check.computing_in("bf16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
