"""Small pictures of single slices, kept while scoring and shown in the page: WebP, some ten kilobytes."""

import base64
import io

import numpy as np
from PIL import Image

from ..figures import DIFFERENCE_LIMIT

LONGEST_SIDE = 128  # pixels: larger slices are averaged over blocks of n x n pixels
GAP = 2  # pixels between the pictures of a strip
QUALITY = 75


class Panels:
    """Slices as 8-bit pictures: source, translation and target of a direction and subject."""

    def __init__(self) -> None:
        self._slices: dict[str, dict[str, list[np.ndarray | None]]] = {}

    def add(
        self,
        direction: str,
        subject: str,
        source: np.ndarray | None,
        translation: np.ndarray,
        target: np.ndarray | None,
    ) -> None:
        """Keep slices, (H, W) in model space; None where there is none."""
        images = [None if image is None else _small(image) for image in (source, translation, target)]
        self._slices.setdefault(direction, {})[subject] = images

    def subjects(self, direction: str) -> list[str]:
        """Subjects with pictures, in the order in which they were kept."""
        return list(self._slices.get(direction, {}))

    def strip(self, direction: str, subject: str) -> str:
        """A data URI: source, translation, target and |difference| (0 to 0.5), as far as they are there."""
        from matplotlib import colormaps

        source, translation, target = self._slices[direction][subject]
        assert translation is not None
        parts = [_rgb(image) for image in (source, translation, target) if image is not None]
        if target is not None:
            difference = np.abs(translation.astype(float) - target) / 255 / DIFFERENCE_LIMIT
            parts.append((colormaps["magma"](np.clip(difference, 0, 1))[..., :3] * 255).astype(np.uint8))
        gap = np.full((parts[0].shape[0], GAP, 3), 128, np.uint8)
        strip = np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)
        return webp(Image.fromarray(strip))


def webp(image: Image.Image) -> str:
    """A picture as a WebP data URI."""
    data = io.BytesIO()
    image.convert("RGB").save(data, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def _small(image: np.ndarray) -> np.ndarray:
    step = -(-max(image.shape) // LONGEST_SIDE)
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8))
    return np.asarray(picture.reduce(step))  # every n-th pixel would show, and store, the noise


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=2)


__all__ = ["Panels", "webp"]
