"""A run goes on only with the configuration that it began with. A new version of the program does not end it."""

from __future__ import annotations

from svitlo.config import PretrainingConfig
from svitlo.training.identity import changes_since


def test_the_same_configuration_is_the_same() -> None:
    config = PretrainingConfig.model_validate({"training": {"seed": 5}})
    assert changes_since(config.identity(), config) == []


def test_every_change_is_named() -> None:
    before = PretrainingConfig().identity()
    now = PretrainingConfig.model_validate({"training": {"seed": 2}, "model": {"layers": 4}})
    assert changes_since(before, now) == ["model.layers was 6, is now 4", "training.seed was 1, is now 2"]


def test_a_key_that_did_not_exist_yet_had_its_default() -> None:
    before = PretrainingConfig().identity()
    del before["training"]["keep_weights"]
    assert changes_since(before, PretrainingConfig()) == []
    changed = PretrainingConfig.model_validate({"training": {"keep_weights": "last"}})
    assert changes_since(before, changed) == ["training.keep_weights was best, is now last"]


def test_a_key_that_no_longer_exists_is_named() -> None:
    before = PretrainingConfig().identity()
    before["training"]["momentum"] = 0.5
    assert changes_since(before, PretrainingConfig()) == ["training.momentum was 0.5, is now None"]
