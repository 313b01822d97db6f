"""Files as streams of bytes, whatever they are packed in. Nothing is ever extracted to disk.

    corpus.txt corpus.txt.gz .xz .bz2 .zst       one stream each
    archive.zip::pattern  archive.tar.xz::pattern
                                                 one per matching member (zip: sorted by name; tar: in file order)
    archive.zip::docs/**/*.txt                   `**`: any number of folders

The packing is detected from the first bytes, not from the name.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self, cast

from svitlo.data.head import HEAD_BYTES
from svitlo.data.patterns import fits, in_other_case, parts_of, why_left_out
from svitlo.errors import DataError
from svitlo.storage.sums import shown
from svitlo.units import printable


def broken_archive_errors() -> tuple[type[BaseException], ...]:
    """What reading a truncated or damaged archive raises."""
    errors: list[type[BaseException]] = [
        EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, tarfile.TarError, zipfile.BadZipFile,
    ]  # fmt: skip
    with contextlib.suppress(ImportError):
        import zstandard

        errors.append(zstandard.ZstdError)
    return tuple(errors)


_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError)


_NAME_IS_UTF_8 = 0x800
_ZIP_DEFAULT = "cp437"
_CODE_PAGES = ("utf-8", "cp866", "cp1251", "cp852", "cp1250", "cp932", "gbk")
"""What old programs on Linux and on Windows in various languages write names of zip members in."""


class PackedFile:
    """One file below `volumes/raw/`, and how much of it has been read."""

    def __init__(
        self, path: Path, members: str | None, name: str, announce: Callable[[str], None] = lambda _: None
    ) -> None:
        """`members`: pattern for the members of an archive. `name`: the name of the file in manifests."""
        self.path = path
        self.members = members
        self.recorded_name = name
        self.name = shown(name)
        """In messages."""
        self.left_out: dict[str, str] = {}
        """Members that nearly fit and are not read, with the reasons. Complete when the archive has been read."""
        self._announce = announce
        self.num_bytes = path.stat().st_size
        self._raw: IO[bytes] | None = None
        self._is_read = False

    @property
    def bytes_read(self) -> int:
        """How far reading has come in the packed file: 0 to `num_bytes`."""
        if self._raw is None or self._raw.closed:
            return self.num_bytes if self._is_read else 0
        return min(self.num_bytes, self._raw.tell())

    def takes(self, member: str) -> bool:
        """Whether a member of this name has been read."""
        return self.members is not None and member not in self.left_out and _fits(member, self.members)

    def streams(self) -> Iterator[tuple[str, io.BufferedReader]]:
        """Each stream with its name. Raises `DataError` for damaged archives and patterns that match nothing."""
        with open(self.path, "rb") as raw:
            self._raw = raw
            kind = _archive_kind(self.path)
            if self.members is None:
                if kind == "zip" and (document := _document_kind(raw)):
                    raise DataError(
                        f"{self.name}: is {document}. Save it as plain text (.txt, UTF-8) and name that file"
                    )
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
                raise DataError(
                    f"{self.name}: is neither a zip nor a tar archive, so it has no `::{printable(self.members)}`"
                )
        self._is_read = True

    def _zip_members(self, raw: IO[bytes], pattern: str) -> Iterator[tuple[str, io.BufferedReader]]:
        try:
            archive = zipfile.ZipFile(raw)
        except _DAMAGED_ZIP as error:
            raise self._damaged_zip(error) from error
        if not all(info.filename for info in archive.infolist()):
            raise self._damaged_zip(zipfile.BadZipFile("a member has no name"))
        # By entry, not by name: tools that append can leave two entries of the same name.
        entries = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
        names = _zip_names(entries, pattern)
        fitting = [(info, name) for info, name in zip(entries, names, strict=True) if _fits(name, pattern)]
        self._require(len(fitting), names)
        for info, name in fitting:
            full_name = f"{self.name}::{shown(name)}"
            if info.flag_bits & 1:
                raise DataError(f"{full_name}: is encrypted. Unpack the archive with its password and name the files")
            try:
                member = archive.open(info)
            except NotImplementedError:
                raise DataError(
                    f"{full_name}: uses compression method {info.compress_type}, which cannot be read here. Unpack the "
                    f"archive with the program that made it and name the files"
                ) from None
            except _DAMAGED_ZIP as error:
                raise self._damaged_zip(error) from error
            with member:
                yield full_name, _unpacked(member, full_name)

    def _damaged_zip(self, error: BaseException) -> BaseException:
        """The error to raise. In a damaged archive the library seeks to invalid places, which the system refuses."""
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            return error
        return DataError(f"{self.name}: damaged zip archive ({error}). Copy or download it again")

    def _tar_members(self, raw: IO[bytes], pattern: str) -> Iterator[tuple[str, io.BufferedReader]]:
        names: list[str] = []
        links: list[str] = []
        num_fitting = 0
        # Several concatenated archives are read as one: people join the parts of a download.
        with tarfile.open(
            fileobj=_unpacked(raw, self.name), mode="r|", tarinfo=_strict_headers(self.name), ignore_zeros=True
        ) as archive:
            for info in archive:
                if info.isdir():
                    continue
                if not info.isfile():
                    links.append(info.name)
                    continue
                names.append(info.name)
                member = archive.extractfile(info)
                if not _fits(info.name, pattern) or member is None:
                    continue
                num_fitting += 1
                full_name = f"{self.name}::{shown(info.name)}"
                yield full_name, _unpacked(cast(IO[bytes], _Adapter(member)), full_name)
        self._require(num_fitting, names, links)

    def _require(self, num_fitting: int, names: list[str], links: Sequence[str] = ()) -> None:
        """Note what is left out. Raises `DataError` where no member fits. `links`: members that are no files."""
        pattern = self.members or ""
        why = {name: reason for name in names if (reason := _why_left_out(name, pattern))}
        why |= {name: "no file, but a link or a device" for name in links if _fits(name, pattern)}
        self.left_out = dict(sorted(why.items()))
        left_out = [f"{shown(name)} ({reason})" for name, reason in self.left_out.items()]
        listed = f"; left out: {', '.join(left_out[:8])}" + (", ..." if len(left_out) > 8 else "") if left_out else ""
        if not num_fitting:
            there = [shown(name) for name in names]
            in_words = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
            holds = f"the archive holds {in_words or 'no files'}{listed}"
            raise DataError(f"{self.name}: no member fits `{printable(pattern)}`; {holds}")
        if num_fitting < len(names) + len(links):
            fit = f"{num_fitting:,} of {len(names) + len(links):,} members fit `{printable(pattern)}`"
            self._announce(f"{self.name}: {fit}{listed}")


def _zip_names(entries: list[zipfile.ZipInfo], pattern: str) -> list[str]:
    """The names of the entries, in the code page in which one of them fits the pattern.

    Old programs do not note the encoding of names. The library then reads cp437, which is right for few languages.
    """
    for page in (_ZIP_DEFAULT, *_CODE_PAGES):
        with contextlib.suppress(UnicodeError):
            names = [_name_in(info, page) for info in entries]
            if any(_fits(name, pattern) for name in names):
                return names
    return [info.filename for info in entries]


def _name_in(info: zipfile.ZipInfo, page: str) -> str:
    """Raises `UnicodeError` where the name is no text in this code page."""
    if info.flag_bits & _NAME_IS_UTF_8:
        return info.filename
    return info.filename.encode(_ZIP_DEFAULT).decode(page)


def _fits(name: str, pattern: str) -> bool:
    """Matches like a pattern below a folder, except that one without `**` matches in every folder of the archive."""
    parts, patterns = _compared(name, pattern)
    return fits(parts, patterns, with_hidden=True) and why_left_out(parts, patterns) is None


def _why_left_out(name: str, pattern: str) -> str | None:
    parts, patterns = _compared(name, pattern)
    if fits(parts, patterns, with_hidden=True):
        return why_left_out(parts, patterns)
    return f"fits `{printable(pattern)}` only in other upper and lower case" if in_other_case(parts, patterns) else None


def _compared(name: str, pattern: str) -> tuple[list[str], list[str]]:
    patterns = parts_of(pattern)
    return parts_of(name), patterns if "**" in patterns else ["**", *patterns]


def _strict_headers(name: str) -> type[tarfile.TarInfo]:
    """Headers of one tar archive. The library would take a damaged header, or a missing end, for the end."""

    class StrictInfo(tarfile.TarInfo):
        has_end = False

        @classmethod
        def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
            assert archive.fileobj is not None
            place = archive.fileobj.tell()
            try:
                found = super().fromtarfile(archive)
            except tarfile.HeaderError as error:
                kind = type(error).__name__
                if kind == "EOFHeaderError":  # a block of zeros
                    StrictInfo.has_end = True
                elif kind != "EmptyHeaderError" or not StrictInfo.has_end:
                    reason = "its end is missing" if kind == "EmptyHeaderError" else str(error)
                    raise DataError(
                        f"{name}: damaged or cut short ({reason}, at byte {place:,} of the tar archive). Copy or "
                        f"download it again"
                    ) from None
                raise
            StrictInfo.has_end = False
            return found

    return StrictInfo


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


_DOCUMENTS = {
    "word/": "a Word document (docx)", "xl/": "an Excel workbook (xlsx)", "ppt/": "a PowerPoint presentation (pptx)",
    "META-INF/container.xml": "an e-book (epub)", "content.xml": "an OpenDocument file (odt, ods or odp)",
}  # fmt: skip


def _document_kind(raw: IO[bytes]) -> str | None:
    """The program that a zip archive is a document of, if it is one."""
    try:
        names = zipfile.ZipFile(raw).namelist()
    except _DAMAGED_ZIP:
        return None
    return next((kind for start, kind in _DOCUMENTS.items() if any(name.startswith(start) for name in names)), None)


_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")


def _unpacked(packed: IO[bytes], name: str) -> io.BufferedReader:
    """The content of a stream that may be compressed."""
    stream: io.BufferedReader = io.BufferedReader(cast(io.RawIOBase, packed), HEAD_BYTES)
    head = stream.peek(10)
    content: IO[bytes]
    if head.startswith(b"\x1f\x8b"):
        content = cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    elif head.startswith(b"\xfd7zXZ\x00"):
        content = cast(IO[bytes], lzma.LZMAFile(stream))  # noqa: SIM115 — closed with the file
    elif _BZIP2.match(head):
        content = cast(IO[bytes], _Bzip2(stream))
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        content = _zstandard(stream, name)
    else:
        return stream
    return io.BufferedReader(cast(io.RawIOBase, content), HEAD_BYTES)


class _Bzip2(bz2.BZ2File):
    """The library raises `OSError` for damaged data, which would be reported as an error of the disk."""

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            if error.errno is not None:
                raise
            raise EOFError(str(error)) from None


class _Adapter(io.RawIOBase):
    """A member of a tar archive, with the methods that a text wrapper needs."""

    def __init__(self, member: IO[bytes]) -> None:
        self._member = member

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._member.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Zstandard(io.RawIOBase):
    """The content of zstd frames. The library's own reader does not notice a file that is cut short."""

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
