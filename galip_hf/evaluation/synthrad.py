"""The protocol `synthrad2025`: synthetic CT scored as by the SynthRAD2025 challenge.

Written from the description of what the challenge's own code computes (SynthRAD2025/evaluation,
`image_metrics.py`, commit 17cac47), not from the code:

- outside the mask both volumes are set to -1024 HU;
- MAE over the mask;
- PSNR over the voxels of the mask, both sides clipped to [-1024, 3071] HU, range 4095;
- MS-SSIM in 3-D on the clipped volumes: uniform windows of 7 x 7 x 7, sample covariance, K 0.01 and 0.03,
the five
  weights of Wang et al. 2003, luminance, contrast and structure at every level; volumes and mask are padded
  with their edge values to 97 voxels a side where they are smaller; at each level the mean over the mask,
  and the product of the means, each to the power of its weight.

Where the description leaves a choice, it is the usual one: values are shifted so that -1024 HU is 0, windows
that the volume's border cuts are left out of the means, and the next level is the mean of 2 x 2 x 2 voxels
(reflected at the border), every second one kept; the mask is thinned likewise.
"""

import numpy as np
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ..model.errors import GalipError

COMMIT = "17cac47"
LOWEST, HIGHEST = -1024.0, 3071.0  # HU
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 7  # voxels
SMALLEST_SIDE = 97  # voxels: five levels and a window
MEANING = (
    "Protocol synthrad2025, as SynthRAD2025/evaluation computes it (image_metrics.py, commit "
    f"{COMMIT}): MAE (HU), PSNR (dB, range 4095 HU) and 3-D MS-SSIM inside the mask, -1024 HU outside "
    "it. Best published MR to CT there: 64.8 HU, 0.936, Dice 0.79 (arXiv 2605.13555), on the "
    "challenge's own test set and masks only.",
    "Dose is not computed. Figures depend on the mask: give the challenge's (--mask) to compare with its "
    "tables.",
)


def synthrad_scores(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> dict[str, float | None]:
    """`mae` (HU), `psnr` (dB; None for identical volumes) and `ms_ssim` of a synthetic CT.

    Args:
        prediction, target: (S, H, W) in HU.
        mask: (S, H, W) bool, not empty.

    Raises:
        GalipError: the shapes differ.
    """
    if not prediction.shape == target.shape == mask.shape:
        raise GalipError(
            f"synthrad2025: found shapes {prediction.shape}, {target.shape} and mask {mask.shape}; expected "
            f"one"
        )
    sides = [np.where(mask, np.asarray(side, np.float64), LOWEST) for side in (prediction, target)]
    mae = float(np.abs(sides[0] - sides[1])[mask].mean())
    p, t = (np.clip(side, LOWEST, HIGHEST) for side in sides)
    same = np.array_equal(p[mask], t[mask])
    psnr = None if same else float(peak_signal_noise_ratio(t[mask], p[mask], data_range=HIGHEST - LOWEST))
    return {"mae": mae, "psnr": psnr, "ms_ssim": masked_ms_ssim(p - LOWEST, t - LOWEST, mask)}


def masked_ms_ssim(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """3-D MS-SSIM of the module's description: (S, H, W) each, values in 0..4095; 1 is identical."""
    missing = [max(0, SMALLEST_SIDE - side) for side in mask.shape]
    widths = [(total // 2, total - total // 2) for total in missing]
    p, t = (np.pad(side, widths, mode="edge") for side in (prediction, target))
    mask = np.pad(mask, widths, mode="edge")
    inner = (slice(WINDOW // 2, -(WINDOW // 2)),) * 3
    product = 1.0
    for level, weight in enumerate(WEIGHTS):
        if level:
            p, t = (ndimage.uniform_filter(side, 2, mode="reflect")[::2, ::2, ::2] for side in (p, t))
            mask = mask[::2, ::2, ::2]
        _, ssim_map = structural_similarity(
            t, p, win_size=WINDOW, data_range=HIGHEST - LOWEST, use_sample_covariance=True, full=True
        )
        inside = ssim_map[inner][mask[inner]]
        # A mask too thin for a level says nothing there; a negative mean has no real power.
        product *= max(float(inside.mean()), 0.0) ** weight if inside.size else 1.0
    return product


__all__ = ["MEANING", "masked_ms_ssim", "synthrad_scores"]
