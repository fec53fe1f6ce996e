"""Slices of a volume through the generator, in batches."""

from collections.abc import Iterator

import numpy as np
import torch

from .modeling_galip import GalipForImageTranslation


def translate_batches(
    model: GalipForImageTranslation, slices: np.ndarray, target_domain: str, batch_size: int = 8
) -> Iterator[np.ndarray]:
    """Translate (S, H, W) float32 slices in model space; yields up to `batch_size` of them each time."""
    for start in range(0, len(slices), batch_size):
        pixel_values = torch.from_numpy(
            np.ascontiguousarray(slices[start : start + batch_size], dtype=np.float32)
        )
        with torch.inference_mode():
            output = model(pixel_values[:, None].to(model.device), target_domain)
        yield output.translation[:, 0].float().cpu().numpy()


def translate_slices(model: GalipForImageTranslation, slices: np.ndarray, target_domain: str) -> np.ndarray:
    """Translate (S, H, W) float32 slices in model space; the same shape."""
    return np.concatenate(list(translate_batches(model, slices, target_domain)))


__all__ = ["translate_batches", "translate_slices"]
