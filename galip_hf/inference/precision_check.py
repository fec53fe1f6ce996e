"""Half precision against fp32, once a machine: the answer is kept beside the Hub's cache.

An engine may offer bf16 and compute it wrongly on some CPU: openvinotoolkit/openvino issue 38256 reports
matrix products several times too large, without any error, on CPUs with AVX512_BF16 and no AMX.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from huggingface_hub import constants

from ..export.check import LARGEST_HALF_DIFFERENCE
from ..files import atomic_write


def record_path() -> Path:
    """Where the answers are kept, in HF_HOME."""
    return Path(constants.HF_HOME) / "galip_hf" / "precision.json"


def is_precise(key: str, differing: Callable[[], np.ndarray]) -> tuple[bool, float]:
    """Whether half precision is near enough to fp32.

    Args:
        key: engine, version, CPU and model.
        differing: computes the translation of one slice in both, and returns their difference, in model
            space; called where the answer to `key` is not known.

    Returns:
        Whether the root mean square is at most `LARGEST_HALF_DIFFERENCE`, and that root mean square
        (infinite where the difference is not finite).
    """
    known = _known()
    if key not in known:
        difference = differing().astype(np.float64)
        rms = float(np.sqrt((difference**2).mean()))
        known[key] = rms if np.isfinite(rms) else float("inf")
        with suppress(OSError):  # without a place to keep it, it is computed at each start
            record_path().parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(record_path()) as temporary:
                temporary.write_text(json.dumps(known, indent=2), encoding="utf-8")
    return known[key] <= LARGEST_HALF_DIFFERENCE, known[key]


def _known() -> dict[str, float]:
    try:
        values = json.loads(record_path().read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


__all__ = ["is_precise", "record_path"]
