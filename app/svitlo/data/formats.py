"""Streams of bytes to raw documents: what stands in a file, not yet cleaned.

    text            (title "", text) for each block of lines between blank lines; a document that is very long (a corpus
                    on one line) is cut at sentence ends, so that memory stays bounded and some of it can validate
    wikiextractor   (title, text) for each <doc> ... </doc>, or for each JSON line
    jsonl           (title or "", text) from the named fields
    alpaca          {"instruction", "input", "output"}
    squad           a `Question`
    dailydialog     the utterances of a dialogue

Rows of a data set on the hub give the same raw documents. Files are read in blocks and records one at a time.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO
from urllib.parse import unquote

from svitlo.config import Source
from svitlo.data.archives import broken_archive_errors
from svitlo.data.jsonstream import NotJson, json_values
from svitlo.errors import DataError

BLOCK_CHARACTERS = 1 << 18
LONGEST_DOCUMENT = 1 << 18
"""Characters; what is longer is no article and is cut."""
PART_CHARACTERS = 1 << 14
"""About so long are the parts of what is cut."""
LONGEST_LINE = 64 << 20


class Text(NamedTuple):
    title: str
    body: str


class Question(NamedTuple):
    """A question of SQuAD about a context."""

    title: str
    context: str
    question: str
    answer: str | None
    """The first answer; None where there is none."""
    answer_start: int
    """Where the answer stands in the context, in characters."""
    is_impossible: bool | None
    """None where the data does not say."""


Raw = Text | Question | dict[str, str] | list[str]


def raw_documents(source: Source, name: str, stream: io.BufferedReader) -> Iterator[Raw]:
    """The documents of one stream, in order. Raises `DataError` that names the file and shows what was seen."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline=None)
    try:
        if source.format == "text":
            yield from _plain_documents(text)
        elif source.format == "wikiextractor":
            yield from _wikiextractor_documents(text, name)
        elif source.format == "jsonl" or source.format == "alpaca":
            for record in json_values(text):
                yield row_document(source, name, record)
        elif source.format == "squad":
            for article in json_values(text, inside_data=True):
                yield from _squad_questions(article, name)
        else:
            yield from _release_dialogues(text, name)
    except UnicodeDecodeError as error:
        seen = error.object[max(0, error.start - 20) : error.start + 20]
        raise DataError(
            f"{name}: not UTF-8 text ({error.reason}, near {seen!r}). Convert the file to UTF-8, for example with "
            f"`iconv -f WINDOWS-1252 -t UTF-8`, or remove it from the source {source.name}"
        ) from None
    except NotJson as error:
        raise DataError(f"{name}: not the JSON that format {source.format} needs: {error}") from None
    except broken_archive_errors() as error:
        raise DataError(f"{name}: damaged or cut short ({error or type(error).__name__}). Copy it again") from error
    finally:
        if not text.closed:
            text.detach()  # the stream belongs to the archive


# --- plain text ------------------------------------------------------------------------------------------------------

_BLANK_LINES = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]* ")


def _plain_documents(text: TextIO) -> Iterator[Text]:
    rest = ""
    while block := text.read(BLOCK_CHARACTERS):
        *complete, rest = _BLANK_LINES.split(rest + block)
        for document in complete:
            yield from _cut_if_long(document)
        while len(rest) > LONGEST_DOCUMENT:
            part, rest = _cut(rest)
            yield Text("", part.strip())
    yield from _cut_if_long(rest)


def _cut_if_long(document: str) -> Iterator[Text]:
    while len(document) > LONGEST_DOCUMENT:
        part, document = _cut(document)
        yield Text("", part.strip())
    document = document.strip()
    if document:
        yield Text("", document)


def _cut(text: str) -> tuple[str, str]:
    """A part of about `PART_CHARACTERS` that ends with a sentence, else with a word, and the rest."""
    ends = [found.end() for found in _SENTENCE_END.finditer(text, PART_CHARACTERS // 2, PART_CHARACTERS)]
    position = ends[-1] if ends else text.rfind(" ", 1, PART_CHARACTERS) + 1
    position = position or PART_CHARACTERS
    return text[:position], text[position:]


# --- WikiExtractor ---------------------------------------------------------------------------------------------------

_DOC = re.compile(r"<doc\b([^>]*)>")
_TITLE = re.compile(r'\btitle="(.*?)"(?=\s+\w+=|\s*$)')


def _wikiextractor_documents(text: TextIO, name: str) -> Iterator[Text]:
    title: str | None = None
    lines: list[str] = []
    for number, line in enumerate(_lines(text, name), start=1):
        if title is None:
            found = _DOC.match(line)
            if found:
                attribute = _TITLE.search(found[1].rstrip())
                title, lines = attribute[1] if attribute else "", []
            elif line.startswith("{"):
                yield _json_article(line, number, name)
            elif line.strip():
                raise DataError(
                    f"{name}: line {number} should be `<doc ...>` or a JSON object and is {line[:80].strip()!r}. Is "
                    f"the format wikiextractor right for this file?"
                )
        elif line.startswith("</doc>"):
            yield Text(title, _without_title(title, "".join(lines)))
            title = None
        else:
            lines.append(line)
    if title is not None:
        raise DataError(f"{name}: the last document ({title!r}) has no `</doc>`: the file is cut short. Copy it again")


def _json_article(line: str, number: int, name: str) -> Text:
    try:
        record = json.loads(line)
        return Text(record["title"], _without_title(record["title"], record["text"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{name}: line {number} should be a JSON object with `title` and `text` and is {line[:80].strip()!r}"
        ) from None


def _without_title(title: str, text: str) -> str:
    """WikiExtractor repeats the title as the first line."""
    first, _, rest = text.lstrip().partition("\n")
    return rest if first.strip() == title.strip() else text


def _lines(text: TextIO, name: str) -> Iterator[str]:
    while line := text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise DataError(f"{name}: a line has more than {LONGEST_LINE >> 20} MB, so the format is another one")
        yield line


# --- conversations ---------------------------------------------------------------------------------------------------


def _squad_questions(article: Any, name: str) -> Iterator[Question]:
    try:
        title = _readable_title(article["title"])
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                answers = entry.get("answers") or []
                first = answers[0] if answers else None
                yield Question(
                    title=title,
                    context=paragraph["context"],
                    question=entry["question"],
                    answer=first["text"] if first else None,
                    answer_start=first["answer_start"] if first else 0,
                    is_impossible=entry.get("is_impossible"),
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{name}: an article is not laid out as SQuAD's (title, paragraphs, context, qas, answers): "
            f"{error!r} in {str(article)[:80]!r}"
        ) from None


def _readable_title(title: str) -> str:
    return unquote(title).replace("_", " ")


_END_OF_UTTERANCE = "__eou__"


def _release_dialogues(text: TextIO, name: str) -> Iterator[list[str]]:
    for number, line in enumerate(_lines(text, name), start=1):
        if not line.strip():
            continue
        if _END_OF_UTTERANCE not in line:
            raise DataError(
                f"{name}: line {number} has no `{_END_OF_UTTERANCE}` between its utterances: {line[:80].strip()!r}. "
                f"Is the format dailydialog right for this file?"
            )
        yield [utterance for utterance in map(str.strip, line.split(_END_OF_UTTERANCE)) if utterance]


# --- rows ------------------------------------------------------------------------------------------------------------


def needed_fields(source: Source) -> list[str]:
    """The fields that a row of this source must have."""
    if source.format == "alpaca":
        return ["instruction", "input", "output"]
    if source.format == "squad":
        return ["title", "context", "question", "answers"]
    if source.format == "dailydialog":
        return ["dialog"]
    return [source.field, *([source.title_field] if source.title_field else [])]


def row_document(source: Source, name: str, row: Any) -> Raw:
    """One JSON record, or one row of a data set on the hub, as a raw document. Raises `DataError`."""
    if not isinstance(row, dict):
        raise DataError(f"{name}: expected records with fields, found {type(row).__name__} {str(row)[:60]!r}")
    fields = needed_fields(source)
    missing = [field for field in fields if field not in row and not (source.format == "alpaca" and field == "input")]
    if missing:
        which = "set `field`" if source.format in ("jsonl", "text", "wikiextractor") else "another format may be right"
        raise DataError(
            f"{name}: a record has no field `{missing[0]}`; its fields are: {', '.join(map(str, row)) or 'none'} "
            f"(source {source.name} in data.yaml, format {source.format}: {which})"
        )
    if source.format == "squad":
        return _question_of_row(source, row)
    if source.format == "dailydialog":
        return [str(utterance).strip() for utterance in row["dialog"] if str(utterance).strip()]
    values = {field: row.get(field) or "" for field in fields}
    for field, value in values.items():
        if not isinstance(value, str):
            raise DataError(f"{name}: the field `{field}` should be text and is {type(value).__name__} {value!r:.60}")
    if source.format == "alpaca":
        return values
    return Text(values.get(source.title_field or "", ""), values[source.field])


def _question_of_row(source: Source, row: dict[str, Any]) -> Question:
    answers = row["answers"]
    texts, starts = list(answers["text"]), list(answers["answer_start"])
    is_impossible = row.get("is_impossible")
    if is_impossible is None and "v2" in (source.hub or ""):
        is_impossible = not texts  # the hub's copy of v2.0 says it in this way only
    return Question(
        title=_readable_title(row["title"]),
        context=row["context"],
        question=row["question"],
        answer=texts[0] if texts else None,
        answer_start=int(starts[0]) if starts else 0,
        is_impossible=is_impossible,
    )
