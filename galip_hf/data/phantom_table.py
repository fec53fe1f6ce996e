"""Volumes of phantom subjects for a table of slices: unpaired over contrasts in training."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..model.intensity import IntensityNormalizer
from . import phantom
from .normalization import normalize_scan
from .table_writer import SubjectVolume

# What a model that has seen nothing else is told to be (`not_for_real_scans` of its processor).
PHANTOM_ONLY = "it was trained on the procedural brain phantom alone"

# Seeds of phantom subjects: a block for each split and, in `train` and `clip`, for each contrast: none is met
# twice.
_SUBJECT_BLOCK = 100_000
_SPLIT_BLOCK = {"train": 0, "validation": 10, "test": 11, "clip": 12}


@dataclass(frozen=True)
class PhantomRecipe:
    """Phantom subjects: in `train`, each contrast has its own; in `validation`, they show all contrasts."""

    train_subjects: int = 100
    validation_subjects: int = 4
    size: int = 64
    slices: int = 12


def phantom_subject_seed(split: str, index: int, seed: int, contrast: str | None = None) -> int:
    """Seed of a phantom subject; distinct over splits, and in `train` and `clip` over contrasts."""
    block = _SPLIT_BLOCK[split] + (phantom.CONTRASTS.index(contrast) if contrast else 0) * 20
    return (seed * 100 + block) * _SUBJECT_BLOCK + index


def phantom_volumes(
    recipe: PhantomRecipe, processor: IntensityNormalizer, seed: int
) -> Iterator[SubjectVolume]:
    """Normalised phantom volumes: unpaired over contrasts in `train`, registered in `validation`."""

    def volume(split: str, index: int, contrast: str, subject_seed: int) -> SubjectVolume:
        subject = phantom.make_subject(subject_seed, size=recipe.size, slices=recipe.slices)
        array = normalize_scan(processor, phantom.render(subject, contrast), contrast).pixel_values[:, 0]
        pixel = phantom.FIELD_OF_VIEW / recipe.size
        return SubjectVolume(
            np.asarray(array),
            contrast,
            f"phantom-{subject_seed}",
            split,
            plane="axial",
            pixel_size=(pixel, pixel),
        )

    for contrast in phantom.CONTRASTS:
        for index in range(recipe.train_subjects):
            yield volume("train", index, contrast, phantom_subject_seed("train", index, seed, contrast))
        for index in range(recipe.validation_subjects):
            yield volume("validation", index, contrast, phantom_subject_seed("validation", index, seed))


__all__ = ["PhantomRecipe", "phantom_subject_seed", "phantom_volumes"]
