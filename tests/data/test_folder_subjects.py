"""Folders of volumes matched by name: the same place or refused, masks by name, resampling on request."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from galip_hf.cli import main
from galip_hf.data.folder_subjects import FolderSubjects
from galip_hf.data.grid import grid_of
from galip_hf.data.masks import mask_of
from galip_hf.data.readers import read_volume
from galip_hf.model.errors import GalipError
from galip_hf.prepare.images import ScanImage
from galip_hf.prepare.registration import resample

# Voxels of 0.9 x 1.1 x 3 mm, turned by 10 degrees about the patient's long axis.
COSINE, SINE = np.cos(np.deg2rad(10)), np.sin(np.deg2rad(10))
AFFINE = np.array(
    [[COSINE * 0.9, -SINE * 1.1, 0, -20], [SINE * 0.9, COSINE * 1.1, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1.0]]
)
SHAPE = (24, 26, 7)


def head() -> np.ndarray:
    """Smooth and without symmetry, so that a flip or an exchanged axis shows."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    tissue = 600 + 200 * np.sin(3 * x + y) + 100 * z + 150 * np.cos(4 * y * x)
    return np.where(x**2 / 0.6 + (y - 0.1) ** 2 / 0.8 + 0.2 * z < 0.7, tissue, 0).astype(np.float32)


def write(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


def subjects(folder: Path, **options: object) -> FolderSubjects:
    return FolderSubjects(
        [folder / "p"], folder / "t", None, domains=("source", "target"), windows={}, **options  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("codes", ["LPI", "ASR", "SPL", "PIR"])
def test_another_orientation_is_the_same_scan(tmp_path: Path, codes: str) -> None:
    image = nib.Nifti1Image(head(), AFFINE)
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes)
    )
    other = image.as_reoriented(change)
    write(tmp_path / "t" / "a.nii.gz", head(), AFFINE)
    write(tmp_path / "p" / "a.nii.gz", np.asarray(other.dataobj), other.affine)
    pairs = subjects(tmp_path)
    np.testing.assert_array_equal(pairs.prediction(0), pairs[0]["target"])
    assert pairs.notes == [] and pairs.spacing(0) == pytest.approx((3, 1.1, 0.9))


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


MOVED = AFFINE + np.array([[0, 0, 0, 40.0], *[[0.0] * 4] * 3])


@pytest.mark.parametrize(
    ("affine", "told"),
    [
        (MOVED, "the first at (35.61"),
        (AFFINE + np.array([[0, 0, 0, 0.3], *[[0.0] * 4] * 3]), "the first at (-4.09"),
        (AFFINE @ np.diag([1.5, 1.5, 1.5, 1]), "4.5 x 1.65 x 1.35 mm"),
        (turned(3), "axes"),
        (AFFINE @ np.diag([-1, 1, 1, 1]), "the first at"),  # a mirror image
    ],
)
def test_another_place_is_refused_with_both_geometries(tmp_path: Path, affine: np.ndarray, told: str) -> None:
    write(tmp_path / "t" / "a.nii.gz", head(), AFFINE)
    write(tmp_path / "p" / "a.nii.gz", head(), affine)
    with pytest.raises(GalipError) as error:
        subjects(tmp_path).prediction(0)
    message = str(error.value)
    assert told in message and "3 x 1.1 x 0.9 mm" in message and "--resample-prediction" in message
    assert "\n" not in message


def test_rounding_of_an_affine_is_no_other_place(tmp_path: Path) -> None:
    write(tmp_path / "t" / "a.nii.gz", head(), AFFINE)
    write(tmp_path / "p" / "a.nii.gz", head(), AFFINE + 1e-4)
    assert subjects(tmp_path).prediction(0).shape == (7, 26, 24)


def test_a_file_without_geometry_is_compared_by_shape_and_said_so(tmp_path: Path) -> None:
    write(tmp_path / "t" / "a.nii.gz", head(), AFFINE)
    (tmp_path / "p").mkdir()
    np.save(tmp_path / "p" / "a.npy", read_volume(tmp_path / "t" / "a.nii.gz").array)
    pairs = subjects(tmp_path)
    np.testing.assert_array_equal(pairs.prediction(0), pairs[0]["target"])
    assert len(pairs.notes) == 1 and "a.npy: has no geometry" in pairs.notes[0]
    np.save(tmp_path / "p" / "a.npy", np.ones((7, 26, 20), np.float32))
    with pytest.raises(GalipError, match="7 x 26 x 20 voxels without geometry"):
        subjects(tmp_path).prediction(0)


def test_a_prediction_is_resampled_onto_the_targets_grid_on_request(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    write(tmp_path / "t" / "a.nii.gz", head(), AFFINE)
    # A linear ramp over the world, on a wider grid: linear interpolation gives it back exactly.
    wide = AFFINE @ np.diag([1.3, 1.2, 0.8, 1])
    wide[:3, 3] -= (6, 6, 4)
    shape = (30, 32, 14)

    def ramp(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T
        return ((places + affine[:3, 3]) @ np.array([2.0, 3.0, 5.0]) + 300).astype(np.float32)

    write(tmp_path / "p" / "a.nii.gz", ramp(wide, shape), wide)

    def onto(volume, grid):  # type: ignore[no-untyped-def]
        return resample(ScanImage(volume.array, grid_of(volume)), grid)

    pairs = subjects(tmp_path, resample=onto)
    top = float(np.percentile(read_volume(tmp_path / "t" / "a.nii.gz").array.astype(np.float64), 99.5))
    write(tmp_path / "expected.nii.gz", ramp(AFFINE, SHAPE), AFFINE)
    expected = read_volume(tmp_path / "expected.nii.gz").array / top
    np.testing.assert_allclose(pairs.prediction(0), expected, rtol=2e-4, atol=1e-3)
    assert "resampled onto the grid of a.nii.gz" in pairs.notes[0]
    arguments = ["--prediction", str(tmp_path / "p"), "--target", str(tmp_path / "t")]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", *arguments, "--resample-prediction", "--output", str(tmp_path / "out")]) == 0
    assert "resampled" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_masks_by_name() -> None:
    folder = Path("data")

    def found(scan: str, *files: str) -> str | None:
        mask = mask_of(folder / scan, [folder / name for name in (scan, *files)])
        return None if mask is None else mask.name

    assert found("a.nii.gz", "a_mask.nii.gz", "b_mask.nii.gz") == "a_mask.nii.gz"
    assert found("a_1.npy", "a_mask.npy") is None  # another scan's
    assert found("sub-01_T1w.nii.gz", "sub-01_desc-brain_mask.nii.gz") == "sub-01_desc-brain_mask.nii.gz"
    assert found("sub-01_ses-2_T1w.nii", "sub-01_ses-1_mask.nii", "sub-01_ses-2_space-T1w_mask.nii") == (
        "sub-01_ses-2_space-T1w_mask.nii"
    )
    assert found("sub-01_T1w.nii", "sub-01_T1w_mask.nii", "sub-01_mask.nii") == "sub-01_T1w_mask.nii"
    with pytest.raises(GalipError, match="could all be its mask"):
        found("sub-01_T1w.nii", "sub-01_desc-head_mask.nii", "sub-01_desc-brain_mask.nii")


def test_a_given_mask_wins_and_lies_where_its_scan_does(tmp_path: Path) -> None:
    write(tmp_path / "t" / "a.nii.gz", head(), AFFINE)
    write(tmp_path / "p" / "a.nii.gz", head() * np.float32(0.9), AFFINE)
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:14, 9:17, 2:5] = 3
    write(tmp_path / "t" / "a_mask.nii.gz", mask, AFFINE)
    pairs = subjects(tmp_path)
    assert pairs.names == ["a"] and pairs.notes == ["Body masks were given for 1 of 1 subjects."]
    given = pairs.mask(0)
    assert given is not None and given.dtype == bool and given.sum() == 6 * 8 * 3
    np.testing.assert_array_equal(pairs[0]["target"][given] > 0, True)
    write(tmp_path / "m" / "a.nii.gz", mask, MOVED)
    with pytest.raises(GalipError, match="resample it onto the scan's grid"):
        subjects(tmp_path, masks=tmp_path / "m").mask(0)
    write(tmp_path / "m" / "a.nii.gz", mask * 0, AFFINE)
    with pytest.raises(GalipError, match="the mask holds no voxel"):
        subjects(tmp_path, masks=tmp_path / "m").mask(0)
    (tmp_path / "m" / "a.nii.gz").rename(tmp_path / "m" / "c.nii.gz")
    with pytest.raises(GalipError, match="holds no mask of 'a'"):
        subjects(tmp_path, masks=tmp_path / "m")
