"""Whatever files, members of archives and folders are called: all is read, or named with the reason, or refused.

`pytest tests/unit/test_fuzz_names.py --hypothesis-profile hunt --timeout 0` looks longer.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
import tarfile
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.data import workers
from svitlo.data.patterns import recorded_name
from svitlo.manifest import Manifest, load_manifest
from svitlo.phases import PRETRAINING
from svitlo.storage.sums import shown
from svitlo.volumes import Volumes
from tests.support import contents, run_main

DOCUMENTS = 40
"""In each file and member."""
PARTS = [
    b"a", b"b", b".", b"..", b"-", b"--volumes", b" ", b"*", b"**", b"?", b"[a]", b"[", b"]", b"!", b"\\", b"\\xff",
    b"\xff", b".lock", b".tmp",
    b"\n", b"\r", b"\t", b"\x1b[31m", b"\x7f", b"::", b":", b"~", b"'", b'"', b"$", b"#", b"%", b"{", b"}", b"caf\xe9",
    b".txt", b".TXT", b".zip", b".md5", b".part", b".git", b"__MACOSX", b"$RECYCLE.BIN", b"Thumbs.db",
    b".svitlo-volume",
    *(form.encode() for form in ("й", "\u0438\u0306", "\u2028", "\u202e", "\ufeff", "🕯", "İ", "ß", "\u0085")),
]  # fmt: skip
NAMES = (
    (
        st.lists(st.sampled_from(PARTS) | st.binary(max_size=3), min_size=1, max_size=5).map(b"".join)
        | st.just(b"x" * 255)
    )
    .map(lambda name: name.replace(b"/", b"").replace(b"\x00", b"")[:255])
    .filter(lambda name: name not in (b"", b".", b".."))
)
HALF = re.compile("[\ud800-\udfff]")
"""A name that is not UTF-8 cannot be written into data.yaml. A pattern takes it."""
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)


def text(number: int) -> str:
    """Documents that no other file holds."""
    return "".join(
        f"The lamp {number} of {n} is one of those that people had when they went.\n\n" for n in range(DOCUMENTS)
    )


@pytest.fixture(scope="module", autouse=True)
def _one_tokenizer() -> Iterator[None]:
    """Loading it takes longer than preparing a few documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "Tokenizer", functools.cache(workers.Tokenizer))
        yield


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    volumes = Volumes(folder / "volumes")
    volumes.set_up()
    records = [{"instruction": f"Say {n}.", "output": f"That is {n}, and so it was."} for n in range(90)]
    (volumes.raw / "a.json").write_text(json.dumps(records))
    (folder / "config").mkdir()
    return folder


def prepare(job: Path, pattern: str) -> Manifest | None:
    """Prepare what fits the pattern. None where that was refused in one message and nothing was written."""
    source = {"name": "t", "format": "text", "check_language": False, "files": [pattern]}
    conversations = {"name": "a", "format": "alpaca", "files": ["a.json"]}
    config = {
        "phase1": {"sources": [source], "validation_fraction": 0.1},
        "phase2": {"sources": [conversations], "sequence_length": 64, "validation_fraction": 0.1},
    }
    (job / "config/data.yaml").write_text(yaml.safe_dump(config))
    volumes = Volumes(job / "volumes")
    shutil.rmtree(volumes.data(PRETRAINING), ignore_errors=True)  # it would keep what was left out the last time
    before = contents(volumes.root)
    code, said = run_main("prepare", "--config", str(job / "config"), "--volumes", str(volumes.root))
    assert code in (0, 2), said
    if code == 0:
        return load_manifest(volumes.data(PRETRAINING))
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert said.rstrip("\n").isprintable(), ascii(said)
    after = contents(volumes.root)
    if "::" in pattern:  # an archive is opened when it is read: what is prepared before it stays
        after = {name: content for name, content in after.items() if not name.startswith("data/phase1")}
    assert after == before
    return None


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def names_of(manifest: Manifest) -> tuple[set[str], list[str]]:
    """The files that were read, and what was left out."""
    (source,) = manifest.sources
    return {file["name"] for file in source["identity"]["files"]}, source.get("left_out", [])


def is_named(name: str, left_out: list[str]) -> bool:
    """Whether a name, or a folder above it, stands in the list with a reason."""
    return any(
        entry.startswith((f"{shown(name)} (",)) or shown(name).startswith(entry.rpartition("/ (")[0] + "/")
        for entry in left_out
    )


@settings(max_examples=settings().max_examples // 2)
@given(paths=st.lists(PATHS, min_size=1, max_size=4), data=st.data())
def test_files(job: Path, paths: list[bytes], data: st.DataObject) -> None:
    folder = emptied(job / "volumes/raw/t")
    names = []
    for number, path in enumerate(paths):
        name = os.fsdecode(path)
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text(number))
        except OSError:  # a name that is taken, for a file or for a folder
            continue
        names.append(f"t/{name}")
    literal = [name for name in names if not HALF.search(name)]
    pattern = data.draw(
        st.sampled_from(["t/**/*", "t/**", "t/*", "t/*/**/*", *literal, *(str(Path(name).parent) for name in literal)])
    )
    manifest = prepare(job, pattern)
    if manifest is None:
        return
    read, left_out = names_of(manifest)
    (source,) = manifest.sources
    assert source["documents"] == DOCUMENTS * len(source["identity"]["files"])
    exactly = [name for name in names if nfc(name) == nfc(pattern)]
    meant = exactly or (names if pattern in ("t/**/*", "t/**") else [])
    for name in meant:
        assert recorded_name(name) in read or is_named(name, left_out), (name, read, left_out)
    if pattern in names:
        assert {nfc(name) for name in read} == {nfc(pattern)}
    assert all(entry.isprintable() for entry in left_out)


def nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@settings(max_examples=settings().max_examples // 2)
@given(
    kind=st.sampled_from(["zip", "tar"]),
    paths=st.lists(
        PATHS | st.sampled_from([b"/a.txt", b"../a.txt", b"a/../b", b"./a", b"a\\b.txt", b"C:\\a.txt", b"a//b"]),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
def test_members_of_archives(job: Path, kind: str, paths: list[bytes], data: st.DataObject) -> None:
    names = [os.fsdecode(path) for path in paths]
    if kind == "zip":
        names = [path.decode("utf-8", "replace") for path in paths]
    path = emptied(job / "volumes/raw/t") / "archive"
    pack(path, kind, names)
    literal = [name for name in names if not HALF.search(name)]
    pattern = data.draw(st.sampled_from(["**/*", "**", "*", *literal]))
    manifest = prepare(job, f"t/archive::{pattern}")
    if manifest is None:
        return
    _, left_out = names_of(manifest)
    (source,) = manifest.sources
    assert source["documents"] % DOCUMENTS == 0
    num_read = source["documents"] // DOCUMENTS
    assert 0 < num_read <= len(names)
    if pattern in ("**/*", "**", "*") and pattern not in names:
        assert num_read + len(left_out) >= len(set(names)), (names, left_out)
    assert all(entry.isprintable() for entry in left_out)


def pack(path: Path, kind: str, names: list[str]) -> None:
    """An archive with a member of each name."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two members of one name
            for number, name in enumerate(names):
                archive.writestr(name, text(number))
    else:
        with tarfile.open(path, "w") as archive:
            for number, name in enumerate(names):
                member: Any = tarfile.TarInfo(name)
                content = text(number).encode()
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@settings(max_examples=settings().max_examples // 10)
@given(names=st.lists(NAMES, min_size=1, max_size=4), destination=PATHS)
def test_backups(tmp_path_factory: pytest.TempPathFactory, names: list[bytes], destination: bytes) -> None:
    folder = tmp_path_factory.mktemp("backup")
    volumes, other = Volumes(folder / "volumes"), Volumes(folder / "other")
    volumes.set_up()
    other.set_up()
    volumes.model.mkdir()
    for name in names:
        (volumes.model / os.fsdecode(name)).write_bytes(name)
    place = folder / os.fsdecode(destination)
    code, said = run_main("backup", "--volumes", str(volumes.root), "--", str(place))
    assert code in (0, 2), said
    if code == 0:
        (made,) = place.iterdir()
        assert run_main("restore", "--volumes", str(other.root), "--", str(made))[0] == 0
        assert {path.name: path.read_bytes() for path in other.model.iterdir()} == {
            path.name: path.read_bytes() for path in volumes.model.iterdir()
        }
    else:
        assert not list(folder.rglob("*.partial"))
    shutil.rmtree(folder)
