"""The losses of I2I-Galip as pure functions (Korkmaz & Patel, MIDL 2025, equations 2-6; identity).

Each returns a scalar: the mean over the batch. With a batch that holds both directions of a pair (A -> B and
B -> A), twice the mean is the paper's sum over the two directions; `DIRECTIONS` says so where the trainer
weighs them.
"""

import torch.nn.functional as F
from torch import Tensor

# Each loss of the paper is a sum over A -> B and B -> A.
DIRECTIONS = 2


def adversarial_generator_loss(fake_logits: Tensor) -> Tensor:
    """Least squares, for the generator: mean (D(fake) - 1)^2 over samples, layers and tokens."""
    return (fake_logits - 1).square().mean()


def adversarial_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Least squares, for the discriminator: mean (D(real) - 1)^2 + mean D(fake)^2."""
    return (real_logits - 1).square().mean() + fake_logits.square().mean()


def cycle_loss(reconstruction: Tensor, source: Tensor) -> Tensor:
    """Mean |G(G(x_A, B), A) - x_A|."""
    return F.l1_loss(reconstruction, source)


def identity_loss(identity: Tensor, source: Tensor) -> Tensor:
    """Mean |G(x_A, A) - x_A|."""
    return F.l1_loss(identity, source)


def clip_loss(image_embedding: Tensor, text_embedding: Tensor) -> Tensor:
    """Mean -cos of the fake's embedding (B, E) and its target prompt's (B, E)."""
    return -F.cosine_similarity(image_embedding, text_embedding, dim=-1).mean()


def class_token_loss(fake_class_tokens: Tensor, real_class_tokens: Tensor) -> Tensor:
    """Mean 1 - cos of the class tokens of the last blocks, concatenated, (B, blocks, W) each.

    `real_class_tokens` are those of a real image of the fake's target domain.
    """
    return (
        1 - F.cosine_similarity(fake_class_tokens.flatten(1), real_class_tokens.flatten(1), dim=-1)
    ).mean()


def paired_loss(translation: Tensor, target: Tensor, registered: Tensor) -> Tensor:
    """Mean |G(x_A, B) - x_B| of the registered pairs; the others count as 0.

    Not the paper's. The mean is over all samples, (B,) `registered` being 1 or 0: so it is the same however a
    batch is split over processes.
    """
    return ((translation - target).abs().mean(dim=(1, 2, 3)) * registered).mean()


__all__ = [
    "DIRECTIONS",
    "adversarial_discriminator_loss",
    "adversarial_generator_loss",
    "class_token_loss",
    "clip_loss",
    "cycle_loss",
    "identity_loss",
    "paired_loss",
]
