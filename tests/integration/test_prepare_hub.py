"""Data sets laid out as on the hub. The `datasets` library loads them from a local folder, by the same code path."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from svitlo.data.prepare import prepare
from svitlo.data.shards import ConversationSet, TokenStream
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import DataError, SvitloError
from svitlo.interruption import Interruption
from svitlo.manifest import load_manifest
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING
from svitlo.volumes import Volumes
from tests.conftest import ROOT
from tests.hub_server import default_data_sets

COMMIT = "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The default configuration with its repositories replaced by folders that hold rows of the same shape."""
    default = ROOT / "config" / "data.yaml"
    for (repository, _), files in default_data_sets(default).items():
        for name, content in files.items():
            path = tmp_path / "hub" / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    config = yaml.safe_load(default.read_text())
    for phase in ("phase1", "phase2"):
        config[phase]["validation_fraction"] = 0.2
        for source in config[phase]["sources"]:
            source["hub"] = str(tmp_path / "hub" / source["hub"])
    config["phase2"]["sources"][2]["revision"] = "unpinned"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "data.yaml").write_text(yaml.safe_dump(config))
    Volumes(tmp_path / "volumes").set_up()
    return tmp_path


def run(folder: Path) -> str:
    return prepare(folder / "config", Volumes(folder / "volumes"), Interruption(signals=()))


def test_default_configuration_on_rows_of_the_same_shape(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(job)
    volumes, tokenizer = Volumes(job / "volumes"), Tokenizer()
    manifest = load_manifest(volumes.data(PRETRAINING))
    stream = TokenStream(volumes.data(PRETRAINING), manifest, "train")
    text = tokenizer.decode(stream.read(0, stream.num_tokens).tolist())
    assert "Month 7\nMonth 7 is the 7th month of the year we have.\nIt is in the winter & cold.<|endoftext|>" in text
    identity = manifest.sources[0]["identity"]
    assert (identity["revision"], identity["configuration"], identity["pinned"]) == (COMMIT, "20231101.simple", True)

    manifest = load_manifest(volumes.data(INSTRUCTION_TUNING))
    assert [source["documents"] for source in manifest.sources] == [60, 60, 60]
    assert manifest.sources[2]["identity"]["pinned"] is False
    assert "warning: source dailydialog: `revision: unpinned`" in capsys.readouterr().out
    conversations = ConversationSet(volumes.data(INSTRUCTION_TUNING), manifest, "train")
    written = [tokenizer.decode(conversations.conversation(n)[0].tolist()) for n in range(len(conversations))]
    assert any("Is it 7 o'clock?\n\n### Assistant:\nIt's not.<|endoftext|>" in text for text in written)
    assert any("1847 by Anna Holm. 3\n\nWhen was it built?\n\n### Assistant:\n1847<|" in text for text in written)

    before = (volumes.data(INSTRUCTION_TUNING) / "manifest.json").read_bytes()
    run(job)
    assert capsys.readouterr().out.count("already prepared and unchanged") == 2
    assert (volumes.data(INSTRUCTION_TUNING) / "manifest.json").read_bytes() == before


def test_damaged_shard_of_hub_data_is_made_again(job: Path) -> None:
    run(job)
    path = job / "volumes" / "data" / "phase2" / "train-00000.tokens.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    run(job)
    assert path.read_bytes() == whole


def test_json_and_text_files_of_a_repository_work_too(job: Path) -> None:
    repository = next((job / "hub").glob("*/alpaca"))
    for path in repository.rglob("*.parquet"):
        path.unlink()
    records = [{"instruction": f"Say {n} to us.", "input": "", "output": f"It is {n}."} for n in range(50)]
    (repository / "data" / "train.json").write_text("\n".join(map(json.dumps, records)))
    run(job)
    assert load_manifest(job / "volumes" / "data" / "phase2").sources[0]["documents"] == 50


def test_wrong_field_names_the_fields_found(job: Path) -> None:
    path = job / "config" / "data.yaml"
    config = yaml.safe_load(path.read_text())
    config["phase1"]["sources"][0]["field"] = "content"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match="row 1: it has no field `content`; its fields are: id, url, title, text"):
        run(job)


def test_code_in_a_repository_is_never_run(job: Path) -> None:
    repository = next((job / "hub").glob("*/alpaca"))
    for path in repository.rglob("*.parquet"):
        path.unlink()
    (repository / "alpaca.py").write_text(f"open({str(job / 'ran')!r}, 'w')\n")
    with pytest.raises(SvitloError, match="cannot be loaded"):
        run(job)
    assert not (job / "ran").exists()


def test_offline_is_explained(job: Path) -> None:
    """In a separate process, because the libraries read the setting when they are imported."""
    path = job / "config" / "data.yaml"
    config = yaml.safe_load(path.read_text())
    config["phase1"]["sources"][0]["hub"] = "wikimedia/wikipedia"
    path.write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "svitlo",
        "prepare",
        "--config",
        str(job / "config"),
        "--volumes",
        str(job / "volumes"),
    ]
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.startswith("error: hub data set wikimedia/wikipedia")
    assert "config/offline" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_sigterm_while_the_hub_does_not_answer(job: Path) -> None:
    """A library that catches every `Exception`, and tries again, must not keep the signal to itself."""
    path = job / "config" / "data.yaml"
    config = yaml.safe_load(path.read_text())
    config["phase1"]["sources"][0]["hub"] = "wikimedia/wikipedia"
    path.write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "svitlo", "prepare", "--config", str(job / "config")]
        process = subprocess.Popen(
            [*command, "--volumes", str(job / "volumes")],
            env={"HF_ENDPOINT": endpoint, "PATH": "/usr/bin:/bin", "no_proxy": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        server.settimeout(60)
        connection, _ = server.accept()
        process.terminate()
        output, _ = process.communicate(timeout=10)
        connection.close()
    assert process.returncode == 143, output
