"""Names of the files in a model directory, and the reading of those that a card rests upon."""

import json
from pathlib import Path
from typing import Any

from ..model.errors import GalipError

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
CARD = "README.md"
TRAINING = "training.json"  # the facts of the training run
REPORT = "report.json"  # the evaluation of these weights


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        GalipError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise GalipError(f"{path}: not readable; expected a text file") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        GalipError: it cannot be read.
    """
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise GalipError(f"{path}: not readable as JSON; expected an object")
    return values


__all__ = ["CARD", "CONFIG", "PROCESSOR", "REPORT", "TRAINING", "read_json", "read_text"]
