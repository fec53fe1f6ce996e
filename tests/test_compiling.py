"""Compiling where there is a compiler: the same gradients, the same names; one line where there is none."""

import logging

import pytest
import torch
import torch._inductor.config as inductor_config
from conftest import filled_model, tiny_config

from galip_hf.compiling import compile_where_possible, missing_compiler

CPU = torch.device("cpu")


def test_without_a_compiler_one_line_and_no_compiling(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    model = filled_model(tiny_config())
    absent = inductor_config.patch({"cpp.cxx": ("no-such-compiler",)})
    with absent, caplog.at_level(logging.WARNING, logger="galip_hf.compiling"):
        assert not compile_where_possible(model, CPU)
    (record,) = caplog.records
    assert record.message.startswith("torch_compile: no C++ compiler") and "without it" in record.message
    assert model(torch.rand(1, 1, 16, 16), "T1").translation.shape == (1, 1, 16, 16)


@pytest.mark.skipif(missing_compiler(CPU) is not None, reason="no compiler here")
def test_a_compiled_block_has_the_same_gradients_and_names() -> None:
    # One block: to compile the whole network takes minutes.
    plain, compiled = (filled_model(tiny_config()).encoder[0].blocks[0] for _ in "12")
    assert compile_where_possible(compiled, CPU)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    generator = torch.Generator().manual_seed(0)
    hidden, label = torch.randn(2, 8, 16, 16, generator=generator), torch.randn(2, 16, generator=generator)
    states = torch.randn(2, 12, 16, generator=generator)
    gradients = []
    for block in (plain, compiled):
        loss = block(hidden, label, states).square().mean()
        gradients.append(torch.autograd.grad(loss, list(block.parameters())))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
