"""Hangs and storms: a trainer that hangs is ended, one that keeps dying stops trying, and the cause is named."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from svitlo.appliance.endings import ProcessRecord, Traces
from svitlo.machine import oom_kills
from svitlo.reporting.metrics import read_metrics
from svitlo.reporting.status import read_status
from tests.conftest import Job
from tests.crash.forks import At, fork
from tests.support import assert_same_run, events, last

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

KILLED = At("svitlo.training.loop", "train_step", signals=(signal.SIGKILL,))
FAILED = At("svitlo.training.loop", "train_step", error="this part of the machine is broken")
WATCHDOG_SECONDS = 15
OOM_BYTES = 48 << 20


def cut_offs(job: Job) -> list[str]:
    return [str(event["message"]) for event in events(job) if event["event"] == "cut off"]


def test_three_deaths_at_the_same_step_are_enough(trained: Job, prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    for hook, code in ((KILLED, -signal.SIGKILL), (KILLED, -signal.SIGKILL), (FAILED, 1)):
        with fork(job, "train", hook=hook) as trainer:
            assert trainer.wait(300) == code, trainer.output()

    health = tmp_path / "health"
    with fork(job, "train", "--hold", SVITLO_HEALTH_FILE=str(health)) as trainer:
        trainer.wait_for_line("Nothing is lost")
        wait_until_idle(trainer.pid)
        said = trainer.output()
        assert trainer.kill(signal.SIGTERM) == -signal.SIGTERM, "what is held ends at once when it is asked to"
    for part in ("died 3 times in a row before the first step", "this part of the machine is broken", "docker compose"):
        assert part in said
    assert "Traceback" not in said
    assert "phase 1 begins" not in said, "it did not try again"
    verdict, reason = health.read_text().splitlines()
    assert verdict == "unhealthy"
    assert "3 times in a row" in reason
    status = read_status(job.volumes / "logs" / "status.json")
    assert status is not None
    assert status.state == "error"
    assert "3 times in a row" in status.message
    assert [event["event"] for event in events(job)].count("gave up") == 1

    with fork(job, "train") as trainer:  # a person has started it again
        assert trainer.wait(300) == 0, trainer.output()
    assert_same_run(job, trained)


def wait_until_idle(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/cmdline").read_bytes() != b"sleep\0infinity\0":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def die(path: Path, traces: Traces = Traces()) -> int:  # noqa: B008 — a constant
    """One more trainer that dies without a word. Returns the number of deaths that it found recorded."""
    ending = ProcessRecord(path, 1800).begin(traces)
    return 0 if ending is None else ending.deaths


def test_only_deaths_that_got_no_further_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "process.json"
    places = [(0, 0), (0, 0), (1, 5), (1, 3), (1, 5), (1, 6), (1, 6), (2, 1), (1, 24), (2, 1), (2, 1)]
    assert [die(path, Traces(*place)) for place in places] == [0, 1, 1, 2, 3, 1, 2, 1, 2, 3, 4]
    ProcessRecord(path, 1800).end("stopped by SIGTERM")
    assert [die(path, Traces(2, 1)) for _ in range(3)] == [0, 1, 2], "a clean end in between resets the count"


def test_power_cuts_and_waiting_are_no_deaths(tmp_path: Path) -> None:
    path = tmp_path / "process.json"
    for _ in range(5):
        assert die(path, Traces(1, 5)) == 0
        path.write_text(path.read_text().replace('"boot_id": "', '"boot_id": "another-'))
    for _ in range(5):
        die(path, Traces(1, 5, was_waiting=True))
    assert die(path, Traces(1, 6)) == 1
    path.write_bytes(b"\0" * 200)
    ending = ProcessRecord(path, 1800).begin(Traces(1, 6))
    assert ending is not None, "a record that the power cut has emptied is a sign of one"
    assert "power cut" in ending.cause
    assert ending.deaths == 0


def test_a_full_disk_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    record = ProcessRecord(tmp_path / "missing" / "process.json", 1800)
    assert record.begin(Traces()) is None
    record.fail(ValueError("x"))
    record.end("done")


def test_what_stands_still_is_ended_with_the_stacks_in_the_log(trained: Job, prepared: Job, tmp_path: Path) -> None:
    """Writing to a file never returns, as on a disk or a network that is gone. Here it is a pipe without a reader."""
    job = prepared.copy(tmp_path)
    job.change("phase1_pretraining.yaml", "reporting", stop_after_seconds_without_progress=WATCHDOG_SECONDS)
    path = job.volumes / "logs" / "events.jsonl"
    with fork(job, "train") as trainer:
        trainer.wait_for_line("phase 1, step 8")
        path.rename(tmp_path / "events.jsonl")
        os.mkfifo(path)
        start = time.monotonic()
        assert trainer.wait(120) == 1
        seconds = time.monotonic() - start
        said = trainer.output()
    print(f"ended after {seconds:.1f} s")
    assert seconds >= WATCHDOG_SECONDS - 1
    for part in (
        "Timeout: no progress for",
        f"the limit is {WATCHDOG_SECONDS} s",
        "most recent call first",
        "append_line",
        "train_phase",
    ):
        assert part in said, said[-3000:]
    path.unlink()
    (tmp_path / "events.jsonl").rename(path)

    with fork(job, "train") as trainer:
        trainer.wait_for_line("trainer started")
        trainer.kill(signal.SIGTERM)
    assert len(cut_offs(job)) == 1
    assert "its watchdog, probably" in cut_offs(job)[0]
    job.change("phase1_pretraining.yaml", "reporting", stop_after_seconds_without_progress=1800)
    with fork(job, "train") as trainer:
        assert trainer.wait(300) == 0, trainer.output()
    assert_same_run(job, trained)


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group whose processes may use very little memory."""
    root, names = Path("/sys/fs/cgroup"), {"memory.max": "", "memory.limit_in_bytes": ""}
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    parents = [root / path.lstrip("/") for _, controllers, path in lines if not controllers]
    parents += [root / "memory" / path.lstrip("/") for _, controllers, path in lines if "memory" in controllers]
    for parent in (*parents, *(folder.parent for folder in parents)):
        group = parent / f"svitlo-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            limits = [group / name for name in names if (group / name).exists()]
            if limits:
                limits[0].write_text(str(OOM_BYTES))
                yield group
                group.rmdir()
                return
            group.rmdir()
    pytest.skip("no control group with a memory limit can be made here (it needs root and the memory controller)")


@pytest.mark.skipif(oom_kills() is None, reason="this kernel does not count out-of-memory kills")
def test_a_kill_because_memory_ran_out_is_named(prepared: Job, tmp_path: Path, small_group: Path) -> None:
    """By the kernel itself: only the kernel can do this, and the process does not notice."""
    job = prepared.copy(tmp_path)
    with fork(job, "train") as trainer:
        trainer.wait_for_line("phase 1 begins")
        (small_group / "cgroup.procs").write_text(str(trainer.pid))
        assert trainer.wait(300) == -signal.SIGKILL, trainer.output()
    with fork(job, "train") as trainer:
        trainer.wait_for_line("trainer started")
        trainer.kill()
    assert len(cut_offs(job)) == 1
    assert "the kernel, probably because memory ran out" in cut_offs(job)[0]
    assert "MB" in cut_offs(job)[0]

    with fork(job, "train") as trainer:
        trainer.wait_for_line("trainer started")
        trainer.kill(signal.SIGTERM)
    assert "without warning" in cut_offs(job)[1], "an ordinary kill is not taken for one"


def test_a_pause_is_neither_work_nor_a_hang(trained: Job, prepared: Job, tmp_path: Path) -> None:
    """The whole process stands still for longer than the watchdog's limit, as with `docker compose pause`."""
    job = prepared.copy(tmp_path)
    limit, pause = 10, 16
    job.change("phase1_pretraining.yaml", "reporting", stop_after_seconds_without_progress=limit)
    with fork(job, "train") as trainer:
        trainer.wait_for_line("phase 1 | step 3 of")
        os.kill(trainer.pid, signal.SIGSTOP)
        time.sleep(pause)
        os.kill(trainer.pid, signal.SIGCONT)
        assert trainer.wait(300) == 0, trainer.output()
    assert_same_run(job, trained)
    seconds = [
        record["seconds"] for record in read_metrics(job.volumes / "logs" / "metrics.jsonl") if "seconds" in record
    ]
    assert max(seconds) < pause - 5
    assert last(job, 1)["training_seconds"] < last(trained, 1)["training_seconds"] + 60
    assert cut_offs(job) == []
