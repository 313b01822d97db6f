"""A server that answers as the model hub does, for the data sets that a test puts into it.

    GET  api/datasets/OWNER/NAME/revision/COMMIT[?blobs=True]    what a data set holds; with sizes and digests
    GET  api/datasets/OWNER/NAME/tree/COMMIT[/FOLDER]            the same as a tree
    GET  datasets/OWNER/NAME/resolve/COMMIT/PATH                 a large file: 302 to another host, without the token
                                                                 a small one: 307 on the same host

Large files are those that the hub keeps in LFS. Their ETag is their SHA-256, that of others git's SHA-1. Errors carry
`X-Error-Code` as on the hub. A test that wants trouble sets `fault`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

LARGE = (".parquet",)
Files = dict[str, bytes]
"""The content of each path of a data set."""


@dataclass(frozen=True)
class Request:
    """A request that the server has received."""

    method: str
    path: str
    """Without the query."""
    begins_at: int
    """The first byte that was asked for."""
    token: str | None
    """What stands behind `Authorization`."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request."""

    status: int | None = None
    """Answer only with this status and `headers`."""
    headers: dict[str, str] = field(default_factory=dict)
    is_silent: bool = False
    """Never answer."""
    cut_after: int | None = None
    """Close the connection after so many bytes of a file."""
    stalls_after: int | None = None
    """Send nothing more after so many bytes of a file, and keep the connection."""
    pause_every: int | None = None
    """Pause for a moment after so many bytes of a file, again and again."""
    replaced: tuple[bytes, bytes] = (b"", b"")
    """Send a file with the second in the place of the first."""
    instead: bytes | None = None
    """Answer with this page."""


class Hub:
    """The server. It runs in threads of this process."""

    def __init__(self) -> None:
        self.data_sets: dict[tuple[str, str], Files] = {}
        """By repository and commit."""
        self.requests: list[Request] = []
        self.fault: Callable[[Request], Fault | None] = lambda _: None
        self.knows_ranges = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.is_closing = threading.Event()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        """What `HF_ENDPOINT` has to be."""
        return f"http://127.0.0.1:{self.port}"

    def goes_wrong(self, times: int, fault: Fault, where: str = "") -> None:
        """From now on, the first so many requests with `where` in their path go wrong."""
        left = [fault] * times
        self.fault = lambda request: left.pop() if where in request.path and left else None

    def transfers(self) -> list[Request]:
        """The requests that large files were sent for."""
        return [request for request in self.requests if request.path.startswith("/cdn/")]

    def stop(self) -> None:
        """From now on connections are refused."""
        self.is_closing.set()
        self._server.shutdown()
        self._server.server_close()


def _handler_for(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        fault = Fault()
        begin = 0

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
            url = urlsplit(self.path)
            request = Request(self.command, unquote(url.path), int(wanted), self.headers.get("Authorization"))
            hub.requests.append(request)
            self.begin = request.begins_at if hub.knows_ranges else 0
            self.fault = hub.fault(request) or Fault()
            if self.fault.is_silent:
                hub.is_closing.wait()
                self.close_connection = True
                return
            with contextlib.suppress(ConnectionError):
                if self.fault.status is not None:
                    self.send(self.fault.status, b"", **self.fault.headers)
                elif self.fault.instead is not None:
                    self.send(200, self.fault.instead)
                else:
                    self.route(request.path.strip("/").split("/"), parse_qs(url.query))

        do_HEAD = do_GET  # noqa: N815 — names that the library asks for

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def route(self, parts: list[str], query: dict[str, list[str]]) -> None:
            if parts[0] in ("cdn", "resolve-cache"):
                kind, owner, name, commit, *rest = parts
                content = hub.data_sets[f"{owner}/{name}", commit]["/".join(rest)]
                self.send_file(content, {} if kind == "cdn" else _headers_of(commit, content))
                return
            is_api = parts[0] == "api"
            _, owner, name, *rest = parts[1:] if is_api else parts
            repository = f"{owner}/{name}"
            commits = [commit for known, commit in hub.data_sets if known == repository]
            if not commits:
                self.refuse(401, "RepoNotFound", "Invalid username or password.")
                return
            what, commit, *rest = rest or ["revision", commits[0]]
            if commit not in commits:
                self.refuse(404, "RevisionNotFound", f"Invalid rev id: {commit}")
                return
            files, path = hub.data_sets[repository, commit], "/".join(rest)
            if is_api:
                answer = _described(what, repository, commit, files, path, query)
                self.send(200, json.dumps(answer).encode(), Content_Type="application/json")
            elif path not in files:
                self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
            else:
                self.redirect(f"{repository}/{commit}/{quote(path)}", commit, files[path], path.endswith(LARGE))

        def redirect(self, to: str, commit: str, content: bytes, is_large: bool) -> None:
            if not is_large:
                self.send(307, b"", Location=f"/resolve-cache/{to}?etag=x", **_headers_of(commit, content))
                return
            self.send(
                302,
                b"",
                Location=f"http://localhost:{hub.port}/cdn/{to}?Signature=x",
                X_Repo_Commit=commit,
                X_Linked_Size=str(len(content)),
                X_Linked_ETag=f'"{hashlib.sha256(content).hexdigest()}"',
            )

        def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
            body = json.dumps({"error": message}).encode()
            self.send(status, body, X_Error_Code=code, X_Error_Message=message, **headers)

        def send_file(self, content: bytes, headers: dict[str, str]) -> None:
            content = content.replace(*self.fault.replaced)
            size = len(content)
            if self.begin >= size > 0:
                self.send(416, b"", Content_Range=f"bytes */{size}")
            elif self.begin:
                there = f"bytes {self.begin}-{size - 1}/{size}"
                self.send(206, content[self.begin :], Content_Range=there, **headers)
            else:
                self.send(200, content, Accept_Ranges="bytes", **headers)

        def send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "HEAD":
                return
            fault = self.fault if len(body) > 1_000 else Fault()
            sent = body[: fault.cut_after or fault.stalls_after]
            step = fault.pause_every or len(sent) or 1
            for begin in range(0, len(sent), step):
                self.wfile.write(sent[begin : begin + step])
                self.wfile.flush()
                if fault.pause_every:
                    time.sleep(0.01)
            if fault.stalls_after:
                hub.is_closing.wait()
            if len(sent) < len(body):
                self.close_connection = True

    return Handler


def _headers_of(commit: str, content: bytes) -> dict[str, str]:
    return {"X_Repo_Commit": commit, "ETag": f'"{git_sha1(content)}"'}


def git_sha1(content: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _described(
    what: str, repository: str, commit: str, files: Files, folder: str, query: dict[str, list[str]]
) -> dict[str, Any] | list[dict[str, Any]]:
    if what == "revision":
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)]
        if query.get("blobs"):
            for entry in siblings:
                described = _entry(entry["rfilename"], files[entry["rfilename"]])
                entry.update(size=described["size"], blobId=described["oid"])
                if "lfs" in described:
                    lfs = described["lfs"]
                    entry["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        return {"id": repository, "sha": commit, "private": False, "gated": False, "siblings": siblings}
    entries: dict[str, dict[str, Any]] = {}
    is_deep = query.get("recursive", [""])[0].lower() in ("1", "true")
    for path, content in sorted(files.items()):
        if folder and not path.startswith(folder + "/"):
            continue
        parents = [
            str(parent) for parent in Path(path).parents if str(parent).startswith(folder + "/" if folder else "")
        ]
        for parent in parents:
            if parent != "." and (is_deep or "/" not in parent.removeprefix(folder).strip("/")):
                entries[parent] = {"type": "directory", "oid": git_sha1(parent.encode()), "size": 0, "path": parent}
        if is_deep or "/" not in path.removeprefix(folder).strip("/"):
            entries[path] = _entry(path, content)
    return list(entries.values())


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": git_sha1(content), "size": len(content), "path": path}
    if path.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
        entry["oid"] = git_sha1(pointer)
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": len(pointer)}
    return entry


# --- the default data sets -------------------------------------------------------------------------------------------


def default_data_sets(data_yaml: Path) -> dict[tuple[str, str], Files]:
    """Small data sets under the names and commits of the default `data.yaml`, laid out as the real ones."""
    config = yaml.safe_load(data_yaml.read_text())
    contents = {
        "simple_wikipedia": _wikipedia,
        "alpaca": _alpaca,
        "squad": _squad,
        "dailydialog": _daily_dialog,
    }
    sources = [source for phase in ("phase1", "phase2") for source in config[phase]["sources"]]
    return {(source["hub"], source["revision"]): contents[source["name"]]() for source in sources}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """The rows as a Parquet file, uncompressed, so that a test can change text in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, compression="none")
    return file.getvalue()


def _readme(**card: Any) -> bytes:
    return f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n\n# A data set\n".encode()


def _configuration(name: str, **paths: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in paths.items()]}


def _wikipedia() -> Files:
    pages = [
        {
            "id": str(number),
            "url": f"https://simple.wikipedia.org/wiki/{number}",
            "title": f"Month {number}",
            "text": f"Month {number} is the {number}th month of the year we have.\n\nIt is in the winter &amp; cold.",
        }
        for number in range(600)
    ]
    names = ("20231101.ab", "20231101.simple")
    return {
        ".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n",
        "README.md": _readme(
            license=["cc-by-sa-3.0"], configs=[_configuration(name, train=f"{name}/train-*") for name in names]
        ),
        "20231101.ab/train-00000-of-00001.parquet": parquet([{"wrong": "configuration"}]),
        "20231101.simple/train-00000-of-00001.parquet": parquet(pages),
    }


def _alpaca() -> Files:
    rows = [
        {"instruction": f"Say what the number {n} is.", "input": "", "output": f"It is the number {n}.", "text": "x"}
        for n in range(60)
    ]
    features = [{"name": name, "dtype": "string"} for name in rows[0]]
    return {
        "README.md": _readme(
            license="cc-by-nc-4.0",
            dataset_info={"features": features, "splits": [{"name": "train", "num_bytes": 9, "num_examples": 60}]},
        ),
        "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": parquet(rows),
    }


def _squad() -> Files:
    context = "The old mill stands by the river. It was built in 1847 by Anna Holm."
    rows = [
        {
            "id": f"{n:024x}",
            "title": f"Mill_{n}",
            "context": f"{context} {n}",
            "question": "When was it built?",
            "answers": {"text": ["1847"], "answer_start": [context.index("1847")]},
        }
        for n in range(60)
    ]
    name = "plain_text"
    paths = {split: f"{name}/{split}-00000-of-00001.parquet" for split in ("train", "validation")}
    return {
        "README.md": _readme(
            license="cc-by-sa-4.0", configs=[_configuration(name, train=paths["train"], validation=paths["validation"])]
        ),
        paths["train"]: parquet(rows),
        paths["validation"]: parquet([{**row, "question": "Not for training?"} for row in rows]),
    }


def _daily_dialog() -> Files:
    rows = [
        {"dialog": [f" Is it {n} o ’ clock ? ", " It ’ s not . "], "act": [1, 2], "emotion": [0, 0]} for n in range(60)
    ]
    features = [{"name": "dialog", "sequence": "string"}] + [
        {"name": name, "sequence": "int64"} for name in ("act", "emotion")
    ]
    held_out = parquet([{**row, "dialog": ["Not for training?", "No."]} for row in rows])
    return {
        "README.md": _readme(dataset_info={"features": features}),
        **{
            f"data/{split}-00000-of-00001-f151c79abb2c1fd5.parquet": parquet(rows) if split == "train" else held_out
            for split in ("train", "validation", "test")
        },
    }
