"""What nearly fits a pattern and is not read is named in the report and in the manifest, and changes nothing else."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from svitlo.data.journal import Journal
from svitlo.data.prepare import prepare
from svitlo.interruption import Interruption
from svitlo.manifest import MANIFEST, load_manifest
from svitlo.phases import PRETRAINING
from svitlo.volumes import Volumes
from tests.support import contents, run_main


@pytest.fixture
def job(tmp_path: Path) -> Path:
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    records = [{"instruction": f"Say {n}.", "output": f"That is {n}, and so it was."} for n in range(90)]
    (volumes.raw / "a.json").write_text(json.dumps(records))
    pages = "".join(f"The lamp {n} is one of those that people of the town had when they went.\n\n" for n in range(90))
    (volumes.raw / "pages.txt").write_text(pages)
    text = {"name": "pages", "format": "text", "files": ["**/*.txt*"]}
    conversations = {"name": "a", "format": "alpaca", "files": ["a.json"]}
    config = {
        "phase1": {"sources": [text], "validation_fraction": 0.1},
        "phase2": {"sources": [conversations], "sequence_length": 64, "validation_fraction": 0.1},
    }
    (tmp_path / "config").mkdir()
    (tmp_path / "config/data.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def run(job: Path) -> bytes:
    volumes = Volumes(job / "volumes")
    prepare(job / "config", volumes, Interruption(signals=()))
    return (volumes.data(PRETRAINING) / MANIFEST).read_bytes()


def test_what_is_left_out_is_named(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = job / "volumes/raw"
    (raw / "pages.txt.sha256").write_text("0" * 64)
    (raw / ".git").mkdir()
    (raw / "PAGES.TXT").write_text("The lamp")
    run(job)
    (source,) = load_manifest(Volumes(job / "volumes").data(PRETRAINING)).sources
    assert source["left_out"] == [
        ".git/ (hidden)",
        "PAGES.TXT (fits `**/*.txt*` only in other upper and lower case)",
        "pages.txt.sha256 (a checksum or signature)",
    ]
    assert source["documents"] == 90
    assert "dropped: nothing; left out: .git/ (hidden), PAGES.TXT (fits" in capsys.readouterr().out


def test_where_nothing_is_left_out_nothing_is_recorded(job: Path) -> None:
    assert b"left_out" not in run(job)


def test_trash_that_comes_later_does_not_make_the_data_anew(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = run(job)
    (job / "volumes/raw/pages.txt.part").write_text("The lamp")
    capsys.readouterr()
    assert run(job) == before
    assert capsys.readouterr().out.count("already prepared and unchanged") == 2
    (Volumes(job / "volumes").data(PRETRAINING) / MANIFEST).unlink()
    assert run(job) == before


# --- members of archives


def page(number: int) -> str:
    return "".join(f"The lamp {number} of {n} is one of those that people had when they went.\n\n" for n in range(60))


def pack(raw: Path) -> None:
    """Two archives with members that nearly fit."""
    with zipfile.ZipFile(raw / "a.zip", "w") as archive:
        for number, name in enumerate(("a.txt", "B.TXT", "._a.txt", "notes.md", "c.txt")):
            archive.writestr(name, page(number))
    with tarfile.open(raw / "b.tar", "w") as archive:
        for number, name in enumerate(("d.txt", "e\n.txt", "f.txt.part", "g.txt")):
            member = tarfile.TarInfo(name)
            member.size = len(page(10 + number))
            archive.addfile(member, io.BytesIO(page(10 + number).encode()))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "d.txt"
        archive.addfile(link)


def configure(job: Path, *sources: dict[str, object]) -> None:
    path = job / "config/data.yaml"
    content = yaml.safe_load(path.read_text())
    content["phase1"].update(
        shard_tokens=4_096,
        sources=[{"name": f"s{number}", "format": "text", **source} for number, source in enumerate(sources)],
    )
    path.write_text(yaml.safe_dump(content))


IN_A = ["a.zip::._a.txt (hidden)", "a.zip::B.TXT (fits `*.txt*` only in other upper and lower case)"]
IN_B = ["b.tar::f.txt.part (an unfinished download)", "b.tar::link.txt (no file, but a link or a device)"]


def left_out(job: Path) -> list[list[str]]:
    manifest = load_manifest(Volumes(job / "volumes").data(PRETRAINING))
    return [source.get("left_out", []) for source in manifest.sources]


def test_members_of_archives_are_named_too(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(job / "volumes/raw")
    configure(job, {"files": ["a.zip::*.txt*"]}, {"files": ["b.tar::*.txt*"]})
    run(job)
    assert left_out(job) == [IN_A, IN_B]
    assert "dropped: nothing; left out: b.tar::f.txt.part (an unfinished download), b.tar::" in capsys.readouterr().out


def test_a_member_that_another_pattern_takes_is_not_left_out(job: Path) -> None:
    pack(job / "volumes/raw")
    configure(job, {"files": ["a.zip::*.txt*", "a.zip::*.TXT", "a.zip::._*"]})
    run(job)
    assert left_out(job) == [[]]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, save: int) -> None:
    left, original = save, Journal.save

    def interrupted(self: Journal, *arguments: object) -> None:
        nonlocal left
        original(self, *arguments)  # type: ignore[arg-type]
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "save", interrupted)


@pytest.mark.parametrize("save", [1, 2])
def test_stopped_between_two_archives_the_manifest_is_the_same(
    job: Path, monkeypatch: pytest.MonkeyPatch, save: int
) -> None:
    pack(job / "volumes/raw")
    configure(job, {"files": ["a.zip::*.txt*"]}, {"files": ["b.tar::*.txt*"]}, {"files": ["pages.txt"]})
    undisturbed = run(job)
    (Volumes(job / "volumes").data(PRETRAINING) / MANIFEST).unlink()
    assert run(job) == undisturbed, "from the journal"
    shutil.rmtree(Volumes(job / "volumes").data(PRETRAINING))
    interrupt_at(monkeypatch, save)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    monkeypatch.undo()
    assert run(job) == undisturbed


def test_of_an_archive_that_is_not_read_to_its_end_nothing_is_named(job: Path) -> None:
    """How far it is read ahead is chance, and the manifest must not depend on it."""
    pack(job / "volumes/raw")
    configure(job, {"files": ["a.zip::*.txt*"], "max_documents": 50}, {"files": ["b.tar::*.txt*"]})
    run(job)
    assert left_out(job) == [[], IN_B]


def test_removed_markup_is_counted_and_changes_no_manifest(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is for people: with it, data that is prepared again by a later version would be other data."""
    lamps = [f"<b>lamp</b> {n}" if n % 4 else f"lamp {n}" for n in range(400)]
    pages = [f"The {lamp} of people that they had when they went." for lamp in lamps]
    (job / "volumes/raw/pages.txt").write_text("\n\n".join(pages))
    configure(job, {"files": ["pages.txt"], "markup": True})
    undisturbed = run(job)
    said = "phase 1, s0: markup removed from 300 documents"
    assert said in capsys.readouterr().out
    assert b"markup removed" not in undisturbed
    shutil.rmtree(Volumes(job / "volumes").data(PRETRAINING))
    interrupt_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    monkeypatch.undo()
    capsys.readouterr()
    assert run(job) == undisturbed
    assert said in capsys.readouterr().out


# --- names


def test_two_names_that_are_written_alike_are_two_files(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One holds a byte that is not UTF-8, the other has four characters in its place."""
    for number, name in enumerate((b"\xff.txt", rb"\xff.txt")):
        (job / "volumes/raw" / os.fsdecode(name)).write_text(page(number))
    configure(job, {"files": ["*ff.txt", "?.txt"]})
    run(job)
    (source,) = load_manifest(Volumes(job / "volumes").data(PRETRAINING)).sources
    assert [file["name"] for file in source["identity"]["files"]] == [r"\xff.txt"] * 2
    assert source["documents"] == 120
    capsys.readouterr()
    run(job)
    assert capsys.readouterr().out.count("already prepared and unchanged") == 2


def test_a_name_with_control_characters_is_shown_in_one_line(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (job / "volumes/raw/a\n\x1b[31m.TXT").write_text("The lamp")
    run(job)
    (source,) = load_manifest(Volumes(job / "volumes").data(PRETRAINING)).sources
    assert source["left_out"] == [r"a\n\x1b[31m.TXT (fits `**/*.txt*` only in other upper and lower case)"]
    assert "\x1b" not in capsys.readouterr().out


def test_what_is_neither_file_nor_folder_is_named(job: Path) -> None:
    os.mkfifo(job / "volumes/raw/pipe.txt")
    run(job)
    (source,) = load_manifest(Volumes(job / "volumes").data(PRETRAINING)).sources
    assert source["left_out"] == ["pipe.txt (neither a file nor a folder)"]


def test_a_source_that_is_missing_writes_nothing(job: Path) -> None:
    configure(job, {"files": ["other.txt"]})
    before = contents(job / "volumes")
    code, said = run_main("prepare", "--config", str(job / "config"), "--volumes", str(job / "volumes"))
    assert code == 2
    assert "no file fits `other.txt`" in said
    assert contents(job / "volumes") == before, "not even an empty folder"
