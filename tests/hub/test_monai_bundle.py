"""A model as a MONAI bundle."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from galip_hf import GalipError, GalipPipeline
from galip_hf.cli import main
from galip_hf.hub.monai_bundle import write_bundle
from galip_hf.inference.volume_network import VolumeNetwork

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "phantom_model"
# What the bundle specification's schema of 2024-07-25 requires.
REQUIRED = {
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
}
AFFINE = np.array([[-3.0, 0, 0, 40], [0, 0, 6.0, -10], [0, 3.0, 0, -40], [0, 0, 0, 1]])  # coronal slices


def scan(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).random((30, 28, 5)).astype(np.float32) * 900
    nib.Nifti1Image(array, AFFINE).to_filename(path)
    return path


def test_a_bundle_says_what_it_is(tmp_path: Path) -> None:
    folder = write_bundle(EXAMPLE, tmp_path / "bundle")
    metadata = json.loads((folder / "configs/metadata.json").read_text(encoding="utf-8"))
    assert set(metadata) >= REQUIRED
    report = json.loads((EXAMPLE / "report.json").read_text(encoding="utf-8"))
    scores = report["protocols"]["fixed"]["masked"]["directions"]["T1->T2"]
    assert metadata["eval_metrics"]["T1->T2 psnr"] == pytest.approx(scores["psnr"])
    assert "apache-2.0" in metadata["copyright"]
    assert metadata["network_data_format"]["inputs"]["image"]["num_channels"] == 1
    inference = json.loads((folder / "configs/inference.json").read_text(encoding="utf-8"))
    assert inference["force"] is False  # the user's to set
    assert inference["source"] is None and inference["target"] == "T2"  # one intensity rule for all
    weights = folder / "models/model.safetensors"
    assert weights.read_bytes() == (EXAMPLE / "model.safetensors").read_bytes()
    assert "library_name" in (folder / "docs/model_card.md").read_text(encoding="utf-8")
    with pytest.raises(GalipError, match="already exists"):
        write_bundle(EXAMPLE, folder)
    with pytest.raises(GalipError, match=r"no config\.json in it"):
        write_bundle(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_command(model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "export",
        str(model_directory),
        "--format",
        "monai-bundle",
        "--output",
        str(tmp_path / "bundle"),
    ]
    assert main([*command, "--to", "T2"]) == 2
    assert "--to has no meaning with --format monai-bundle" in capsys.readouterr().err
    assert main(command) == 0
    assert (tmp_path / "bundle/configs/inference.json").is_file()
    assert "python -m monai.bundle run" in capsys.readouterr().out
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err


def test_domains_of_several_rules_need_a_source(model_directory: Path, tmp_path: Path) -> None:
    folder = write_bundle(model_directory, tmp_path / "bundle")
    inference = json.loads((folder / "configs/inference.json").read_text(encoding="utf-8"))
    assert inference["source"] == "T1"


def test_the_network_is_the_pipeline(model_directory: Path) -> None:
    network, pipeline = (
        VolumeNetwork(model_directory, "T2", "T1"),
        GalipPipeline.from_pretrained(model_directory),
    )
    assert len(list(network.parameters())) == len(list(pipeline.model.parameters()))
    volumes = torch.rand(2, 1, 20, 18, 3, generator=torch.Generator().manual_seed(0))
    translated = network(volumes)
    expected = pipeline(volumes[1, 0].permute(2, 0, 1), "T2", "T1").array
    torch.testing.assert_close(translated[1, 0], torch.from_numpy(expected).permute(1, 2, 0))
    with pytest.raises(GalipError, match="expected \\(B, 1, X, Y, Z\\)"):
        network(volumes[:, 0])


@pytest.mark.slow
def test_monai_runs_the_bundle(tmp_path: Path) -> None:
    for module in ("monai", "ignite", "fire"):
        pytest.importorskip(module, reason="pip install 'galip-hf[bundle]'")
    folder = write_bundle(EXAMPLE, tmp_path / "bundle")
    for seed in range(2):
        scan(tmp_path / f"scans/head{seed}.nii.gz", seed)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"),
            *("--bundle_root", ".", "--dataset_dir", str(tmp_path / "scans")),
            *("--output_dir", str(tmp_path / "out"), "--target", "PD", "--source", "T1"),
            *("--force", "True"),
        ],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pipeline = GalipPipeline.from_pretrained(EXAMPLE, force=True)
    for seed in range(2):
        made = nib.load(tmp_path / f"out/head{seed}_PD.nii.gz")
        expected = pipeline(tmp_path / f"scans/head{seed}.nii.gz", "PD", "T1")
        np.testing.assert_allclose(made.affine, AFFINE, atol=1e-4)
        np.testing.assert_allclose(made.get_fdata(), expected.array, atol=0.5)  # of 900
