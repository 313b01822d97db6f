"""The stack from empty volumes to a finished model, how little it needs afterwards, and what its containers may do."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.containers.stack import Stack, is_idle, shards
from tests.support import last, metrics

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

SERVICES = ("data-prep", "trainer")
HEALTH_CHECK_SECONDS = 60
NUM_STEPS = 24


def test_from_empty_volumes_to_a_model_without_a_human_act(finished: Stack) -> None:
    for service in SERVICES:
        finished.wait_for_health(service, "healthy")
        assert finished.restarts(service) == 0
        assert finished.inspect(service)["State"]["Status"] == "running"
    assert "training is complete" in finished.inside("trainer", "cat /tmp/health")
    assert "data is prepared" in finished.inside("data-prep", "cat /tmp/health")
    assert {name.split("/")[0] for name in shards(finished)} == {"phase1", "phase2"}
    for phase, vocabulary, least in ((1, 50_257, 1.0), (2, 50_258, 0.5)):
        state = last(finished, phase)
        assert state["finished"]
        assert (state["global_step"], state["vocab_size"]) == (NUM_STEPS, vocabulary)
        losses = [r["validation_loss"] for r in metrics(finished) if r["kind"] == "evaluation" and r["phase"] == phase]
        assert losses[0] - losses[-1] > least, "it learns"
    model = {path.name for path in (finished.volumes / "export" / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "SHA256SUMS"} <= model


def test_everything_belongs_to_the_owner_and_to_nobody_else(finished: Stack) -> None:
    owner = int(finished.environment["PUID"]), int(finished.environment["PGID"])
    written = [path for name in ("data", "checkpoints", "logs", "export") for path in _tree(finished.volumes / name)]
    assert len(written) > 50
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in written} == {owner}


def test_what_is_finished_needs_next_to_nothing(finished: Stack) -> None:
    before = {service: _Usage(finished, service) for service in SERVICES}
    time.sleep(HEALTH_CHECK_SECONDS + 1)  # a span to measure, with one health check in it, or two
    after = {service: _Usage(finished, service) for service in SERVICES}
    for service in SERVICES:
        assert is_idle(finished.processes(service))
        checks = len(after[service].health_checks - before[service].health_checks)
        used = after[service].cpu_seconds - before[service].cpu_seconds
        print(f"{service}: {used:.3f} s of CPU with {checks} checks, {after[service].memory_bytes / 1e6:.1f} MB")
        assert used < 0.001 * checks * HEALTH_CHECK_SECONDS, "an idle container needs under 0.1 % of one CPU"
        assert after[service].memory_bytes < 40e6


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_can_do_only_what_it_must(finished: Stack, service: str) -> None:
    status = dict(
        line.split(":\t", 1) for line in finished.inside(service, "cat /proc/self/status").splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == [finished.environment["PUID"]] * 4
    assert status["Gid"].split() == [finished.environment["PGID"]] * 4
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"

    writable = {"data-prep": {"/tmp", "/volumes/data"}, "trainer": {"/tmp", "/volumes/checkpoints"}}[service]
    read_only = {"/", "/etc", "/opt/svitlo", "/var/tmp", "/config", "/volumes"}
    read_only |= {"data-prep": {"/volumes/raw"}, "trainer": {"/volumes/data"}}[service]
    assert _writable(finished, service, writable | read_only) == writable
    seen = {"data-prep": "cache data logs raw", "trainer": "checkpoints data export logs"}
    assert finished.inside(service, "ls /volumes").split() == seen[service].split()
    assert finished.inside(service, "tr '\\0' ' ' </proc/1/cmdline").startswith("/sbin/docker-init -- svitlo ")


@pytest.mark.parametrize("service", SERVICES)
def test_the_engine_restarts_limits_and_isolates_each_container(finished: Stack, service: str) -> None:
    inspected = finished.inspect(service)
    host: dict[str, Any] = inspected["HostConfig"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["Init"] is True
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert "size=" in host["Tmpfs"]["/tmp"]
    assert 0 < host["Memory"] <= 4 * 2**30
    assert 0 < host["PidsLimit"] <= 256
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert not host["PortBindings"]
    assert not inspected["NetworkSettings"]["Ports"]
    for space in ("PidMode", "UTSMode", "UsernsMode"):
        assert host[space] != "host", space
    assert host["IpcMode"] == "private"
    assert not host["Devices"]
    assert not [option for option in host["SecurityOpt"] if "unconfined" in option or "disable" in option]
    mounts = {mount["Destination"]: mount for mount in inspected["Mounts"]}
    assert not [path for path in mounts if "docker" in path]
    assert {mount["Propagation"] for mount in mounts.values()} == {"rprivate"}
    folders = {"data-prep": {"cache", "data", "logs", "raw"}, "trainer": {"checkpoints", "data", "export", "logs"}}
    expected = {"/config", *(f"/volumes/{name}" for name in folders[service])}
    assert set(mounts) - {"/run/secrets/hub_token"} == expected
    assert inspected["Config"]["StopTimeout"] >= 15
    assert inspected["Config"]["Entrypoint"] == ["svitlo"], "started without a shell, so that signals arrive"


def test_the_trainer_is_pinned_and_has_no_network(finished: Stack) -> None:
    assert finished.inside("trainer", "ls /sys/class/net") == "lo"
    assert finished.inspect("trainer")["HostConfig"]["NetworkMode"] == "none"
    wanted = {int(cpu) for cpu in finished.environment["TRAINER_CPUS"].split(",")}
    pid = int(finished.inspect("trainer")["State"]["Pid"])
    assert os.sched_getaffinity(pid) == wanted


def test_the_hub_token_is_a_file_that_only_data_prep_sees(stack: Stack, finished: Stack, tmp_path: Path) -> None:
    assert finished.inside("data-prep", "cat /run/secrets/hub_token") == "", "there need not be one"
    token = f"hf_{secrets.token_hex(16)}"
    file = tmp_path / "hub_token"
    file.write_text(token)
    file.chmod(0o400)
    os.chown(file, int(stack.environment["PUID"]), int(stack.environment["PGID"]))
    stack.environment["HUB_TOKEN_FILE"] = str(file)
    stack.up()
    assert stack.inside("data-prep", "cat $HF_TOKEN_PATH") == token
    assert stack.inside("trainer", "ls /run/secrets 2>/dev/null; cat /run/secrets/* 2>/dev/null; true") == ""
    for service in SERVICES:
        assert token not in str(stack.inspect(service))
        assert token not in stack.inside(service, "env; cat /proc/1/environ")
        assert token not in stack.logs(service)
        history = stack.command("docker", "history", "--no-trunc", "--format", "{{json .}}", f"svitlo/{service}:local")
        assert "hub_token" not in history.stdout


def test_an_image_comes_with_a_list_of_what_is_in_it(finished: Stack) -> None:
    script = (ROOT / "docker" / "sbom.py").read_text()
    for service, there, not_there in (("trainer", "torch", "datasets"), ("data-prep", "datasets", "torch")):
        command = ["exec", "-T", service, "python", "-c", script, f"svitlo/{service}", "local"]
        components = json.loads(finished.compose(*command).stdout)["components"]
        names = {component["purl"].split("@")[0] for component in components}
        assert f"pkg:pypi/{there}" in names
        assert f"pkg:pypi/{not_there}" not in names
        assert {"pkg:deb/debian/libc6", "pkg:deb/debian/python3"} <= names
        listed = len([name for name in names if name.startswith("pkg:deb/")])
        assert listed == int(finished.inside(service, "dpkg-query -f '${db:Status-Abbrev}\\n' -W | grep -c '^.i'"))


@pytest.mark.parametrize(
    ("service", "there", "not_there"),
    [
        ("trainer", ["torch", "transformers"], ["datasets", "pandas", "pyarrow", "pip", "nvidia", "triton", "pytest"]),
        ("data-prep", ["datasets", "tiktoken"], ["torch", "transformers", "pip", "nvidia", "triton", "pytest"]),
    ],
)
def test_an_image_holds_only_what_its_service_needs(
    finished: Stack, service: str, there: list[str], not_there: list[str]
) -> None:
    script = "import importlib.util as i, sys; print(*[n for n in sys.argv[1:] if i.find_spec(n)])"
    found = finished.inside(service, f"python -c '{script}' {' '.join(there + not_there)}").split()
    assert found == there
    tools = "gcc cc g++ c++ clang ld make nvcc nvidia-smi curl wget pip git sudo"
    assert finished.inside(service, f"for tool in {tools}; do command -v $tool; done; true") == ""
    names = " -o ".join(f"-iname '{name}*'" for name in ("libcuda", "libcublas", "libcudnn", "libnccl"))
    assert finished.inside(service, f"find / -xdev \\( {names} \\) 2>/dev/null; true") == ""


class _Usage:
    """What a container has used, seen from the host."""

    def __init__(self, stack: Stack, service: str) -> None:
        init = int(stack.inspect(service)["State"]["Pid"])
        self.health_checks = {check["Start"] for check in stack.inspect(service)["State"]["Health"]["Log"]}
        groups = [line.split(":", 2) for line in Path(f"/proc/{init}/cgroup").read_text().splitlines()]
        folders = {name: path.lstrip("/") for _, names, path in groups for name in names.split(",")}
        root = Path("/sys/fs/cgroup")
        if "memory" in folders:  # version 1 of control groups: a hierarchy for each kind
            memory = root / "memory" / folders["memory"]
            used, cache = int((memory / "memory.usage_in_bytes").read_text()), "cache"
            self.cpu_seconds = int((root / "cpuacct" / folders["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        else:
            memory = root / folders[""]
            used, cache = int((memory / "memory.current").read_text()), "file"
            self.cpu_seconds = _numbers(memory / "cpu.stat")["usage_usec"] / 1e6
        numbers = _numbers(memory / "memory.stat")
        self.memory_bytes = used - numbers[cache] + numbers["shmem"]
        """Without the page cache, which the kernel takes back whenever it needs to; files in /tmp count."""


def _numbers(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}


def _tree(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


def _writable(stack: Stack, service: str, folders: set[str]) -> set[str]:
    """Those of the folders in which the container can make a file."""
    script = f"for f in {' '.join(folders)}; do if touch $f/.probe; then rm $f/.probe; echo $f; fi; done 2>/dev/null"
    return set(stack.inside(service, f"{script}; true").split())


def test_the_modes_of_the_checkout_do_not_get_into_the_images(images: None, tmp_path: Path) -> None:
    context, out = tmp_path / "context", tmp_path / "out"
    shutil.copytree(ROOT / "app", context / "app", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "docker", context / "docker")
    for path in [context, *context.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)  # umask 077
    base = subprocess.run(["docker/base-image.sh"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    build = ["docker", "buildx", "build", "--quiet", "--file", "docker/Dockerfile", "--target", "program"]
    options = ["--build-arg", f"BASE_IMAGE={base}", "--output", f"type=local,dest={out}"]
    subprocess.run([*build, *options, "."], cwd=context, capture_output=True, check=True, timeout=600)
    program = list((out / "program").rglob("*"))
    assert len(program) > 100
    assert {path.stat().st_mode & 0o777 for path in program} == {0o755, 0o644}
