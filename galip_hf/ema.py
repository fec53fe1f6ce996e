"""Exponential moving average of the generator's weights, warmed up so that it is not grey early on."""

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """A copy of a module whose parameters follow the original's.

    Args:
        module: the module to follow; copied, the copy is in eval mode and takes no gradients.
        decay: share of the old average kept at each update. Early on it is min(decay, (1 + n) / (10 + n))
            after n updates, so that the initial weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards `module`'s parameters; buffers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = [parameter.data for parameter in self.module.parameters()]
        torch._foreach_lerp_(averages, [parameter.data for parameter in module.parameters()], 1 - decay)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)


__all__ = ["ExponentialMovingAverage"]
