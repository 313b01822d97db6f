"""`svitlo train`: wait for data → phase 1 → phase 2 → export.

Which part is due is read from the checkpoints each time, so that starting again is the same as going on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from svitlo.config import PHASE_FILES, Phase2Config, load_phase1_config, load_phase2_config
from svitlo.data.shards import DataNotReady, Manifest, load_manifest, verify_shards
from svitlo.durability.files import exclusive_lock, write_json
from svitlo.durability.interruption import Interrupted, Interruption, ProcessRecord
from svitlo.errors import CheckpointError, ConfigError, SvitloError
from svitlo.reporting.progress import Progress
from svitlo.training.identity import changes_since
from svitlo.volumes import Volumes

_SECONDS_BETWEEN_LOOKS = 5.0


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config_dir: Path
    volumes: Volumes
    phases: tuple[int, ...] = (1, 2)
    resume: Path | None = None


def train(request: Request, interruption: Interruption) -> str:
    """Do everything that is left to do. Returns in one sentence what is finished.

    Raises `SvitloError` for what a person has to mend and `Interrupted` after a signal.
    """
    volumes = request.volumes
    volumes.require("data")
    volumes.require_writable("checkpoints", "logs", "export")
    configs: dict[int, Phase2Config] = {
        1: load_phase1_config(request.config_dir),
        2: load_phase2_config(request.config_dir),
    }
    done = completion(volumes, configs)
    if done is not None and request.resume is None:
        return done
    with exclusive_lock(volumes.trainer_lock) as is_mine:
        if not is_mine:
            raise CheckpointError(
                f"{volumes.trainer_lock}: another trainer works on these volumes. Stop it first, or wait for it"
            )
        progress = Progress(volumes, configs[1].reporting)
        record = ProcessRecord(volumes.trainer_state)
        progress.started(record.begin())
        with _ending_noted(record, progress):
            for phase in request.phases:
                _run_phase(request, configs, phase, interruption, progress)
            return _finish(volumes, configs, progress)


def completion(volumes: Volumes, configs: dict[int, Phase2Config]) -> str | None:
    """What is finished, if everything is: known without importing torch, so that a finished container starts small."""
    try:
        content = json.loads(volumes.completion.read_bytes())
    except (OSError, ValueError):
        return None
    if not (volumes.model / "model.safetensors").is_file():
        return None
    for phase, config in configs.items():
        changes = changes_since(content["configurations"][str(phase)], config)
        if changes:
            raise ConfigError(
                f"{PHASE_FILES[phase]}: the run in {volumes.root / 'checkpoints'} is complete, and the configuration "
                f"has changed since: {'; '.join(changes)}. Take the change back, or begin anew with `make new-run`"
            )
    return str(content["message"])


@contextlib.contextmanager
def _ending_noted(record: ProcessRecord, progress: Progress) -> Iterator[None]:
    """Note how the process ended, so that the next start can tell an orderly end from a power cut."""
    try:
        yield
    except Interrupted as interrupted:
        progress.stopped(f"stopped by {interrupted}")
        record.end(str(interrupted))
        raise
    except SvitloError as error:
        record.end(str(error))
        raise
    else:
        record.end("done")
    finally:
        progress.close()


def _run_phase(
    request: Request, configs: dict[int, Phase2Config], phase: int, interruption: Interruption, progress: Progress
) -> None:
    volumes, config = request.volumes, configs[phase]
    manifest = _wait_for_data(volumes, phase, interruption, progress)
    verify_shards(volumes.data(phase), manifest)
    # torch only now: a trainer that waits for its data stays small.
    from svitlo.training import setup

    if interruption.requested:  # the import takes seconds
        raise interruption.error
    run = setup.prepare_phase(
        volumes=volumes,
        config=config,
        phase=phase,
        manifest=manifest,
        resume=request.resume if request.resume and setup.phase_of(request.resume) == phase else None,
        interruption=interruption,
        progress=progress,
    )
    if run is None:
        return
    from svitlo.training.loop import train_phase

    train_phase(run)
    progress.phase_finished(run.state)


def _wait_for_data(volumes: Volumes, phase: int, interruption: Interruption, progress: Progress) -> Manifest:
    """The manifest of a phase, as soon as it is there."""
    while True:
        try:
            return load_manifest(volumes.data(phase))
        except DataNotReady:
            progress.waiting_for_data(phase)
            interruption.wait(_SECONDS_BETWEEN_LOOKS)
            volumes.require("data")


def _finish(volumes: Volumes, configs: dict[int, Phase2Config], progress: Progress) -> str:
    """Export the model, and note that the run is complete once both phases are."""
    from svitlo.export import export_model

    progress.exporting()
    export_model(volumes)
    from svitlo.training.setup import finished_phases

    finished = finished_phases(volumes)
    message = f"training is complete; the model is in {volumes.model}"
    if finished == (1, 2):
        write_json(
            volumes.completion,
            {
                "configurations": {str(phase): config.identity() for phase, config in configs.items()},
                "message": message,
            },
        )
    else:
        message = f"phase {' and '.join(map(str, finished))} finished; the model so far is in {volumes.model}"
    progress.complete(message)
    return message
