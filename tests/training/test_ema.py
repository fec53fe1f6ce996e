"""The moving average: its warm-up, what it follows and what it leaves alone."""

import pytest
import torch
from torch import nn

from galip_hf.training.ema import ExponentialMovingAverage


class Counter(nn.Module):
    """One parameter and one buffer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.count: torch.Tensor
        self.register_buffer("count", torch.tensor(0))


def test_warm_up_then_the_decay() -> None:
    module = Counter(0.0)
    average = ExponentialMovingAverage(module, decay=0.3)
    module.weight.data.fill_(1.0)
    expected = 0.0
    for decay in (2 / 11, 3 / 12, 0.3, 0.3):  # 4/13 > 0.3: warmed up
        average.update(module)
        expected = decay * expected + (1 - decay) * 1.0
        assert average.module.weight.item() == pytest.approx(expected)
    assert average.updates == 4


def test_a_long_run_keeps_its_share() -> None:
    module = Counter(1.0)
    average = ExponentialMovingAverage(module, decay=0.99)
    average.updates = 10_000
    module.weight.data.fill_(0.0)
    average.update(module)
    assert average.module.weight.item() == pytest.approx(0.99)


def test_buffers_are_copied_not_averaged() -> None:
    module = Counter(0.0)
    average = ExponentialMovingAverage(module, decay=0.99)
    module.count.fill_(7)
    average.update(module)
    assert average.module.count.item() == 7


def test_the_copy_is_frozen_independent_and_in_eval_mode() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    average = ExponentialMovingAverage(module, decay=0.5)
    before = average.module[0].weight.clone()
    module[0].weight.data.add_(1.0)
    assert torch.equal(average.module[0].weight, before)
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.training and not average.module[1].training
    average.update(module)
    assert not average.module[0].weight.requires_grad
    assert average.module[0].weight.grad_fn is None
