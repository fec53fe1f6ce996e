"""What `galip-hf translate` writes, where, and that it writes all of it or nothing."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series
from PIL import Image

from galip_hf.cli import main
from galip_hf.data.readers import read_volume

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def model(model_directory: Path) -> Path:
    return model_directory


def scan(path: Path, slices: int = 3) -> Path:
    array = np.random.default_rng(slices).random((14, 12, slices)).astype(np.float32)
    nib.Nifti1Image(array, AFFINE).to_filename(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def translate(model: Path, *arguments: object, source: str = "T1", target: str = "T2") -> int:
    return main(["translate", "--model", str(model), "--from", source, "--to", target, *map(str, arguments)])


# --- pictures ---


@pytest.mark.parametrize(("source", "target"), [("T1", "T2"), ("T1", "CT"), ("CT", "T1")])
@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_picture_becomes_a_picture(
    dtype: type, largest: int, source: str, target: str, model: Path, tmp_path: Path
) -> None:
    """Under every intensity rule: the translation's window lies over the source's scale."""
    grey = np.random.default_rng(3).integers(0, 200, (14, 12)).astype(dtype)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "a.tif")
    Image.fromarray(grey).save(tmp_path / "b.tif", save_all=True, append_images=[Image.fromarray(grey)])
    for name in ("a.png", "a.tif", "b.tif"):
        outputs = [tmp_path / f"{name}-out{suffix}" for suffix in (Path(name).suffix, ".npy")]
        for output in outputs:
            arguments = (tmp_path / name, "--output", output, "--cycle-map", "--overwrite")
            assert translate(model, *arguments, source=source, target=target) == 0
            if output is outputs[0]:
                report = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        values = read_volume(outputs[1]).array
        stored = read_volume(outputs[0]).array
        assert read_volume(outputs[0]).source.largest_grey == largest
        lower, upper = report["window"]
        expected = np.rint(np.clip((values - lower) / (upper - lower), 0, 1) * largest)
        np.testing.assert_allclose(stored, expected, atol=1)  # two runs of the network
        scale = report["stored_scale"]
        assert scale["grey_values"] == {"0": lower, str(largest): upper} and scale["voxels"] == values.size
        assert scale["clipped_voxels"] <= ((values < lower) | (values > upper)).sum()
        assert report["cycle_map_stored_scale"]["grey_values"]["0"] == 0


def test_a_stack_does_not_fit_into_png_and_nothing_is_computed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from galip_hf import GalipPipeline

    monkeypatch.setattr(GalipPipeline, "__call__", lambda *_, **__: pytest.fail("it was computed"))
    scan(tmp_path / "a.nii.gz")
    assert translate(model, tmp_path / "a.nii.gz", "--output", tmp_path / "o.png") == 2
    assert "PNG holds one slice, the volume has 3" in capsys.readouterr().err
    assert translate(model, tmp_path / "a.nii.gz", "--output", tmp_path / "out", "--format", "png") == 2
    assert names(tmp_path) == ["a.nii.gz"]  # not even the folder


# --- formats ---


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mgz", "img", "mhd"])
def test_a_scan_is_translated_alike_from_every_format(suffix: str, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="pip install 'galip-hf[formats]'")
    from galip_hf.data.writers import write_volume

    volume = read_volume(scan(tmp_path / "a.nii.gz"))
    write_volume(volume, tmp_path / f"b.{suffix}")
    for name in ("a.nii.gz", f"b.{suffix}"):
        assert translate(model, tmp_path / name, "--output", tmp_path / "out") == 0
    first, second = (read_volume(tmp_path / "out" / f"{n}") for n in ("a_T2.nii.gz", f"b_T2.{suffix}"))
    np.testing.assert_allclose(second.array, first.array, rtol=0, atol=1e-6)
    np.testing.assert_allclose(second.source.affine, AFFINE, atol=1e-6)


def test_nan_background_and_the_largest_size(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = np.random.default_rng(0).random((14, 12, 3)).astype(np.float32)
    array[0] = np.nan
    nib.Nifti1Image(array, AFFINE).to_filename(tmp_path / "a.nii")
    nib.Nifti1Image(np.nan_to_num(array), AFFINE).to_filename(tmp_path / "b.nii")
    arguments = (tmp_path / "a.nii", "--output", tmp_path / "o.nii")
    assert translate(model, *arguments) == 2
    assert "take NaN as air with --nan-background" in capsys.readouterr().err
    assert translate(model, *arguments, "--nan-background") == 0
    assert "36 of 504 voxels are NaN and were taken as air" in capsys.readouterr().out
    assert translate(model, tmp_path / "b.nii", "--output", tmp_path / "p.nii") == 0
    pair = [nib.load(tmp_path / name).get_fdata() for name in ("o.nii", "p.nii")]
    np.testing.assert_array_equal(*pair)
    assert translate(model, tmp_path / "b.nii", "--output", tmp_path / "q.nii", "--max-size", "1e-6") == 2
    assert "the limit is 1e-06 GiB, so raise --max-size" in capsys.readouterr().err
    assert translate(model, tmp_path / "b.nii", "--output", tmp_path / "q.nii", "--max-size", "0") == 2


# --- outputs among inputs ---


@pytest.mark.parametrize("place", ["out", "."])
def test_outputs_inside_the_input_folder_are_not_translated_again(
    place: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    scan(folder / "a.nii.gz")
    scan(folder / "b.nii.gz", 2)
    write_series(folder / "ct", slices=2)
    arguments = (folder, "--output", folder / place, "--cycle-map", "--figure")
    assert translate(model, *arguments, source="CT", target="T1") == 0
    first = names(folder / place)
    assert {"a_T1.nii.gz", "a_T1_cycle.nii.gz", "a_T1_figure.png", "ct_T1", "ct_T1.json"} <= set(first)
    assert translate(model, *arguments, "--skip-existing", source="CT", target="T1") == 0
    assert names(folder / place) == first and "3 existed already" in capsys.readouterr().out
    assert translate(model, *arguments, source="CT", target="T1") == 2
    assert "already exists" in capsys.readouterr().err


def test_an_output_file_in_the_input_folder(model: Path, tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    for _ in range(2):
        assert translate(model, tmp_path, "--output", tmp_path / "o.nii.gz", "--overwrite") == 0
        assert names(tmp_path) == ["a.nii.gz", "o.json", "o.nii.gz"]


def test_a_translation_as_input_is_told(model: Path, tmp_path: Path, capsys) -> None:
    scan(tmp_path / "a.nii.gz")
    write_series(tmp_path / "ct", slices=2)
    arguments = ("--from", "T1")
    for source, output in (("a.nii.gz", "a.npy"), ("ct", "ct2"), ("ct2", "ct3.nii"), ("a.npy", "b.npy")):
        translate(model, tmp_path / source, "--output", tmp_path / output, *arguments, source="CT")
        told = "The input is itself a translation" in capsys.readouterr().out
        assert told == (source in ("ct2", "a.npy")), source
    # The report a.json is that of a.npy: the patient's scan beside it is none.
    translate(model, tmp_path / "a.nii.gz", "--output", tmp_path / "c.npy")
    assert "The input is itself" not in capsys.readouterr().out


# --- clashes ---


def test_clashes_are_found_before_anything_is_computed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from galip_hf import GalipPipeline

    monkeypatch.setattr(GalipPipeline, "__call__", lambda *_, **__: pytest.fail("it was computed"))
    source = scan(tmp_path / "a.nii.gz")
    (tmp_path / "o.json").write_text("{}", encoding="utf-8")
    before = names(tmp_path)
    for output in ("o.npy", "o.nii.gz"):
        assert translate(model, source, "--output", tmp_path / output) == 2
        assert "o.json: already exists" in capsys.readouterr().err
    assert translate(model, source, "--output", tmp_path / "o.npy", "--skip-existing") == 2
    assert "o.json: already exists; rename or move it" in capsys.readouterr().err
    (tmp_path / "p_figure.png").write_bytes(b"mine")
    assert translate(model, source, "--output", tmp_path / "p.npy", "--figure") == 2
    assert "p_figure.png: already exists" in capsys.readouterr().err
    assert translate(model, source, "--output", source, "--overwrite") == 2
    assert "is an input, and would be replaced" in capsys.readouterr().err
    arguments = (source, "--output", tmp_path / "out", "--cycle-map")
    assert translate(model, *arguments, target="T2,T2_cycle") == 2
    told = "a_T2_cycle.nii.gz: would be written for both a_T2.nii.gz and a_T2_cycle.nii.gz"
    assert told in capsys.readouterr().err
    write_series(tmp_path / "ct", slices=2)
    (tmp_path / "out" / "ct_T1").mkdir(parents=True)
    (tmp_path / "out" / "ct_T1" / "mine.txt").write_bytes(b"mine")
    arguments = (tmp_path / "ct", "--output", tmp_path / "out", "--overwrite")
    assert translate(model, *arguments, source="CT", target="T1,T2") == 2
    assert "holds other files than a series of ours" in capsys.readouterr().err
    assert names(tmp_path) == sorted([*before, "ct", "out", "p_figure.png"])


@pytest.mark.parametrize("second", ["x.png", "x.npy", "X.nii.gz"])
def test_two_scans_of_one_name_get_two_reports(second: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    scan(folder / "x.nii.gz")
    if second.endswith(".png"):
        Image.fromarray(np.arange(168, dtype=np.uint8).reshape(14, 12)).save(folder / second)
    elif second.endswith(".npy"):
        np.save(folder / second, np.random.default_rng(0).random((2, 14, 12)))
    else:
        scan(folder / second, 2)
    assert translate(model, folder, "--output", tmp_path / "out") == 0
    reports = sorted((tmp_path / "out").glob("*.json"))
    outputs = [json.loads(path.read_text(encoding="utf-8"))["output"] for path in reports]
    assert len(set(outputs)) == 2 and len(names(tmp_path / "out")) == 4


def test_dotted_names_of_series_keep_their_reports(model: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path / "in" / f"s.{number}", slices=2, series=f"1.2.{number}")
    assert translate(model, tmp_path / "in", "--output", tmp_path / "out", source="CT", target="T1") == 0
    assert names(tmp_path / "out") == ["s.1_T1", "s.1_T1.json", "s.2_T1", "s.2_T1.json"]


# --- failures leave nothing ---

LIMITED = """
import contextlib, io, json, resource, sys
from pathlib import Path
from galip_hf.cli import main
folder, model, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
found = {}
for source, name in [("a.nii.gz", f"o{suffix}") for suffix in sys.argv[5:]] + [("ct", "series")]:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(["translate", str(folder / source), "--model", model, "--from", "CT", "--to", "T1",
                     "--output", str(folder / "out" / name), "--overwrite", *json.loads(sys.argv[4])])
    left = sorted(path.name for path in (folder / "out").iterdir())
    found[name] = [code, error.getvalue(), left]
print(json.dumps(found))
"""


ALL = (".nii.gz", ".nii", ".img", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd", ".mat", ".npy", ".npz", ".tif")


@pytest.mark.parametrize(
    ("limit", "more", "suffixes"),
    [
        (100, [], (".nii",)),  # the report does not fit
        (5_000, ["--figure"], (".nii",)),  # the picture
        (9_000, ["--cycle-map"], (".nii", ".mha")),  # the map
        (9_000, [], ALL),  # the scan
    ],
)
def test_a_limit_of_the_file_size_leaves_nothing(
    limit: int, more: list[str], suffixes: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    """As on a full disk: one line, and what was there stays."""
    pytest.importorskip("resource")
    pytest.importorskip("SimpleITK", reason="pip install 'galip-hf[formats]'")
    array = np.random.default_rng(0).random((24, 24, 10)).astype(np.float32)  # 23 KB
    nib.Nifti1Image(array, AFFINE).to_filename(tmp_path / "a.nii.gz")
    write_series(tmp_path / "ct", slices=2, suffix=".dcm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "o.json").write_text("before", encoding="utf-8")
    command = [sys.executable, "-c", LIMITED, tmp_path, model, limit, json.dumps(more), *suffixes]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    found = json.loads(result.stdout)
    if limit == 9_000:
        assert found.pop("series")[0] == 0  # slices of DICOM are small: nothing to refuse
    for name, (code, error, left) in found.items():
        assert code == 2, (name, error)
        assert error.startswith("galip-hf: error: ") and error.count("\n") == 1, error
        assert "cannot be written" in error and ".writing-" not in error
        assert left == ["o.json"], (name, left)
    assert (tmp_path / "out" / "o.json").read_text(encoding="utf-8") == "before"
