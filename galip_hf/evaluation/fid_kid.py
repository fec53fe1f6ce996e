"""Distances between two sets of images in a frozen backbone's features: FID and KID, by torchmetrics.

PSNR and SSIM reward blur; a distance between the distributions of real and translated slices does not. FID
(Heusel et al. 2017, arXiv 1706.08500) is biased upwards by few samples, KID (Bińkowski et al. 2018, arXiv
1801.01401) is not, so the number of samples belongs beside each value. The features are those of a
`ClipBackbone`, not of Inception: the values compare with each other, not with those of other papers.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..extras import require
from ..model.errors import GalipError

if TYPE_CHECKING:
    from ..clip.backbone import ClipBackbone

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
KID_MINIMUM = 10  # fewer samples than this say nothing, whatever the estimator
# Each process has all features: torchmetrics would gather them again, and count them once for each process.
_METRIC_OPTIONS = {"sync_on_compute": False}


def distribution_distances(
    real_features: np.ndarray | Tensor, fake_features: np.ndarray | Tensor, *, seed: int = 0
) -> dict[str, Any]:
    """FID and KID between two sets of features; lower is closer.

    FID needs more samples than features on each side: below that its covariances are singular, and the value
    follows the number of samples. KID (cubic kernel, gamma 1/D) is the mean over `KID_SUBSETS` random subsets
    of at most `KID_SUBSET_SIZE` samples; it is unbiased and may lie a little below 0.

    Args:
        real_features: (N, D), of real images; coordinates of order 1, as `slice_features` gives them.
        fake_features: (M, D), of translated images.
        seed: of the random subsets of KID; torch's global generator is left alone.

    Returns:
        JSON-serialisable: `n_real`, `n_fake`, `features` (D), `fid`, `kid`, `kid_sd` (over the subsets, not
        an error of the mean), `kid_subset_size`, and `fid_reason`, `kid_reason`: why a value is None, else
        None.

    Raises:
        GalipError: torchmetrics is not installed; features are not finite (N, D) of one D.
    """
    real, fake = _features("real_features", real_features), _features("fake_features", fake_features)
    if real.shape[1] != fake.shape[1]:
        raise GalipError(
            f"fake_features: found {fake.shape[1]} features a sample, real_features has {real.shape[1]}; "
            "use the same backbone for both"
        )
    fewest, width = min(len(real), len(fake)), real.shape[1]
    result: dict[str, Any] = {"n_real": len(real), "n_fake": len(fake), "features": width}
    result |= dict.fromkeys(("fid", "fid_reason", "kid", "kid_sd", "kid_subset_size", "kid_reason"))
    if fewest <= width:
        result["fid_reason"] = (
            f"n = {fewest} is not above the {width} features: the covariance would be singular"
        )
    else:
        result["fid"] = _fid(real, fake)
    if fewest < KID_MINIMUM:
        result["kid_reason"] = f"n = {fewest} is below {KID_MINIMUM}"
    else:
        result |= _kid(real, fake, seed)
    return result


@torch.no_grad()
def slice_features(backbone: ClipBackbone, slices: np.ndarray, *, batch_size: int = 32) -> Tensor:
    """The backbone's image embeddings of slices, in batches, scaled to a root mean square of 1.

    The embedding has unit length; KID's kernel divides by the width and would be all but linear on it.

    Args:
        backbone: on any device.
        slices: (N, H, W) in [0, 1].
        batch_size: slices encoded at once.

    Returns:
        (N, E) float32 on the CPU.

    Raises:
        GalipError: slices are not (N, H, W), or `batch_size` is below 1.
    """
    if np.ndim(slices) != 3 or batch_size < 1:
        raise GalipError(
            f"slices: found shape {np.shape(slices)}, batch_size {batch_size}; expected (N, H, W), 1 or more"
        )
    device, parts = backbone.image_mean.device, [torch.empty(0, backbone.embedding_width)]
    for start in range(0, len(slices), batch_size):
        batch = np.array(slices[start : start + batch_size], dtype=np.float32)
        parts.append(backbone.encode_images(torch.from_numpy(batch)[:, None].to(device)).embedding.cpu())
    return torch.cat(parts) * backbone.embedding_width**0.5


class _Features(nn.Identity):
    """Stands where torchmetrics expects a network: the features are there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def _fid(real: Tensor, fake: Tensor) -> float:
    module = require("torchmetrics.image.fid", "evaluate")
    metric = module.FrechetInceptionDistance(feature=_Features(real.shape[1]), **_METRIC_OPTIONS)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return max(0.0, float(metric.compute()))  # rounding may leave a tiny negative number


def _kid(real: Tensor, fake: Tensor, seed: int) -> dict[str, Any]:
    module = require("torchmetrics.image.kid", "evaluate")
    size = min(len(real), len(fake), KID_SUBSET_SIZE)
    subsets = 1 if size == len(real) == len(fake) else KID_SUBSETS  # all samples make one subset only
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        torch.manual_seed(seed)
        metric = module.KernelInceptionDistance(
            feature=_Features(real.shape[1]), subsets=subsets, subset_size=size, **_METRIC_OPTIONS
        )
        metric.update(real, real=True)
        metric.update(fake, real=False)
        mean, deviation = metric.compute()
    return {
        "kid": float(mean),
        "kid_sd": float(deviation) if subsets > 1 else None,
        "kid_subset_size": size,
    }


def _features(name: str, values: np.ndarray | Tensor) -> Tensor:
    """(N, D) float64 on the CPU, checked."""
    features = torch.as_tensor(values).detach().cpu()
    if features.ndim != 2 or not features.is_floating_point() or not features.shape[1]:
        raise GalipError(
            f"{name}: found {features.dtype} of shape {tuple(features.shape)}; expected floats (N, D)"
        )
    if not torch.isfinite(features).all():
        raise GalipError(f"{name}: found NaN or infinite values; expected finite ones")
    return features.double()


__all__ = ["distribution_distances", "slice_features"]
