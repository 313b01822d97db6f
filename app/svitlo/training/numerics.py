"""What else decides the bits of a result, besides data and configuration: threads, instruction set, random seeds."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

import torch

# Applies only to threads created from now on. A matmul with denormals ran 215 times slower.
torch.set_flush_denormal(True)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Type of the factors of matrix products in training, by precision. All else is computed and kept in float32."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_LARGE = 24 * 2**20


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: returning it to the kernel at each step costs a third of the speed.

    Blocks of 24 MB and more still come from the kernel. A step makes only a handful of them. Among kept blocks of many
    sizes they would leave holes: gigabytes of them in phase 2.

    Does the same as the variables MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_, without having to
    set them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)


def set_threads(threads: int) -> None:
    """Use this many threads for arithmetic, regardless of the number of cores."""
    torch.set_num_threads(threads)


def resolve_precision(wanted: str) -> str:
    """The precision to use, `fp32` or `bf16`. `auto` takes bf16 if the CPU has it in hardware."""
    if wanted != "auto":
        return wanted
    return "bf16" if has_hardware_bf16() else "fp32"


def has_hardware_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(precision: str) -> torch.autocast:
    """A context in which matrix products are computed with this precision."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")


def describe(threads: int, precision: str) -> dict[str, Any]:
    """What a checkpoint records. The same bits need the same values."""
    instruction_set = torch.backends.cpu.get_cpu_capability()
    if precision == "bf16":
        instruction_set += " with bf16" if has_hardware_bf16() else " without bf16"
    return {
        "threads": threads,
        "precision": precision,
        "instruction_set": instruction_set,
        "torch": torch.__version__.split("+")[0],
    }


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on all `parts` and nothing else."""
    text = ":".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
