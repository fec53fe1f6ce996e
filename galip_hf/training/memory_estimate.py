"""Peak memory of a training process, estimated before anything is trained.

Weights, gradients, Adam's moments and the moving average are counted. What a step holds for its backward
passes is in proportion to the images of a batch: for each image, so many times what one translation keeps
for its own, which is measured by running one; and a smaller part for the frozen ViT. The factors were fitted
to runs on a CPU; docs/training.md lists them, with the error of the estimate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.modeling_galip import GalipForImageTranslation
from .training_args import GalipTrainingArguments

_FLOAT, _HALF = 4, 2  # bytes

# A step holds the graphs of two translations at a time, and gradients and copies on top.
_TRANSLATIONS = 3.3
# Bytes of the frozen ViT and of the heads for each image, token, channel and block.
_VIT_BYTES = 16
# Share of the translations' memory that is left in half precision (norms stay in float32), and when blocks
# are computed again in the backward pass.
_HALF_PRECISION = 0.75
_CHECKPOINTED = 0.72
# What a process on a CPU holds besides: Python, the libraries, the data at hand.
_PROCESS_BYTES = 1.1e9


@dataclass(frozen=True)
class FrozenClip:
    """Shape of a CLIP model.

    Attributes:
        parameters: of both towers.
        tokens, width, depth: of the image tower.
        text_width, text_length, embedding_width: as in `GalipConfig`.
    """

    parameters: int
    tokens: int
    width: int
    depth: int
    text_width: int
    text_length: int
    embedding_width: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training process at its peak.

    Attributes:
        weights: weights, gradients, Adam's moments, the moving average and the frozen CLIP model; counted.
        activations: what a step holds for its backward passes; estimated.
        process: what a process on a CPU holds besides; 0 on other devices, whose memory holds none of it.
    """

    weights: float
    activations: float
    process: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.activations + self.process


def estimate_memory(
    generator: GalipForImageTranslation,
    discriminator_parameters: int,
    clip: FrozenClip,
    arguments: GalipTrainingArguments,
    device_type: str,
) -> MemoryEstimate:
    """Estimate the peak of one training process.

    Args:
        generator: in float32 on the CPU; one slice of its `image_size` is translated.
        discriminator_parameters: of the heads of all domains.
        clip: the frozen model.
        arguments: of the run, `mixed_precision` being settled.
        device_type: `cpu`, or that of an accelerator.
    """
    images = 2 * arguments.batch_size
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    # A step has gradients for the heads of its own domains only; Adam's moments are kept for all.
    drawn = images * arguments.gradient_accumulation_steps / len(generator.config.domains)
    weights = _FLOAT * (
        parameters * (1 + 1 + 2 + 1)  # weight, gradient, two moments, moving average
        + discriminator_parameters * (1 + min(1.0, drawn) + 2)
        + clip.parameters
    )
    translations = images * _TRANSLATIONS * translation_bytes(generator)
    if arguments.gradient_checkpointing:
        translations *= _CHECKPOINTED
    if arguments.mixed_precision not in (None, "no"):
        translations *= _HALF_PRECISION
        weights += _HALF * (parameters + discriminator_parameters)  # autocast's copies
    vit = images * clip.tokens * clip.width * clip.depth * _VIT_BYTES
    return MemoryEstimate(weights, translations + vit, _PROCESS_BYTES if device_type == "cpu" else 0.0)


def translation_bytes(generator: GalipForImageTranslation) -> int:
    """Bytes that one translation of one slice keeps for its backward pass, weights not counted."""
    size = generator.config.image_size
    weights = {parameter.untyped_storage().data_ptr() for parameter in generator.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    image, prompt = torch.rand(1, 1, size, size), torch.rand(1, *generator.config.prompt_states_shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = generator.train()(image, generator.config.domain_names[0], prompt)
    assert output.translation.requires_grad  # the graph is alive, so all that it keeps was counted
    return sum(storage.nbytes() for storage in kept.values())


__all__ = ["FrozenClip", "MemoryEstimate", "estimate_memory", "translation_bytes"]
