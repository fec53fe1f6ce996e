"""Exported files: equal to PyTorch at any size, with what is needed to use them; refused where not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import filled_model, tiny_config

from galip_hf import GalipError, GalipImageProcessor, GalipPipeline
from galip_hf.cli import main
from galip_hf.export.check import compared
from galip_hf.export.graph import ExportableGenerator
from galip_hf.export.metadata import KEY, ExportMetadata, weights_hash
from galip_hf.inference import precision_check, runtimes
from galip_hf.model.unet import load_generator


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with attention in the middle alone: a small graph, as tracing takes seconds."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    config = tiny_config(attention_rates=[])
    filled_model(config).save_pretrained(directory)
    GalipImageProcessor.from_config(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def exported(model_directory: Path) -> Path:
    """The same directory with its model.onnx."""
    assert main(["export", str(model_directory), "--output", str(model_directory / "model.onnx")]) == 0
    return model_directory


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).random((shape[0], 1, *shape[1:]), dtype=np.float32)


def test_onnx_with_the_target_as_an_input(exported: Path, model_directory: Path) -> None:
    """Other batches, heights and widths than the traced ones; a target for each image."""
    path = str(exported / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_pipeline_in_another_runtime(runtime: str, exported: Path) -> None:
    """Sides that are no multiple of the network's; two targets; the report says what computed."""
    scan = (200 * images(3, 11, 14)[:, 0]).astype(np.float32)
    expected = GalipPipeline.from_pretrained(exported)(scan, ["T2", "CT"], "T1")
    pipeline = GalipPipeline.from_pretrained(exported, runtime=runtime)
    for found, reference in zip(pipeline(scan, ["T2", "CT"], "T1"), expected, strict=True):
        width = np.ptp(reference.report["window"])
        np.testing.assert_allclose(found.array, reference.array, rtol=0, atol=2e-5 * width)
    settings = found.report["settings"]
    assert settings["precision"] == "fp32" and settings["device"] == "cpu"
    assert {"onnxruntime": "ONNX Runtime", "openvino": "fp32, OpenVINO"}[runtime] in settings["arithmetic"]
    with pytest.raises(GalipError, match="'PD' is unknown"):
        pipeline(scan, "PD", "T1")


def test_a_signal_is_handled_after_openvino_went_in_another_thread(exported: Path) -> None:
    """In a process of its own, which a dangling signal stack would end with a segmentation fault."""
    program = """
import gc, os, pathlib, signal, sys, threading
from galip_hf.inference.runtimes import OpenVinoEngine

engines = [OpenVinoEngine(pathlib.Path(sys.argv[1]), "fp32")]
assert engines[0].cpu
thread = threading.Thread(target=lambda: (engines.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
    command = [sys.executable, "-c", program, str(exported / "model.onnx")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr


@pytest.mark.parametrize("wrong", [False, True])
def test_half_precision_is_compared_once_a_machine(
    wrong: bool, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU whose bf16 is wrong gets fp32 and a word; the answer is kept for the next process."""
    openvino_engine = runtimes.OpenVinoEngine
    calls: list[str] = []

    class Engine(openvino_engine):  # type: ignore[valid-type, misc]
        def __init__(self, path: Path, precision: str) -> None:
            super().__init__(path, "fp32")  # whatever CPU the tests run on
            self.precision, self.arithmetic = precision, f"{precision}, OpenVINO"

        def _request(self, shape: tuple[int, ...]) -> Any:
            asked, self.precision = self.precision, "fp32"
            request, self.precision = super()._request(shape), asked
            return request

        def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            calls.append(self.precision)
            error = 0.0 if self.precision == "fp32" else 0.1 if wrong else 1e-3
            return [output + np.float32(error) for output in super().run(inputs)]

    monkeypatch.setattr(runtimes, "OpenVinoEngine", Engine)
    monkeypatch.setattr(precision_check.constants, "HF_HOME", str(tmp_path))
    scan = 200 * images(2, 8, 8)[:, 0]
    for _ in range(2):
        pipeline = GalipPipeline.from_pretrained(exported, runtime="openvino", precision="bf16")
        report = pipeline(scan, "T2", "T1").report
        used = "fp32" if wrong else "bf16"
        assert report["settings"]["precision"] == used and report["settings"]["arithmetic"].startswith(used)
        said = [text for text in report["warnings"] if "bf16 differs from fp32 by 0.1 of the window" in text]
        assert bool(said) == wrong
    # Once each to compare, in the first process; then once for the scan of each process.
    assert (calls.count("bf16"), calls.count("fp32")) == ((1, 3) if wrong else (3, 1))
    (rms,) = json.loads(precision_check.record_path().read_text(encoding="utf-8")).values()
    assert rms == pytest.approx(0.1 if wrong else 1e-3, rel=1e-3)


def test_a_graph_of_other_weights_is_refused(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(GalipError, match=r"model.onnx: was exported from other weights .* export it again"):
        GalipPipeline.from_pretrained(copy, runtime="onnxruntime")
    alone = GalipPipeline.from_pretrained(copy / "model.onnx", runtime="onnxruntime")  # the file stands alone
    assert alone.config.domain_names == ["T1", "T2", "CT"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tensorrt"}, "runtime is 'tensorrt'; expected one of torch, onnxruntime, openvino"),
        ({"runtime": "onnxruntime", "precision": "fp16"}, "was exported in fp32.*--dtype fp16"),
        ({"runtime": "openvino", "precision": "fp16"}, "OpenVINO computes fp32 and bf16"),
        ({"runtime": "onnxruntime", "device": "cuda"}, "device cuda: not offered"),
        (
            {"runtime": "openvino", "variant": "ema"},
            r"model.ema.onnx: no such file; make it with: galip-hf ex",
        ),
    ],
)
def test_mistakes_with_runtimes(options: dict[str, Any], message: str, exported: Path) -> None:
    with pytest.raises(GalipError, match=message):
        GalipPipeline.from_pretrained(exported, **options)
