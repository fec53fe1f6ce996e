"""A galip-hf model in 3D Slicer, by the interface of the Modality Converter extension.

The extension: https://github.com/ciroraggio/SlicerModalityConverter. This file's place in it is
ModalityConverterLib/ModelsImpl; README.md has the steps. Names in camel case are those of the interface.

The extension has one key for each kind of translation, so the key says from what to what: `galip_T1_to_T2`.
It hands over arrays in Slicer's order (slices, rows, columns), and, where the translation runs inside Slicer,
a node that knows the geometry. The extension's worker process hands over no geometry: slices are then taken
pixel for pixel, which is right only for scans of the pixel size of the model's training.
"""

import re
import tempfile
import zipfile
from pathlib import Path

import slicer
from ModalityConverterLib.ModelBase import BaseModel, register_model

KEY = re.compile(r"galip_(?P<source>\w+)_to_(?P<target>\w+)")
MODEL_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


# A line for every entry of metadata.json.
@register_model("galip_T1_to_T2")
class GalipModel(BaseModel):
    """Translates by a zip of a model directory: config.json, preprocessor_config.json, model.safetensors."""

    def _loadModelFromPath(self, modelPath):
        from galip_hf import GalipPipeline

        device = self.device if self.device.startswith("cuda") else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(modelPath) as archive:
                for name in MODEL_FILES:
                    Path(folder, name).write_bytes(archive.read(name))
            pipeline = GalipPipeline.from_pretrained(folder, device=device)
        pipeline.name = Path(modelPath).stem
        return pipeline

    def runInference(self, inputVolume, outputVolume, inputMask=None, showAllFiles=True):
        """Write the translation to `outputVolume`; outside `inputMask`, if there is one, its lowest value."""
        import numpy as np

        key = KEY.fullmatch(self.modelKey)
        array = slicer.util.arrayFromVolume(inputVolume).astype(np.float32)
        affine = _affine(inputVolume)
        if affine is None:
            print("galip-hf: no geometry was handed over; slices are taken pixel for pixel")
            scan = array
        else:
            import nibabel

            scan = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)
        translation = self.model(scan, key["target"], key["source"], advance=self._advance(len(array)))
        result = translation.array if affine is None else translation.array.transpose(2, 1, 0)
        if inputMask is not None:
            inside = slicer.util.arrayFromVolume(inputMask) > 0
            result = np.where(inside, result, translation.report["window"][0])
        for warning in translation.warnings:
            print(f"galip-hf: {warning}")
        slicer.util.updateVolumeFromArray(outputVolume, np.ascontiguousarray(result, dtype=np.float32))
        outputVolume.CopyOrientation(inputVolume)
        return result

    def _advance(self, total):
        done = 0

        def advance(count):
            nonlocal done
            done += count
            self.reportProgress(min(100, round(100 * done / total)), "Translating slices")

        return advance


def _affine(node):
    """The 4 x 4 matrix from voxels (column, row, slice) to RAS in mm; None where the node has none."""
    if not hasattr(node, "GetIJKToRASMatrix"):
        return None
    import numpy as np
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
