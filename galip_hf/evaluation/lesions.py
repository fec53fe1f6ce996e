"""Lesions in a translation: is their contrast kept, are they all there, and were some invented?

A lesion is a connected component of the lesion mask; its surroundings are the ring of `RING` pixels about
it, in the slices, without other lesions and inside the body.

- contrast: (mean of the lesion - mean of the ring) / mean of the ring;
- contrast to noise: the same difference over the standard deviation of the ring;
- kept: in the translation, voxels on the target lesion's side of its ring (bright or dark) by at least half
of the
  target's difference cover at least `OVERLAP` of the lesion;
- false: components of the translation's voxels outside the lesions that are brighter (or darker) than normal
tissue
  by half the median lesion's difference where the target's are not; at least 3 x 3 pixels in a slice, so that
  rims of displaced edges and specks of noise do not count.
"""

from typing import Any

import numpy as np
from scipy import ndimage

RING = 3  # pixels
OVERLAP = 0.3  # share of a lesion's voxels
SMALLEST = 3  # voxels of a lesion; smaller components are specks of the mask
MEANING = (
    "Lesions of the given masks: contrast against their surroundings and contrast to noise, "
    "translation over target (1 is the same, negative is inverted); share of lesions kept; number of "
    "false ones a subject.",
    "A false lesion that merges with a true one counts as part of it, and one at a place where the "
    "target is as bright for another reason is not seen.",
)


def lesion_scores(
    prediction: np.ndarray, target: np.ndarray, lesions: np.ndarray, body: np.ndarray
) -> dict[str, float | None]:
    """Scores of one subject.

    Args:
        prediction, target: (S, H, W) on one scale.
        lesions: (S, H, W) bool.
        body: (S, H, W) bool.

    Returns:
        `contrast_ratio` and `cnr_ratio` (medians over lesions, translation over target), `kept` (share of the
        lesions), `false` (number) and `lesions` (number); None where there is no lesion with surroundings.
    """
    found = _lesions(target, lesions, body)
    nothing = dict.fromkeys(("contrast_ratio", "cnr_ratio", "kept", "false"))
    if not found:
        return {"lesions": 0.0, **nothing}
    rows = []
    for lesion in found:
        own = _against_ring(prediction, lesion)
        side = np.sign(lesion["difference"])
        cut = own["ring"] + side * abs(lesion["difference"]) / 2
        covered = (side * (prediction[lesion["inside"]] - cut) >= 0).mean()
        rows.append(
            (
                own["contrast"] / lesion["contrast"],
                own["cnr"] / lesion["cnr"] if lesion["cnr"] and own["cnr"] is not None else np.nan,
                covered >= OVERLAP,
            )
        )
    contrasts, cnrs, kept = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return {
        "lesions": float(len(found)),
        "contrast_ratio": float(np.median(contrasts)),
        "cnr_ratio": float(np.nanmedian(cnrs)) if np.isfinite(cnrs).any() else None,
        "kept": float(kept.mean()),
        "false": float(_false_lesions(prediction, target, lesions, body, found)),
    }


def _lesions(target: np.ndarray, lesions: np.ndarray, body: np.ndarray) -> list[dict[str, Any]]:
    """Each lesion that differs from its surroundings: where it and its ring lie, and its contrast."""
    labels, _ = ndimage.label(lesions, np.ones((3, 3, 3)))
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        wide = tuple(
            slice(max(0, side.start - margin), side.stop + margin)
            for side, margin in zip(box, (0, RING, RING), strict=True)
        )
        inside = labels[wide] == number
        near = ndimage.maximum_filter(inside, size=(1, 2 * RING + 1, 2 * RING + 1))
        ring = near & ~lesions[wide] & body[wide]
        if inside.sum() < SMALLEST or ring.sum() < SMALLEST:
            continue
        whole = {name: np.zeros(target.shape, bool) for name in ("inside", "around")}
        whole["inside"][wide], whole["around"][wide] = inside, ring
        places = {name: np.nonzero(mask) for name, mask in whole.items()}
        lesion = places | _against_ring(target, places)
        if lesion["difference"] != 0:
            found.append(lesion)
    return found


def _against_ring(volume: np.ndarray, lesion: dict[str, Any]) -> dict[str, Any]:
    values, around = volume[lesion["inside"]], volume[lesion["around"]]
    ring, noise = float(around.mean()), float(around.std())
    difference = float(values.mean()) - ring
    return {
        "difference": difference,
        "ring": ring,
        "contrast": difference / ring if ring else 0.0,
        "cnr": difference / noise if noise else None,
    }


def _false_lesions(
    prediction: np.ndarray,
    target: np.ndarray,
    lesions: np.ndarray,
    body: np.ndarray,
    found: list[dict[str, Any]],
) -> int:
    difference = float(np.median([lesion["difference"] for lesion in found]))
    cut = float(np.median([lesion["ring"] for lesion in found])) + difference / 2
    side = np.sign(difference)
    near_truth = ndimage.binary_dilation((side * (target - cut) >= 0) | lesions, iterations=1)
    invented = (side * (prediction - cut) >= 0) & body & ~near_truth
    _, count = ndimage.label(ndimage.binary_opening(invented, np.ones((1, 3, 3))), np.ones((3, 3, 3)))
    return int(count)


__all__ = ["MEANING", "lesion_scores"]
