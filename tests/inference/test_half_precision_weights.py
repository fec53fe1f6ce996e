"""A checkpoint in half precision works wherever one in float32 does, at every precision of inference."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DOMAINS, filled_model, smooth_volume, tiny_config
from transformers import AutoImageProcessor, AutoModelForImageToImage

from galip_hf import GalipForImageTranslation, GalipImageProcessor, GalipPipeline
from galip_hf.cli import main
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.inference.slices import precision_in_words

PRECISIONS = ("fp32", "bf16", "fp16")


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("half") / "model"
    model = filled_model(tiny_config()).to(request.param)
    model.save_pretrained(directory)
    GalipImageProcessor.from_config(model.config).save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["dtype"] in ("bfloat16", "float16")
    return directory


def scan() -> np.ndarray:
    return smooth_volume(3, slices=3, size=24) * 900


@pytest.mark.parametrize("precision", PRECISIONS)
def test_translate(half: Path, tmp_path: Path, precision: str) -> None:
    nib.save(nib.Nifti1Image(scan(), np.eye(4)), tmp_path / "scan.nii.gz")
    command = ["translate", str(tmp_path / "scan.nii.gz"), "--model", str(half), "--from", "T1", "--to", "T2"]
    assert main([*command, "--precision", precision, "--output", str(tmp_path / "t2.nii.gz")]) == 0
    assert nib.load(tmp_path / "t2.nii.gz").get_fdata().std() > 1
    settings = json.loads((tmp_path / "t2.json").read_text())["settings"]
    words = {"fp32": "float32", "bf16": "bfloat16 under autocast", "fp16": "float16 under autocast"}
    assert settings["precision"] == precision and settings["arithmetic"].startswith(words[precision])


def test_pipeline_at_float32_is_that_of_the_rounded_weights(half: Path) -> None:
    """The weights are rounded once, when they are saved; nothing else is."""
    pipe = GalipPipeline.from_pretrained(half)
    model = GalipForImageTranslation.from_pretrained(half, dtype=torch.float32)
    expected = GalipPipeline(model, pipe.processor)(scan(), "T2", "T1").array
    np.testing.assert_allclose(pipe(scan(), "T2", "T1").array, expected, rtol=0, atol=1e-2)
    kept = GalipForImageTranslation.from_pretrained(half)
    assert kept.dtype != torch.float32
    by_hand = GalipPipeline(kept, pipe.processor)(scan(), "T2", "T1").array
    np.testing.assert_allclose(by_hand, expected, rtol=0, atol=1e-2)


def test_auto_classes(half: Path) -> None:
    model, processor = (cls.from_pretrained(half) for cls in (AutoModelForImageToImage, AutoImageProcessor))
    inputs = processor(scan()[0], "T1", return_tensors="pt")
    with torch.inference_mode():
        found = model(inputs["pixel_values"], "T2").translation
        expected = model.float()(inputs["pixel_values"], "T2").translation
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.15)


def test_evaluate(half: Path, tmp_path: Path) -> None:
    names = [domain["name"] for domain in DOMAINS[:2]]
    volumes = [
        SubjectVolume(smooth_volume(label, slices=3), name, "s1", "test") for label, name in enumerate(names)
    ]
    table = write_table(volumes, tmp_path / "table", domains=names, image_size=None)
    for precision in PRECISIONS:
        output = tmp_path / precision
        command = ["evaluate", "--model", str(half), "--data", str(table), "--output", str(output)]
        assert main([*command, "--precision", precision]) == 0
        stated = json.loads((output / "report.json").read_text())["provenance"]["precision"]
        assert stated.startswith({"fp32": "float32 (", "bf16": "bfloat16", "fp16": "float16"}[precision])


def test_precision_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert precision_in_words(cpu, "fp32") == "float32"
    assert precision_in_words(cpu, "bf16") == "bfloat16 under autocast; weights and norms float32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert precision_in_words(cuda, "fp32") == "float32, with TF32 in convolutions"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert precision_in_words(cuda, "fp32") == "float32, with TF32 in convolutions and matrix products"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert precision_in_words(cuda, "fp32") == "float32, with TF32 in matrix products"
