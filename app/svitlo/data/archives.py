"""Files as streams of bytes, whatever they are packed in. Nothing is ever extracted to disk.

    corpus.txt corpus.txt.gz .xz .bz2 .zst       one stream each
    archive.zip::pattern  archive.tar.xz::pattern
                                                 one for each member that fits (zip: by name; tar: as they stand)

The packing is told by the first bytes and not by the name.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from svitlo.data.head import HEAD_BYTES
from svitlo.errors import DataError


def broken_archive_errors() -> tuple[type[BaseException], ...]:
    """What reading a truncated or damaged archive raises."""
    errors: list[type[BaseException]] = [
        EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, tarfile.TarError, zipfile.BadZipFile,
    ]  # fmt: skip
    with contextlib.suppress(ImportError):
        import zstandard

        errors.append(zstandard.ZstdError)
    return tuple(errors)


class PackedFile:
    """One file below `volumes/raw/`, and how much of it has been read."""

    def __init__(self, path: Path, members: str | None, name: str) -> None:
        """`members`: pattern for the members of an archive. `name`: what to call the file in messages."""
        self.path = path
        self.members = members
        self.name = name
        self.num_bytes = path.stat().st_size
        self._raw: IO[bytes] | None = None
        self._is_read = False

    @property
    def bytes_read(self) -> int:
        """How far reading has come in the file as it is stored: 0 to `num_bytes`."""
        if self._raw is None or self._raw.closed:
            return self.num_bytes if self._is_read else 0
        return min(self.num_bytes, self._raw.tell())

    def streams(self) -> Iterator[tuple[str, io.BufferedReader]]:
        """Each stream with its name. Raises `DataError` for damaged archives and patterns that fit nothing."""
        with open(self.path, "rb") as raw:
            self._raw = raw
            kind = _archive_kind(self.path)
            if self.members is None:
                if kind is not None:
                    raise DataError(
                        f"{self.name}: is a {kind} archive. Say which members are meant: `{self.name}::*.txt`"
                    )
                yield self.name, _unpacked(raw, self.name)
            elif kind == "zip":
                yield from self._zip_members(raw, self.members)
            elif kind == "tar":
                yield from self._tar_members(raw, self.members)
            else:
                raise DataError(f"{self.name}: is neither a zip nor a tar archive, so it has no `::{self.members}`")
        self._is_read = True

    def _zip_members(self, raw: IO[bytes], pattern: str) -> Iterator[tuple[str, io.BufferedReader]]:
        try:
            archive = zipfile.ZipFile(raw)
        except zipfile.BadZipFile as error:
            raise DataError(f"{self.name}: damaged zip archive ({error}). Copy or download it again") from error
        names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
        fitting = [name for name in names if _fits(name, pattern)]
        self._require(fitting, names)
        for name in fitting:
            full_name = f"{self.name}::{name}"
            with archive.open(name) as member:
                yield full_name, _unpacked(member, full_name)

    def _tar_members(self, raw: IO[bytes], pattern: str) -> Iterator[tuple[str, io.BufferedReader]]:
        names, has_any = [], False
        with tarfile.open(fileobj=_unpacked(raw, self.name), mode="r|") as archive:
            for info in archive:
                if not info.isfile():
                    continue
                names.append(info.name)
                member = archive.extractfile(info)
                if not _fits(info.name, pattern) or member is None:
                    continue
                has_any = True
                full_name = f"{self.name}::{info.name}"
                yield full_name, _unpacked(cast(IO[bytes], _Adapter(member)), full_name)
        self._require(has_any, names)

    def _require(self, fitting: object, names: list[str]) -> None:
        if not fitting:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise DataError(f"{self.name}: no member fits `{self.members}`; the archive holds {shown or 'no files'}")


def _fits(name: str, pattern: str) -> bool:
    path = PurePosixPath(name)
    return not path.name.startswith("._") and "__MACOSX" not in path.parts and path.match(pattern)


def _archive_kind(path: Path) -> str | None:
    """`zip`, `tar` (packed or not) or None."""
    with open(path, "rb") as raw:
        if raw.peek(4)[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return "zip"
        block = b""
        with contextlib.suppress(*broken_archive_errors(), OSError, DataError):
            unpacked = _unpacked(raw, "")
            block = unpacked.peek(512)
        return "tar" if block[257:262] == b"ustar" else None


def _unpacked(packed: IO[bytes], name: str) -> io.BufferedReader:
    """The content of a stream that may be compressed."""
    stream: io.BufferedReader = io.BufferedReader(cast(io.RawIOBase, packed), HEAD_BYTES)
    head = stream.peek(6)
    content: IO[bytes]
    if head.startswith(b"\x1f\x8b"):
        content = cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    elif head.startswith(b"\xfd7zXZ\x00"):
        content = cast(IO[bytes], lzma.LZMAFile(stream))  # noqa: SIM115 — closed with the file
    elif head.startswith(b"BZh"):
        content = cast(IO[bytes], bz2.BZ2File(stream))
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        content = _zstandard(stream, name)
    else:
        return stream
    return io.BufferedReader(cast(io.RawIOBase, content), HEAD_BYTES)


class _Adapter(io.RawIOBase):
    """A tar archive's member, which lacks what a text wrapper asks for."""

    def __init__(self, member: IO[bytes]) -> None:
        self._member = member

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._member.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Zstandard(io.RawIOBase):
    """The content of zstd frames. The library's own reader takes a file that is cut short for a whole one."""

    def __init__(self, packed: IO[bytes], new_decompressor: Callable[[], Any]) -> None:
        self._packed = packed
        self._new_decompressor = new_decompressor
        self._frame = new_decompressor()
        self._left = b""
        self._has_begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            if self._frame.eof:
                packed = self._frame.unused_data
                self._frame, self._has_begun = self._new_decompressor(), False
            else:
                packed = b""
            packed = packed or self._packed.read(16_384)
            if not packed:
                if self._has_begun:
                    raise EOFError("the end of the last zstd frame is missing")
                return 0
            self._has_begun = True
            self._left = self._frame.decompress(packed)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _zstandard(stream: IO[bytes], name: str) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{name}: is compressed with zstd, and the package zstandard is not installed here. Unpack the file, or "
            f"run the data-prep container, which has it"
        ) from None
    return cast(IO[bytes], _Zstandard(stream, lambda: zstandard.ZstdDecompressor().decompressobj()))
