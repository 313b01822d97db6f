"""What the kernel says about the machine: which boot this is, how long it has been up, memory limits and OOM kills."""

from __future__ import annotations

import os
import time
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60
"""Version 1 of control groups reports a number above this if there is no limit."""


def boot_id() -> str:
    """The kernel's id of this boot of the machine. The same in every container. Empty if there is none."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def boot_seconds() -> float:
    """Seconds since the machine started, including sleep. Never jumps, even if the clock does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def oom_kills() -> int | None:
    """Processes on the whole machine that the kernel has killed since boot because memory ran out.

    Containers see this number too, and it outlives them. A container's own counter vanishes with the container.
    """
    try:
        with open(_PROC / "vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), None)
    except (OSError, ValueError, IndexError):
        return None


def memory_limit() -> int | None:
    """Bytes that this process's container (control group) may use. None if there is no limit."""
    try:
        groups = (_PROC / "self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    candidates = [_CGROUPS / "memory.max", _CGROUPS / "memory" / "memory.limit_in_bytes"]
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            candidates.append(_CGROUPS / path.lstrip("/") / "memory.max")
        elif "memory" in controllers.split(","):
            candidates.append(_CGROUPS / "memory" / path.lstrip("/") / "memory.limit_in_bytes")
    limits = []
    for file in candidates:
        try:
            limits.append(int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):  # missing, or "max"
            continue
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


def num_cores() -> int:
    """Cores that this process may use: its affinity, and the limit of its container."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (_CGROUPS / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores
