"""Captioned slices of a user's own table, to train the stand-in for BiomedCLIP on.

A table holds no captions. Each slice gets its domain's prompt and two facts that can be read off the table:
how high the slice lies in its scan, and how wide the body is in it. The stand-in must then look at anatomy
too, not at the brightness of a contrast alone.
"""

from collections.abc import Mapping

import datasets
import numpy as np
import torch
import torch.nn.functional as F

from ..data.table import SliceReader, domain_rows
from ..foreground import above_air
from ..model.errors import GalipError

LEVELS = ("lowest", "low", "middle", "high", "highest")
WIDTHS = ("narrow", "medium", "wide")
SLICES_A_DOMAIN = 2000  # at most, evenly spaced
FEWEST_SLICES = 10


def captioned_slices(
    table: datasets.Dataset, prompts: Mapping[str, str], image_size: int
) -> tuple[np.ndarray, list[str], list[str]]:
    """Training slices of each domain, the caption of each, and its domain's prompt alone.

    Args:
        table: the split `train`.
        prompts: domain -> prompt.
        image_size: height and width that the slices are resized to.

    Returns:
        (N, image_size, image_size) float32 in [0, 1]; N captions such as "this MRI is T2-weighted, a low
        slice, a wide body"; N prompts.

    Raises:
        GalipError: too few slices.
    """
    reader = SliceReader(table)
    heights = _heights(table)
    rows = np.concatenate([_evenly_spaced(domain_rows(table, domain)) for domain in prompts])
    if len(rows) < FEWEST_SLICES:
        raise GalipError(
            f"clip.tiny.images: the table has {len(rows)} training slices; expected at least {FEWEST_SLICES} "
            "to train the stand-in on, or images: phantom"
        )
    images = np.stack([_resized(reader[int(row)], image_size) for row in rows])
    widths = np.array([above_air(image[None])[0].any(axis=0).mean() for image in images])
    limits = np.quantile(widths, [1 / 3, 2 / 3])
    names = table.features["domain"].names
    labels = np.asarray(table.data.column("domain"))[rows]
    bare = [prompts[names[label]] for label in labels]
    captions = [
        f"{prompt}, a {LEVELS[int(heights[row] * len(LEVELS))]} slice, "
        f"a {WIDTHS[int(np.searchsorted(limits, width))]} body"
        for row, prompt, width in zip(rows, bare, widths, strict=True)
    ]
    return images, captions, bare


def _evenly_spaced(rows: np.ndarray) -> np.ndarray:
    positions = np.linspace(0, len(rows) - 1, min(len(rows), SLICES_A_DOMAIN))
    return rows[positions.astype(int)]


def _heights(table: datasets.Dataset) -> np.ndarray:
    """(rows,) where in its volume each slice lies: 0 is the lowest, just below 1 the highest."""
    columns = (np.asarray(table.data.column(name)) for name in ("subject", "domain", "slice"))
    subjects, domains, positions = columns
    volumes = np.unique(
        np.stack([np.unique(subjects, return_inverse=True)[1], domains]), axis=1, return_inverse=True
    )[1].ravel()
    heights = np.empty(len(positions))
    for volume in np.unique(volumes):
        own = volumes == volume
        low, high = positions[own].min(), positions[own].max()
        heights[own] = (positions[own] - low) / (high - low + 1)
    return heights


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """(size, size) float32 in [0, 1], resampled as `ClipBackbone` does."""
    if image.shape == (size, size):
        return image.clip(0, 1)
    pixels = torch.from_numpy(image.copy())[None, None]
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)[0, 0].clamp(0, 1).numpy()


__all__ = ["captioned_slices"]
