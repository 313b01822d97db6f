"""Whether a run may go on: compares the configuration now with the one that the run began with. Imports no torch."""

from __future__ import annotations

import contextlib
from typing import Any

from pydantic import ValidationError

from svitlo.config import PhaseConfig


def changes_since(recorded: dict[str, Any], config: PhaseConfig) -> list[str]:
    """`section.key was X, is now Y` for each key that affects the result and differs from the record.

    A run that began before a key existed counts as having the default, so a new version does not end old runs.
    """
    with contextlib.suppress(ValidationError):  # recorded by a version with other rules: compared unchanged
        recorded = type(config).model_validate(recorded).identity()
    return differences(recorded, config.identity())


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`section.key was X, is now Y` for each difference between two configurations."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += differences(before, now, f"{prefix}{key}.")
        elif before != now:
            lines.append(f"{prefix}{key} was {before}, is now {now}")
    return lines
