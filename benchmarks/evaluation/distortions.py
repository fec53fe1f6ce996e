"""How each measure answers to known distortions of a target: which sees what. Prints the table of
docs/evaluation.md.

A distorted copy of the target is scored as a translation of it, on phantom subjects (T2 from T1, 128 pixels,
12 slices, both with 1.5 % Rician noise). Each figure is a mean over subjects; seeds are fixed. "nothing" is
a second acquisition of the target: the same anatomy with other noise, gain left alone.

python -m benchmarks.evaluation.distortions [--subjects 4]
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from galip_hf.data import phantom
from galip_hf.evaluation.displacement import displacement
from galip_hf.evaluation.lesions import lesion_scores
from galip_hf.evaluation.metrics import fixed_target, paper_scores, sharpness_ratio, slice_consistency
from galip_hf.evaluation.more_measures import similarity_groups
from galip_hf.evaluation.set_distances import feature_distances, histogram_distance, intensity_counts
from galip_hf.evaluation.texture_features import scaled, scaling, texture_features
from galip_hf.foreground import body_mask

SIZE, SLICES, FIRST_SEED = 128, 12, 9100
Distortion = Callable[[np.ndarray, phantom.PhantomSubject, np.random.Generator], np.ndarray]


def scan(subject: phantom.PhantomSubject, contrast: str, seed: int = 0) -> np.ndarray:
    """(S, H, W) with the 99.5th percentile at 1."""
    volume = phantom.render(subject, contrast, seed=seed).astype(np.float64)
    return volume / np.percentile(volume, 99.5)


def ghosted(volume: np.ndarray) -> np.ndarray:
    """Every second line of k-space a tenth weaker: a faint copy half a field of view away."""
    lines = np.fft.fft(volume, axis=1)
    lines[:, ::2] *= 0.9
    return np.abs(np.fft.ifft(lines, axis=1))


def bias(volume: np.ndarray) -> np.ndarray:
    """A smooth field from 0.8 to 1.2 across the slice."""
    return volume * np.linspace(0.8, 1.2, volume.shape[2])


def without_lesions(volume: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """Lesions take the values of white matter beside them."""
    holes = ndimage.binary_dilation(lesions, iterations=2)
    nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
    return volume[tuple(nearest)]


def with_lesion(volume: np.ndarray, subject: phantom.PhantomSubject) -> np.ndarray:
    """A ball of 4 pixels with a lesion's brightness where white matter is purest and no lesion is near."""
    white = subject.fractions[phantom.TISSUES.index("white")]
    pure = ndimage.uniform_filter(white, (1, 9, 9)) - ndimage.maximum_filter(
        subject.lesions * 1.0, (3, 15, 15)
    )
    centre = np.unravel_index(pure.argmax(), pure.shape)
    z, y, x = np.indices(volume.shape)
    inside = (z == centre[0]) & ((y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= 16)
    changed = volume.copy()
    changed[inside] += np.median(volume[subject.lesions]) - np.median(volume[white > 0.95])
    return changed


DISTORTIONS: dict[str, Distortion] = {
    "nothing": lambda v, s, r: v,
    "blur, 1 pixel": lambda v, s, r: ndimage.gaussian_filter(v, (0, 1, 1)),
    "noise, 5 %": lambda v, s, r: np.hypot(v + 0.05 * r.normal(size=v.shape), 0.05 * r.normal(size=v.shape)),
    "gain, 0.8": lambda v, s, r: 0.8 * v,
    "bias field, ±20 %": lambda v, s, r: bias(v),
    "shift, 1 pixel": lambda v, s, r: np.roll(v, 1, axis=2),
    "shift, 3 pixels": lambda v, s, r: np.roll(v, 3, axis=2),
    "ghosting, 5 %": lambda v, s, r: ghosted(v),
    "lesions erased": lambda v, s, r: without_lesions(v, s.lesions),
    "a lesion invented": lambda v, s, r: with_lesion(v, s),
}


def row(distortion: Distortion, subjects: list[phantom.PhantomSubject]) -> dict[str, float]:
    """Mean over subjects of each measure; distances between the sets of all subjects."""
    rows, textures, counts = [], [], []
    for subject in subjects:
        target, source = scan(subject, "T2"), scan(subject, "T1")
        body = body_mask([source, target])
        again = scan(subject, "T2", seed=1)
        made = distortion(again, subject, np.random.default_rng([subject.seed]))
        fixed = fixed_target(target, mask=body)
        masked = fixed.scores(made)["masked"]
        groups = similarity_groups(fixed.scaled(made), fixed.values, body, ["nmi"])
        moved = displacement(source, made, body)
        lesions = lesion_scores(made, target, subject.lesions, body)
        rows.append(
            {
                "PSNR": masked.psnr,
                "SSIM": masked.ssim,
                "PSNR, paper": paper_scores(made, target).psnr,
                "NMI": groups["nmi"]["nmi"],
                "sharpness": sharpness_ratio(made, target, body),
                "slice to slice": slice_consistency(made, target, body),
                "shift, px": moved["median"],
                "lesion contrast": lesions["contrast_ratio"],
                "lesions kept": lesions["kept"],
                "false lesions": lesions["false"],
            }
        )
        textures.append((texture_features(target, body), texture_features(made, body)))
        counts.append((intensity_counts(target, body), intensity_counts(made, body)))
    scale = scaling(np.concatenate([real for real, _ in textures]))
    sides = [[scaled(pair[side], scale) for pair in textures] for side in (0, 1)]
    # Medians stand for subjects without a lesion, whose lesion measures are missing.
    means = {name: float(np.mean([r[name] for r in rows if r[name] is not None])) for name in rows[0]}
    means["texture KID"] = feature_distances(*sides, intervals=False)["kid"]
    histograms = [[pair[side] for pair in counts] for side in (0, 1)]
    means["histogram"] = histogram_distance(*histograms, intervals=False)["distance"]
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=4)
    arguments = parser.parse_args()
    subjects: list[phantom.PhantomSubject] = []
    seed = FIRST_SEED
    while len(subjects) < arguments.subjects:
        subject = phantom.make_subject(seed, size=SIZE, slices=SLICES)
        if subject.lesions.sum() >= 20:
            subjects.append(subject)
        seed += 1
    tables = {name: row(distortion, subjects) for name, distortion in DISTORTIONS.items()}
    names = list(tables["nothing"])
    print("| distortion | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for name, values in tables.items():
        cells = [f"{values[n]:.1f}" if "PSNR" in n else f"{values[n]:.3g}" for n in names]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
