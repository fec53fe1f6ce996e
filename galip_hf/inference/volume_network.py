"""A model as a `torch.nn.Module` from volume to volume, for frameworks that want one, such as MONAI."""

from __future__ import annotations

import os
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ..data.scans import read_scan
from ..model.errors import GalipError
from .pipeline import GalipPipeline


class VolumeNetwork(torch.nn.Module):
    """Translates whole volumes as `GalipPipeline` does: intensities, geometry and the way back included.

    Args:
        model: as for `GalipPipeline.from_pretrained`.
        target: the domain to translate to.
        source: the domain of the input; None where the domains share one intensity rule.
        force: as for `GalipPipeline`.

    Raises:
        GalipError: no such model or domain.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        target: str,
        source: str | None = None,
        force: bool = False,
    ) -> None:
        super().__init__()
        self._pipeline = GalipPipeline.from_pretrained(model, force=force)
        self._pipeline.config.domain_index(target)
        self._pipeline.source_domain(source)
        self._target, self._source = target, source
        self.generator = self._pipeline.model  # a submodule, so that .to(device) moves it

    def forward(self, volumes: Any) -> torch.Tensor:
        """Translate a batch of volumes.

        Args:
            volumes: (B, 1, X, Y, Z), in the units of the files; a MONAI `MetaTensor` with the affine to RAS
                in mm, or a tensor, whose slices along Z are then taken pixel for pixel.

        Returns:
            (B, 1, X, Y, Z) float32 of the same kind and device, in the target's units (HU for CT, the
            input's for MR).

        Raises:
            GalipError: another shape, or a volume that cannot be translated.
        """
        if volumes.ndim != 5 or volumes.shape[1] != 1:
            raise GalipError(f"volumes: found shape {tuple(volumes.shape)}; expected (B, 1, X, Y, Z)")
        affines = getattr(volumes, "affine", None)
        translated = []
        for index, volume in enumerate(torch.as_tensor(volumes).cpu().numpy()[:, 0].astype(np.float32)):
            if affines is None:
                (scan,) = read_scan(volume.transpose(2, 0, 1))  # slices first, as an array is read
                result = self._pipeline(scan, self._target, self._source).array.transpose(1, 2, 0)
            else:
                affine = np.asarray(affines[index] if np.ndim(affines) == 3 else affines, dtype=np.float64)
                image = nib.Nifti1Image(volume, affine)
                result = self._pipeline(image, self._target, self._source).array
            translated.append(torch.from_numpy(np.ascontiguousarray(result, dtype=np.float32)))
        # A MetaTensor's likeness is one with its meta data, by which MONAI names and places what it saves.
        output = torch.empty_like(volumes, dtype=torch.float32)
        output.copy_(torch.stack(translated)[:, None])
        return output


__all__ = ["VolumeNetwork"]
