"""The default `config/data.yaml`, loaded over HTTP by the real command from a server that answers as the hub does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from svitlo.reporting.status import WAITING_FOR_HUB, read_status
from svitlo.volumes import Volumes
from tests.conftest import ROOT, Job, environment, kill, wait_for_line
from tests.hub_server import Fault, Hub, default_data_sets

DEFAULT = ROOT / "config"
WIKIPEDIA = "20231101.simple/train-00000-of-00001.parquet"
WIKIPEDIA_FILE = "/cdn/wikimedia/wikipedia/"
"""The beginning of the path that this file is sent from."""
COMMITS = {
    "simple_wikipedia": ("wikimedia/wikipedia", "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"),
    "alpaca": ("tatsu-lab/alpaca", "dce01c9b08f87459cf36a430d809084718273017"),
    "squad": ("rajpurkar/squad", "7b6d24c440a36b6815f21b70d25016731768db1f"),
    "dailydialog": ("OpenRL/daily_dialog", "1668faf0c0dc44664f108c489fd0666128db2c48"),
}
ALPACA, ALPACA_COMMIT = COMMITS["alpaca"]
TOKEN = "hf_a_token_of_a_test"


@dataclass(frozen=True)
class HubJob(Job):
    """A job whose command asks a server of the test instead of the hub."""

    hub: Hub

    def environment(self) -> dict[str, str]:
        known = {name: value for name, value in environment().items() if not name.startswith("HF_")}
        token = self.volumes.parent / "token"
        token.write_text(TOKEN)
        return {
            **known,
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN_PATH": str(token),
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",  # seconds without a byte
            "no_proxy": "127.0.0.1,localhost",
        }

    def prepare(self, check: int = 0) -> str:
        """Run `svitlo prepare` to its end. Returns what it printed, or its message if it failed."""
        done = self.run("prepare", check=check)
        assert "Traceback" not in done.stderr
        return done.stderr if check else done.stdout

    def data(self) -> dict[str, bytes]:
        """The shards and manifests."""
        folder = self.volumes / "data"
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.glob("phase?/*.*")
            if path.suffix in (".npy", ".json")
        }

    def changed(self, old: str, new: str) -> HubJob:
        """This job with a copy of the default configuration that has one change."""
        folder = self.volumes.parent / "config"
        folder.mkdir()
        text = (DEFAULT / "data.yaml").read_text()
        assert old in text
        (folder / "data.yaml").write_text(text.replace(old, new))
        return HubJob(folder, self.volumes, self.hub)

    def cached(self, name: str = "*") -> list[Path]:
        """What is kept of the hub, the largest first: Wikipedia's file."""
        files = (self.volumes / "cache" / "downloads").glob(name)
        return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


def new_job(folder: Path) -> HubJob:
    hub = Hub()
    hub.data_sets = default_data_sets(DEFAULT / "data.yaml")
    Volumes(folder / "volumes").set_up()
    return HubJob(DEFAULT, folder / "volumes", hub)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[HubJob]:
    """Nothing was loaded yet."""
    job = new_job(tmp_path)
    yield job
    if not job.hub.is_closing.is_set():
        job.hub.stop()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[HubJob, str]:
    """The first load, undisturbed, and what it printed. The server is gone."""
    job = new_job(tmp_path_factory.mktemp("loaded"))
    output = job.prepare()
    job.hub.stop()
    return job, output


@pytest.fixture
def known(loaded: tuple[HubJob, str], job: HubJob) -> HubJob:
    """Everything was loaded before. Then the prepared data was lost."""
    shutil.rmtree(job.volumes)
    shutil.copytree(loaded[0].volumes, job.volumes)
    for phase in (1, 2):
        shutil.rmtree(job.volumes / "data" / f"phase{phase}")
    return job


@pytest.fixture
def lost(known: HubJob) -> HubJob:
    """The files of the hub were lost, too. What they are called is known, so a test needs no time to find out."""
    for path in known.cached():
        if path.suffix != ".json":
            path.unlink()
    return known


# --- the first load --------------------------------------------------------------------------------------------------


def test_the_default_sources_are_loaded_at_their_commits(loaded: tuple[HubJob, str]) -> None:
    job, output = loaded
    manifests = [json.loads(job.data()[f"phase{phase}/manifest.json"]) for phase in (1, 2)]
    sources = {source["name"]: source for manifest in manifests for source in manifest["sources"]}
    found = {name: source["identity"] for name, source in sources.items()}
    assert {name: (one["repository"], one["revision"]) for name, one in found.items()} == COMMITS
    assert all(one["pinned"] and one["split"] == "train" for one in found.values())
    assert [source["documents"] for source in sources.values()] == [600, 60, 60, 60]
    assert "warning" not in output

    requests = job.hub.requests
    assert len(requests) <= 5 * len(COMMITS), [request.path for request in requests]
    transfers = job.hub.transfers()
    assert len(transfers) == len(COMMITS), "only the files of the configuration and the split"
    assert {request.token for request in transfers} == {None}, "the token is for the hub alone"
    assert {request.token for request in requests if request not in transfers} == {f"Bearer {TOKEN}"}


LIBRARY = """
import sys, yaml, datasets
config = yaml.safe_load(open(sys.argv[1]))
for source in config["phase1"]["sources"] + config["phase2"]["sources"]:
    builder = datasets.load_dataset_builder(source["hub"], source.get("configuration"), revision=source["revision"])
    for name in builder.config.data_files["train"]:
        print(name.removeprefix("hf://datasets/").replace("@", "/"))
"""


def test_the_library_itself_would_choose_the_same_files(loaded: tuple[HubJob, str], job: HubJob) -> None:
    """It is shown names only. Here it asks the server by itself, for everything that it wants to know."""
    command = [sys.executable, "-c", LIBRARY, str(DEFAULT / "data.yaml")]
    env = {**job.environment(), "HF_HOME": str(job.volumes / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    ours = [request.path.removeprefix("/cdn/") for request in loaded[0].hub.transfers()]
    assert done.stdout.splitlines() == ours


def test_after_the_first_load_no_network_is_needed(known: HubJob, loaded: tuple[HubJob, str]) -> None:
    known.hub.stop()
    known.prepare()
    assert known.data() == loaded[0].data()
    changed = known.changed("shard_tokens: 2_097_152", "shard_tokens: 4_096")
    assert "the present data stays until that is complete" in changed.prepare().lower()
    assert len(list((known.volumes / "data" / "phase1").glob("train-*.npy"))) > 1


# --- power and lines fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "fault"), [(2, Fault(cut_after=20_000)), (1, Fault(stalls_after=20_000))], ids=["cut twice", "stalled"]
)
def test_a_download_goes_on_where_the_connection_broke(
    lost: HubJob, loaded: tuple[HubJob, str], times: int, fault: Fault
) -> None:
    lost.hub.goes_wrong(times, fault, WIKIPEDIA_FILE)
    output = lost.prepare()
    assert output.count("the connection broke (") == times
    assert "going on after 20 kB of " in output
    begins = [request.begins_at for request in lost.hub.transfers()]
    assert begins == [*range(0, 20_000 * times + 1, 20_000), 0, 0, 0]
    assert lost.data() == loaded[0].data()


def test_killed_in_the_middle_of_a_download_it_goes_on_there(lost: HubJob, loaded: tuple[HubJob, str]) -> None:
    lost.hub.goes_wrong(1, Fault(stalls_after=20_000), WIKIPEDIA_FILE)
    process = lost.start("prepare")
    message = ""
    while not any(path.stat().st_size == 20_000 for path in lost.cached("*.part")) or "kB downloaded" not in message:
        assert process.poll() is None, message
        time.sleep(0.01)
        status = read_status(Volumes(lost.volumes).prepare_status)
        message = status.message if status else ""
    kill(process)
    lost.prepare()
    assert [request.begins_at for request in lost.hub.transfers()][:2] == [0, 20_000]
    assert lost.data() == loaded[0].data()


def test_a_slow_line_is_only_slow(lost: HubJob, loaded: tuple[HubJob, str]) -> None:
    lost.hub.fault = lambda _: Fault(pause_every=2_000)
    lost.prepare()
    assert {request.begins_at for request in lost.hub.transfers()} == {0}
    assert lost.data() == loaded[0].data()


def test_a_server_that_knows_no_ranges_sends_all_again(lost: HubJob, loaded: tuple[HubJob, str]) -> None:
    part = lost.volumes / "cache" / "downloads" / (loaded[0].cached()[0].name + ".part")
    part.write_bytes(b"what arrived of it before")
    lost.hub.knows_ranges = False
    lost.prepare()
    assert [request.begins_at for request in lost.hub.transfers()] == [25, 0, 0, 0]
    assert lost.data() == loaded[0].data()


# --- what arrives is not what the hub has ----------------------------------------------------------------------------

DAMAGE = Fault(replaced=(b"month of the year", b"mouth of the year"))
"""In the text of rows: nothing but the digest shows it."""


def test_a_damaged_file_is_downloaded_again(lost: HubJob, loaded: tuple[HubJob, str]) -> None:
    lost.hub.goes_wrong(1, DAMAGE, WIKIPEDIA_FILE)
    assert f"{WIKIPEDIA} arrived damaged" in lost.prepare()
    assert lost.data() == loaded[0].data()


def test_a_file_that_always_arrives_damaged_is_never_used(lost: HubJob) -> None:
    lost.hub.fault = lambda _: DAMAGE
    message = lost.prepare(check=1)
    assert f"{WIKIPEDIA} arrived damaged twice" in message
    assert "(a proxy?)" in message
    assert not lost.data()
    assert not [path for path in lost.cached() if path.suffix != ".json"]


def test_a_page_that_a_network_sends_instead_is_not_taken_for_data(lost: HubJob, loaded: tuple[HubJob, str]) -> None:
    lost.hub.goes_wrong(1, Fault(instead=b"<html>Please accept our terms.</html>"), WIKIPEDIA_FILE)
    assert "answers with something that is not the hub's (37 bytes instead of " in lost.prepare()
    assert [request.begins_at for request in lost.hub.transfers()] == [0] * 5
    assert lost.data() == loaded[0].data()


def test_a_cached_file_that_a_power_cut_has_damaged_is_downloaded_again(
    known: HubJob, loaded: tuple[HubJob, str]
) -> None:
    path = known.cached()[0]
    content = path.read_bytes()
    path.write_bytes(content[:8_192] + bytes(4_096) + content[12_288:])
    assert f"warning: {path}: not what the hub has as {WIKIPEDIA}" in known.prepare()
    assert known.data() == loaded[0].data()
    assert len(known.hub.transfers()) == 1


# --- the hub does not answer -----------------------------------------------------------------------------------------


def test_a_hub_that_fails_at_first_is_asked_again(job: HubJob, loaded: tuple[HubJob, str]) -> None:
    job.hub.goes_wrong(1, Fault(status=503))
    assert "does not answer (503 Service Unavailable); asking again in 1 s" in job.prepare()
    assert job.data() == loaded[0].data()


@pytest.mark.parametrize(
    ("where", "fault", "said"),
    [
        ("/resolve/", Fault(status=429, headers={"Retry-After": "2"}), "(429 Too Many Requests); asking again in 2 s"),
        ("/resolve/", Fault(is_silent=True), "timed out); asking again in 1 s"),
        ("/cdn/", Fault(status=403), "(403 Forbidden); asking again in 1 s"),
    ],
    ids=["429", "silent", "signature of a moment ago"],
)
def test_so_is_one_that_fails_later(
    lost: HubJob, loaded: tuple[HubJob, str], where: str, fault: Fault, said: str
) -> None:
    lost.hub.goes_wrong(1, fault, where)
    assert said in lost.prepare()
    assert lost.data() == loaded[0].data()


def test_a_hub_that_stays_away_is_waited_for(known: HubJob) -> None:
    """And a commit that is there is not taken for the one that is wanted."""
    job = known.changed(COMMITS["simple_wikipedia"][1], "0" * 40)
    job.hub.stop()
    process = job.start("prepare", "--hold")
    line = wait_for_line(process, r"The next try is in 1 min\. Nothing is lost; waiting")
    cmdline = Path(f"/proc/{process.pid}/cmdline")
    while cmdline.read_bytes() != b"sleep\x0060.0\x00":
        assert process.poll() is None, line
        time.sleep(0.01)
    kill(process)
    status = read_status(Volumes(job.volumes).prepare_status)
    assert status is not None
    assert status.state == WAITING_FOR_HUB
    assert "does not answer ([Errno 111] Connection refused). Check the network." in status.message
    assert not job.data()


# --- which data set --------------------------------------------------------------------------------------------------


def test_an_unpinned_source_is_read_at_the_commit_of_the_day(known: HubJob) -> None:
    output = known.changed(f"revision: {ALPACA_COMMIT}", "revision: unpinned").prepare()
    assert f"Today it is {ALPACA} at {ALPACA_COMMIT}" in output
    identity = json.loads(known.data()["phase2/manifest.json"])["sources"][0]["identity"]
    assert (identity["revision"], identity["pinned"]) == (ALPACA_COMMIT, False)


GATED = Fault(status=403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("gone", f"`hub: {ALPACA}`: the hub has no such data set, or not for everybody."),
        ("gated", f"`hub: {ALPACA}`: its owner gives access on request. Ask for it at http"),
        ("refused", f"`hub: {ALPACA}`: the hub refuses it (403 Forbidden). Look at http"),
        ("another commit", f"`revision: {ALPACA_COMMIT}`: {ALPACA} has no such commit. Choose one from http"),
    ],
)
def test_what_cannot_be_had_is_one_message(known: HubJob, trouble: str, said: str) -> None:
    for path in known.cached("tatsu-lab*.json"):
        path.unlink()
    if trouble == "gone":
        del known.hub.data_sets[ALPACA, ALPACA_COMMIT]
    elif trouble == "another commit":
        known.hub.data_sets[ALPACA, "0" * 40] = known.hub.data_sets.pop((ALPACA, ALPACA_COMMIT))
    else:
        known.hub.goes_wrong(9, GATED if trouble == "gated" else Fault(status=403), ALPACA)
    message = known.prepare(check=2)
    assert message.startswith(f"error: data.yaml: source alpaca: {said}")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("20231101.simple", "20231101.simpel", r"20231101.simpel' not found. Available: ['20231101.ab', '20231101.s"),
        (
            "revision: b04",
            "split: dev\n      revision: b04",
            "`split: dev`: wikimedia/wikipedia has no such split. There",
        ),
        ("wikimedia/wikipedia", "wikimedia/wiki pedia", "not a name of a data set: "),
    ],
)
def test_a_mistake_in_the_source_is_one_message(known: HubJob, old: str, new: str, said: str) -> None:
    message = known.changed(old, new).prepare(check=2)
    assert message.startswith("error: data.yaml: source simple_wikipedia: ")
    assert said in message
    assert message.count("\n") == 1
