"""`svitlo status` tells the truth at every stage of a run, even right after a power cut, and answers at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from svitlo.appliance import holding
from svitlo.appliance.holding import run_service
from svitlo.data.hubclient import HubUnreachable
from svitlo.errors import SvitloError, VolumeError
from svitlo.interruption import Interruption
from svitlo.phases import PRETRAINING
from svitlo.reporting import overview as overview_module
from svitlo.reporting import status as status_module
from svitlo.reporting.events import EventLog
from svitlo.reporting.metrics import MetricsLog
from svitlo.reporting.overview import SCHEMA, DataOverview, overview
from svitlo.reporting.screen import print_screen
from svitlo.reporting.status import (
    STALE_SECONDS,
    WAITING_FOR_DATA,
    WAITING_FOR_HUB,
    boot_seconds,
    set_health,
    write_status,
)
from svitlo.storage.mounts import Mount
from svitlo.volumes import Volumes
from tests.conftest import ROOT
from tests.support import run_main


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    return volumes


def evaluated(volumes: Volumes, phase: int, *losses: float) -> None:
    log = MetricsLog(volumes.metrics)
    for number, loss in enumerate(losses):
        log.append({"kind": "step", "phase": phase, "step": number * 10, "loss": 99.0})
        log.append({"kind": "evaluation", "phase": phase, "step": number * 10, "validation_loss": loss})
    log.close()


def screen(volumes: Volumes, capsys: pytest.CaptureFixture[str]) -> str:
    print_screen(overview(volumes))
    return capsys.readouterr().out


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = boot_seconds()
    monkeypatch.setattr(status_module, "boot_seconds", lambda: now + seconds)


def test_nothing_ever_ran(volumes: Volumes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "svitlo setup" in screen(Volumes(tmp_path / "missing"), capsys)
    assert "nothing was prepared or trained yet" in screen(volumes, capsys)


def test_while_training(volumes: Volumes, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(volumes, 1, 10.8, 6.0, 5.25, 5.5)
    EventLog(volumes.events, say=lambda _: None).record("resumed", "resumed at step 12")
    write_status(
        volumes.status, state="training", phase=1, step=500, num_steps=1000, epoch=2, max_epochs=3, loss=5.4321,
        tokens_per_second=1480.0, seconds_left=3_700.0, checkpoint_age_seconds=41.0, checkpoint_step=490,
        memory_bytes=812_000_000, run_id="0123456789ab",
    )  # fmt: skip
    text = screen(volumes, capsys)
    for part in (
        "training", "50.0%", "step 500 of 1,000", "epoch 2 of 3", "10.800 → 5.500, best 5.250 at step 20", "5.432",
        "1,480 tokens/s", "1 h 1 min left", "step 490, 41 s old", "812 MB", "resumed at step 12", "run 01234567",
    ):  # fmt: skip
        assert part in text, part
    assert overview(volumes)["phases"][0]["validation"]["losses"] == [10.8, 6.0, 5.25, 5.5]


def test_a_trainer_without_a_sign_of_life_is_not_called_running(
    volumes: Volumes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_status(
        volumes.status, state="training", phase=2, step=77, tokens_per_second=1480.0, checkpoint_step=70,
        checkpoint_age_seconds=5.0,
    )  # fmt: skip
    later(monkeypatch, STALE_SECONDS - 5)
    assert overview(volumes)["state"] == "training"
    later(monkeypatch, 3_600)
    text = " ".join(screen(volumes, capsys).replace("│", "").split())
    assert "not running since" in text
    assert "training at step 77 of phase 2: no sign of life for 1 h" in text
    assert "tokens/s" not in text
    assert overview(volumes)["checkpoint"]["age_seconds"] == pytest.approx(3_605, abs=30)


@pytest.mark.parametrize("state", ["stopped", "error", "complete"])
def test_an_end_that_was_announced_stays_true(volumes: Volumes, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_status(volumes.status, state=state, message="because")
    later(monkeypatch, 1e6)
    monkeypatch.setattr(status_module, "boot_id", lambda: "another boot")
    known = overview(volumes)
    assert (known["state"], known["message"], known["is_running"]) == (state, "because", False)


def test_a_status_that_a_power_cut_emptied_does_not_hide_the_run(volumes: Volumes) -> None:
    volumes.checkpoints(PRETRAINING).mkdir()
    (volumes.checkpoints(PRETRAINING) / "last_checkpoint.pt").write_bytes(b"weights")
    volumes.status.write_bytes(b"")
    known = overview(volumes)
    assert known["state"] == "not running"
    assert "there are checkpoints" in known["message"]


def test_complete(volumes: Volumes, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(volumes, 1, 10.8, 5.0)
    evaluated(volumes, 2, 4.0, 2.0)
    volumes.model.mkdir()
    (volumes.model / "SHA256SUMS").write_text("")
    volumes.completion.write_text('{"message": "done"}')
    volumes.status.write_text("torn")
    text = screen(volumes, capsys)
    assert "complete" in text
    assert text.count("done") == 2
    assert "export/model" in text.replace("\n", "")


def test_a_diverged_loss_is_still_json(volumes: Volumes) -> None:
    write_status(volumes.status, state="training", loss=float("nan"))
    known = overview(volumes)
    assert known["trainer"]["status"]["loss"] is None
    json.loads(json.dumps(known, allow_nan=False))


def test_nothing_heavy_is_imported(volumes: Volumes) -> None:
    write_status(volumes.status, state="training", phase=1, step=1)
    code = (
        "import sys; from svitlo.cli import cli; cli(['status', '--volumes', sys.argv[1]], standalone_mode=False);"
        "print([name for name in ('torch', 'numpy', 'transformers', 'pydantic', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(volumes.root)], capture_output=True, text=True, check=True
    ).stdout
    assert "training" in done
    assert done.splitlines()[-1] == "[]"


def test_every_key_of_the_overview_is_documented(volumes: Volumes) -> None:
    evaluated(volumes, 1, 10.8, 6.0)
    write_status(volumes.status, state="training", phase=1, step=5, checkpoint_step=4)
    write_status(volumes.prepare_status, state="preparing", message="phase 1")
    known = overview(volumes)
    documented = set(re.findall(r"`([a-z_.]+)`", (ROOT / "docs" / "status.md").read_text()))
    phase = known["phases"][0]
    assert known["trainer"] is not None
    assert known["checkpoint"] is not None
    assert phase["validation"] is not None
    parts = [known, known["trainer"], phase, known["checkpoint"]]
    keys = {key for part in parts for key in part} | {f"validation.{key}" for key in phase["validation"]}
    keys |= {f"data.{key}" for key in DataOverview.__annotations__}
    assert keys <= documented
    assert known["schema"] == SCHEMA == 1
    assert f"| `schema` | {SCHEMA} |" in (ROOT / "docs" / "status.md").read_text()


def test_a_preparation_that_failed_is_not_called_not_started(
    volumes: Volumes, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(volumes.prepare_status, state="error", message="data.yaml: phase1.sources: no file fits `*.txt`")
    failed = ("error", "data preparation failed: data.yaml: phase1.sources: no file fits `*.txt`")
    known = overview(volumes)
    assert (known["state"], known["message"]) == failed
    assert screen(volumes, capsys).count("no file fits") == 1
    write_status(volumes.status, state=WAITING_FOR_DATA, message="waiting for the data of phase 1", phase=1)
    known = overview(volumes)
    assert (known["state"], known["message"]) == failed, "a trainer that waits for it does not hide it"
    assert known["is_running"]
    write_status(volumes.status, state="stopped", message="stopped by SIGTERM")
    assert "Data preparation       failed: data.yaml" in screen(volumes, capsys)


def test_the_real_command_leaves_its_reason_and_its_remedy(volumes: Volumes) -> None:
    code, said = run_main("prepare", "--config", str(ROOT / "config/demo"), "--volumes", str(volumes.root))
    assert code == 2
    assert "no file fits `encyclopedia.txt`" in said
    known = overview(volumes)
    reason = said.removeprefix("error: ").rstrip("\n")
    assert (known["state"], known["message"]) == ("error", f"data preparation failed: {reason}")


def test_while_the_hub_cannot_be_reached_it_says_what_it_waits_for(
    volumes: Volumes, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(volumes.prepare_status, state=WAITING_FOR_HUB, message="the hub cannot be reached")
    for trainer in (None, WAITING_FOR_DATA):
        if trainer:
            write_status(volumes.status, state=trainer, message="waiting for the data of phase 1", phase=1)
        known = overview(volumes)
        assert (known["state"], known["message"]) == (WAITING_FOR_HUB, "the hub cannot be reached")
        assert screen(volumes, capsys).count("the hub cannot be reached") == 1


def test_a_trainer_whose_data_nobody_prepares_says_what_to_do(volumes: Volumes) -> None:
    write_status(volumes.status, state=WAITING_FOR_DATA, message="waiting for the data of phase 1", phase=1)
    assert "and nothing prepares it: `docker compose up -d` or `svitlo prepare`" in overview(volumes)["message"]


def test_a_service_that_a_person_has_to_help_shows_why(volumes: Volumes, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(volumes.status, state="error", message="phase1_pretraining.yaml: 1 mistake\n  training.seed = -1")
    text = screen(volumes, capsys)
    assert re.search(r"State +error", text)
    assert "training.seed = -1" in text


def fail(volumes: Volumes, error: SvitloError, *, hold: bool) -> None:
    """Let data-prep end with an error. `hold`: in a container, which is started again where that may help."""

    def work() -> str:
        raise error

    with pytest.raises(type(error)):
        run_service(work, volumes.prepare_status, Interruption(signals=()), hold=hold)


def test_only_what_is_tried_again_is_called_waiting(volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = HubUnreachable("hub data set x", "the hub cannot be reached", "Check the network")

    def become_a_sleep(*_: object) -> None:
        raise unreachable

    monkeypatch.setattr(holding, "_hold_still", become_a_sleep)
    fail(volumes, unreachable, hold=True)
    known = overview(volumes)
    assert (known["state"], known["message"]) == (
        WAITING_FOR_HUB,
        "hub data set x: the hub cannot be reached. Check the network. The next try is in 1 min",
    )
    fail(volumes, unreachable, hold=False)
    assert overview(volumes)["state"] == "error", "a command that has ended waits for nothing"
    fail(volumes, VolumeError("the disk is full"), hold=True)
    assert overview(volumes)["state"] == "error"


def test_saves_do_not_push_other_events_off_the_screen(volumes: Volumes) -> None:
    log = EventLog(volumes.events, say=lambda _: None)
    log.record("cut off", "the last trainer was ended by a power cut")
    for step in range(50):
        log.record("saved", f"saved step {step}")
    log.record("evaluated", "validation loss 5.0")
    assert [event["event"] for event in overview(volumes)["events"]] == ["cut off", "evaluated"]


def read_only_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview_module, "mount_of", lambda path: Mount("ext4", is_read_only=True))


@pytest.mark.parametrize("seconds", [20, 3_600])
def test_a_read_only_disk_is_seen_by_the_status_itself(
    volumes: Volumes, seconds: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer cannot write that it cannot write."""
    write_status(volumes.status, state="training", phase=1, step=7, tokens_per_second=1480.0)
    later(monkeypatch, seconds)
    read_only_disk(monkeypatch)
    known = overview(volumes)
    assert known["state"] == "error"
    assert not known["is_running"]
    text = " ".join(screen(volumes, capsys).replace("│", "").split())
    assert "its disk (ext4) is read-only, so nothing is saved and nothing reported: the last report is of" in text
    assert "20 s ago" in text if seconds == 20 else "1 h 0 min ago" in text or "1 h ago" in text
    assert "tokens/s" not in text


def test_a_finished_run_may_lie_on_a_read_only_disk(volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> None:
    write_status(volumes.status, state="complete", message="done")
    volumes.completion.write_text("{}")
    read_only_disk(monkeypatch)
    assert overview(volumes)["state"] == "complete"


def test_a_service_that_cannot_report_is_unhealthy(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = tmp_path / "health"
    monkeypatch.setenv("SVITLO_HEALTH_FILE", str(health))
    write_status(volumes.status, state="training")
    set_health(True, "training")
    away = volumes.logs.rename(volumes.root / "away")
    volumes.logs.mkdir()  # the folder below the mount point
    write_status(volumes.status, state="training")
    set_health(True, "training")
    assert health.read_text().startswith("unhealthy\n")
    assert "not mounted any more" in health.read_text()
    assert not list(volumes.logs.iterdir())
    volumes.logs.rmdir()
    away.rename(volumes.logs)
    write_status(volumes.status, state="training")
    set_health(True, "training")
    assert health.read_text().startswith("healthy\n")


def test_a_terminal_that_knows_only_ascii_gets_plain_characters(volumes: Volumes) -> None:
    evaluated(volumes, 1, 10.8, 6.0, 5.0)
    EventLog(volumes.events, say=lambda _: None).record("evaluated", "світло → 5.0")
    write_status(volumes.status, state="training", phase=1, step=500, num_steps=1000)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "svitlo", "status", "--volumes", str(volumes.root)]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    text = done.stdout.decode("ascii")
    for part in ("10.800 > 5.000", "###", "50.0%", "?????? > 5.0"):
        assert part in text
    assert len({len(line) for line in text.splitlines()}) == 1, "the frame is straight"
