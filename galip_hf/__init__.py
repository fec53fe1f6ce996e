"""I2I-Galip: unpaired, multi-domain medical image translation with one text-conditioned generator."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageToImage

from .configuration_galip import GalipConfig
from .errors import GalipError
from .image_processing_galip import GalipImageProcessor
from .modeling_galip import GalipForImageTranslation, GalipTranslationOutput
from .pipeline import GalipPipeline
from .translation import Translation
from .version import __version__

AutoConfig.register("galip", GalipConfig, exist_ok=True)
AutoModelForImageToImage.register(GalipConfig, GalipForImageTranslation, exist_ok=True)
AutoImageProcessor.register(
    GalipConfig, image_processor_classes={"torchvision": GalipImageProcessor}, exist_ok=True
)

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
