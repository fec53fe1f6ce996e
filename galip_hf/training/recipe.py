"""The keys of a recipe, and how its YAML file is read: unknown keys and wrong types are errors.

```yaml
model: {base_channels: 32}            # fields of GalipConfig; text widths follow the CLIP model
clip: {source: hf-hub:…}              # or {tiny: {…}}: the stand-in, made and trained on phantom or table
data: {phantom: {…}}                  # or {table: DIRECTORY}, {files: [{path, domain, subject, split}]},
                                      # or {streaming: {source: OWNER/NAME, items: …}}
training: {output_dir: …, max_steps: …}
```
"""

import dataclasses
import difflib
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..clip.backbone import BIOMED_CLIP
from ..clip.phantom_clip import TinyClipRecipe
from ..data.phantom_table import PhantomRecipe
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from ..strict_yaml import parse_yaml
from .training_args import GalipTrainingArguments


@dataclass(frozen=True)
class FileRecipe:
    """One volume of the training data."""

    path: str
    domain: str
    subject: str
    split: str = "train"


@dataclass(frozen=True)
class StreamRecipe:
    """A published table (Hub repository or local folder of Parquet files) whose train split is streamed.

    `items` is the length of an epoch, over all processes: half the train split's slices. Each worker holds
    `buffer_size` slices. The validation split, if there is one, is downloaded.
    """

    source: str
    items: int
    revision: str | None = None
    buffer_size: int = 1000


@dataclass(frozen=True)
class DataRecipe:
    """Exactly one source of slices: `phantom`, `files`, a prepared `table` or a `streaming` one."""

    phantom: PhantomRecipe | None = None
    files: tuple[FileRecipe, ...] = ()
    table: str | None = None
    streaming: StreamRecipe | None = None


@dataclass(frozen=True)
class ClipRecipe:
    """`source`: what `ClipBackbone.from_pretrained` takes; or `tiny`: make it in `output_dir/clip`."""

    source: str = BIOMED_CLIP
    tiny: TinyClipRecipe | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    data: DataRecipe
    training: GalipTrainingArguments
    model: dict[str, Any] = field(default_factory=dict)
    clip: ClipRecipe = field(default_factory=ClipRecipe)


# Reading

_LONGEST_MESSAGE, _SHORTEST_REASON = 300, 120
_INT_LIMIT = 1 << 63
_LONGEST_VALUE = 60  # of a value that a message quotes


class _Reader:
    """Turns the values of a recipe into its dataclasses; knows where each value was written.

    Args:
        path: of the recipe.
        lines: line of each place, as `parse_yaml` gives them.
    """

    def __init__(self, path: Path, lines: dict[str, int]) -> None:
        self._path = path
        self._lines = lines
        self._overrides: dict[str, str] = {}

    def override(self, place: str, text: str) -> None:
        """Note that the value at `place` comes from the command line, as `text`."""
        self._overrides[place] = text

    def error(self, place: str, message: str, at: str | None = None) -> GalipError:
        """The error that `message` is wrong at `place`, with where it is written: there, or `at`."""
        written = place if at is None else at
        while written and written not in self._lines and written not in self._overrides:
            written = written[: max(written.rfind("."), written.rfind("["), 0)]
        if written in self._overrides:
            where = f"override {_quoted(self._overrides[written])}"
        else:
            line = f", line {self._lines[written]}" if written in self._lines else ""
            where = f"{self._path}{line}"
        length = max(_LONGEST_MESSAGE - len(where) - 2, _SHORTEST_REASON)
        return GalipError(f"{where}: {_shortened(f'{place}: {message}' if place else message, length)}")

    def convert(self, kind: Any, value: Any, place: str) -> Any:
        """`value` as the annotated type `kind`; GalipError where it is of another."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is types.UnionType:
            inner = next(option for option in arguments if option is not type(None))
            return None if value is None else self.convert(inner, value, place)
        if dataclasses.is_dataclass(kind):
            return self.build(typing.cast(type, kind), value, place)
        if origin is tuple and isinstance(value, list):
            return tuple(self.convert(arguments[0], item, f"{place}[{n}]") for n, item in enumerate(value))
        if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):  # YAML reads 2e-4 as a string
                return float(value)
        expected = origin or kind
        if expected is int and isinstance(value, int) and not -_INT_LIMIT <= value < _INT_LIMIT:
            raise self.error(place, f"found {_quoted(value)}; expected a number of at most 64 bits")
        if isinstance(value, expected) and not (isinstance(value, bool) and expected is not bool):
            return value
        hint = " in quotes (YAML reads a bare no, yes, on, off as a truth value)" if value is False else ""
        name = getattr(expected, "__name__", expected)
        raise self.error(place, f"found {_quoted(value)}; expected {name}{hint}")

    def build(self, cls: type, values: Any, place: str) -> Any:
        """The dataclass `cls` from a mapping; GalipError for a key that is unknown or missing."""
        if not isinstance(values, dict):
            raise self.error(place, f"found {_quoted(values)}; expected a mapping")
        kinds = typing.get_type_hints(cls)
        known = {item.name: item for item in dataclasses.fields(cls)}
        self.check_keys(values, list(known), place)
        missing = [
            name
            for name, item in known.items()
            if item.default is dataclasses.MISSING
            and item.default_factory is dataclasses.MISSING
            and name not in values
        ]
        if missing:
            raise self.error(place, f"key {', '.join(map(repr, missing))} is missing")
        prefix = f"{place}." if place else ""
        converted = {
            name: self.convert(kinds[name], value, f"{prefix}{name}") for name, value in values.items()
        }
        with self.located(place):
            return cls(**converted)

    def check_keys(self, values: dict[str, Any], known: Sequence[str], place: str) -> None:
        """GalipError for the first key that is not among those known."""
        for key in values:
            if key in known:
                continue
            near = difflib.get_close_matches(key, known, n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
            raise self.error(
                place, f"unknown key {_quoted(key)}; {remedy}", at=f"{place}.{key}" if place else key
            )

    @contextmanager
    def located(self, place: str) -> Iterator[None]:
        """Say of a GalipError inside the block where the key at `place` that it names is written."""
        try:
            yield
        except GalipError as error:
            message = str(error).removeprefix(f"{place}: ")
            places = [f"{place}.{word}" for word in re.findall(r"\w+", message)]
            named = next((at for at in places if at in self._lines or at in self._overrides), place)
            raise self.error(place, message, at=named) from None


def _quoted(value: Any) -> str:
    """A value as messages show it: the start of a long one, of a long collection its kind and length."""
    if isinstance(value, (list, dict)) and len(value) > 3:
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    return _shortened(reprlib.repr(value), _LONGEST_VALUE)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; each override `a.b=value` replaces one key (the value is read as YAML).

    Raises:
        GalipError: a missing or malformed file, an unknown or misspelt key, a value of the wrong type.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise GalipError(f"{path}: cannot be read as a recipe ({reason}); expected a YAML file") from None
    values, lines = parse_yaml(text, str(path))
    reader = _Reader(path, lines)
    for override in overrides:
        _apply(override, values, reader, path)
    recipe: Recipe = reader.build(Recipe, values, "")
    found = sum(bool(getattr(recipe.data, item.name)) for item in dataclasses.fields(recipe.data))
    if found != 1:
        raise reader.error(
            "data", f"found {found} sources; expected exactly one of phantom, files, table, streaming"
        )
    # Reject misspelt keys and values out of range before anything runs.
    reader.check_keys(recipe.model, [item.name for item in dataclasses.fields(GalipConfig)], "model")
    with reader.located("model"):
        GalipConfig.from_dict(recipe.model)
    return recipe


def _apply(override: str, values: Any, reader: _Reader, path: Path) -> None:
    """Set the key that `override` names; GalipError where it names none."""
    keys, separator, text = override.partition("=")
    if not separator or not isinstance(values, dict):
        raise GalipError(
            f"override {_quoted(override)}: expected key=value, for example training.max_steps=100"
        )
    target = values
    *parents, last = keys.split(".")
    for key in parents:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise GalipError(f"override {_quoted(override)}: {key!r} is not a mapping in {path}")
    target[last], _ = parse_yaml(text, f"override {_quoted(override)}")
    reader.override(keys, override)


__all__ = [
    "ClipRecipe",
    "DataRecipe",
    "FileRecipe",
    "Recipe",
    "StreamRecipe",
    "load_recipe",
]
