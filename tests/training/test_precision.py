"""Which precision a run uses, deterministic algorithms, and training on from weights in half precision."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import MakeTrainer, filled_model, tiny_config, tiny_run_recipe
from safetensors.torch import load_file
from torch.backends import cuda

from galip_hf import GalipError, GalipForImageTranslation
from galip_hf.training.precision import use_deterministic_algorithms, with_launcher_precision
from galip_hf.training.recipe import load_recipe
from galip_hf.training.run_recipe import run_recipe
from galip_hf.training.training_args import GalipTrainingArguments


@pytest.mark.parametrize(
    ("stated", "launched", "used"),
    [
        (None, None, "no"),
        (None, "no", "no"),
        (None, "bf16", "bf16"),
        (None, "fp16", "fp16"),
        ("bf16", None, "bf16"),
        ("bf16", "no", "bf16"),  # what the launcher says without the option
        ("fp16", "fp16", "fp16"),
        ("no", "no", "no"),
    ],
)
def test_the_precision_is_the_stated_one_else_the_launcher_s(
    stated: str | None, launched: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launched is None:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    else:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    arguments = with_launcher_precision(GalipTrainingArguments("run", mixed_precision=stated))
    assert arguments.mixed_precision == used
    assert with_launcher_precision(arguments) == arguments


@pytest.mark.parametrize(
    ("stated", "launched", "message"),
    [
        ("bf16", "fp16", "training.mixed_precision is bf16, but the launcher was given fp16"),
        ("no", "bf16", "training.mixed_precision is no, but the launcher was given bf16"),
        (None, "fp8", "the launcher was given mixed_precision fp8; expected one of no, bf16, fp16"),
    ],
)
def test_a_contradiction_is_refused(
    stated: str | None, launched: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(GalipError, match=message):
        with_launcher_precision(GalipTrainingArguments("run", mixed_precision=stated))


def test_the_trainer_computes_in_the_launcher_s_precision(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = make_trainer(max_steps=1)
    seen: set[torch.dtype] = set()
    for label in range(3):
        layer = trainer.state.discriminator.heads(label)[0].text_projection
        layer.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    trainer.train()
    assert seen == {torch.bfloat16}


@pytest.fixture
def restored_algorithms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's settings are as they were after the test."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    for enable in (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp):
        enable(True)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_algorithms_are_chosen_on_request(
    make_trainer: MakeTrainer, restored_algorithms: None, deterministic: bool
) -> None:
    make_trainer(deterministic=deterministic, max_steps=2).train()
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.is_deterministic_algorithms_warn_only_enabled() is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic
    fast = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled())
    assert fast == (not deterministic,) * 3 and cuda.math_sdp_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)


def test_a_workspace_that_the_user_chose_stays(
    restored_algorithms: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    use_deterministic_algorithms()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


# Weights in half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_on_from_half_weights_keeps_float32_weights_and_average(
    dtype: torch.dtype, tmp_path: Path, table_directory: Path, clip_directory: Path
) -> None:
    saved = filled_model(tiny_config()).to(dtype)
    saved.save_pretrained(tmp_path / "half")
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} == {dtype}
    path = tiny_run_recipe(
        tmp_path / "recipe.yaml",
        table_directory,
        clip_directory,
        initial_model=str(tmp_path / "half"),
        max_steps=4,
        learning_rate=1e-6,  # steps too small for half precision to notice
        ema_decay=0.999,
    )
    trainer = run_recipe(load_recipe(path, ["model={}"]))
    before = dict(saved.float().named_parameters())
    for module in (trainer.state.generator, trainer.state.averaged_model):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        moved = [not torch.equal(value, before[name]) for name, value in module.named_parameters()]
        assert sum(moved) > 0.9 * len(moved)
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_a_half_model_in_the_trainer_s_hands_becomes_float32(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=1)
    half = GalipForImageTranslation(tiny_config()).to(torch.bfloat16)
    again = type(trainer)(
        half, trainer.processor, trainer.backbone, trainer.arguments, trainer.loader.dataset
    )
    for module in (again.state.generator, again.state.averaged_model):
        assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
