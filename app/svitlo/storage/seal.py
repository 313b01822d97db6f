"""A seal on what `torch.save` writes, so that no bit of the file can change unnoticed.

`torch.load` checks none of the CRCs in its zip file, and those cover the records only: neither the headers nor the
padding between records. The seal covers every byte. It is the zip file's own comment, so that `torch.load` opens the
file as any other:

    <the zip file, its last two bytes saying how long the comment is> svitlo-seal-1 <label> <64 hex digits>

The label says what the file is and is read without opening it (run, phase and step of a checkpoint). The digits are the
SHA-256 of the label and of the CRC-32s of all 4 MiB blocks of the zip file. A CRC-32 finds any change of up to 32
neighbouring bits with certainty, and anything else but for one case in four thousand million; blocks are computed by
several threads, at 1.7 GB/s each, which is eight times what SHA-256 does without help from the CPU. torch's own CRCs,
computed by one thread, are left out: they took a third of the time of a save (`unzip -t` calls the file damaged, then).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

from svitlo.storage.files import begin_fsync

_BLOCK = 4 << 20
_MARK = b"svitlo-seal-1 "
_MOST_SEAL_BYTES = 256
_END = b"PK\5\6"
_END_BYTES = 22
_DIGEST_BYTES = 64
_THREADS = max(1, min(4, len(os.sched_getaffinity(0))))


def save_sealed(value: Any, file: BinaryIO, label: str = "-") -> None:
    """`torch.save` with a seal; `label` is a few words of ASCII.

    Raises `OSError` where the file cannot take it, which torch alone hides.
    """
    import torch  # whoever only reads a label does without

    with ThreadPoolExecutor(_THREADS) as pool:
        writer = _SealingWriter(file, pool, label)
        computes_crc = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(value, cast(BinaryIO, writer))
        except RuntimeError as error:
            raise writer.error or error from None
        finally:
            torch.serialization.set_crc32_options(computes_crc)
        writer.finish()


def check_seal(path: Path) -> None:
    """Read a sealed file as a whole. Raises `ValueError` where any bit is not as it was written, and `OSError`."""
    with open(path, "rb") as file, ThreadPoolExecutor(_THREADS) as pool:
        num_bytes, seal = _split(file)
        label = seal[len(_MARK) : -_DIGEST_BYTES]

        def sum_at(start: int) -> int:
            return zlib.crc32(os.pread(file.fileno(), min(_BLOCK, num_bytes - start), start))

        if _seal_of(label, pool.map(sum_at, range(0, num_bytes, _BLOCK))) != seal:
            raise ValueError("its checksum is wrong: at least one bit is not what was written")


def label_of(path: Path) -> str:
    """The label of a sealed file, unverified. Raises `ValueError` where there is no seal, and `OSError`."""
    with open(path, "rb") as file:
        _, seal = _split(file)
    return seal[len(_MARK) : -_DIGEST_BYTES].decode("ascii").strip()


def _split(file: BinaryIO) -> tuple[int, bytes]:
    """The number of bytes before the seal, and the seal. Raises `ValueError` where there is none."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise ValueError("empty")
    end = os.pread(file.fileno(), _MOST_SEAL_BYTES, max(0, size - _MOST_SEAL_BYTES))
    start = end.rfind(_MARK)
    if start < 0:
        raise ValueError("it does not end with a seal, so it was cut off, replaced or never written by Svitlo")
    return size - len(end) + start, end[start:]


def _seal_of(label: bytes, sums: Iterable[int]) -> bytes:
    digest = hashlib.sha256(label + b"".join(value.to_bytes(4, "little") for value in sums))
    return _MARK + label + digest.hexdigest().encode()


class _SealingWriter:
    """What `torch.save` writes to: hands everything on to the file while threads sum it up."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor, label: str) -> None:
        self.error: OSError | None = None
        """Why a write failed; torch raises something else in its place."""
        self._file = file
        self._pool = pool
        self._label = f"{label} ".encode("ascii")
        self._held_back = b""
        """The last bytes so far: they may be the end record, which `finish` changes."""
        self._sums: list[int] = []
        """Of the whole blocks."""
        self._sum = self._num_summed = 0
        """Of the block that is not whole yet, and how many bytes of it there are."""

    def write(self, data: Any) -> int:
        if self.error is not None:  # torch tries to end its file after a failed write
            raise self.error
        view = memoryview(data).cast("B")
        num_held_back = min(len(view), _END_BYTES)
        pieces = self._held_back + bytes(view[len(view) - num_held_back :])
        try:
            if len(view) > num_held_back:
                self._hand_on(memoryview(self._held_back))
                self._hand_on(view[:-num_held_back])
                pieces = pieces[len(self._held_back) :]
            self._hand_on(memoryview(pieces)[:-_END_BYTES])
        except OSError as error:
            self.error = error
            raise
        self._held_back = pieces[-_END_BYTES:]
        return len(view)

    def flush(self) -> None:
        """Nothing: the caller flushes and syncs the file itself."""

    def finish(self) -> None:
        """Note the comment's length in the zip file's end record, and write the comment: the seal."""
        end = self._held_back
        assert end.startswith(_END), "torch.save ends its file with a zip end record"
        assert end.endswith(b"\0\0"), "torch.save leaves no comment"
        num_seal_bytes = len(_MARK) + len(self._label) + _DIGEST_BYTES
        assert num_seal_bytes <= _MOST_SEAL_BYTES, self._label
        self._hand_on(memoryview(end[:-2] + num_seal_bytes.to_bytes(2, "little")))
        self._file.write(_seal_of(self._label, [*self._sums, self._sum] if self._num_summed else self._sums))

    def _hand_on(self, view: memoryview) -> None:
        """Write and sum up; whole blocks are summed by other threads meanwhile. Done with `view` on return."""
        start = min(len(view), _BLOCK - self._num_summed) if self._num_summed else 0
        self._add(view[:start])
        num_whole = (len(view) - start) // _BLOCK
        blocks = [view[start + number * _BLOCK : start + (number + 1) * _BLOCK] for number in range(num_whole)]
        sums = [self._pool.submit(zlib.crc32, block) for block in blocks]
        try:
            if view:
                self._file.write(view)
            if sums:
                begin_fsync(self._file)
        finally:
            self._sums += [future.result() for future in sums]
        self._add(view[start + num_whole * _BLOCK :])

    def _add(self, view: memoryview) -> None:
        """Sum up a part of a block."""
        self._sum = zlib.crc32(view, self._sum)
        self._num_summed += len(view)
        if self._num_summed == _BLOCK:
            self._sums.append(self._sum)
            self._sum = self._num_summed = 0
