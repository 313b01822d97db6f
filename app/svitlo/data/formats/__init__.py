"""Formats: how documents and conversations are laid out in files and rows. Each has one module here, found by its name.

A new format is one new module in this folder that ends with `FORMAT = ...`. Nothing else needs to name it (see
docs/add-a-format.md). Raw documents are the content of the data before cleaning. Files are read in blocks, and records
one at a time.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import io
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from svitlo.config import Source
from svitlo.data.archives import broken_archive_errors
from svitlo.data.head import HEAD_BYTES, Head, head_of
from svitlo.data.instructions import Outcome
from svitlo.data.records import Place, file_records, mapped
from svitlo.data.tokenizer import END_OF_TEXT, Tokenizer
from svitlo.errors import DataError
from svitlo.units import printable, shown


class Raw(NamedTuple):
    """A raw document, and the name of the format that knows what to do with it."""

    format: str
    content: Any
    """`Text` if the format gives text. If it gives conversations, anything that the format understands."""


class Text(NamedTuple):
    """A document of phase 1."""

    title: str
    body: str
    markup: bool | None = None
    """Whether it holds markup, if the source or the format says so."""


class Format(ABC):
    """A format. Its declarations are checked against data.yaml and against the data."""

    gives: ClassVar[Literal["text", "conversations"]]
    """What it provides: phase 1 learns from text, phase 2 from conversations."""
    fields: ClassVar[tuple[str, ...]] = ()
    """The fields that each record must have."""
    optional_fields: ClassVar[tuple[str, ...]] = ()
    """The fields that are used if a record has them."""
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Other names that are accepted for a field."""
    other_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """What else people call the fields. Used to propose a `fields` map."""
    source_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of a source in data.yaml that only this format and others that name them know."""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Valid records. Tests replace any part of them with anything, and expect documents or one clear message."""
    name: str
    """The name of the module."""

    @abstractmethod
    def row(self, source: Source, place: Place, record: dict[str, Any]) -> Any:
        """The content of a record that has all `fields`. Raises `DataError` that begins with `place`."""

    def read(self, source: Source, head: Head, stream: io.BufferedReader) -> Iterator[Any]:
        """The contents of a file. By default it holds records. Override this for other layouts. Raises `DataError`."""
        for place, record in file_records(head, stream, needed_names(self, source)):
            yield self.row(source, place, checked_record(self, source, place, record))

    def looks_like(self, head: Head) -> bool:
        """Whether a file with this head is clearly of this format. A file that no format claims is not rejected."""
        return head.kind == "json" and bool(self.fields) and head.fields.issuperset(self.fields)

    def fields_of(self, source: Source) -> tuple[str, ...]:
        """`fields` for this source."""
        return self.fields

    def to_conversation(self, content: Any, tokenizer: Tokenizer, window: int) -> Outcome:
        """What a content becomes in phase 2: a conversation of at most `window` tokens, or why there is none."""
        raise NotImplementedError(f"the format {self.name} gives text")


@functools.cache
def all_formats() -> dict[str, Format]:
    """All formats by name."""
    formats: dict[str, Format] = {}
    for module in pkgutil.iter_modules(__path__):
        found = importlib.import_module(f"{__name__}.{module.name}").FORMAT
        assert isinstance(found, Format)
        found.name = module.name
        formats[module.name] = found
    return formats


def raw_documents(source: Source, name: str, stream: io.BufferedReader) -> Iterator[Raw]:
    """The documents of one stream of UTF-8, in order. Raises `DataError` that names the file."""
    chosen = all_formats()[source.format]
    try:
        head = head_of(name, stream.peek(HEAD_BYTES)[:HEAD_BYTES])
        for content in chosen.read(source, head, stream):
            yield Raw(chosen.name, content)
    except broken_archive_errors() as error:
        raise DataError(f"{name}: damaged or cut short ({error or type(error).__name__}). Copy it again") from error


def to_conversation(raw: Raw, tokenizer: Tokenizer, window: int) -> Outcome:
    """The conversation in a raw document: at most `window` tokens."""
    outcome = all_formats()[raw.format].to_conversation(raw.content, tokenizer, window)
    if outcome.dropped is None and any(END_OF_TEXT in text for text in texts_in(raw.content)):  # cleaning removes it
        changed = f"{outcome.changed}, and " if outcome.changed else ""
        return outcome._replace(changed=f"{changed}end-of-text markers left out")
    return outcome


def texts_in(content: Any) -> Iterator[str]:
    """All text in a content of any type."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, (list, tuple)):
        for part in content:
            yield from texts_in(part)
    elif isinstance(content, dict):
        yield from texts_in(list(content.values()))


# --- fields ----------------------------------------------------------------------------------------------------------


def needed_names(chosen: Format, source: Source) -> frozenset[str]:
    """The names of the required fields in this source."""
    names = source.fields or {}
    return frozenset(names.get(field, field) for field in chosen.fields_of(source))


def checked_record(chosen: Format, source: Source, place: Place, record: Any) -> dict[str, Any]:
    """The record under the format's names, with all required fields. Raises `DataError`."""
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected a record with fields, found {type(record).__name__} {shown(record)}")
    ours = _ours(chosen, source, record)
    for field in chosen.fields_of(source):
        if field not in ours:
            raise DataError(f"{place}: it has {_problem(chosen, source, ours, list(record))}")
    return ours


def _ours(chosen: Format, source: Source, record: dict[str, Any]) -> dict[str, Any]:
    """The record under the format's names, with the fields that it has."""
    ours = mapped(record, source.fields) if source.fields else record
    for field, aliases in chosen.aliases.items():
        if field not in ours and (alias := next((name for name in aliases if name in ours), None)):
            ours = {**ours, field: ours[alias]}
    return ours


def _problem(chosen: Format, source: Source, record: dict[str, Any], seen: list[str]) -> str | None:
    missing = [field for field in chosen.fields_of(source) if field not in record]
    if not missing:
        return None
    field = missing[0]
    theirs = (source.fields or {}).get(field, field)
    return printable(
        f"no field `{theirs}`; its fields are: {', '.join(str(name)[:40] for name in seen[:20]) or 'none'} (source "
        f"{source.name} in data.yaml, format {source.format}). {_proposal(chosen, source, seen)}"
    )


def _proposal(chosen: Format, source: Source, seen: list[str]) -> str:
    """A `fields` map that would fit, or else another format that would."""
    if chosen.fields_of(source) == chosen.fields:
        fitting = {field: _nearest(field, chosen.other_names.get(field, ()), seen) for field in chosen.fields}
        if all(fitting.values()) and len(set(fitting.values())) == len(fitting):
            for field in chosen.optional_fields:
                if field not in seen and (synonym := _synonym(chosen.other_names.get(field, ()), seen)):
                    fitting[field] = synonym
            pairs = ", ".join(f"{field}: {theirs}" for field, theirs in fitting.items() if field != theirs)
            return f"This would fit: `fields: {{{pairs}}}`"
    for other in all_formats().values():
        if other.gives == chosen.gives and other.fields and set(other.fields) <= set(seen):
            return f"It looks like {other.name}: `format: {other.name}`"
    if chosen.fields_of(source) != chosen.fields:
        return "Name the field with the text: `field: ...`"
    return "Another format may be right, or a map of names: `fields: {ours: theirs}`"


def _nearest(field: str, others: tuple[str, ...], seen: list[str]) -> str | None:
    if field in seen:
        return field
    near = difflib.get_close_matches(field, [str(name) for name in seen], n=1, cutoff=0.75)
    return _synonym(others, seen) or (near[0] if near else None)


def _synonym(others: tuple[str, ...], seen: list[str]) -> str | None:
    by_lower = {str(name).lower(): str(name) for name in reversed(seen)}
    return next((by_lower[other] for other in others if other in by_lower), None)
