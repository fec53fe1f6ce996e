"""How a translation depends on its scan's grid: PSNR against the true target, by what was done to it.

python -m benchmarks.inference.geometry [--model DIRECTORY] [--subjects 4] [--output outputs/geometry.json]
python -m benchmarks.inference.geometry --model examples/open_ms_model --head examples/data

Test subjects of the phantom, T1 to T2, as NIfTI with 4 mm pixels; or the T1 and T2 of one real head. The
scan is resampled, padded with air, shifted, turned or given a header of 1 mm, and the translation is put back
onto the first grid before it is scored inside the body (protocol `fixed`). With the model's geometry and, for
comparison, with `native`. "Target" is the true target that went the same way: what is lost whatever the
translator does.
"""

import argparse
from collections.abc import Callable, Iterator
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
PHANTOM_AFFINE = np.diag([4.0, 4.0, 9.0, 1.0])
Translate = Callable[[np.ndarray, np.ndarray], np.ndarray]  # voxels and affine to the translation's voxels


def zoomed(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(X, Y, Z) resampled in-plane, linearly, over the same field of view."""
    factors = (shape[0] / array.shape[0], shape[1] / array.shape[1], 1)
    return ndimage.zoom(array, factors, order=1, mode="nearest", grid_mode=True)


def resampled(translate: Translate, scan: np.ndarray, affine: np.ndarray, factor: float) -> np.ndarray:
    """The translation of the scan at `factor` times its pixels, back on its grid."""
    shape = (round(scan.shape[0] * factor), round(scan.shape[1] * factor))
    affine = affine @ np.diag([scan.shape[0] / shape[0], scan.shape[1] / shape[1], 1, 1])
    return zoomed(translate(zoomed(scan, shape), affine), scan.shape[:2])


def turned(translate: Translate, scan: np.ndarray, affine: np.ndarray, codes: str) -> np.ndarray:
    """The translation of the scan stored in another axis order, back in the first."""
    first = nib.io_orientation(affine)
    there = nib.orientations.ornt_transform(first, nib.orientations.axcodes2ornt(codes))
    stored = nib.Nifti1Image(scan, affine).as_reoriented(there)
    result = nib.Nifti1Image(translate(np.asarray(stored.dataobj), stored.affine), stored.affine)
    back = nib.orientations.ornt_transform(nib.io_orientation(result.affine), first)
    return result.as_reoriented(back).get_fdata()


CASES: dict[str, Callable[[Translate, np.ndarray, np.ndarray], np.ndarray]] = {
    "as it is": lambda translate, scan, affine: translate(scan, affine),
    "resampled by 0.7": lambda translate, scan, affine: resampled(translate, scan, affine, 0.7),
    "resampled by 1.5": lambda translate, scan, affine: resampled(translate, scan, affine, 1.5),
    "64 pixels of air around": lambda translate, scan, affine: translate(
        np.pad(scan, ((64, 64), (64, 64), (0, 0))), affine
    )[64:-64, 64:-64],
    "shifted by 5 and 7 pixels": lambda translate, scan, affine: np.roll(
        translate(np.roll(scan, (5, -7), (0, 1)), affine), (-5, 7), (0, 1)
    ),
    "axes flipped (LPI)": lambda translate, scan, affine: turned(translate, scan, affine, "LPI"),
    "axes permuted (SLA)": lambda translate, scan, affine: turned(translate, scan, affine, "SLA"),
    "header of 1 mm": lambda translate, scan, affine: translate(scan, np.diag([1.0, 1.0, affine[2, 2], 1.0])),
}
WAYS = ("model", "native", "target")


def phantom_scans(subjects: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Source and target (X, Y, Z) and their affine."""
    for index in range(subjects):
        subject = phantom.make_subject(phantom_subject_seed("test", 1000 + index, 0))
        volumes = (phantom.render(subject, contrast).transpose(2, 1, 0)[:, ::-1] for contrast in ("T1", "T2"))
        source, target = (volume.astype(np.float64) for volume in volumes)
        yield source, target, PHANTOM_AFFINE


def head_scans(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same of a folder with `head_T1.nii.gz` and `head_T2.nii.gz` on one grid."""
    source, target = (nib.load(folder / f"head_{name}.nii.gz") for name in ("T1", "T2"))
    yield source.get_fdata(), target.get_fdata(), source.affine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--head", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = GalipPipeline.from_pretrained(arguments.model, force=True)
    scores: dict[str, dict[str, list[float]]] = {case: {way: [] for way in WAYS} for case in CASES}
    scans = head_scans(arguments.head) if arguments.head else phantom_scans(arguments.subjects)
    for source, target, affine in scans:
        # A translation is on its source's scale: both contrasts get one scale.
        source, target = (1000 * values / np.percentile(values, 99.5) for values in (source, target))
        scoring = fixed_target(target.T, mask=body_mask([source.T, target.T]))
        for case, run in CASES.items():
            for way in WAYS:

                def translate(voxels: np.ndarray, affine: np.ndarray, way: str = way) -> np.ndarray:
                    if way == "target":
                        return voxels
                    image = nib.Nifti1Image(voxels.astype(np.float32), affine)
                    return pipeline(image, "T2", "T1", geometry=way).array

                scan = np.ascontiguousarray(target if way == "target" else source, dtype=np.float32)
                scores[case][way].append(scoring.scores(run(translate, scan, affine).T)["masked"].psnr)
    print("| the scan | model's geometry | `native` | target |\n|---|---|---|---|")
    for case, values in scores.items():
        print("| " + " | ".join([case, *(f"{np.mean(values[way]):.2f}" for way in WAYS)]) + " |")
    if arguments.output:
        write_report({"psnr": scores, "model": arguments.model, "galip_hf": __version__}, arguments.output)


if __name__ == "__main__":
    main()
