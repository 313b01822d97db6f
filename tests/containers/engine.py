"""A second Docker engine whose power can be cut: a machine in a box, beside the real engine.

It runs in its own namespaces (processes, mounts, network). It shares only its disk with the outside, so it cannot touch
the networks and firewall rules of the other engine. When the first process of the box is killed, the kernel kills all
others at once. Mounts, network devices and /run are gone, as after a power cut. (The page cache stays: other tests show
what a power cut does to files that were not yet on the disk.)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

STARTED_WITHIN_SECONDS = 60
PROGRAMS = ("dockerd", "docker-init", "unshare")
BOX = ["unshare", "--pid", "--mount", "--net", "--fork", "--kill-child=SIGKILL", "--mount-proc"]


class Engine:
    """One engine on one disk, which may be started and stopped many times."""

    def __init__(self) -> None:
        # Not in pytest's own folder: it may be in memory, and the path of a socket must be short.
        self.disk = Path(tempfile.mkdtemp(prefix="svitlo-engine-", dir="/var/tmp"))
        self._socket = self.disk / "docker.sock"
        self.host = f"unix://{self._socket}"
        self._box: subprocess.Popen[bytes] | None = None
        (self.disk / "daemon.json").write_text("{}")

    @property
    def log(self) -> str:
        """The end of what the daemon said."""
        return (self.disk / "dockerd.log").read_text(errors="replace")[-3000:]

    # --- on and off ---

    def start(self) -> None:
        """What a machine does when the power is back. Returns when the engine answers."""
        self._socket.unlink(missing_ok=True)
        daemon = f"dockerd --config-file {self.disk}/daemon.json --data-root {self.disk}/docker --host {self.host}"
        with open(self.disk / "dockerd.log", "ab") as log:
            self._box = subprocess.Popen(
                [*BOX, "sh", "-c", f"mount -t tmpfs tmpfs /run && exec docker-init -- {daemon}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTED_WITHIN_SECONDS
        while self.docker("info", check=False).returncode != 0:
            assert self._box.poll() is None, f"the daemon has ended:\n{self.log}"
            assert time.monotonic() < deadline, f"the daemon does not answer:\n{self.log}"
            time.sleep(0.1)

    def cut_the_power(self) -> None:
        """End everything at once, without any chance to clean up."""
        self._end(signal.SIGKILL)

    def shut_down(self) -> None:
        """Switch the machine off in an orderly way."""
        self._end(signal.SIGTERM)

    def remove(self) -> None:
        """End everything and leave nothing behind."""
        if self._box is not None and self._box.poll() is None:
            self.cut_the_power()
        shutil.rmtree(self.disk)

    def _end(self, number: signal.Signals) -> None:
        assert self._box is not None
        first = Path(f"/proc/{self._box.pid}/task/{self._box.pid}/children").read_text().split()[0]
        os.kill(int(first), number)
        # The first process of a box is gone only when all others are.
        self._box.wait(60)

    # --- use ---

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "--host", self.host, *arguments], capture_output=True, text=True, check=check, timeout=300
        )

    def load(self, *images: str) -> None:
        """Copy images from the other engine."""
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as save:
            subprocess.run(
                ["docker", "--host", self.host, "load", "--quiet"],
                stdin=save.stdout,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        assert save.returncode == 0

    def damage(self, container_id: str) -> None:
        """What a power cut can do to a file that was just written: the engine's notes on a container are empty."""
        (self.disk / "docker" / "containers" / container_id / "config.v2.json").write_bytes(b"")

    @property
    def networks(self) -> Path:
        """The engine's own database of networks."""
        return self.disk / "docker" / "network" / "files" / "local-kv.db"

    def systemd(self, folder: Path) -> tuple[dict[str, str], Path]:
        """Stand-ins for what the boot unit asks of systemd: an environment, and a file that asks for a start."""
        folder.mkdir()
        asked = folder / "asked"
        start = f'#!/bin/sh\ncase "$*" in start*docker.service) touch {asked} ;; esac\n'
        for name, script in (("systemctl", start), ("journalctl", f"#!/bin/sh\ncat {self.disk}/dockerd.log\n")):
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        root = str(self.disk / "docker")
        return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SVITLO_ENGINE_ROOT": root}, asked
