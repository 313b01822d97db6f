"""YAML files to validated objects, and mistakes to messages.

All mistakes of a file are collected and raised at once, each with file, key, value, reason and, where a key is unknown,
the nearest valid one.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from svitlo.errors import ConfigError
from svitlo.storage.space import reason_of
from svitlo.units import printable, shown


class Section(BaseModel):
    """What all sections share: unknown keys are mistakes, and values never change after they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)
Count = Annotated[int, Field(ge=1, le=10**12)]
"""A number of things. The limit is beyond all use, and keeps every calculation within what numbers can hold."""


def load(path: Path, kind: type[AnySection], context: dict[str, Any] | None = None) -> AnySection:
    """Read one file as a section. Raises `ConfigError` with every mistake in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: the file is missing. Name the folder that holds it with --config or SVITLO_CONFIG"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}: not UTF-8 text: line {line:,} has the byte {error.object[error.start]:#04x}. Save it as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from error
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_yaml_problem(error, text)}") from error
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply. The files in config/ need four levels") from None
    if not isinstance(values, dict) and values is not None:
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(values).__name__} {shown(values)}")
    try:
        return kind.model_validate(values or {}, context=context)
    except ValidationError as error:
        mistakes = [printable(_explain(kind, mistake)) for mistake in error.errors()]
        heading = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError("\n".join([f"{path}: {heading}", *(f"  {mistake}" for mistake in mistakes)])) from None


def _yaml_problem(error: yaml.YAMLError, text: str) -> str:
    """What is wrong, and in which line."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"the character {error.character:#x} in line {line:,} is none that a text has. Remove it"
    assert isinstance(error, yaml.MarkedYAMLError)
    mark = error.problem_mark or error.context_mark
    place = f" (line {mark.line + 1:,}, column {mark.column + 1:,})" if mark is not None else ""
    return printable(", ".join(part for part in (error.context, error.problem) if part)) + place


_LONGEST_KEY = 60
"""In messages, in characters."""


def _explain(kind: type[Section], mistake: Any) -> str:
    """One line: key, value, reason and, for an unknown key, the nearest valid one."""
    location = mistake["loc"]
    key = ".".join(str(part)[:_LONGEST_KEY] for part in location) or "(whole file)"
    if mistake["type"] == "extra_forbidden":
        valid = _keys_at(kind, location[:-1])
        near = difflib.get_close_matches(str(location[-1])[:_LONGEST_KEY], valid, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys here: {', '.join(valid)}"
        return f"{key}: unknown key; {hint}"
    if mistake["type"] in ("model_type", "dict_type"):
        return f"{key}: expected `key: value` lines, found {shown(mistake['input'])}"
    if mistake["type"] == "missing":
        return f"{key}: missing; it has no default"
    reason = str(mistake["msg"]).removeprefix("Value error, ")
    value = mistake["input"]
    found = "" if isinstance(value, (dict, list, BaseModel)) else f" = {shown(value)}"
    if mistake["type"] == "string_type" and not isinstance(value, (dict, list)):
        reason += "; put it in quotes"
    return f"{key}{found}: {reason[0].lower() + reason[1:]}"


def _keys_at(kind: type[Section], location: tuple[Any, ...]) -> list[str]:
    """The valid keys of the section at `location`."""
    section: Any = kind
    for part in location:
        if isinstance(part, int):
            continue
        section = section.model_fields[part].annotation
        arguments = getattr(section, "__args__", None)
        if arguments:
            section = arguments[0]
    return sorted(section.model_fields)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as people mean it: duplicate keys are mistakes, and only what looks like a number or a truth value is one.

    YAML 1.1 silently takes the last of two keys, 010 for 8, 1:30 for 90, `no` for false, and 2024-01-01 for a date.
    Here these are text. Where a number or a truth value is expected, 010 is ten and `no` is false.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.tag.replace(_PREFIX, '!!')} cannot be {shown(node.value)}", node.start_mark
            ) from error

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and _HALF.search(value):
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown(value)} holds half of a character (\\ud800 to \\udfff)", node.start_mark
            )
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == _PREFIX + "merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key is text, and this one is {shown(key)}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key}` appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_MERGED:
            raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)


_HALF = re.compile("[\ud800-\udfff]")
_MOST_MERGED = 1_000
"""Merges of merges double with each line."""
_PREFIX = "tag:yaml.org,2002:"


def _refuse_tag(_: yaml.SafeLoader, node: yaml.Node) -> None:
    tag = shown(node.tag.replace(_PREFIX, "!!"))
    raise yaml.constructor.ConstructorError(None, None, f"{tag} means nothing here: write the value", node.start_mark)


_UniqueKeyLoader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is not None and tag.removeprefix(_PREFIX) in ("null", "bool", "int", "float", "str", "seq", "map")
} | {None: _refuse_tag}
"""No key takes a date, bytes or a set."""
_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_RESOLVED = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]{0,39}|0x[0-9a-fA-F][0-9a-fA-F_]{0,39})", "-+0123456789"),
    "float": (_FLOAT, "-+0123456789."),
}
"""What a plain word is, and the characters that it begins with."""
_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_PREFIX) not in {*_RESOLVED, "timestamp"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_pattern, _first) in _RESOLVED.items():
    _UniqueKeyLoader.add_implicit_resolver(_PREFIX + _kind, re.compile(rf"(?:{_pattern})\Z"), list(_first))
