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
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..clip.backbone import BIOMED_CLIP
from ..clip.phantom_clip import TinyClipRecipe
from ..data.phantom_table import PhantomRecipe
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
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


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` from YAML as the annotated type `kind`, or a GalipError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        inner = next(option for option in arguments if option is not type(None))
        return None if value is None else _convert(inner, value, where)
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML reads 2e-4 as a string
            return float(value)
        except ValueError:
            pass
    expected = origin or kind
    if isinstance(value, expected) and not (isinstance(value, bool) and expected is not bool):
        return value
    hint = " in quotes (YAML reads a bare no, yes, on, off as a truth value)" if value is False else ""
    raise GalipError(f"{where}: found {value!r}; expected {getattr(expected, '__name__', expected)}{hint}")


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise GalipError(f"{where}: found {values!r}; expected a mapping")
    kinds = typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}
    unknown = sorted(set(map(str, values)) - set(known))
    if unknown:
        raise GalipError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; known keys: {', '.join(known)}"
        )
    required = [
        name
        for name, item in known.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if missing:
        raise GalipError(f"{where}: key {', '.join(map(repr, missing))} is missing")
    return cls(**{name: _convert(kinds[name], value, f"{where}.{name}") for name, value in values.items()})


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; each override `a.b=value` replaces one key (the value is read as YAML).

    Raises:
        GalipError: a missing or malformed file, an unknown or misspelt key, a value of the wrong type.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise GalipError(f"{path}: cannot be read as a recipe ({reason}); expected a YAML file") from None
    except yaml.YAMLError as error:
        raise GalipError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    for override in overrides:
        keys, separator, text = override.partition("=")
        if not separator or not isinstance(values, dict):
            raise GalipError(f"override {override!r}: expected key=value, for example training.max_steps=100")
        target = values
        *parents, last = keys.split(".")
        for key in parents:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise GalipError(f"override {override!r}: {key!r} is not a mapping in {path}")
        try:
            target[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise GalipError(f"override {override!r}: the value is not valid YAML") from None
    recipe: Recipe = _build(Recipe, values, str(path))
    found = sum(bool(getattr(recipe.data, item.name)) for item in dataclasses.fields(recipe.data))
    if found != 1:
        raise GalipError(
            f"{path}.data: found {found} sources; expected exactly one of phantom, files, table, streaming"
        )
    GalipConfig.from_dict(recipe.model)  # reject misspelt keys before anything runs
    return recipe


__all__ = [
    "ClipRecipe",
    "DataRecipe",
    "FileRecipe",
    "Recipe",
    "StreamRecipe",
    "load_recipe",
]
