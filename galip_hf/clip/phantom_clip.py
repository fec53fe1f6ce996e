"""The stand-in for BiomedCLIP as the demo uses it: made and trained on captioned phantom slices."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import phantom
from ..data.normalization import normalize_scan
from ..data.phantom_table import phantom_subject_seed
from ..files import atomic_write
from ..model.domains import IXI_DOMAINS
from ..model.intensity import IntensityNormalizer
from .tiny_clip import build_tiny_clip, train_tiny_clip

_BARE_PROMPT_SHARE = 0.25
_SEED_OF_CAPTIONS = 12


@dataclass(frozen=True)
class TinyClipRecipe:
    """The stand-in for BiomedCLIP: architecture and training on captioned phantom slices."""

    image_size: int = 64
    patch_size: int = 8
    width: int = 64
    depth: int = 4
    context_length: int = 32
    subjects: int = 40
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3


def make_tiny_clip(recipe: TinyClipRecipe, directory: Path, seed: int) -> dict[str, Any]:
    """Build the stand-in in `directory` and train it on captioned phantom slices; returns its figures."""
    processor = IntensityNormalizer(list(IXI_DOMAINS))
    rng = np.random.default_rng([seed, _SEED_OF_CAPTIONS])
    images, captions = [], []
    for contrast in phantom.CONTRASTS:
        for index in range(recipe.subjects):
            subject = phantom.make_subject(
                phantom_subject_seed("clip", index, seed, contrast), size=recipe.image_size
            )
            normalized = normalize_scan(processor, phantom.render(subject, contrast), contrast)
            images.append(np.asarray(normalized.pixel_values)[:, 0].clip(0, 1))
            captions += [
                # The trainer uses bare prompts, so the stand-in must have met them.
                phantom.PROMPTS[contrast] if bare else phantom.caption(subject, number, contrast)
                for number, bare in enumerate(rng.random(len(images[-1])) < _BARE_PROMPT_SHARE)
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
            np.concatenate(images),
            captions,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            seed=seed,
        )
    return measured


__all__ = ["TinyClipRecipe", "make_tiny_clip"]
