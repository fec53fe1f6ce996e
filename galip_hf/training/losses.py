"""The losses of I2I-Galip as pure functions (Korkmaz & Patel, MIDL 2025, equations 2-6; identity).

Each returns a scalar: the mean over the batch. With a batch that holds both directions of a pair (A -> B and
B -> A), twice the mean is the paper's sum over the two directions; `DIRECTIONS` says so where the trainer
weighs them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Each loss of the paper is a sum over A -> B and B -> A.
DIRECTIONS = 2
# Of the structure loss: side of its windows in pixels, and the variance (in the model's intensities) below
# which a window holds noise rather than anatomy: a standard deviation of 0.03.
STRUCTURE_WINDOW = 7
STRUCTURE_NOISE_VARIANCE = 1e-3


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


def structure_loss(translation: Tensor, source: Tensor) -> Tensor:
    """Mean 1 - squared local correlation of G(x_A, B) and x_A, where x_A has structure; 0 to 1.

    Not the paper's. In a small window there are mostly two tissues, and any change of contrast maps two
    intensities linearly: the squared correlation is 1, whether the contrast is kept or inverted, and falls
    where an edge moves, doubles or vanishes. A cycle loss does not forbid that: the way back can undo it.
    The measure is that of Avants et al., Medical Image Analysis 2008, for registration. Windows are weighted
    by the share of their variance that exceeds noise.

    Args:
        translation: (B, 1, H, W) in the model's intensities.
        source: likewise; no gradient reaches it.
    """
    fake, real = translation.float(), source.detach().float()
    moments = torch.cat([fake, real, fake * fake, real * real, fake * real], dim=1)
    means = F.avg_pool2d(moments, STRUCTURE_WINDOW, stride=2)
    fake_mean, real_mean, fake_square, real_square, product = means.split(1, dim=1)
    fake_variance = (fake_square - fake_mean * fake_mean).clamp(min=0)
    real_variance = (real_square - real_mean * real_mean).clamp(min=0)
    covariance = product - fake_mean * real_mean
    noise = STRUCTURE_NOISE_VARIANCE
    correlation = covariance.square() / ((fake_variance + noise) * (real_variance + noise))
    weights = real_variance / (real_variance + noise)
    return ((1 - correlation) * weights).sum() / weights.sum().clamp(min=1)


__all__ = [
    "DIRECTIONS",
    "adversarial_discriminator_loss",
    "adversarial_generator_loss",
    "class_token_loss",
    "clip_loss",
    "cycle_loss",
    "identity_loss",
    "paired_loss",
    "structure_loss",
]
