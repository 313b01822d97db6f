"""`svitlo train`: wait for data → phase 1 → phase 2 → export.

Each start reads from the checkpoints which part is due. So starting again is the same as going on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from svitlo.appliance.endings import MOST_DEATHS, Ending, ProcessRecord, traces_of_the_last
from svitlo.config import DATA_FILE, PhaseConfig, load_data_config, load_phase_config
from svitlo.errors import AlreadyRunning, ConfigError, DamagedData, SvitloError
from svitlo.interruption import Interrupted, Interruption
from svitlo.manifest import MANIFEST, DataNotReady, Manifest, load_manifest, verify_shards
from svitlo.phases import PHASES, PRETRAINING, Phase
from svitlo.reporting.events import print_line, read_events
from svitlo.reporting.progress import GAVE_UP, MACHINE_FAULT, Progress
from svitlo.reporting.status import ensure_complete
from svitlo.storage.files import write_json
from svitlo.storage.locks import exclusive_lock
from svitlo.training.checkpoints import find_newest, load_checkpoint, refuse_to_overlook
from svitlo.training.identity import changes_since
from svitlo.training.machine_check import MOST_FAULTS, MachineFault
from svitlo.volumes import Volumes

_SECONDS_BETWEEN_LOOKS = 5.0

Configs = dict[Phase, PhaseConfig]


class KeepsDying(SvitloError):  # noqa: N818 — reads as what it says
    """Trying again has not helped. A person has to look into it."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config_dir: Path
    volumes: Volumes
    phases: tuple[Phase, ...] = PHASES
    resume: Path | None = None


def train(request: Request, interruption: Interruption) -> str:
    """Do everything that is left to do. Returns one sentence that says what is finished.

    Raises `SvitloError` for problems that a person has to fix, and `Interrupted` after a signal.
    """
    volumes = request.volumes
    volumes.require("data")
    notes: list[str] = []
    volumes.require_writable("checkpoints", "logs", "export", say=notes.append)
    configs = {phase: load_phase_config(request.config_dir, phase) for phase in PHASES}
    done = completion(volumes, configs)
    if done is not None and request.resume is None:
        ensure_complete(volumes.status, done)
        return done
    with exclusive_lock(volumes.trainer_lock) as is_mine:
        if not is_mine:
            raise AlreadyRunning(
                f"{volumes.trainer_lock}: another trainer is using these volumes. Stop it, or wait for it"
            )
        reporting = configs[PRETRAINING].reporting
        traces = traces_of_the_last(volumes)
        progress = Progress(volumes, reporting)
        record = ProcessRecord(volumes.trainer_state, reporting.stop_after_seconds_without_progress)
        ending = record.begin(traces)
        if ending is not None:
            progress.cut_off(f"the last trainer was ended by {ending.in_words}", ending.deaths)
        progress.started()
        for note in notes:
            print_line(f"note: {note}")
        with _ending_noted(record, progress):
            if ending is not None:
                _give_up_if_it_keeps_dying(ending, progress)
            _give_up_if_the_machine_is_faulty(volumes, progress)
            for phase in request.phases:
                _run_phase(request, configs[phase], phase, interruption, progress)
            return _finish(volumes, configs, interruption, progress)


def completion(volumes: Volumes, configs: Configs) -> str | None:
    """What is finished, if everything is. Needs no torch, so a finished container uses little memory."""
    try:
        content = json.loads(volumes.completion.read_bytes())
    except (OSError, ValueError):
        return None
    if not (volumes.model / "model.safetensors").is_file():
        return None
    for phase, config in configs.items():
        changes = changes_since(content["configurations"][str(phase.number)], config)
        if changes:
            raise ConfigError(
                f"{phase.config_file}: the run in {volumes.root / 'checkpoints'} is complete, and the configuration "
                f"has changed since: {'; '.join(changes)}. Undo the change, or start over with `make new-run`"
            )
    return str(content["message"])


@contextlib.contextmanager
def _ending_noted(record: ProcessRecord, progress: Progress) -> Iterator[None]:
    """Note how the process ended, so that the next start can tell a clean end from a power cut."""
    try:
        yield
    except Interrupted as interrupted:
        progress.stopped(f"stopped by {interrupted}")
        record.end(str(interrupted))
        raise
    except SvitloError as error:
        if isinstance(error, MachineFault):
            progress.machine_fault(str(error))
        record.end(str(error))
        raise
    except Exception as error:
        record.fail(error)
        raise
    else:
        record.end("done")
    finally:
        progress.close()


def _give_up_if_it_keeps_dying(ending: Ending, progress: Progress) -> None:
    """Raise `KeepsDying` after three deaths at one step. That is a clean end, so the next start tries again."""
    if ending.deaths < MOST_DEATHS:
        return
    reason = (
        f"the trainer has died {ending.deaths} times in a row {ending.place} and never got any further. The last time "
        f"it was ended by {ending.cause}. All checkpoints are kept. Check the log (`make logs`) and the memory limit "
        f"(TRAINER_MEMORY in .env). Then start it again with `docker compose restart trainer`"
    )
    progress.gave_up(reason)
    raise KeepsDying(reason)


def _give_up_if_the_machine_is_faulty(volumes: Volumes, progress: Progress) -> None:
    """Raise `KeepsDying` after three faults in this run. That is a clean end, so the next start tries again."""
    num_faults = 0
    for event in read_events(volumes.events):
        if event["event"] == MACHINE_FAULT:
            num_faults += 1
        elif event["event"] == GAVE_UP:
            num_faults = 0
    if num_faults < MOST_FAULTS:
        return
    reason = (
        f"this machine has computed the same step in two ways {num_faults} times, so its memory or its CPU is faulty. "
        f"All checkpoints are kept. Take back any overclocking and test the memory, for example with memtest86+. Then "
        f"start the trainer again with `docker compose restart trainer`"
    )
    progress.gave_up(reason)
    raise KeepsDying(reason)


def _run_phase(
    request: Request, config: PhaseConfig, phase: Phase, interruption: Interruption, progress: Progress
) -> None:
    volumes = request.volumes
    if request.resume is None:
        refuse_to_overlook(volumes.root / "checkpoints", phase)
    resume = _resume_from(request, phase)
    damaged: set[str] = set()
    while True:
        manifest = _wait_for_data(request, phase, interruption, progress, damaged)
        # torch only now: a trainer that waits for its data stays small.
        from svitlo.training import setup
        from svitlo.training.loop import train_phase

        interruption.check()  # the import takes seconds
        try:
            with interruption.at_once():  # nothing to save yet
                run = setup.set_up_phase(
                    volumes=volumes,
                    config=config,
                    manifest=manifest,
                    resume=resume,
                    interruption=interruption,
                    observer=progress,
                )
            if run is None:
                return
            resume = None  # from here on it has checkpoints of its own
            train_phase(run)
            progress.phase_finished(run.state)
            return
        except DamagedData as error:
            damaged.add(error.file)


def _resume_from(request: Request, phase: Phase) -> Path | None:
    """The checkpoint file that the user has chosen, if it belongs to this phase."""
    if request.resume is not None and load_checkpoint(request.resume).phase == phase.number:
        return request.resume
    return None


def _wait_for_data(
    request: Request, phase: Phase, interruption: Interruption, progress: Progress, damaged: Collection[str]
) -> Manifest:
    """The manifest of a phase, as soon as it and its shards are there and nothing is about to replace them.

    `damaged`: names of files that must be made again first. All others are verified before their first use.
    """
    volumes = request.volumes
    while True:
        try:
            manifest = load_manifest(volumes.data(phase))
            if not any(volumes.checkpoints(phase).glob("*.pt*")):
                _refuse_outdated(request, phase, manifest)
            verify_shards(volumes.data(phase), manifest, content=damaged.__contains__)
        except (DataNotReady, DamagedData) as error:
            reason = str(error) if (volumes.data(phase) / MANIFEST).exists() else ""
            progress.waiting_for_data(phase, reason, is_damaged=isinstance(error, DamagedData))
            interruption.wait(_SECONDS_BETWEEN_LOOKS)
            volumes.require("data")
        else:
            progress.data_found(phase)
            return manifest


def _refuse_outdated(request: Request, phase: Phase, manifest: Manifest) -> None:
    """Raise `DataNotReady` where the data is not what data.yaml asks for now: a run must not begin with it.

    A run that has begun goes on with its own data, whatever data.yaml says.
    """
    from svitlo.data.journal import FOLDER as JOURNAL_FOLDER

    volumes = request.volumes
    if (volumes.next_data(phase) / JOURNAL_FOLDER).exists():
        raise DataNotReady(f"{volumes.next_data(phase)}: data that will replace the present data is being prepared")
    if not (request.config_dir / DATA_FILE).exists():  # the shards alone were brought here
        return
    from svitlo.data.formats import all_formats
    from svitlo.data.plan import preparation_key
    from svitlo.data.tokenizer import tokenizer_sha256

    try:
        wanted = load_data_config(request.config_dir, all_formats()).of(phase)
    except ConfigError as error:
        raise DataNotReady(str(error)) from error
    if preparation_key(wanted, tokenizer_sha256()) != manifest.configuration_digest:
        raise DataNotReady(f"{volumes.data(phase)}: the data is not what {DATA_FILE} asks for now")


def _finish(volumes: Volumes, configs: Configs, interruption: Interruption, progress: Progress) -> str:
    """Export the model. If all phases are finished, note that the run is complete."""
    from svitlo.model.export import export_model

    interruption.check()
    progress.exporting()
    with interruption.at_once():
        export_model(volumes)
    finished = [phase for phase in PHASES if _is_finished(volumes, phase)]
    message = f"training is complete; the model is in {volumes.model}"
    if len(finished) == len(PHASES):
        configurations = {str(phase.number): config.identity() for phase, config in configs.items()}
        write_json(volumes.completion, {"configurations": configurations, "message": message})
    else:
        message = f"{' and '.join(map(str, finished))} finished; the model so far is in {volumes.model}"
    progress.complete(message)
    return message


def _is_finished(volumes: Volumes, phase: Phase) -> bool:
    state = find_newest(volumes.checkpoints(phase), phase)
    return state is not None and bool(state.finished)
