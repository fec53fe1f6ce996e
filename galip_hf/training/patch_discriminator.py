"""A small trainable discriminator of pixels, beside the heads on the frozen CLIP features. Not the paper's.

The heads see what a frozen ViT sees, and no gradient changes that: what the ViT overlooks in a slice, such as
blurred folds under a small stand-in, they cannot learn to tell. This network reads the pixels themselves.

Sources: its form is the patch discriminator of pix2pix (Isola et al., CVPR 2017), which scores overlapping
patches of an image; the weights are divided by their largest singular value (Miyato et al., ICLR 2018) in
place of normalisation layers, so nothing mixes samples. One output channel a domain shares all else, as in
StarGAN v2 (Choi et al., CVPR 2020).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.errors import GalipError
from .discriminator import NEGATIVE_SLOPE, SpectralNormLinear

WIDTHS = (64, 128, 256)
KERNEL_SIZE = 4
SMALLEST_IMAGE = 16  # pixels: the last convolution then has one output


class _SpectralNormConvolution(nn.Module):
    """A convolution whose kernel, as a matrix (out, in * K * K), is divided by its largest singular value."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.linear = SpectralNormLinear(in_channels * KERNEL_SIZE**2, out_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        weight = self.linear.weight.unflatten(1, (-1, KERNEL_SIZE, KERNEL_SIZE))
        return F.conv2d(self.linear.divided(images), weight, self.bias, self.stride, padding=1)


class PatchDiscriminator(nn.Module):
    """Scores the patches of 46 x 46 pixels of an image, one every 8 pixels, as parts of a domain's image.

    Three convolutions of stride 2 and one of stride 1, LeakyReLU between them; some 670,000 parameters.

    Args:
        domains: number of target domains.
    """

    def __init__(self, domains: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(
            _SpectralNormConvolution(before, after, 2)
            for before, after in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True)
        )
        self.output = _SpectralNormConvolution(WIDTHS[-1], domains, 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Score images as members of a domain.

        All output channels are computed, and each image's own is chosen. The channel of a domain that a batch
        lacks gets a gradient of zero, so processes may draw different domains.

        Args:
            images: (B, 1, H, W) in [0, 1], H and W at least `SMALLEST_IMAGE`.
            labels: (B,) int64, each image's domain.

        Returns:
            Logits (B, patches), float32; 1 is 'real', 0 is 'fake' (least squares).

        Raises:
            GalipError: smaller images.
        """
        if min(images.shape[-2:]) < SMALLEST_IMAGE:
            raise GalipError(
                f"training: loss_weights.patch needs slices of at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE} "
                f"pixels, found {images.shape[-2]} x {images.shape[-1]}; set it to 0"
            )
        hidden = images
        for convolution in self.hidden:
            hidden = F.leaky_relu(convolution(hidden), NEGATIVE_SLOPE)
        scores = self.output(hidden).float().flatten(2)  # (B, domains, patches)
        return scores[torch.arange(len(labels), device=labels.device), labels]

    def power_iteration(self) -> None:
        """One step of the spectral norms, after an optimiser step has moved the weights."""
        for module in self.modules():
            if isinstance(module, SpectralNormLinear):
                module.power_iteration()


__all__ = ["PatchDiscriminator"]
