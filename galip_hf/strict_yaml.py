"""YAML that people write by hand, read strictly: every value knows its line, and nothing is taken in silence.

PyYAML's safe loader keeps the last of two equal keys, makes dates and sets, and expands aliases without a
limit: a few hundred bytes can stand for gigabytes. Here a file holds mappings with text keys, lists, text,
numbers, truth values and null, and a limited number of aliases. (strictyaml has no inline `{…}` and `[…]`,
which recipes use; ruamel.yaml reads YAML 1.2, in which `yes` is text, and limits neither aliases nor depth.)
"""

from __future__ import annotations

from typing import Any

import yaml

from .model.errors import GalipError

LONGEST_FILE = 1 << 20  # characters
_MOST_ALIASES, _MOST_VALUES, _DEEPEST = 16, 100_000, 32
_LONGEST_REASON = 160
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """Composes nodes, with limits; only scalars are constructed by PyYAML."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._aliases = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > _MOST_ALIASES:
                raise _fault(
                    f"more than {_MOST_ALIASES} aliases (*{event.anchor}); write the values out", event
                )
        if self._depth > _DEEPEST:
            raise _fault(f"more than {_DEEPEST} levels, one inside another", event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


# No key of ours takes a date, so 2024-01-31 stays text and 2024-13-99 is no error; `<<` merges nothing.
_Loader.yaml_implicit_resolvers = {
    sign: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
    for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, name: str) -> tuple[Any, dict[str, int]]:
    """The value of a YAML document, and the line of each key and list item below it.

    Args:
        text: one document.
        name: starts the messages.

    Returns:
        The value, of dict (with text keys), list, str, int, float, bool and None, nothing of it shared; and
        lines, counted from 1, by place: `training.loss_weights.clip`, `data.files[0].path`, "" for the whole.

    Raises:
        GalipError: not valid YAML; a key twice, or one that is no text; a tag; a number that cannot be read;
            too many aliases, levels or characters. The message has the line.
    """
    if len(text) > LONGEST_FILE:
        raise GalipError(f"{name}: {len(text)} characters long; expected at most {LONGEST_FILE}")
    lines: dict[str, int] = {}
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else _value(loader, node, "", lines, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _refusal(name, mark.line if mark else None, error.problem or error.context or "") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        raise _refusal(name, line, f"the character {error.character!r} may not be in it") from None
    except (ValueError, OverflowError):  # PyYAML's on an escape such as \UFFFFFFFF
        raise _refusal(name, loader.line if loader else None, "an escape that is no character") from None
    return value, lines


def _refusal(name: str, line: int | None, reason: str) -> GalipError:
    where = name if line is None else f"{name}, line {line + 1}"
    return GalipError(f"{where}: not valid YAML ({_short(' '.join(reason.split()))})")


def _value(
    loader: _Loader, node: yaml.Node, place: str, lines: dict[str, int], above: tuple[yaml.Node, ...]
) -> Any:
    """The value of a node at `place`; `above` are the nodes that it lies in."""
    if any(node is other for other in above):
        raise _fault("an alias inside what it stands for", node)
    if len(lines) > _MOST_VALUES:
        raise _fault(f"more than {_MOST_VALUES} values", node)
    if node.tag not in _TAGS:
        raise _fault(f"the tag {node.tag.removeprefix('tag:yaml.org,2002:')!r}; expected none", node)
    lines.setdefault(place, node.start_mark.line + 1)
    inside = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        _check_tag(node, "seq")
        return [_value(loader, item, f"{place}[{n}]", lines, inside) for n, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        _check_tag(node, "map")
        return _mapping(loader, node, place, lines, inside)
    try:
        value = loader.construct_object(node)
        if isinstance(value, str) and any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value):
            raise _fault("text with a character that no file can hold", node)
        return value
    except (ValueError, OverflowError, KeyError):  # a number of 5,000 digits; `!!int x`, `!!bool x`
        kind = node.tag.rpartition(":")[2]
        raise _fault(f"{_short(node.value, 40)!r} cannot be read as {kind}", node) from None


def _check_tag(node: yaml.Node, kind: str) -> None:
    if not node.tag.endswith(f":{kind}"):
        raise _fault(f"the tag {node.tag.rpartition(':')[2]!r}; expected none", node)


def _mapping(
    loader: _Loader, node: yaml.MappingNode, place: str, lines: dict[str, int], inside: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    _check_keys(node)
    values = {}
    for key, item in node.value:
        below = f"{place}.{key.value}" if place else key.value
        lines[below] = key.start_mark.line + 1
        values[key.value] = _value(loader, item, below, lines, inside)
    return values


def _check_keys(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
            shown = _short(repr(key.value), 40) if isinstance(key, yaml.ScalarNode) else "of several values"
            raise _fault(f"the key {shown} is no text; put it in quotes", key)
        if key.value in seen:
            raise _fault(
                f"the key {_short(key.value, 40)!r} is there twice, first in line {seen[key.value]}", key
            )
        seen[key.value] = line


def _fault(problem: str, where: Any) -> yaml.MarkedYAMLError:
    """An error at a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _short(text: str, length: int = _LONGEST_REASON) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


__all__ = ["LONGEST_FILE", "parse_yaml"]
