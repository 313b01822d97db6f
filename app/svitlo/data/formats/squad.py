"""SQuAD: questions about a context. The reply is the answer, or says that the text does not contain it.

Files hold articles with paragraphs with questions, as published, or rows with one question each, as on the hub.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote

from svitlo.config import Source
from svitlo.data.cleaning import clean_content
from svitlo.data.conversations import render
from svitlo.data.formats import Format, checked_record, needed_names
from svitlo.data.head import Head
from svitlo.data.instructions import Outcome, dropped, outcome_of, too_long
from svitlo.data.records import Place, file_records, is_nothing, text_in
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import DataError
from svitlo.units import shown

NOT_IN_TEXT = "The text does not say."
"""The reply to a question that its context does not answer."""


class Question(NamedTuple):
    """A question about a context."""

    title: str
    context: str
    question: str
    answer: str | None
    """The first answer, or None."""
    answer_start: int
    """Where the answer begins in the context, in characters."""
    is_impossible: bool | None
    """None if the data does not say."""


class Squad(Format):
    gives = "conversations"
    fields = ("title", "context", "question", "answers")
    optional_fields = ("is_impossible",)
    other_names: ClassVar = {
        "title": ("article", "id"),
        "context": ("passage", "paragraph", "text"),
        "question": ("query",),
        "answers": ("answer",),
    }

    examples = (
        {"title": "T", "context": "It is here", "question": "Where?", "is_impossible": False,
         "answers": [{"text": "here", "answer_start": 6}]},
        {"title": "T", "context": "It is", "question": "What?", "answers": {"text": ["It"], "answer_start": [0]}},
        {"data": [{"title": "T", "paragraphs": [{"context": "It is", "qas": [{"question": "What?", "answers": []}]}]}]},
    )  # fmt: skip

    def read(self, source: Source, head: Head, stream: io.BufferedReader) -> Iterator[Question]:
        for place, record in file_records(head, stream, needed_names(self, source), under="data"):
            is_file = isinstance(record, dict) and isinstance(record.get("data"), list)
            for article in record["data"] if is_file else [record]:
                if isinstance(article, dict) and "paragraphs" in article:
                    yield from _questions_of(article, place)
                else:
                    yield self.row(source, place, checked_record(self, source, place, article))

    def row(self, source: Source, place: Place, record: dict[str, Any]) -> Question:
        found = _question(place, record["title"], record["context"], record)
        if found.is_impossible is None and "v2" in (source.hub or ""):
            return found._replace(is_impossible=found.answer is None)  # the hub's copy of v2.0 has no other sign
        return found

    def looks_like(self, head: Head) -> bool:
        return head.kind == "json" and (
            not head.fields.isdisjoint({"paragraphs", "qas"}) or {"context", "answers"} <= head.fields
        )

    def to_conversation(self, content: Question, tokenizer: Tokenizer, window: int) -> Outcome:
        """Cuts a context that is too long at word borders around the answer. The answer always stays whole."""
        question = " ".join(clean_content(content.question).split())
        if not question or not content.context.strip():
            return dropped("no question")
        if content.is_impossible:
            reply, start, end = NOT_IN_TEXT, 0, 0
        elif content.answer is None or not content.answer.strip():
            return dropped("no answer")
        else:
            start = content.answer_start
            if start < 0 or content.context[start : start + len(content.answer)] != content.answer:
                start = content.context.find(content.answer)
                if start < 0:
                    return dropped("the answer is not in the text")
            end = start + len(content.answer)
            reply = clean_content(content.answer)
            if not reply:
                return dropped("no answer")

        contents = [f"{_clean_context(content.context)}\n\n{question}", reply]
        tokens, mask = render(tokenizer, contents)
        changed = None
        if len(mask) > window:
            excerpt: _Excerpt | None = _cut_around(content.context, start, end, len(mask) - window, tokenizer)
            while excerpt is not None:
                contents[0] = f"{_clean_context(excerpt.text)}\n\n{question}"
                tokens, mask = render(tokenizer, contents)
                if len(mask) <= window:
                    break
                excerpt = excerpt.shorter()
            if excerpt is None:
                return too_long(window)
            changed = "context cut around the answer"
        return outcome_of(contents, content.title, tokens, mask, changed)


# --- reading ---------------------------------------------------------------------------------------------------------


def _questions_of(article: dict[str, Any], place: Place) -> Iterator[Question]:
    try:
        title = article["title"]
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                yield _question(place, title, paragraph["context"], {"answers": None, **entry})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{place}: an article is not laid out as SQuAD's (title, paragraphs, context, qas, answers): "
            f"{error!r:.60} in {shown(article)}"
        ) from None


def _question(place: Place, title: Any, context: Any, entry: dict[str, Any]) -> Question:
    where = f"article {shown(title)}, question {shown(entry.get('question'))}"
    answer, start = _first_answer(place, where, entry["answers"])
    return Question(
        title=clean_content(unquote(text_in(place, "title", title)).replace("_", " ")),
        context=text_in(place, "context", context),
        question=text_in(place, "question", entry["question"]),
        answer=answer,
        answer_start=start,
        is_impossible=_is_impossible(place, where, entry.get("is_impossible")),
    )


def _first_answer(place: Place, where: str, answers: Any) -> tuple[str | None, int]:
    """The first of [{text, answer_start}, ...], or of {text: [...], answer_start: [...]}."""
    if is_nothing(answers):
        return None, 0
    if isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        if not answers:
            return None, 0
        text, start = answers[0].get("text"), answers[0].get("answer_start")
    elif isinstance(answers, dict) and isinstance(texts := answers.get("text"), list):
        starts = answers.get("answer_start")
        if not texts:
            return None, 0
        text, start = texts[0], starts[0] if isinstance(starts, list) and starts else None
    else:
        raise DataError(
            f"{place}: {where}: `answers` should be a list of {{text, answer_start}} (or of both lists) and is "
            f"{shown(answers)}"
        )
    return _answer_text(place, where, text), _answer_start(place, where, start)


def _answer_text(place: Place, where: str, text: Any) -> str | None:
    """The text of an answer. Converters that go through a table can turn years into numbers."""
    if is_nothing(text):
        return None
    if isinstance(text, str):
        return text
    if isinstance(text, (int, float, Decimal)) and not isinstance(text, bool):
        return str(text)
    raise DataError(f"{place}: {where}: the answer's `text` should be text and is {shown(text)}")


def _answer_start(place: Place, where: str, start: Any) -> int:
    if is_nothing(start):
        return 0
    try:
        if not isinstance(start, bool) and int(float(start)) == float(start):
            return int(float(start))
    except (ValueError, TypeError, OverflowError):
        pass
    raise DataError(f"{place}: {where}: `answer_start` should be a number of characters and is {shown(start)}")


def _is_impossible(place: Place, where: str, value: Any) -> bool | None:
    if is_nothing(value) or value == "":
        return None
    if isinstance(value, (int, float, Decimal)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _SPOKEN:
        return _SPOKEN[value.strip().lower()]
    raise DataError(f"{place}: {where}: `is_impossible` should be true or false and is {shown(value)}")


_SPOKEN = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


# --- cutting ---------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\S+")


def _clean_context(context: str) -> str:
    return "\n".join(" ".join(line.split()) for line in clean_content(context).splitlines() if line.strip())


class _Excerpt(NamedTuple):
    """Words `first` to `last` of a context; words `needed_first` to `needed_last` must stay."""

    context: str
    words: list[tuple[int, int]]
    first: int
    last: int
    needed_first: int
    needed_last: int

    @property
    def text(self) -> str:
        return self.context[self.words[self.first][0] : self.words[self.last][1]]

    def shorter(self) -> _Excerpt | None:
        """One word less, from the side that has more to spare. None if only the needed words are left."""
        before, after = self.needed_first - self.first, self.last - self.needed_last
        if before == after == 0:
            return None
        return self._replace(first=self.first + 1) if before > after else self._replace(last=self.last - 1)


def _cut_around(context: str, start: int, end: int, excess: int, tokenizer: Tokenizer) -> _Excerpt:
    """The context shortened by about `excess` tokens, first on the side that reaches farther from the answer.

    Without an answer (`start == end`), the beginning stays.
    """
    words = [found.span() for found in _WORD.finditer(context)]
    if start == end:
        needed_first = needed_last = 0
    else:
        needed_first = next(number for number, word in enumerate(words) if word[1] > start)
        needed_last = next(number for number in range(len(words) - 1, -1, -1) if words[number][0] < end)
    excerpt = _Excerpt(context, words, 0, len(words) - 1, needed_first, needed_last)
    sizes = [len(tokenizer.pack(" " + clean_content(context[first:last]))) // 2 for first, last in words]
    while excess > 0 and (cut := excerpt.shorter()) is not None:
        excess -= sizes[excerpt.first] if cut.first > excerpt.first else sizes[excerpt.last]
        excerpt = cut
    return excerpt


FORMAT = Squad()
