"""Moving to another machine: a backup taken while training runs and restored there goes on to the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.containers.stack import Stack, assert_same_result

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]


@pytest.fixture
def new_home(images: None, tmp_path: Path) -> Iterator[Stack]:
    """A stack on a machine that has the configuration and completely empty volumes."""
    new = Stack(tmp_path / "new-home")
    new.write_job()
    shutil.rmtree(new.volumes)
    try:
        yield new
    finally:
        new.remove()


def test_a_backup_of_a_running_stack_goes_on_elsewhere_to_the_same_bits(
    stack: Stack, new_home: Stack, finished: Stack, tmp_path: Path
) -> None:
    destination = tmp_path / "backups"
    stack.up()
    stack.wait_for_step(1, 3)
    said = stack.command("docker/backup.sh", str(destination))
    assert str(destination) in said.stderr
    (backup,) = destination.iterdir()
    sums = (backup / "SHA256SUMS").read_text()
    assert "checkpoints/phase1/last_checkpoint.pt" in sums
    assert stack.command("sh", "-c", f"cd {backup} && sha256sum --check --quiet SHA256SUMS").stdout == ""
    saved = [torch.load(path, weights_only=True) for path in backup.glob("checkpoints/phase?/last_checkpoint.pt")]
    assert not all(state["finished"] for state in saved), "training went on while the backup was made"
    assert not (backup / "checkpoints" / "complete.json").exists()

    new_home.command("docker/restore.sh", str(backup))
    stack.wait_until_complete()
    new_home.up()
    new_home.wait_until_complete()
    assert "already prepared and unchanged" in new_home.logs("data-prep"), "nothing is prepared again"
    for run in (stack, new_home):
        assert_same_result(run, finished)
        checked = run.command("docker/tools.sh", "verify").stdout
        assert "last_checkpoint.pt: good" in checked
