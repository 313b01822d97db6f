"""Shards: reading gives what was written, and nothing else is accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.data.shards import ConversationSet, TokenStream
from svitlo.data.writing import ConversationWriter, TextWriter
from svitlo.errors import DamagedData, DataError
from svitlo.manifest import MANIFEST, DataNotReady, Manifest, load_manifest, verify_shards
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING, Phase
from svitlo.storage.files import write_json

documents_strategy = st.lists(st.lists(st.integers(0, 50_256), min_size=1, max_size=60), min_size=1, max_size=30)


def write(folder: Path, phase: Phase, shard_size: int, documents: list[list[int]]) -> Manifest:
    """Both splits hold the same documents. Every second token of each carries loss."""
    splits = {}
    for split in ("train", "validation"):
        writer = (ConversationWriter if phase.is_chat else TextWriter)(folder, split, shard_size, [])
        for number, tokens in enumerate(documents):
            packed = np.array(tokens, dtype="<u2").tobytes()
            mask = bytes(position % 2 for position in range(len(tokens))) if phase.is_chat else b""
            writer.add(packed, mask, {"source": 0, "unit": 0, "number": number, "kept": number, "offset": 0})
        writer.finish()
        splits[split] = {
            "documents": len(documents),
            "words": 0,
            "tokens": sum(map(len, documents)),
            "reply_tokens": sum(len(tokens) // 2 for tokens in documents),
            "shards": writer.shards,
        }
    content = {
        "format": 1,
        "phase": phase.number,
        "configuration": {},
        "configuration_digest": "c",
        "tokenizer": {"name": "gpt2", "sha256": "t", "vocab_size": 50257},
        "sources": [],
        "splits": splits,
    }
    write_json(folder / MANIFEST, content)
    return load_manifest(folder)


@settings(max_examples=25, deadline=None)
@given(documents=documents_strategy, shard_tokens=st.integers(5, 200), data=st.data())
def test_stream_reads_any_range_across_shards(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_tokens: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("phase1")
    manifest = write(folder, PRETRAINING, shard_tokens, documents)
    verify_shards(folder, manifest)
    stream = TokenStream(folder, manifest, "train")
    expected = [token for document in documents for token in document]
    assert stream.num_tokens == len(expected) == manifest.num_tokens("train")
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    assert stream.read(start, stop).tolist() == expected[start:stop]
    assert stream.read(start, stop).dtype == np.uint16
    sizes = [shard.num_tokens for shard in manifest.shards("train")]
    assert all(size == shard_tokens for size in sizes[:-1])


@settings(max_examples=25, deadline=None)
@given(documents=documents_strategy, shard_conversations=st.integers(1, 12))
def test_conversations_come_back_whole(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_conversations: int
) -> None:
    folder = tmp_path_factory.mktemp("phase2")
    manifest = write(folder, INSTRUCTION_TUNING, shard_conversations, documents)
    verify_shards(folder, manifest)
    conversations = ConversationSet(folder, manifest, "validation")
    assert len(conversations) == len(documents)
    assert list(map(conversations.length, range(len(conversations)))) == list(map(len, documents))
    for number, expected in enumerate(documents):
        tokens, mask = conversations.conversation(number)
        assert tokens.tolist() == expected
        assert mask.tolist() == [position % 2 for position in range(len(expected))]


def test_reading_outside_is_an_error(tmp_path: Path) -> None:
    stream = TokenStream(tmp_path, write(tmp_path, PRETRAINING, 5, [[1, 2, 3, 4, 5, 6, 7]]), "train")
    for start, stop in ((-1, 2), (3, 8), (5, 4)):
        with pytest.raises(IndexError):
            stream.read(start, stop)


def test_no_manifest_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(DataNotReady, match="svitlo prepare"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("splits"),
        lambda content: content.update(format=2),
        lambda content: content["splits"]["train"].update(tokens="many"),
        lambda content: content["splits"]["train"].update(tokens=3),
        lambda content: content["splits"]["train"]["shards"][0]["files"][0].update(name="../../etc/passwd"),
        lambda content: content["tokenizer"].pop("sha256"),
    ],
)
def test_damaged_manifest_is_refused(tmp_path: Path, damage: object) -> None:
    write(tmp_path, PRETRAINING, 5, [[1, 2, 3, 4, 5, 6, 7]])
    content = json.loads((tmp_path / MANIFEST).read_text())
    damage(content)  # type: ignore[operator]
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match=MANIFEST):
        load_manifest(tmp_path)


def test_manifest_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path, PRETRAINING, 5, [[1, 2, 3]])
    (tmp_path / MANIFEST).write_bytes((tmp_path / MANIFEST).read_bytes()[:-20])
    with pytest.raises(DataError):
        load_manifest(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    manifest = write(tmp_path, PRETRAINING, 5, [[1, 2, 3, 4, 5, 6, 7]])
    path = tmp_path / "train-00001.npy"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-2])
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"train-00001\.npy"):
        verify_shards(tmp_path, manifest)
    stream = TokenStream(tmp_path, manifest, "train")
    assert stream.read(0, 5).tolist() == [1, 2, 3, 4, 5], "the other shard can be used"
    for _ in range(2):
        with pytest.raises(DamagedData, match=r"train-00001\.npy") as caught:
            stream.read(4, 6)
        assert caught.value.file == "train-00001.npy"


def test_pickled_array_is_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path, PRETRAINING, 5, [[1, 2, 3]])
    np.save(tmp_path / "train-00000.npy", np.array([object()] * 3), allow_pickle=True)
    with pytest.raises(DataError, match=r"train-00000\.npy"):
        TokenStream(tmp_path, manifest, "train").read(0, 1)


def test_importing_the_reader_stays_light() -> None:
    program = "import sys, svitlo.data.shards; print([n for n in ('numpy', 'torch', 'tiktoken') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
