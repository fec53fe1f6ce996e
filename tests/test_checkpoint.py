"""Checkpoints: a round trip, no half-written one, no code from a file."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from galip_hf import GalipError
from galip_hf.checkpoint import load_checkpoint, save_checkpoint


def test_round_trip_replaces_the_old_one(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "checkpoint"
    assert load_checkpoint(directory) is None
    save_checkpoint(directory, {"step": 1, "weight": torch.zeros(2)})
    weight = torch.tensor([1.5, -2.0])
    save_checkpoint(directory, {"step": 2, "weight": weight, "nested": {"name": "a", "values": [1, 2.5]}})
    state = load_checkpoint(directory)
    assert state is not None
    assert state["step"] == 2
    assert torch.equal(state["weight"], weight)
    assert state["nested"] == {"name": "a", "values": [1, 2.5]}
    assert [path.name for path in directory.parent.iterdir()] == ["checkpoint"]


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    save_checkpoint(directory, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(directory, {"step": 2, "unsaveable": lambda: None})
    assert load_checkpoint(directory) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint(tmp_path: Path, content: bytes | None) -> None:
    directory = tmp_path / "checkpoint"
    save_checkpoint(directory, {"weight": torch.zeros(1000)})
    path = directory / "state.pt"
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(
        GalipError, match=r"not readable as a checkpoint \(.+\); delete it to start anew"
    ) as caught:
        load_checkpoint(directory)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    torch.save({"step": Malicious(trace)}, directory / "state.pt")
    with pytest.raises(GalipError, match="not readable as a checkpoint"):
        load_checkpoint(directory)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))  # the trap works
    assert trace.exists()
