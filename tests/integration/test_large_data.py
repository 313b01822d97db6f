"""Shards are verified when they are first used: a start reads next to nothing, and no damaged shard is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.restart import SHARD_TOKENS, pretend_large
from svitlo.data import shards
from svitlo.data.shards import TokenStream
from svitlo.errors import DamagedData
from svitlo.manifest import MANIFEST, ShardFile, file_problem, load_manifest, verify_shards
from svitlo.training.batches import TextBatches
from svitlo.training.loop import train_phase
from tests.conftest import Job
from tests.support import last, run_of_phase_1


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content was read to verify them, in order."""
    names: list[str] = []

    def noted(folder: Path, file: ShardFile, *, content: bool = True) -> str | None:
        names.append(file.name)
        return file_problem(folder, file, content=content)

    monkeypatch.setattr(shards, "file_problem", noted)
    return names


def test_a_start_with_200_gb_of_shards_reads_only_what_the_first_step_needs(
    prepared: Job, tmp_path: Path, verified: list[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / MANIFEST).write_bytes((prepared.volumes / "data/phase1" / MANIFEST).read_bytes())
    pretend_large(folder, 200)
    manifest = load_manifest(folder)
    assert sum(shard.files[0].num_bytes for shard in manifest.shards("train")) >= 200e9
    verify_shards(folder, manifest, content=lambda _: False)

    stream = TokenStream(folder, manifest, "train")
    batches = TextBatches(stream, 256, micro_batch=4, gradient_accumulation=4, seed=1)
    counts = batches.target_counts(50_257)
    assert len(verified) <= 17, "the frequencies of tokens are those of a sample"
    assert counts.sum() <= 17 * SHARD_TOKENS
    assert (counts > 0).all()
    batches.step(0)
    batches._in_background.shutdown()
    assert len(verified) <= 17 + 2 * 16, "sixteen sequences of this step, and of the next one"
    assert len(verified) == len(set(verified)), "nothing is verified twice"

    (folder / "train-40000.npy").unlink()
    with pytest.raises(DamagedData, match=r"train-40000\.npy: is missing"):
        verify_shards(folder, manifest, content=lambda _: False)


def test_damage_that_is_found_on_the_way_costs_no_step_and_not_the_result(
    prepared: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verified: list[str]
) -> None:
    monkeypatch.setattr(shards, "_MOST_COUNTED", 4_096)  # so that a start does not read all of this small corpus
    undisturbed = prepared.copy(tmp_path / "undisturbed")
    undisturbed.change("phase1_pretraining.yaml", "training", micro_batch=1, gradient_accumulation=1)
    undisturbed.change("phase1_pretraining.yaml", "checkpoints", save_every_seconds=1000, save_every_n_steps=None)
    damaged = undisturbed.copy(tmp_path / "damaged")
    run = run_of_phase_1(undisturbed.config, undisturbed.volumes)
    step_of_first_use: dict[int, int] = {}
    for step in range(24):
        for shard in run.train._shards_of(step):  # type: ignore[attr-defined]
            step_of_first_use.setdefault(shard, step)
    assert not set(verified) >= {f"train-{shard:05d}.npy" for shard in step_of_first_use}
    train_phase(run)

    shard, step = max(step_of_first_use.items(), key=lambda item: item[1])
    assert step > 2
    path = damaged.volumes / "data" / "phase1" / f"train-{shard:05d}.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedData, match=path.name):
        train_phase(run_of_phase_1(damaged.config, damaged.volumes))
    assert last(damaged, 1)["global_step"] == step, "saved at the last step before the damage"
    path.write_bytes(content)
    train_phase(run_of_phase_1(damaged.config, damaged.volumes))
    expected, found = (last(job, 1)["model_state_dict"] for job in (undisturbed, damaged))
    assert all(found[name].equal(expected[name]) for name in expected)
