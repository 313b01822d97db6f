"""What went into a phase and what came out, gathered for `training_record.json` and the model card."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata
from typing import Any

from svitlo import __version__
from svitlo.errors import SvitloError
from svitlo.manifest import SPLITS, Manifest, load_manifest
from svitlo.phases import phase_numbered
from svitlo.reporting.metrics import read_metrics
from svitlo.training.state import TrainingState
from svitlo.volumes import Volumes

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def phase_record(volumes: Volumes, last: TrainingState) -> dict[str, Any]:
    """One phase from its newest state, its manifest and the metrics. Losses are nats per token that carries loss."""
    losses = [
        (int(record["step"]), float(record["validation_loss"]))
        for record in read_metrics(volumes.metrics)
        if record["kind"] == "evaluation" and record.get("phase") == last.phase
    ]
    return {
        "configuration": last.configuration,
        "configuration_digest": last.configuration_digest,
        "data": _data_record(volumes, last),
        "numerics": last.numerics,
        "steps": last.global_step,
        "finished": last.finished,
        "tokens_seen": last.tokens_seen,
        "training_seconds": round(last.training_seconds, 1),
        "training_loss": last.loss,
        "first_validation_loss": losses[0][1] if losses else None,
        "first_validation_step": losses[0][0] if losses else None,
        "best_validation_loss": last.best_loss,
        "best_validation_step": last.best_step if last.best_loss is not None else None,
    }


def versions() -> dict[str, str]:
    """The versions of the program, of Python and of the packages that the result depends on."""
    found = {"svitlo": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _data_record(volumes: Volumes, last: TrainingState) -> dict[str, Any]:
    """The data's identity, and what it was made of if the very same data is still there."""
    record: dict[str, Any] = {"digest": last.data_digest}
    manifest = _manifest(volumes, last)
    if manifest is not None:
        record["sources"] = manifest.sources
        record["configuration"] = manifest.configuration
        record["tokenizer_sha256"] = manifest.tokenizer_sha256
        for split in SPLITS:
            record[split] = {
                "documents": manifest.num_documents(split),
                "words": manifest.num_words(split),
                "tokens": manifest.num_tokens(split),
                "tokens_with_loss": manifest.num_reply_tokens(split),
            }
    return record


def _manifest(volumes: Volumes, last: TrainingState) -> Manifest | None:
    with contextlib.suppress(SvitloError):
        manifest = load_manifest(volumes.data(phase_numbered(last.phase)))
        if manifest.digest == last.data_digest:
            return manifest
    return None
