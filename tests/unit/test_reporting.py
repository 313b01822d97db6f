"""Metrics, events and status: right after a power cut, on a full disk and with a clock that jumps."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from svitlo.appliance.endings import ProcessRecord, Traces
from svitlo.config import HeadConfig, PretrainingConfig, ReportingConfig, TrainingConfig
from svitlo.reporting import status as status_module
from svitlo.reporting.events import EventLog, read_events
from svitlo.reporting.metrics import MetricsLog, comparable, last_step, read_metrics
from svitlo.reporting.overview import overview
from svitlo.reporting.progress import Progress
from svitlo.reporting.status import Status, progress_line, read_status, set_health, write_status
from svitlo.training.loop import PhaseRun
from svitlo.training.state import TrainingState
from svitlo.units import duration
from svitlo.volumes import MARKER, Volumes


def step(phase: int, number: int) -> dict[str, object]:
    return {"kind": "step", "phase": phase, "step": number, "loss": 1.0 / number, "time": "now", "seconds": 0.1}


def evaluation(phase: int, number: int) -> dict[str, object]:
    return {"kind": "evaluation", "phase": phase, "step": number, "validation_loss": 2.0}


def written(path: Path, *records: dict[str, object]) -> MetricsLog:
    log = MetricsLog(path)
    for record in records:
        log.append(record)
    log.close()
    return log


def test_metrics_are_cut_back_to_the_checkpoint_so_that_no_step_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = written(path, *(step(1, n) for n in range(1, 6)), evaluation(1, 4), step(2, 1))
    log.truncate_after(1, 4, last_evaluated_step=0)
    kept = [(record["kind"], record["phase"], record["step"]) for record in read_metrics(path)]
    assert kept == [("step", 1, n) for n in range(1, 5)], "the evaluation of step 4 will be made again"
    written(path, evaluation(1, 4))
    MetricsLog(path).truncate_after(1, 4, last_evaluated_step=4)
    assert [record["kind"] for record in read_metrics(path)] == ["step"] * 4 + ["evaluation"]


def test_a_new_phase_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = written(path, evaluation(1, 0), step(1, 1), evaluation(2, 0), step(2, 1))
    log.truncate_after(2, -1)
    assert [(record["phase"], record["step"]) for record in read_metrics(path)] == [(1, 0), (1, 1)]


@pytest.mark.parametrize("torn", [b'{"kind": "st', b"\0" * 40, b'{"kind": "step"}\xff'])
def test_a_line_torn_by_a_power_cut_spoils_only_itself(tmp_path: Path, torn: bytes) -> None:
    for name, read in (("metrics.jsonl", read_metrics), ("events.jsonl", read_events)):
        path = tmp_path / name
        if name == "metrics.jsonl":
            written(path, step(1, 1))
        else:
            EventLog(path, say=lambda _: None).record("started", "started")
        with open(path, "ab") as file:
            file.write(torn)
        assert len(read(path)) == 1
        if name == "metrics.jsonl":
            written(path, step(1, 2))
        else:
            EventLog(path, say=lambda _: None).record("resumed", "resumed", step=3)
        assert len(read(path)) == 2


def test_what_depends_on_the_clock_is_left_out_of_comparisons() -> None:
    assert comparable([step(1, 2)]) == [{"kind": "step", "phase": 1, "step": 2, "loss": 0.5}]


def test_an_event_on_a_full_disk_is_said_and_does_not_stop_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EventLog(tmp_path / "missing" / "events.jsonl").record("saved", "saved step 3")
    captured = capsys.readouterr()
    assert "saved step 3" in captured.out
    assert "could not be kept" in captured.err


def test_where_the_disk_went_away_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even for metrics whose file was not open yet."""
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    metrics, events = MetricsLog(volumes.metrics), EventLog(volumes.events, say=lambda _: None)
    record = ProcessRecord(volumes.trainer_state, 60)
    markers = {name: volumes.root / name / MARKER for name in ("logs", "checkpoints")}
    contents = {path: path.read_bytes() for path in markers.values()}
    for path in contents:
        path.unlink()
    metrics.append({"kind": "step", "phase": 1, "step": 1})
    events.record("saved", "saved")
    record.end("done")
    assert not list(volumes.logs.iterdir())
    assert not list(volumes.trainer_state.parent.iterdir())
    assert capsys.readouterr().err.count("is not mounted any more") == 2
    for path, content in contents.items():
        path.write_bytes(content)
    metrics.append({"kind": "step", "phase": 1, "step": 2})
    metrics.close()
    events.record("saved", "saved")
    assert [line["step"] for line in read_metrics(volumes.metrics)] == [2]
    assert len(read_events(volumes.events)) == 1


def test_status_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) is None
    write_status(path, state="training", phase=1, step=3)
    status = read_status(path)
    assert status is not None
    assert status.is_alive
    for damage in (b"", b'{"state": "trai', b"\0" * 100, b"[]"):
        path.write_bytes(damage)
        assert read_status(path) is None


def test_a_clock_that_jumps_back_changes_no_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_status(tmp_path / "status.json", state="training")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    status = read_status(tmp_path / "status.json")
    assert status is not None
    assert status.age_seconds is not None
    assert 0 <= status.age_seconds < 60


def test_after_another_boot_a_training_status_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = Volumes(tmp_path)
    volumes.set_up()
    write_status(volumes.status, state="training", phase=1, step=7, num_steps=10)
    assert overview(volumes)["is_running"] is True
    monkeypatch.setattr(status_module, "boot_id", lambda: "another boot")
    known = overview(volumes)
    assert known["is_running"] is False
    assert known["state"] != "training"
    assert json.dumps(known)


def test_status_of_volumes_where_nothing_ever_ran(tmp_path: Path) -> None:
    assert overview(Volumes(tmp_path / "nothing"))["is_running"] is False


def test_the_progress_line_has_everything() -> None:
    line = progress_line(
        Status(
            state="training", phase=1, step=1234, num_steps=21960, epoch=1, max_epochs=3, loss=4.3214,
            learning_rate=9.8e-4, tokens_per_second=1480.4, seconds_left=11_520, checkpoint_age_seconds=41,
            memory_bytes=812_000_000,
        )
    )  # fmt: skip
    for part in (
        "phase 1", "step 1,234 of 21,960", "epoch 1/3", "loss 4.321", "lr 9.8e-04", "1,480 tok/s", "3 h 12 min left",
        "checkpoint 41 s old", "812 MB",
    ):  # fmt: skip
        assert part in line


def test_durations_are_never_negative() -> None:
    assert duration(-5) == "0 s"
    assert duration(59.4) == "59 s"
    assert duration(3_725) == "1 h 2 min"


def test_the_health_file_is_for_the_health_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVITLO_HEALTH_FILE", str(tmp_path / "health"))
    set_health(False, "config: learning_rat:\nunknown key")
    assert (tmp_path / "health").read_text() == "unhealthy\nconfig: learning_rat: unknown key\n"


def test_how_the_last_process_ended_is_known_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "process.json"

    def begin() -> str | None:
        ending = ProcessRecord(path, 1800).begin(Traces())
        return ending and ending.cause

    assert begin() is None, "the first start ever"
    assert "kill" in (begin() or ""), "same boot, and no orderly end"
    ProcessRecord(path, 1800).end("done")
    assert begin() is None
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "boot_id": "another"}))
    assert "power cut" in (begin() or "")
    path.write_text("")  # torn
    assert "power cut" in (begin() or "")


def test_the_last_step_is_found_without_reading_all_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == (0, 0)
    written(path, *(step(phase, number) for phase in (1, 2) for number in range(1, 3_000)), evaluation(2, 2_999))
    assert path.stat().st_size > 1 << 18
    assert last_step(path) == (2, 2_999)
    with open(path, "ab") as file:
        file.write(b'{"kind": "step", "phase": 2, "st')
    assert last_step(path) == (2, 2_999)


def test_the_time_left_counts_the_last_steps_for_as_long_as_they_take(tmp_path: Path) -> None:
    """Steps with the whole vocabulary, at the end of the phase, take 2.2 times as long as those before."""
    volumes = Volumes(tmp_path)
    (tmp_path / "logs").mkdir()
    config = PretrainingConfig(training=TrainingConfig(max_epochs=1), head=HeadConfig(sampled_fraction=0.8))
    state = TrainingState(1, 100, {}, {}, "", "", {}, "")
    progress = Progress(volumes, ReportingConfig(line_every_seconds=1e-9))
    train, unused = SimpleNamespace(steps_per_epoch=200), MagicMock()
    run = PhaseRun(state, config, unused, unused, unused, train, unused, unused, unused, progress, unused, unused, 2.2)
    seconds = [1.0] * 160 + [2.2] * 40
    try:
        for step, cost in enumerate(seconds):
            state.global_step = step + 1
            progress.step(state, 1e-3, 1.0, 4096, cost)
            if step in (0, 100, 159, 160, 180, 199):
                progress.update(state, run.num_steps, 1, run.work_left)
                assert read_status(volumes.status).seconds_left == pytest.approx(sum(seconds[step + 1 :]))
    finally:
        progress.close()


def test_an_evaluation_says_how_far_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    volumes = Volumes(tmp_path)
    (tmp_path / "logs").mkdir()
    state = TrainingState(1, 100, {}, {}, "", "", {}, "")
    progress = Progress(volumes, ReportingConfig(line_every_seconds=1e-9))
    try:
        for done in (0, 4, 496):
            progress.evaluating(state, done, 500)
        progress.evaluated(state, 10.8, None, True, "the best so far", [("The sun is", "noise")])
        status = read_status(volumes.status)
        state.global_step = 10
        progress.evaluated(state, 9.8, (-1.0, 0.02), True, "the best so far", [("The sun is", "a star")])
    finally:
        progress.close()
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "evaluating | phase 1 | step 0 | 0 of 500 sequences"
    assert re.fullmatch(r"evaluating \| phase 1 \| step 0 \| 4 of 500 sequences \| \d+ s left", lines[1])
    assert lines[2].endswith("| 0 s left")
    assert status is not None
    assert status.state == "evaluating"
    assert not any("noise" in line for line in lines), "random weights have nothing to say"
    assert "validation loss 9.8000, -1.0000 ± 0.0200, perplexity 18,033.7 (the best so far)" in lines[-2]
    assert any("a star" in line for line in lines)
    samples = [record for record in read_metrics(volumes.metrics) if record["kind"] == "sample"]
    assert len(samples) == 2, "the record has both"


def test_an_evaluation_in_short_intervals_prints_few_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    state = TrainingState(1, 100, {}, {}, "", "", {}, "")
    progress = Progress(Volumes(tmp_path), ReportingConfig(line_every_seconds=1_000))
    for done in range(0, 500, 4):
        progress.evaluating(state, done, 500)
    progress.close()
    assert len(capfd.readouterr().out.splitlines()) == 1
