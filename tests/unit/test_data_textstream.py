"""Files are read as UTF-8, whatever they were written in, and nothing that is not text gets through unseen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from svitlo.config import Source, load_data_config
from svitlo.data.formats import all_formats
from svitlo.data.rawfiles import find_files
from svitlo.data.sources import FileDocuments, KnownDigests
from svitlo.data.textstream import utf8_stream
from svitlo.errors import ConfigError, DataError

UKRAINIAN = "Річ номер {} є невеликим предметом, який люди тримають удома. Вона має колір, вагу і її хтось зробив.\n\n"
TEXT = "".join(map(UKRAINIAN.format, range(60)))


def bodies(folder: Path, content: bytes, format_name: str = "text", **options: Any) -> list[Any]:
    (folder / "t.x").write_bytes(content)
    source = Source(name="s", format=format_name, files=["t.x"], check_language=False, **options)
    files = find_files(source, folder, lambda _: None).files
    return [found.raw.content for found in FileDocuments(source, files, KnownDigests({})).read(0, 0)]


def utf8(content: bytes, encoding: str | None = None) -> bytes:
    return utf8_stream("t.x", io.BufferedReader(io.BytesIO(content)), encoding, "s").read()  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["cp1251", "koi8_u", "utf-16", "utf-16-le"])
def test_the_message_names_the_encoding_that_fits_and_saying_it_helps(tmp_path: Path, encoding: str) -> None:
    content = TEXT.encode(encoding)
    with pytest.raises(DataError, match=rf"t\.x: .*`encoding: {encoding}`") as caught:
        bodies(tmp_path, content)
    if encoding != "utf-16":
        assert "Річ номер" in str(caught.value)
    assert bodies(tmp_path, content, encoding=encoding) == bodies(tmp_path, TEXT.encode())


def test_a_damaged_place_in_utf8_is_named_by_its_line_and_byte(tmp_path: Path) -> None:
    content = TEXT.encode() * 40
    at = content.index(b"\n", 200_000) + 1
    line = content[:at].count(b"\n") + 1
    with pytest.raises(DataError, match=rf"line {line:,} \(byte {at:,}, .*damaged"):
        bodies(tmp_path, content[:at] + b"\xff" + content[at:])
    with pytest.raises(DataError, match="damaged"):
        bodies(tmp_path, content.rstrip() + "і".encode()[:1])


def test_bytes_that_the_named_encoding_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1 .*is not utf-8 text.*cp1251.*`encoding` of the source s"):
        bodies(tmp_path, TEXT.encode("cp1251"), encoding="utf-8")


def test_records_may_be_in_another_encoding(tmp_path: Path) -> None:
    rows = [f'{{"text": "{line}"}}' for line in TEXT.split("\n\n") if line]
    found = bodies(tmp_path, "\n".join(rows).encode("utf-16"), "jsonl", encoding="utf-16")
    assert found == bodies(tmp_path, "\n".join(rows).encode(), "jsonl")
    with pytest.raises(DataError, match="Parquet file, whose text needs no `encoding`"):
        bodies(tmp_path, b"PAR1....", "jsonl", encoding="cp1251")


@pytest.mark.parametrize(
    ("name", "hint"), [("cp12511", "did you mean `cp125"), ("rot13", "no such"), ("idna", "not for")]
)
def test_wrong_names_of_encodings_are_mistakes_of_the_configuration(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / "data.yaml").write_text(
        f"phase1: {{sources: [{{name: a, format: text, files: [a], encoding: {name}}}]}}\n"
        "phase2: {sources: [{name: b, format: alpaca, files: [b]}]}\n"
    )
    with pytest.raises(ConfigError, match=rf"sources\.0\.encoding = '{name}': .*{hint}"):
        load_data_config(tmp_path, all_formats())


def test_an_encoding_that_is_not_set_is_not_recorded() -> None:
    assert "encoding" not in Source(name="s", format="text", files=["a"]).model_dump(mode="json")


@pytest.mark.parametrize("size", [1, 3, 70_000])
def test_marks_and_line_ends_are_put_right_wherever_blocks_end(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("svitlo.data.textstream.HEAD_BYTES", size)
    content = "\ufeffone\r\r\ntwo\n\ufeffthree\ufeff four\r\rfive\r\n\r\r\n\r\n"
    assert utf8(content.encode()).decode() == "one\ntwo\nthree\ufeff four\r\rfive\r\n\n\r\n"


@pytest.mark.parametrize("at", [10, 65_530, 65_536, 200_001])
def test_a_row_of_zeros_anywhere_is_refused_with_its_place(at: int) -> None:
    content = b"The lamp is here.\n" * 20_000
    with pytest.raises(DataError, match=rf"zero bytes at byte {at:,} \(line {at // 18 + 1:,}\).*Copy or download"):
        utf8(content[:at] + bytes(4096) + content[at + 4096 :])
