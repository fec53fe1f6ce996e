"""What a training step computes, counted: a guard of its speed that no clock is needed for."""

from typing import Any

import pytest
import torch
from conftest import MakeTrainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from galip_hf.data.unpaired_batch import UnpairedBatch
from galip_hf.training.trainer import GalipTrainer


def a_step(trainer: GalipTrainer) -> tuple[UnpairedBatch, list[int]]:
    batch = next(trainer.loader.steps(0))[0]
    return batch, sorted(set(batch.target_domains))


def flops(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def test_a_step_passes_each_network_no_more_often_than_it_must(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    generator, backbone, discriminator = (
        trainer.state.generator,
        trainer.backbone,
        trainer.state.discriminator,
    )
    batch, domains = a_step(trainer)
    calls: list[str] = []
    modules = {
        "encoder": generator.conv_in,
        "decoder": generator.middle,
        "image tower": backbone.clip.visual,
        "text tower": backbone.clip.text,
        "heads": discriminator,
        "head": discriminator.heads(domains[0])[0],
    }
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name, module in modules.items()
    ]
    # The image tower is entered by its trunk.
    hooks.append(
        backbone.clip.visual.trunk.patch_embed.register_forward_pre_hook(lambda *_: calls.append("image"))
    )
    trainer.training_step([batch], domains)
    for hook in hooks:
        hook.remove()
    counts = {name: calls.count(name) for name in (*modules, "image")}
    # Fake and reconstruction are encoded, the identity shares the fake's; fakes and reals are looked at once.
    assert counts == {
        "encoder": 2,
        "decoder": 3,
        "image": 2,
        "image tower": 0,
        "text tower": 0,
        "heads": 1,
        "head": 1,
    }


def test_a_step_does_no_more_operations_than_its_passes(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(model_fields={"norm_groups": 8})
    generator, backbone, discriminator = (
        trainer.state.generator,
        trainer.backbone,
        trainer.state.discriminator,
    )
    assert generator.config.shared_levels == 1
    batch, domains = a_step(trainer)
    step = flops(lambda: trainer.training_step([batch], domains))
    with torch.no_grad():
        features, states = generator.encode(batch.sources), generator.prompt_states[batch.target_labels]
        shared = flops(lambda: generator.encode(batch.sources))  # by the fakes and the identity
        decode = flops(lambda: generator.decode(features, batch.target_labels, states))
        back = shared + decode
        look = flops(lambda: backbone.encode_images(batch.sources))
        tokens = [torch.cat([part, part]) for part in backbone.encode_images(batch.sources).patch_tokens]
        text = trainer.gradients.text_embeddings[torch.cat([batch.target_labels] * 2)]
        heads = flops(lambda: discriminator(tokens, batch.target_domains * 2, text))
    # A backward pass costs two forward ones, one where no weight is trained; that of the heads is run for the
    # fakes, and for the weights.
    expected = 3 * (shared + 2 * decode + back) + (2 + 1) * look + (1 + 1 + 2) * heads
    # Attention is computed again in its backward pass; first layers hand no gradient on.
    assert step == pytest.approx(expected, rel=0.1)


class HostReads(TorchDispatchMode):
    """Notes the operations that wait for a device: values brought to the host, shapes that depend on values.

    Copies to the host are told by a device alone, and here there is none but the host.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITING or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_guard_of_host_reads_sees_them() -> None:
    with HostReads() as reads:
        value = torch.ones(2).sum()
        value.item()
        bool(value > 0)
        torch.ones(2)[torch.tensor([True, False])]
    assert reads.found == ["_local_scalar_dense", "_local_scalar_dense", "index"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_nothing_in_a_step_waits_for_the_device(make_trainer: MakeTrainer, precision: str) -> None:
    trainer = make_trainer(mixed_precision=precision, max_gradient_norm=1.0)
    batch, domains = a_step(trainer)
    trainer.training_step([batch], domains)
    with HostReads() as reads:
        values = trainer.training_step([batch], domains)
    assert reads.found == []
    assert all(isinstance(value, Tensor) for group in values.values() for value in group.values())


def test_a_step_costs_the_same_whatever_the_number_of_domains(make_trainer: MakeTrainer) -> None:
    """Of the batch's domains alone are heads run, and moved."""
    trainer = make_trainer()
    batch, _ = a_step(trainer)
    first, second = batch.target_domains[0], batch.target_domains[-1]
    assert first != second
    calls: list[int] = []
    for label, heads in enumerate(trainer.state.discriminator.domains):
        heads[0].register_forward_pre_hook(lambda *_, label=label: calls.append(label))
    trainer.training_step([batch], sorted(set(batch.target_domains)))
    assert sorted(calls) == sorted(set(batch.target_domains))
