"""The generator as a module with tensors as its only inputs, which is what torch.export can trace.

What depends on the targets alone (the labels' embeddings, the prompts' keys and values) is computed before
the export and becomes constants of the graph, so that the text states and their projections are not in it.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model.configuration_galip import GalipConfig
from ..model.unet import GalipGenerator
from ..model.unet_blocks import KeysAndValues

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
IMAGES, TARGET, TRANSLATION = "pixel_values", "target", "translation"  # names of inputs and output


def size_multiple(config: GalipConfig) -> int:
    """What height and width of an exported graph's images must be multiples of: the coarsest rate."""
    return 2 ** (len(config.channel_multipliers) - 1)


class ExportableGenerator(nn.Module):
    """The generator in one floating-point type, with the prompts folded in.

    Args:
        generator: in evaluation mode; copied, not modified.
        targets: names of the domains to translate to, each an output of its own; None makes the target an
            input: labels, the places of the domains in the configuration.
        dtype: key of `DTYPES`, the type of weights and activations. Statistics of the norms are float32, and
            images go in and come out as float32, whatever it is.

    Raises:
        GalipError: an unknown domain, or a model without prompt states.
    """

    label_embeddings: Tensor  # (P, label_width), after their SiLU; P: number of prompts kept

    def __init__(self, generator: GalipGenerator, targets: Sequence[str] | None, dtype: str = "fp32") -> None:
        super().__init__()
        self.targets = None if targets is None else list(targets)
        names = generator.config.domain_names if self.targets is None else self.targets
        with torch.no_grad():
            prepared = [generator.prepare_target(name) for name in names]
            labels = torch.cat([target.label_embedding for target in prepared])
        self.generator = copy.deepcopy(generator).to(DTYPES[dtype]).eval()
        del self.generator.prompt_states  # their keys and values take their place
        copies = dict(zip(generator.modules(), self.generator.modules(), strict=True))
        self.register_buffer("label_embeddings", labels.to(DTYPES[dtype]))
        self._attentions: list[nn.Module] = []
        for number, attention in enumerate(prepared[0].prompt):
            self._attentions.append(copies[attention])
            for name, part in (("keys", 0), ("values", 1)):
                states = torch.cat([target.prompt[attention][part] for target in prepared])
                # (P, heads, tokens, d)
                self.register_buffer(f"{name}_{number}", states.to(DTYPES[dtype]).contiguous())

    def forward(self, pixel_values: Tensor, target: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """Translate.

        Args:
            pixel_values: (B, 1, H, W) float32 in [0, 1]; H and W multiples of `size_multiple`.
            target: (B,) int64 labels, where the target is an input.

        Returns:
            (B, 1, H, W) float32; with fixed targets one for each of them.
        """
        features = self.generator.encode(pixel_values)
        if self.targets is None:
            assert target is not None
            return self._decode(features, target)
        fixed = (slice(number, number + 1) for number in range(len(self.targets)))
        return tuple(self._decode(features, place) for place in fixed)

    def _decode(self, features: list[Tensor], place: Tensor | slice) -> Tensor:
        """`place`: a label for each image, or the one place of all of them, in the stored prompts."""
        prompt = {attention: self._stored(number, place) for number, attention in enumerate(self._attentions)}
        return self.generator.decode_embedded(features, self.label_embeddings[place], prompt).float()

    def _stored(self, number: int, place: Tensor | slice) -> KeysAndValues:
        keys, values = (getattr(self, f"{name}_{number}") for name in ("keys", "values"))
        return keys[place], values[place]


def traced(module: ExportableGenerator) -> torch.export.ExportedProgram:
    """The graph of `module`, for any batch, height and width (multiples of `size_multiple`)."""
    multiple = size_multiple(module.generator.config)
    batch, rows, columns = (torch.export.Dim(name, min=1) for name in ("batch", "rows", "columns"))
    # An example's lengths differ from each other and from 1: those would be taken for fixed.
    images = torch.zeros(2, 1, 3 * multiple, 4 * multiple)
    lengths = {0: batch, 2: multiple * rows, 3: multiple * columns}
    inputs: tuple[Tensor, ...] = (images,)
    dynamic: dict[str, object] = {IMAGES: lengths}
    if module.targets is None:
        inputs, dynamic = (images, torch.zeros(2, dtype=torch.long)), {IMAGES: lengths, TARGET: {0: batch}}
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=dynamic)


__all__ = ["DTYPES", "IMAGES", "TARGET", "TRANSLATION", "ExportableGenerator", "size_multiple", "traced"]
