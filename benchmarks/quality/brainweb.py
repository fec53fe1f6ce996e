"""MR volumes simulated from the label maps of BrainWeb's 20 normal anatomies, with exact truth.

A label map (Aubert-Broche, Evans & Collins, NeuroImage 32(1), 2006; 1 mm, one tissue a voxel) is averaged
over the voxels of the simulated scan, which gives the volume fraction of each tissue. The signal of a voxel
is that of the spin-echo equation (`galip_hf.data.phantom.tissue_signals`) for each tissue, weighted by these
fractions. A smooth bias field and Rician noise are then added. All contrasts of an anatomy share its
fractions, so a translation can be compared with its target voxel by voxel.

The label maps are not part of this repository; see https://brainweb.bic.mni.mcgill.ca.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from galip_hf import GalipError
from galip_hf.data.phantom import CONTRASTS, tissue_signals
from galip_hf.data.readers import read_volume

# Proton density (water = 1), T1 and T2 in ms at 1.5 T, in the order of the labels. Unless another source is
# named, the values are BrainWeb's (Kwan, Evans & Pike, IEEE TMI 18(11), 1999, and tissue_mr_parameters.txt of
# its web site). BrainWeb gives none for vessels, dura, marrow and bone.
TISSUES: dict[str, tuple[float, float, float]] = {
    "background": (0.0, 1.0, 1.0),
    "csf": (1.0, 2569.0, 329.0),
    "grey matter": (0.86, 833.0, 83.0),
    "white matter": (0.77, 500.0, 70.0),
    "fat": (1.0, 350.0, 70.0),
    "muscle": (1.0, 900.0, 47.0),
    "muscle and skin": (1.0, 900.0, 47.0),
    "skull": (0.05, 400.0, 20.0),  # compact bone gives next to no signal; as in galip_hf.data.phantom
    "vessels": (1.0, 1441.0, 290.0),  # blood: Stanisz et al., Magn Reson Med 54(3), 2005; flow is left out
    "connective tissue": (0.77, 500.0, 70.0),
    "dura": (0.77, 500.0, 70.0),  # taken for connective tissue
    "marrow": (1.0, 549.0, 49.0),  # de Bazelaire et al., Radiology 230(3), 2004
}

LARGEST_BIAS = 0.15  # of the signal, either way
NOISE = 0.03  # deviation of the Rician noise, of the 99.5th percentile of the noise-free volume


@dataclass(frozen=True)
class Sampling:
    """Voxels of the simulated scan.

    Attributes:
        size: rows and columns of an axial slice.
        pixel: mm between rows, and between columns.
        thickness: mm between slices.
    """

    size: int = 128
    pixel: float = 1.75
    thickness: float = 1.75


def read_fractions(path: Path, sampling: Sampling) -> np.ndarray:
    """(tissues, S, H, W) float32 volume fractions of a label map, in the order of `TISSUES`.

    Slices run from inferior to superior; row 0 is anterior. The head is centred in the field of view; voxels
    outside the label map are background.

    Raises:
        GalipError: not a map of these labels, or one whose voxels are not 1 mm.
    """
    volume = read_volume(path)
    if not np.allclose(volume.spacing, 1, atol=1e-3):
        raise GalipError(f"{path}: voxels are {volume.spacing} mm; expected a label map of 1 mm")
    labels = volume.array.astype(np.int64)
    if labels.min() < 0 or labels.max() >= len(TISSUES) or not np.array_equal(labels, volume.array):
        raise GalipError(
            f"{path}: values are {volume.array.min():g}..{volume.array.max():g}; expected the whole numbers "
            f"0..{len(TISSUES) - 1} of BrainWeb's tissues"
        )
    count = int(labels.shape[0] // sampling.thickness)
    weights = (
        overlap_weights(labels.shape[0], count, sampling.thickness),
        overlap_weights(labels.shape[1], sampling.size, sampling.pixel),
        overlap_weights(labels.shape[2], sampling.size, sampling.pixel),
    )
    fractions = np.stack([_averaged(labels == label, weights) for label in range(len(TISSUES))])
    fractions[0] += 1 - fractions.sum(axis=0)
    return fractions


def overlap_weights(length: int, count: int, width: float) -> np.ndarray:
    """(count, length) float32: how much of each of `count` voxels of `width` is each of `length` voxels of 1.

    Both rows of voxels have the same centre. A row sums to 1 where its voxel lies within the others.
    """
    start = length / 2 - count * width / 2 + width * np.arange(count)[:, None]
    own = np.arange(length)[None]
    overlap = np.minimum(start + width, own + 1) - np.maximum(start, own)
    return (np.maximum(overlap, 0) / width).astype(np.float32)


def _averaged(mask: np.ndarray, weights: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    values = mask.astype(np.float32)
    for axis, weight in enumerate(weights):
        values = np.moveaxis(np.tensordot(weight, values, axes=(1, axis)), 0, axis)
    return values


def simulate(fractions: np.ndarray, contrast: str, seed: tuple[int, ...]) -> np.ndarray:
    """One acquisition, (S, H, W) float32, arbitrary units, of (tissues, S, H, W) volume fractions.

    `seed` determines bias field and noise. Raises `GalipError` for a contrast not in `phantom.CONTRASTS`.
    """
    rng = np.random.default_rng([*seed, CONTRASTS.index(contrast) if contrast in CONTRASTS else 0])
    signals = tissue_signals(contrast, np.array(list(TISSUES.values())))
    image = np.tensordot(signals, fractions, axes=1)
    deviation = NOISE * np.percentile(image, 99.5)
    image = image * bias_field(image.shape, rng)
    noise = deviation * rng.standard_normal((2, *image.shape))
    return np.hypot(image + noise[0], noise[1]).astype(np.float32)


def bias_field(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A smooth field of the given shape, between 1 - `LARGEST_BIAS` and 1 + `LARGEST_BIAS`.

    It reaches one of these two. It is a sum of the lowest cosines along each axis, with random weights: the
    form in which SPM models the bias of a receive coil.
    """
    field = np.zeros(shape)
    axes = [np.cos(np.pi * np.outer(np.arange(3), (np.arange(n) + 0.5) / n)) for n in shape]
    for orders in np.ndindex(3, 3, 3):
        if 0 < sum(orders) <= 2:
            wave = [axis[order] for axis, order in zip(axes, orders, strict=True)]
            field += rng.standard_normal() * np.einsum("i,j,k->ijk", *wave)
    return 1 + LARGEST_BIAS * field / np.abs(field).max()
