"""Discriminator: small heads on the patch tokens of a frozen ViT, one set of heads for each target domain.

Source: Korkmaz & Patel, MIDL 2025, section 2 (projected, text-conditioned heads); written from its text.
Nothing mixes samples: a score does not depend on the batch it is in.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROJECTION_WIDTH = 64
KERNEL_SIZE = 9
NEGATIVE_SLOPE = 0.2


class SpectralNormWeight(nn.Module):
    """One weight matrix for each domain, divided by its largest singular value (Miyato et al., ICLR 2018).

    The singular vectors move only in `power_iteration`, which the trainer calls once an optimiser step: so
    several forward passes in a step see one and the same weight.

    Args:
        domains: number of weights.
        out_features, in_features: shape of each.
    """

    def __init__(self, domains: int, out_features: int, in_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(domains, out_features, in_features).uniform_(-bound, bound))
        self.left: Tensor
        self.right: Tensor
        self.register_buffer("left", F.normalize(torch.randn(domains, out_features, 1), dim=1))
        self.register_buffer("right", torch.zeros(domains, in_features, 1))
        self.power_iteration(steps=15)

    @torch.no_grad()
    def power_iteration(self, steps: int = 1) -> None:
        """Bring the singular vectors `steps` steps closer to those of the present weights."""
        for _ in range(steps):
            self.right.copy_(F.normalize(self.weight.mT @ self.left, dim=1))
            self.left.copy_(F.normalize(self.weight @ self.right, dim=1))

    def forward(self, domain: Tensor) -> Tensor:
        """Labels (B,) -> weights (B, out_features, in_features) of largest singular value 1."""
        # One float a domain: cheap for all, and so every domain's weight takes part in every graph.
        sigma = (self.left.mT @ self.weight @ self.right)[domain]
        return self.weight[domain] / sigma


class TokenConvolution(nn.Module):
    """Spectrally normalised circular convolution over the tokens, normalisation, LeakyReLU.

    The normalisation is over the tokens of each sample and channel, with a learnt scale and shift.
    Each sample goes through the weights of its domain.
    """

    def __init__(self, domains: int, width: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = SpectralNormWeight(domains, width, kernel_size * width)
        # No bias: the normalisation would cancel it.
        self.scale = nn.Parameter(torch.ones(domains, 1, width))
        self.shift = nn.Parameter(torch.zeros(domains, 1, width))

    def forward(self, tokens: Tensor, domain: Tensor) -> Tensor:
        """(B, N, width), labels (B,) -> (B, N, width)."""
        reach = self.kernel_size // 2
        neighbours = torch.cat([tokens.roll(shift, dims=1) for shift in range(reach, -reach - 1, -1)], dim=-1)
        hidden = neighbours @ self.weight(domain).mT
        variance, mean = torch.var_mean(hidden, dim=1, keepdim=True, correction=0)
        hidden = (hidden - mean) * torch.rsqrt(variance + 1e-5)
        return F.leaky_relu(hidden * self.scale[domain] + self.shift[domain], NEGATIVE_SLOPE)


class GalipHead(nn.Module):
    """Scores each patch token of one ViT block against the prompt's embedding."""

    def __init__(self, domains: int, width: int, text_width: int) -> None:
        super().__init__()
        self.pointwise = TokenConvolution(domains, width, 1)
        self.neighbourhood = TokenConvolution(domains, width, KERNEL_SIZE)
        self.projection = SpectralNormWeight(domains, PROJECTION_WIDTH, width)
        self.projection_bias = nn.Parameter(torch.zeros(domains, 1, PROJECTION_WIDTH))
        bound = 1 / math.sqrt(text_width)
        self.text_weight = nn.Parameter(
            torch.empty(domains, PROJECTION_WIDTH, text_width).uniform_(-bound, bound)
        )
        self.text_bias = nn.Parameter(torch.zeros(domains, PROJECTION_WIDTH, 1))

    def forward(self, tokens: Tensor, domain: Tensor, text_embedding: Tensor) -> Tensor:
        """(B, N, width), labels (B,), (B, text_width) -> logits (B, N)."""
        hidden = self.pointwise(tokens, domain)
        hidden = (self.neighbourhood(hidden, domain) + hidden) / math.sqrt(2)
        image = torch.baddbmm(self.projection_bias[domain], hidden, self.projection(domain).mT)  # (B, N, 64)
        text = torch.baddbmm(
            self.text_bias[domain], self.text_weight[domain], text_embedding[:, :, None]
        )  # (B, 64, 1)
        return (image @ text).squeeze(-1) / math.sqrt(PROJECTION_WIDTH)


class GalipDiscriminator(nn.Module):
    """One head for each chosen ViT block, with weights of its own for each domain.

    Args:
        domains: number of target domains.
        layers: number of ViT blocks whose patch tokens are scored.
        width: width of the ViT.
        text_width: width of the pooled text embedding.
    """

    def __init__(self, domains: int, layers: int, width: int, text_width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(GalipHead(domains, width, text_width) for _ in range(layers))

    def forward(self, patch_tokens: Sequence[Tensor], domain: Tensor, text_embedding: Tensor) -> Tensor:
        """Score images as members of a domain.

        Args:
            patch_tokens: one (B, N, width) for each chosen block of the frozen ViT, after its final norm.
            domain: labels (B,), int64.
            text_embedding: (B, text_width), unit length, of the domain's prompt.

        Returns:
            Logits (B, layers, N); 1 is 'real', 0 is 'fake' (least squares).
        """
        scores = [
            head(tokens, domain, text_embedding)
            for head, tokens in zip(self.heads, patch_tokens, strict=True)
        ]
        return torch.stack(scores, dim=1)

    def power_iteration(self) -> None:
        """One step of every spectral norm; call it once for each optimiser step."""
        for module in self.modules():
            if isinstance(module, SpectralNormWeight):
                module.power_iteration()


__all__ = ["GalipDiscriminator"]
