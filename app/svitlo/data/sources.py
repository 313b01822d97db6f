"""Where documents come from: files below `volumes/raw/`, or data sets on the hub.

Both give their documents in an order that depends only on the configuration and the data. Each document has a position
(unit, number). The unit is a file or a member of an archive. Reading can begin at any position.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from svitlo.config import UNPINNED, Source
from svitlo.data.archives import PackedFile, broken_archive_errors
from svitlo.data.formats import Raw, raw_documents
from svitlo.data.head import HEAD_BYTES, is_parquet
from svitlo.data.hub import HubFiles
from svitlo.data.rawfiles import at_most, find_files
from svitlo.data.report import Reporter
from svitlo.data.sanity import LanguageCheck, check_bytes, check_head
from svitlo.data.textstream import utf8_stream
from svitlo.errors import DataError
from svitlo.storage.files import sha256_of
from svitlo.storage.sums import shown
from svitlo.volumes import Volumes


class Positioned(NamedTuple):
    unit: int
    number: int
    raw: Raw


class Documents(Protocol):
    """The documents of one source."""

    left_out: list[str]
    """Files that the source nearly takes and does not read, each with the reason. Not a part of its identity."""

    @property
    def members_left_out(self) -> list[str]:
        """The same of members of its archives. Complete when it has been read to its end."""
        ...

    def identity(self) -> dict[str, Any]:
        """What the manifest says about the origin."""
        ...

    def read(self, unit: int, number: int) -> Iterator[Positioned]:
        """The documents from the one at (unit, number) on."""
        ...

    def cut_at(self, longest: int | None) -> None:
        """From now on cut text with more characters into parts, where the format can. None: as data.yaml says."""
        ...

    @property
    def fraction_read(self) -> float:
        """0 to 1. Used to estimate the time left."""
        ...


# --- files -----------------------------------------------------------------------------------------------------------


class KnownDigests:
    """Cached SHA-256 of files, by size and time, so that a start does not read gigabytes again."""

    def __init__(self, known: dict[str, list[Any]]) -> None:
        self.known = known

    def of(self, file: PackedFile) -> str:
        status = file.path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        entry = self.known.get(file.recorded_name)
        if entry is None or entry[:3] != stamp:
            entry = [*stamp, sha256_of(file.path)]
            self.known[file.recorded_name] = entry
        return str(entry[3])


class FileDocuments:
    """The documents in files, packed or not."""

    def __init__(
        self, source: Source, files: list[PackedFile], digests: KnownDigests, left_out: list[str] | None = None
    ) -> None:
        self.left_out = left_out or []
        self._source = source
        self._files = files
        self._digests = digests
        self._longest = source.longest_document

    def cut_at(self, longest: int | None) -> None:
        self._source = self._source.model_copy(update={"longest_document": longest or self._longest})

    def identity(self) -> dict[str, Any]:
        named = {
            file.path: {"name": file.recorded_name, "sha256": self._digests.of(file), "bytes": file.num_bytes}
            for file in self._files
        }
        return {"files": list(named.values())}

    @property
    def members_left_out(self) -> list[str]:
        """But for those that another pattern takes."""
        return at_most(
            [
                f"{file.name}::{shown(member)} ({reason})"
                for file in self._files
                for member, reason in file.left_out.items()
                if not any(other.path == file.path and other.takes(member) for other in self._files)
            ]
        )

    @property
    def fraction_read(self) -> float:
        total = sum(file.num_bytes for file in self._files)
        return sum(file.bytes_read for file in self._files) / total if total else 1.0

    def read(self, unit: int, number: int) -> Iterator[Positioned]:
        current = 0
        small = LanguageCheck(
            f"source {self._source.name}, in its smallest files", expect_english=self._source.check_language
        )
        for file in self._files:
            where = file.name
            try:
                for name, stream in file.streams():
                    if current >= unit:
                        where = name
                        first = number if current == unit else 0
                        stream = checked_stream(name, self._source, stream)
                        for index, raw in enumerate(self._checked(name, stream, small)):
                            if index >= first:
                                yield Positioned(current, index, raw)
                    where = file.name
                    current += 1
            except broken_archive_errors() as error:
                raise DataError(
                    f"{where}: damaged or cut short ({error or type(error).__name__}). Copy or download it again"
                ) from error
        if small.has_seen:
            small.finish()

    def _checked(self, name: str, stream: io.BufferedReader, small: LanguageCheck) -> Iterator[Raw]:
        check = LanguageCheck(name, expect_english=self._source.check_language)
        is_empty = True
        for raw in raw_documents(self._source, name, stream):
            is_empty = False
            check.see(raw)
            yield raw
        if is_empty:
            raise DataError(f"{name}: holds no documents (format {self._source.format}): the file is empty")
        small.see_text(check.finish())


def checked_stream(name: str, source: Source, stream: io.BufferedReader) -> io.BufferedReader:
    """The stream of one file as UTF-8 text (Parquet stays as it is). Raises `DataError` if it cannot be right."""
    content = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    check_bytes(name, source, content)
    if not is_parquet(content):
        stream = utf8_stream(name, stream, source.encoding, source.name)
    check_head(name, source, stream.peek(HEAD_BYTES)[:HEAD_BYTES])
    return stream


# --- the hub ---------------------------------------------------------------------------------------------------------


class HubDocuments(FileDocuments):
    """The documents of a data set on the hub. Its files are fetched when the first document is read."""

    def __init__(self, source: Source, files: HubFiles) -> None:
        super().__init__(source, [], KnownDigests({}))
        self._hub = files

    def identity(self) -> dict[str, Any]:
        return {
            "repository": self._source.hub,
            "configuration": self._source.configuration,
            "split": self._source.split,
            "revision": self._hub.commit,
            "pinned": self._source.revision != UNPINNED,
        }

    @property
    def fraction_read(self) -> float:
        return super().fraction_read if self._files else 0.0

    def read(self, unit: int, number: int) -> Iterator[Positioned]:
        if not self._files:
            self._files = self._hub.fetch()
        yield from super().read(unit, number)


def documents_of(
    source: Source, volumes: Volumes, digests: KnownDigests, reporter: Reporter, commit: str | None = None
) -> Documents:
    """The documents of a source. Raises `DataError` if its files are missing. `commit`: see `HubFiles`."""
    if source.hub is not None:
        return HubDocuments(source, HubFiles(source, volumes.cache, reporter, commit))
    found = find_files(source, volumes.raw, reporter.say)
    return FileDocuments(source, found.files, digests, found.left_out)
