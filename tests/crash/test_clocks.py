"""A clock that jumps by years, as with an empty battery after a power cut, changes only the times that are shown."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from svitlo.reporting.metrics import read_metrics
from tests.conftest import Job, kill, wait_for_line
from tests.support import assert_same_run, events, last

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

YEAR = 365 * 86_400
CLOCK = """
import datetime, time
real_time, real_datetime = time.time, datetime.datetime
def shifted():
    with open({file!r}) as file:
        return real_time() + float(file.read())
class ShiftedDatetime(real_datetime):
    @classmethod
    def now(cls, tz=None):
        return real_datetime.fromtimestamp(shifted(), tz)
    @classmethod
    def utcnow(cls):
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)
time.time = shifted
time.time_ns = lambda: int(time.time() * 1e9)
datetime.datetime = ShiftedDatetime
"""


@pytest.fixture
def set_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """A function that shifts the clock of every program started from now on, even while it runs."""
    folder = tmp_path / "clock"
    folder.mkdir()
    shift = folder / "shift"
    (folder / "sitecustomize.py").write_text(CLOCK.format(file=str(shift)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])))

    def set_clock(seconds: float) -> None:
        new = shift.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(shift)

    return set_clock


def shown(job: Job) -> dict[str, object]:
    known: dict[str, object] = json.loads(job.run("status", "--json").stdout)
    return known


def test_a_clock_that_jumps_by_years_changes_nothing_but_timestamps(
    trained: Job, prepared: Job, tmp_path: Path, set_clock: object
) -> None:
    assert callable(set_clock)
    job = prepared.copy(tmp_path / "job")

    set_clock(+24 * YEAR)
    process = job.start("train")
    wait_for_line(process, r"phase 1 \| step [2-6] of")
    set_clock(+12 * YEAR)  # back again, while it runs
    wait_for_line(process, r"phase 1 \| step ([7-9]|1[0-5]) of")
    wait_for_line(process, "phase 1, step 16")
    assert_sane_times(shown(job))
    kill(process)
    before = last(job, 1)
    assert before["timestamp"] > time.time() + 11 * YEAR, "the program sees the other clock"
    # File times go the other way round, too: the newest checkpoint looks oldest.
    for number, path in enumerate(sorted((job.volumes / "checkpoints" / "phase1").glob("*.pt"))):
        os.utime(path, times=(1e9 - number * YEAR,) * 2)

    set_clock(-20 * YEAR)
    process = job.start("train")
    line = wait_for_line(process, "resumed at step")
    assert f"resumed at step {before['global_step']} of 24" in line, "order is by step"
    wait_for_line(process, r"phase 2 .* step ([2-9]|1[0-9]) of")
    known = shown(job)
    assert known["is_running"] is True
    trainer = known["trainer"]
    assert isinstance(trainer, dict)
    assert str(trainer["status"]["updated"]) < "2015", "it is a clock of long ago"
    assert_sane_times(known)
    screen = job.run("status").stdout
    assert "Last report" in screen
    assert " d " not in screen.split("Last events")[0], "nothing takes days"

    set_clock(0)
    assert shown(job)["is_running"] is True, "whatever clock looks at it"
    kill(process)
    job.run("train")
    assert_same_run(job, trained)
    records = read_metrics(job.volumes / "logs" / "metrics.jsonl")
    durations = [record["seconds"] for record in records if record["kind"] == "step"]
    assert len(durations) == 48
    assert all(0 < seconds < 600 for seconds in durations)
    assert all(record["tokens_per_second"] > 0 for record in records if record["kind"] == "step")
    for phase in (1, 2):
        assert 0 < last(job, phase)["training_seconds"] < 3_600
    for event in events(job):
        assert 0 <= event.get("seconds", 0) < 600
        assert 0 <= event.get("repeated_seconds", 0) < 600
    assert_backup_works(job, tmp_path)


def assert_sane_times(known: dict[str, object]) -> None:
    trainer = known["trainer"]
    assert isinstance(trainer, dict)
    age, left = trainer["age_seconds"], trainer["status"]["seconds_left"]
    assert isinstance(age, float)
    assert 0 <= age < 60, "last seen"
    assert 0 < left < 600, "time left"


def assert_backup_works(job: Job, folder: Path) -> None:
    """Even the name of a backup comes from the clock, and that must not matter."""
    job.run("backup", str(folder / "backups"))
    (backup,) = (folder / "backups").iterdir()
    other = Job(job.config, folder / "other")
    other.run("setup")
    other.run("restore", str(backup))
    assert last(other, 2)["finished"]
