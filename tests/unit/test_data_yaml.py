"""YAML is read as people mean it, and what cannot be meant is one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from svitlo.config import DataConfig, load_data_config
from svitlo.data.formats import all_formats
from svitlo.data.prepare import prepare
from svitlo.errors import ConfigError
from svitlo.interruption import Interruption
from svitlo.volumes import Volumes

PHASE2 = "phase2: {sources: [{name: b, format: alpaca, files: [b]}]}\n"


def load(folder: Path, phase1: str) -> DataConfig:
    (folder / "data.yaml").write_text(f"phase1:\n{phase1}\n{PHASE2}")
    return load_data_config(folder, all_formats())


def source(folder: Path, keys: str, more: str = "") -> DataConfig:
    return load(folder, f"  sources:\n    - {{format: text, files: [t.txt], {keys}}}\n{more}")


def test_a_key_that_is_a_list_is_one_message_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not valid YAML: a key is text, and this one is \['a'\].*line 3, column"):
        source(tmp_path, "name: a, ? [a] : b")


def test_merged_keys_are_taken_over_and_may_be_replaced(tmp_path: Path) -> None:
    text = "  sources:\n    - &a {name: t, format: text, files: [t.txt]}\n    - {<<: *a, name: u}\n"
    first, second = load(tmp_path, text).phase1.sources
    assert (first.name, second.name, second.files) == ("t", "u", ["t.txt"])
    with pytest.raises(ConfigError, match="the key `name` appears twice"):
        load(tmp_path, text.replace("name: u", "name: u, name: v"))


@pytest.mark.parametrize("name", ["no", "on", "Y", "off", "2024-01-01"])
def test_words_are_text_where_text_is_expected(tmp_path: Path, name: str) -> None:
    assert source(tmp_path, f"name: {name}").phase1.sources[0].name == name


@pytest.mark.parametrize(("word", "value"), [("no", False), ("false", False), ("True", True), ("on", True)])
def test_and_truth_values_where_those_are_expected(tmp_path: Path, word: str, value: bool) -> None:
    assert source(tmp_path, f"name: a, check_language: {word}").phase1.sources[0].check_language is value


@pytest.mark.parametrize(
    ("number", "value"), [("010", 10), ("10", 10), ("1_0", 10), ("0x10", 16), ("'10'", 10), ("+10", 10)]
)
def test_numbers_are_what_people_read(tmp_path: Path, number: str, value: int) -> None:
    assert source(tmp_path, "name: a", f"  min_document_words: {number}").phase1.min_document_words == value


def test_numbers_with_fractions(tmp_path: Path) -> None:
    for number in ("0.25", ".25", "2.5e-1", "25e-2"):
        assert source(tmp_path, "name: a", f"  validation_fraction: {number}").phase1.validation_fraction == 0.25


def test_what_is_no_number_is_shown_as_it_stands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"min_document_words = '1:30': input should be a valid integer"):
        source(tmp_path, "name: a", "  min_document_words: 1:30")
    with pytest.raises(ConfigError, match=r"name = 12: input should be a valid string; put it in quotes"):
        source(tmp_path, "name: 12")


def test_conversations_longer_than_the_model_reads_are_refused_before_anything_begins(tmp_path: Path) -> None:
    source(tmp_path, "name: a")
    (tmp_path / "phase1_pretraining.yaml").write_text("model: {positions: 128}\n")
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    with pytest.raises(ConfigError, match=r"phase2\.sequence_length = 256: .* 128 tokens \(model\.positions in "):
        prepare(tmp_path, volumes, Interruption(signals=()))
    assert not volumes.prepare_status.exists()
