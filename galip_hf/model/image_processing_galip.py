"""`GalipImageProcessor`: the intensity rules of a model's domains as an image processor of transformers."""

import os
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .configuration_galip import GalipConfig
from .domains import readable_json
from .errors import GalipError
from .intensity import IntensityNormalizer, normalize, real_array

_GREY_MODES = ("L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N", "RGB")


class GalipImageProcessor(IntensityNormalizer, BaseImageProcessor):
    """Maps single-channel images of a domain to model space, (B, 1, H, W) float32, and back.

    Arguments and errors are those of `IntensityNormalizer`, which does it for volumes.
    """

    @classmethod
    def get_image_processor_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """As in `BaseImageProcessor`; GalipError for a file that holds no JSON object."""
        with readable_json(f"{os.fspath(args[0]) if args else 'model'}: preprocessor_config.json"):
            values, unused = super().get_image_processor_dict(*args, **kwargs)
            return dict(**values), unused

    @classmethod
    def from_config(cls, config: GalipConfig) -> "GalipImageProcessor":
        """The processor of a model's domains."""
        return cls(config.domains)

    def __call__(  # type: ignore[override]
        self, images: Any, domain: str | None = None, return_tensors: str | None = None
    ) -> BatchFeature:
        """`preprocess`."""
        return self.preprocess(images, domain, return_tensors)

    def preprocess(  # type: ignore[override]  # one domain argument, and none of the resizing options
        self, images: Any, domain: str | None = None, return_tensors: str | None = None
    ) -> BatchFeature:
        """Normalise single images, each by its own window.

        Args:
            images: an image or a list of them, of one size. An image is a numpy array or torch tensor,
                (H, W), (1, H, W) or (H, W, 1), of integers or floats, or a PIL image of one channel. RGB
                with three equal channels, (3, H, W) or (H, W, 3), counts as one. An array (B, 1, H, W) is a
                list of B images.
            domain: the domain of all the images; it has to be given.
            return_tensors: `pt` for torch tensors; None or `np` for numpy arrays.

        Returns:
            `pixel_values` (B, 1, H, W) float32 in [0, 1], and (B,) float64 `lower`, `upper` (the windows, in
            the images' units) and `outside_fraction` (of the pixels: outside the window, and clamped to it).

        Raises:
            GalipError: no domain or an unknown one, an image of another form, NaN or infinity, an image
                without contrast, or values outside [0, 1] under the rule "none".
        """
        if domain is None:
            raise GalipError(
                "domain is missing: images are normalised by the intensity rule of their domain; give one of "
                f"{', '.join(self.intensity_rules)}"
            )
        rule = self._rule(domain)
        listed = (
            list(images) if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else [images]
        )
        if not listed:
            raise GalipError("images: found an empty list; expected at least one image")
        slices = [_single_slice(image) for image in listed]
        shapes = sorted({image.shape for image in slices})
        if len(shapes) > 1:
            raise GalipError(
                f"images: found the sizes {shapes}; a batch is of one size, so pass them one by one"
            )
        normalized = [normalize(image, rule, domain) for image in slices]
        data = {
            "pixel_values": np.stack([image.values for image in normalized])[:, None],
            "lower": np.array([image.lower for image in normalized]),
            "upper": np.array([image.upper for image in normalized]),
            "outside_fraction": np.array([image.outside_fraction for image in normalized]),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)


def _single_slice(image: Any) -> np.ndarray:
    """One image as (H, W) float64."""
    mode = getattr(image, "mode", None)  # a PIL image
    if isinstance(mode, str) and mode not in _GREY_MODES:
        raise GalipError(
            f"image: found the mode {mode}; expected one channel (L, I;16, I or F) or RGB with equal "
            "channels, so convert it first"
        )
    array = real_array(image)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    elif array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    elif array.ndim == 3 and 3 in (array.shape[0], array.shape[2]):
        channels = array if array.shape[0] == 3 else array.transpose(2, 0, 1)
        if not (channels == channels[:1]).all():
            raise GalipError(
                f"image: the three channels of the shape {array.shape} differ; expected one channel or three "
                "equal ones; convert colour to grey, give volumes to normalize_volume"
            )
        array = channels[0]
    if array.ndim != 2:
        raise GalipError(
            f"image: found the shape {array.shape}; expected one channel, (H, W), (1, H, W) or (H, W, 1), or "
            "three equal ones; convert colour to grey, give volumes to normalize_volume"
        )
    return array


__all__ = ["GalipImageProcessor"]
