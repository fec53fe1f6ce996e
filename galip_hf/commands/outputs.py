"""The outputs of commands that write a model: checked before anything is computed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..model.errors import GalipError

if TYPE_CHECKING:
    from ..model.intensity import IntensityNormalizer
    from ..model.modeling_galip import GalipForImageTranslation


def checked_output(arguments: argparse.Namespace) -> Path:
    """`--output`, a file or a folder, which is new or may be replaced.

    Raises:
        GalipError: it is there already, without `--overwrite`; or its folder is not.
    """
    output = Path(arguments.output)
    if output.exists() and not arguments.overwrite:
        raise GalipError(f"{output}: already exists; choose another name or pass --overwrite")
    if not output.parent.is_dir():
        raise GalipError(f"{output}: the directory {output.parent} does not exist; create it first")
    return output


def checked_model_output(arguments: argparse.Namespace) -> Path:
    """`--output`, the folder of a model, which is new or may be replaced.

    Raises:
        GalipError: as `checked_output`; or the folder is there and holds no model.
    """
    output = checked_output(arguments)
    if output.exists() and not (output / "config.json").is_file():
        raise GalipError(f"{output}: exists and is not a model directory; only a model is overwritten")
    return output


def save_derived_model(
    model: "GalipForImageTranslation", original: "IntensityNormalizer", directory: Path
) -> None:
    """Weights and processor of a model made from another, with all that the other's knows of its training."""
    from ..model.image_processing_galip import GalipImageProcessor

    processor = GalipImageProcessor(model.config.domains)
    processor.set_statistics(original.statistics)
    processor.set_geometry(original.geometry)
    processor.set_not_for_real_scans(original.not_for_real_scans)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


__all__ = ["checked_model_output", "checked_output", "save_derived_model"]
