"""Checkpoints: a round trip, no half-written one, rotation, differences, no code from a file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from galip_hf import GalipError, __version__
from galip_hf.training.checkpoint_files import (
    latest_checkpoint,
    load_optimizer_tensors,
    load_state,
    load_tensors,
    optimizer_tensors,
    refuse_differences,
    save_checkpoint,
)


def test_round_trip(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "checkpoints"
    assert latest_checkpoint(directory) is None
    weights = {"a": torch.tensor([1.5, -2.0]), "b": torch.arange(6).reshape(2, 3).T}
    path = save_checkpoint(directory, 7, {"generator": weights}, {"lr": 0.1 + 0.2, "best": {"step": 3}})
    assert latest_checkpoint(directory) == path == directory / "step-00000007"
    assert load_state(path) == {"step": 7, "galip_hf": __version__, "lr": 0.1 + 0.2, "best": {"step": 3}}
    loaded = load_tensors(path, "generator")
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_the_oldest_ones_go_and_the_highest_step_is_the_latest(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, step, {}, {}, total_limit=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}" for n in (2, 9, 10)]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and latest.name == "step-00000010"


def test_a_failed_save_leaves_the_old_ones(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {}, {})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 2, {"generator": {"a": torch.zeros(3)}}, {"unsaveable": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_what_a_killed_save_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {}, {})
    half = tmp_path / ".step-00000002.abc" / "step-00000002"
    half.mkdir(parents=True)
    (half / "generator.safetensors").write_bytes(b"half")
    (tmp_path / "notes").mkdir()  # of the user: neither a checkpoint nor in the way
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and latest.name == "step-00000001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-00000001"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_files(tmp_path: Path, content: bytes | None) -> None:
    path = save_checkpoint(tmp_path, 1, {"generator": {"weight": torch.zeros(1000)}}, {})
    for name, read in (
        ("generator.safetensors", lambda: load_tensors(path, "generator")),
        ("state.json", lambda: load_state(path)),
    ):
        file = path / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
        with pytest.raises(
            GalipError, match=r"not readable as a checkpoint \(.+\); delete .+step-0"
        ) as caught:
            read()
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {}, {})
    with pytest.raises(GalipError, match=r"ema\.safetensors: not readable as a checkpoint"):
        load_tensors(path, "ema")


def test_a_pickle_in_the_place_of_tensors_is_not_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {}, {})
    torch.save({"weight": torch.zeros(3)}, path / "ema.safetensors")
    with pytest.raises(GalipError, match="not readable as a checkpoint"):
        load_tensors(path, "ema")


def test_optimiser_round_trip(tmp_path: Path) -> None:
    def make() -> tuple[list[torch.nn.Parameter], torch.optim.Adam]:
        parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
        return parameters, torch.optim.Adam(parameters, lr=0.1, fused=True)

    def step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Adam, value: float) -> None:
        parameters[1].grad = torch.full((2, 2), value)  # the first one is never moved
        optimizer.step()

    first, first_optimizer = make()
    step(first, first_optimizer, 1.0)
    save_file(optimizer_tensors(first_optimizer), tmp_path / "optimizer.safetensors")
    second, second_optimizer = make()
    second[1].data.copy_(first[1].data)
    load_optimizer_tensors(second_optimizer, load_file(tmp_path / "optimizer.safetensors"))
    for parameters, optimizer in ((first, first_optimizer), (second, second_optimizer)):
        step(parameters, optimizer, -3.0)
    assert torch.equal(first[1], second[1])
    assert set(optimizer_tensors(second_optimizer)) == {"1.step", "1.exp_avg", "1.exp_avg_sq"}


def test_differences_are_named(tmp_path: Path) -> None:
    refuse_differences(tmp_path, {"a": 1, "b": [1]}, {"a": 1, "b": [1]}, "model")
    with pytest.raises(GalipError, match=r"was made with model b=\[1\], this run has \[2\]; set it back"):
        refuse_differences(tmp_path, {"a": 1, "b": [1]}, {"a": 1, "b": [2]}, "model")
    with pytest.raises(GalipError, match=r"c=None, this run has 3"):
        refuse_differences(tmp_path, {"a": 1}, {"a": 1, "c": 3}, "model")
