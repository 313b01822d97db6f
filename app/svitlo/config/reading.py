"""YAML files to validated objects, and mistakes to messages.

All mistakes of a file are collected and raised at once, each with file, key, value, reason and, where a key is unknown,
the nearest valid one.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
)

from svitlo.errors import ConfigError


class Section(BaseModel):
    """What all sections share: unknown keys are mistakes, and values never change after they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


AnySection = TypeVar("AnySection", bound=Section)


def load(path: Path, kind: type[AnySection], context: dict[str, Any] | None = None) -> AnySection:
    """Read one file as a section. Raises `ConfigError` with every mistake in it."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: the file is missing. Name the folder that holds it with --config or SVITLO_CONFIG"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) and values is not None:
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(values).__name__} {str(values)[:60]!r}")
    try:
        return kind.model_validate(values or {}, context=context)
    except ValidationError as error:
        mistakes = [_explain(kind, mistake) for mistake in error.errors()]
        heading = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError("\n".join([f"{path}: {heading}", *(f"  {mistake}" for mistake in mistakes)])) from None


def _explain(kind: type[Section], mistake: Any) -> str:
    """One line: key, value, reason and, for an unknown key, the nearest valid one."""
    location = mistake["loc"]
    key = ".".join(str(part) for part in location) or "(whole file)"
    if mistake["type"] == "extra_forbidden":
        valid = _keys_at(kind, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys here: {', '.join(valid)}"
        return f"{key}: unknown key; {hint}"
    if mistake["type"] == "missing":
        return f"{key}: missing; it has no default"
    reason = str(mistake["msg"]).removeprefix("Value error, ")
    value = mistake["input"]
    shown = "" if isinstance(value, (dict, list, BaseModel)) else f" = {value!r}"
    if mistake["type"] == "string_type" and not isinstance(value, (dict, list)):
        reason += "; put it in quotes"
    return f"{key}{shown}: {reason[0].lower() + reason[1:]}"


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

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict, set)):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key is text, and this one is {key!r:.60}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key}` appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_PREFIX = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_RESOLVED = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    "float": (_FLOAT, "-+0123456789."),
}
"""What a plain word is, and the characters that it begins with."""
_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_PREFIX) not in {*_RESOLVED, "timestamp"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_pattern, _first) in _RESOLVED.items():
    _UniqueKeyLoader.add_implicit_resolver(_PREFIX + _kind, re.compile(rf"(?:{_pattern})\Z"), list(_first))
