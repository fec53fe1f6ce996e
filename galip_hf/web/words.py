"""What a translation's report says of its reliability, in sentences for readers who do not know the terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..inference.reliability import UNLIKE
from ..version import DISCLAIMER


def in_plain_words(report: Mapping[str, Any]) -> list[str]:
    """Sentences, the most important first; the report is that of `Translation.report`."""
    source, look, cycle = report["source"], report["input_check"], report["cycle_error"]
    sentences = [_input_check(source, look)]
    doubts = [doubt for doubt in report["warnings"] if not doubt.startswith(UNLIKE)]
    sentences += [f"{doubt[0].upper()}{doubt[1:].rstrip('.')}." for doubt in doubts]
    if cycle and cycle["mean"] is not None:
        sentences.append(
            f"Translated back to {source}, it differs from the scan by {cycle['mean']:.1%} of the intensity "
            "window on average; the map shows where. A low value does not prove the translation right."
        )
    sentences.append(
        f"The translation is {DISCLAIMER}: it can lose lesions or invent them, whatever is said above."
    )
    return sentences


def _input_check(source: str, look: Mapping[str, Any]) -> str:
    if look["verdict"] == "unknown":
        return f"Whether the scan looks like the {source} scans of the training cannot be told."
    score = f"(score {look['score']:.2f}, limit {look['limit']:.2f})"
    if look["verdict"] == "ok":
        return f"The scan looks like the {source} scans that the model was trained on {score}."
    other = look["looks_like"]
    like = f"; it looks like {other}" if other not in (None, source) else ""
    return (
        f"Caution: the scan does not look like the {source} scans that the model was trained on{like} "
        f"{score}. Do not rely on the translation."
    )


__all__ = ["in_plain_words"]
