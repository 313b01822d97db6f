"""Markup is removed where it is markup: code and manuals stay as they are written."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from svitlo.config import Source, load_data_config
from svitlo.data.cleaning import clean_text
from svitlo.data.formats import Raw, Text, all_formats, raw_documents
from svitlo.data.rawfiles import find_files
from svitlo.data.sources import FileDocuments, KnownDigests
from svitlo.data.tasks import TextTask, clean_document
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import ConfigError, DataError

CODE = "def lamp(people):\n    if people < 0:\n\treturn [[1, 2], [3, 4]]  # '''x'''\n    print('<p>', '&amp;')"
KEPT = CODE.replace("\t", "    ")


def read(content: str, format_name: str = "text", **options: object) -> list[Text]:
    source = Source(name="s", format=format_name, files=["x"], **options)  # type: ignore[arg-type]
    stream = io.BufferedReader(io.BytesIO(content.encode()))  # type: ignore[arg-type]
    return [raw.content for raw in raw_documents(source, "x", stream)]


def test_code_keeps_its_indentation_and_brackets_and_is_counted() -> None:
    (document,) = read(CODE)
    outcome = TextTask(0.1).outcome(Raw("text", document), Tokenizer())
    assert Tokenizer().decode(np.frombuffer(outcome.tokens, dtype="<u2").tolist()) == f"{KEPT}<|endoftext|>"
    assert outcome.changed == "indented text kept as it is"
    (record,) = read('{"text": "a:\\n    b[[1]]"}', "jsonl")
    assert clean_document(record)[0] == "a:\n    b[[1]]"


def test_the_first_line_keeps_its_indentation_too() -> None:
    assert [clean_document(text)[0] for text in read("a:\n    b\n\n    c\n    d\n")] == ["a:\n    b", "    c\n    d"]


@pytest.mark.parametrize(("markup", "text"), [(True, "a b c"), (False, "a  [[b]] <p>c"), (None, "a b <p>c")])
def test_a_source_may_say_what_it_holds(markup: bool | None, text: str) -> None:
    assert [clean_document(found)[0] for found in read("a  [[b]] <p>c", markup=markup)] == [text]
    (row,) = read('{"text": "a  [[b]] <p>c"}', "jsonl", markup=markup)
    assert clean_document(row)[0] == text


def test_articles_are_cleaned_whatever_they_look_like() -> None:
    assert clean_document(Text("Title", "One\n    two [[three]] <source> four"))[0] == "Title\nOne\ntwo three four"
    (article,) = read('<doc id="1" title="">\nOne\n    two [[three]]\n</doc>\n', "wikiextractor")
    assert clean_document(article)[0] == "One\ntwo three"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("write copy <source> <target>;", "write copy <source> <target>"),
        ("when x <b and y> 0 then", "when x <b and y> 0 then"),
        ("<b>bold</b> and <code>code</code> but <code>", "bold and code but"),
        ("one<br>two <ref name=x/> <poem>three", "one two three"),
        ('<section begin="map" />four</section>', "four"),
        ("<small and large> of <small>five</small>", "<small and large> of five"),
    ],
)
def test_a_word_in_brackets_is_no_tag(raw: str, clean: str) -> None:
    assert clean_text(raw, is_markup=False) == clean


@pytest.mark.parametrize("content", ["<html><p>One", "The lamps\n" + "<p>The lamp is <b>here</b>.</p>\n" * 20])
def test_html_is_noticed(tmp_path: Path, content: str) -> None:
    (tmp_path / "t").write_text(content)
    source = Source(name="s", format="text", files=["t"], check_language=False)
    for markup in (None, False):
        source = source.model_copy(update={"markup": markup})
        documents = FileDocuments(source, find_files(source, tmp_path, print).files, KnownDigests({}))
        if markup is None:
            with pytest.raises(DataError, match=r"t: (is an HTML page|holds HTML).*`pandoc -t plain`"):
                list(documents.read(0, 0))
        else:
            assert list(documents.read(0, 0))


def test_a_key_that_the_format_does_not_know_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(
        "phase1: {sources: [{name: a, format: jsonl, files: [a], documents: lines}]}\n"
        "phase2: {sources: [{name: b, format: alpaca, files: [b], markup: true}]}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_data_config(tmp_path, all_formats())
    assert "documents = 'lines': format jsonl does not use it, only text" in str(caught.value)
    assert "markup = True: format alpaca does not use it, only jsonl, text, wikiextractor" in str(caught.value)


@pytest.mark.parametrize(
    ("member", "kind"),
    [("word/document.xml", "a Word document"), ("xl/workbook.xml", "an Excel"), ("content.xml", "an OpenDocument"),
     ("META-INF/container.xml", "an e-book"), ("ppt/slides/1.xml", "a PowerPoint")],
)  # fmt: skip
def test_documents_of_other_programs_are_called_by_their_name(tmp_path: Path, member: str, kind: str) -> None:
    with zipfile.ZipFile(tmp_path / "t.x", "w") as archive:
        archive.writestr("mimetype", "x")
        archive.writestr(member, "<x/>")
    source = Source(name="s", format="text", files=["t.x"])
    documents = FileDocuments(source, find_files(source, tmp_path, print).files, KnownDigests({}))
    with pytest.raises(DataError, match=f"t.x: is {kind}.*Save it as plain text"):
        list(documents.read(0, 0))


def test_a_document_that_begins_inside_another_is_an_error_with_its_line() -> None:
    content = '<doc id="1" title="One">\nText\n<doc id="2" title="Two">\nText\n</doc>\n'
    with pytest.raises(DataError, match=r"x: line 3 begins a document .* inside another \('One'\)"):
        read(content, "wikiextractor")
