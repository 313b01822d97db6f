"""The model hub over HTTP: what a data set holds, and its files, whole and verified.

Asking goes through `huggingface_hub`, which knows endpoint, token and proxies. Its own downloads begin again from zero
after a kill, and after a cut within 10 MB; they compare sizes only, and sync nothing. So files are fetched here: a
download goes on where it was cut, and a file has its name only when its digest is the one that the hub gives.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from svitlo.config import DATA_FILE, UNPINNED, Source
from svitlo.data.report import Reporter
from svitlo.errors import DataError, SvitloError
from svitlo.reporting.status import WAITING_FOR_HUB
from svitlo.storage.files import fsync_file, rename_durably, sha256_of
from svitlo.storage.space import require_space
from svitlo.units import duration, file_size

Answer = TypeVar("Answer")

WAITS = (1.0, 2.0, 4.0)
"""Seconds between tries that bring nothing. After the last one a container waits longer, without this process."""
LONGEST_WAIT = 60.0
"""Seconds. If the hub asks for more, that is left to the container, too."""
SECONDS_TO_RETRY = 60.0
MOST_SECONDS_TO_RETRY = 3_600.0
"""Also for files that arrive damaged, because each try is a whole download."""
_PARTIAL = ".part"
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NOT_NOW = (408, 425, 429)
"""With all from 500 on: answers that another try may change."""
_TOKEN = "a token in HUB_TOKEN_FILE (docs/security.md)"


class HubFile(NamedTuple):
    """A file of a data set, as the hub describes it."""

    path: str
    num_bytes: int
    digest: str
    """What the hub calls the content: the SHA-256 of a large file (64 hex digits), git's SHA-1 of a small one (40)."""


class HubUnreachable(SvitloError):  # noqa: N818
    """The hub did not answer. Trying again later may help."""

    exit_code = 1
    is_permanent = False
    state = WAITING_FOR_HUB

    def __init__(self, name: str, reason: str, remedy: str, retry_seconds: float = SECONDS_TO_RETRY) -> None:
        """`reason`: a clause, for the line that is printed before another try."""
        super().__init__(f"{name}: {reason}. {remedy}")
        self.reason = reason
        self.retry_seconds = retry_seconds


class HubClient:
    """One data set on the hub. Files go into `folder` under their digests."""

    def __init__(self, source: Source, folder: Path, reporter: Reporter) -> None:
        assert source.hub is not None
        self.name = f"hub data set {source.hub} (source {source.name})"
        self._source = source
        self._repository = source.hub
        self._key = f"{DATA_FILE}: source {source.name}: `hub: {source.hub}`"
        self._folder = folder
        self._reporter = reporter
        # The library reads these when it is imported.
        os.environ.setdefault("HF_HOME", str(folder.parent / "huggingface"))
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "30")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")

    def describe(self, commit: str | None) -> tuple[str, list[HubFile]]:
        """A commit, by default the newest, and all files at that commit. Raises `SvitloError`."""
        from huggingface_hub import HfApi, constants

        def ask() -> tuple[str, list[HubFile]]:
            info = HfApi().dataset_info(
                self._repository, revision=commit, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
            files = [
                HubFile(file.rfilename, file.lfs.size, file.lfs.sha256)
                if file.lfs
                else HubFile(file.rfilename, file.size or 0, str(file.blob_id))
                for file in info.siblings or []
            ]
            for file in files:
                if not _DIGEST.fullmatch(file.digest):  # it becomes the name of a file
                    raise self._not_for_everybody() if info.gated else ValueError(f"{file.path} without a digest")
            return str(info.sha), files

        return self._asked(ask)

    def fetch(self, files: list[HubFile], commit: str) -> list[Path]:
        """Where the files are, after those that are missing or damaged were downloaded. Raises `SvitloError`."""
        paths = [self._folder / file.digest for file in files]
        missing = {}
        for file, path in zip(files, paths, strict=True):
            if path.exists() and not _is_whole(path, file):
                self._reporter.say(f"warning: {path}: not what the hub has as {file.path}; downloading it again")
                path.unlink()
            if not path.exists():
                missing[path] = file
        if missing:
            require_space(
                self._folder, sum(file.num_bytes - _size_of(_partial(path)) for path, file in missing.items())
            )
        for path, file in missing.items():
            self._download(file, path, commit)
        return paths

    def _download(self, file: HubFile, path: Path, commit: str) -> None:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._repository, file.path, repo_type="dataset", revision=commit)
        part = _partial(path)
        for _ in range(2):
            while _size_of(part) < file.num_bytes or not part.exists():
                self._asked(lambda: self._append(url, part, file))
            if _is_whole(part, file):
                with open(part, "r+b") as content:
                    fsync_file(content)
                rename_durably(part, path)
                return
            part.unlink()
            self._reporter.say(f"warning: {self.name}: {file.path} arrived damaged")
        raise HubUnreachable(
            self.name,
            f"{file.path} arrived damaged twice: its content is not {file.digest[:12]}…, as the hub says",
            "Something on the way changes it (a proxy?), or the memory or disk of this machine does",
            MOST_SECONDS_TO_RETRY,
        )

    def _append(self, url: str, part: Path, file: HubFile) -> None:
        """Ask for what `part` misses, once. If the connection breaks after some of it has arrived, that stays."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, httpx

        with open(part, "ab") as content:
            begin = content.tell()
            headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
            if begin:
                self._reporter.say(
                    f"{self.name}: {file.path}: going on after {file_size(begin)} of {file_size(file.num_bytes)}"
                )
                headers["Range"] = f"bytes={begin}-"
            try:
                with get_session().stream(
                    "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                ) as response:
                    hf_raise_for_status(response)
                    if begin and response.status_code != httpx.codes.PARTIAL_CONTENT:
                        begin = content.truncate(0)  # this server sends the whole file again
                    for block in response.iter_bytes():
                        content.write(block)
                        content.flush()
                        done = content.seek(0, os.SEEK_END)
                        if done > file.num_bytes:
                            break
                        self._reporter.downloading(
                            f"{self.name}: {file.path}: {file_size(done)} of {file_size(file.num_bytes)} downloaded"
                        )
            except httpx.TransportError as error:
                if content.seek(0, os.SEEK_END) <= begin:
                    raise
                self._reporter.waiting(f"{self.name}: {file.path}: the connection broke ({_reason(error)})")
                time.sleep(WAITS[0])
            else:
                size = content.seek(0, os.SEEK_END)
                if size < file.num_bytes:  # a whole answer, and not to this question
                    content.truncate(begin)
                    raise ValueError(f"{size - begin:,} bytes instead of {file.num_bytes - begin:,}")

    # --- when the hub does not answer ---

    def _asked(self, request: Callable[[], Answer]) -> Answer:
        """What `request` returns. Tries a few times where the hub does not answer. Raises `SvitloError`."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import httpx

        foreseen = (httpx.RequestError, httpx.InvalidURL, HfHubHTTPError, OfflineModeIsEnabled)
        for wait in (*WAITS, None):
            try:
                return request()
            except (*foreseen, ValueError, KeyError, TypeError) as error:
                explained = self._explained(error)
                is_off = isinstance(error, OfflineModeIsEnabled)
                if not isinstance(explained, HubUnreachable) or wait is None or is_off:
                    raise explained from error
                wait = max(wait, _asked_to_wait(error))
                if wait > LONGEST_WAIT:
                    raise explained from error
                self._reporter.waiting(f"{self.name}: {explained.reason}; asking again in {duration(wait)}")
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _explained(self, error: Exception) -> SvitloError:
        """The library's error as one that says what to do."""
        from huggingface_hub import constants, errors
        from huggingface_hub.utils import httpx

        page = self._page()
        if isinstance(error, errors.GatedRepoError):
            return self._not_for_everybody()
        if isinstance(error, errors.RepositoryNotFoundError):
            return DataError(
                f"{self._key}: the hub has no such data set, or not for everybody. Look for it at {page}. For one that "
                f"is not public, put {_TOKEN}"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return DataError(
                f"{DATA_FILE}: source {self._source.name}: `revision: {self._source.revision}`: {self._repository} has "
                f"no such commit. Choose one from {page}/commits/main, or `{UNPINNED}`"
            )
        if isinstance(error, errors.HFValidationError):
            return DataError(f"{self._key}: not a name of a data set: {_reason(error)}. Give it as `owner/name`")
        if isinstance(error, httpx.LocalProtocolError):  # its text may hold the token
            return DataError(f"{self._key}: the request cannot be sent: check the characters of {_TOKEN}")
        if isinstance(error, errors.HfHubHTTPError) and str(error.response.url).startswith(constants.ENDPOINT):
            # Not from where the hub keeps large files: a refusal there ends by itself.
            status = error.response.status_code
            if status in (401, 403):
                return DataError(
                    f"{self._key}: the hub refuses it ({_reason(error)}). Look at {page}, and put {_TOKEN}"
                )
            if status < 500 and status not in _NOT_NOW:
                return DataError(f"{self._key}: the hub does not give it ({_reason(error)}). Look at {page}")
        is_answer = isinstance(error, (ValueError, KeyError, TypeError))
        said = "answers with something that is not the hub's" if is_answer else "does not answer"
        return HubUnreachable(
            self.name,
            f"{constants.ENDPOINT} {said} ({_reason(error)})",
            "Check the network. To prepare from files instead, put them into volumes/raw/ and set "
            "SVITLO_CONFIG=./config/offline",
            min(max(SECONDS_TO_RETRY, _asked_to_wait(error)), MOST_SECONDS_TO_RETRY),
        )

    def _not_for_everybody(self) -> DataError:
        return DataError(
            f"{self._key}: its owner gives access on request. Ask for it at {self._page()}, and put {_TOKEN}"
        )

    def _page(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/datasets/{self._repository}"


def _asked_to_wait(error: Exception) -> float:
    """Seconds that the hub wants us to wait, 0 if it does not say."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers

    if not isinstance(error, HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        answer = f"{error.response.status_code} {error.response.reason_phrase}"
        return ": ".join(filter(None, (answer, " ".join((error.server_message or "").split())[:200])))
    return " ".join(str(error).split())[:200] or type(error).__name__


def _partial(path: Path) -> Path:
    return path.with_name(path.name + _PARTIAL)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_whole(path: Path, file: HubFile) -> bool:
    """Whether a file on disk is what the hub describes."""
    if _size_of(path) != file.num_bytes:
        return False
    if len(file.digest) == 64:
        return sha256_of(path) == file.digest
    sha1 = hashlib.sha1(b"blob %d\0" % file.num_bytes, usedforsecurity=False)
    sha1.update(path.read_bytes())
    return sha1.hexdigest() == file.digest
