"""Packages that only some users need: imported when needed, with an error that says how to install them."""

import importlib
from typing import Any

from .model.errors import GalipError


def require(module: str, extra: str) -> Any:
    """Import `module`, which the extra `extra` of setup.cfg installs.

    Raises:
        GalipError: it is not installed; the message holds the pip line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GalipError(f"{module} is needed for this ({error}); pip install 'galip-hf[{extra}]'") from error


__all__ = ["require"]
