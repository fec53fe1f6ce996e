"""The stand-in for BiomedCLIP that a recipe asks for: made, and trained on captioned slices."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import phantom
from ..data.normalization import normalize_scan
from ..data.phantom_table import phantom_subject_seed
from ..files import atomic_write
from ..model.domains import IXI_DOMAINS
from ..model.errors import GalipError
from ..model.intensity import IntensityNormalizer
from .tiny_clip import build_tiny_clip, train_tiny_clip

_BARE_PROMPT_SHARE = 0.25
_SEED_OF_CAPTIONS = 12


@dataclass(frozen=True)
class TinyClipRecipe:
    """The stand-in for BiomedCLIP: architecture and training on captioned slices.

    `images` are those of the `phantom` (`subjects` for each contrast), or those of the `table` that the run
    trains on, with its domains' prompts (see `table_clip`).

    Raises:
        GalipError: other `images`.
    """

    images: str = "phantom"
    image_size: int = 64
    patch_size: int = 8
    width: int = 64
    depth: int = 4
    context_length: int = 32
    subjects: int = 40
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.images not in ("phantom", "table"):
            raise GalipError(f"clip.tiny: images is {self.images!r}; expected phantom or table")


def phantom_slices(recipe: TinyClipRecipe, seed: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Phantom slices, (N, H, W) float32 in [0, 1]; the caption of each, and the bare prompt of each."""
    processor = IntensityNormalizer(list(IXI_DOMAINS))
    images, captions, prompts = [], [], []
    for contrast in phantom.CONTRASTS:
        for index in range(recipe.subjects):
            subject = phantom.make_subject(
                phantom_subject_seed("clip", index, seed, contrast), size=recipe.image_size
            )
            normalized = normalize_scan(processor, phantom.render(subject, contrast), contrast)
            images.append(np.asarray(normalized.pixel_values)[:, 0].clip(0, 1))
            count = len(images[-1])
            captions += [phantom.caption(subject, number, contrast) for number in range(count)]
            prompts += [phantom.PROMPTS[contrast]] * count
    return np.concatenate(images), captions, prompts


def make_tiny_clip(
    recipe: TinyClipRecipe,
    directory: Path,
    seed: int,
    slices: tuple[np.ndarray, list[str], list[str]],
) -> dict[str, Any]:
    """Build the stand-in in `directory` and train it; returns its figures.

    Args:
        recipe: architecture and training.
        directory: where to write it.
        seed: of the weights and the training.
        slices: (N, H, W) images in [0, 1]; the caption of each, and the bare prompt of its domain.
    """
    images, captions, prompts = slices
    # The trainer uses bare prompts, so the stand-in must have met them.
    bare = np.random.default_rng([seed, _SEED_OF_CAPTIONS]).random(len(images)) < _BARE_PROMPT_SHARE
    captions = [
        prompt if is_bare else caption
        for caption, prompt, is_bare in zip(captions, prompts, bare, strict=True)
    ]
    # Written beside: a half-trained stand-in must not be taken for a whole one.
    with atomic_write(directory) as temporary:
        build_tiny_clip(
            temporary,
            captions,
            image_size=recipe.image_size,
            patch_size=recipe.patch_size,
            width=recipe.width,
            depth=recipe.depth,
            context_length=recipe.context_length,
            seed=seed,
        )
        measured = train_tiny_clip(
            temporary,
            images,
            captions,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            seed=seed,
        )
    return measured


__all__ = ["TinyClipRecipe", "make_tiny_clip", "phantom_slices"]
