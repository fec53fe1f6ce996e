"""Augmentation of training slices: a small affine map and a small change of intensity.

Each draw is a function of (seed, epoch, index, place) alone: it is the same in every worker and after a
resume, and the global generators are neither read nor moved.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.errors import GalipError


@dataclass(frozen=True)
class SliceAugmentation:
    """Largest changes of a slice, each drawn uniformly between its two signs; 0 is no change.

    Args:
        rotation: degrees, at most 45.
        translation: fraction of the edge, along each axis, below 0.5.
        scale: relative change of size, below 0.5.
        intensity: relative change of the gain, and of the exponent of a gamma curve, below 0.5. Not for
            domains of a fixed scale (CT in HU), whose values mean something.
        resolution: largest relative loss of resolution, below 1: half of the slices are shrunk by a factor of
            down to 1 - `resolution` and enlarged again, as scans with larger pixels are in inference.

    Raises:
        GalipError: a value out of range.
    """

    rotation: float = 0.0
    translation: float = 0.0
    scale: float = 0.0
    intensity: float = 0.0
    resolution: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rotation <= 45:
            raise GalipError(f"augmentation: rotation is {self.rotation}; expected 0..45 degrees")
        for name in ("translation", "scale", "intensity"):
            if not 0 <= getattr(self, name) < 0.5:
                raise GalipError(f"augmentation: {name} is {getattr(self, name)}; expected 0 to below 0.5")
        if not 0 <= self.resolution < 1:
            raise GalipError(f"augmentation: resolution is {self.resolution}; expected 0 to below 1")

    @property
    def moves(self) -> bool:
        """Does it change the geometry?"""
        return any((self.rotation, self.translation, self.scale))

    def apply(self, image: Tensor, rng: np.random.Generator, *, changes_intensity: bool = True) -> Tensor:
        """Change one slice; equal generators give equal changes, with or without those of intensity.

        Args:
            image: (1, H, W) float32 in model space, 0 being air.
            rng: where the six numbers are drawn from.
            changes_intensity: False for a domain of a fixed scale and for registered pairs, whose mapping of
                intensities is what they teach.

        Returns:
            (1, H, W) float32, clamped to [0, 1] if it was changed, as inference clamps its input.
        """
        if self == SliceAugmentation():
            return image
        angle, right, down, size, gain, gamma = rng.uniform(-1, 1, 6)
        loss = rng.uniform(-1, 1) * self.resolution  # below 0: none
        if self.moves:
            image = affine(
                image,
                rotation=angle * self.rotation,
                translation=(right * self.translation, down * self.translation),
                scale=1 + size * self.scale,
            )
        if loss > 0:
            image = shrunk_and_enlarged(image, 1 - loss)
        if self.intensity and changes_intensity:
            image = (1 + gain * self.intensity) * image.clamp(min=0) ** (1 + gamma * self.intensity)
        return image.clamp(0, 1)


def affine(image: Tensor, *, rotation: float, translation: tuple[float, float], scale: float) -> Tensor:
    """Rotate and scale (1, H, W) about its centre, then move it; bicubic, zeros from outside.

    Args:
        image: float32.
        rotation: degrees, anticlockwise as seen with row 0 on top.
        translation: to the right and down, as fractions of width and height.
        scale: above 1 enlarges.
    """
    height, width = image.shape[-2:]
    angle = math.radians(rotation)
    # `affine_grid` maps an output position to its input position, in units of half an edge: so the inverse.
    inverse = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / scale
    inverse *= np.array([[1, height / width], [width / height, 1]])
    shift = -inverse @ (2 * np.asarray(translation))
    theta = torch.from_numpy(np.concatenate([inverse, shift[:, None]], axis=1)).to(image.dtype)
    grid = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
    # Bicubic: bilinear would blur the slices that the discriminator takes for real ones.
    return F.grid_sample(image[None], grid, mode="bicubic", padding_mode="zeros", align_corners=False)[0]


def shrunk_and_enlarged(image: Tensor, factor: float) -> Tensor:
    """(1, H, W) resampled to `factor` of its pixels and back: bicubic, antialiased where it shrinks."""
    small = [max(1, round(length * factor)) for length in image.shape[-2:]]
    shrunk = F.interpolate(image[None], small, mode="bicubic", antialias=True)
    return F.interpolate(shrunk, image.shape[-2:], mode="bicubic", antialias=True)[0]


__all__ = ["SliceAugmentation", "affine", "shrunk_and_enlarged"]
