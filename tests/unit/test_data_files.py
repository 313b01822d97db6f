"""Which files a pattern takes, and that everything it nearly takes is named."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest

from svitlo.config import Source
from svitlo.data.rawfiles import find_files
from svitlo.data.sources import FileDocuments, KnownDigests
from svitlo.errors import DataError
from svitlo.volumes import MARKER


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def found(folder: Path, *patterns: str) -> tuple[list[str], list[str]]:
    source = Source(name="s", format="text", files=list(patterns))
    files = find_files(source, folder, lambda _: None)
    return [file.name for file in files.files], files.left_out


@pytest.mark.parametrize("pattern", ["docs/**/*.txt", "**/*.txt", "docs/**", "**/*", "**"])
def test_hidden_files_and_folders_are_left_out_and_named(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "docs/a.txt", "docs/b/c.txt", "docs/.git/config.txt", "docs/.Trash-1000/files/old.txt")
    write(tmp_path, "docs/._a.txt", MARKER)
    files, left_out = found(tmp_path, pattern)
    assert files == ["docs/a.txt", "docs/b/c.txt"]
    assert left_out == ["docs/.Trash-1000/ (hidden)", "docs/._a.txt (hidden)", "docs/.git/ (hidden)"]


def test_hidden_files_that_are_named_are_read(tmp_path: Path) -> None:
    write(tmp_path, ".notes.txt", "docs/.old/a.txt", "docs/.git/b.txt", "x.txt")
    assert found(tmp_path, ".notes.txt") == ([".notes.txt"], [])
    assert found(tmp_path, ".n*")[0] == [".notes.txt"]
    assert found(tmp_path, "docs/.old/*.txt")[0] == ["docs/.old/a.txt"]
    assert found(tmp_path, "*.txt") == (["x.txt"], [".notes.txt (hidden)"])
    assert found(tmp_path, "*.txt", ".notes.txt") == (["x.txt", ".notes.txt"], [])


@pytest.mark.parametrize(
    ("name", "reason", "naming"),
    [
        ("t.txt.sha256", "a checksum or signature", "*.sha256"),
        ("t.txt.MD5", "a checksum or signature", "t.txt.MD5"),
        ("t.txt.part", "an unfinished download", "**/*.part"),
        ("t.txt.crdownload", "an unfinished download", "t.*.crdownload"),
        ("t.txt~", "a backup or lock of an editor", "*~"),
        ("~$t.txt", "a backup or lock of an editor", "~$*"),
        ("desktop.ini", "left there by a system", "desktop.ini"),
        ("Thumbs.db", "left there by a system", "Thumbs.db"),
    ],
)
def test_what_programs_leave_beside_files_is_left_out_unless_it_is_named(
    tmp_path: Path, name: str, reason: str, naming: str
) -> None:
    write(tmp_path, "t.txt", name)
    assert found(tmp_path, "*") == (["t.txt"], [f"{name} ({reason})"])
    assert found(tmp_path, naming) == ([name], [])


def test_folders_of_other_systems_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "__MACOSX/a.txt")
    assert found(tmp_path, "**/*.txt") == (["a.txt"], ["__MACOSX/a.txt (left there by a system)"])


def test_the_same_rules_hold_in_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for name in ("a/t.txt", "a/t.txt.part", ".git/t.txt", "a/desktop.ini", "__MACOSX/._t.txt"):
            archive.writestr(name, "The lamp of the town is one of those that they had.")
    said: list[str] = []
    source = Source(name="s", format="text", files=["t.zip::**/*"])
    files = find_files(source, tmp_path, said.append).files
    assert len(list(FileDocuments(source, files, KnownDigests({})).read(0, 0))) == 1
    assert said == [
        "t.zip: 1 of 5 members fit `**/*`; left out: .git/t.txt (hidden), __MACOSX/._t.txt (left there by a system), "
        "a/desktop.ini (left there by a system), a/t.txt.part (an unfinished download)"
    ]


def test_linked_folders_are_followed_and_a_circle_is_noticed(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write(raw, "docs/a.txt")
    write(tmp_path, "disk/b.txt")
    (raw / "docs/linked").symlink_to(tmp_path / "disk")
    (raw / "docs/round").symlink_to(raw)
    (raw / "docs/gone.txt").symlink_to(tmp_path / "absent")
    files, left_out = found(raw, "docs/**/*.txt")
    assert files == ["docs/a.txt", "docs/linked/b.txt"]
    assert left_out == [
        "docs/gone.txt (a link to something that is not visible here)",
        "docs/round/ (a link in a circle)",
    ]


def test_names_that_differ_in_case_only_are_named(tmp_path: Path) -> None:
    write(tmp_path, "up/A.TXT", "up/b.txt", "up/c.md")
    left_out = ["up/A.TXT (fits `up/*.txt` only in other upper and lower case)"]
    assert found(tmp_path, "up/*.txt") == (["up/b.txt"], left_out)


def test_a_file_of_exactly_that_name_comes_before_the_pattern(tmp_path: Path) -> None:
    write(tmp_path, "part[1].txt", "part1.txt")
    assert found(tmp_path, "part[1].txt")[0] == ["part[1].txt"]
    assert found(tmp_path, "part[12].txt")[0] == ["part1.txt"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_compared_in_one_unicode_form(tmp_path: Path, form: Any) -> None:
    name = unicodedata.normalize(form, "Київ й.txt")
    write(tmp_path, name)
    for pattern in ("Київ й.txt", unicodedata.normalize("NFD", "Київ*.txt")):
        assert found(tmp_path, pattern)[0] == [name]


def test_a_name_that_is_not_utf8_is_read_and_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("The lamp of the town is one of those that they had.")
    source = Source(name="s", format="text", files=["*.txt"])
    documents = FileDocuments(source, find_files(source, tmp_path, print).files, KnownDigests({}))
    assert [file["name"] for file in documents.identity()["files"]] == [r"caf\xe9.txt"]
    assert len(list(documents.read(0, 0))) == 1


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("docs/**.txt", "`docs/**.txt`: `**` stands for whole folders; `docs/**/*.txt` was probably meant"),
        ("t.zip::**.txt", "`**/*.txt` was probably meant"),
        ("t.zip::.", "`t.zip::.`: names no file"),
        ("t.zip::", "`t.zip::`: names no file"),
        ("", "must be a pattern below"),
        ("/docs/*", "must be a pattern below"),
        ("a/../../b", "must be a pattern below"),
        ("docs", "`docs/**/*` takes all files in that folder"),
        ("x/*", r"In the folder: .hidden, docs/t.txt"),
        ("*", r"Left out: .hidden (hidden)"),
    ],
)
def test_patterns_that_cannot_be_right_get_one_message(tmp_path: Path, pattern: str, words: str) -> None:
    write(tmp_path, "docs/t.txt", ".hidden")
    with pytest.raises(DataError) as caught:
        found(tmp_path, pattern)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_small_files_are_judged_together(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text("Сонце є зорею, навколо якої рухаються планети, і так далі. " * 3)
    source = Source(name="s", format="text", files=["*.txt"])
    with pytest.raises(DataError, match="source s, in its smallest files: does not look like English"):
        list(FileDocuments(source, find_files(source, tmp_path, print).files, KnownDigests({})).read(0, 0))
