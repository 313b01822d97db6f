"""The real command on small real files: any number of interruptions gives the same bytes, and errors are clear."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from svitlo.data.prepare import prepare
from svitlo.data.shards import ConversationSet, TokenStream
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import DataError, VolumeError
from svitlo.interruption import Interruption
from svitlo.manifest import load_manifest, verify_shards
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING
from svitlo.volumes import Volumes
from tests.support import die_at

NOUNS = [
    "river",
    "mill",
    "forest",
    "king",
    "bridge",
    "lamp",
    "garden",
    "city",
    "ship",
    "winter",
    "story",
    "horse",
    "market",
    "stone",
    "bell",
    "letter",
]
VERBS = ["crosses", "sees", "builds", "follows", "remembers", "paints", "sells", "carries", "finds", "hears"]


def sentences(seed: int, count: int) -> str:
    choose = random.Random(seed)
    return " ".join(
        f"The {choose.choice(NOUNS)} of the {choose.choice(NOUNS)} {choose.choice(VERBS)} {choose.randint(1, 999)} "
        f"and then it is in the {choose.choice(NOUNS)}."
        for _ in range(count)
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config/ and volumes/: about 60,000 tokens of text and 400 conversations, nothing prepared yet."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "config").mkdir()
    source = {"name": "text", "format": "text", "files": ["text*.txt"]}
    config = {
        "phase1": {"sources": [source], "validation_fraction": 0.1, "shard_tokens": 4_096},
        "phase2": {
            "sources": [
                {"name": "alpaca", "format": "alpaca", "files": ["alpaca.json"]},
                {"name": "squad", "format": "squad", "files": ["squad.json"]},
                {"name": "dialogues", "format": "dailydialog", "files": ["dialogues.txt"]},
            ],
            "sequence_length": 64,
            "validation_fraction": 0.1,
            "shard_conversations": 50,
        },
    }
    (folder / "config" / "data.yaml").write_text(yaml.safe_dump(config))
    volumes = Volumes(folder / "volumes")
    volumes.set_up()
    for part in range(2):
        pages = [f"Title {part} {number}\n{sentences(1_000 * part + number, number % 9 + 1)}" for number in range(300)]
        pages += [*pages[:5], "Redirect\n", "Only four words here."]
        (volumes.raw / f"text{part}.txt").write_text("\n\n".join(pages))
    records = [
        {"instruction": f"Write sentence number {number}.", "input": "", "output": sentences(number, 1)}
        for number in range(150)
    ]
    records += [{"instruction": "Do nothing.", "input": "", "output": ""}]
    (volumes.raw / "alpaca.json").write_text(json.dumps(records, indent=4))
    articles = []
    for number in range(30):
        context = sentences(number, 8)
        word = context.split()[60]
        qas = [
            {"question": "Which word? ", "id": "a", "answers": [{"text": word, "answer_start": context.index(word)}]}
        ]
        qas += [{"question": "What is it not?", "id": "b", "answers": [], "is_impossible": True}]
        articles.append({"title": f"Article_{number}", "paragraphs": [{"context": context, "qas": qas}]})
    (volumes.raw / "squad.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    lines = [
        " __eou__ ".join(
            f"It is the {choose} , is it ?" for choose in random.Random(number).sample(NOUNS, number % 5 + 2)
        )
        for number in range(200)
    ]
    (volumes.raw / "dialogues.txt").write_text("".join(line + " __eou__\n" for line in lines + lines[:7]))
    return folder


def copy_of(job: Path, folder: Path) -> Path:
    shutil.copytree(job, folder, dirs_exist_ok=True)
    return folder


def run(folder: Path) -> str:
    return prepare(folder / "config", Volumes(folder / "volumes"), Interruption(signals=()))


def command(folder: Path) -> list[str]:
    folders = ["--config", str(folder / "config"), "--volumes", str(folder / "volumes")]
    return [sys.executable, "-m", "svitlo", "prepare", *folders]


def digests(folder: Path) -> dict[str, str]:
    """Every shard and manifest with the SHA-256 of its bytes."""
    data = folder / "volumes" / "data"
    return {
        path.relative_to(data).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data.glob("phase*/*"))
        if path.is_file()
    }


def change_config(folder: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    path = folder / "config" / "data.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def done(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same job, prepared without any interruption."""
    folder = copy_of(job, tmp_path_factory.mktemp("done"))
    run(folder)
    return folder


def test_result(done: Path) -> None:
    volumes, tokenizer = Volumes(done / "volumes"), Tokenizer()
    manifest = load_manifest(volumes.data(PRETRAINING))
    verify_shards(volumes.data(PRETRAINING), manifest)
    (source,) = manifest.sources
    assert source["dropped"] == {"repeated": 10, "fewer than 10 words": 4}
    assert [file["name"] for file in source["identity"]["files"]] == ["text0.txt", "text1.txt"]
    train, validation = (TokenStream(volumes.data(PRETRAINING), manifest, split) for split in ("train", "validation"))
    pages = {
        split: tokenizer.decode(stream.read(0, stream.num_tokens).tolist()).split("<|endoftext|>")
        for split, stream in (("train", train), ("validation", validation))
    }
    assert pages["train"].pop() == pages["validation"].pop() == ""  # each document ends with the token
    assert len(pages["train"]) + len(pages["validation"]) == source["documents"]
    assert not set(pages["train"]) & set(pages["validation"])
    assert len(set(pages["train"])) == len(pages["train"])
    assert f"Title 1 77\n{sentences(1_077, 77 % 9 + 1)}" in pages["train"] + pages["validation"]
    assert 20 <= len(pages["validation"]) <= 120
    assert manifest.num_tokens("train") + manifest.num_tokens("validation") == source["tokens"]

    manifest = load_manifest(volumes.data(INSTRUCTION_TUNING))
    verify_shards(volumes.data(INSTRUCTION_TUNING), manifest)
    assert manifest.sources[0]["dropped"] == {"no output": 1}
    assert manifest.sources[1]["changed"]["context cut around the answer"] > 30
    conversations = ConversationSet(volumes.data(INSTRUCTION_TUNING), manifest, "train")
    assert len(conversations) == manifest.num_documents("train")
    assert max(map(conversations.length, range(len(conversations)))) <= 64
    learned = sum(int(conversations.conversation(number)[1].sum()) for number in range(len(conversations)))
    assert learned == manifest.num_reply_tokens("train")


def test_articles_do_not_stand_in_both_splits(done: Path) -> None:
    volumes, tokenizer = Volumes(done / "volumes"), Tokenizer()
    manifest = load_manifest(volumes.data(INSTRUCTION_TUNING))
    contexts: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        conversations = ConversationSet(volumes.data(INSTRUCTION_TUNING), manifest, split)
        for number in range(len(conversations)):
            written = tokenizer.decode(conversations.conversation(number)[0].tolist())
            if "Which word?" in written:
                contexts.setdefault(split, set()).add(written)
    assert not contexts["train"] & contexts.get("validation", set())


def test_two_runs_give_the_same_bytes(job: Path, done: Path, tmp_path: Path) -> None:
    folder = copy_of(job, tmp_path)
    run(folder)
    assert digests(folder) == digests(done)


def test_worker_processes_give_the_same_bytes(
    job: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svitlo.data import workers

    monkeypatch.setattr(workers.Workers, "__init__", _with_two_processes(workers.Workers.__init__))
    monkeypatch.setattr(workers, "BATCH_CHARACTERS", 20_000)
    folder = copy_of(job, tmp_path)
    run(folder)
    assert digests(folder) == digests(done)


def _with_two_processes(original: Callable[..., None]) -> Callable[..., None]:
    return lambda self: original(self, num_workers=2, characters_before=0)


@pytest.mark.parametrize(
    "moment",
    [
        "phase1/train-00000.npy",
        "phase1/train-00007.npy",
        "phase1/validation-00000.npy",
        "phase1/manifest.json",
        "phase2/train-00002.tokens.npy",
        "phase2/.journal/journal.json",
    ],
)
@pytest.mark.crash
def test_killed_at_any_moment_it_ends_with_the_same_bytes(job: Path, done: Path, tmp_path: Path, moment: str) -> None:
    folder = copy_of(job, tmp_path)
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = folder / "volumes" / "data" / moment
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        pass
    process.kill()
    process.wait()
    assert path.exists()
    again = subprocess.run(command(folder), capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert digests(folder) == digests(done)


@pytest.mark.crash
@pytest.mark.parametrize("operation", ["rename", "fsync"])
def test_killed_many_times_it_ends_with_the_same_bytes(job: Path, done: Path, tmp_path: Path, operation: str) -> None:
    """Killed just before a rename or an fsync, each time a few operations later than the last time."""
    folder = copy_of(job, tmp_path)
    killed = 0
    while True:
        child = os.fork()
        if child == 0:
            die_at(operation, 4 + 5 * killed, lambda: run(folder))
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        killed += 1
    assert os.WEXITSTATUS(status) == 0
    assert killed > 3
    assert digests(folder) == digests(done)


def test_stopped_by_sigterm(job: Path, done: Path, tmp_path: Path) -> None:
    folder = copy_of(job, tmp_path)
    process = subprocess.Popen(command(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    path = folder / "volumes" / "data" / "phase1" / "train-00001.npy"
    while not path.exists() and process.poll() is None:
        pass
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - asked < 10
    assert process.returncode == 143, output
    assert "Traceback" not in output
    status = json.loads((folder / "volumes" / "logs" / "data-prep.json").read_text())
    assert status["state"] == "stopped"
    run(folder)
    assert digests(folder) == digests(done)


def test_second_start_is_quick_and_changes_nothing(done: Path) -> None:
    before = {name: (done / "volumes" / "data" / name).stat().st_mtime_ns for name in digests(done)}
    program = (
        "import sys, time; from pathlib import Path; from svitlo.data.prepare import prepare; "
        "from svitlo.interruption import Interruption; "
        "from svitlo.volumes import Volumes; "
        f"print(prepare(Path({str(done / 'config')!r}), Volumes(Path({str(done / 'volumes')!r})), Interruption(()))); "
        "heavy = ('torch', 'datasets', 'numpy', 'tiktoken'); "
        "print(time.process_time() < 2, [name for name in heavy if name in sys.modules])"
    )
    done_again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "already prepared and unchanged" in done_again.stdout
    assert done_again.stdout.splitlines()[-1] == "True []"
    assert before == {name: (done / "volumes" / "data" / name).stat().st_mtime_ns for name in digests(done)}
    assert json.loads((done / "volumes" / "logs" / "data-prep.json").read_text())["state"] == "complete"


@pytest.mark.parametrize("name", ["phase1/train-00003.npy", "phase1/train-00000.npy", "phase1/validation-00000.npy",
                                  "phase2/train-00001.mask.npy", "phase2/validation-00000.tokens.npy"])  # fmt: skip
@pytest.mark.parametrize("is_complete", [True, False])
def test_damaged_shard_is_made_again_alone(
    done: Path, tmp_path: Path, name: str, is_complete: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(done, tmp_path)
    data = folder / "volumes" / "data"
    path = data / name
    if not is_complete:
        (path.parent / "manifest.json").unlink()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    untouched = {other: (data / other).stat().st_mtime_ns for other in digests(done) if other.endswith(".npy")}
    run(folder)
    assert digests(folder) == digests(done)
    shard = name.split(".")[0]
    for other, modified in untouched.items():
        if not other.startswith(shard):
            assert (data / other).stat().st_mtime_ns == modified, other
    assert path.name in capsys.readouterr().out


def test_without_its_journal_damaged_data_is_made_again(done: Path, tmp_path: Path) -> None:
    folder = copy_of(done, tmp_path)
    data = folder / "volumes" / "data" / "phase1"
    shutil.rmtree(data / ".journal")
    (data / "train-00000.npy").unlink()
    run(folder)
    assert digests(folder) == digests(done)


@pytest.mark.parametrize("file", ["journal.json", "pending-*", "digests-*"])
def test_damaged_journal_is_not_used(
    job: Path, done: Path, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(done, tmp_path)
    data = folder / "volumes" / "data" / "phase1"
    (data / "manifest.json").unlink()
    (path,) = sorted((data / ".journal").glob(file))[:1]
    path.write_bytes(path.read_bytes()[:-30])
    run(folder)
    assert "preparing everything again" in capsys.readouterr().out
    assert digests(folder) == digests(done)


def test_changed_configuration_prepares_only_its_phase_again(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(done, tmp_path)
    change_config(folder, lambda config: config["phase1"].update(min_document_words=40))
    run(folder)
    output = capsys.readouterr().out
    assert "phase 1: preparing everything again, because data.yaml" in output
    assert "phase 2: already prepared" in output
    now, before = digests(folder), digests(done)
    assert now["phase1/manifest.json"] != before["phase1/manifest.json"]
    assert now["phase2/manifest.json"] == before["phase2/manifest.json"]
    dropped = load_manifest(folder / "volumes" / "data" / "phase1").sources[0]["dropped"]
    assert dropped["fewer than 40 words"] > 100


def test_changed_source_is_noticed_and_a_removed_one_is_not_missed(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(done, tmp_path)
    raw = folder / "volumes" / "raw"
    (raw / "alpaca.json").unlink()
    (raw / "text1.txt").unlink()
    run(folder)
    assert capsys.readouterr().out.count("already prepared and unchanged") == 2
    with open(raw / "text0.txt", "a") as file:
        file.write("\n\nNew\n" + sentences(5_000, 4))
    run(folder)
    assert "phase 1: preparing everything again, because source text" in capsys.readouterr().out


def test_adding_data_does_not_move_validation(done: Path, tmp_path: Path) -> None:
    folder = copy_of(done, tmp_path)
    with open(folder / "volumes" / "raw" / "text0.txt", "a") as file:
        file.write("\n\n" + "\n\n".join(f"New {number}\n{sentences(9_000 + number, 4)}" for number in range(40)))
    run(folder)
    tokenizer = Tokenizer()

    def pages(where: Path) -> set[str]:
        data = where / "volumes" / "data" / "phase1"
        stream = TokenStream(data, load_manifest(data), "validation")
        return set(tokenizer.decode(stream.read(0, stream.num_tokens).tolist()).split("<|endoftext|>"))

    assert pages(done) < pages(folder) | {""}


def test_limits(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of(done, tmp_path)

    def limit(config: dict) -> None:  # type: ignore[type-arg]
        config["phase1"]["max_tokens"] = 10_000
        config["phase2"]["sources"][0]["max_documents"] = 40

    change_config(folder, limit)
    run(folder)
    manifest = load_manifest(folder / "volumes" / "data" / "phase1")
    assert 9_700 < manifest.num_tokens("train") <= 10_000
    assert "stopped at `max_tokens` (10,000)" in capsys.readouterr().out
    manifest = load_manifest(folder / "volumes" / "data" / "phase2")
    assert manifest.sources[0]["documents"] == 40
    assert manifest.sources[2]["documents"] > 0


def test_user_mistakes_give_one_message(job: Path, tmp_path: Path) -> None:
    folder = copy_of(job, tmp_path)
    raw = folder / "volumes" / "raw"
    (raw / "text0.txt").write_bytes(b"\x00\x01\x02\x03" * 100)
    failed = subprocess.run(command(folder), capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: text0.txt: not text")
    assert failed.stderr.count("\n") == 1
    status = json.loads((folder / "volumes" / "logs" / "data-prep.json").read_text())
    assert status["state"] == "error"
    assert "text0.txt" in status["message"]
    assert not (folder / "volumes" / "data" / "phase1" / "manifest.json").exists()


def test_almost_empty_corpus_is_refused(job: Path, tmp_path: Path) -> None:
    folder = copy_of(job, tmp_path)
    raw = folder / "volumes" / "raw"
    (raw / "text0.txt").write_text("Sun\nThe sun is the star that is in the centre of our system.")
    (raw / "text1.txt").write_text("Moon\nThe moon is the one that goes around the earth, and it is small.")
    with pytest.raises(DataError, match=r"almost empty: 2 documents with \d+ words.*text0\.txt, text1\.txt"):
        run(folder)


def test_source_with_nothing_usable_is_refused(job: Path, tmp_path: Path) -> None:
    folder = copy_of(job, tmp_path)
    records = [{"instruction": f"What is the name of it? {n}", "input": "", "output": ""} for n in range(50)]
    (folder / "volumes" / "raw" / "alpaca.json").write_text(json.dumps(records))
    with pytest.raises(DataError, match=r"source alpaca \(alpaca\.json\): nothing usable; dropped: 50 no output"):
        run(folder)


def test_no_validation_document_is_explained(job: Path, tmp_path: Path) -> None:
    folder = copy_of(job, tmp_path)
    change_config(folder, lambda config: config["phase1"].update(validation_fraction=1e-9))
    with pytest.raises(DataError, match=r"phase1\.validation_fraction.*Choose a larger fraction"):
        run(folder)


def test_full_disk_is_one_clear_line_and_then_goes_on(
    job: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(job, tmp_path)
    left = 12
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device", "train-00002.npy.tmp")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VolumeError, match="no space is left on this disk"):
        run(folder)
    run(folder)
    assert digests(folder) == digests(done)


def test_only_one_at_a_time(job: Path, tmp_path: Path) -> None:
    from svitlo.errors import AlreadyRunning
    from svitlo.storage.locks import exclusive_lock

    folder = copy_of(job, tmp_path)
    with exclusive_lock(Volumes(folder / "volumes").prepare_lock) as held:
        assert held
        with pytest.raises(AlreadyRunning, match="another process"):
            run(folder)


def test_volume_without_marker_is_refused(job: Path, tmp_path: Path) -> None:
    folder = copy_of(job, tmp_path)
    (folder / "volumes" / "data" / ".svitlo-volume").unlink()
    with pytest.raises(VolumeError, match="marker"):
        run(folder)
