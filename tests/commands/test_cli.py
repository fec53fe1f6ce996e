"""The command line on real files: what it writes, and what it says to a mistake."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TEXT_LENGTH, TEXT_WIDTH, filled_model, tiny_config

from galip_hf import GalipForImageTranslation, GalipImageProcessor
from galip_hf.cli import main
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.inference.slices import translate_slices
from galip_hf.official_weights import official_module_names


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A volume with flipped axes and odd sizes, in units of its own."""
    rng = np.random.default_rng(0)
    affine = np.array([[-2, 0, 0, 40], [0, 2.5, 0, -60], [0, 0, 3, 10], [0, 0, 0, 1]], dtype=float)
    image = nib.Nifti1Image((rng.random((19, 21, 5)) * 900 + 50).astype(np.float32), affine)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    path = tmp_path / "scan.nii"
    image.to_filename(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and stderr of one command."""
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a refused command prints."""
    code, error = run(capsys, *arguments)
    lines = [line for line in error.splitlines() if line.startswith("galip-hf: error: ")]
    assert code == 2
    assert len(lines) == 1 and "Traceback" not in error
    return lines[0]


def translate(
    scan: Path, model: Path, output: Path, to: str = "T2", source: str = "T1", *more: str
) -> list[object]:
    return ["translate", scan, "--model", model, "--to", to, "--from", source, "--output", output, *more]


def test_a_translated_scan_keeps_its_geometry_and_its_scale(capsys, scan, model_directory, tmp_path) -> None:
    output = tmp_path / "out.nii.gz"
    assert main([str(a) for a in translate(scan, model_directory, output)]) == 0
    before, after = nib.load(scan), nib.load(output)
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.header["sform_code"] == 2 and after.header["qform_code"] == 1
    # By hand: rows from anterior (y up: flipped), columns from the patient's right (x down: as they are).
    data = before.get_fdata()
    slices = data[:, ::-1].transpose(2, 1, 0)
    lower, upper = np.percentile(data, [0.0, 99.5])
    model = GalipForImageTranslation.from_pretrained(model_directory)
    given = np.clip((slices - lower) / (upper - lower), 0, 1).astype(np.float32)
    expected = translate_slices(model, given, "T2")
    expected = (expected * (upper - lower) + lower).transpose(2, 1, 0)[:, ::-1]
    np.testing.assert_allclose(after.get_fdata(), expected, atol=1e-2)


def test_a_translation_to_ct_is_in_hounsfield_units(scan, model_directory, tmp_path) -> None:
    output = tmp_path / "ct.npy"
    assert main([str(a) for a in translate(scan, model_directory, output, to="CT")]) == 0
    from galip_hf.data.readers import read_volume

    processor = GalipImageProcessor.from_pretrained(model_directory)
    slices = processor.normalize_volume(read_volume(scan).array, "T1").pixel_values[:, 0].numpy()
    model = GalipForImageTranslation.from_pretrained(model_directory)
    np.testing.assert_allclose(
        np.load(output), translate_slices(model, slices, "CT") * 2000 - 1000, atol=1e-2
    )


def test_an_existing_output_is_kept_unless_told_otherwise(capsys, scan, model_directory, tmp_path) -> None:
    output = tmp_path / "out.nii"
    output.write_bytes(b"precious")
    assert "--overwrite" in refused(capsys, *translate(scan, model_directory, output))
    assert output.read_bytes() == b"precious"
    assert run(capsys, *translate(scan, model_directory, output), "--overwrite")[0] == 0
    assert nib.load(output).shape == (19, 21, 5)


def test_an_unknown_domain_lists_the_known_ones(capsys, scan, model_directory, tmp_path) -> None:
    line = refused(capsys, *translate(scan, model_directory, tmp_path / "o.nii", to="FLAIR"))
    assert "'FLAIR'" in line and "T1, T2, CT" in line
    assert "T1, T2, CT" in refused(
        capsys, *translate(scan, model_directory, tmp_path / "o.nii", source="FLAIR")
    )
    assert not (tmp_path / "o.nii").exists()


def test_domains_of_different_rules_need_the_source(capsys, scan, model_directory, tmp_path) -> None:
    arguments = ["translate", scan, "--model", model_directory, "--to", "T2", "--output", tmp_path / "o.nii"]
    assert "--from" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (b"\x00" * 100, "bad.nii"), (None, "no such file")],
    ids=["empty", "garbage", "missing"],
)
def test_a_scan_that_cannot_be_read(
    capsys, model_directory, tmp_path, content: bytes | None, word: str
) -> None:
    path = tmp_path / "bad.nii"
    if content is not None:
        path.write_bytes(content)
    assert word in refused(capsys, *translate(path, model_directory, tmp_path / "o.nii")).lower()
    assert not (tmp_path / "o.nii").exists()


def test_a_truncated_scan(capsys, scan, model_directory, tmp_path) -> None:
    path = tmp_path / "cut.nii"
    path.write_bytes(scan.read_bytes()[:1000])
    assert "cut.nii" in refused(capsys, *translate(path, model_directory, tmp_path / "o.nii"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers(capsys, model_directory, tmp_path, value: float) -> None:
    array = np.ones((3, 20, 20), dtype=np.float32)
    array[1, 2, 3] = value
    np.save(tmp_path / "bad.npy", array)
    line = refused(capsys, *translate(tmp_path / "bad.npy", model_directory, tmp_path / "o.npy"))
    assert "bad.npy" in line and "1" in line


def test_a_wrong_rank(capsys, model_directory, tmp_path) -> None:
    np.save(tmp_path / "flat.npy", np.ones(7, dtype=np.float32))
    assert "flat.npy" in refused(
        capsys, *translate(tmp_path / "flat.npy", model_directory, tmp_path / "o.npy")
    )


def test_what_is_no_model(capsys, scan, model_directory, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(capsys, *translate(scan, tmp_path / "empty", tmp_path / "o.nii"))
    assert "no such model" in refused(capsys, *translate(scan, tmp_path / "nowhere", tmp_path / "o.nii"))


def test_weights_that_do_not_fit_the_configuration(capsys, scan, model_directory, tmp_path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model_directory, copy)
    config = (copy / "config.json").read_text(encoding="utf-8")
    (copy / "config.json").write_text(config.replace('"label_width": 16', '"label_width": 24'))
    assert "do not fit" in refused(capsys, *translate(scan, copy, tmp_path / "o.nii"))
    (copy / "config.json").write_text(config.replace('"label_width"', '"label_widht"'))
    assert "label_widht" in refused(capsys, *translate(scan, copy, tmp_path / "o.nii"))


def test_an_output_that_cannot_be_written(capsys, scan, model_directory, tmp_path) -> None:
    assert "does not exist" in refused(capsys, *translate(scan, model_directory, tmp_path / "no" / "o.nii"))
    folder = tmp_path / "folder.nii"
    folder.mkdir()
    assert "is a directory" in refused(capsys, *translate(scan, model_directory, folder))
    assert "o.xyz" in refused(capsys, *translate(scan, model_directory, tmp_path / "o.xyz"))


@pytest.fixture(scope="module")
def official_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the authors' layout, narrow, two domains."""
    config = tiny_config(
        channel_multipliers=[1, 1, 2, 2, 4, 4],
        blocks_per_level=2,
        attention_rates=[8, 16, 32],
        norm_groups=8,
        domains=tiny_config().domains[:2],
    )
    model = filled_model(config)
    ours_to_official = {new: old for old, new in official_module_names(config).items()}
    state_dict = {}
    for key, value in model.state_dict().items():
        if key != "prompt_states":
            module, _, parameter = key.rpartition(".")
            state_dict[f"{ours_to_official[module]}.{parameter}"] = value
    path = tmp_path_factory.mktemp("official") / "generator.pt"
    torch.save(state_dict, path)
    return path


def test_convert_with_text_states_from_a_file(capsys, official_checkpoint, tmp_path) -> None:
    states = np.random.default_rng(1).standard_normal((2, 5, TEXT_WIDTH)).astype(np.float32)
    np.save(tmp_path / "states.npy", states)
    output = tmp_path / "converted"
    arguments = ["convert", official_checkpoint, "--domains", "T1,T2", "--output", output]
    arguments += ["--text-states", tmp_path / "states.npy"]
    assert run(capsys, *arguments)[0] == 0
    model = GalipForImageTranslation.from_pretrained(output)
    np.testing.assert_array_equal(model.prompt_states.numpy(), states)
    assert model.config.domain_names == ["T1", "T2"]
    official = torch.load(official_checkpoint, weights_only=True)
    torch.testing.assert_close(model.conv_in.weight, official["input_blocks.0.0.weight"], rtol=0, atol=0)
    assert GalipImageProcessor.from_pretrained(output).intensity_rules["T1"]["rule"] == "percentile"
    assert "already exists" in refused(capsys, *arguments)
    assert run(capsys, *arguments, "--overwrite")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted", "states.npy"]


def test_convert_with_prompts_encoded_by_the_backbone(
    capsys, official_checkpoint, clip_directory, tmp_path
) -> None:
    output = tmp_path / "converted"
    arguments = [
        "convert",
        official_checkpoint,
        "--domains",
        "T1,T2",
        "--output",
        output,
        "--clip",
        clip_directory,
    ]
    assert run(capsys, *arguments)[0] == 0
    prompts = ["this MRI is T1-weighted", "this MRI is T2-weighted"]
    expected = ClipBackbone.from_pretrained(clip_directory).encode_prompts(prompts).token_states
    model = GalipForImageTranslation.from_pretrained(output)
    assert model.config.prompts == prompts
    assert model.prompt_states.shape == (2, TEXT_LENGTH, TEXT_WIDTH)
    torch.testing.assert_close(model.prompt_states, expected, rtol=0, atol=1e-6)


def test_convert_there_and_back_gives_the_same_checkpoint(capsys, official_checkpoint, tmp_path) -> None:
    states = np.random.default_rng(1).standard_normal((2, 5, TEXT_WIDTH)).astype(np.float32)
    np.save(tmp_path / "states.npy", states)
    there = ["convert", official_checkpoint, "--domains", "T1,T2", "--output", tmp_path / "model"]
    assert run(capsys, *there, "--text-states", tmp_path / "states.npy")[0] == 0
    back = ["convert", tmp_path / "model", "--to-official", "--output", tmp_path / "back.pt"]
    assert run(capsys, *back, "--text-states", tmp_path / "back.npy")[0] == 0
    original, written = (
        torch.load(p, weights_only=True) for p in (official_checkpoint, tmp_path / "back.pt")
    )
    assert original.keys() == written.keys()
    assert all(torch.equal(original[name], written[name]) for name in original)
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), states)
    size = (tmp_path / "back.pt").stat().st_size
    assert size < 1.5 * sum(value.nbytes for value in written.values()) + 300 * len(written)
    assert "already exists" in refused(capsys, *back)
    back[-1] = tmp_path / "other.pt"
    assert "--domains" in refused(capsys, *back, "--domains", "T1,T2")
    assert "new .npy file" in refused(capsys, *back, "--text-states", tmp_path / "back.npy")
    assert "no config.json" in refused(capsys, "convert", tmp_path, "--to-official", "--output", back[-1])
    assert "is missing" in refused(capsys, "convert", official_checkpoint, "--output", back[-1])
    assert not (tmp_path / "other.pt").exists()


def test_convert_refuses_what_does_not_fit(capsys, official_checkpoint, tmp_path) -> None:
    np.save(tmp_path / "states.npy", np.zeros((2, 5, TEXT_WIDTH + 1), dtype=np.float32))
    common = ["--output", tmp_path / "out", "--text-states", tmp_path / "states.npy"]
    assert "3 names" in refused(capsys, "convert", official_checkpoint, "--domains", "A,B,C", *common)
    assert "text states" in refused(capsys, "convert", official_checkpoint, "--domains", "A,B", *common)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert "junk.pt" in refused(capsys, "convert", tmp_path / "junk.pt", "--domains", "A,B", *common)
    assert "no such file" in refused(capsys, "convert", tmp_path / "none.pt", "--domains", "A,B", *common)
    assert not (tmp_path / "out").exists()


def test_the_installed_command_needs_no_network_and_no_open_clip(scan, model_directory, tmp_path) -> None:
    """In a process of its own: exit codes, stderr, and what was imported."""
    code = (
        "import sys; from galip_hf.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = 'open_clip galip_hf.training.trainer galip_hf.clip.backbone'.split()\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "sys.exit(code)"
    )
    arguments = [str(a) for a in translate(scan, model_directory, tmp_path / "out.nii")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Synthetic" in done.stdout
