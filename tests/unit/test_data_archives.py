"""Archives: nothing in them is skipped silently, and unreadable parts are named with the remedy."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.config import Source
from svitlo.data.rawfiles import find_files
from svitlo.data.sources import FileDocuments, KnownDigests
from svitlo.errors import DataError

TEXT = "The mill is by the river and it is old. "


def titles(folder: Path, pattern: str, said: list[str] | None = None) -> list[str]:
    """The first words of the documents."""
    source = Source(name="s", format="text", files=[pattern])
    announce = (lambda _: None) if said is None else said.append
    files = FileDocuments(source, find_files(source, folder, announce).files, KnownDigests({}))
    return [found.raw.content.body.split()[0] for found in files.read(0, 0)]


def tar(*names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in names:
            data = f"{name} {TEXT}".encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


# --- tar


def test_joined_archives_are_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar("a.txt", "b.txt") + tar("c.txt"))
    assert titles(tmp_path, "t.tar::*.txt") == ["a.txt", "b.txt", "c.txt"]
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(tar("a.txt")) + gzip.compress(tar("b.txt")))
    assert titles(tmp_path, "t.tar.gz::*.txt") == ["a.txt", "b.txt"]


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    content = bytearray(tar("a.txt", "b.txt", "c.txt"))
    content[1024 + 100 : 1024 + 108] = b"damaged!"
    (tmp_path / "t.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.tar: damaged or cut short \(.*at byte 1,024 of the tar archive\)"):
        titles(tmp_path, "t.tar::*.txt")


@pytest.mark.parametrize("length", [1024, 2048, 1024 + 200, 1024 + 512 + 10])
def test_an_archive_without_its_end_is_cut_short(tmp_path: Path, length: int) -> None:
    """Even if it is cut exactly between two members."""
    (tmp_path / "t.tar").write_bytes(tar("a.txt", "b.txt", "c.txt")[:length])
    with pytest.raises(DataError, match=r"t\.tar.*damaged or cut short"):
        titles(tmp_path, "t.tar::*.txt")


def test_the_second_of_joined_archives_needs_an_end_too(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar("a.txt") + tar("b.txt", "c.txt")[:1024])
    with pytest.raises(DataError, match=r"t\.tar: damaged or cut short \(its end is missing"):
        titles(tmp_path, "t.tar::*.txt")


def test_what_stands_behind_the_end_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar("a.txt") + b"something else" * 100)
    with pytest.raises(DataError, match=r"t\.tar: damaged or cut short"):
        titles(tmp_path, "t.tar::*.txt")


# --- zip


def test_two_members_of_one_name_are_both_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("b.txt", f"second {TEXT}")
        archive.writestr("a.txt", f"first {TEXT}")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("b.txt", f"third {TEXT}")
    assert titles(tmp_path, "t.zip::*.txt") == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [(6, 1, "is encrypted. Unpack the archive with its password"), (8, 99, "uses compression method 99, which")],
)
def test_a_member_that_cannot_be_read_is_explained(tmp_path: Path, at: int, value: int, words: str) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", TEXT)
    data = bytearray(content.getvalue())
    data[at] = data[data.index(b"PK\x01\x02") + at + 2] = value  # in the member's own header, and in the directory
    (tmp_path / "t.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"^t\.zip::a\.txt: ") as error:
        titles(tmp_path, "t.zip::*.txt")
    assert words in str(error.value)


# --- bzip2


def test_damaged_bzip2_is_no_matter_of_the_disk(tmp_path: Path) -> None:
    data = bytearray(bz2.compress(TEXT.encode() * 20_000))
    data[20:60] = bytes(40)
    (tmp_path / "t.txt.bz2").write_bytes(data)
    with pytest.raises(DataError, match=r"t\.txt\.bz2: damaged or cut short \(Invalid data stream\)"):
        titles(tmp_path, "t.txt.bz2")
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.txt.bz2", bytes(data))
    with pytest.raises(DataError, match=r"t\.zip::t\.txt\.bz2: damaged or cut short"):
        titles(tmp_path, "t.zip::*")


def test_a_text_may_begin_like_bzip2(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"BZh is how it begins. {TEXT}")
    assert titles(tmp_path, "t.txt") == ["BZh"]


# --- which members

NAMES = ["docs/a.txt", "docs/x/b.txt", "docs/x/y/c.txt", "docs/x/y/d.md", "other/docs/e.txt", "f.txt"]


@pytest.mark.parametrize(
    "pattern",
    ["docs/**/*.txt", "**/*.txt", "docs/x/**/*", "**/x/*.txt", "docs/**/y/*.txt", "*/**/*.txt", "docs/**/x/**/*.txt"],
)
def test_two_stars_mean_in_an_archive_what_they_mean_in_a_folder(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "t.tar").write_bytes(tar(*NAMES))
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for name in NAMES:
            archive.writestr(name, f"{name} {TEXT}")
    folder = tmp_path / "unpacked"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} {TEXT}")
    expected = sorted(titles(folder, pattern))
    assert expected
    assert sorted(titles(tmp_path, f"t.zip::{pattern}")) == expected
    assert sorted(titles(tmp_path, f"t.tar::{pattern}")) == expected


def test_a_pattern_without_them_fits_in_every_folder(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(tar(*NAMES))
    said: list[str] = []
    assert titles(tmp_path, "t.tar::*.txt", said) == [name for name in NAMES if name.endswith(".txt")]
    assert said == ["t.tar: 5 of 6 members fit `*.txt`"]
    assert titles(tmp_path, "t.tar::docs/?.txt") == ["docs/a.txt", "other/docs/e.txt"]


@settings(max_examples=200)
@given(data=st.binary(max_size=2_000), at=st.integers(0, 5_000))
def test_any_damage_ends_in_documents_or_in_one_message(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", TEXT * 300)
    for name, whole in (("t.tar", tar("a.txt", "b.txt")), ("t.zip", zipped.getvalue())):
        spoiled = bytearray(whole)
        spoiled[at % len(whole) : at % len(whole) + len(data)] = data
        (folder / name).write_bytes(spoiled)
        try:
            titles(folder, f"{name}::*")
        except DataError as error:
            message = str(error)
            assert message.startswith(name)


def test_a_zip_member_without_a_name_is_damage(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", TEXT)
        archive.writestr(zipfile.ZipInfo(""), TEXT)
    with pytest.raises(DataError, match=r"a\.zip: damaged zip archive"):
        titles(tmp_path, "a.zip::*.txt")


@pytest.mark.parametrize(("name", "page"), [("книга.txt", "cp866"), ("книга.txt", "cp1251"), ("książka.txt", "utf-8")])
def test_names_in_an_old_code_page_are_found(tmp_path: Path, name: str, page: str) -> None:
    old = name.encode(page)
    plain = io.BytesIO()  # Python would note that the name is UTF-8, so it gets an ASCII name of the same length first
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("x" * len(old), f"found {TEXT}")
    (tmp_path / "a.zip").write_bytes(plain.getvalue().replace(b"x" * len(old), old))
    assert titles(tmp_path, f"a.zip::{name}") == ["found"]
    assert titles(tmp_path, "a.zip::*.txt") == ["found"]
    with pytest.raises(DataError, match="no member fits"):
        titles(tmp_path, "a.zip::інша.txt")
