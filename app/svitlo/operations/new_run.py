"""`svitlo new-run`: the present run is moved aside, and training begins anew on the same data. Deletes nothing."""

from __future__ import annotations

from svitlo.operations.shared import RUN_VOLUMES, move_aside, nobody_at_work
from svitlo.storage.space import explained
from svitlo.storage.sums import shown
from svitlo.volumes import Volumes


def new_run(volumes: Volumes) -> str:
    """Move checkpoints, logs and export aside, so that training begins anew on the same data. Returns a sentence."""
    volumes.require_writable(*RUN_VOLUMES)
    with nobody_at_work(volumes), explained(volumes.root):
        aside = move_aside(volumes, RUN_VOLUMES)
    return "there was no run to move aside" if aside is None else f"the run before is now in {shown(aside)}"
