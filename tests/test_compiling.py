"""Compiling where there is a compiler: the same gradients, the same names; one line where there is none."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from conftest import filled_model, tiny_config

from galip_hf.compiling import can_compile, missing_compiler
from galip_hf.discriminator import GalipDiscriminator

CPU = torch.device("cpu")


def test_without_a_compiler_one_line_and_no_compiling(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    absent = inductor_config.patch({"cpp.cxx": ("no-such-compiler",)})
    with absent, caplog.at_level(logging.WARNING, logger="galip_hf.compiling"):
        assert not can_compile(CPU)
    (record,) = caplog.records
    assert record.message.startswith("torch_compile: no C++ compiler") and "without it" in record.message


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
