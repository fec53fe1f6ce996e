"""The gradients of one batch: what a training step of I2I-Galip computes, without its optimisers.

Source: Korkmaz & Patel, MIDL 2025, section 2. For an image x of domain A and a real image y of domain B:

1. keys and values of the prompts, and the target-independent part of the generator's encoder, computed once:
   G(x, A) and G(x, B) both start from them;
2. identity G(x, A): its loss, and the backward pass down to the results of 1;
3. fake G(x, B) and its reconstruction G(fake, A): the cycle loss, and the backward pass down to the fake;
4. one pass of the frozen ViT over the fake (with gradients) and one over y (without); one pass of the heads
   over the features of both, detached from the generator: it gives the discriminator's loss and the gradient
   of the generator's adversarial loss with respect to the fake's features; then backward to the fake. Where
   there is a patch discriminator, the same with the pixels of both in place of features;
5. the backward pass through the fake with the sum of these gradients, then through 1 with the sum of its own.

The result is the gradient of the sum of all losses, but the graphs of at most two generator calls are held at
a time. Both networks are evaluated at each other's present weights, and gradients of several batches can be
summed before either is updated: accumulation is exact.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..clip.backbone import ClipBackbone, ClipImageFeatures
from ..data.unpaired_batch import UnpairedBatch
from ..model.modeling_galip import GalipForImageTranslation
from ..model.unet_blocks import KeysAndValues
from . import losses
from .discriminator import GalipDiscriminator
from .patch_discriminator import PatchDiscriminator
from .training_args import GalipLossWeights

logger = logging.getLogger(__name__)

Values = dict[str, Tensor]


def first_gradient(loss: Tensor) -> Tensor:
    """The gradient that a backward pass starts from: 1, but NaN where the loss is not finite.

    Gradients can be finite although the loss is not, and only gradients are shared between processes.
    """
    return torch.where(loss.isfinite(), 1.0, math.nan).to(loss)


def _backward(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    inputs: Sequence[Tensor] | None = None,
) -> None:
    """A backward pass in the types of the forward pass: autocast would choose them again."""
    with torch.autocast(outputs[0].device.type, enabled=False):
        torch.autograd.backward(outputs, gradients, inputs=inputs)


class _Cut:
    """Tensors at which the graph is cut: `leaves` accumulate the gradients of what is computed from them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.leaves = [tensor.detach().requires_grad_() for tensor in tensors]

    def backward(self) -> None:
        """Continue the backward pass from the leaves that received a gradient."""
        used = [
            (t, leaf.grad) for t, leaf in zip(self.tensors, self.leaves, strict=True) if leaf.grad is not None
        ]
        _backward([tensor for tensor, _ in used], [gradient for _, gradient in used])


@dataclass(frozen=True)
class _Prompts:
    """Keys and values of some domains' prompts for each cross-attention.

    Attributes:
        labels: (P,) int64 of these domains, in order.
        modules: the cross-attentions.
        cut: keys and values of the first of them, of the second one, ...
    """

    labels: Tensor
    modules: list[nn.Module]
    cut: _Cut

    def of(self, labels: Tensor) -> dict[nn.Module, KeysAndValues]:
        """Keys and values of each sample's prompt, for labels (N,) among `self.labels`."""
        positions = torch.searchsorted(self.labels, labels)
        chosen = [leaf.index_select(0, positions) for leaf in self.cut.leaves]
        return dict(zip(self.modules, zip(chosen[::2], chosen[1::2], strict=True), strict=True))


class TrainingStep:
    """Adds the gradients of a batch to those of the generator and of the discriminator.

    Args:
        generator, discriminator: what is trained.
        backbone: frozen.
        text_embeddings: (domains, E) of the prompts.
        weights: of the losses. A loss of weight 0 is neither computed nor returned.
        autocast: makes the context of mixed precision.
        scale_loss: multiplies a loss by the scale of float16 training; by default leaves it.
        compiled: compile the generator with `torch.compile`.
        real_features: (images, numbers) -> their CLIP features, from a cache; by default they are computed.
        patch_discriminator: with the loss `patch`.

    Attributes:
        adversarial_factor: multiplies the weights of the generator's adversarial losses, `adversarial` and
            `patch`; the trainer changes it from step to step.
    """

    def __init__(
        self,
        generator: GalipForImageTranslation,
        discriminator: GalipDiscriminator,
        backbone: ClipBackbone,
        text_embeddings: Tensor,
        weights: GalipLossWeights,
        autocast: Callable[[], AbstractContextManager],
        scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
        compiled: bool = False,
        real_features: Callable[[Tensor, tuple[Any, ...]], ClipImageFeatures] | None = None,
        patch_discriminator: PatchDiscriminator | None = None,
    ) -> None:
        self.generator, self.discriminator, self.backbone = generator, discriminator, backbone
        self.text_embeddings, self.weights = text_embeddings, weights
        self.patch_discriminator = patch_discriminator
        self.adversarial_factor = 1.0
        self.autocast, self.scale_loss = autocast, scale_loss
        self._real_features = real_features or (lambda images, views: backbone.encode_images(images))
        self._encode = torch.compile(generator.encode) if compiled else generator.encode
        self._decode = torch.compile(generator.decode) if compiled else generator.decode

    def backward(self, batch: UnpairedBatch, share: float = 1.0) -> dict[str, Values]:
        """Add the gradients of a batch, times `share`; nothing waits for the device.

        Returns:
            Detached values on the device: `losses` by name (unweighted means over both directions), and, with
            an adversarial loss, `discriminator_outputs`, the mean logits of `real` and `fake` (of the patch
            discriminator: `patch_real` and `patch_fake`).
        """
        values: dict[str, Values] = {"losses": {}}
        weights = self.weights
        with self.autocast():
            prompts = self._prompts(batch)
            on_pixels = weights.cycle or weights.paired or weights.structure or weights.patch
            wants_fakes = bool(on_pixels or self._uses_clip)
            features = _Cut(self._encode(batch.sources))
            if weights.identity:
                same = self._translate(features.leaves, batch.source_labels, batch, prompts)
                self._run_backward({"identity": losses.identity_loss(same, batch.sources)}, share, values)
                del same
            if wants_fakes:
                fakes = _Cut([self._translate(features.leaves, batch.target_labels, batch, prompts)])
                self._losses_of_fakes(batch, fakes.leaves[0], prompts, share, values)
                fakes.backward()
            features.backward()
            prompts.cut.backward()
        return values

    @property
    def _uses_clip(self) -> bool:
        return bool(self.weights.adversarial or self.weights.class_token or self.weights.clip)

    def _prompts(self, batch: UnpairedBatch) -> "_Prompts":
        """Keys and values of each domain in the batch, computed once for all images and passes."""
        # Labels are gathered from the device tensor, to avoid a copy from host to device.
        samples = [batch.target_domains.index(label) for label in sorted(set(batch.target_domains))]
        labels = torch.stack([batch.target_labels[sample] for sample in samples])
        prompts = self.generator.keys_and_values(self.generator.prompt_states[labels])
        return _Prompts(labels, list(prompts), _Cut([tensor for pair in prompts.values() for tensor in pair]))

    def _translate(
        self, features: list[Tensor], labels: Tensor, batch: UnpairedBatch, prompts: "_Prompts"
    ) -> Tensor:
        height, width = batch.sources.shape[-2:]
        images: Tensor = self._decode(features, labels, prompts.of(labels))
        return images[..., :height, :width].float()

    def _losses_of_fakes(
        self,
        batch: UnpairedBatch,
        fakes: Tensor,
        prompts: "_Prompts",
        share: float,
        values: dict[str, Values],
    ) -> None:
        """Add the gradients of all losses on the fakes (N, 1, H, W), a leaf, to it and to the networks."""
        if self.weights.cycle:
            back = self._translate(self._encode(fakes), batch.source_labels, batch, prompts)
            self._run_backward({"cycle": losses.cycle_loss(back, batch.sources)}, share, values)
            del back
        if self.weights.paired:
            paired = losses.paired_loss(fakes, batch.targets, batch.registered)
            self._run_backward({"paired": paired}, share, values)
        if self.weights.structure:
            structure = losses.structure_loss(fakes, batch.sources)
            self._run_backward({"structure": structure}, share, values)
        if self.patch_discriminator is not None:
            self._patch_part(self.patch_discriminator, batch, fakes, share, values)
        if self._uses_clip:
            self._clip_part(batch, fakes, share, values)

    def _weighted(self, named: Values, share: float) -> Tensor:
        """The sum over both directions of the weighted losses, scaled for the backward pass."""
        factors = {"adversarial": self.adversarial_factor, "patch": self.adversarial_factor}
        terms = [
            losses.DIRECTIONS * getattr(self.weights, name) * factors.get(name, 1.0) * value
            for name, value in named.items()
        ]
        return self.scale_loss(torch.stack(terms).sum() * share)

    def _run_backward(self, named: Values, share: float, values: dict[str, Values]) -> None:
        total = self._weighted(named, share)
        _backward([total], [first_gradient(total)])
        values["losses"] |= {name: value.detach() for name, value in named.items()}

    def _clip_part(
        self, batch: UnpairedBatch, fakes: Tensor, share: float, values: dict[str, Values]
    ) -> None:
        """Add the gradients of the losses on CLIP features to the fakes, and those of the discriminator."""
        fake = self.backbone.encode_images(fakes)
        real: ClipImageFeatures | None = None
        if self.weights.adversarial or self.weights.class_token:
            with torch.no_grad():
                real = self._real_features(batch.targets, batch.target_views)
        named: Values = {}
        if self.weights.clip:
            named["clip"] = losses.clip_loss(fake.embedding, self.text_embeddings[batch.target_labels])
        if self.weights.class_token and real is not None:
            named["class_token"] = losses.class_token_loss(fake.class_tokens, real.class_tokens)
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        if named:
            total = self._weighted(named, share)
            outputs, gradients = [total], [first_gradient(total)]
            values["losses"] |= {name: value.detach() for name, value in named.items()}
        if self.weights.adversarial and real is not None:
            outputs += fake.patch_tokens
            gradients += self._adversarial_part(batch, real, fake, values, share)
        _backward(outputs, gradients)

    def _patch_part(
        self,
        discriminator: PatchDiscriminator,
        batch: UnpairedBatch,
        fakes: Tensor,
        share: float,
        values: dict[str, Values],
    ) -> None:
        """Add the gradients of the patch discriminator, and the generator's to the fakes, a leaf."""
        labels = torch.cat([batch.target_labels] * 2)
        logits = discriminator(torch.cat([batch.targets, fakes]), labels)
        pixels, parameters = [fakes], list(discriminator.parameters())
        gradients = self._of_both_players("patch", logits, pixels, parameters, share, values)
        _backward(pixels, gradients)

    def _of_both_players(
        self,
        name: str,
        logits: Tensor,
        inputs: list[Tensor],
        parameters: list[nn.Parameter],
        share: float,
        values: dict[str, Values],
    ) -> Sequence[Tensor]:
        """Add a discriminator's gradients; the generator's, with respect to `inputs`, are returned.

        Args:
            name: of the generator's loss.
            logits: of the real images, then of as many fakes.
            inputs: what the fakes' logits were computed from.
            parameters: of the discriminator.
        """
        real_logits, fake_logits = logits.chunk(2)
        generator_loss = losses.adversarial_generator_loss(fake_logits)
        discriminator_loss = losses.adversarial_discriminator_loss(real_logits, fake_logits)
        total = self._weighted({name: generator_loss}, share)
        with torch.autocast(total.device.type, enabled=False):
            gradients = torch.autograd.grad(total, inputs, retain_graph=True)
        loss = self.scale_loss(losses.DIRECTIONS * discriminator_loss * share)
        _backward([loss], [first_gradient(loss)], inputs=parameters)
        prefix = "" if name == "adversarial" else f"{name}_"
        values["losses"] |= {
            name: generator_loss.detach(),
            f"{prefix}discriminator": discriminator_loss.detach(),
        }
        values.setdefault("discriminator_outputs", {}).update(
            {
                f"{prefix}real": real_logits.detach().mean(),
                f"{prefix}fake": fake_logits.detach().mean(),
            }
        )
        return gradients

    def _adversarial_part(
        self,
        batch: UnpairedBatch,
        real: ClipImageFeatures,
        fake: ClipImageFeatures,
        values: dict[str, Values],
        share: float,
    ) -> Sequence[Tensor]:
        """Add the discriminator's gradients; the generator's, with respect to the fakes' patch tokens."""
        leaves = [tokens.detach().requires_grad_() for tokens in fake.patch_tokens]
        tokens = [torch.cat(pair) for pair in zip(real.patch_tokens, leaves, strict=True)]
        text = self.text_embeddings[batch.target_labels]
        logits = self.discriminator(tokens, batch.target_domains * 2, torch.cat([text, text]))
        heads = [
            parameter
            for label in set(batch.target_domains)
            for parameter in self.discriminator.heads(label).parameters()
        ]
        return self._of_both_players("adversarial", logits, leaves, heads, share, values)


# Compilation


def missing_compiler(device: torch.device) -> str | None:
    """Why a model on `device` cannot be compiled here; None where it can."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "triton is not installed or does not know this GPU"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler (g++ or clang++) is installed"
    return None


def can_compile(device: torch.device) -> bool:
    """Whether a model on `device` can be compiled here; a warning where it cannot."""
    reason = missing_compiler(device)
    if reason:
        logger.warning("torch_compile: %s; training goes on without it", reason)
    return reason is None


__all__ = ["TrainingStep", "can_compile", "first_gradient"]
