"""I2I-Galip: unpaired, multi-domain medical image translation with one text-conditioned generator.

Importing the package imports neither torch nor transformers: a name does, when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .hub.auto_classes import register_with_transformers
from .model.errors import GalipError
from .version import __version__

if TYPE_CHECKING:
    from .inference.pipeline import GalipPipeline
    from .inference.translation import Translation
    from .model.configuration_galip import GalipConfig
    from .model.image_processing_galip import GalipImageProcessor
    from .model.modeling_galip import GalipForImageTranslation
    from .model.unet import GalipTranslationOutput

_MODULES = {
    "GalipConfig": "model.configuration_galip",
    "GalipForImageTranslation": "model.modeling_galip",
    "GalipImageProcessor": "model.image_processing_galip",
    "GalipPipeline": "inference.pipeline",
    "GalipTranslationOutput": "model.unet",
    "Translation": "inference.translation",
}

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # from now on it is found without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


__all__ = [
    "GalipConfig",
    "GalipError",
    "GalipForImageTranslation",
    "GalipImageProcessor",
    "GalipPipeline",
    "GalipTranslationOutput",
    "Translation",
    "__version__",
]
