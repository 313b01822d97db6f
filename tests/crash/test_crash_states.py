"""Nothing is lost in any state that a power cut may leave, after every operation of saving and of preparing data.

The number of states is printed (`pytest -s`). All states are looked at; from a sample of those of the data preparation
(SVITLO_TORTURE=1: a larger one) the preparation is also run to its end. SVITLO_SEED chooses the sample.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from svitlo.data.prepare import prepare
from svitlo.errors import DataError
from svitlo.interruption import Interruption
from svitlo.manifest import DataNotReady, load_manifest, verify_shards
from svitlo.phases import PHASES
from svitlo.training.checkpoints import LAST, load_checkpoint
from svitlo.training.saving import mark_best, save_checkpoint
from svitlo.training.state import TrainingState
from svitlo.volumes import Volumes
from tests.conftest import DATA, RAW
from tests.crash.forks import torture
from tests.crash.model_filesystem import Recorder, State
from tests.support import checkpoint_state, newest

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3_600)]

TORTURE = torture()
STEPS = (10, 20, 30)
SAMPLED = 0.2 if TORTURE else 0.006
"""Share of the states from which the preparation is run to its end. That takes a while."""
SIZE = 2_000
"""Numbers in the model: its checkpoint has three pages."""


def tiny_state(step: int) -> TrainingState:
    return checkpoint_state(step, {"weight": torch.full((SIZE,), float(step))})


def refuse(path: Path, reason: str) -> None:
    raise AssertionError(f"a power cut alone must not leave a broken checkpoint: {path}: {reason}")


class Explorer:
    """Looks at each state once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[tuple[str, object]] = set()
        self.num_states = 0

    def look(self, state: State, expected: object, check: Callable[[Path], None]) -> None:
        """Write the state to a folder and check it, unless it was already checked with the same expectation."""
        key = (state.key, expected)
        if key in self._seen:
            return
        self._seen.add(key)
        self.num_states += 1
        root = self._folder / "state"
        state.write(root)
        try:
            check(root)
        finally:
            shutil.rmtree(root)


def train_a_little(folder: Path, keep: int, recorder: Recorder) -> None:
    """Three saves as the training loop makes them. Before some of them the best state gets its second name."""
    state = tiny_state(0)
    for step in STEPS:
        recorder.mark(("saving", step))
        state.global_step = step
        state.model_state_dict = {"weight": torch.full((SIZE,), float(step))}
        save_checkpoint(state, folder, keep)
        recorder.mark(("saved", step))
        if step != 20:
            mark_best(folder)
            state.best_step, state.best_loss = step, 1.0 / step


def explore_saves(
    recorder: Recorder, keep: int, folder: Path, without: str = "", *, has_links: bool = True
) -> tuple[int, int, int]:
    """Check every state after every operation. Operations of the kind `without` count as never done.

    Returns the numbers of operations, of states after a cut, and of states after a second cut during the recovery.
    """
    first, second = Explorer(folder / "first"), Explorer(folder / "second")
    durable, saving = None, None
    num_operations = 0
    for operation, disk in recorder.replay(lambda operation: operation.kind == without):
        if operation.kind == "mark":
            what, step = operation.mark
            durable, saving = (durable, step) if what == "saving" else (step, step)
            continue
        num_operations += 1
        allowed = (durable, saving)

        def find(root: Path, allowed: tuple[int | None, int | None] = allowed) -> None:
            state = newest(root / "phase1", refuse)
            step = None if state is None else state.global_step
            assert step in allowed, f"found step {step}, allowed are {allowed}"
            if state is not None:
                assert state.model_state_dict["weight"].equal(torch.full((SIZE,), float(state.global_step)))
                assert load_checkpoint(root / "phase1" / LAST).global_step == step

        def check(root: Path, allowed: tuple[int | None, int | None] = allowed) -> None:
            with Recorder(root, has_links=has_links) as recovery:
                find(root, allowed)
            recovery.check_completeness()
            for _, disk_then in recovery.replay():  # the power fails again, at any moment of the recovery
                for state in disk_then.after_a_cut():
                    second.look(state, allowed, lambda again: find(again, allowed))
            save_checkpoint(tiny_state(99), root / "phase1", keep)  # and it goes on from there
            find(root, (99, 99))

        for state in disk.after_a_cut():
            first.look(state, allowed, check)
    return num_operations, first.num_states, second.num_states


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no-links"])
@pytest.mark.parametrize("keep", [2, 3])
def test_every_state_of_three_saves_has_the_newest_checkpoint_or_the_one_before(
    fast_folder: Path, keep: int, has_links: bool
) -> None:
    run = fast_folder / "run"
    run.mkdir()
    with Recorder(run, has_links=has_links) as recorder:
        train_a_little(run / "phase1", keep, recorder)
    recorder.check_completeness()
    assert any(operation.kind == "link" for operation in recorder.log) == has_links
    num_operations, num_first, num_second = explore_saves(recorder, keep, fast_folder, has_links=has_links)
    print(
        f"\ncheckpoints, keep = {keep}{'' if has_links else ', no hard links'}: {num_operations} operations, "
        f"{num_first:,} states after a cut, {num_second:,} after a second cut during the recovery"
    )
    assert num_first > 100


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no-links"])
@pytest.mark.parametrize("without", ["fsync", "fsync_folder"])
def test_the_model_sees_when_something_is_not_synced(fast_folder: Path, without: str, has_links: bool) -> None:
    """The same saves without one kind of fsync. A model that finds nothing here would prove nothing above."""
    run = fast_folder / "run"
    run.mkdir()
    with Recorder(run, has_links=has_links) as recorder:
        train_a_little(run / "phase1", 3, recorder)
    with pytest.raises(AssertionError, match=r"found step|must not leave a broken"):
        explore_saves(recorder, 3, fast_folder, without, has_links=has_links)


class Corpus:
    """A small corpus and its configuration, prepared by the real code within this process."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config"
        self.volumes = Volumes(folder / "volumes")
        self.config.mkdir()
        self.volumes.set_up()
        text = (RAW / "encyclopedia.txt").read_text().splitlines(keepends=True)[:260]
        (self.volumes.raw / "encyclopedia.txt").write_text("".join(text))
        instructions = json.loads((RAW / "instructions.json").read_text())[:40]
        (self.volumes.raw / "instructions.json").write_text(json.dumps(instructions))
        first = {**DATA["phase1"], "shard_tokens": 4096, "validation_fraction": 0.2}
        second = {**DATA["phase2"], "shard_conversations": 16, "validation_fraction": 0.2}
        second["sources"] = second["sources"][:1]
        (self.config / "data.yaml").write_text(yaml.safe_dump({"phase1": first, "phase2": second}))

    @property
    def data(self) -> Path:
        return self.volumes.root / "data"

    def prepare(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepare(self.config, self.volumes, Interruption(signals=()))

    def shards(self) -> dict[str, bytes]:
        """What the trainer reads."""
        files = [path for name in ("*/*.npy", "*/manifest.json") for path in self.data.glob(name)]
        return {str(path.relative_to(self.data)): path.read_bytes() for path in files}


def look_like_the_trainer(data: Path, digests: dict[str, str]) -> None:
    """If there is a manifest, everything that it names is there, and it is the right manifest."""
    for name, digest in digests.items():
        try:
            manifest = load_manifest(data / name)
        except DataNotReady:
            continue
        verify_shards(data / name, manifest)
        assert manifest.digest == digest


def test_every_state_of_a_preparation_is_seen_as_not_ready_or_as_whole(fast_folder: Path) -> None:
    """Checks shards and manifest in every state. From a sample of the states, the same bytes come out in the end."""
    corpus = Corpus(fast_folder)
    (corpus.data / ".lock").touch()
    with Recorder(corpus.data) as recorder:
        corpus.prepare()
    recorder.check_completeness()
    shards = corpus.shards()
    assert len(shards) > 10
    digests = {phase.name: load_manifest(corpus.volumes.data(phase)).digest for phase in PHASES}

    explorer = Explorer(fast_folder / "states")
    seed = int(os.environ.get("SVITLO_SEED") or 1)
    chance = random.Random(seed)
    goes_on = 0
    num_operations = 0
    for _, disk in recorder.replay():
        num_operations += 1
        for state in disk.after_a_cut():

            def check(root: Path, state: State = state) -> None:
                nonlocal goes_on
                look_like_the_trainer(root, digests)
                if chance.random() < SAMPLED:
                    goes_on += 1
                    shutil.rmtree(corpus.data)
                    state.write(corpus.data)
                    corpus.prepare()
                    assert corpus.shards() == shards

            explorer.look(state, None, check)
    print(
        f"\npreparation: {num_operations} operations, {explorer.num_states:,} states after a cut, each as the trainer "
        f"sees it; {goes_on} of them prepared to the end (seed {seed})"
    )
    assert explorer.num_states > 300
    assert goes_on > 5

    # The check itself: the same with one shard whose data is not synced.
    shard = next(operation.inode for operation in recorder.log if operation.path == "phase1/train-00000.npy.tmp")
    with pytest.raises(DataError, match="train-00000"):
        look_without(recorder, fast_folder / "control", shard, digests)


def look_without(recorder: Recorder, folder: Path, inode: int, digests: dict[str, str]) -> None:
    """What the trainer would see if one file were never synced."""
    explorer = Explorer(folder)
    for _, disk in recorder.replay(lambda operation: operation.kind == "fsync" and operation.inode == inode):
        for state in disk.after_a_cut():
            if any(path == "phase1/manifest.json" for path, _, _ in state.files):
                explorer.look(state, None, lambda root: look_like_the_trainer(root, digests))
