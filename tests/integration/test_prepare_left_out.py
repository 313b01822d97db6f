"""What nearly fits a pattern and is not read is named in the report and in the manifest, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from svitlo.data.prepare import prepare
from svitlo.interruption import Interruption
from svitlo.manifest import MANIFEST, load_manifest
from svitlo.phases import PRETRAINING
from svitlo.volumes import Volumes


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
