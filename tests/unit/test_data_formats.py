"""Formats and packings: every shape that real files have, and clear messages for wrong ones."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.config import Source
from svitlo.data.formats import Text, raw_documents
from svitlo.data.formats.alpaca import Instruction
from svitlo.data.formats.squad import Question
from svitlo.data.formats.text import LONGEST_DOCUMENT
from svitlo.data.rawfiles import find_files
from svitlo.data.sources import FileDocuments, KnownDigests
from svitlo.errors import DataError

ENGLISH = "The sun is a star and it is the centre of the system that we live in. "


def read(format_name: str, content: str | bytes, **options: object) -> list[Any]:
    source = Source(name="s", format=format_name, files=["x"], **options)  # type: ignore[arg-type]
    data = content.encode() if isinstance(content, str) else content
    return [raw.content for raw in raw_documents(source, "file.x", io.BufferedReader(io.BytesIO(data)))]  # type: ignore[arg-type]


def documents(folder: Path, format_name: str, *patterns: str, **options: object) -> list[Any]:
    source = Source(name="s", format=format_name, files=list(patterns), **options)  # type: ignore[arg-type]
    files = FileDocuments(source, find_files(source, folder, lambda _: None).files, KnownDigests({}))
    return [found.raw.content for found in files.read(0, 0)]


# --- text


def test_text_blocks() -> None:
    content = "Sun\nThe sun is a star.\n\n\nMoon\nIt is smaller.\nHeading.\n \t\nLast\nNo line end"
    assert read("text", content) == [
        Text("", "Sun\nThe sun is a star."),
        Text("", "Moon\nIt is smaller.\nHeading."),
        Text("", "Last\nNo line end"),
    ]


def test_text_with_byte_order_mark_and_windows_line_ends() -> None:
    assert read("text", b"\xef\xbb\xbfSun\r\nstar\r\n\r\nMoon\r\n") == [Text("", "Sun\nstar"), Text("", "Moon")]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet="ab \n", max_size=30), max_size=8), st.integers(1, 7))
def test_text_blocks_do_not_depend_on_how_the_file_is_read(blocks: list[str], size: int) -> None:
    from svitlo.data.formats import text

    content = "\n\n".join(blocks)
    whole = read("text", content)
    before = text.BLOCK_CHARACTERS
    text.BLOCK_CHARACTERS = size
    try:
        assert read("text", content) == whole
    finally:
        text.BLOCK_CHARACTERS = before


def test_one_enormous_line_is_cut_at_sentences_in_bounded_memory() -> None:
    class Endless(io.RawIOBase):
        """20 MB on one line, made while it is read."""

        left = 20_000_000
        sentence = ENGLISH.encode()
        place = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            count = min(len(buffer), self.left)
            data = (self.sentence * (count // len(self.sentence) + 2))[self.place : self.place + count]
            buffer[:count] = data
            self.place = (self.place + count) % len(self.sentence)
            self.left -= count
            return count

    source = Source(name="s", format="text", files=["x"])
    tracemalloc.start()
    parts, total = 0, 0
    for raw in raw_documents(source, "file.x", io.BufferedReader(Endless())):
        body = raw.content.body
        assert len(body) <= LONGEST_DOCUMENT
        parts += 1
        total += len(body) + 1  # the space after it
        if total < 19_000_000:
            assert body.endswith("live in.")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert abs(total - 20_000_000) <= 1
    assert parts > 1_000
    assert peak < 8_000_000


def test_line_without_any_space_is_cut_too() -> None:
    parts = read("text", "x" * (LONGEST_DOCUMENT * 2))
    assert sum(len(part.body) for part in parts) == LONGEST_DOCUMENT * 2


# --- WikiExtractor and JSON


def test_wikiextractor_documents() -> None:
    content = (
        '<doc id="12" url="https://en.example.org/wiki?curid=12" title="Anarchism">\nAnarchism\n\nIt is an idea.\n'
        "Demography.\nPeople.\n\n</doc>\n"
        '<doc id="56" url="?curid=56" title="R&amp;B &quot;x&quot;">\nR&amp;B &quot;x&quot;\n\n\n\n</doc>\n'
    )
    first, second = read("wikiextractor", content)
    assert isinstance(first, Text)
    assert (first.title, first.body.strip()) == ("Anarchism", "It is an idea.\nDemography.\nPeople.")
    assert isinstance(second, Text)
    assert (second.title, second.body.strip()) == ("R&amp;B &quot;x&quot;", "")


def test_wikiextractor_json_lines() -> None:
    record = {"id": "12", "url": "u", "title": "Autism", "text": "Autism\n\nAutism is a condition.\n"}
    (document,) = read("wikiextractor", json.dumps(record) + "\n")
    assert document == Text("Autism", "\nAutism is a condition.\n")


def test_wikiextractor_cut_short() -> None:
    with pytest.raises(DataError, match="cut short"):
        read("wikiextractor", '<doc id="1" url="u" title="T">\nT\n\ntext')


def test_jsonl_fields() -> None:
    content = '{"body": "One.", "name": "A"}\n\n{"body": "Two.", "name": null}\n'
    assert read("jsonl", content, field="body", title_field="name") == [Text("A", "One."), Text("", "Two.")]
    with pytest.raises(DataError, match=r"no field `text`; its fields are: body, name"):
        read("jsonl", content)
    with pytest.raises(DataError, match="should be text and is int"):
        read("jsonl", '{"text": 5}')


@pytest.mark.parametrize(
    "content", ['[{"instruction": "a", "input": "", "output": "b"}', '[{"instruction": "a', "[nonsense]"]
)
def test_broken_json_shows_what_was_seen(content: str) -> None:
    with pytest.raises(DataError, match=r"file\.x: not valid JSON"):
        read("alpaca", content)


# --- conversations


def squad_file(**paragraph: object) -> dict[str, object]:
    return {"version": "v2.0", "data": [{"title": "Saint_Barth%C3%A9lemy", "paragraphs": [paragraph]}]}


def test_squad_versions_and_key_orders() -> None:
    answers = [{"text": "1847", "answer_start": 4}, {"text": "in 1847", "answer_start": 1}]
    qas = [
        {"question": "When?", "id": "a", "answers": answers},
        {"question": "Why?", "id": "b", "answers": [], "is_impossible": True,
         "plausible_answers": [{"text": "1847", "answer_start": 4}]},
        {"question": "Who?", "id": "c", "answers": []},
    ]  # fmt: skip
    for content in (
        squad_file(qas=qas, context="in\n 1847"),
        dict(reversed(squad_file(context="in\n 1847", qas=qas).items())),
    ):
        first, second, third = read("squad", json.dumps(content, indent=1))
        assert isinstance(first, Question)
        assert (first.title, first.answer, first.answer_start, first.is_impossible) == (
            "Saint Barthélemy", "1847", 4, None,
        )  # fmt: skip
        assert isinstance(second, Question)
        assert (second.answer, second.is_impossible) == (None, True)
        assert isinstance(third, Question)
        assert (third.answer, third.is_impossible) == (None, None)


def test_dialogue_lines_end_with_the_marker() -> None:
    content = "Hello . __eou__ Hi . __eou__\nBye . __eou__ See you . __eou__ Yes . __eou__"
    assert read("dailydialog", content) == [["Hello .", "Hi ."], ["Bye .", "See you .", "Yes ."]]
    with pytest.raises(DataError, match="line 2 has no `__eou__`"):
        read("dailydialog", "Hello . __eou__ Hi . __eou__\nplain line\n")


def test_dialogues_in_rows() -> None:
    expected = [["Hello .", "Hi ."]]
    for dialog in (["Hello .", "", " Hi ."], "Hello . __eou__ Hi . __eou__"):
        assert read("dailydialog", json.dumps([{"dialog": dialog, "act": [1, 2]}])) == expected
    with pytest.raises(
        DataError, match=r"file\.x: record 1: the field `dialog` should be a list .* and is text: 'Hello"
    ):
        read("dailydialog", '[{"dialog": "Hello there"}]')
    with pytest.raises(
        DataError, match=r"file\.x: line 2: the field `dialog` should be a list .* and is list: \['a', 5\]"
    ):
        read("dailydialog", '{"dialog": ["a", "b"]}\n{"dialog": ["a", 5]}\n')


def test_control_characters_in_json_do_not_split_records() -> None:
    record = {"instruction": "a\x0bb\u2028c", "input": "", "output": "\x01x"}
    assert read("alpaca", json.dumps([record])) == [Instruction(**record)]


# --- packings

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, "gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize("with_suffix", [True, False])
def test_packed_files(tmp_path: Path, kind: str, with_suffix: bool) -> None:
    name = f"corpus.txt.{kind}" if kind and with_suffix else "corpus"
    (tmp_path / name).write_bytes(PACKINGS[kind](f"Sun\n{ENGLISH}\n\nMoon\n{ENGLISH}".encode()))
    assert len(documents(tmp_path, "text", "corpus*")) == 2


def add(archive: tarfile.TarFile, name: str, content: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content.encode())
    archive.addfile(info, io.BytesIO(content.encode()))


@pytest.mark.parametrize("kind", PACKINGS)
def test_members_of_tar(tmp_path: Path, kind: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        add(archive, "parsed/wiki_00", f"A\n{ENGLISH}")
        add(archive, "parsed/readme.md", "not this")
        add(archive, "parsed/wiki_01", f"B\n{ENGLISH}")
    (tmp_path / f"wiki.tar.{kind}").write_bytes(PACKINGS[kind](packed.getvalue()))
    assert [raw.body[0] for raw in documents(tmp_path, "text", "wiki.tar*::*wiki_*")] == ["A", "B"]
    with pytest.raises(
        DataError, match=r"no member fits `\*\.txt`; the archive holds parsed/wiki_00, parsed/readme.md"
    ):
        documents(tmp_path, "text", "wiki.tar*::*.txt")
    with pytest.raises(DataError, match=r"is a tar archive\. Say which members"):
        documents(tmp_path, "text", "wiki.tar*")
    assert {path.name for path in tmp_path.iterdir()} == {f"wiki.tar.{kind}"}  # nothing is extracted


def test_members_of_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/dialogues_train.txt", "Is it the one you want ? __eou__ It is . __eou__\n")
        archive.writestr("train/dialogues_act_train.txt", "1 2\n")
        archive.writestr("__MACOSX/train/._dialogues_train.txt", "\0\0")
    found = documents(tmp_path, "dailydialog", "**/train.zip::*dialogues_train.txt")
    assert found == [["Is it the one you want ?", "It is ."]]


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2", "zst"])
def test_truncated_file_is_explained(tmp_path: Path, kind: str) -> None:
    lines = "\n\n".join(f"{number} {ENGLISH}" for number in range(20_000))
    packed = PACKINGS[kind](lines.encode())
    (tmp_path / "corpus").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="corpus: damaged or cut short"):
        documents(tmp_path, "text", "corpus")


def test_several_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{path.stem}\n{ENGLISH}")
    assert [raw.body[0] for raw in documents(tmp_path, "text", "**/*.txt", "a.txt")] == ["a", "b", "c"]


def test_missing_files_and_wrong_patterns(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(DataError, match=r"no file fits `absent\.txt`.*In the folder: other\.txt"):
        documents(tmp_path, "text", "absent.txt")
    with pytest.raises(DataError, match="must be a pattern below"):
        documents(tmp_path, "text", "../secret.txt")
    with pytest.raises(DataError, match="neither a zip nor a tar"):
        documents(tmp_path, "text", "other.txt::*.txt")


# --- what looks wrong


@pytest.mark.parametrize(
    ("format_name", "content", "words"),
    [
        ("text", b"%PDF-1.7 \x00\x01", "is a PDF document"),
        ("text", b"PAR1\x15\x00", "looks like parquet"),
        ("text", b"some\x00\x01\x02binary\x03\x04", "not text: 5 control characters"),
        ("text", "UTF-16".encode("utf-16"), "is UTF-16"),
        ("text", b'<doc id="1" url="u" title="T">\n', "looks like wikiextractor"),
        ("text", b'[{"instruction": "a", "output": "b"}]', "looks like alpaca"),
        ("alpaca", b'{"version": 1, "data": [{"title": "x", "paragraphs": []}]}', "looks like squad"),
        ("squad", b'[{"instruction": "a", "output": "b"}]', "looks like alpaca"),
        ("text", b"Hello . __eou__ Hi . __eou__", "looks like dailydialog"),
        ("wikiextractor", b"Sun\nThe sun is a star.\n", "should be `<doc ...>`"),
        ("text", b"", "the file is empty"),
        ("text", b"12 34 56 78 90 !!! ???", "no words"),
        ("text", b"0x1234 9999 8888 ab " * 200, "does not look like text in any language"),
        ("text", "Сонце є зорею, навколо якої рухаються планети. ".encode() * 60, "does not look like English"),
    ],
)
def test_what_looks_wrong_stops_with_the_file_and_what_was_seen(
    tmp_path: Path, format_name: str, content: bytes, words: str
) -> None:
    (tmp_path / "given").write_bytes(content)
    with pytest.raises(DataError, match="given") as caught:
        documents(tmp_path, format_name, "given")
    assert words in str(caught.value)


def test_another_language_on_purpose(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("Сонце є зорею, навколо якої рухаються планети. " * 60)
    assert len(documents(tmp_path, "text", "given", check_language=False)) == 1


def test_digests_of_files_are_remembered_until_they_change(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = Source(name="s", format="text", files=["a.txt"])
    known = KnownDigests({})
    (file,) = find_files(source, tmp_path, lambda _: None).files
    first = known.of(file)
    assert known.of(file) == first == KnownDigests({}).of(file)
    path.write_text("two!")
    assert known.of(file) != first
