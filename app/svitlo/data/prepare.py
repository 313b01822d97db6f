"""Text in, shards out: `svitlo prepare`.

For each phase: complete and unchanged → say so, in well under two seconds; begun → go on; changed → prepare again,
beside the present data, which stays until its replacement is complete. Killed at any moment and started again, it ends
with the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from svitlo.config import DATA_FILE, DataConfig, PretrainingConfig, load_data_config, load_phase_config
from svitlo.data.division import is_near
from svitlo.data.formats import all_formats
from svitlo.data.preparation import Preparation
from svitlo.data.report import Reporter
from svitlo.errors import AlreadyRunning, ConfigError
from svitlo.interruption import Interrupted, Interruption
from svitlo.manifest import SPLITS, Manifest
from svitlo.phases import PHASES, PRETRAINING
from svitlo.storage.locks import exclusive_lock
from svitlo.storage.space import explained
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from svitlo.data.workers import Workers


def prepare(config_dir: Path, volumes: Volumes, interruption: Interruption) -> str:
    """Make sure that both phases' data is prepared. Returns what there is, in one sentence.

    Raises `ConfigError`, `DataError`, `VolumeError`, `AlreadyRunning`, and `Interrupted` after a signal: at once, also
    in the middle of a long download, because every file that was written is whole.
    """
    config = load_data_config(config_dir, all_formats())
    _check_window(config, config_dir)
    volumes.require_writable("data", "logs", *(["cache"] if _uses_hub(config) else []))
    if any(source.files for phase in PHASES for source in config.of(phase).sources):
        volumes.require("raw")
    reporter = Reporter(volumes.prepare_status)
    with interruption.at_once(), exclusive_lock(volumes.prepare_lock) as is_ours:
        if not is_ours:
            raise AlreadyRunning(f"{volumes.prepare_lock}: another process prepares data on these volumes. Wait for it")
        reporter.status("preparing", "looking at sources and data")
        try:
            with explained(volumes.root / "data", "What is prepared stays, and `svitlo prepare` goes on from here"):
                message = _prepare_phases(config, config_dir, volumes, reporter)
        except Interrupted as interrupted:
            reporter.status("stopped", f"stopped by {interrupted}; the next start goes on from here")
            raise
        reporter.status("complete", message)
    return message


def _check_window(config: DataConfig, config_dir: Path) -> None:
    """Raises `ConfigError` if the conversations are longer than the model's window.

    Mistakes within the model's own file are left to the trainer: data can be prepared without that file.
    """
    try:
        model = load_phase_config(config_dir, PRETRAINING)
    except ConfigError:
        return
    assert isinstance(model, PretrainingConfig)
    longest = config.phase2.sequence_length
    if longest > model.model.positions:
        raise ConfigError(
            f"{config_dir / DATA_FILE}: phase2.sequence_length = {longest}: the model reads at most "
            f"{model.model.positions} tokens (model.positions in {config_dir / PRETRAINING.config_file}). Shorten the "
            f"one or raise the other"
        )


def _uses_hub(config: DataConfig) -> bool:
    return any(source.hub for phase in PHASES for source in config.of(phase).sources)


def _prepare_phases(config: DataConfig, config_dir: Path, volumes: Volumes, reporter: Reporter) -> str:
    manifests = []
    workers: Workers | None = None
    try:
        for phase in PHASES:
            preparation = Preparation(phase, config.of(phase), volumes, reporter)
            manifest = preparation.complete()
            if manifest is None:
                if workers is None:
                    from svitlo.data.workers import Workers

                    workers = Workers()
                manifest = preparation.make(workers)
                reporter.summary(manifest)
                _warn(manifest, config_dir, reporter)
            manifests.append(manifest)
            reporter.count(sum(map(manifest.num_documents, SPLITS)), sum(map(manifest.num_tokens, SPLITS)))
    finally:
        if workers is not None:
            workers.close()
    parts = [
        f"{manifest.phase}: {manifest.num_tokens('train'):,} training tokens and "
        f"{manifest.num_tokens('validation'):,} for validation"
        for manifest in manifests
    ]
    return f"data is prepared; {'; '.join(parts)}"


def _warn(manifest: Manifest, config_dir: Path, reporter: Reporter) -> None:
    for source in manifest.sources:
        dropped = sum(source["dropped"].values())
        if dropped > source["documents"] > 0:
            reporter.say(
                f"warning: {config_dir / DATA_FILE}: source {source['name']}: more was dropped ({dropped:,}) than kept "
                f"({source['documents']:,})"
            )
    fraction = manifest.configuration["validation_fraction"]
    held_back, total = manifest.num_documents("validation"), sum(map(manifest.num_documents, SPLITS))
    if not is_near(held_back, total, fraction):
        reporter.say(
            f"warning: {config_dir / DATA_FILE}: {manifest.phase.name}.validation_fraction = {fraction:g}, and "
            f"{held_back:,} of {total:,} {manifest.phase.unit} ({held_back / total:.1%}) are held back. With more data "
            f"it would be nearer"
        )
