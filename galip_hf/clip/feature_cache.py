"""The frozen image tower's features of the training slices, computed once and kept on the disk.

They depend on the slice alone where nothing but mirroring augments it. They are large (2.4 MB for ViT-B/16):
more than memory holds of a whole data set.
"""

import math
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..files import told_if_unwritable
from .backbone import ClipBackbone, ClipImageFeatures


class ImageFeatureCache:
    """Features by the slice's number, in a file that is gone with the process.

    Args:
        folder: where the file is made; it is memory-mapped, and its pages belong to the page cache.
        slices: their number. Room for all of them is taken at once.
        backbone: the frozen model.

    Raises:
        GalipError: the file cannot be made, for want of room for example; it says how much is needed.
    """

    def __init__(self, folder: Path, slices: int, backbone: ClipBackbone) -> None:
        self._backbone = backbone
        layers, width = len(backbone.image_blocks), backbone.image_width
        self._shapes = [(layers, backbone.num_patches, width), (4, width), (backbone.embedding_width,)]
        floats = sum(math.prod(shape) for shape in self._shapes)
        self._known = torch.zeros(slices, dtype=torch.bool)
        self._values = _mapped(folder / f"image_features-{os.getpid()}.bin", slices * floats).view(
            slices, floats
        )

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor, numbers: tuple[int, ...]) -> ClipImageFeatures:
        """As `ClipBackbone.encode_images`, without gradients.

        Args:
            pixel_values: (B, 1, H, W).
            numbers: of these B slices.
        """
        for number, image in zip(numbers, pixel_values.split(1), strict=True):
            if not self._known[number]:
                # One by one: so rounding does not depend on what else was in the batch, nor on a resume.
                found = self._backbone.encode_images(image)
                parts = (torch.cat(found.patch_tokens), found.class_tokens[0], found.embedding[0])
                self._values[number] = torch.cat([part.reshape(-1) for part in parts]).cpu()
                self._known[number] = True
        values = self._values[list(numbers)].to(pixel_values.device)
        sizes = [math.prod(shape) for shape in self._shapes]
        tokens, class_tokens, embedding = (
            part.reshape(len(numbers), *shape)
            for part, shape in zip(values.split(sizes, dim=1), self._shapes, strict=True)
        )
        return ClipImageFeatures(tuple(tokens.unbind(1)), class_tokens, embedding)


def _mapped(path: Path, size: int) -> Tensor:
    """(size,) float32 of a new file that no folder lists any more."""
    remedy = f"the features take {size * 4 / 1e9:.1f} GB; make room, or set cache_image_features=false"
    try:
        with told_if_unwritable(path, remedy), open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk would kill the process at some later moment
                os.posix_fallocate(file.fileno(), 0, size * 4)
            else:
                file.truncate(size * 4)
        return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32)
    finally:
        with suppress(OSError):
            path.unlink()


__all__ = ["ImageFeatureCache"]
