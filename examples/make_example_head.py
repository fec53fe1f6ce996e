"""Make examples/data from one head of the open_ms data: three contrasts of one grid, a stack of slices.

python examples/make_example_head.py T1.nii.gz T2.nii.gz FLAIR.nii.gz [--output examples/data]

The three files are one study of one person, resampled to the FLAIR's grid by their headers. T2 and FLAIR lie
on each other as they are; the T1 is rotated against them, and is registered rigidly to the FLAIR. All are
resampled in the plane of the slices to pixels of 1 mm, cut to the head, and stored as 16-bit integers. Needs
the extra `prepare`.
"""

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from galip_hf import GalipError
from galip_hf.data.grid import RAS_TO_LPS, Grid
from galip_hf.foreground import body_box, body_mask
from galip_hf.prepare.images import ScanImage, read_image
from galip_hf.prepare.registration import register_rigid, resample
from galip_hf.prepare.sources import Scan

PIXEL_SIZE = 1.0  # mm
FIRST_SLICE, SLICES = 18, 18  # of the FLAIR, counted from below: from the brain stem to above the ventricles
MARGIN = 4  # pixels of air around the head


def cut(grid: Grid, box: tuple[slice, slice, slice]) -> Grid:
    """The part of a grid inside a box of voxels."""
    first = np.array([side.start for side in box])
    shape = tuple(side.stop - side.start for side in box)
    return Grid(shape, grid.origin + first @ grid.steps, grid.steps)  # type: ignore[arg-type]


def head_box(flair: ScanImage) -> tuple[slice, slice, slice]:
    """The chosen slices, and in them the box of the head with a margin of air."""
    chosen = slice(FIRST_SLICE, FIRST_SLICE + SLICES)
    rows, columns = body_box(body_mask([flair.array[chosen]]))[1:]
    sides = zip((rows, columns), flair.array.shape[1:], strict=True)
    around = [slice(max(0, side.start - MARGIN), min(length, side.stop + MARGIN)) for side, length in sides]
    return chosen, around[0], around[1]


def save(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Write (S, H, W) values in display order as NIfTI with voxel axes towards left, anterior, superior."""
    affine = np.eye(4)
    steps, rows = grid.steps * RAS_TO_LPS, array.shape[1]
    # A file's axes are columns, rows, slices; display order has the patient's right and front first.
    affine[:3, :3] = np.stack([steps[2], -steps[1], steps[0]], axis=1)
    affine[:3, 3] = grid.origin * RAS_TO_LPS + (rows - 1) * steps[1]
    voxels = np.clip(np.rint(array[:, ::-1].transpose(2, 1, 0)), 0, 65535).astype(np.uint16)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"open_ms (CC BY), changed: see README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)


def make(paths: dict[str, Path], output: Path) -> None:
    """Register, resample, cut and write."""
    images = {name: read_image(Scan(path, name, "open_ms")) for name, path in paths.items()}
    flair = images["FLAIR"]
    fine = flair.grid.with_pixels(PIXEL_SIZE)
    box = head_box(ScanImage(resample(flair, fine), fine))
    grid = cut(fine, box)
    transforms = {"T1": register_rigid(flair, images["T1"])}
    moved = {name: resample(image, grid, transforms.get(name)) for name, image in images.items()}
    for name, array in moved.items():
        save(array, grid, output / f"head_{name}.nii.gz")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make examples/data.")
    for name in ("T1", "T2", "FLAIR"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "data")
    arguments = parser.parse_args()
    try:
        make({name: getattr(arguments, name) for name in ("T1", "T2", "FLAIR")}, arguments.output)
    except GalipError as error:
        print(f"make_example_head.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
