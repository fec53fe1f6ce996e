"""Compiling where there is a compiler: the same gradients, the same names; one line where there is none."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from conftest import MakeTrainer, filled_model, tiny_config
from safetensors.torch import load_file

from galip_hf.training.checkpoint_files import latest_checkpoint
from galip_hf.training.discriminator import GalipDiscriminator
from galip_hf.training.step import can_compile, missing_compiler

CPU = torch.device("cpu")


def test_without_a_compiler_one_line_and_no_compiling(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    absent = inductor_config.patch({"cpp.cxx": ("no-such-compiler",)})
    with absent, caplog.at_level(logging.WARNING, logger="galip_hf.training.compiling"):
        assert not can_compile(CPU)
    (record,) = caplog.records
    assert record.message.startswith("torch_compile: no C++ compiler") and "without it" in record.message


@pytest.mark.skipif(missing_compiler(CPU) is not None, reason="no compiler here")
def test_a_compiled_run_is_a_plain_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    torch.compiler.reset()
    logs, keys = {}, {}
    for compiled in (False, True):
        output = tmp_path / str(compiled)
        # One level: to compile more takes minutes.
        trainer = make_trainer(
            output_dir=str(output),
            torch_compile=compiled,
            batch_size=1,
            logging_steps=1,
            checkpoint_steps=3,
            model_fields={"channel_multipliers": [1], "attention_rates": [1]},
        )
        trainer.train()
        logs[compiled] = [
            json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        checkpoint = latest_checkpoint(output / "checkpoints")
        assert checkpoint is not None
        files = [*checkpoint.glob("*.safetensors"), output / "model" / "model.safetensors"]
        keys[compiled] = {path.name: set(load_file(path)) for path in files}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was not plain, too
    assert keys[True] == keys[False]
    assert not any("_orig_mod" in key for names in keys[True].values() for key in names)
    for compiled, plain in zip(logs[True], logs[False], strict=True):
        for group in ("losses", "discriminator_outputs", "gradient_norms"):
            assert compiled[group] == pytest.approx(plain[group], rel=1e-3, abs=1e-5)


# Without graph breaks: `aot_eager` traces forward and backward as a compiler would, and needs none.


def whole(call: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, backend="aot_eager")


def test_the_generator_is_one_graph() -> None:
    model, images = filled_model(tiny_config()), torch.rand(2, 1, 16, 16)
    labels, parameter = torch.tensor([0, 2]), model.encoder[0].blocks[0].residual.conv_in.weight
    compiled = whole(lambda given, target: model(given, target).translation)
    expected, found = model(images, labels).translation, compiled(images, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(output.abs().mean(), parameter)[0] for output in (expected, found)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_translation_is_one_graph() -> None:
    model, images = filled_model(tiny_config()), torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        targets = [model.prepare_target(name) for name in ("T1", "CT")]
        expected = model.translate(images, targets)
        found = whole(lambda given: model.translate(given, targets))(images)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_heads_are_one_graph() -> None:
    torch.manual_seed(0)
    discriminator = GalipDiscriminator(domains=3, layers=2, width=32, text_width=24)
    tokens, text = [torch.randn(3, 16, 32) for _ in range(2)], torch.randn(3, 24)
    compiled = whole(lambda given: discriminator(given, [2, 0, 2], text))
    expected, found = discriminator(tokens, [2, 0, 2], text), compiled(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight = discriminator.heads(2)[0].neighbourhood.linear.weight
    gradients = [torch.autograd.grad(output.square().mean(), weight)[0] for output in (expected, found)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
