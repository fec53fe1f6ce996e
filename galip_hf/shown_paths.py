"""How reports name files: without the folders above, which often are named after patients or users."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path to the last names of it that tell it from the others; the whole path where none do."""
    parts = {path: Path(os.path.abspath(path)).parts[1:] for path in paths}
    names = {}
    for path, own in parts.items():
        others = {other for other in parts.values() if other != own}
        length = next(
            (n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others)), len(own)
        )
        names[path] = "/".join(own[-length:]) or path
    return names


def with_short_names(value: Any, names: Mapping[str, str]) -> Any:
    """A report's texts, keys among them, with paths as in `names` in place of those that were given."""
    if isinstance(value, dict):
        return {with_short_names(key, names): with_short_names(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_short_names(item, names) for item in value]
    given = {path.rstrip("/"): name for path, name in names.items() if path.rstrip("/")}
    if not isinstance(value, str) or not given:
        return value
    pattern = "|".join(map(re.escape, sorted(given, key=len, reverse=True)))
    return re.sub(rf"(?<![\w./~-])({pattern})/?(?![\w.~-])", lambda found: _joined(given, found), value)


def _joined(given: Mapping[str, str], found: re.Match[str]) -> str:
    return given[found[1]] + ("/" if found[0].endswith("/") else "")


def short_command(words: Iterable[str]) -> list[str]:
    """The words of a command line; of each absolute path, alone or behind `=`, only the last name."""
    shown = []
    for word in words:
        option, sign, value = word.rpartition("=")
        shown.append(option + sign + (Path(value).name if os.path.isabs(value) else value))
    return shown


__all__ = ["short_command", "short_names", "with_short_names"]
