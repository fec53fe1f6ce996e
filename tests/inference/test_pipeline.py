"""Scan in, scan out: forms of input, geometry, units, several targets, crop, resampling, trust, files."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import filled_model, tiny_config
from PIL import Image

from galip_hf import GalipError, GalipImageProcessor, GalipPipeline
from galip_hf.cli import main
from galip_hf.data import phantom
from galip_hf.foreground import body_mask
from galip_hf.inference.placement import resize_slices
from galip_hf.inference.slices import foreground_box, translate_slices, translate_to_targets

ROOT = Path(__file__).resolve().parents[2]
PHANTOM_MODEL = ROOT / "examples" / "phantom_model"
FORCED_MODEL = ("--model", PHANTOM_MODEL, "--force")
NOT_REAL = "the model is not for real scans: it was trained on the procedural brain phantom alone"
AFFINE = np.array([[-2, 0.1, 0, 40], [0.1, 2.5, 0, -60], [0, 0, 3, 10], [0, 0, 0, 1]], dtype=float)


@pytest.fixture(scope="module")
def tiny() -> GalipPipeline:
    """T1, T2 (percentiles) and CT (a window); one shared level."""
    config = tiny_config(norm_groups=8)
    return GalipPipeline(filled_model(config), GalipImageProcessor.from_config(config), name="tiny")


@pytest.fixture(scope="module")
def brain() -> GalipPipeline:
    return GalipPipeline.from_pretrained(PHANTOM_MODEL, force=True)


def head(seed: int = 500, contrast: str = "T1", slices: int = 4) -> np.ndarray:
    return phantom.render(phantom.make_subject(seed, slices=slices), contrast)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    nib.Nifti1Image(head().transpose(2, 1, 0), AFFINE).to_filename(path)
    return path


def test_forms_of_a_scan(tiny: GalipPipeline, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = (rng.random((3, 12, 14)) * 200).astype(np.float32)
    np.save(tmp_path / "scan.npy", array)
    expected = tiny(array, "T2", "T1")
    values = tiny.processor.normalize_volume(array, "T1")
    plain = translate_slices(tiny.model, values.pixel_values[:, 0].numpy(), "T2")
    np.testing.assert_allclose(
        expected.array, plain * (values.upper - values.lower) + values.lower, rtol=0, atol=1e-3
    )
    np.testing.assert_array_equal(tiny(tmp_path / "scan.npy", "T2", "T1").array, expected.array)
    image = nib.Nifti1Image(array.transpose(2, 1, 0)[:, ::-1], np.diag([-1.0, 1.0, 1.0, 1.0]))
    found = tiny(image, "T2", "T1")
    assert found.array.shape == (14, 12, 3)
    np.testing.assert_allclose(found.array[:, ::-1].transpose(2, 1, 0), expected.array, atol=1e-3)
    picture = Image.fromarray(array[0].astype(np.uint8))
    assert tiny(picture, "T2", "T1").array.shape == (12, 14)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scan": 3}, "found int; expected a path"),
        ({"scan": Image.new("RGB", (8, 8), (9, 0, 0))}, "unequal channels"),
        ({"target": "PD"}, "'PD' is unknown"),
        ({"target": ["T2", "T2"]}, "each once"),
        ({"target": []}, "at least one"),
        ({"source": "PD"}, "source 'PD' is unknown"),
        ({"source": None}, "source .* is missing"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"resample": -1.0}, "resample is -1"),
    ],
)
def test_faulty_arguments(tiny: GalipPipeline, given: dict[str, Any], message: str) -> None:
    arguments = {"scan": np.eye(12, dtype=np.float32), "target": "T2", "source": "T1", **given}
    with pytest.raises(GalipError, match=message) as caught:
        tiny(**arguments)
    assert "\n" not in str(caught.value)


def test_an_unusable_device_or_precision() -> None:
    for options, message in (({"device": "gpu"}, "device gpu"), ({"precision": "fp8"}, "precision is 'fp8'")):
        with pytest.raises(GalipError, match=message):
            GalipPipeline.from_pretrained(PHANTOM_MODEL, **options)


def test_several_scans_and_targets(tiny: GalipPipeline) -> None:
    rng = np.random.default_rng(0)
    scans = [(rng.random((2, 12, 14)) * 200).astype(np.float32) for _ in range(2)]
    several = tiny(scans, ["T2", "CT"], "T1")
    assert [t.report["target"] for t in several] == ["T2", "CT", "T2", "CT"]
    for index, translation in enumerate(several):
        alone = tiny(scans[index // 2], ("T2", "CT")[index % 2], "T1")
        np.testing.assert_allclose(translation.array, alone.array, rtol=0, atol=1e-2)


def test_units_and_numbers_of_the_rule(tiny: GalipPipeline) -> None:
    array = (np.random.default_rng(1).random((2, 12, 14)) * 200).astype(np.float32)
    mr, ct = tiny(array, ["T2", "CT"], "T1")
    lower, upper = np.percentile(array.astype(np.float64), [0.0, 99.5])
    assert mr.report["window"] == mr.report["source_window"] == pytest.approx([lower, upper])
    assert ct.report["window"] == [-1000.0, 1000.0] and ct.report["rule"]["rule"] == "window"
    assert mr.report["source_rule"] == {"rule": "percentile", "lower": 0.0, "upper": 99.5}
    assert mr.report["input_check"]["verdict"] == "unknown"  # no statistics were kept
    json.dumps(mr.report, allow_nan=False)


def test_empty_slices_stay_air_and_are_not_translated(tiny: GalipPipeline) -> None:
    array = np.zeros((4, 12, 14), np.float32)
    array[1:3] = np.random.default_rng(2).random((2, 12, 14)) * 100 + 100
    seen = []
    handle = tiny.model.conv_in.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    counted: list[int] = []
    mr, ct = tiny(array, ["T2", "CT"], "T1", batch_size=8, advance=counted.append)
    handle.remove()
    assert seen == [2] and sum(counted) == 8
    assert (mr.array[[0, 3]] == 0).all() and (ct.array[[0, 3]] == -1000).all()
    assert np.ptp(ct.array[1]) > 0


def test_crop_covers_the_foreground_and_leaves_air() -> None:
    slices = np.zeros((2, 100, 70), np.float32)
    slices[0, 10:45, 3:20] = 1
    rows, columns = foreground_box(slices)
    assert rows == slice(0, 64) or (rows.start <= 10 and rows.stop >= 45 and rows.stop - rows.start == 64)
    assert columns.start <= 3 and columns.stop >= 20 and columns.stop - columns.start == 32
    slices[0, :, 69] = 1
    assert foreground_box(slices) == (slice(None), slice(None))
    assert foreground_box(np.zeros((1, 40, 40))) == (slice(None), slice(None))


def test_a_cropped_translation_lies_where_it_should(tiny: GalipPipeline) -> None:
    array = np.zeros((2, 90, 80), np.float32)
    array[:, 40:60, 50:70] = np.random.default_rng(2).random((2, 20, 20)) * 100 + 100
    cropped = tiny(array, "CT", "T1", crop=True)
    values = tiny.processor.normalize_volume(array, "T1").pixel_values[:, 0].numpy()
    rows, columns = foreground_box(values)
    inside = translate_slices(tiny.model, values[:, rows, columns], "CT") * 2000 - 1000
    np.testing.assert_allclose(cropped.array[:, rows, columns], inside, atol=1e-2)
    outside = np.ones(array.shape, bool)
    outside[:, rows, columns] = False
    assert (cropped.array[outside] == -1000).all()


def test_resampling_is_undone(brain: GalipPipeline) -> None:
    wide = resize_slices(head(), 128, 128)
    image = nib.Nifti1Image(wide.transpose(2, 1, 0), np.diag([1.0, 1.0, 5.0, 1.0]))
    resampled = brain(image, "T2", "T1", geometry="native", resample=2.0)
    own = brain(head(), "T2", "T1", geometry="native")
    assert resampled.array.shape == (128, 128, 4)
    small = resize_slices(resampled.volume.array, 64, 64)
    # Rows of the NIfTI slice run the other way in display order.
    difference = np.abs(small[:, ::-1] - own.array)[:, 8:-8, 8:-8].mean() / own.array.max()
    assert difference < 0.15
    assert resampled.report["settings"]["resample"] == 2.0


def test_precisions_agree(tiny: GalipPipeline) -> None:
    array = (np.random.default_rng(1).random((2, 12, 14)) * 200).astype(np.float32)
    expected = tiny(array, "CT", "T1").array
    for precision in ("bf16", "fp16"):
        half = GalipPipeline(tiny.model, tiny.processor, precision=precision)(array, "CT", "T1")
        difference = np.abs(half.array - expected).mean() / expected.std()
        assert 0 < difference < 0.05, precision
        assert half.array.dtype == np.float32


def test_trust_on_the_phantom(brain: GalipPipeline) -> None:
    usual = brain(head(), "T2", "T1", cycle=True)
    assert usual.warnings == [NOT_REAL] and usual.report["input_check"]["looks_like"] == "T1"
    wrong = brain(head(contrast="T2"), "PD", "T1", cycle=True)
    assert "does not look like the T1 scans" in wrong.warnings[0] and "it looks like T2" in wrong.warnings[0]
    assert wrong.report["cycle_error"]["mean"] > 2 * usual.report["cycle_error"]["mean"]
    assert brain(head(contrast="PD"), "T1").report["source"] == "PD"  # recognised where none is named
    same = brain(head(), "T1", "T1")
    assert same.warnings == [NOT_REAL]  # a copy was asked for


def test_collapse_is_told(brain: GalipPipeline) -> None:
    """A T1 scan that is called PD comes back from T1 as it was."""
    unlike, same, _ = brain(head(), "T1", "PD").warnings
    assert "it looks like T1" in unlike and "almost the input" in same


def test_save_writes_scan_report_map_and_figure(brain: GalipPipeline, scan: Path, tmp_path: Path) -> None:
    translation = brain(scan, "T2", "T1", cycle=True)
    path = translation.save(tmp_path / "out.nii.gz")
    before, after = nib.load(scan), nib.load(path)
    assert after.header["sform_code"] == before.header["sform_code"]
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.get_fdata(dtype=np.float32), translation.array)
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert report == {"output": "out.nii.gz", **json.loads(json.dumps(translation.report))}
    assert report["note"] == "synthetic, not for diagnosis" and report["model"] == PHANTOM_MODEL.name
    cycle = nib.load(tmp_path / "out_cycle.nii.gz").get_fdata()
    slices = cycle.transpose(2, 1, 0)[:, ::-1]
    source = nib.load(scan).get_fdata().transpose(2, 1, 0)[:, ::-1]
    lower, upper = report["source_window"]
    foreground = body_mask([(source - lower) / (upper - lower)])
    assert slices[foreground].mean() / (upper - lower) == pytest.approx(
        report["cycle_error"]["mean"], rel=1e-2
    )
    with pytest.raises(GalipError, match="already exists"):
        translation.save(path)
    translation.save(path, overwrite=True)
    with Image.open(translation.save_figure(tmp_path / "out.png")) as figure:
        assert figure.size[0] > 500


def test_memory_does_not_grow_with_the_number_of_volumes(
    tiny: GalipPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    tiny.model.save_pretrained(model)
    tiny.processor.save_pretrained(model)
    (tmp_path / "in").mkdir()
    for number in range(24):
        array = np.random.default_rng(number).random((8, 32, 32)) * 100
        np.save(tmp_path / "in" / f"{number:02}.npy", array.astype(np.float32))
    scans = sorted((tmp_path / "in").iterdir())

    def peak(count: int, output: str) -> int:
        tracemalloc.start()
        arguments = ["--model", model, "--to", "T2", "--from", "T1", "--output", tmp_path / output]
        assert main(["translate", *map(str, scans[:count]), *map(str, arguments)]) == 0
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(2, "warm")
    # 20 more volumes of 32 KB: kept, with their translations and inputs, they would add 2 MB.
    assert peak(24, "many") < peak(4, "few") + 400_000
    assert len(list((tmp_path / "many").glob("*.npy"))) == 24


# The command on many scans


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        image = nib.Nifti1Image(head(500 + number).transpose(2, 1, 0), AFFINE)
        image.to_filename(folder / f"sub-{number}.nii.gz")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["translate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_folder_to_several_targets(capsys, folder: Path, tmp_path: Path) -> None:
    common = [folder, *FORCED_MODEL, "--to", "T2,PD", "--output", tmp_path / "out"]
    code, out, _ = run(capsys, *common, "--dry-run")
    assert code == 0 and "6 to do" in out and not (tmp_path / "out").exists()
    code, out, _ = run(capsys, *common)
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(
        f"sub-{number}_{target}{suffix}"
        for number in range(3)
        for target in ("T2", "PD")
        for suffix in (".nii.gz", ".json")
    )
    rows = [line for line in out.splitlines() if "sub-" in line and not line.startswith("warning")]
    assert len(rows) == 6 and "ok (" in out
    assert "times as large as in training" in out  # the pixels are not 4 mm
    code, _, error = run(capsys, *common)
    assert code == 2 and "--skip-existing" in error
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "sub-1_PD.nii.gz").unlink()
    assert run(capsys, *common, "--skip-existing")[0] == 0
    for path, content in before.items():
        if path.suffix != ".json":
            np.testing.assert_array_equal(
                nib.load(path).get_fdata(), nib.Nifti1Image.from_bytes(_gunzip(content)).get_fdata()
            )


def _gunzip(content: bytes) -> bytes:
    import gzip

    return gzip.decompress(content)


def test_what_fails_is_listed_and_the_rest_goes_on(capsys, folder: Path, tmp_path: Path) -> None:
    whole = (folder / "sub-1.nii.gz").read_bytes()
    (folder / "sub-1.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "sub-9.nii").write_bytes(b"junk")
    arguments = [folder, *FORCED_MODEL, "--to", "T2", "--output", tmp_path / "out"]
    code, out, error = run(capsys, *arguments, "--format", "npy")
    assert code == 1 and "Traceback" not in out + error
    assert "2 of 4 scans failed" in out and "sub-1.nii.gz" in out and "sub-9.nii" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "sub-0_T2.json", "sub-0_T2.npy", "sub-2_T2.json", "sub-2_T2.npy",
    ]  # fmt: skip


def test_warnings_are_printed(capsys, tmp_path: Path) -> None:
    np.save(tmp_path / "t2.npy", head(contrast="T2"))
    arguments = [tmp_path / "t2.npy", *FORCED_MODEL, "--to", "PD", "--from", "T1"]
    code, out, _ = run(
        capsys, *arguments, "--output", tmp_path / "o.npy", "--cycle-map", "--crop", "--figure"
    )
    first, *rest = out.splitlines()
    assert code == 0 and first.startswith("warning: t2.npy: the scan does not look like the T1 scans")
    assert "it looks like T2" in first and "unlike (" in out
    assert not any("does not look like" in line for line in rest)
    assert any(line.startswith("warning: ") and NOT_REAL in line for line in rest)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["o.json", "o.npy", "o_cycle.npy", "o_figure.png", "t2.npy"]


def test_a_model_of_phantoms_refuses_acquired_scans(capsys, tmp_path: Path) -> None:
    """Noise in an ellipse stands for a scan that looks like no phantom; small arrays are of tests."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    noise = np.random.default_rng(0).random((4, 96, 96)) * ((x / 0.6) ** 2 + (y / 0.8) ** 2 < 1)
    np.save(tmp_path / "scan.npy", noise.astype(np.float32))
    np.save(tmp_path / "small.npy", noise[:, 16:-17, 16:-17].astype(np.float32))
    model = ["--model", PHANTOM_MODEL, "--from", "T1", "--to", "T2"]
    code, out, error = run(capsys, tmp_path / "scan.npy", *model, "--output", tmp_path / "o.npy")
    assert code == 2 and out == "" and error.count("\n") == 1 and "scan.npy" in error and "--force" in error
    assert "not for real scans: it was trained on the procedural brain phantom alone" in error
    assert not (tmp_path / "o.npy").exists()
    for scan, *force in (("small.npy",), ("scan.npy", "--force")):
        code, out, _ = run(capsys, tmp_path / scan, *model, *force, "--output", tmp_path / f"o_{scan}")
        assert code == 0 and out.startswith("warning: ") and NOT_REAL in out
    np.save(tmp_path / "phantom.npy", head())
    assert run(capsys, tmp_path / "phantom.npy", *model, "--output", tmp_path / "p.npy")[0] == 0


def test_usage_mistakes(capsys, folder: Path, tmp_path: Path) -> None:
    common = FORCED_MODEL
    (tmp_path / "empty").mkdir()
    for arguments, word in (
        ([folder, *common, "--to", "T2", "--output", tmp_path / "o.nii"], "need a folder"),
        ([folder, *common, "--to", "T2,,PD", "--output", tmp_path / "o"], "separated by commas"),
        ([folder, *common, "--to", "T2,T2", "--output", tmp_path / "o"], "each once"),
        ([tmp_path / "empty", *common, "--to", "T2", "--output", tmp_path / "o"], "no scans in this folder"),
        ([folder, *common, "--to", "FLAIR", "--output", tmp_path / "o"], "'FLAIR' is unknown"),
        ([folder, *common, "--to", "T2", "--output", tmp_path / "o", "--resample", "0"], "--resample is 0"),
    ):
        code, _, error = run(capsys, *arguments)
        lines = [line for line in error.splitlines() if line.startswith("galip-hf: error: ")]
        assert code == 2 and len(lines) == 1 and word in lines[0] and "Traceback" not in error, error


def test_a_killed_run_leaves_whole_files_and_is_finished_by_another(tmp_path: Path) -> None:
    """SIGKILL in the middle of a volume, in a process of its own."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        np.save(tmp_path / "in" / f"{number}.npy", np.tile(head(500 + number), (6, 1, 1)))
    output = tmp_path / "out"
    command = [
        sys.executable, "-m", "galip_hf.cli", "translate", str(tmp_path / "in"),
        *map(str, FORCED_MODEL),
        "--to", "T2,PD", "--output", str(output), "--skip-existing", "--cycle-map", "--batch-size", "1",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(output.glob("0_PD.npy")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # inside the second volume
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    scans = [path for path in output.glob("*_T2.npy")] + [path for path in output.glob("*_PD.npy")]
    assert 2 <= len(scans) < 6
    before = {}
    for path in scans:
        assert np.load(path).shape == (24, 64, 64)
        json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        before[path] = path.stat().st_mtime_ns
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert len([path for path in output.glob("?_??.npy")]) == 6
    assert len(list(output.glob("*_cycle.npy"))) == 6 and len(list(output.glob("*.json"))) == 6
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


def test_batches_and_precision_of_several_targets(tiny: GalipPipeline) -> None:
    slices = np.random.default_rng(0).random((5, 12, 14), dtype=np.float32)
    targets = [tiny.model.prepare_target(name) for name in ("T2", "CT")]
    found = translate_to_targets(tiny.model, slices, targets, batch_size=2)
    for name, translation in zip(("T2", "CT"), found, strict=True):
        expected = translate_slices(tiny.model, slices, name)
        np.testing.assert_allclose(translation, expected, rtol=0, atol=1e-5)
    with pytest.raises(GalipError, match="precision is 'half'"):
        translate_to_targets(tiny.model, slices, targets, precision="half")
    assert not torch.is_autocast_enabled("cpu")
