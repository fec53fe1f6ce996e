"""An exported graph against the generator in PyTorch, on slices, before anybody uses it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..model.errors import GalipError
from ..model.unet import GalipGenerator

# float32 on both sides: sums in another order give 1e-5 at most in a network of this depth.
LARGEST_FP32_DIFFERENCE = 1e-4
# Half precision: the root mean square over the slices, in model space (windows). A translation with a PSNR of
# 27 dB has an error of 0.045; an independent error of 0.005 added to it costs 10 log10(1 + (5 / 45)^2) dB,
# which is 0.05 dB.
LARGEST_HALF_DIFFERENCE = 0.005

# (images (B, 1, H, W), label) -> (B, 1, H, W), both float32
Run = Callable[[np.ndarray, int], np.ndarray]


def compared(
    generator: GalipGenerator, run: Run, slices: np.ndarray, targets: Sequence[str], dtype: str, multiple: int
) -> dict[str, Any]:
    """Differences of an exported graph from PyTorch in float32, in model space.

    The graph is run on all slices in one batch, then on the first one alone with its border repeated for
    another `multiple` rows and columns: it must not have taken over the lengths that it was traced with.

    Args:
        generator: the original, in float32.
        run: the exported graph.
        slices: (S, H, W) float32 in model space; H and W multiples of `multiple`.
        targets: names of the domains to compare.
        dtype: type of the graph's activations, a key of `export.graph.DTYPES`.

    Returns:
        `max_abs_difference`, `rms_difference` and `slices`, the number of slices.

    Raises:
        GalipError: larger differences than `LARGEST_FP32_DIFFERENCE` or `LARGEST_HALF_DIFFERENCE` allow.
    """
    images = np.ascontiguousarray(slices[:, None], dtype=np.float32)
    one = F.pad(torch.from_numpy(images[:1]), (0, multiple, 0, multiple), mode="replicate").numpy()
    largest, squares, count = 0.0, 0.0, 0
    for batch in (images, one):
        for name in targets:
            with torch.inference_mode():
                expected = generator(torch.from_numpy(batch), name).translation.numpy()
            difference = run(batch, generator.config.domain_index(name)).astype(np.float64) - expected
            if not np.isfinite(difference).all():
                raise GalipError(f"the exported graph gives NaN or infinite values in {dtype}; use fp32")
            largest = max(largest, float(np.abs(difference).max()))
            squares, count = squares + float((difference**2).sum()), count + difference.size
    rms = math.sqrt(squares / count)
    found, allowed = (largest, LARGEST_FP32_DIFFERENCE) if dtype == "fp32" else (rms, LARGEST_HALF_DIFFERENCE)
    if found > allowed:
        kind = "largest" if dtype == "fp32" else "root mean square"
        raise GalipError(
            f"the exported graph differs from PyTorch: {kind} difference {found:.2g} of the window, expected "
            f"at most {allowed:g}; nothing was written"
            + ("" if dtype == "fp32" else ". Export this model with --dtype fp32")
        )
    return {"max_abs_difference": largest, "rms_difference": rms, "slices": len(slices)}


__all__ = ["LARGEST_FP32_DIFFERENCE", "LARGEST_HALF_DIFFERENCE", "Run", "compared"]
