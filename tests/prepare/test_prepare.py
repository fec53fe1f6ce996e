"""Preparation from files laid out as the public data sets are, made from the phantom and misplaced."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from galip_hf.cli import main
from galip_hf.data import phantom
from galip_hf.data.grid import Grid
from galip_hf.data.normalization import normalize_scan
from galip_hf.data.paired_subjects import TableSubjects
from galip_hf.data.table import SliceReader, domain_rows, load_table
from galip_hf.data.table_writer import crop_or_pad
from galip_hf.data.volumes import Volume
from galip_hf.data.writers import write_volume
from galip_hf.foreground import body_box, body_mask
from galip_hf.model.domains import default_rule
from galip_hf.model.errors import GalipError
from galip_hf.model.intensity import IntensityNormalizer
from galip_hf.prepare import sources
from galip_hf.prepare.images import ScanImage, read_image, to_itk
from galip_hf.prepare.registration import check_pair, register_rigid, resample

sitk = pytest.importorskip("SimpleITK", reason="pip install 'galip-hf[prepare]'")
SPACING = (4.0, 2.5, 2.5)
SIZE, SLICES = 64, 20


def grid(size: int = SIZE, slices: int = SLICES) -> Grid:
    shape = (slices, size, size)
    return Grid(shape, np.array([-80.0, -85.0, -40.0]), np.diag(SPACING)[:, ::-1].copy())


def truth(where: Grid) -> Any:
    centre = where.origin + (np.array(where.shape) - 1) / 2 @ where.steps
    angles = np.deg2rad([2.0, -1.5, 4.0]).tolist()
    return sitk.Euler3DTransform(centre.tolist(), *angles, (3.0, -5.0, 4.0))


def corner_error(found: Any, true: Any, where: Grid) -> float:
    """Largest distance, in mm, between two maps at the corners of the middle half of the field of view."""
    last = np.array(where.shape) - 1
    points = [
        where.origin + (0.25 + 0.5 * np.array(corner)) * last @ where.steps for corner in np.ndindex(2, 2, 2)
    ]
    return max(
        float(np.linalg.norm(np.subtract(found.TransformPoint(p.tolist()), true.TransformPoint(p.tolist()))))
        for p in points
    )


def write_nifti(path: Path, array: np.ndarray, where: Grid) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(to_itk(array, where), str(path))
    return path


def rendered(seed: int, contrast: str) -> np.ndarray:
    return phantom.render(phantom.make_subject(seed, size=SIZE, slices=SLICES), contrast)


def make_ixi(folder: Path, count: int = 3) -> Path:
    """IXI's layout; T1 lies elsewhere than T2 and PD by `truth`."""
    where = grid()
    for index in range(count):
        name = f"IXI{index + 2:03d}-Guys-{800 + index:04d}"
        moved = resample(ScanImage(rendered(index, "T1"), where), where, truth(where).GetInverse())
        write_nifti(folder / "IXI-T1" / f"{name}-T1.nii.gz", moved, where)
        for contrast in ("T2", "PD"):
            write_nifti(
                folder / f"IXI-{contrast}" / f"{name}-{contrast}.nii.gz", rendered(index, contrast), where
            )
    return folder


@pytest.fixture(scope="module")
def ixi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ixi(tmp_path_factory.mktemp("ixi"))


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


IXI = ("--split", "1,1,1", "--image-size", "64", "--slices", "16", "--workers", "1")


@pytest.fixture(scope="module")
def ixi_table(ixi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = tmp_path_factory.mktemp("table") / "ixi"
    run("prepare", "ixi", ixi, "--output", table, *IXI)
    return table


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_geometry_agrees_with_simpleitk(tmp_path: Path) -> None:
    """A flipped, oblique NIfTI file: our grid and SimpleITK's own reading name the same world points."""
    array = np.random.default_rng(0).random((7, 9, 11), dtype=np.float32)
    turn = np.array([[0.98, -0.17, 0.05], [0.17, 0.98, 0.02], [-0.0524, -0.0111, 0.9985]])
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(turn)[0] * [-2.0, 3.0, -4.0]
    affine[:3, 3] = [10, -20, 30]
    nib.Nifti1Image(array, affine).to_filename(tmp_path / "a.nii")
    ours = read_image(sources.Scan(str(tmp_path / "a.nii"), "T1", "s"))
    theirs = sitk.ReadImage(str(tmp_path / "a.nii"))
    for index in ((0, 0, 0), (3, 2, 5), (10, 8, 6)):
        point = ours.grid.origin + np.array(index) @ ours.grid.steps
        there = theirs.TransformPhysicalPointToIndex(point.tolist())
        assert theirs[there] == ours.array[index]
    as_itk = to_itk(ours.array, ours.grid)
    np.testing.assert_allclose(
        as_itk.TransformIndexToPhysicalPoint((5, 2, 3)),
        ours.grid.origin + np.array((3, 2, 5)) @ ours.grid.steps,
        atol=1e-4,
    )


def test_registration_recovers_a_known_rigid_map() -> None:
    where = grid()
    moving = ScanImage(resample(ScanImage(rendered(0, "T1"), where), where, truth(where).GetInverse()), where)
    fixed = ScanImage(rendered(0, "T2"), where)
    found = register_rigid(fixed, moving)
    identity = sitk.Euler3DTransform()
    assert corner_error(identity, truth(where), where) > 5
    assert corner_error(found, truth(where), where) < 1.0  # mm, of voxels of 2.5 x 2.5 x 4
    assert register_rigid(fixed, moving).GetParameters() == found.GetParameters()


@pytest.mark.parametrize("shift", [(0, 3, -4), (0, -6, 0)])
def test_the_check_sees_a_known_shift(shift: tuple[int, int, int]) -> None:
    first = rendered(1, "T2") / 1000
    second = rendered(1, "T1") / 1000
    check = check_pair(first, np.roll(second, shift, (0, 1, 2)), (1.0, 2.0, 2.0))
    np.testing.assert_allclose(check.shift[1:], [-2.0 * shift[1], -2.0 * shift[2]], atol=0.5)
    assert check.mutual_information < check_pair(first, second, (1.0, 2.0, 2.0)).mutual_information - 0.05


def test_ixi(ixi_table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = load_table(ixi_table)
    assert len(SliceReader(tables["test"])) > 30
    assert {split: len(set(table["subject"])) for split, table in tables.items()} == {
        "train": 1, "validation": 1, "test": 1,
    }  # fmt: skip
    summary = json.loads((ixi_table / "summary.json").read_text(encoding="utf-8"))
    splits = json.loads((ixi_table / "splits.json").read_text(encoding="utf-8"))
    assert summary["split_hash"] == splits["hash"] and (ixi_table / "registration.png").is_file()
    assert summary["warnings"] == []
    for pairs in summary["pairs"].values():  # T1 was 7 mm away; pixels are 2.5 mm, slices 4 mm apart
        assert max(map(abs, pairs["T2-T1"]["shift_mm"][1:])) < 0.8
    # The registered T1 equals the T1 that was never moved, but for two interpolations.
    table, reader = tables["test"], SliceReader(tables["test"])
    rows = domain_rows(table, "T1")
    seed = int(table["subject"][0][3:]) - 2
    original = rendered(seed, "T1")
    reference = original / np.percentile(original, 99.5)
    numbers = [table["slice"][int(row)] for row in rows]
    values = np.stack([reader[int(row)] for row in rows])
    inner = (slice(2, -2), slice(8, -8), slice(8, -8))
    t2 = rendered(seed, "T2")
    normalizer = IntensityNormalizer(intensity_rules={"T2": default_rule("MR")})
    expected = normalize_scan(normalizer, t2, "T2").pixel_values[:, 0].numpy()
    # The middle of the body of the reference, T2, comes to the middle of the canvas.
    _, rows_of_body, columns_of_body = body_box(body_mask([expected[numbers]]))
    centre = (
        (rows_of_body.start + rows_of_body.stop) / 2,
        (columns_of_body.start + columns_of_body.stop) / 2,
    )
    assert centre != (32, 32)
    moved = crop_or_pad(reference, 64, centre)
    assert np.corrcoef(values[inner].ravel(), moved[numbers][inner].ravel())[0, 1] > 0.95
    # Upright: the window of slices that are kept, T2's values untouched by resampling.
    rows = domain_rows(table, "T2")
    expected = crop_or_pad(expected, 64, centre)
    np.testing.assert_allclose(
        np.stack([reader[int(row)] for row in rows]),
        expected[[table["slice"][int(row)] for row in rows]],
        atol=1e-5,
    )
    capsys.readouterr()
    run("inspect", ixi_table, "--montage", ixi_table.parent / "montage.png")
    printed = capsys.readouterr().out
    assert splits["hash"] in printed and "train: 1 subjects" in printed
    assert (ixi_table.parent / "montage.png").stat().st_size > 10_000


def test_same_bytes_with_more_workers(ixi: Path, ixi_table: Path, tmp_path: Path) -> None:
    again = tmp_path / "ixi"
    run("prepare", "ixi", ixi, "--output", again, *IXI[:-1], "2")
    assert contents(again) == contents(ixi_table)
    assert [path.name for path in tmp_path.iterdir()] == ["ixi"]


def test_resumes_after_sigkill(ixi: Path, ixi_table: Path, tmp_path: Path) -> None:
    output = tmp_path / "ixi"
    command = [sys.executable, "-m", "galip_hf.cli", "prepare", "ixi", ixi, "--output", output, *IXI]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL)
    parts = tmp_path / ".ixi.parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert finished and not output.exists()
    from galip_hf.prepare.run import _prepare_all

    taken: list[int] = []

    def recording(tasks: Any, workers: int) -> Any:
        result = _prepare_all(tasks, workers)
        taken.extend(path.stat().st_mtime_ns == finished[path] for path in finished)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("galip_hf.prepare.run._prepare_all", recording)
        run("prepare", "ixi", ixi, "--output", output, *IXI)
    assert all(taken) and contents(output) == contents(ixi_table) and not parts.exists()


def test_a_damaged_part_is_made_again(ixi: Path, ixi_table: Path, tmp_path: Path) -> None:
    """Parts left behind by a failed run are verified by their hash."""
    with pytest.raises(OSError, match="disk gone"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "galip_hf.prepare.run.write_table", lambda *_, **__: (_ for _ in ()).throw(OSError("disk gone"))
        )
        main(["prepare", "ixi", str(ixi), "--output", str(tmp_path / "ixi"), *IXI])
    shard = sorted((tmp_path / ".ixi.parts").glob("*.npz"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    run("prepare", "ixi", ixi, "--output", tmp_path / "ixi", *IXI)
    assert contents(tmp_path / "ixi") == contents(ixi_table)


def test_loads_without_galip_hf(ixi_table: Path) -> None:
    code = (
        "import sys; sys.modules['galip_hf'] = None; import datasets\n"
        f"t = datasets.load_from_disk({str(ixi_table)!r})\n"
        "r = t['train'].with_format('numpy')[0]; "
        "print(sorted(t), r['pixel_values'].shape, t['train'].features['domain'].names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.stdout.strip() == "['test', 'train', 'validation'] (64, 64) ['T1', 'T2', 'PD']", done.stderr


def write_series(
    folder: Path, array: np.ndarray, where: Grid, modality: str, description: str, number: int
) -> None:
    """A DICOM series as SimpleITK writes it, in no order of file names."""
    folder.mkdir(parents=True, exist_ok=True)
    image = to_itk(array, where)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = "\\".join(map(str, np.array(image.GetDirection()).reshape(3, 3).T[:2].ravel()))
    for index in range(len(array)):
        part = sitk.Cast(image[:, :, index], sitk.sitkInt16)
        tags = {
            "0008|0060": modality, "0008|103e": description, "0020|000e": f"1.2.826.0.1.{number}",
            "0020|000d": "1.2.826.0.1.9", "0008|0018": f"1.2.826.0.1.{number}.{index + 1}",
            "0020|0037": direction, "0020|0013": str(len(array) - index),
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, index)))),
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2" if modality == "CT" else "1.2.840.10008.5.1.4.1.1.4",
            "0028|1052": "0", "0028|1053": "1",
        }  # fmt: skip
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        part.SetSpacing(image.GetSpacing()[:2])
        writer.SetFileName(str(folder / f"{modality}{number}_{(index * 7) % len(array):03d}.dcm"))
        writer.Execute(part)


def test_gold_atlas_in_dicom(tmp_path: Path) -> None:
    where = grid()
    patient = tmp_path / "atlas" / "1_01_P"
    ct = rendered(0, "PD") * 2 - 1000
    write_series(patient, ct, where, "CT", "planning", 1)
    write_series(patient, ct + 7, where, "CT", "CTtoMR", 2)
    write_series(patient, rendered(0, "T1"), where, "MR", "t1_tse", 3)
    write_series(patient, rendered(0, "T2"), where, "MR", "T2 3D", 4)
    source = sources.gold_atlas(tmp_path / "atlas")
    # Named after modality and series number by `write_series`.
    names = {scan.domain: {Path(file).name[:3] for file in scan.files} for scan in source.scans}
    assert names == {"CT": {"CT2"}, "T1": {"MR3"}, "T2": {"MR4"}}
    run(
        "prepare", "gold-atlas", tmp_path / "atlas", "--output", tmp_path / "table", "--image-size", 64,
        "--split", "1,0,0", "--workers", 1,
    )  # fmt: skip
    table = load_table(tmp_path / "table")["train"]
    row = int(domain_rows(table, "CT")[0])
    expected = np.clip((np.trunc(ct + 7)[table["slice"][row]] + 1000) / 2000, 0, 1)
    np.testing.assert_allclose(SliceReader(table)[row], expected, atol=1e-3)


def test_stacks_of_one_dicom_series_are_prepared_one_by_one(tmp_path: Path) -> None:
    where, patient = grid(), tmp_path / "atlas" / "1_01_P"
    for echo, path in ((10, patient / "a"), (80, patient / "b")):
        write_series(path, rendered(0, "T1") + echo, where, "MR", "t1_tse", 3)
        for file in path.iterdir():
            image = pydicom.dcmread(file)
            image.EchoTime, image.SOPInstanceUID = echo, f"{image.SOPInstanceUID}.{echo}"
            image.save_as(file)
    source = sources.gold_atlas(tmp_path / "atlas")
    assert [(scan.part, len(scan.files)) for scan in source.scans] == [("EchoTime-10", SLICES)]
    np.testing.assert_array_equal(read_image(source.scans[0]).array, np.trunc(rendered(0, "T1") + 10))
    assert [note["reason"] for note in source.notes] == [
        "1_01_P: MR 't1_tse' EchoTime-80: another scan of this domain was taken"
    ]


def test_gold_atlas_in_nifti_is_told_by_names_below_the_patient(tmp_path: Path) -> None:
    patient = tmp_path / "ct and T1" / "1_01_P"
    for name in ("ct.nii.gz", "mr/t1_tse.nii.gz", "mr/T2-3D.nii"):
        write_nifti(patient / name, rendered(0, "T1"), grid())
    source = sources.gold_atlas(patient.parent)
    assert {scan.domain: Path(scan.path).name for scan in source.scans} == {
        "CT": "ct.nii.gz", "T1": "t1_tse.nii.gz", "T2": "T2-3D.nii",
    }  # fmt: skip


def test_dicom_folders_of_a_manifest_and_what_is_no_series(tmp_path: Path) -> None:
    where, patient = grid(), tmp_path / "atlas" / "1_01_P"
    write_series(patient / "mr", rendered(0, "T1"), where, "MR", "t1_tse", 3)
    write_series(patient / "mr", rendered(0, "T2"), where, "MR", "scout", 5)
    (patient / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    source = sources.gold_atlas(tmp_path / "atlas")
    assert len(source.scans) == 1 and len(source.scans[0].files) == SLICES
    assert [note["reason"] for note in source.notes] == [
        "mr: MR 'scout': neither T1 nor T2 in its description"
    ]
    image = read_image(source.scans[0])
    np.testing.assert_array_equal(image.array, np.trunc(rendered(0, "T1")))
    assert image.grid.same_as(where)
    write_series(tmp_path / "one", rendered(1, "T2"), where, "MR", "any", 6)
    alone = read_image(sources.Scan(str(tmp_path / "one"), "T2", "s"))
    np.testing.assert_array_equal(alone.array, np.trunc(rendered(1, "T2")))
    with pytest.raises(GalipError, match="holds 2 scans"):
        read_image(sources.Scan(str(patient / "mr"), "T1", "s"))
    (patient / "broken.dcm").write_bytes(b"nothing")
    with pytest.raises(GalipError, match=r"broken.dcm: not a readable DICOM file; copy it again"):
        sources.gold_atlas(tmp_path / "atlas")


def test_syndiff_brats_and_folders(tmp_path: Path) -> None:
    mat, brats, folders = tmp_path / "mat", tmp_path / "brats", tmp_path / "folders"
    mat.mkdir()
    for index, split in enumerate(("train", "val", "test")):
        for contrast in ("T1", "T2"):
            write_volume(Volume.from_array(rendered(index, contrast)), mat / f"data_{split}_{contrast}.mat")
    for index in range(3):
        name = f"BraTS-GLI-{index // 2:05d}-{index:03d}"
        for short, contrast in (("t1n", "T1"), ("t2w", "T2")):
            write_nifti(brats / name / f"{name}-{short}.nii.gz", rendered(index, contrast), grid())
        write_nifti(brats / name / f"{name}-seg.nii.gz", rendered(index, "T1") > 500, grid())
        write_nifti(folders / "T1" / f"a{index}.nii.gz", rendered(index, "T1"), grid())
        write_nifti(folders / "T2" / f"b{index}.nii.gz", rendered(index + 9, "T2"), grid())
    options = ("--image-size", 64, "--workers", 1, "--slices", "all")
    run("prepare", "syndiff", mat, "--output", tmp_path / "t1", *options)
    assert set(load_table(tmp_path / "t1")) == {"train", "validation", "test"}
    cut = sources.syndiff(mat, 10)
    assert len(cut.scans) == 12 and cut.scans[1].slices == (10, 20)
    run("prepare", "brats", brats, "--output", tmp_path / "t2", *options, "--split", "2,0,1")
    splits = json.loads((tmp_path / "t2" / "splits.json").read_text(encoding="utf-8"))
    assert splits["subjects"]["train"] == ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001"]
    assert splits["groups"]["BraTS-GLI-00000-000"] == "BraTS-GLI-00000"
    run("prepare", "folders", folders, "--output", tmp_path / "t3", *options, "--split", "6,0,0")
    assert len(set(load_table(tmp_path / "t3")["train"]["subject"])) == 6


def manifest(folder: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    lines = ["path,domain,subject,split", *(",".join(row) for row in rows)]
    (folder / "scans.csv").write_text("\n".join(lines) + "\n")
    return folder / "scans.csv"


def test_a_manifest_in_json_lines_says_what_one_in_csv_does(tmp_path: Path) -> None:
    rows = [("a.npy", "T2", "anna", "train"), ("/x/b.nii", "T1", "bert", "test")]
    in_csv = sources.manifest(manifest(tmp_path, rows))
    lines = [json.dumps(dict(zip(("path", "domain", "subject", "split"), row, strict=True))) for row in rows]
    (tmp_path / "scans.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    assert sources.manifest(tmp_path / "scans.jsonl") == in_csv
    assert in_csv.domains == ("T2", "T1") and in_csv.scans[0].path == str(tmp_path / "a.npy")
    (tmp_path / "scans.jsonl").write_text('{"path": "a.npy", "domain": "T1", "Subject": "anna"}')
    with pytest.raises(GalipError, match=r"scans.jsonl, line 1: unknown field Subject; known are path"):
        sources.manifest(tmp_path / "scans.jsonl")


def test_body_masks_of_a_manifest_and_of_folders_reach_the_table(tmp_path: Path) -> None:
    """Brought to the target grid as their scans are: here 80 pixels of 1 mm to 40 of 2 mm."""
    names = ["s1", "s2"]
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    rng = np.random.default_rng([5])
    mask = np.zeros((80, 80, 3), np.uint8)
    mask[20:60, 30:50] = 1
    for domain in ("T1", "T2"):
        (tmp_path / "raw" / domain).mkdir(parents=True)
        for name in names:
            scan = (rng.random((80, 80, 3)) + 1).astype(np.float32)
            nib.save(nib.Nifti1Image(scan, affine), tmp_path / "raw" / domain / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "raw" / "T1" / "s1_mask.nii.gz")
    rows = [
        {"path": f"raw/{d}/{s}.nii.gz", "domain": d, "subject": s, "split": split}
        | ({"mask": "raw/T1/s1_mask.nii.gz"} if (d, s) == ("T1", "s1") else {})
        for s, split in zip(names, ("train", "test"), strict=True)
        for d in ("T1", "T2")
    ]
    listed = tmp_path / "scans.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    in_folders = sources.folders(tmp_path / "raw")
    assert [(scan.subject, scan.domain) for scan in in_folders.scans if scan.mask] == [("s1", "T1")]
    options = ["--image-size", "40", "--spacing", "2", "--output"]
    assert main(["prepare", "manifest", str(listed), *options, str(tmp_path / "table")]) == 0
    table = load_table(tmp_path / "table")
    subjects = TableSubjects(table["train"], ["T1", "T2"])
    expected = np.zeros((3, 40, 40), bool)
    # (x, y) of the file to (row, column): anterior first, the patient's right first.
    expected[:, 15:25, 10:30] = True
    given = subjects.mask(0)
    assert given is not None
    np.testing.assert_array_equal(given, expected)
    assert TableSubjects(table["test"], ["T1", "T2"]).mask(0) is None


def test_leakage_is_an_error_that_names_the_subjects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        write_volume(Volume.from_array(rendered(index, "T1")), tmp_path / f"{index}.npy")
    copied = rendered(1, "T1")
    copied[9] = rendered(0, "T1")[9]  # one slice of another subject
    write_volume(Volume.from_array(copied), tmp_path / "9.npy")
    rows = [("0.npy", "T1", "anna", "train"), ("9.npy", "T1", "bert", "test")]
    output = tmp_path / "table"
    arguments = ["--output", str(output), "--image-size", "64", "--workers", "1"]
    assert main(["prepare", "manifest", str(manifest(tmp_path, rows)), *arguments]) == 2
    message = capsys.readouterr().err
    assert "leakage" in message and "'anna'" in message and "'bert'" in message and "slice 9" in message
    rows = [("0.npy", "T1", "anna", "train"), ("1.npy", "T2", "anna", "test")]
    assert main(["prepare", "manifest", str(manifest(tmp_path, rows)), *arguments]) == 2
    assert "'anna' lies in both" in capsys.readouterr().err
    assert not output.exists()


def test_corrupt_scans_and_empty_slices_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = rendered(0, "T1")
    array[:3] = 0
    write_volume(Volume.from_array(array), tmp_path / "good.npy")
    (tmp_path / "bad.npy").write_bytes(b"broken")
    bad = rendered(1, "T1")
    bad[4, 5, 6] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    rows = [(f"{name}.npy", "T1", name, "train") for name in ("good", "bad", "nan", "absent")]
    run(
        "prepare", "manifest", manifest(tmp_path, rows), "--output", tmp_path / "table", "--image-size", 64,
        "--workers", 1,
    )  # fmt: skip
    summary = json.loads((tmp_path / "table" / "summary.json").read_text(encoding="utf-8"))
    reasons = {entry["subject"]: entry for entry in summary["excluded"]}
    assert reasons["good"]["slices"] == [0, 1, 2] and "near-empty" in reasons["good"]["reason"]
    assert "cannot be read" in reasons["bad"]["reason"] and "NaN" in reasons["nan"]["reason"]
    assert "no such file" in reasons["absent"]["reason"]
    assert "left out: bad T1" in capsys.readouterr().out
    assert json.loads((tmp_path / "table" / "splits.json").read_text(encoding="utf-8"))["unused"] == [
        "absent",
        "bad",
        "nan",
    ]


def test_a_bad_pair_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(2):
        write_volume(Volume.from_array(rendered(index, "T1")), tmp_path / f"{index}-T1.npy")
        shifted = np.roll(rendered(index, "T2"), 6 * index, axis=2)
        write_volume(Volume.from_array(shifted), tmp_path / f"{index}-T2.npy")
    rows = [(f"{i}-{c}.npy", c, f"s{i}", "train") for i in range(2) for c in ("T1", "T2")]
    run(
        "prepare", "manifest", manifest(tmp_path, rows), "--output", tmp_path / "table", "--image-size", 64,
        "--workers", 1,
    )  # fmt: skip
    warnings = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(warnings) == 1 and "registration of 's1', T1-T2: shifted by about 5.9 mm" in warnings[0]


def test_larger_fields_of_view_are_made_to_fit(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    write_nifti(scans / "T1" / "a.nii.gz", rendered(0, "T1"), grid())
    write_nifti(scans / ".parts" / "a.nii.gz", rendered(0, "T1"), grid())  # a hidden folder is no domain
    for spacing in ("fit", "native", "4"):
        table = tmp_path / spacing
        run(
            "prepare", "folders", scans, "--output", table, "--image-size", 32,
            "--split", "1,0,0", "--spacing", spacing, "--workers", 1,
        )  # fmt: skip
        first = load_table(table)["train"]
        image = SliceReader(first)[0]
        head = rendered(0, "T1")[first["slice"][0]] > 100
        if spacing == "fit":
            # All of the head is there, at half the size.
            assert abs((image > 0.1).sum() * 4 / head.sum() - 1) < 0.2
        assert image.shape == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ixi", "absent"), "absent: no such directory"),
        (("manifest", "absent.csv"), "not a readable manifest"),
        (("ixi", "."), "no scan found; expected files such as IXI-T1"),
        (("folders", "{ixi}", "--preset", "paper"), "the paper has no split of folders"),
        (("folders", "."), "lies in the data set's own folder"),
        (("ixi", "{ixi}", "--preset", "paper"), "40 subjects asked for, 3 available"),
        (("ixi", "{ixi}", "--split", "1,1"), "expected three counts"),
        (("ixi", "{ixi}", "--split", "1,1,1", "--splits", "x"), "give one"),
        (("ixi", "{ixi}", "--domains", "T1,CT"), "expected some of T1, T2, PD"),
        (("ixi", "{ixi}", "--rule", "T1=percentile:5"), "expected percentile:LOWER:UPPER"),
        (("ixi", "{ixi}", "--slices", "0"), "--slices 0"),
        (("ixi", "{ixi}", "--spacing", "-1"), "--spacing -1"),
        (("ixi", "{ixi}", "--workers", "0"), "--workers is 0"),
        (("ixi", "{ixi}", "--slices-per-subject", "9"), "for syndiff only"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], message: str, ixi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    filled = [argument.format(ixi=ixi) for argument in arguments]
    assert main(["prepare", *filled, "--output", "table"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.glob("table*"))


def test_push_and_inspect_over_the_hub(ixi_table: Path, tmp_path: Path) -> None:
    """With the real clients against the local Hub; they read its address when imported, so in a process."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from hub_server import HubServer

    with HubServer({"hf_secret": "alice"}) as hub:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0",
        }  # fmt: skip
        code = (
            "import sys; from galip_hf.prepare.card import push_table; from galip_hf.cli import main\n"
            f"print(push_table({str(ixi_table)!r}, 'alice/ixi'))\n"
            "assert main(['inspect', 'alice/ixi', '--montage', 'hub.png']) == 0\n"
            "from huggingface_hub import hf_hub_download\n"
            "print(open(hf_hub_download('alice/ixi', 'README.md', repo_type='dataset')).read())\n"
            "print(open(hf_hub_download('alice/ixi', 'splits.json', repo_type='dataset')).read())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8"
        )
    assert done.returncode == 0, done.stderr
    digest = json.loads((ixi_table / "splits.json").read_text(encoding="utf-8"))["hash"]
    assert done.stdout.count(digest) == 3  # printed, on the card, in splits.json
    assert "dataset_info" in done.stdout and "Not for diagnosis" in done.stdout


def test_grid_errors(tmp_path: Path) -> None:
    with pytest.raises(GalipError, match=r"slices 3\.\.30 asked for, the file has 20"):
        path = write_volume(Volume.from_array(rendered(0, "T1")), tmp_path / "a.npy")
        read_image(sources.Scan(str(path), "T1", "s", slices=(3, 30)))
