"""Damage of every kind is noticed before use, set aside and explained. The newest good file is used.

SVITLO_TORTURE=1 flips every single bit of a checkpoint and cuts it at every length, instead of only a sample.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from svitlo.config import ReportingConfig
from svitlo.errors import CheckpointError, DataError
from svitlo.manifest import load_manifest
from svitlo.phases import PRETRAINING
from svitlo.reporting.progress import Progress
from svitlo.storage.files import write_durably
from svitlo.storage.seal import save_sealed
from svitlo.training.checkpoints import LAST, load_checkpoint
from svitlo.training.saving import mark_best, save_checkpoint
from svitlo.training.state import TrainingState
from svitlo.volumes import Volumes
from tests.conftest import Job
from tests.crash.forks import fork, torture
from tests.support import Rejections, assert_same_run, checkpoint_state, events, newest, no_rejection

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3_600)]

TORTURE = torture()
SEED = int(os.environ.get("SVITLO_SEED") or 1)
RUN = "thisrun"
END_BYTES = 22
SEAL_BYTES = 78 + len("thisrun 1 3 ")


def state_of_step(step: int, phase: int = 1, run_id: str = RUN) -> TrainingState:
    weights = {f"layer{number}": torch.full((300,), float(step)) for number in range(4)}
    return checkpoint_state(step, weights, phase, run_id, configuration={"training": {"seed": 1}})


def save_steps(folder: Path, *steps: int) -> bytes:
    for step in steps:
        save_checkpoint(state_of_step(step), folder, keep=3)
    return (folder / LAST).read_bytes()


def find(folder: Path, rejections: Rejections) -> TrainingState | None:
    return newest(folder, rejections, RUN)


def positions_to_flip(content: bytes) -> list[int]:
    """2,000 bits: the whole end record, and samples of the seal, the directory, the headers and everything."""
    num_bits = 8 * len(content)
    if TORTURE:
        return list(range(num_bits))
    chance = random.Random(SEED)
    end_record = range(8 * (len(content) - SEAL_BYTES - END_BYTES), 8 * (len(content) - SEAL_BYTES))
    seal = chance.sample(range(8 * (len(content) - SEAL_BYTES), num_bits), 150)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        headers = [
            bit for item in archive.infolist() for bit in range(8 * item.header_offset, 8 * item.header_offset + 240)
        ]
        directory = range(8 * archive.start_dir, end_record.start)
    chosen = {*end_record, *seal, *chance.sample(headers, 600), *chance.sample(directory, 600)}
    while len(chosen) < 2_000:
        chosen.add(chance.randrange(num_bits))
    return sorted(chosen)


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    content = save_steps(tmp_path, 3)
    path = tmp_path / "flipped.pt"
    positions = positions_to_flip(content)
    for position in positions:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"flipped\.pt: damaged or not a checkpoint"):
            load_checkpoint(path)
    print(f"\n{len(positions):,} bits of {8 * len(content):,} flipped, all noticed (seed {SEED})")
    assert len(positions) >= 2_000
    path.write_bytes(content)
    load_checkpoint(path)


def test_a_flipped_bit_never_stops_the_search_for_a_good_checkpoint(tmp_path: Path) -> None:
    """The search opens each candidate for its step before verifying it. Damage must not crash that either."""
    content = save_steps(tmp_path, 1, 2, 3)
    positions = random.Random(SEED).sample(positions_to_flip(content), 3_000 if TORTURE else 200)
    for position in positions:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        (tmp_path / LAST).unlink()
        (tmp_path / LAST).write_bytes(flipped)
        rejections = Rejections()
        state = find(tmp_path, rejections)
        assert state is not None
        assert state.global_step == 2, position
        assert [path.name for path, _ in rejections] == [LAST]
        (tmp_path / (LAST + ".broken")).unlink()


def test_truncation_at_any_length_is_noticed(tmp_path: Path) -> None:
    content = save_steps(tmp_path, 3)
    path = tmp_path / "cut.pt"
    lengths = range(len(content)) if TORTURE else random.Random(SEED).sample(range(len(content)), 400)
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    print(f"\n{len(lengths):,} lengths of {len(content):,} tried, all noticed (seed {SEED})")


def test_a_zeroed_page_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    content = save_steps(tmp_path, 3)
    for start in range(0, len(content), 4096):
        page = content[start : start + 4096]
        (tmp_path / "page.pt").write_bytes(content[:start] + bytes(len(page)) + content[start + 4096 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "page.pt")


# --- what may stand where `last_checkpoint.pt` should ----------------------------------------------------------------


def replace_by_text(path: Path) -> str:
    path.write_text("not a checkpoint\n" * 100)
    return "does not end with a seal"


def replace_by_nothing(path: Path) -> str:
    path.write_bytes(b"")
    return "empty"


def replace_by_another_run(path: Path) -> str:
    save_checkpoint(state_of_step(99, run_id="another"), path.parent / "elsewhere", 3)
    (path.parent / "elsewhere" / LAST).rename(path)
    return "belongs to another run (another instead of thisrun)"


def replace_by_another_phase(path: Path) -> str:
    save_checkpoint(state_of_step(99, phase=2), path.parent / "elsewhere", 3)
    (path.parent / "elsewhere" / LAST).rename(path)
    return "belongs to phase 2, not to phase 1"


def replace_by_an_unsealed_archive(path: Path) -> str:
    torch.save(dataclasses.asdict(state_of_step(99)), path)
    return "does not end with a seal"


class Bomb:
    """Leaves a trace if it is unpickled together with its function."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._trace}",)


def replace_by_a_pickle_bomb(path: Path) -> str:
    """With a valid seal, so that only `weights_only` can refuse it."""
    write_durably(path, lambda file: save_sealed({"global_step": 10**6, "bomb": Bomb(path.parent / "exploded")}, file))
    return "which is never unpickled"


def replace_by_a_bare_pickle(path: Path) -> str:
    path.write_bytes(pickle.dumps(Bomb(path.parent / "exploded")))
    return "does not end with a seal"


def replace_by_a_symbolic_link(path: Path) -> str:
    path.rename(path.parent / "elsewhere.pt")
    path.symlink_to("elsewhere.pt")
    return "not a regular file"


def replace_by_a_folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "not a regular file"


REPLACEMENTS = [
    replace_by_text, replace_by_nothing, replace_by_another_run, replace_by_another_phase,
    replace_by_an_unsealed_archive, replace_by_a_pickle_bomb, replace_by_a_bare_pickle, replace_by_a_symbolic_link,
    replace_by_a_folder,
]  # fmt: skip


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_replaced_checkpoint_is_set_aside_and_explained(tmp_path: Path, replace: Callable[[Path], str]) -> None:
    volumes = Volumes(tmp_path)
    volumes.set_up()
    folder = volumes.checkpoints(PRETRAINING)
    save_steps(folder, 1, 2, 3)
    reason = replace(folder / LAST)
    progress = Progress(volumes, ReportingConfig())
    state = newest(folder, progress.fell_back, RUN)
    assert state is not None
    assert state.global_step == 2
    assert load_checkpoint(folder / LAST).global_step == 2, "the good one takes the name"
    assert os.path.lexists(folder / (LAST + ".broken"))
    (event,) = (json.loads(line) for line in volumes.events.read_text().splitlines())
    assert event["event"] == "fell back"
    assert reason in event["message"]
    assert "\n" not in event["message"]
    assert str(folder / LAST) in event["message"]
    assert not list(tmp_path.rglob("exploded")), "nothing from a checkpoint is ever executed"
    # The next start finds everything in order.
    assert newest(folder, no_rejection, RUN) is not None


@pytest.mark.parametrize("replace", [replace_by_text, replace_by_another_run, replace_by_a_folder])
def test_none_good_means_stop_and_never_zero(tmp_path: Path, replace: Callable[[Path], str]) -> None:
    save_steps(tmp_path, 1)
    replace(tmp_path / LAST)
    for _ in range(3):
        with pytest.raises(CheckpointError, match="none of them is usable"):
            find(tmp_path, Rejections())


def test_damage_to_a_file_with_two_names_costs_both_and_no_more(tmp_path: Path) -> None:
    """The best checkpoint is a second name of the last one. This is what that costs."""
    save_steps(tmp_path, 1, 2, 3)
    mark_best(tmp_path)
    os.truncate(tmp_path / LAST, 5_000)
    rejections = Rejections()
    state = find(tmp_path, rejections)
    assert state is not None
    assert state.global_step == 2
    assert {path.name for path, _ in rejections} == {LAST, "best_checkpoint.pt"}


# --- the real commands -----------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_the_trainer_stops_quietly_where_nothing_is_usable(trained: Job, tmp_path: Path) -> None:
    job = trained.copy(tmp_path)
    (job.volumes / "checkpoints" / "complete.json").unlink()
    folder = job.volumes / "checkpoints" / "phase2"
    for path in folder.glob("*.pt"):
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.unlink()
        path.write_bytes(content)
    for _ in range(2):
        done = job.run("train", check=2)
        assert "none of them is usable" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (folder / LAST).exists()
    assert (folder / (LAST + ".broken")).exists()


def test_the_trainer_waits_for_a_damaged_shard_until_data_prep_has_made_it_again(
    trained: Job, prepared: Job, tmp_path: Path
) -> None:
    """Of each phase and each kind, and the manifest. The same trainer goes on, to the bits of an undisturbed run."""
    job = prepared.copy(tmp_path)
    data = job.volumes / "data"
    before = {path: path.read_bytes() for path in data.glob("phase*/*.npy")}
    manifest = data / "phase1" / "manifest.json"
    good = manifest.read_bytes()
    names = [f"phase1/{split}-00000.npy" for split in ("train", "validation")]
    names += ["phase2/train-00000.mask.npy", "phase2/validation-00000.offsets.npy"]
    for name in names:
        damage(data / name)
    with fork(job, "train") as trainer:
        for name in names:  # in the order in which they are needed
            trainer.wait_for_line(rf"waiting for the data of phase \d: .*{name}: is damaged .*restart data-prep")
            (data / name).write_bytes(before[data / name])
        assert trainer.wait(300) == 0, trainer.output()
        assert "Traceback" not in trainer.output()
    assert_same_run(job, trained)
    assert {event["repeated_steps"] for event in events(job) if event["event"] == "resumed"} <= {0}

    shutil.rmtree(job.volumes)
    shutil.copytree(prepared.volumes, job.volumes)
    shard = random.Random(SEED).choice(sorted(before))
    damage(shard)
    with fork(job, "train") as trainer:
        trainer.wait_for_line(f"{shard.name}: is damaged")
        job.run("prepare")
        assert {path: path.read_bytes() for path in before} == before
        trainer.wait_for_line("phase 2 begins")
    for bad in (b"", good[: len(good) // 2], b"\0" * len(good), good.replace(b'"tokens"', b'"tokenz"', 1)):
        manifest.write_bytes(bad)
        with fork(job, "train", "--phase", "1") as trainer:
            trainer.wait_for_line("manifest.json: damaged")
    job.run("prepare")
    assert manifest.read_bytes() == good


def test_any_flipped_bit_of_a_manifest_is_noticed(prepared: Job, tmp_path: Path) -> None:
    content = (prepared.volumes / "data" / "phase1" / "manifest.json").read_bytes()
    load_manifest(prepared.volumes / "data" / "phase1")
    for position in random.Random(SEED).sample(range(8 * len(content)), 2_000):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        (tmp_path / "manifest.json").write_bytes(flipped)
        with pytest.raises(DataError, match=r"manifest\.json: damaged"):
            load_manifest(tmp_path)
