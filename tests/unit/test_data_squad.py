"""SQuAD as it is published, as the hub holds it, and as converters leave it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from svitlo.config import Source
from svitlo.data.formats import Raw, raw_documents, to_conversation
from svitlo.data.formats.squad import NOT_IN_TEXT, Question
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import DataError
from tests.hub_server import parquet

CONTEXT = "The old mill stands by the river since 1847."
SOURCE = Source(name="s", format="squad", files=["x"])
ANSWERS = [{"text": "1847", "answer_start": 39}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def raws(content: bytes) -> list[Raw]:
    return list(raw_documents(SOURCE, "q.json", io.BufferedReader(io.BytesIO(content))))  # type: ignore[arg-type]


def read(content: Any) -> list[Question]:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return [raw.content for raw in raws(data)]


def one(record: dict[str, Any]) -> Raw:
    (raw,) = raws(json.dumps([record]).encode())
    return raw


def article(title: str = "Mill", **entry: Any) -> dict[str, Any]:
    question = {"question": "Since when?", "answers": ANSWERS, **entry}
    return {"title": title, "paragraphs": [{"context": CONTEXT, "qas": [question]}]}


def row(**changed: Any) -> dict[str, Any]:
    return {"title": "Mill", "context": CONTEXT, "question": "Since when?", "answers": ANSWERS, **changed}


EXPECTED = Question("Mill", CONTEXT, "Since when?", "1847", 39, None)


@pytest.mark.parametrize(
    "content",
    [
        {"version": "1", "data": [article()]},
        [article()],
        [row()],
        [row(answers={"text": ["1847", "since 1847"], "answer_start": [39, 33]})],
        (json.dumps(row()) + "\n").encode(),
        (json.dumps({"version": "1", "data": [article()]}) + "\n").encode(),
        json.dumps({"version": "1", "data": [article()]}, indent=1).encode(),
    ],
)
def test_every_layout(content: Any) -> None:
    assert read(content) == [EXPECTED]


def test_rows_of_the_hub() -> None:
    for answers in (ANSWERS, {"text": ["1847"], "answer_start": [39]}):
        assert read(parquet([row(answers=answers)])) == [EXPECTED]
    for nothing in (None, [], {"text": [], "answer_start": []}):
        assert read(parquet([row(answers=nothing)])) == [EXPECTED._replace(answer=None, answer_start=0)]
    with pytest.raises(DataError, match=r"q.json: row 2: article 'Mill', question 'Since when\?': `answers` should be"):
        read(parquet([row(answers=None), row(answers="1847")]))


@pytest.mark.parametrize("start", [39, "39", 39.0, " 39 ", "39.0"])
def test_a_number_is_a_number(start: object) -> None:
    assert read([row(answers=[{"text": "1847", "answer_start": start}])]) == [EXPECTED]


def test_an_answer_that_is_a_number_is_its_text(tokenizer: Tokenizer) -> None:
    for start in (39, None):
        record = row(answers=[{"text": 1847, "answer_start": start}])
        outcome = to_conversation(one(record), tokenizer, 128)
        assert tokenizer.decode(memoryview(outcome.tokens).cast("H").tolist()).endswith("\n1847<|endoftext|>")


@pytest.mark.parametrize(
    ("value", "meant"),
    [("False", False), ("true", True), (0, False), (1, True), (False, False), (1.0, True), (None, None), ("", None)],
)
def test_impossible_means_what_it_says(value: object, meant: bool | None) -> None:
    for content in ([row(is_impossible=value)], {"data": [article(is_impossible=value)]}):
        (found,) = read(content)
        assert found.is_impossible is meant


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (
            [row(is_impossible="perhaps")],
            "question 'Since when?': `is_impossible` should be true or false and is 'perhaps'",
        ),
        ([row(answers=[{"text": "1847", "answer_start": "there"}])], "`answer_start` should be a number of characters"),
        ([row(answers=[{"text": ["1847"], "answer_start": 1}])], "the answer's `text` should be text and is ['1847']"),
        ([row(question=None), row(question=5)], "record 2: the field `question` should be text and is int 5"),
        ([row(context=["a"])], "record 1: the field `context` should be text and is list ['a']"),
        ({"data": [article(), article(is_impossible="perhaps")]}, "record 2: article 'Mill', question 'Since when?'"),
        ({"data": [{"title": "Mill", "paragraphs": [{"qas": []}, {"qas": [{}]}]}]}, "not laid out as SQuAD's"),
        ([{"title": "Mill", "context": "x"}], "no field `question`"),
    ],
)
def test_what_is_wrong_has_its_article_and_question(content: Any, part: str) -> None:
    with pytest.raises(DataError, match=r"^q\.json: record \d: ") as error:
        read(content)
    assert part in str(error.value)


def test_half_a_character_in_a_title(tokenizer: Tokenizer) -> None:
    whole, half = (to_conversation(one(row(title=title)), tokenizer, 128) for title in ("The mill", "The mill \ud83d"))
    assert half.split_digest == whole.split_digest


@pytest.mark.parametrize("start", [-5, -1, 10**9, 3])
def test_a_wrong_place_is_looked_for(tokenizer: Tokenizer, start: int) -> None:
    long = row(context=CONTEXT + " And so on." * 100, answers=[{"text": "1847", "answer_start": start}])
    outcome = to_conversation(one(long), tokenizer, 64)
    assert outcome.changed == "context cut around the answer"


def test_a_place_before_the_beginning_is_none_from_the_end(tokenizer: Tokenizer) -> None:
    long = row(context="And so on. " * 100 + CONTEXT, answers=[{"text": "1847", "answer_start": -5}])
    outcome = to_conversation(one(long), tokenizer, 64)
    assert "since 1847." in tokenizer.decode(memoryview(outcome.tokens).cast("H").tolist())


def test_impossible_has_its_own_reply(tokenizer: Tokenizer) -> None:
    outcome = to_conversation(one(row(is_impossible="true")), tokenizer, 128)
    written = tokenizer.decode(memoryview(outcome.tokens).cast("H").tolist())
    assert written.endswith(f"### Assistant:\n{NOT_IN_TEXT}<|endoftext|>")
