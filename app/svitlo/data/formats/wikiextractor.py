"""WikiExtractor's output: one title and text per <doc> ... </doc>, or per JSON line."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

from svitlo.config import Source
from svitlo.data.formats import Text
from svitlo.data.formats.text import RowText
from svitlo.data.head import Head
from svitlo.data.lines import lines_of
from svitlo.errors import DataError
from svitlo.units import printable

_DOC = re.compile(r"<doc\b([^>]*)>")
_DOC_ID = re.compile(r"<doc\s+id=")
_TITLE = re.compile(r'\btitle="(.*?)"(?=\s+\w+=|\s*$)')


class WikiExtractor(RowText):
    examples = ({"title": "Lamp", "text": "The lamp"},)

    def read(self, source: Source, head: Head, stream: io.BufferedReader) -> Iterator[Text]:
        if head.kind == "parquet":
            yield from super().read(source, head, stream)
            return
        title: str | None = None
        lines: list[str] = []
        for number, line in lines_of(head.name, stream):
            if title is None:
                found = _DOC.match(line)
                if found:
                    attribute = _TITLE.search(found[1].rstrip())
                    title, lines = attribute[1] if attribute else "", []
                elif line.startswith("{"):
                    yield _with_markup(_json_article(line, number, head.name), source)
                elif line.strip():
                    raise DataError(
                        f"{head.name}: line {number} should be `<doc ...>` or a JSON object and is "
                        f"{line[:80].strip()!r}. Is the format wikiextractor right for this file?"
                    )
            elif line.startswith("</doc>"):
                yield _with_markup(Text(title, _without_title(title, "".join(lines))), source)
                title = None
            elif _DOC_ID.match(line):
                raise DataError(
                    f"{head.name}: line {number} begins a document ({line[:60].strip()!r}) inside another ({title!r}), "
                    f"whose `</doc>` is missing. Put it there, or extract the dump again"
                )
            else:
                lines.append(line)
        if title is not None:
            raise DataError(
                f"{head.name}: the last document ({title!r}) has no `</doc>`: the file is cut short. Copy it again"
            )

    def looks_like(self, head: Head) -> bool:
        return head.start.startswith("<doc id=") or (head.kind == "json" and {"title", "text"} <= head.fields)


def _with_markup(article: Text, source: Source) -> Text:
    """An article holds markup, unless the source says otherwise. With a title, that goes without saying."""
    return article._replace(markup=source.markup if article.title or source.markup is not None else True)


def _json_article(line: str, number: int, name: str) -> Text:
    try:
        record = json.loads(line)
        return Text(record["title"], _without_title(record["title"], record["text"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(
            printable(
                f"{name}: line {number} should be a JSON object with `title` and `text` and is {line[:80].strip()!r}"
            )
        ) from None


def _without_title(title: str, text: str) -> str:
    """The text without its first line if that repeats the title, as WikiExtractor does."""
    first, _, rest = text.lstrip().partition("\n")
    return rest if first.strip() == title.strip() else text


FORMAT = WikiExtractor()
