"""A seal on what `torch.save` writes, so that no bit of the file can change unnoticed.

`torch.load` does not check the CRCs in its zip file. They cover only the records anyway, not the headers or the padding
between records. The seal covers every byte. It is the comment of the zip file, so `torch.load` opens the file as usual:

    <the zip file, its last two bytes saying how long the comment is> svitlo-seal-1 <label> <64 hex digits>

The label says what the file is: run, phase and step of a checkpoint. It can be read without loading the file. The
digits are the SHA-256 of the label and of the CRC-32s of all 4 MiB blocks of the zip file.

A CRC-32 is certain to find any change of up to 32 neighbouring bits, and misses one in four thousand million others.
Several threads compute the blocks at 1.7 GB/s each, eight times the speed of SHA-256 without hardware support. torch's
own CRCs are left out: its single thread took a third of the time of a save for them. `unzip -t` therefore calls the
file damaged.
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
    """`torch.save` with a seal. `label` is a few words of ASCII.

    Raises `OSError` if the file cannot be written. Plain `torch.save` hides that error.
    """
    import torch  # not needed to read a label

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
    """Verify a whole sealed file. Raises `ValueError` if any bit has changed, or `OSError`."""
    with open(path, "rb") as file, ThreadPoolExecutor(_THREADS) as pool:
        num_bytes, seal = _split(file)
        label = seal[len(_MARK) : -_DIGEST_BYTES]

        def sum_at(start: int) -> int:
            return zlib.crc32(os.pread(file.fileno(), min(_BLOCK, num_bytes - start), start))

        if _seal_of(label, pool.map(sum_at, range(0, num_bytes, _BLOCK))) != seal:
            raise ValueError("its checksum is wrong: at least one bit is not what was written")


def label_of(path: Path) -> str:
    """The label of a sealed file, unverified. Raises `ValueError` if there is no seal, or `OSError`."""
    with open(path, "rb") as file:
        _, seal = _split(file)
    return seal[len(_MARK) : -_DIGEST_BYTES].decode("ascii").strip()


def _split(file: BinaryIO) -> tuple[int, bytes]:
    """The number of bytes before the seal, and the seal. Raises `ValueError` if there is none."""
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
    """The file object for `torch.save`: passes everything on to the file while threads compute the checksums."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor, label: str) -> None:
        self.error: OSError | None = None
        """Why a write failed. torch raises a different error instead."""
        self._file = file
        self._pool = pool
        self._label = f"{label} ".encode("ascii")
        self._held_back = b""
        """The last bytes so far. They may be the end record, which `finish` changes."""
        self._sums: list[int] = []
        """Checksums of the complete blocks."""
        self._sum = self._num_summed = 0
        """Checksum of the incomplete block, and how many bytes it has so far."""

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
        """Does nothing: the caller flushes and syncs the file itself."""

    def finish(self) -> None:
        """Put the length of the comment into the end record of the zip file, then write the comment: the seal."""
        end = self._held_back
        assert end.startswith(_END), "torch.save ends its file with a zip end record"
        assert end.endswith(b"\0\0"), "torch.save leaves no comment"
        num_seal_bytes = len(_MARK) + len(self._label) + _DIGEST_BYTES
        assert num_seal_bytes <= _MOST_SEAL_BYTES, self._label
        self._hand_on(memoryview(end[:-2] + num_seal_bytes.to_bytes(2, "little")))
        self._file.write(_seal_of(self._label, [*self._sums, self._sum] if self._num_summed else self._sums))

    def _hand_on(self, view: memoryview) -> None:
        """Write `view` while other threads compute the checksums of its complete blocks. Done with it on return."""
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
        """Add a part of a block to its checksum."""
        self._sum = zlib.crc32(view, self._sum)
        self._num_summed += len(view)
        if self._num_summed == _BLOCK:
            self._sums.append(self._sum)
            self._sum = self._num_summed = 0
