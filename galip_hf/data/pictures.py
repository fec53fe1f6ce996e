"""PNG and TIFF files and PIL images: grey pictures, (S, H, W) or (H, W), without geometry."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from ..model.errors import GalipError
from ..version import DISCLAIMER
from .child_process import ChildProcess
from .file_checks import DEFLATE_RATIO, check_announced, check_size, corrupt_as_error

_GREY_EXPECTED = "expected 8- or 16-bit grayscale, or 8-bit RGB with equal channels"
_MODES = ("L", "I", "F", "RGB")
_DESCRIPTION_TAG, _PHOTOMETRIC_TAG = 270, 262  # of TIFF
_OWN_MARK = f"galip_hf: {DISCLAIMER}"
_LARGEST = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


@dataclass(frozen=True)
class GreyScale:
    """How a picture of whole numbers stores values: `lower` as 0, `upper` as `largest` (255 or 65535)."""

    lower: float
    upper: float
    largest: int

    def encode(self, array: np.ndarray) -> np.ndarray:
        """Real values as uint8 or uint16, those outside clipped to the ends."""
        share = (array.astype(np.float64) - self.lower) / (self.upper - self.lower)
        dtype = np.uint8 if self.largest == 255 else np.uint16
        return np.rint(np.clip(share, 0, 1) * self.largest).astype(dtype)

    def clipped(self, array: np.ndarray) -> int:
        """How many values lie outside by more than the rounding to whole numbers."""
        half_step = (self.upper - self.lower) / self.largest / 2
        return int(((array < self.lower - half_step) | (array > self.upper + half_step)).sum())


def largest_grey(data: np.ndarray) -> int | None:
    """The end of the scale of a picture of unsigned whole numbers; None for other types."""
    return _LARGEST.get(data.dtype.newbyteorder("="))


def read_png(path: Path, max_size: int) -> tuple[np.ndarray, bool]:
    """The grey values (H, W) of a PNG, uint8 or uint16, and whether it is a translation of ours.

    Raises:
        GalipError: a corrupt file, a picture with colour, alpha or a palette, or one larger than `max_size`.
    """
    with corrupt_as_error(path):
        content = path.read_bytes()
        # The IHDR chunk, which always comes first: width, height, bit depth, colour type.
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        bit_depth, colour_type = content[24], content[25]
        check_announced(width * height * bit_depth // 8, len(content) * DEFLATE_RATIO, path)
        check_size((height, width), path, max_size)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            # 16-bit RGB is refused: Pillow reads it as 8-bit and would lose the low byte.
            if (bit_depth, colour_type) in ((8, 0), (16, 0), (8, 2)):
                data = _grey(np.asarray(image), str(path))
                return _unsigned(data, bit_depth), image.info.get("Description") == _OWN_MARK
    found = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGB with alpha"}
    raise GalipError(
        f"{path}: is a {bit_depth}-bit {found.get(colour_type, 'unknown')} PNG; {_GREY_EXPECTED}"
    )


def _unsigned(data: np.ndarray, bit_depth: int) -> np.ndarray:
    """Some versions of Pillow give 16-bit PNG as int32."""
    return data if bit_depth == 8 else data.astype(np.uint16)


def read_tiff(path: Path, max_size: int) -> tuple[np.ndarray, bool]:
    """The grey values of a TIFF, (H, W), or (S, H, W) of several pages, and whether it is one of ours.

    Of 8 or 16 bits unsigned, 16 or 32 bits signed, or 32 bits floating point; compressed as libtiff can.

    Raises:
        GalipError: a corrupt file, colour, pages of different sizes or types, or more than `max_size`.
    """
    with corrupt_as_error(path), ChildProcess(max_size) as child:
        facts, data = child.call(__name__, "decode_tiff", str(path), max_size)
    return data, facts["ours"]


def decode_tiff(path: str, max_size: int) -> tuple[dict[str, Any], np.ndarray]:
    """What the child runs."""
    Image.MAX_IMAGE_PIXELS = None  # `check_size` is stricter
    pages = []
    with Image.open(path, formats=("TIFF",)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        count, size, mode = image.n_frames, image.size, image.mode
        check_size((count, size[1], size[0]), path, max_size)
        ours = image.tag_v2.get(_DESCRIPTION_TAG) == _OWN_MARK
        for number in range(count):
            image.seek(number)
            if (image.size, image.mode) != (size, mode):
                raise GalipError(
                    f"{path}: page {number} is of {image.size} pixels and mode {image.mode}, the first of "
                    f"{size} and {mode}; expected slices of one size and type"
                )
            if mode not in _MODES and not mode.startswith("I;16"):
                raise GalipError(f"{path}: is a TIFF of the mode {mode}; {_GREY_EXPECTED}")
            page = _grey(np.asarray(image), path)
            if mode.startswith("I;16") and image.tag_v2.get(_PHOTOMETRIC_TAG) == 0:
                page = 65535 - page  # 0 is white, which Pillow mends in 8 bits only
            pages.append(page)
    return {"ours": ours}, pages[0] if count == 1 else np.stack(pages)


def pil_image(image: Image.Image) -> np.ndarray:
    """The grey values (H, W) of a PIL image of mode L, I;16, I or F, or RGB with equal channels.

    Raises:
        GalipError: another mode, or a broken file behind the image.
    """
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise GalipError(f"image: has the mode {image.mode}; {_GREY_EXPECTED}")
    with corrupt_as_error(Path(getattr(image, "filename", "") or "image")):
        return _grey(np.asarray(image), "image")


def _grey(data: np.ndarray, name: str) -> np.ndarray:
    if data.ndim == 2:
        return data
    if (data == data[..., :1]).all():
        return data[..., 0]
    raise GalipError(f"{name}: is an 8-bit RGB picture with unequal channels; {_GREY_EXPECTED}")


def write_png(grey: np.ndarray, path: Path) -> None:
    """Write one slice (H, W) of uint8 or uint16 values."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Description", _OWN_MARK)
    Image.fromarray(grey).save(path, format="PNG", pnginfo=info)


def write_tiff(array: np.ndarray, path: Path) -> None:
    """Write slices (S, H, W) of uint8, uint16 or float32 values, one a page, uncompressed."""
    pages = [Image.fromarray(page) for page in array]
    pages[0].save(
        path, format="TIFF", save_all=True, append_images=pages[1:], description=_OWN_MARK, compression=None
    )


__all__ = [
    "GreyScale",
    "decode_tiff",
    "largest_grey",
    "pil_image",
    "read_png",
    "read_tiff",
    "write_png",
    "write_tiff",
]
