"""`examples/slicer/GalipModel.py` through the interface of Slicer's Modality Converter, stood in for here."""

import importlib
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from galip_hf import GalipPipeline

ADAPTER = Path(__file__).resolve().parents[1] / "examples" / "slicer"


class Node:
    """A volume node of the extension's worker process: an array and no geometry."""

    def __init__(self, array: np.ndarray | None = None) -> None:
        self.array = array

    def CopyOrientation(self, other: "Node") -> None:
        self.oriented_as = other


class SlicerNode(Node):
    """A node inside Slicer, which knows its geometry."""

    affine = np.array([[-2.0, 0, 0, 5], [0, 0, 3, 6], [0, 2.0, 0, 7], [0, 0, 0, 1]])

    def GetIJKToRASMatrix(self, matrix: Any) -> None:
        matrix.values = self.affine


class BaseModel:
    def __init__(self, modelKey: str, device: str = "cpu") -> None:
        self.modelKey, self.device, self.progress = modelKey, device, list[int]()

    def reportProgress(self, percent: int, message: str) -> None:
        self.progress.append(percent)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """The extension's registry after it has imported the adapter."""
    found: dict[str, type] = {}

    def register_model(key: str) -> Any:
        return lambda kind: found.setdefault(key, kind)

    def update(node: Node, array: np.ndarray) -> None:
        node.array = array

    class Matrix:
        def GetElement(self, row: int, column: int) -> float:
            return float(self.values[row, column])  # type: ignore[attr-defined]

    util = SimpleNamespace(arrayFromVolume=lambda node: node.array, updateVolumeFromArray=update)
    for name, content in {
        "slicer": {"util": util},
        "vtk": {"vtkMatrix4x4": Matrix},
        "ModalityConverterLib": {},
        "ModalityConverterLib.ModelBase": {"BaseModel": BaseModel, "register_model": register_model},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(ADAPTER))
    monkeypatch.delitem(sys.modules, "GalipModel", raising=False)
    importlib.import_module("GalipModel")
    return found


def test_a_scan_in_slicer(registry: dict[str, Any], model_directory: Path, tmp_path: Path) -> None:
    metadata = json.loads((ADAPTER / "metadata.json").read_text(encoding="utf-8"))
    assert set(metadata) == set(registry)
    (key,) = metadata
    assert registry[key].__name__ == metadata[key]["module_name"]
    with zipfile.ZipFile(tmp_path / f"{key}.zip", "w") as archive:
        for file in model_directory.iterdir():
            archive.write(file, file.name)
    model = registry[key](key)
    model.model = model._loadModelFromPath(str(tmp_path / f"{key}.zip"))
    pipeline = GalipPipeline.from_pretrained(model_directory)
    array = (np.random.default_rng(0).random((5, 12, 14)) * 900).astype(np.int16)  # (slices, rows, columns)
    mask = np.zeros_like(array)
    mask[:, 3:9] = 1

    image = nib.Nifti1Image(array.transpose(2, 1, 0).astype(np.float32), SlicerNode.affine)
    expected = pipeline(image, "T2", "T1").array.transpose(2, 1, 0)
    source, output = SlicerNode(array), SlicerNode()
    model.runInference(inputVolume=source, outputVolume=output, inputMask=None, showAllFiles=False)
    np.testing.assert_allclose(output.array, expected, atol=1e-3)
    assert output.oriented_as is source and model.progress[-1] == 100

    translation = pipeline(array.astype(np.float32), "T2", "T1")
    output = Node()
    model.runInference(Node(array), output, Node(mask))
    assert output.array is not None
    np.testing.assert_allclose(output.array[:, 3:9], translation.array[:, 3:9], atol=1e-3)
    assert (output.array[:, 9:] == np.float32(translation.report["window"][0])).all()
