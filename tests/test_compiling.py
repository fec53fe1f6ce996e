"""Compiling where there is a compiler: the same gradients, the same names; one line where there is none."""

import json
import logging
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor_config
from conftest import MakeTrainer, filled_model, tiny_config
from safetensors.torch import load_file

from galip_hf.checkpoint import latest_checkpoint
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
