"""Exponential moving average of the generator's weights, warmed up so that it is not grey early on."""

import copy

import torch
from torch import Tensor, nn


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
    def update(self, module: nn.Module, skip: Tensor | None = None) -> None:
        """Move the average towards `module`'s parameters; buffers are copied.

        Args:
            module: the original.
            skip: (), 1 where this update is not to be made, 0 where it is; stays on the device.
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = [parameter.data for parameter in self.module.parameters()]
        changes = torch._foreach_sub([parameter.data for parameter in module.parameters()], averages)
        torch._foreach_mul_(changes, 1 - decay)
        if skip is not None:
            torch._foreach_mul_(changes, 1 - skip)
        torch._foreach_add_(averages, changes)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)


__all__ = ["ExponentialMovingAverage"]
