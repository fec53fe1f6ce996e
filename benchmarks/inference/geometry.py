"""How much a translation depends on its scan's grid: PSNR against the true target, by what was done to it.

python -m benchmarks.inference.geometry [--model DIRECTORY] [--subjects 4] [--output outputs/geometry.json]

Test subjects of the phantom, T1 to T2, as NIfTI with 4 mm pixels. The scan is resampled, padded with air,
shifted, turned or given a header of 1 mm, and the translation is put back onto the first grid before it is
scored inside the body (protocol `fixed`). With the model's geometry and, for comparison, with `native`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from galip_hf import GalipPipeline, __version__
from galip_hf.data import phantom
from galip_hf.data.phantom_table import phantom_subject_seed
from galip_hf.evaluation.metrics import fixed_target
from galip_hf.files import write_report
from galip_hf.foreground import body_mask

MODEL = Path(__file__).resolve().parents[2] / "examples" / "phantom_model"
AFFINE = np.diag([4.0, 4.0, 9.0, 1.0])
Translate = Callable[[np.ndarray, np.ndarray], np.ndarray]  # voxels and affine to the translation's voxels


def zoomed(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(X, Y, Z) resampled in-plane, linearly, over the same field of view."""
    factors = (shape[0] / array.shape[0], shape[1] / array.shape[1], 1)
    return ndimage.zoom(array, factors, order=1, mode="nearest", grid_mode=True)


def resampled(translate: Translate, scan: np.ndarray, factor: float) -> np.ndarray:
    """The translation of the scan at `factor` times its pixels, back on its grid."""
    shape = (round(scan.shape[0] * factor), round(scan.shape[1] * factor))
    affine = AFFINE @ np.diag([scan.shape[0] / shape[0], scan.shape[1] / shape[1], 1, 1])
    return zoomed(translate(zoomed(scan, shape), affine), scan.shape[:2])


def turned(translate: Translate, scan: np.ndarray, codes: str) -> np.ndarray:
    """The translation of the scan stored in another axis order, back in the first."""
    first = nib.io_orientation(AFFINE)
    there = nib.orientations.ornt_transform(first, nib.orientations.axcodes2ornt(codes))
    stored = nib.Nifti1Image(scan, AFFINE).as_reoriented(there)
    result = nib.Nifti1Image(translate(np.asarray(stored.dataobj), stored.affine), stored.affine)
    return nib.as_closest_canonical(result).get_fdata()


CASES: dict[str, Callable[[Translate, np.ndarray], np.ndarray]] = {
    "as in training": lambda translate, scan: translate(scan, AFFINE),
    "resampled by 0.7": lambda translate, scan: resampled(translate, scan, 0.7),
    "resampled by 1.5": lambda translate, scan: resampled(translate, scan, 1.5),
    "64 pixels of air around": lambda translate, scan: translate(
        np.pad(scan, ((64, 64), (64, 64), (0, 0))), AFFINE
    )[64:-64, 64:-64],
    "shifted by 5 and 7 pixels": lambda translate, scan: np.roll(
        translate(np.roll(scan, (5, -7), (0, 1)), AFFINE), (-5, 7), (0, 1)
    ),
    "axes flipped (LPI)": lambda translate, scan: turned(translate, scan, "LPI"),
    "axes permuted (SLA)": lambda translate, scan: turned(translate, scan, "SLA"),
    "header of 1 mm": lambda translate, scan: translate(scan, np.diag([1.0, 1.0, 9.0, 1.0])),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = GalipPipeline.from_pretrained(arguments.model, force=True)
    scores: dict[str, dict[str, list[float]]] = {case: {"model": [], "native": []} for case in CASES}
    for index in range(arguments.subjects):
        subject = phantom.make_subject(phantom_subject_seed("test", 1000 + index, 0))
        source, target = (phantom.render(subject, contrast).astype(np.float64) for contrast in ("T1", "T2"))
        # A translation is on its source's scale: both contrasts get one scale.
        source, target = (1000 * values / np.percentile(values, 99.5) for values in (source, target))
        scoring = fixed_target(target, mask=body_mask([source, target]))
        scan = np.ascontiguousarray(source.transpose(2, 1, 0)[:, ::-1], dtype=np.float32)
        for case, run in CASES.items():
            for geometry in ("model", "native"):

                def translate(voxels: np.ndarray, affine: np.ndarray, geometry: str = geometry) -> np.ndarray:
                    image = nib.Nifti1Image(voxels.astype(np.float32), affine)
                    return pipeline(image, "T2", "T1", geometry=geometry).array

                result = run(translate, scan)[:, ::-1].transpose(2, 1, 0)
                scores[case][geometry].append(scoring.scores(result)["masked"].psnr)
    print("| the scan | model's geometry | `native` |\n|---|---|---|")
    for case, values in scores.items():
        print(f"| {case} | {np.mean(values['model']):.2f} | {np.mean(values['native']):.2f} |")
    if arguments.output:
        write_report({"psnr": scores, "model": arguments.model, "galip_hf": __version__}, arguments.output)


if __name__ == "__main__":
    main()
