"""Formats are found by name, however many there are. Any record ends in documents or in one message."""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.config import Source, load_data_config
from svitlo.data import formats
from svitlo.data.formats import all_formats, raw_documents, to_conversation
from svitlo.data.sanity import size_of, text_of
from svitlo.data.tasks import ConversationTask, TextTask
from svitlo.data.tokenizer import Tokenizer
from svitlo.data.workers import process
from svitlo.errors import ConfigError, DataError
from tests.conftest import DATA, ROOT

FORMATS = sorted(all_formats())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def test_each_module_is_a_format_of_its_name() -> None:
    folder = ROOT / "app" / "svitlo" / "data" / "formats"
    assert sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__") == FORMATS


def test_no_format_is_compared_outside_its_own_module() -> None:
    """Nothing compares format names: a new format needs no change anywhere else."""
    compared = re.compile(rf"""[=!]= ?["'](?:{"|".join(FORMATS)})["']|\bin [(\[{{]["'](?:{"|".join(FORMATS)})["']""")
    program = ROOT / "app" / "svitlo"
    found = [
        f"{path.relative_to(program)}: {line.strip()}"
        for path in sorted(program.rglob("*.py"))
        for line in path.read_text().splitlines()
        if compared.search(line)
    ]
    assert found == []


# --- a newcomer's format


@pytest.fixture
def guide(tmp_path: Path) -> Iterator[str]:
    """The module of docs/add-a-format.md, as if it lay in the package."""
    (code,) = re.findall(
        r"```python\n(# app/svitlo/data/formats/.*?)```", (ROOT / "docs/add-a-format.md").read_text(), re.S
    )
    name = re.search(r"formats/(\w+)\.py", code)[1]  # type: ignore[index]
    (tmp_path / f"{name}.py").write_text(code)
    formats.__path__.append(str(tmp_path))
    all_formats.cache_clear()
    yield name
    formats.__path__.remove(str(tmp_path))
    sys.modules.pop(f"svitlo.data.formats.{name}", None)
    all_formats.cache_clear()


def test_the_guides_format_works_by_being_there(guide: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = tmp_path / "config"
    config.mkdir()
    content = yaml.safe_load(yaml.safe_dump(DATA))
    content["phase2"]["sources"][0]["format"] = guide
    (config / "data.yaml").write_text(yaml.safe_dump(content))
    source = load_data_config(config, all_formats()).phase2.sources[0]
    data = json.dumps([{"front": "What is the capital of Ukraine?", "back": "Kyiv"}, {"front": "", "back": "x"}])
    card, blank = raw_documents(source, "cards.json", io.BufferedReader(io.BytesIO(data.encode())))  # type: ignore[arg-type]
    outcome = to_conversation(card, tokenizer, 64)
    written = tokenizer.decode(memoryview(outcome.tokens).cast("H").tolist())
    assert written == "### User:\nWhat is the capital of Ukraine?\n\n### Assistant:\nKyiv<|endoftext|>"
    assert to_conversation(blank, tokenizer, 64).dropped
    with pytest.raises(DataError, match=r"no field `back`.*\{back: answer\}"):
        list(raw_documents(source, "x", io.BufferedReader(io.BytesIO(b'[{"front": "a", "answer": "b"}]'))))  # type: ignore[arg-type]


# --- the configuration


def load(folder: Path, phase: str, **change: object) -> Source:
    content = yaml.safe_load(yaml.safe_dump(DATA))
    content[phase]["sources"][0].update(change)
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    config = load_data_config(folder, all_formats())
    return (config.phase1 if phase == "phase1" else config.phase2).sources[0]


@pytest.mark.parametrize(
    ("phase", "change", "part"),
    [
        ("phase2", {"format": "alpca"}, "phase2.sources.0.format = 'alpca': no such format; did you mean `alpaca`?"),
        ("phase2", {"format": "text"}, "phase 2 reads conversations, so `format` must be one of alpaca, dailydialog"),
        ("phase1", {"format": "squad"}, "phase 1 reads text, so `format` must be one of jsonl, text, wikiextractor"),
        ("phase2", {"fields": {"instrution": "prompt"}}, "has no field `instrution`; did you mean `instruction`?"),
        (
            "phase1",
            {"format": "jsonl", "fields": {"text": "body"}},
            "name the record's fields with `field` and `title_field`",
        ),
        ("phase2", {"fields": {}}, "phase2.sources.0.fields"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, phase: str, change: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, phase, **change)
    assert part in str(error.value)


def test_mistakes_about_formats_are_reported_together(tmp_path: Path) -> None:
    content = yaml.safe_load(yaml.safe_dump(DATA))
    content["phase1"]["sources"][0]["format"] = "alpaca"
    content["phase2"]["sources"][0]["format"] = "alpca"
    content["phase2"]["sources"][1]["fields"] = {"dialogs": "x"}
    content["phase2"]["sequence_length"] = 1
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="4 mistakes") as error:
        load_data_config(tmp_path, all_formats())
    for part in ("phase 1 reads text", "did you mean `alpaca`", "no field `dialogs`", "sequence_length = 1"):
        assert part in str(error.value)


def test_what_is_recorded_of_a_source_has_these_keys_and_no_more(tmp_path: Path) -> None:
    """The digest of the configuration decides whether data prepared years ago is still good."""
    keys = [
        "name", "format", "hub", "configuration", "revision", "split", "files", "field", "title_field",
        "check_language", "max_documents",
    ]  # fmt: skip
    assert list(load(tmp_path, "phase2").model_dump(mode="json")) == keys
    config = load_data_config(tmp_path, all_formats())
    assert list(config.phase1.model_dump(mode="json")) == [
        "sources", "validation_fraction", "max_tokens", "shard_tokens", "min_document_words",
    ]  # fmt: skip
    assert list(config.phase2.model_dump(mode="json")) == [
        "sources", "validation_fraction", "sequence_length", "shard_conversations",
    ]  # fmt: skip
    named = load(tmp_path, "phase2", fields={"instruction": "prompt"}).model_dump(mode="json")
    assert named["fields"] == {"instruction": "prompt"}


# --- any record

NAMES = sorted(
    {
        "text", "title", "data", "paragraphs", "qas", "answer_start", "role", "content", "from", "value",
        *(name for found in all_formats().values() for name in (*found.fields, *found.optional_fields)),
    }
)  # fmt: skip
WORDS = st.sampled_from(["user", "assistant", "system", "gpt", "The lamp", "at 5", "5", "nan", "\ud83d", "", "__eou__"])
any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner),
    max_leaves=12,
)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value inside a value, starting with the value itself."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield from places_in(inner, (*path, key))


def spoiled(value: Any, path: tuple[Any, ...], replacement: Any) -> Any:
    """A copy with another value at one place. `...` removes it."""
    if not path:
        return None if replacement is ... else replacement
    copied = value.copy()
    copied[path[0]] = spoiled(value[path[0]], path[1:], replacement)
    if replacement is ... and len(path) == 1:
        del copied[path[0]]
    return copied


def on_the_hub(name: str) -> Source:
    """A source there, where also text stands in records."""
    return Source(name="s", format=name, hub="owner/set", revision="0" * 40)


def test_every_format_has_right_records_that_it_reads() -> None:
    for name, found in all_formats().items():
        assert found.examples, name
        for record in found.examples:
            stream = io.BufferedReader(io.BytesIO(json.dumps(record).encode() + b"\n"))  # type: ignore[arg-type]
            assert any(text_of(document) for document in raw_documents(on_the_hub(name), "x", stream)), (name, record)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150)
@given(data=st.data())
def test_any_record_ends_in_documents_or_in_one_message(name: str, data: st.DataObject, tokenizer: Tokenizer) -> None:
    record = data.draw(st.sampled_from(all_formats()[name].examples))
    for _ in range(data.draw(st.integers(0, 3))):
        record = spoiled(
            record, data.draw(st.sampled_from(list(places_in(record)))), data.draw(any_value | st.just(...))
        )
    gives_text = all_formats()[name].gives == "text"
    task = TextTask(0.1) if gives_text else ConversationTask(0.1, window=64)
    as_lines = data.draw(st.booleans())
    content = (json.dumps(record) + "\n" if as_lines else json.dumps([record])).encode()

    source = data.draw(st.sampled_from([Source(name="s", format=name, files=["x"]), on_the_hub(name)]))
    try:
        found = list(raw_documents(source, "file.x", io.BufferedReader(io.BytesIO(content))))  # type: ignore[arg-type]
    except DataError as error:
        message = str(error)
        assert message.startswith("file.x: ")
        assert message.count("\n") == 0
        assert len(message.encode()) < 1_000
        return
    assert pickle.loads(pickle.dumps(found)) == found  # they go to other processes
    for raw in found:
        assert size_of(raw) <= len(text_of(raw))
    for outcome in process(task, found, tokenizer):
        assert outcome.dropped or outcome.tokens
        assert len(outcome.mask) <= 64
