"""Exported files: equal to PyTorch at any size, with what is needed to use them; refused where not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import filled_model, tiny_config

from galip_hf import GalipError, GalipImageProcessor
from galip_hf.cli import main
from galip_hf.export.check import compared
from galip_hf.export.graph import ExportableGenerator
from galip_hf.export.metadata import KEY, ExportMetadata, weights_hash
from galip_hf.model.unet import load_generator


@pytest.fixture(scope="module")
def onnx_file(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    assert main(["export", str(model_directory), "--output", str(path)]) == 0
    return path


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).random((shape[0], 1, *shape[1:]), dtype=np.float32)


def test_onnx_with_the_target_as_an_input(onnx_file: Path, model_directory: Path) -> None:
    """Other batches, heights and widths than the traced ones; a target for each image."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    generator = load_generator(model_directory)
    for values, labels in ((images(3, 10, 22), [0, 1, 2]), (images(1, 32, 2), [2])):
        (found,) = session.run(None, {"pixel_values": values, "target": np.array(labels)})
        with torch.inference_mode():
            expected = generator(torch.from_numpy(values), torch.tensor(labels)).translation
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    metadata = ExportMetadata.from_json(session.get_modelmeta().custom_metadata_map[KEY], "file")
    assert metadata.targets is None and metadata.size_multiple == 2 and metadata.dtype == "fp32"
    assert metadata.generator_config().own_values() == generator.config.own_values()
    assert metadata.normalizer().intensity_rules["CT"] == {"rule": "window", "lower": -1000, "upper": 1000}
    assert metadata.weights_sha256 == weights_hash(model_directory, None)
    assert metadata.licence is None and 0 < metadata.check["max_abs_difference"] < 1e-4


def test_torch_export_with_fixed_targets(
    model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.pt2"
    arguments = ["export", str(model_directory), "--output", str(path), "--format", "torch-export"]
    assert main([*arguments, "--to", "CT,T2"]) == 0
    assert "outputs CT, T2" in capsys.readouterr().out
    texts = {KEY: ""}
    program = torch.export.load(path, extra_files=texts).module()
    values = torch.from_numpy(images(1, 6, 4))
    generator = load_generator(model_directory)
    with torch.inference_mode():
        for found, name in zip(program(values), ("CT", "T2"), strict=True):
            torch.testing.assert_close(found, generator(values, name).translation, rtol=0, atol=2e-5)
    assert json.loads(texts[KEY])["targets"] == ["CT", "T2"]


def test_half_precision_keeps_images_in_float32(model_directory: Path) -> None:
    """Close to float32, but not equal: the weights were converted."""
    generator = load_generator(model_directory)
    values = torch.from_numpy(images(1, 8, 8))
    with torch.inference_mode():
        (found,) = ExportableGenerator(generator, ["T2"], "bf16")(values)
        expected = generator(values, "T2").translation
    assert found.dtype == torch.float32 and generator.dtype == torch.float32
    assert 1e-4 < (found - expected).abs().max() < 0.1 * expected.std() + 0.1


@pytest.mark.parametrize(
    ("dtype", "error", "found"), [("fp32", 2e-4, "largest"), ("bf16", 6e-3, "root mean")]
)
def test_a_graph_that_differs_is_refused(dtype: str, error: float, found: str) -> None:
    generator = filled_model(tiny_config())

    def run(batch: np.ndarray, label: int) -> np.ndarray:
        with torch.inference_mode():
            output = generator(torch.from_numpy(batch), torch.full((len(batch),), label)).translation
        return output.numpy() + error * scale * np.float32(label == 1)

    slices, scale = images(2, 8, 8)[:, 0], 0.0
    assert compared(generator, run, slices, ["T1", "T2"], dtype, 2)["max_abs_difference"] < 1e-6
    scale = 1.0
    assert compared(generator, run, slices, ["T1", "CT"], dtype, 2)["rms_difference"] < 1e-6
    with pytest.raises(GalipError, match=f"differs from PyTorch: {found}.*nothing was written"):
        compared(generator, run, slices, ["T2"], dtype, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "{}/model.pt2"], "expected the name of a .onnx file"),
        (["--output", "{}/config.onnx"], "already exists; choose another name or pass --overwrite"),
        (["--output", "{}/none/model.onnx"], "create it first"),
        (["--output", "{}/new.onnx", "--to", "PD"], "domain 'PD' is unknown"),
        (["--output", "{}/new.onnx", "--to", "T2,T2"], "each once"),
    ],
)
def test_mistakes(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    filled_model(config).save_pretrained(tmp_path)
    GalipImageProcessor.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "config.onnx").write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(tmp_path), *(option.format(tmp_path) for option in options)]) == 2
    assert message in capsys.readouterr().err and sorted(tmp_path.iterdir()) == before
