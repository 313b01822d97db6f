"""Where documents come from: files below `volumes/raw/`, or data sets on the hub.

Both give their documents in an order that depends only on the configuration and the data. Each document has a position
(unit, number). The unit is a file or a member of an archive. Reading can begin at any position.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from svitlo.config import UNPINNED, Source
from svitlo.data.archives import PackedFile, broken_archive_errors
from svitlo.data.formats import Raw, missing_column, raw_documents, row_document, used_columns
from svitlo.data.head import HEAD_BYTES, is_parquet
from svitlo.data.rawfiles import at_most, find_files
from svitlo.data.records import Place
from svitlo.data.sanity import LanguageCheck, check_bytes, check_head
from svitlo.data.textstream import utf8_stream
from svitlo.errors import DataError, SvitloError
from svitlo.reporting.status import WAITING_FOR_HUB
from svitlo.storage.files import sha256_of
from svitlo.storage.sums import shown

Announce = Callable[[str], None]


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


class HubUnreachable(SvitloError):  # noqa: N818
    """The hub did not answer. Trying again later may help."""

    exit_code = 1
    is_permanent = False
    state = WAITING_FOR_HUB


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


class HubDocuments:
    """The rows of a data set on the hub, or of a folder laid out like one.

    The `datasets` library, imported only here, loads data files only: code in a repository is never run. The files stay
    in `volumes/cache/`, so a start after a power cut needs no network.
    """

    def __init__(self, source: Source, cache: Path, announce: Announce, commit: str | None = None) -> None:
        """`commit`: the commit of an unpinned revision, found when this preparation began."""
        assert source.hub is not None
        self.left_out: list[str] = []
        self.members_left_out: list[str] = []
        self._source = source
        self._repository = source.hub
        self._cache = cache
        self._announce = announce
        self._commit = commit if source.revision == UNPINNED else source.revision
        self._rows: Any = None
        self._next = 0

    def identity(self) -> dict[str, Any]:
        return {
            "repository": self._repository,
            "configuration": self._source.configuration,
            "split": self._source.split,
            "revision": self._find_commit(),
            "pinned": self._source.revision != UNPINNED,
        }

    @property
    def fraction_read(self) -> float:
        return self._next / len(self._rows) if self._rows is not None and len(self._rows) else 0.0

    def read(self, unit: int, number: int) -> Iterator[Positioned]:
        assert unit == 0
        name = f"hub data set {self._repository}"
        rows = self._load(name)
        check = LanguageCheck(name, expect_english=self._source.check_language)
        for index, row in enumerate(_python_rows(rows, number), start=number):
            raw = row_document(self._source, Place(name, "row", index + 1), row)
            check.see(raw)
            self._next = index + 1
            yield Positioned(0, index, raw)
        check.finish()

    def cut_at(self, longest: int | None) -> None:
        """Rows stay whole: a position is the number of a row."""

    def _is_folder(self) -> bool:
        return Path(self._repository).is_dir()

    def _find_commit(self) -> str:
        if self._commit is None:
            if self._is_folder():
                self._commit = "local folder"
            else:
                self._prepare_library()
                from huggingface_hub import HfApi

                try:
                    self._commit = str(HfApi().dataset_info(self._repository).sha)
                except Exception as error:
                    raise self._explained(error) from error
            self._announce(
                f"warning: source {self._source.name}: `revision: {UNPINNED}`, so the data may differ on another day. "
                f"Today it is {self._repository} at {self._commit}"
            )
        return self._commit

    def _prepare_library(self) -> None:
        """Settings that the libraries read when they are imported."""
        os.environ.setdefault("HF_HOME", str(self._cache / "huggingface"))
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

    def _load(self, name: str) -> Any:
        self._prepare_library()
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{name}: the package `datasets` is not installed here. Run the data-prep container, which has it, or "
                f"use files (config/offline)"
            ) from None
        datasets.disable_progress_bars()
        self._announce(f"loading {name} (revision {self._find_commit()[:12]})")
        arguments = {
            "path": self._repository,
            "name": self._source.configuration,
            "split": self._source.split,
            "revision": None if self._is_folder() else self._find_commit(),
            "cache_dir": str(self._cache / "datasets"),
        }
        try:
            rows = datasets.load_dataset(**arguments)
        except Exception as error:
            if not _is_damaged_cache(error):
                raise self._explained(error) from error
            self._announce(f"warning: the cached copy of {name} is damaged ({error}); downloading it again")
            try:
                rows = datasets.load_dataset(**arguments, download_mode="force_redownload")
            except Exception as again:
                raise self._explained(again) from again
        problem = missing_column(self._source, rows.column_names)
        if problem is not None:
            raise DataError(f"{name}: {problem}")
        used = used_columns(self._source)
        self._rows = rows.select_columns([field for field in rows.column_names if field in used])
        return self._rows

    def _explained(self, error: Exception) -> SvitloError:
        """The library's error, turned into one that says what to do."""
        name = f"hub data set {self._repository} (source {self._source.name})"
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        kind = type(error).__name__
        unreachable = (
            "ConnectionError",
            "ConnectTimeout",
            "LocalEntryNotFoundError",
            "OfflineModeIsEnabled",
            "Timeout",
        )
        for cause in _causes_of(error):
            text = str(cause)
            if type(cause).__name__ in unreachable or "resolve" in text or "Couldn't reach" in text:
                return HubUnreachable(
                    f"{name}: the hub cannot be reached ({kind}: {reason}). Check the network, or prepare from files: "
                    f"put them into volumes/raw/ and set SVITLO_CONFIG=./config/offline"
                )
        return DataError(f"{name}: cannot be loaded ({kind}: {reason}). Check `hub`, `configuration` and `revision`")


def _python_rows(rows: Any, start: int) -> Iterator[dict[str, Any]]:
    for first in range(start, len(rows), 1_000):
        columns = rows[first : first + 1_000]
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _is_damaged_cache(error: Exception) -> bool:
    """Whether the cache is damaged. The library does not sync its files, so a power cut can leave one empty."""
    names = {type(cause).__name__ for cause in _causes_of(error)}
    return bool(names & {"ArrowInvalid", "NonMatchingSplitsSizesError", "JSONDecodeError", "NonMatchingChecksumError"})


def _causes_of(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def documents_of(
    source: Source, raw_folder: Path, cache: Path, digests: KnownDigests, announce: Announce, commit: str | None = None
) -> Documents:
    """The documents of a source. Raises `DataError` if its files are missing."""
    if source.hub is not None:
        with contextlib.suppress(OSError):
            cache.mkdir(exist_ok=True)
        return HubDocuments(source, cache, announce, commit)
    found = find_files(source, raw_folder, announce)
    return FileDocuments(source, found.files, digests, found.left_out)
