"""A mistake in a configuration file is reported with file, key, value, reason and remedy, together with all others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from svitlo.config import (
    InstructionTuningConfig,
    PretrainingConfig,
    load_data_config,
    load_phase_config,
)
from svitlo.data.formats import all_formats
from svitlo.errors import ConfigError
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING
from tests.conftest import DATA, ROOT


def write(folder: Path, text: str, name: str = "phase1_pretraining.yaml") -> Path:
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("value", ["5e-4", '"5e-4"', "0.0005", "5.0e-4"])
def test_every_spelling_of_a_number_is_that_number(tmp_path: Path, value: str) -> None:
    config = load_phase_config(write(tmp_path, f"training: {{learning_rate: {value}}}"), PRETRAINING)
    assert config.training.learning_rate == 0.0005


def test_all_mistakes_are_reported_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    text = (
        "training: {learning_rat: 1e-3, micro_batch: 0, max_epochs: three}\nmodel: {width: 100, heads: 3}\nmodle: 1\n"
    )
    with pytest.raises(ConfigError) as error:
        load_phase_config(write(tmp_path, text), PRETRAINING)
    message = str(error.value)
    assert "5 mistakes" in message
    for part in (
        "phase1_pretraining.yaml",
        "training.learning_rat: unknown key; did you mean `learning_rate`?",
        "training.micro_batch = 0",
        "training.max_epochs = 'three'",
        "`width` (100) must be a multiple of `heads` (3)",
        "modle: unknown key; did you mean `model`?",
    ):
        assert part in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("training: [1, 2", "not valid YAML"),
        ("- a\n- b\n", "expected `key: value` lines"),
        ("training: {seed: 1, seed: 2}", "the key `seed` appears twice"),
        ("model: {layers: -1}", "model.layers = -1"),
        ("checkpoints: {keep: 1}", "checkpoints.keep = 1"),
    ],
)
def test_one_clear_message(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=r"phase1_pretraining\.yaml") as error:
        load_phase_config(write(tmp_path, text), PRETRAINING)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"training: {seed: 1}\n# caf\xe9\n", "not UTF-8 text: line 2 has the byte 0xe9. Save it as UTF-8"),
        (b"\xff\xfet\x00", "not UTF-8 text: line 1 has the byte 0xff"),
        (b"training:\n  seed: \x00", "not valid YAML: the character 0x0 in line 2 is none that a text has. Remove it"),
        (b"[" * 5_000, "nested too deeply"),
        (b"training: {a: " + b"{a: " * 5_000, "nested too deeply"),
        (b"training: {seed: !!int one}", "!!int cannot be 'one' (line 1, column 18)"),
        (b"training: {auto_resume: !!bool perhaps}", "!!bool cannot be 'perhaps'"),
        (b"training: {seed: !!timestamp now}", "'!!timestamp' means nothing here: write the value"),
        (b"training: {seed: " + b"9" * 5_000 + b"}", "training.seed = '9999"),
        (b"training: {max_steps: 1" + b"0" * 30 + b"}", "training.max_steps = 1000"),
        (b"training: {learning_rate: .nan}", "training.learning_rate = nan: input should be a finite number"),
        (b"training: {weight_decay: .inf}", "training.weight_decay = inf: input should be a finite number"),
        (b"reporting: {stop_after_seconds_without_progress: 1e12}", "less than or equal to 10000000"),
        (b'reporting: {sample_prompts: ["\\ud83d"]}', r"'\ud83d' holds half of a character"),
        (b'training: {"\\x1b[31mseed": 1}', r"training.\x1b[31mseed: unknown key; did you mean `seed`?"),
        (b"training: 3", "training: expected `key: value` lines, found 3"),
        (
            b"a0: &a0 {x: 1}\n"
            + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (n, n, n - 1, n - 1) for n in range(1, 40)),
            "too many merged keys",
        ),
    ],
)
def test_what_generated_files_have_found(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "phase1_pretraining.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: ") as error:
        load_phase_config(tmp_path, PRETRAINING)
    assert part in str(error.value)
    assert all(line.isprintable() for line in str(error.value).split("\n"))


def test_aliases_of_aliases_cost_no_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))]
    with pytest.raises(ConfigError, match="40 mistakes"):
        load_phase_config(write(tmp_path, "\n".join(lines)), PRETRAINING)
    with pytest.raises(ConfigError, match="expected `key: value` lines, found list"):
        load_phase_config(write(tmp_path, "- " + "\n- ".join(line.partition(": ")[2] for line in lines)), PRETRAINING)


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        load_phase_config(tmp_path, PRETRAINING)


def test_phase_2_has_no_shape_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model: unknown key"):
        load_phase_config(write(tmp_path, "model: {layers: 2}", "phase2_instruction_tuning.yaml"), INSTRUCTION_TUNING)


def test_numerics_stand_in_one_file_and_hold_for_the_whole_run(tmp_path: Path) -> None:
    write(tmp_path, "numerics: {threads: 3, precision: fp32}")
    file = "phase2_instruction_tuning.yaml"
    for same in ("", "numerics: {threads: 3}", "numerics: {}"):
        numerics = load_phase_config(write(tmp_path, same, file), INSTRUCTION_TUNING).numerics
        assert (numerics.threads, numerics.precision) == (3, "fp32")
    write(tmp_path, "numerics: {threads: 6}", file)
    with pytest.raises(
        ConfigError, match=r"phase2.*numerics\.threads = 6, but phase1_pretraining\.yaml says 3.*remove"
    ):
        load_phase_config(tmp_path, INSTRUCTION_TUNING)


@pytest.mark.parametrize("folder", ["config", "config/offline", "config/demo"])
def test_the_configurations_that_come_with_the_project_are_valid(folder: str) -> None:
    load_data_config(ROOT / folder, all_formats())
    load_phase_config(ROOT / folder, PRETRAINING)
    load_phase_config(ROOT / folder, INSTRUCTION_TUNING)


def test_the_same_job_from_files_trains_in_the_same_way() -> None:
    assert load_phase_config(ROOT / "config/offline", PRETRAINING) == load_phase_config(ROOT / "config", PRETRAINING)
    assert load_phase_config(ROOT / "config/offline", INSTRUCTION_TUNING) == load_phase_config(
        ROOT / "config", INSTRUCTION_TUNING
    )


def test_the_default_files_say_what_the_defaults_are() -> None:
    assert load_phase_config(ROOT / "config", PRETRAINING) == PretrainingConfig()
    written = load_phase_config(ROOT / "config", INSTRUCTION_TUNING).model_dump()
    differences = {
        f"{section}.{key}"
        for section, values in InstructionTuningConfig().model_dump().items()
        for key, value in values.items()
        if written[section][key] != value
    }
    assert differences == {
        "training.max_epochs",
        "training.gradient_accumulation",
        "training.learning_rate",
        "training.muon_learning_rate",
        "evaluation.every_n_steps",
        "evaluation.max_sequences",
        "reporting.sample_prompts",
    }


def test_what_does_not_change_the_result_is_not_part_of_the_identity() -> None:
    base = PretrainingConfig()
    for change in (
        {"checkpoints": {"save_every_seconds": 5}},
        {"reporting": {"sample_tokens": 1}},
        {"training": {"auto_resume": False}},
    ):
        assert PretrainingConfig.model_validate(change).identity() == base.identity()
    for change in ({"training": {"seed": 2}}, {"numerics": {"threads": 3}}, {"evaluation": {"every_n_steps": 7}}):
        assert PretrainingConfig.model_validate(change).identity() != base.identity()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hub": "a/b"}, "exactly one origin"),
        ({"files": None}, "exactly one origin"),
        ({"files": None, "hub": "a/b"}, "`revision` is missing"),
        ({"format": "alpaca"}, "phase 1 reads text"),
        ({"format": "texd"}, "phase1.sources.0.format = 'texd'"),
        ({"filse": []}, "did you mean `files`?"),
    ],
)
def test_sources(tmp_path: Path, change: dict[str, object], part: str) -> None:
    content = yaml.safe_load(yaml.safe_dump(DATA))
    content["phase1"]["sources"][0].update(change)
    write(tmp_path, yaml.safe_dump(content), "data.yaml")
    with pytest.raises(ConfigError) as error:
        load_data_config(tmp_path, all_formats())
    assert part in str(error.value)
