"""Data that must change: the present data stays, whole and usable, until what replaces it is complete."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import yaml

from svitlo.data.prepare import prepare
from svitlo.errors import DataError
from svitlo.interruption import Interruption
from svitlo.manifest import load_manifest, verify_shards
from svitlo.phases import PHASES, PRETRAINING
from svitlo.storage import files
from svitlo.storage.probe import abilities_of
from svitlo.volumes import Volumes
from tests.conftest import Job, wait_for_line
from tests.support import die_at, events


def change_data(job: Job, **values: object) -> None:
    path = job.config / "data.yaml"
    content = yaml.safe_load(path.read_text())
    content["phase1"].update(values)
    path.write_text(yaml.safe_dump(content))


def run(job: Job) -> None:
    prepare(job.config, Volumes(job.volumes), Interruption(signals=()))


def shards(job: Job) -> dict[str, str]:
    """Every file of the data with the SHA-256 of its bytes, hidden ones not."""
    return {
        path.relative_to(job.volumes).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (job.volumes / "data").glob("phase*/*")
        if path.is_file()
    }


def is_whole(job: Job) -> bool:
    for phase in PHASES:
        folder = Volumes(job.volumes).data(phase)
        verify_shards(folder, load_manifest(folder))
    return True


def leftovers(job: Job) -> list[str]:
    """What a finished preparation should have removed. A killed probe is removed after an hour (test_volumes.py)."""
    for probe in (job.volumes / "data").glob(".svitlo-probe-*"):
        os.utime(probe, (0, 0))
    abilities_of(job.volumes / "data")
    hidden = {path.name for path in (job.volumes / "data").glob(".*")} - {".svitlo-volume", ".lock"}
    return sorted(hidden | {path.name for path in (job.volumes / "data").glob("*.old")})


@pytest.fixture(scope="module")
def changed(prepared: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The data of another configuration, prepared from nothing."""
    job = prepared.copy(tmp_path_factory.mktemp("changed"))
    change_data(job, min_document_words=60)
    for phase in PHASES:
        for path in Volumes(job.volumes).data(phase).glob("*.*"):
            if path.is_file():
                path.unlink()
    run(job)
    return job


def test_a_typing_error_costs_nothing(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    before = shards(job)
    source = {"name": "encyclopedia", "files": ["encyclopdia.txt"], "format": "text"}
    change_data(job, sources=[source])
    with pytest.raises(DataError, match=r"no file fits `encyclopdia\.txt`"):
        run(job)
    assert shards(job) == before
    assert is_whole(job)
    (job.volumes / "raw" / "encyclopdia.txt").write_bytes(b"\x00\x01\x02\x03" * 100)  # found, and no text
    with pytest.raises(DataError, match="not text"):
        run(job)
    assert shards(job) == before
    change_data(job, sources=[{**source, "files": ["encyclopedia.txt"]}])
    run(job)
    assert shards(job) == before
    assert leftovers(job) == []


@pytest.mark.crash
@pytest.mark.parametrize("operation", ["rename", "fsync", "unlink"])
def test_killed_at_any_moment_of_a_replacement_there_is_whole_data(
    prepared: Job, changed: Job, tmp_path: Path, operation: str
) -> None:
    """Killed just before each so many-th operation: the data is the old one or the new one, never a mixture."""
    job = prepared.copy(tmp_path)
    before, after = shards(job), shards(changed)
    change_data(job, min_document_words=60)
    killed = 0
    while True:
        child = os.fork()
        if child == 0:
            die_at(operation, 1 + 3 * killed, lambda: run(job))
        _, status = os.waitpid(child, 0)
        assert shards(job) in (before, after), killed
        assert is_whole(job)
        if not os.WIFSIGNALED(status):
            break
        killed += 1
    assert os.WEXITSTATUS(status) == 0
    assert killed > 3
    assert shards(job) == after
    assert leftovers(job) == []


class PowerCut(BaseException):
    """The machine is off."""


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_system_that_cannot_exchange_two_names_loses_nothing(
    prepared: Job, changed: Job, tmp_path: Path, number: int
) -> None:
    """There a replacement takes three renames, and the power can fail before each of them."""
    job = prepared.copy(tmp_path)
    change_data(job, min_document_words=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_exchange", lambda *_: False)
        real, calls = os.rename, [0]

        def cut(source: Path, target: Path) -> None:
            if Path(source).is_dir():
                calls[0] += 1
                if calls[0] == number:
                    raise PowerCut
            real(source, target)

        patch.setattr(os, "rename", cut)
        with pytest.raises(PowerCut):
            run(job)
    run(job)
    assert shards(job) == shards(changed)
    assert is_whole(job)


def test_what_somebody_has_put_beside_the_shards_stays(prepared: Job, changed: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    notes = job.volumes / "data" / "phase1" / "notes.txt"
    notes.write_text("mine")
    change_data(job, min_document_words=60)
    run(job)
    assert notes.read_text() == "mine"
    notes.unlink()
    assert shards(job) == shards(changed)
    assert leftovers(job) == []


def test_a_damaged_manifest_is_written_again_from_the_journal(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    before = shards(job)
    manifest = job.volumes / "data" / "phase1" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    run(job)
    assert shards(job) == before


def test_a_new_run_waits_for_the_data_that_the_configuration_asks_for(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    old = load_manifest(Volumes(job.volumes).data(PRETRAINING)).digest
    change_data(job, min_document_words=60)
    trainer = job.start("train")
    wait_for_line(trainer, "waiting for the data of phase 1")
    assert not list((job.volumes / "checkpoints").glob("phase1/*.pt"))
    job.run("prepare")
    wait_for_line(trainer, "phase 1 begins")
    assert load_manifest(Volumes(job.volumes).data(PRETRAINING)).digest != old
    assert trainer.wait(120) == 0
    assert "complete" in [event["event"] for event in events(job)][-1] or events(job)[-1]["event"] == "finished"


def test_a_run_that_has_begun_goes_on_with_its_own_data(prepared: Job, trained: Job, tmp_path: Path) -> None:
    """A mistake in data.yaml in the middle of a run is no reason to stop it."""
    job = prepared.copy(tmp_path)
    trainer = job.start("train")
    wait_for_line(trainer, r"phase 1 \| step [5-9] of")
    trainer.terminate()
    trainer.wait(60)
    content = (job.config / "data.yaml").read_text()
    (job.config / "data.yaml").write_text(content.replace("encyclopedia.txt", "encyclopdia.txt"))
    job.run("prepare", check=2)
    trainer = job.start("train")
    wait_for_line(trainer, r"phase 1 \| step (1[0-9]|2[0-4]) of")
    trainer.terminate()
    trainer.wait(60)
