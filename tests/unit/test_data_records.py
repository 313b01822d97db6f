"""Records of JSON, CSV and Parquet: in little memory, under other names, and with the place of a mistake."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from svitlo.config import Source
from svitlo.data import jsonrecords
from svitlo.data.formats import all_formats, raw_documents
from svitlo.data.formats.alpaca import Instruction
from svitlo.data.formats.messages import Message, Role
from svitlo.data.formats.squad import Question
from svitlo.data.formats.text import Text
from svitlo.data.head import head_of
from svitlo.data.rawfiles import find_files
from svitlo.data.sources import FileDocuments, KnownDigests, checked_stream
from svitlo.errors import DataError


def read(format_name: str, content: bytes, name: str = "file.x", **options: Any) -> list[Any]:
    source = Source(name="s", format=format_name, files=["x"], **options)
    return [raw.content for raw in raw_documents(source, name, io.BufferedReader(io.BytesIO(content)))]  # type: ignore[arg-type]


def documents(folder: Path, format_name: str, pattern: str, **options: Any) -> list[Any]:
    source = Source(name="s", format=format_name, files=[pattern], check_language=False, **options)
    files = FileDocuments(source, find_files(source, folder, print).files, KnownDigests({}))
    return [found.raw.content for found in files.read(0, 0)]


# --- memory


class Endless(io.RawIOBase):
    """A large file, made while it is read."""

    def __init__(self, start: bytes, middle: bytes, count: int, end: bytes) -> None:
        self._parts: Iterator[bytes] = iter([start, *[middle * 1_000] * (count // 1_000), end])
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left and (part := next(self._parts, None)) is not None:
            self._left = part
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


ALPACA = b'{"instruction": "Say it.", "output": "It is in the house."}'
ARTICLE = b'{"title": "T", "paragraphs": [{"context": "It is", "qas": [{"question": "?"}]}]}'


@pytest.mark.parametrize(
    ("name", "start", "record", "end"),
    [
        ("alpaca", b"[", ALPACA + b",\n", ALPACA + b"]"),
        ("alpaca", b"", ALPACA + b"\n", b""),
        ("alpaca", b"instruction,output\n", b'Say it.,"It is in\nthe house."\n', b""),
        ("squad", b'{"data": [', ARTICLE + b",\n", ARTICLE + b"]}"),
    ],
)
def test_a_large_file_is_read_in_little_memory(name: str, start: bytes, record: bytes, end: bytes) -> None:
    source = Source(name="s", format=name, files=["x"])
    tracemalloc.start()
    count = sum(1 for _ in raw_documents(source, "x", io.BufferedReader(Endless(start, record, 40_000, end))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count in (40_000, 40_001)
    assert peak < 8_000_000


def test_a_record_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonrecords, "LONGEST_RECORD", 1 << 20)
    source = Source(name="s", format="alpaca", files=["x"], fields={"instruction": "a", "output": "a"})
    for start, middle in (
        (b'[{"a": "', b"x" * 20),
        (b'[{"a": [', b'"xxxxxxxxxx", '),
        (b'{"a": "b"}\n{"a": "', b"x" * 20),
    ):
        endless = io.BufferedReader(Endless(start, middle, 300_000, b""))
        with pytest.raises(DataError, match="has more than 1 MB"):
            list(raw_documents(source, "x", endless))


# --- CSV


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "instruction,input,output\nSay it.,,\"It is,\nof course.\"\n"),
        ("t.tsv.gz", "instruction\tinput\toutput\nSay it.\t\t\"It is,\nof course.\"\n"),
        ("t.data", "\ufeffoutput;instruction\r\n\"It is,\nof course.\";Say it.\r\n"),
    ],
)  # fmt: skip
def test_csv(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert documents(tmp_path, "alpaca", name) == [Instruction("Say it.", "", "It is,\nof course.")]


def test_csv_as_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,body,name\n1,One.,A\n2,Two.,B\n")
    assert documents(tmp_path, "jsonl", "t.csv", field="body", title_field="name") == [
        Text("A", "One."),
        Text("B", "Two."),
    ]
    with pytest.raises(DataError, match=r"t\.csv: looks like csv, and data\.yaml says `format: text`.*format: jsonl"):
        documents(tmp_path, "text", "t.csv")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("instruction,output\na,b\nc,d,e\n", "line 3: has 3 values and the first line names 2 columns"),
        ("instruction,output\na,b\nc\n", "line 3: has 1 values"),
        ('instruction,output\na,b\n"c"d,e\n', "line 3: not valid CSV"),
        ('instruction,output\na,"never ends\n', "not valid CSV"),
        ("prompt,response\na,b\n", "`fields: {instruction: prompt, output: response}`"),
    ],
)
def test_a_mistake_in_csv_has_its_line(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=r"t\.csv") as error:
        documents(tmp_path, "alpaca", "t.csv")
    assert part in str(error.value)


# --- Parquet

ROWS = [
    {"instruction": f"Say the number {n}.", "input": None, "output": f"It is the number {n}."} for n in range(2_500)
]


@pytest.fixture
def parquet() -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), content)
    return content.getvalue()


def test_parquet(tmp_path: Path, parquet: bytes) -> None:
    expected = [Instruction(row["instruction"], "", row["output"]) for row in ROWS]  # type: ignore[arg-type]
    (tmp_path / "t.parquet").write_bytes(parquet)
    assert documents(tmp_path, "alpaca", "*.parquet") == expected
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a/t.parquet", parquet)
    assert documents(tmp_path, "alpaca", "t.zip::*.parquet") == expected


def test_parquet_of_other_formats(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    assert documents(tmp_path, "messages", "m.parquet") == [
        [Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Hello")]
    ]
    rows = [{"title": "T", "context": "It is", "question": "?", "answers": {"text": ["It"], "answer_start": [0]}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    assert documents(tmp_path, "squad", "q.parquet") == [Question("T", "It is", "?", "It", 0, None)]


def test_nan_in_a_table_is_nothing(tmp_path: Path) -> None:
    rows = [{"instruction": "Say it.", "input": float("nan"), "output": "It is."}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert documents(tmp_path, "alpaca", "t.parquet") == [Instruction("Say it.", "", "It is.")]


def test_parquet_that_cannot_be_read_is_explained(tmp_path: Path, parquet: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(parquet[:-100])
    with pytest.raises(DataError, match=r"t\.parquet: damaged or cut short"):
        documents(tmp_path, "alpaca", "t.parquet")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("t.parquet")
        info.size = len(parquet)
        archive.addfile(info, io.BytesIO(parquet))
    with pytest.raises(DataError, match=r"t\.tar::t\.parquet: a Parquet file is read from its end.*Unpack"):
        documents(tmp_path, "alpaca", "t.tar::*.parquet")
    (tmp_path / "wrong.parquet").write_bytes(parquet)
    with pytest.raises(DataError, match=r"wrong\.parquet: row 1: it has no field `dialog`"):
        documents(tmp_path, "dailydialog", "wrong.parquet")


# --- names of fields


def test_a_map_of_names() -> None:
    content = json.dumps(
        [{"prompt": "Say it.", "response": "It is.", "context": "Now.", "output": "not this"}]
    ).encode()
    names = {"instruction": "prompt", "output": "response", "input": "context"}
    assert read("alpaca", content, fields=names) == [Instruction("Say it.", "Now.", "It is.")]
    content = b"question,passage,name,answers,answer\n"
    assert read("squad", content, fields={"title": "name", "context": "passage"}) == []
    content = json.dumps([{"talk": ["Hello", "Hi"]}]).encode()
    assert read("dailydialog", content, fields={"dialog": "talk"}) == [["Hello", "Hi"]]
    with pytest.raises(DataError, match=r"file\.x: record 1: it has no field `talks`; its fields are: talk "):
        read("dailydialog", content, fields={"dialog": "talks"})


@pytest.mark.parametrize(
    ("name", "record", "proposal"),
    [
        ("alpaca", {"prompt": "a", "response": "b"}, "`fields: {instruction: prompt, output: response}`"),
        ("alpaca", {"Question": "a", "Answer": "b", "context": "c"},
         "`fields: {instruction: Question, output: Answer, input: context}`"),
        ("alpaca", {"instructions": "a", "outputs": "b"}, "`fields: {instruction: instructions, output: outputs}`"),
        ("alpaca", {"dialog": ["a", "b"]}, "`format: dailydialog`"),
        ("dailydialog", {"utterances": ["a", "b"]}, "`fields: {dialog: utterances}`"),
        ("squad", {"id": "1", "passage": "p", "query": "q", "answers": []},
         "`fields: {title: id, context: passage, question: query}`"),
        ("messages", {"chat": []}, "`fields: {messages: chat}`"),
        ("jsonl", {"body": "a"}, "`field: ...`"),
    ],
)  # fmt: skip
def test_the_map_that_would_fit_is_proposed_and_fits(name: str, record: dict[str, object], proposal: str) -> None:
    content = json.dumps([record]).encode()
    with pytest.raises(DataError, match=r"file\.x: record 1: it has no field") as error:
        read(name, content)
    assert proposal in str(error.value)
    if pairs := re.search(r"`fields: \{(.*)\}`", proposal):
        assert read(name, content, fields=dict(pair.split(": ") for pair in pairs[1].split(", ")))


def test_odd_names_of_fields_do_not_break_the_message() -> None:
    with pytest.raises(DataError, match=r"its fields are: a\\nb, \\ufeff \(") as error:
        read("alpaca", json.dumps([{"a\nb": 1, "\ud83d": 2}]).encode())
    assert str(error.value).isprintable()


def test_wrong_types_name_the_place() -> None:
    lines = b'{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": 5}\n'
    with pytest.raises(DataError, match=r"file\.x: line 2: the field `output` should be text and is int 5$"):
        read("alpaca", lines)
    with pytest.raises(DataError, match=r"file\.x: record 2: expected a record with fields, found str 'b'$"):
        read("alpaca", b'[{"instruction": "a", "output": "b"}, "b"]')


# --- what a file looks like


PIECES = [
    b"[", b"]", b"{", b"}", b'"', b'"text"', b":", b",", b"\n", b"1", b"nan", b"\xef\xbb\xbf", b"\xff", b"\\",
    b"<doc id=", b"</doc>", b"PAR1", b"__eou__", b"The lamp", b"\x00",
]  # fmt: skip


@settings(max_examples=300)
@example(b"PAR1\xff")
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
def test_any_file_ends_in_documents_or_in_one_message(content: bytes) -> None:
    head_of("x", content)
    for name in all_formats():
        source = Source(name="s", format=name, files=["x"])
        with contextlib.suppress(DataError):
            stream = io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]
            list(raw_documents(source, "x", checked_stream("x", source, stream)))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'[{"a": 1}, {"a"', "json"),
        (b'{"a": 1}\n{"b": 2}', "json"),
        (b'[Picture: a lamp]\n\n"Lamp": a thing', None),
        (b'["a quotation"]: it begins like an array', None),
        (b'{"a": 1}\n\nis an object, and this is a text about it', None),
        (b"SQLite is a library", None),
    ],
)
def test_a_text_may_begin_like_something_else(tmp_path: Path, content: bytes, kind: str | None) -> None:
    assert head_of("x", content).kind == kind
    (tmp_path / "t").write_bytes(content + b" that is in the house" * 5)
    if kind is None:
        assert documents(tmp_path, "text", "t")


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html>\n<html>", b"<html><body>", b"<mediawiki xmlns=", b'<?xml version="1"?>']
)
def test_markup_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match="markup would be learnt as language"):
        documents(tmp_path, "text", "t")
