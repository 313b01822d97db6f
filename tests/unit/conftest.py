"""What several unit tests begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from svitlo.volumes import Volumes
from tests.unit.checkout import Checkout


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    """Volumes that hold as little as can be backed up. Modules that need more have a fixture of this name."""
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    volumes.metrics.write_text("{}\n")
    return volumes


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)
