"""Checks the model of a power cut on a disk that the kernel mounts and that forgets what was not synced.

Needs root and /dev/fuse. SVITLO_TORTURE=1 cuts the real trainer 50 times instead of 3. SVITLO_SEED chooses where.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from svitlo.phases import PHASES
from tests.conftest import Job, environment
from tests.crash.forks import torture
from tests.crash.model_filesystem import Recorder, state_of
from tests.crash.test_crash_states import STEPS, refuse, train_a_little
from tests.support import assert_same_run, newest

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(3_600),
    pytest.mark.skipif(
        os.getuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK),
        reason="mounting a forgetful disk needs root and /dev/fuse (`modprobe fuse`)",
    ),
]

TORTURE = torture()
SEED = int(os.environ.get("SVITLO_SEED") or 1)
NUM_CUTS = 50 if TORTURE else 2
MOST_OPERATIONS, MOST_WITHOUT_WRITES = 1_500, 150
"""Between two cuts. A whole run of the small job has about 7,000 operations, nearly all of them writes of 128 KiB."""
DISK = Path(__file__).with_name("forgetful_disk.py")


@contextlib.contextmanager
def mounted(backing: Path, mount_point: Path, cut_after: int, seed: int) -> Iterator[Callable[[], tuple[bool, int]]]:
    """The forgetful disk at `mount_point`. Yields a function that unmounts it and tells whether it was cut."""
    mount_point.mkdir(exist_ok=True)
    arguments = [sys.executable, str(DISK), str(backing), str(mount_point), str(cut_after), str(seed)]
    disk = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert disk.stdout is not None
    if disk.stdout.readline() != "mounted\n":
        _, problem = disk.communicate()
        if "mount failed" in problem:
            pytest.skip("mounting a FUSE file system is not allowed here")
        raise AssertionError(problem)

    def unmount() -> tuple[bool, int]:
        subprocess.run(["umount", "--lazy", mount_point], check=False, capture_output=True)
        output, problem = disk.communicate(timeout=60)
        assert disk.returncode == 0, problem
        fields = dict(field.split("=") for field in output.split())
        return fields["cut"] == "True", int(fields["changes"])

    try:
        yield unmount
    finally:
        if disk.poll() is None:
            subprocess.run(["umount", "--lazy", mount_point], check=False, capture_output=True)
            disk.kill()
            disk.wait()


def save_in_a_child(folder: Path) -> int:
    """Three saves in a separate process, because the cut kills it. Returns how it ended."""
    child = os.fork()
    if child == 0:
        try:
            train_a_little(folder / "phase1", 2, _NoRecorder())  # type: ignore[arg-type]
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _NoRecorder:
    def mark(self, value: object) -> None: ...


def test_what_a_real_cut_leaves_is_among_the_states_of_the_model(tmp_path: Path) -> None:
    """Cuts at every operation of three saves on the mounted disk. The model has foreseen each result."""
    run = tmp_path / "model"
    run.mkdir()
    with Recorder(run) as recorder:
        train_a_little(run / "phase1", 2, recorder)
    foreseen = {state.key for _, disk in recorder.replay() for state in disk.after_a_cut()}
    backing = tmp_path / "disk"
    backing.mkdir()
    with mounted(backing, tmp_path / "mount", 0, 0) as unmount:
        assert save_in_a_child(tmp_path / "mount") == 0
        _, num_changes = unmount()
    assert state_of(backing).key == state_of(run).key, "without a cut both end the same"
    seen = set()
    for cut_after in range(1, num_changes + 1):
        for seed in range(6 if TORTURE else 1):
            shutil.rmtree(backing)
            backing.mkdir()
            with mounted(backing, tmp_path / "mount", cut_after, seed + 1000 * cut_after + SEED) as unmount:
                save_in_a_child(tmp_path / "mount")
                assert unmount()[0]
            state = state_of(backing)
            assert state.key in foreseen, f"operation {cut_after}, seed {seed}: {sorted(backing.rglob('*'))}"
            seen.add(state.key)
            found = newest(backing / "phase1", refuse)
            assert found is None or found.global_step in STEPS
    print(
        f"\n{num_changes} operations cut at on a mounted disk: {len(seen)} different states, all among the model's "
        f"{len(foreseen)} (seed {SEED})"
    )


def test_the_real_trainer_survives_cuts_at_random_operations(prepared: Job, trained: Job, tmp_path: Path) -> None:
    """`svitlo train` on the forgetful disk, cut many times, ends with the bits of the undisturbed run."""
    chance = random.Random(SEED)
    job = prepared.copy(tmp_path)
    backing = job.volumes.rename(tmp_path / "disk")
    on_disk = Job(job.config, tmp_path / "mount")
    fresh = shutil.copytree(backing, tmp_path / "fresh")
    cuts = finished = 0
    began = time.monotonic()
    while cuts < NUM_CUTS or not finished:
        cut_after = 0
        if cuts < NUM_CUTS:  # every second time not in the middle of a file
            cut_after = -chance.randrange(1, MOST_WITHOUT_WRITES) if cuts % 2 else chance.randrange(1, MOST_OPERATIONS)
        with mounted(backing, on_disk.volumes, cut_after, chance.randrange(1 << 30)) as unmount:
            done = subprocess.run(
                on_disk.command("train"), capture_output=True, text=True, env=environment(), timeout=300, check=False
            )
            was_cut, _ = unmount()
        if was_cut:
            cuts += 1
            look_at_what_is_left(backing, tmp_path / "copy")
        elif "times in a row" in done.stderr:  # it takes the cuts for crashes, stops, and tries again when asked
            continue
        else:
            assert done.returncode == 0, (
                f"after {cuts} cuts (seed {SEED}): {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
            assert_same_run(Job(job.config, backing), trained)
            finished += 1
            if cuts < NUM_CUTS:
                shutil.rmtree(backing)
                shutil.copytree(fresh, backing)
    print(
        f"\n`svitlo train` cut {cuts} times at random operations, {finished} runs came to their end with the same bits "
        f"(seed {SEED}, {time.monotonic() - began:.0f} s)"
    )


def look_at_what_is_left(backing: Path, copy: Path) -> None:
    """No damaged checkpoint, and none older than what the events say was saved."""
    said: dict[int, int] = {}
    events = backing / "logs" / "events.jsonl"
    for line in events.read_bytes().split(b"\n") if events.exists() else []:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event["event"] == "saved":
                said[event["phase"]] = event["step"]
    for phase in PHASES:
        folder = backing / "checkpoints" / phase.name
        if folder.is_dir():
            shutil.copytree(folder, copy)
            state = newest(copy, phase=phase)
            shutil.rmtree(copy)
            if phase.number in said:
                assert state is not None
                assert state.global_step >= said[phase.number]
