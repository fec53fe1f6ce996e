"""A batch of unpaired images, as the training step takes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnpairedBatch:
    """N images to translate, each with a real image of its target domain: of B pairs, both directions.

    Attributes:
        sources: (N, 1, H, W).
        targets: (N, 1, H, W), real images of the target domains.
        source_labels, target_labels: (N,) int64, on the device.
        registered: (N,) float, 1 where source and target are one subject and slice.
        target_domains: N labels, on the host.
        rows: of the sources: numbers in the table, or what a stream calls them.
        target_views: numbers of the targets' slices, mirrored ones having their own; none from a stream.
    """

    sources: Tensor
    targets: Tensor
    source_labels: Tensor
    target_labels: Tensor
    registered: Tensor
    target_domains: tuple[int, ...]
    rows: tuple[int | str, ...]
    target_views: tuple[int, ...]

    @classmethod
    def of(cls, items: Mapping[str, Tensor]) -> "UnpairedBatch":
        """From collated items of `UnpairedSlices`, on the host."""
        images, labels = (
            [
                torch.cat([items[f"{name}_{first}"], items[f"{name}_{second}"]])
                for first, second in ("ab", "ba")
            ]
            for name in ("image", "domain")
        )
        views = [items[name].tolist() for name in ("view_b", "view_a") if name in items]
        return cls(
            sources=images[0],
            targets=images[1],
            source_labels=labels[0],
            target_labels=labels[1],
            registered=items["registered"].float().repeat(2),
            target_domains=tuple(labels[1].tolist()),
            rows=(*_listed(items["row_a"]), *_listed(items["row_b"])),
            target_views=tuple(chain.from_iterable(views)),
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> "UnpairedBatch":
        values: dict[str, Any] = {
            name: change(value) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return UnpairedBatch(**values)

    def to(self, device: torch.device) -> "UnpairedBatch":
        """The tensors on a device; from pinned memory without waiting."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "UnpairedBatch":
        """Called by the DataLoader where it pins memory."""
        return self._map(Tensor.pin_memory)


def _listed(values: Tensor | Sequence[str]) -> list[int | str]:
    return values.tolist() if isinstance(values, Tensor) else list(values)


__all__ = ["UnpairedBatch"]
