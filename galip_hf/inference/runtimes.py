"""A model exported to ONNX, computed by ONNX Runtime or OpenVINO in the place of PyTorch.

`ExportedModel` has the part of `GalipGenerator` that `GalipPipeline` uses, so that scans take the same way,
whatever computes their slices.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..export.graph import IMAGES, TARGET
from ..export.metadata import KEY, ExportMetadata, weights_hash
from ..extras import require
from ..hub.pull import resolve_model, weights_name
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from ..model.intensity import IntensityNormalizer
from .precision_check import is_precise

RUNTIMES = ("torch", "onnxruntime", "openvino")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}  # of ONNX Runtime
_OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16"}


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU or, where the package onnxruntime-gpu is installed, CUDA.

    It computes in the types of the graph: those that the model was exported with.

    Attributes:
        arithmetic: what is computed in, for reports.
        properties: texts of the file under their keys.

    Raises:
        GalipError: the package is missing, the file is none of its kind, or the device is not offered.
    """

    def __init__(self, path: Path, device: str) -> None:
        onnxruntime = require("onnxruntime", "onnx")
        provider = _PROVIDERS.get(device)
        if provider not in onnxruntime.get_available_providers():
            raise GalipError(f"device {device}: not offered by the installed onnxruntime; use cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # its own kinds, of which none is public
            raise GalipError(f"{path}: not a graph that ONNX Runtime takes ({_line(error)})") from None
        self.properties: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.arithmetic = f"the graph's types, ONNX Runtime {onnxruntime.__version__}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs of a batch, (B, 1, H, W) float32 each."""
        return self._session.run(None, dict(inputs))


@functools.cache
def _openvino_core() -> Any:
    """OpenVINO itself, one for the life of the process.

    It gives the thread that loads its CPU plugin another stack for signal handlers and unmaps that stack with
    the last reference. Where that happens in another thread, the next signal (Ctrl-C, say) ends the process
    with a segmentation fault (OpenVINO 2026.4.1).
    """
    return require("openvino", "openvino").Core()


class OpenVinoEngine:
    """OpenVINO on the CPU: compiled for one slice of fixed height and width, anew for each such size.

    Fixed lengths are faster than variable ones, and slices one by one as fast as in batches (docs/speed.md).

    Attributes:
        arithmetic, properties: as of `OnnxRuntimeEngine`.

    Args:
        path: of the graph.
        precision: `fp32` or `bf16`, which the compiled graph must confirm.

    Raises:
        GalipError: the package is missing, the file is none of its kind, or the precision is not to be had.
    """

    def __init__(self, path: Path, precision: str) -> None:
        self._openvino = require("openvino", "openvino")
        if precision not in _OPENVINO_TYPES:
            # OpenVINO takes f16 on a CPU as a wish, and computes bf16 or f32.
            raise GalipError(f"precision {precision}: OpenVINO computes fp32 and bf16 on a CPU; choose one")
        self.path, self.precision = path, precision
        self._core = _openvino_core()
        if precision == "bf16" and "BF16" not in self.capabilities:
            raise GalipError(f"precision bf16: this CPU ({self.cpu}) has no instructions for it; use fp32")
        self._model = self._read()
        self._requests: dict[tuple[int, ...], Any] = {}
        key = ["framework", KEY]  # where the metadata of ONNX lie
        known = self._model.has_rt_info(key)
        self.properties: Mapping[str, str] = {KEY: self._model.get_rt_info(key).astype(str)} if known else {}
        self.arithmetic = f"{precision}, OpenVINO {self._openvino.__version__}"

    @property
    def cpu(self) -> str:
        """The CPU's name."""
        return str(self._core.get_property("CPU", "FULL_DEVICE_NAME"))

    @property
    def capabilities(self) -> list[str]:
        """What the CPU computes in: `FP32`, `BF16`, …"""
        return list(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs of a batch, (B, 1, H, W) float32 each."""
        slices = []
        for number in range(len(inputs[IMAGES])):
            one = {name: values[number : number + 1] for name, values in inputs.items()}
            request = self._request(one[IMAGES].shape)
            outputs = request.infer(one)
            slices.append([outputs[number].copy() for number in range(len(outputs))])
        return [np.concatenate(of_target) for of_target in zip(*slices, strict=True)]

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._requests:
            model = self._model.clone()
            shapes = {port: [1] for port in model.inputs if port.any_name == TARGET}
            model.reshape({**shapes, IMAGES: list(shape)})
            wanted = _OPENVINO_TYPES[self.precision]
            compiled = self._core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": wanted,
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                },
            )
            found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            if found != wanted:
                raise GalipError(f"precision {self.precision}: OpenVINO would compute in {found}; use fp32")
            self._requests[shape] = compiled.create_infer_request()
        return self._requests[shape]

    def _read(self) -> Any:
        try:
            return self._core.read_model(str(self.path))
        except RuntimeError as error:
            raise GalipError(f"{self.path}: not a graph that OpenVINO takes ({_line(error)})") from None


Engine = OnnxRuntimeEngine | OpenVinoEngine


class ExportedModel:
    """An exported graph in the place of a `GalipGenerator`.

    Attributes:
        config: the model's configuration, from the file's metadata.
        processor: intensity rules, statistics and geometry of the training, likewise.
        device: where images go in and come out: the CPU.
        precision: what slices are computed in. Half precision is compared with fp32 on the first slices,
            unless that was done on this machine before; where it differs too much, fp32 takes its place.
        notes: what the user should know of it, a sentence each.

    Args:
        path: file of `galip-hf export`.
        runtime: `onnxruntime` or `openvino`.
        precision: `fp32`, `bf16` or `fp16`; for ONNX Runtime the one that was exported. `auto` is that one,
            and for OpenVINO bf16 on CPUs with instructions for it.
        device: `cpu` (or `auto`); for ONNX Runtime also `cuda`.

    Raises:
        GalipError: a package is missing; a file, precision or device that the runtime does not take.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path, runtime: str, precision: str = "fp32", device: str = "cpu") -> None:
        device = "cpu" if device == "auto" else device
        if not path.is_file():
            raise GalipError(
                f"{path}: no such file; make it with: galip-hf export {path.parent} --output {path}"
            )
        if runtime == "openvino":
            if device != "cpu":
                raise GalipError(f"device {device}: expected cpu with the runtime openvino")
            if precision == "auto":
                precision = "bf16" if "BF16" in OpenVinoEngine(path, "fp32").capabilities else "fp32"
            self._engine: Engine = OpenVinoEngine(path, precision)
        else:
            self._engine = OnnxRuntimeEngine(path, device)
        self.metadata = ExportMetadata.from_json(self._engine.properties.get(KEY), str(path))
        if runtime == "onnxruntime":
            if precision not in ("auto", self.metadata.dtype):
                raise GalipError(
                    f"precision {precision}: {path} was exported in {self.metadata.dtype}, and ONNX Runtime "
                    f"computes in that; export the model with --dtype {precision}"
                )
            precision = self.metadata.dtype
        self.precision, self.notes = precision, list[str]()
        self.config: GalipConfig = self.metadata.generator_config()
        self.config.name_or_path = str(path)
        self.processor: IntensityNormalizer = self.metadata.normalizer()
        self._is_settled = not (isinstance(self._engine, OpenVinoEngine) and precision != "fp32")

    @property
    def arithmetic(self) -> str:
        """What is computed in, for reports."""
        return self._engine.arithmetic

    def prepare_target(self, target_domain: str) -> str:
        """The target as `translate` takes it.

        Raises:
            GalipError: an unknown domain, or one that was not exported.
        """
        self.config.domain_index(target_domain)
        targets = self.metadata.targets
        if targets is not None and target_domain not in targets:
            raise GalipError(
                f"domain {target_domain!r}: was not exported; {self.config.name_or_path} has "
                f"{', '.join(targets)}"
            )
        return target_domain

    def translate(self, pixel_values: Tensor, targets: Sequence[str]) -> list[Tensor]:
        """Translate images, see `GalipGenerator.translate`.

        Args:
            pixel_values: (B, 1, H, W) float32 in [0, 1], any H and W (padded by repeating the border).
            targets: from `prepare_target`.

        Returns:
            One (B, 1, H, W) float32 a target.
        """
        height, width = pixel_values.shape[-2:]
        multiple = self.metadata.size_multiple
        bottom, right = (-length % multiple for length in (height, width))
        images = np.pad(pixel_values.numpy(), ((0, 0), (0, 0), (0, bottom), (0, right)), mode="edge")
        if not self._is_settled:
            self._settle(images)
        return [
            torch.from_numpy(translated[..., :height, :width])
            for translated in self._run(self._engine, images, targets)
        ]

    def _run(self, engine: Engine, images: np.ndarray, targets: Sequence[str]) -> list[np.ndarray]:
        if self.metadata.targets is not None:
            outputs = engine.run({IMAGES: images})
            return [outputs[self.metadata.targets.index(name)] for name in targets]
        labels = [np.full(len(images), self.config.domain_index(name), np.int64) for name in targets]
        return [engine.run({IMAGES: images, TARGET: label})[0] for label in labels]

    def _settle(self, images: np.ndarray) -> None:
        """Compare half precision with fp32 on the brightest of `images`, and fall back where it differs."""
        engine = self._engine
        assert isinstance(engine, OpenVinoEngine)
        one = images[[images.mean(axis=(1, 2, 3)).argmax()]]
        target = (self.metadata.targets or self.config.domain_names)[-1:]
        exact = OpenVinoEngine(engine.path, "fp32")

        def difference() -> np.ndarray:
            return self._run(engine, one, target)[0] - self._run(exact, one, target)[0]

        key = f"{engine.arithmetic} | {engine.cpu} | {self.metadata.weights_sha256}"
        precise, rms = is_precise(key, difference)
        if not precise:
            self._engine, self.precision = exact, "fp32"
            self.notes.append(
                f"{engine.precision} differs from fp32 by {rms:.2g} of the window (root mean square) on this "
                "CPU, which is too much: computed in fp32"
            )
        self._is_settled = True


def load_exported(
    source: str | os.PathLike[str],
    runtime: str,
    *,
    precision: str,
    device: str,
    subfolder: str = "",
    variant: str | None = None,
    **options: Any,
) -> ExportedModel:
    """The exported graph of a model: a `.onnx` file, or `model.onnx` beside a model's weights.

    Args:
        source: the file, a model directory, or a repository of the Hub that holds `model.onnx`
            (`model.VARIANT.onnx` with `variant`).
        options: of `hub.pull.resolve_model`.

    Raises:
        GalipError: as `ExportedModel`; also a graph of other weights than those beside it.
    """
    if runtime not in RUNTIMES[1:]:
        raise GalipError(f"runtime is {runtime!r}; expected one of {', '.join(RUNTIMES)}")
    path = Path(source)
    if path.suffix == ".onnx":
        return ExportedModel(path, runtime, precision, device)
    name = weights_name(variant).replace(".safetensors", ".onnx")
    directory = resolve_model(source, subfolder=subfolder, variant=variant, besides=[name], **options)
    model = ExportedModel(directory / name, runtime, precision, device)
    if model.metadata.weights_sha256 != weights_hash(directory, variant):
        raise GalipError(
            f"{directory / name}: was exported from other weights than those beside it; export it again: "
            f"galip-hf export {directory} --output {directory / name} --overwrite"
        )
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


__all__ = ["RUNTIMES", "Engine", "ExportedModel", "OnnxRuntimeEngine", "OpenVinoEngine", "load_exported"]
