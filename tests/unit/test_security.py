"""Nothing read from a disk is ever executed: no pickle, no code. Secrets are in no log and no file."""

from __future__ import annotations

import ast
import http.server
import io
import os
import pickle
import stat
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml

from svitlo.data import shards
from svitlo.data.shards import TokenStream
from svitlo.errors import CheckpointError, DataError
from svitlo.manifest import load_manifest
from svitlo.model.generate import answer
from svitlo.model.weights import newest_state
from svitlo.phases import PHASES, PRETRAINING
from svitlo.storage.seal import save_sealed
from svitlo.training.checkpoints import load_checkpoint, position_of
from svitlo.volumes import Volumes
from tests.conftest import DATA, ROOT, Job, environment, kill, wait_for_line
from tests.support import Rejections, newest

MODULES = sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "docker").rglob("*.py")])
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load",
    "yaml.load_all", "yaml.unsafe_load_all", "torch.jit.load", "torch.hub.load", "np.fromregex", "pd.read_pickle",
}  # fmt: skip
REQUIRED_KEYWORDS = {
    "torch.load": ("weights_only", True),
    "torch.save": None,
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
    "np.lib.format.write_array": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
    "np.lib.format.open_memmap": None,
}
SAFE_LOADERS = {"_UniqueKeyLoader", "yaml.SafeLoader"}


def problems(source: str) -> list[str]:
    """Anything in a module that could execute what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            is_plain = isinstance(node, ast.Import) and not any(alias.asname for alias in node.names)
            allowed = {"pickle"} if is_plain else set()  # looked at below, where it is used
            found += [f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS - allowed]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError":
            found.append(ast.unparse(node))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in FORBIDDEN_CALLS:
            found.append(name)
        if name == "yaml.load" and ast.unparse(keywords.get("Loader", ast.Constant(None))) not in SAFE_LOADERS:
            found.append("yaml.load without a safe loader")
        if (required := REQUIRED_KEYWORDS.get(name)) is not None:
            value = keywords.get(required[0])
            if not (isinstance(value, ast.Constant) and value.value is required[1]):
                found.append(f"{name} without {required[0]}={required[1]}")
        for flag in ("shell", "trust_remote_code", "allow_pickle"):
            value = keywords.get(flag)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                found.append(f"{name} with {flag}")
        if name.endswith(".from_pretrained") and not isinstance(keywords.get("local_files_only"), ast.Constant):
            found.append(f"{name} that may use the network")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(path: Path) -> None:
    assert problems(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b)", "import pickle as p", "from pickle import loads", "import dill", "eval('1')",
        "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p)", "np.load(p, allow_pickle=True)",
        "yaml.load(t, Loader=yaml.Loader)", "yaml.load(t)", "subprocess.run(c, shell=True)",
        "load_dataset(n, trust_remote_code=True)", "AutoModel.from_pretrained(n)",
    ],
)  # fmt: skip
def test_the_check_itself_finds_what_it_is_for(source: str) -> None:
    assert problems(source)


# --- bombs -----------------------------------------------------------------------------------------------------------


class Bomb:
    """Creates a file if it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self._path}",)


def bare_pickle(bomb: Bomb) -> bytes:
    return pickle.dumps(bomb)


def torch_archive(bomb: Bomb) -> bytes:
    file = io.BytesIO()
    torch.save({"phase": 1, "global_step": 5, "run_id": bomb}, file)
    return file.getvalue()


def sealed(bomb: Bomb) -> bytes:
    """Made by an attacker who knows how a checkpoint is sealed."""
    file = io.BytesIO()
    save_sealed({"phase": 1, "global_step": 5, "run_id": bomb}, file)
    return file.getvalue()


def old_torch_file(bomb: Bomb) -> bytes:
    file = io.BytesIO()
    torch.save({"phase": 1, "global_step": 5, "run_id": bomb}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def torch_script(bomb: Bomb) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb))
        archive.writestr("archive/constants.pkl", pickle.dumps(bomb))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


BOMBS = [bare_pickle, torch_archive, sealed, old_torch_file, torch_script]


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    volumes = Volumes(tmp_path / "volumes")
    volumes.set_up()
    for phase in PHASES:
        volumes.checkpoints(phase).mkdir()
        volumes.data(phase).mkdir()
    return volumes


def test_the_bombs_are_real(tmp_path: Path) -> None:
    pickle.loads(bare_pickle(Bomb(tmp_path / "crater")))
    assert (tmp_path / "crater").exists()
    torch.load(io.BytesIO(torch_archive(Bomb(tmp_path / "second"))), weights_only=False)
    assert (tmp_path / "second").exists()


@pytest.mark.parametrize("make", BOMBS)
def test_a_pickle_bomb_for_a_checkpoint_does_nothing(
    volumes: Volumes, tmp_path: Path, make: Callable[[Bomb], bytes]
) -> None:
    crater = tmp_path / "crater"
    path = volumes.checkpoints(PRETRAINING) / "last_checkpoint.pt"
    path.write_bytes(make(Bomb(crater)))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert position_of(path) is None
    with pytest.raises(CheckpointError):
        newest_state(volumes)
    with pytest.raises(CheckpointError):
        answer(volumes, "What is water?")
    with pytest.raises(CheckpointError, match="none of them is usable"):
        newest(volumes.checkpoints(PRETRAINING), Rejections())
    assert not crater.exists()


def test_a_pickled_array_for_a_shard_does_nothing(
    prepared: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepared.copy(tmp_path)
    crater = tmp_path / "crater"
    folder = job.volumes / "data" / "phase1"
    shard = load_manifest(folder).shards("train")[0].files[0]
    file = io.BytesIO()
    np.save(file, np.array([Bomb(crater)] * 3, dtype=object), allow_pickle=True)
    content = file.getvalue()
    (folder / shard.name).write_bytes(content)
    trainer = job.start("train")
    wait_for_line(trainer, f"waiting for the data .*{shard.name}")
    kill(trainer)
    monkeypatch.setattr(shards, "file_problem", lambda *_: None)  # past the comparison of digests
    with pytest.raises(DataError):
        TokenStream(folder, load_manifest(folder), "train").read(0, 1)
    assert not crater.exists()


def test_yaml_makes_no_objects(prepared: Job, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    path = job.config / "data.yaml"
    path.write_text(f"phase1: !!python/object/apply:os.system ['touch {tmp_path / 'crater'}']\n")
    assert "data.yaml" in job.run("prepare", check=2).stderr
    assert not (tmp_path / "crater").exists()


# --- secrets ---------------------------------------------------------------------------------------------------------

TOKEN = "hf_thisIsASecretThatNobodyMaySee"


class Hub(http.server.BaseHTTPRequestHandler):
    """Denies every request."""

    seen: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        self.send_response(403)
        self.send_header("X-Error-Message", "Access to this data set is restricted")
        self.end_headers()

    do_HEAD = do_POST = do_GET  # noqa: N815 — names that the library asks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_hub_token_is_read_from_its_file_and_written_nowhere(hub: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret" / "hub_token"
    secret.parent.mkdir()
    secret.write_text(TOKEN + "\n")
    secret.chmod(stat.S_IRUSR)
    job = Job(tmp_path / "job" / "config", tmp_path / "job" / "volumes")
    job.config.mkdir(parents=True)
    source = {"name": "closed", "hub": "somebody/closed", "revision": "0" * 40, "format": "jsonl"}
    (job.config / "data.yaml").write_text(yaml.safe_dump({**DATA, "phase1": {**DATA["phase1"], "sources": [source]}}))
    job.run("setup")
    done = subprocess.run(
        job.command("prepare"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**environment(), "HF_TOKEN_PATH": str(secret), "HF_ENDPOINT": hub},
    )
    assert done.returncode != 0
    assert f"Bearer {TOKEN}" in Hub.seen, "the hub was asked with the token"
    assert TOKEN not in done.stdout + done.stderr
    written = [path for path in (tmp_path / "job").rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_only_data_prep_is_given_the_token_and_only_as_a_file() -> None:
    stack = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert {name for name, service in stack["services"].items() if service.get("secrets")} == {"data-prep"}
    assert stack["services"]["data-prep"]["environment"] == {"HF_TOKEN_PATH": "/run/secrets/hub_token"}
    assert list(stack["secrets"]["hub_token"]) == ["file"], "from a file and not from an environment"
    for file in ("Dockerfile", "build.sh"):
        content = (ROOT / "docker" / file).read_text().lower()
        assert "hub_token" not in content, "no image layer can hold it"
        assert "hf_token" not in content
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*", "nothing is built in unless it is named"


# --- known vulnerabilities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fake", "code", "said"),
    [
        ("exit 0", 0, "trainer.lock: no known vulnerabilities"),
        ('echo "torch 1.0 CVE-1" >"$out"; exit 1', 1, "CVE-1"),
        ('echo "cannot resolve" >&2; exit 1', 0, "NOT CHECKED"),
    ],
)
def test_the_audit_says_whether_it_has_checked(tmp_path: Path, fake: str, code: int, said: str) -> None:
    """Uses a stand-in for pip-audit, because its real answers change from day to day."""
    folder = tmp_path / "project"
    (folder / "docker").mkdir(parents=True)
    for name in ("audit.sh", "lib.sh", "requirements"):
        (folder / "docker" / name).symlink_to(ROOT / "docker" / name)
    program = folder / ".venv" / "bin" / "pip-audit"
    program.parent.mkdir(parents=True)
    find_out = 'while [ $# -gt 0 ]; do if [ "$1" = --output ]; then out=$2; fi; shift; done'
    program.write_text(f"#!/bin/sh\n{find_out}\n{fake}\n")
    program.chmod(0o755)
    done = subprocess.run([folder / "docker" / "audit.sh"], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert ("no known" in done.stderr) == (fake == "exit 0"), "what was not checked is not called good"
