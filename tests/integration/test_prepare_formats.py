"""People's own data through the real command: messages, other field names, CSV and Parquet."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from svitlo.data.shards import ConversationSet, TokenStream
from svitlo.data.tokenizer import Tokenizer
from svitlo.manifest import load_manifest
from svitlo.phases import INSTRUCTION_TUNING
from svitlo.volumes import Volumes

OWN = [
    {"name": "chats", "format": "messages", "files": ["chats.jsonl"]},
    {"name": "shared", "format": "messages", "files": ["shared.parquet"]},
    {
        "name": "pairs",
        "format": "alpaca",
        "files": ["pairs.csv"],
        "fields": {"instruction": "prompt", "output": "response", "input": "context"},
    },
]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    config = {
        "phase1": {
            "sources": [{"name": "pages", "format": "jsonl", "files": ["pages.parquet"], "title_field": "title"}],
            "validation_fraction": 0.2,
        },
        "phase2": {"sources": OWN, "sequence_length": 64, "validation_fraction": 0.2},
    }
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "data.yaml").write_text(yaml.safe_dump(config))
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    raw = volumes.raw
    text = "The mill number {} is by the river and it is old now."
    pages = [{"title": f"Mill {n}", "text": text.format(n)} for n in range(60)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pages), raw / "pages.parquet")
    chats = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"What is the lamp {n} for?"},
                {"role": "assistant", "content": f"The lamp {n} is for reading."},
                {"role": "user", "content": "And where is it?"},
                {"role": "assistant", "content": f"In the house {n}."},
            ]
        }
        for n in range(40)
    ]
    (raw / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    shared = [
        {"conversations": [{"from": "human", "value": f"Is it {n}?"}, {"from": "gpt", "value": f"It is {n}."}]}
        for n in range(40)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(shared), raw / "shared.parquet")
    with open(raw / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "context", "response"])
        writer.writerows([f"Say the number {n}.", f"It is {n},\nof all.", f"The number is {n}."] for n in range(40))
    return tmp_path


def prepare(job: Path) -> subprocess.CompletedProcess[str]:
    folders = ["--config", str(job / "config"), "--volumes", str(job / "volumes")]
    command = [sys.executable, "-m", "svitlo", "prepare", *folders]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def conversations(job: Path) -> list[str]:
    volumes, tokenizer = Volumes(job / "volumes"), Tokenizer()
    manifest = load_manifest(volumes.data(INSTRUCTION_TUNING))
    found = [ConversationSet(volumes.data(INSTRUCTION_TUNING), manifest, split) for split in ("train", "validation")]
    return [tokenizer.decode(part.conversation(n)[0].tolist()) for part in found for n in range(len(part))]


def test_it_is_read_as_it_was_meant(job: Path) -> None:
    done = prepare(job)
    assert done.returncode == 0, done.stderr
    written = conversations(job)
    assert len(written) == 120
    assert (
        "### User:\nBe brief.\n\nWhat is the lamp 7 for?\n\n### Assistant:\nThe lamp 7 is for reading.<|endoftext|>\n\n"
        "### User:\nAnd where is it?\n\n### Assistant:\nIn the house 7.<|endoftext|>"
    ) in written
    assert "### User:\nIs it 7?\n\n### Assistant:\nIt is 7.<|endoftext|>" in written
    assert (
        "### User:\nSay the number 7.\n\nIt is 7,\nof all.\n\n### Assistant:\nThe number is 7.<|endoftext|>" in written
    )
    manifest = load_manifest(job / "volumes" / "data" / "phase2")
    recorded: Any = json.loads((job / "volumes" / "data" / "phase2" / "manifest.json").read_text())
    assert [source.get("fields") for source in recorded["configuration"]["sources"]] == [None, None, OWN[2]["fields"]]
    assert "fields" not in recorded["configuration"]["sources"][0]
    assert manifest.num_tokens("train") > 0

    stream = TokenStream(job / "volumes/data/phase1", load_manifest(job / "volumes/data/phase1"), "train")
    text = Tokenizer().decode(np.asarray(stream.read(0, stream.num_tokens)).tolist())
    assert text.count("<|endoftext|>") > 30
    assert "\nThe mill number " in text

    before = (job / "volumes/data/phase2/manifest.json").read_bytes()
    assert "already prepared and unchanged" in prepare(job).stdout
    assert (job / "volumes/data/phase2/manifest.json").read_bytes() == before


def test_without_the_map_the_message_proposes_it_and_it_works(job: Path) -> None:
    path = job / "config" / "data.yaml"
    config = yaml.safe_load(path.read_text())
    fields = config["phase2"]["sources"][2].pop("fields")
    path.write_text(yaml.safe_dump(config))
    failed = prepare(job)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: pairs.csv: line 2: it has no field `instruction`; its fields are: prompt, ")
    proposal = failed.stderr.split("`fields: ")[1].split("`")[0]
    assert yaml.safe_load(proposal) == fields
    config["phase2"]["sources"][2]["fields"] = yaml.safe_load(proposal)
    path.write_text(yaml.safe_dump(config))
    assert prepare(job).returncode == 0
