"""Plain text: one document per block of lines between blank lines or end-of-text markers. In rows, one per row.

A very long document (a corpus on one line) is cut at sentence ends. This bounds memory, and lets a part of the text be
used for validation.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, ClassVar, TextIO

from svitlo.config import Source
from svitlo.data.formats import Format, Text
from svitlo.data.head import Head
from svitlo.data.records import Place, text_in
from svitlo.data.tokenizer import END_OF_TEXT
from svitlo.errors import DataError

BLOCK_CHARACTERS = 1 << 18
LONGEST_DOCUMENT = 1 << 18
"""In characters. Anything longer is not an article and is cut."""
PART_CHARACTERS = 1 << 14
"""The approximate length of the parts."""

_BLANK_LINES = re.compile(r"\n\s*\n")
_BLANK_START = re.compile(r"(?:[^\S\n]*\n)+")
_LINE_ENDS = re.compile(r"\n")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]* ")
_SENTENCE_OR_LINE_END = re.compile(r"[.!?][\"')\]]* |\n")


class RowText(Format):
    """Shared by formats with one text field in each record."""

    gives = "text"
    source_keys: ClassVar[tuple[str, ...]] = ("markup",)
    examples = ({"text": "The lamp"},)

    def fields_of(self, source: Source) -> tuple[str, ...]:
        return (source.field, source.title_field) if source.title_field else (source.field,)

    def row(self, source: Source, place: Place, record: dict[str, Any]) -> Text:
        title = text_in(place, source.title_field, record[source.title_field]) if source.title_field else ""
        return Text(title, text_in(place, source.field, record[source.field]), source.markup)


class PlainText(RowText):
    source_keys = ("markup", "documents", "longest_document")

    def read(self, source: Source, head: Head, stream: io.BufferedReader) -> Iterator[Text]:
        if head.kind is not None and source.hub is not None:  # there, text is a field of records
            yield from super().read(source, head, stream)
            return
        if head.kind is not None:
            raise DataError(
                f"{head.name}: looks like {head.kind}, and data.yaml says `format: {source.format}`. It begins with "
                f"{head.start[:60]!r}. Records with text in a field are `format: jsonl`"
            )
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline=None)
        try:
            separator = _LINE_ENDS if source.documents == "lines" else _BLANK_LINES
            for body in _documents(text, separator, source.longest_document or LONGEST_DOCUMENT):
                yield Text("", body, source.markup)
        finally:
            if not text.closed:
                text.detach()  # the stream belongs to the archive


def _documents(text: TextIO, separator: re.Pattern[str], longest: int) -> Iterator[str]:
    rest = ""
    while block := text.read(BLOCK_CHARACTERS):
        rest += block
        if END_OF_TEXT in rest:  # the form that GPT-2's tools write: it ends a document, as a blank line does
            rest = rest.replace(END_OF_TEXT, "\n\n")
        *complete, rest = separator.split(rest)
        for document in complete:
            yield from _cut_if_long(document, longest)
        while len(rest) > longest:
            part, rest = _cut(rest, longest)
            yield part.strip()
    yield from _cut_if_long(rest, longest)


def _cut_if_long(document: str, longest: int) -> Iterator[str]:
    while len(document) > longest:
        part, document = _cut(document, longest)
        yield part.strip()
    document = document.rstrip()
    if blank := _BLANK_START.match(document):
        document = document[blank.end() :]
    if not document.startswith(("  ", "\t")):  # the indentation of the first line stays
        document = document.strip()
    if document:
        yield document


def _cut(text: str, longest: int) -> tuple[str, str]:
    """A part of about `PART_CHARACTERS` (at most `longest`) that ends with a sentence or else a word, and the rest."""
    size = min(longest, PART_CHARACTERS)
    sentence_end = _SENTENCE_END if longest > PART_CHARACTERS else _SENTENCE_OR_LINE_END
    ends = [found.end() for found in sentence_end.finditer(text, size // 2, size)]
    position = ends[-1] if ends else text.rfind(" ", 1, size) + 1
    position = position or size
    return text[:position], text[position:]


FORMAT = PlainText()
