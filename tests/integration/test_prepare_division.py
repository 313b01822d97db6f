"""The share that is held back is near the one asked for, whatever groups or documents the data has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from svitlo.data.journal import Journal
from svitlo.data.prepare import prepare
from svitlo.errors import DataError
from svitlo.interruption import Interruption
from svitlo.manifest import MANIFEST, Manifest, load_manifest, verify_shards
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING, Phase
from svitlo.volumes import Volumes

PAGES = "\n\n".join(
    f"Lamp {n}\nThe lamp {n} is one of those that people of the town had when they went out by night."
    for n in range(90)
)


def records(common: int, others: int) -> list[dict[str, str]]:
    many = [
        {"instruction": "Name it.", "input": f"The thing {n} here", "output": f"It is {n}, as they say."}
        for n in range(common)
    ]
    few = [{"instruction": f"Say {n}.", "input": "", "output": f"That is {n}, and so it was."} for n in range(others)]
    return many + few


class Job:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.volumes = Volumes(folder / "volumes")
        self.volumes.set_up()
        (folder / "config").mkdir()
        (self.volumes.raw / "pages.txt").write_text(PAGES)
        self.write(records(10, 90))
        self.configure()

    def write(self, content: list[Any]) -> None:
        (self.volumes.raw / "a.json").write_text(json.dumps(content))

    def configure(self, text: dict[str, Any] | None = None, fraction: float = 0.1, **source: Any) -> None:
        config = {
            "phase1": {
                "sources": [{"name": "pages", "format": "text", "files": ["pages.txt"], **(text or {})}],
                "validation_fraction": fraction,
                "shard_tokens": 4_096,
            },
            "phase2": {
                "sources": [{"name": "a", "format": "alpaca", "files": ["a.json"], **source}],
                "sequence_length": 64,
                "validation_fraction": 0.1,
                "shard_conversations": 20,
            },
        }
        (self.folder / "config" / "data.yaml").write_text(yaml.safe_dump(config))

    def prepare(self) -> None:
        prepare(self.folder / "config", self.volumes, Interruption(signals=()))

    def manifest(self, phase: Phase) -> Manifest:
        manifest = load_manifest(self.volumes.data(phase))
        verify_shards(self.volumes.data(phase), manifest)
        return manifest

    def digests(self) -> dict[str, str]:
        files = sorted(path for path in self.volumes.root.glob("data/phase*/*") if path.is_file())
        return {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.mark.parametrize(("common", "others"), [(100, 20), (80, 0)])
def test_a_group_that_holds_most_records_is_divided_by_record(
    job: Job, capsys: pytest.CaptureFixture[str], common: int, others: int
) -> None:
    job.write(records(common, others))
    job.prepare()
    manifest = job.manifest(INSTRUCTION_TUNING)
    held_back = manifest.num_documents("validation")
    assert 0.05 <= held_back / (common + others) <= 0.2
    assert held_back + manifest.num_documents("train") == common + others
    assert manifest.content["splits"]["division"] == {"groups_by_record": 1, "conversations_by_record": common}
    text = f"form 1 group too large to be held back whole, so these {common} conversations are divided one by one"
    assert text in capsys.readouterr().out


def test_articles_of_one_title_are_divided_too(job: Job) -> None:
    questions = [{"question": f"Where is {n}?", "answers": [{"text": "here", "answer_start": 6}]} for n in range(60)]
    job.write([{"title": "T", "paragraphs": [{"context": "It is here.", "qas": questions}]}])
    job.configure(format="squad")
    job.prepare()
    assert 3 <= job.manifest(INSTRUCTION_TUNING).num_documents("validation") <= 12


def test_ordinary_data_is_divided_once_and_says_nothing(job: Job) -> None:
    job.prepare()
    for phase in (PRETRAINING, INSTRUCTION_TUNING):
        assert set(job.manifest(phase).content["splits"]) == {"train", "validation"}


def test_a_damaged_shard_and_a_lost_manifest_come_out_the_same(job: Job) -> None:
    job.write(records(100, 20))
    (job.volumes.raw / "pages.txt").write_text(PAGES.replace("\n", " ") * 3)
    job.prepare()
    before = job.digests()
    for phase, name in ((PRETRAINING, "train-00000.npy"), (INSTRUCTION_TUNING, "validation-00000.tokens.npy")):
        (job.volumes.data(phase) / name).write_bytes(b"damaged")
        (job.volumes.data(phase) / MANIFEST).unlink()
    job.prepare()
    assert job.digests() == before


class Cut(Exception):  # noqa: N818
    """The power goes."""


@pytest.mark.parametrize("saves", [1, 5, 6, 8])
def test_a_power_cut_at_any_save_changes_nothing(job: Job, monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    job.write(records(100, 20))
    job.prepare()
    before = job.digests()
    for path in job.volumes.data(INSTRUCTION_TUNING).glob("[!.]*"):
        path.unlink()
    for path in job.volumes.data(INSTRUCTION_TUNING).glob(".journal/*"):
        path.unlink()
    save, count = Journal.save, 0

    def save_and_cut(*arguments: Any) -> None:
        nonlocal count
        save(*arguments)
        count += 1
        if count == saves:
            raise Cut

    monkeypatch.setattr(Journal, "save", save_and_cut)
    with pytest.raises(Cut):
        job.prepare()
    job.prepare()
    assert job.digests() == before


def test_one_document_is_cut_into_parts_that_can_be_divided(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    (job.volumes.raw / "pages.txt").write_text(PAGES.replace("\n", " "))
    job.prepare()
    manifest = job.manifest(PRETRAINING)
    assert manifest.num_documents("validation") >= 1
    assert manifest.num_documents("train") > 8
    assert manifest.sources[0]["words"] == len(PAGES.split())
    assert manifest.content["splits"]["division"] == {"longest_document": 400}
    assert "phase 1: too few documents to divide: those longer than 400 characters are cut" in capsys.readouterr().out


def test_a_document_on_each_line(job: Job) -> None:
    (job.volumes.raw / "pages.txt").write_text(PAGES.replace("\n\n", "#").replace("\n", " ").replace("#", "\n"))
    job.configure(text={"documents": "lines"})
    job.prepare()
    assert job.manifest(PRETRAINING).sources[0]["documents"] == 90


def test_another_fraction_is_proposed_only_where_it_can_help(job: Job) -> None:
    job.configure(fraction=1e-9)
    with pytest.raises(
        DataError, match=r"none of the 90 documents falls into validation\. Choose a larger fraction or"
    ):
        job.prepare()
    (job.volumes.raw / "pages.txt").write_text("The lamp of the town is here. " * 40)
    with pytest.raises(DataError, match=r"none of the 1 documents falls into validation\. Give more text$"):
        job.prepare()


@pytest.mark.parametrize(("fraction", "is_told"), [(0.0048, True), (0.01, False)])
def test_a_share_that_is_not_near_is_told(
    job: Job, capsys: pytest.CaptureFixture[str], fraction: float, is_told: bool
) -> None:
    job.configure(fraction=fraction)
    job.prepare()
    assert job.manifest(PRETRAINING).num_documents("validation") == 1
    told = f"phase1.validation_fraction = {fraction:g}, and 1 of 90 documents (1.1%) are held back"
    assert (told in capsys.readouterr().out) == is_told
