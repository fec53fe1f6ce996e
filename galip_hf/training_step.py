"""The gradients of one batch: what a training step of I2I-Galip computes, without its optimisers.

Source: Korkmaz & Patel, MIDL 2025, section 2. From unpaired images x_A of domain A, x_B of domain B:

1. fakes G(x_A, B), G(x_B, A); one pass of the frozen ViT over the fakes (with gradients) and one over the
   reals (without);
2. one pass of the heads over the features of both, cut off from the generator: it gives the discriminator's
   loss, and the gradient of the generator's adversarial loss with respect to the fakes' features;
3. reconstructions of the fakes, identities G(x_A, A), G(x_B, B); one backward pass of the generator, into
   which that gradient is fed.

So the generator and the discriminator are judged at the same weights of one another, and gradients of
several batches may be added up before either moves: accumulation is exact.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import losses
from .clip_backbone import ClipBackbone, ClipImageFeatures
from .discriminator import GalipDiscriminator
from .modeling_galip import GalipForImageTranslation
from .training_args import GalipLossWeights

Values = dict[str, Tensor]


@dataclass(frozen=True)
class UnpairedBatch:
    """Both directions of B pairs.

    Attributes:
        sources: (2 B, 1, H, W), the first images of the pairs, then the second ones.
        source_domains: 2 B labels, on the host.
        source_labels, target_labels: the same and the other image's, (2 B,) int64, on the device.
        registered: (2 B,) float, 1 where the pair is one subject and slice.
        rows: 2 B rows of the table, or what a stream calls its own, for messages.
    """

    sources: Tensor
    source_domains: tuple[int, ...]
    source_labels: Tensor
    target_labels: Tensor
    registered: Tensor
    rows: tuple[int | str, ...]

    @classmethod
    def of(cls, items: Mapping[str, Tensor]) -> "UnpairedBatch":
        """From collated items of `UnpairedSlices`, on the host."""
        labels = torch.cat([items["domain_a"], items["domain_b"]])
        return cls(
            sources=torch.cat([items["image_a"], items["image_b"]]),
            source_domains=tuple(labels.tolist()),
            source_labels=labels,
            target_labels=other_direction(labels),
            registered=items["registered"].float().repeat(2),
            rows=(*_listed(items["row_a"]), *_listed(items["row_b"])),
        )

    @property
    def target_domains(self) -> tuple[int, ...]:
        """Labels of the target domains, on the host."""
        half = len(self.source_domains) // 2
        return self.source_domains[half:] + self.source_domains[:half]

    def to(self, device: torch.device) -> "UnpairedBatch":
        """The tensors on a device; from pinned memory without waiting."""
        names = ("sources", "source_labels", "target_labels", "registered")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def pin_memory(self) -> "UnpairedBatch":
        """Called by the DataLoader where it pins memory."""
        names = ("sources", "source_labels", "target_labels", "registered")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in names})


def _listed(values: Tensor | Sequence[str]) -> list[int | str]:
    return values.tolist() if isinstance(values, Tensor) else list(values)


def other_direction(values: Tensor) -> Tensor:
    """Exchange the halves of a batch: for each source's position, the real image of its target domain."""
    return values.roll(len(values) // 2, dims=0)


def first_gradient(loss: Tensor) -> Tensor:
    """What a backward pass starts from: 1, but NaN where the loss is not finite.

    Gradients may be finite where the loss is not; and they are what all processes get to see.
    """
    return torch.where(loss.isfinite(), 1.0, math.nan).to(loss)


class TrainingStep:
    """Adds the gradients of a batch to those of the generator and of the discriminator.

    Args:
        generator, discriminator: what is trained.
        backbone: frozen.
        text_embeddings: (domains, E) of the prompts.
        weights: of the losses. One of weight 0 is neither computed nor returned.
        autocast: makes the context of mixed precision.
        scale_loss: multiplies a loss by the scale of float16 training; by default leaves it.
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
    ) -> None:
        self.generator, self.discriminator, self.backbone = generator, discriminator, backbone
        self.text_embeddings, self.weights = text_embeddings, weights
        self.autocast, self.scale_loss = autocast, scale_loss

    def backward(self, batch: UnpairedBatch, share: float = 1.0) -> dict[str, Values]:
        """Add the gradients of a batch, times `share`; nothing waits for the device.

        Returns:
            Detached values on the device: `losses` by name (unweighted means over both directions), and, with
            an adversarial loss, `discriminator_outputs`, the mean logits of `real` and `fake`.
        """
        weights = self.weights
        values: dict[str, Values] = {"losses": {}}
        total = torch.zeros((), device=batch.sources.device)
        with self.autocast():
            if weights.cycle or weights.paired or self._uses_clip:
                fakes = self.generator(batch.sources, batch.target_labels).translation.float()
            if self._uses_clip:
                total = total + self._clip_part(batch, fakes, values, share)
            pixel_losses: Values = {}
            if weights.cycle:
                back = self.generator(fakes, batch.source_labels).translation.float()
                pixel_losses["cycle"] = losses.cycle_loss(back, batch.sources)
            if weights.identity:
                same = self.generator(batch.sources, batch.source_labels).translation.float()
                pixel_losses["identity"] = losses.identity_loss(same, batch.sources)
            if weights.paired:
                target = other_direction(batch.sources)
                pixel_losses["paired"] = losses.paired_loss(fakes, target, batch.registered)
        total = total + self._weighted(pixel_losses, share)
        values["losses"] |= {name: value.detach() for name, value in pixel_losses.items()}
        total.backward(first_gradient(total))
        return values

    @property
    def _uses_clip(self) -> bool:
        return bool(self.weights.adversarial or self.weights.class_token or self.weights.clip)

    def _weighted(self, values: Values, share: float) -> Tensor:
        """The sum over both directions of the weighted losses, scaled for the backward pass."""
        if not values:
            return torch.zeros((), device=self.text_embeddings.device)
        terms = [losses.DIRECTIONS * getattr(self.weights, name) * value for name, value in values.items()]
        return self.scale_loss(torch.stack(terms).sum() * share)

    def _clip_part(
        self, batch: UnpairedBatch, fakes: Tensor, values: dict[str, Values], share: float
    ) -> Tensor:
        """What the losses on the frozen model's features add to the generator's total; D's gradients."""
        fake = self.backbone.encode_images(fakes)
        real: ClipImageFeatures | None = None
        if self.weights.adversarial or self.weights.class_token:
            with torch.no_grad():
                real = self.backbone.encode_images(batch.sources)
        feature_losses: Values = {}
        if self.weights.clip:
            text = self.text_embeddings[batch.target_labels]
            feature_losses["clip"] = losses.clip_loss(fake.embedding, text)
        if self.weights.class_token and real is not None:
            feature_losses["class_token"] = losses.class_token_loss(
                fake.class_tokens, other_direction(real.class_tokens)
            )
        total = self._weighted(feature_losses, share)
        values["losses"] |= {name: value.detach() for name, value in feature_losses.items()}
        if self.weights.adversarial and real is not None:
            gradients = self._adversarial_part(batch, real, fake, values, share)
            # Of this term the gradient is all that counts: it is that of the adversarial loss.
            for tokens, gradient in zip(fake.patch_tokens, gradients, strict=True):
                total = total + (tokens * gradient).sum()
        return total

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
        labels = torch.cat([batch.source_labels, batch.target_labels])
        logits = self.discriminator(
            tokens, batch.source_domains + batch.target_domains, self.text_embeddings[labels]
        )
        real_logits, fake_logits = logits.chunk(2)
        generator_loss = losses.adversarial_generator_loss(fake_logits)
        discriminator_loss = losses.adversarial_discriminator_loss(real_logits, fake_logits)
        heads = [
            parameter
            for label in set(batch.source_domains)
            for parameter in self.discriminator.heads(label).parameters()
        ]
        with torch.autocast(leaves[0].device.type, enabled=False):
            gradients = torch.autograd.grad(
                self._weighted({"adversarial": generator_loss}, share), leaves, retain_graph=True
            )
            loss = self.scale_loss(losses.DIRECTIONS * discriminator_loss * share)
            torch.autograd.backward(loss, first_gradient(loss), inputs=heads)
        values["losses"] |= {
            "adversarial": generator_loss.detach(),
            "discriminator": discriminator_loss.detach(),
        }
        values["discriminator_outputs"] = {
            "real": real_logits.detach().mean(),
            "fake": fake_logits.detach().mean(),
        }
        return gradients


__all__ = ["TrainingStep", "UnpairedBatch", "first_gradient", "other_direction"]
