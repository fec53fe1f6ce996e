"""The formats of `galip-hf export`: one function each, from a model to a file compared with PyTorch."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..extras import require
from ..files import atomic_write, told_if_unwritable
from ..model.unet import GalipGenerator
from .check import Run, compared
from .graph import IMAGES, TARGET, TRANSLATION, ExportableGenerator, size_multiple, traced
from .metadata import KEY, ExportMetadata, model_metadata


@dataclass(frozen=True)
class Export:
    """What is to be exported.

    Attributes:
        directory: model directory; `variant` of its weights.
        generator: loaded from it, in float32.
        targets: fixed targets, each an output of its own; None for the target as an input.
        dtype: a key of `export.graph.DTYPES`.
        slices: (S, H, W) float32 in model space, to compare on; H and W multiples of the coarsest rate.
        slices_are: where they come from, in words.
    """

    directory: Path
    variant: str | None
    generator: GalipGenerator
    targets: Sequence[str] | None
    dtype: str
    slices: np.ndarray
    slices_are: str

    def graph(self) -> torch.export.ExportedProgram:
        """The traced generator."""
        with _quiet():
            return traced(ExportableGenerator(self.generator, self.targets, self.dtype))

    def checked_metadata(self, run: Run, engine: str) -> ExportMetadata:
        """The metadata, with the comparison of `run`, the exported graph in `engine`.

        Raises:
            GalipError: it differs too much, see `export.check.compared`.
        """
        multiple = size_multiple(self.generator.config)
        names = self.targets or self.generator.config.domain_names
        check = compared(self.generator, run, self.slices, names, self.dtype, multiple)
        return ExportMetadata(
            **model_metadata(self.directory, self.variant),
            targets=None if self.targets is None else list(self.targets),
            size_multiple=multiple,
            dtype=self.dtype,
            check={"of": self.slices_are, "in": engine, "against": f"PyTorch {torch.__version__}", **check},
        )


def place_of_target(targets: Sequence[str] | None, names: Sequence[str], label: int) -> int | None:
    """The output that is the translation to the domain `label`; None where the target is an input."""
    return None if targets is None else list(targets).index(names[label])


def write_onnx(export: Export, output: Path) -> ExportMetadata:
    """One ONNX file with weights and metadata; compared in ONNX Runtime, or bf16 in ONNX's reference engine.

    Raises:
        GalipError: packages of the extra `onnx` are missing, the graph differs from PyTorch, or the file
            cannot be written.
    """
    onnx = require("onnx", "onnx")
    require("onnxscript", "onnx")
    require("onnxruntime", "onnx")
    names = [TRANSLATION] if export.targets is None else list(export.targets)
    with _quiet():
        program = torch.onnx.export(
            export.graph(), dynamo=True, optimize=True, verbose=False, output_names=names
        )
    assert program is not None
    model = program.model_proto
    with told_if_unwritable(output, "choose another place"), atomic_write(output) as temporary:
        temporary.write_bytes(model.SerializeToString())
        run, engine = _onnx_engine(temporary, export)
        metadata = export.checked_metadata(run, engine)
        onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
        temporary.write_bytes(model.SerializeToString())
    return metadata


def _onnx_engine(path: Path, export: Export) -> tuple[Run, str]:
    """The file at `path` as a function. ONNX Runtime computes no bf16 on a CPU: ONNX's own engine does."""
    domains = export.generator.config.domain_names
    if export.dtype == "bf16":
        from onnx.reference import ReferenceEvaluator

        session: Any = ReferenceEvaluator(str(path))
        engine = "onnx.reference"
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        engine = f"ONNX Runtime {onnxruntime.__version__}"

    def run(images: np.ndarray, label: int) -> np.ndarray:
        place = place_of_target(export.targets, domains, label)
        labels = {} if place is not None else {TARGET: np.full(len(images), label, np.int64)}
        return session.run(None, {IMAGES: images, **labels})[place or 0]

    return run, engine


def write_torch_export(export: Export, output: Path) -> ExportMetadata:
    """A `.pt2` of torch.export with the metadata as an extra file; the program is compared, then saved.

    Raises:
        GalipError: the graph differs from PyTorch, or the file cannot be written.
    """
    program, domains = export.graph(), export.generator.config.domain_names
    module = program.module()

    def run(images: np.ndarray, label: int) -> np.ndarray:
        place = place_of_target(export.targets, domains, label)
        labels = () if place is not None else (torch.full((len(images),), label),)
        with torch.inference_mode():
            translated = module(torch.from_numpy(images), *labels)
        return (translated if place is None else translated[place]).numpy()

    metadata = export.checked_metadata(run, f"torch.export {torch.__version__}")
    with told_if_unwritable(output, "choose another place"), atomic_write(output) as temporary, _quiet():
        torch.export.save(program, temporary, extra_files={KEY: metadata.to_json()})
    return metadata


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes to developers of PyTorch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# What `galip-hf export --format` offers: the suffix of the file, and the function that writes it.
FORMATS: dict[str, tuple[str, Callable[[Export, Path], ExportMetadata]]] = {
    "onnx": (".onnx", write_onnx),
    "torch-export": (".pt2", write_torch_export),
}

__all__ = ["FORMATS", "Export", "place_of_target", "write_onnx", "write_torch_export"]
