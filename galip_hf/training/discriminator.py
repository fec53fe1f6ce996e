"""Discriminator: small heads on the patch tokens of a frozen ViT, one set of heads for each target domain.

Source: Korkmaz & Patel, MIDL 2025, section 2 (projected, text-conditioned heads); written from its text.
Nothing mixes samples: a score does not depend on the batch it is in.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.errors import GalipError
from .checkpoint_files import load_state, load_tensors

PROJECTION_WIDTH = 64
KERNEL_SIZE = 9
NEGATIVE_SLOPE = 0.2


class SpectralNormLinear(nn.Module):
    """A matrix product with a weight divided by its largest singular value (Miyato et al., ICLR 2018).

    The singular vectors move only in `power_iteration`, which the trainer calls once an optimiser step: so
    all forward passes of a step see one and the same weight. The singular value is float32 under autocast.

    The inputs are divided, not the product: divided afterwards, the product of a large weight overflows in
    float16. Nor the weight, which usually has more elements than the inputs.

    Args:
        in_features, out_features: widths.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.left: Tensor
        self.right: Tensor
        self.register_buffer("left", F.normalize(torch.randn(out_features), dim=0))
        self.register_buffer("right", torch.zeros(in_features))
        self.power_iteration(steps=15)

    @torch.no_grad()
    def power_iteration(self, steps: int = 1) -> None:
        """Bring the singular vectors `steps` steps closer to those of the present weight."""
        for _ in range(steps):
            self.right.copy_(F.normalize(self.weight.T @ self.left, dim=0))
            self.left.copy_(F.normalize(self.weight @ self.right, dim=0))

    def singular_value(self) -> Tensor:
        """The largest singular value, (), with a gradient to the weight."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.left @ (self.weight @ self.right)

    def divided(self, inputs: Tensor) -> Tensor:
        """Inputs of any shape over the singular value, of the inputs' dtype: a 0-dim tensor promotes none."""
        return inputs / self.singular_value()

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(self.divided(inputs), self.weight)


class TokenConvolution(nn.Module):
    """Spectrally normalised circular convolution over the tokens, normalisation, LeakyReLU.

    The normalisation is over the tokens of each sample and channel, with a learnt scale and shift; float32
    under autocast.
    """

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        # No bias: the normalisation would cancel it.
        self.linear = SpectralNormLinear(kernel_size * width, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        length, reach = tokens.shape[1], self.kernel_size // 2
        tokens = self.linear.divided(tokens)  # before each is copied into kernel_size windows
        if reach:
            padded = torch.cat([tokens[:, length - reach :], tokens, tokens[:, :reach]], dim=1)
            windows = [padded[:, start : start + length] for start in range(self.kernel_size)]
            tokens = torch.cat(windows, dim=-1)  # (B, N, kernel_size * width)
        hidden = F.linear(tokens, self.linear.weight).to(self.scale)
        variance, mean = torch.var_mean(hidden, dim=1, keepdim=True, correction=0)
        scale = self.scale * torch.rsqrt(variance + 1e-5)
        return F.leaky_relu(torch.addcmul(self.shift, hidden - mean, scale), NEGATIVE_SLOPE)


class GalipHead(nn.Module):
    """Scores each patch token of one ViT block against the prompt's embedding, for one domain."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.pointwise = TokenConvolution(width, 1)
        self.neighbourhood = TokenConvolution(width, KERNEL_SIZE)
        self.projection = SpectralNormLinear(width, PROJECTION_WIDTH)
        self.projection_bias = nn.Parameter(torch.zeros(PROJECTION_WIDTH))
        self.text_projection = nn.Linear(text_width, PROJECTION_WIDTH)

    def forward(self, tokens: Tensor, text_embedding: Tensor) -> Tensor:
        """(B, N, width), (B, text_width) -> float32 logits (B, N)."""
        hidden = self.pointwise(tokens)
        hidden = (self.neighbourhood(hidden) + hidden) / math.sqrt(2)
        image = self.projection(hidden).to(self.projection_bias) + self.projection_bias  # (B, N, 64)
        text = self.text_projection(text_embedding).to(self.projection_bias)[:, :, None]  # (B, 64, 1)
        with torch.autocast(tokens.device.type, enabled=False):
            return (image @ text).squeeze(-1) / math.sqrt(PROJECTION_WIDTH)


class GalipDiscriminator(nn.Module):
    """For each domain, one head for each chosen ViT block.

    Only the heads of the domains that a batch holds are run: neither the time of a step nor its gradients
    grow with the number of domains.

    Args:
        domains: number of target domains.
        layers: number of ViT blocks whose patch tokens are scored.
        width: width of the ViT.
        text_width: width of the pooled text embedding.
    """

    def __init__(self, domains: int, layers: int, width: int, text_width: int) -> None:
        super().__init__()
        self.domains = nn.ModuleList(
            nn.ModuleList(GalipHead(width, text_width) for _ in range(layers)) for _ in range(domains)
        )

    def heads(self, label: int) -> nn.ModuleList:
        """The heads of one domain, one for each layer."""
        heads = self.domains[label]
        assert isinstance(heads, nn.ModuleList)
        return heads

    def forward(
        self, patch_tokens: Sequence[Tensor], domain: Sequence[int], text_embedding: Tensor
    ) -> Tensor:
        """Score images as members of a domain.

        Args:
            patch_tokens: one (B, N, width) for each chosen block of the frozen ViT, after its final norm.
            domain: label of each image's domain, B numbers on the host: which heads to run must be known
                without waiting for the device.
            text_embedding: (B, text_width), unit length, of the domain's prompt.

        Returns:
            Logits (B, layers, N), float32; 1 is 'real', 0 is 'fake' (least squares).
        """
        scores: list[Tensor] = [text_embedding] * len(domain)  # each is replaced
        for label in sorted(set(domain)):
            members = [index for index, value in enumerate(domain) if value == label]
            text = torch.stack([text_embedding[index] for index in members])
            layers = [
                head(torch.stack([tokens[index] for index in members]), text)
                for head, tokens in zip(self.heads(label), patch_tokens, strict=True)
            ]
            for index, score in zip(members, torch.stack(layers, dim=1).unbind(), strict=True):
                scores[index] = score
        return torch.stack(scores)

    def power_iteration(self, domains: Iterable[int]) -> None:
        """One step of the spectral norms of some domains: those whose weights an optimiser step has moved."""
        for label in domains:
            for module in self.heads(label).modules():
                if isinstance(module, SpectralNormLinear):
                    module.power_iteration()


def load_heads(
    discriminator: GalipDiscriminator, checkpoint: str | Path, domain_names: Sequence[str]
) -> list[str]:
    """Take the heads of an earlier run for the domains it has in common with this one, by name.

    Args:
        discriminator: of the new run; the heads of its other domains stay as they are.
        checkpoint: a folder `checkpoints/step-…`.
        domain_names: of the new run, in the order of their labels.

    Returns:
        Names of the domains whose heads were taken.

    Raises:
        GalipError: it cannot be read, has no domain in common, or heads of another shape (another CLIP
            model).
    """
    path = Path(checkpoint)
    earlier = [domain["name"] for domain in load_state(path)["model"]["domains"]]
    tensors = load_tensors(path, "discriminator")
    taken = [name for name in domain_names if name in earlier]
    if not taken:
        raise GalipError(
            f"{path}: has heads for {', '.join(earlier)}, none of them for {', '.join(domain_names)}"
        )
    for name in taken:
        prefix = f"domains.{earlier.index(name)}."
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            discriminator.domains[domain_names.index(name)].load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise GalipError(
                f"{path}: its heads for {name} do not fit ({reason}); use the CLIP model of that run"
            ) from None
    return taken


__all__ = ["GalipDiscriminator", "load_heads"]
