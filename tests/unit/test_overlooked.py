"""Nothing begins from zero beside checkpoints that only have another name."""

from __future__ import annotations

from pathlib import Path

import pytest

from svitlo.errors import CheckpointError
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING
from svitlo.training.checkpoints import refuse_to_overlook
from svitlo.training.saving import save_checkpoint
from svitlo.volumes import Volumes
from tests.conftest import new_job
from tests.support import checkpoint_state


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def save(folder: Path, phase: int = 1, run_id: str = "r") -> None:
    save_checkpoint(checkpoint_state(10, {}, phase=phase, run_id=run_id), folder, keep=3)


@pytest.mark.parametrize("name", ["Phase1", "PHASE1", "phase1 (1)", "checkpoints/phase1", "old", "."])
def test_checkpoints_under_another_name_are_named(checkpoints: Path, name: str) -> None:
    save(checkpoints / name)
    with pytest.raises(CheckpointError, match="would begin from zero") as raised:
        refuse_to_overlook(checkpoints, PRETRAINING)
    assert str(Path(name) / "last_checkpoint.pt") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["LAST_CHECKPOINT.PT", "last_checkpoint (1).pt"])
def test_files_under_another_name_are_named(checkpoints: Path, name: str) -> None:
    save(checkpoints / "phase1")
    (checkpoints / "phase1" / "last_checkpoint.pt").rename(checkpoints / "phase1" / name)
    with pytest.raises(CheckpointError) as raised:
        refuse_to_overlook(checkpoints, PRETRAINING)
    assert f"phase1/{name}" in str(raised.value)


def test_behind_a_link(checkpoints: Path, tmp_path: Path) -> None:
    save(tmp_path / "large")
    checkpoints.mkdir()
    (checkpoints / "linked").symlink_to(tmp_path / "large")
    with pytest.raises(CheckpointError, match=r"linked/last_checkpoint\.pt"):
        refuse_to_overlook(checkpoints, PRETRAINING)


def test_an_empty_volume_begins_and_a_run_goes_on_beside_copies(checkpoints: Path) -> None:
    refuse_to_overlook(checkpoints, PRETRAINING)
    (checkpoints / "Phase1").mkdir(parents=True)
    (checkpoints / "run.json").write_text("{}")
    save(checkpoints / ".runs" / "20260101T000000Z" / "phase1")  # moved aside on a disk of its own
    refuse_to_overlook(checkpoints, PRETRAINING)
    save(checkpoints / "phase1")
    save(checkpoints / "copy")
    save(checkpoints / "other", phase=2, run_id="another")
    refuse_to_overlook(checkpoints, PRETRAINING)
    refuse_to_overlook(checkpoints, INSTRUCTION_TUNING)
    save(checkpoints / "Phase2", phase=2)
    with pytest.raises(CheckpointError, match=r"Phase2/last_checkpoint\.pt"):
        refuse_to_overlook(checkpoints, INSTRUCTION_TUNING)


def test_the_trainer_says_so_before_it_waits_for_data(tmp_path: Path) -> None:
    job = new_job(tmp_path)
    save(Volumes(job.volumes).root / "checkpoints" / "Phase1")
    said = job.run("train", check=2, timeout=60).stderr
    assert "Phase1/last_checkpoint.pt" in said
    assert "Traceback" not in said
    assert not (job.volumes / "checkpoints" / "phase1").exists()
