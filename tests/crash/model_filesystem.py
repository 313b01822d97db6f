"""A model of what a journalling file system may hold after a power cut (the ALICE method, OSDI 2014).

`Recorder` runs real code on a real folder and records every operation that changes it. `Disk` replays the records and
gives, after each of them, every state that a power cut may leave:

- the data of a file since its last fsync: absent, cut off at any sector, zero-length, zero-filled, or with any
  combination of its pages (in a large file any one page) zero-filled;
- a name since the last fsync of its folder: any of its meanings since then, in every combination with other names.

This is harsher than any file system in use (ext4 keeps renames in order). Code that survives this survives those.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE, SECTOR = 4096, 512
MOST_PAGES = 4
"""For files with more pages than this, not every combination is tried."""


@dataclass(frozen=True)
class Operation:
    """One thing that was done. Paths are relative to the recorded folder."""

    kind: str
    """create, write, truncate, fsync, link, rename, exchange, unlink, mkdir, rmdir, fsync_folder or mark."""
    path: str = ""
    target: str = ""
    inode: int = -1
    offset: int = 0
    """Of a write; for a truncation the new length."""
    data: bytes = b""
    mark: Any = None


@dataclass(frozen=True)
class State:
    """What the disk may hold after the cut: folders, and files as path → (inode, content)."""

    folders: tuple[str, ...]
    files: tuple[tuple[str, int, bytes], ...]

    @property
    def key(self) -> str:
        """Equal for states that no program can tell apart."""
        digest = hashlib.sha256(repr(self.folders).encode())
        numbers: dict[int, int] = {}
        for path, inode, content in self.files:
            number = numbers.setdefault(inode, len(numbers))
            digest.update(f"{path}\0{number}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    def write(self, root: Path) -> None:
        """Make a real folder of it."""
        root.mkdir(parents=True)
        for folder in self.folders:
            (root / folder).mkdir()
        names: dict[int, Path] = {}
        for path, inode, content in self.files:
            if inode in names:
                (root / path).hardlink_to(names[inode])
            else:
                names[inode] = root / path
                (root / path).write_bytes(content)


@dataclass
class _File:
    durable: bytes
    changes: list[Operation] = field(default_factory=list)
    """Writes and truncations since the last fsync."""

    def content(self, num_changes: int | None = None) -> bytes:
        content = bytearray(self.durable)
        for change in self.changes[:num_changes]:
            if change.kind == "truncate":
                content = content[: change.offset].ljust(change.offset, b"\0")
            else:
                content = content.ljust(change.offset, b"\0")
                content[change.offset : change.offset + len(change.data)] = change.data
        return bytes(content)

    def contents_after_a_cut(self) -> list[bytes]:
        now = self.content()
        if not self.changes:
            return [now]
        found = [self.durable, *(self.content(number) for number in range(1, len(self.changes)))]
        begin = min(change.offset for change in self.changes)
        safe, now = now[:begin], now[begin:]  # what was synced and not touched since stays
        found += [safe + now[:length] for length in range(0, len(now), SECTOR)]
        pages = [now[start : start + PAGE] for start in range(0, len(now), PAGE)]
        for num_pages in range(1, len(pages) + 1):  # the kernel writes a long piece page by page
            kept: Iterable[tuple[bool, ...]] = itertools.product((True, False), repeat=num_pages)
            if num_pages > MOST_PAGES:
                kept = [tuple(number != lost for number in range(num_pages)) for lost in range(-1, num_pages)]
            found += [
                safe
                + b"".join(page if is_kept else bytes(len(page)) for page, is_kept in zip(pages, which, strict=False))
                for which in kept
            ]
        return list(dict.fromkeys(found))


_FOLDER = -2


class Disk:
    """The model: what is durable, and what is not yet."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._names: dict[str, list[int | None]] = {}
        """Path → what it has meant since its folder's last fsync: an inode, a folder, or nothing; the last is now."""

    @classmethod
    def of(cls, state: State) -> Disk:
        disk = cls()
        disk._names = {path: [_FOLDER] for path in state.folders}
        for path, inode, content in state.files:
            disk._files.setdefault(inode, _File(content))
            disk._names[path] = [inode]
        return disk

    def apply(self, operation: Operation) -> None:
        kind, path, target = operation.kind, operation.path, operation.target
        if kind == "create":
            self._files[operation.inode] = _File(b"")
            self._mean(path, operation.inode)
        elif kind in ("write", "truncate"):
            self._files[operation.inode].changes.append(operation)
        elif kind == "fsync":
            file = self._files[operation.inode]
            file.durable, file.changes = file.content(), []
        elif kind == "link":
            self._mean(target, self._now(path))
        elif kind == "rename":
            if self._now(path) != self._now(target):  # rename(2) between two names of one file does nothing
                self._mean(target, self._now(path))
                self._mean(path, None)
        elif kind == "mkdir":
            self._mean(path, _FOLDER)
        elif kind in ("unlink", "rmdir"):
            self._mean(path, None)
        elif kind == "fsync_folder":
            for name in list(self._names):
                if os.path.dirname(name) == path:
                    self._names[name] = self._names[name][-1:]
        else:
            assert kind == "mark", kind

    def now(self) -> State:
        """What programs see while the power is on."""
        return self._state({path: meanings[-1] for path, meanings in self._names.items()}, lambda file: file.content())

    def after_a_cut(self) -> Iterator[State]:
        """Every state that the disk may hold, some of them twice."""
        paths = sorted(self._names)
        for combination in itertools.product(*(dict.fromkeys(self._names[path]) for path in paths)):
            meanings = dict(zip(paths, combination, strict=True))
            reached = sorted({inode for inode in combination if inode not in (None, _FOLDER)})
            contents = (self._files[inode].contents_after_a_cut() for inode in reached)
            for chosen in itertools.product(*contents):
                content_of = dict(zip(map(id, (self._files[inode] for inode in reached)), chosen, strict=True))
                yield self._state(meanings, lambda file, content_of=content_of: content_of[id(file)])

    def _now(self, path: str) -> int | None:
        return self._names.get(path, [None])[-1]

    def _mean(self, path: str, meaning: int | None) -> None:
        self._names.setdefault(path, [None]).append(meaning)

    def _state(self, meanings: dict[str, int | None], content: Callable[[_File], bytes]) -> State:
        folders: list[str] = []
        files = []
        for path in sorted(meanings):
            inode, parent = meanings[path], os.path.dirname(path)
            if inode is None or (parent and parent not in folders):
                continue
            if inode == _FOLDER:
                folders.append(path)
            else:
                files.append((path, inode, content(self._files[inode])))
        return State(tuple(folders), tuple(files))


def state_of(root: Path) -> State:
    """A real folder as a state, durable as a whole."""
    paths = sorted(root.rglob("*"))
    return State(
        tuple(str(path.relative_to(root)) for path in paths if path.is_dir()),
        tuple((str(path.relative_to(root)), path.stat().st_ino, path.read_bytes()) for path in paths if path.is_file()),
    )


class Recorder:
    """Records what the code inside a `with` block does to files below `root`. Can make one operation fail.

    `fail_at`: the number of the operation (from 0) that fails with `error`. `has_links`: whether the disk has hard
    links.
    """

    def __init__(
        self, root: Path, fail_at: int | None = None, error: int = errno.ENOSPC, *, has_links: bool = True
    ) -> None:
        self.root = root
        self.start = state_of(root)
        self.log: list[Operation] = []
        self.attempted: list[str] = []
        """The kinds of all operations, also of those that failed."""
        self._fail_at = fail_at
        self._error = error
        self._has_links = has_links
        self._next_inode = max((inode for _, inode, _ in self.start.files), default=0) + 1
        self._inodes = {inode: inode for _, inode, _ in self.start.files}
        self._undo = contextlib.ExitStack()

    # --- for the test ---

    def mark(self, value: Any) -> None:
        """Note that something is true from here on."""
        self.log.append(Operation("mark", mark=value))

    def replay(self, without: Callable[[Operation], bool] = lambda _: False) -> Iterator[tuple[Operation, Disk]]:
        """Each operation, and the disk after it. Leaves out operations for which `without` is true."""
        disk = Disk.of(self.start)
        for operation in self.log:
            if not without(operation):
                disk.apply(operation)
                yield operation, disk

    def check_completeness(self) -> None:
        """Check that the records explain what is in the folder now: no operation was missed."""
        disk = Disk.of(self.start)
        for operation in self.log:
            disk.apply(operation)
        assert disk.now().key == state_of(self.root).key

    # --- interception ---

    def __enter__(self) -> Recorder:
        real_open = io.open
        self._patch(builtins, "open", lambda *a, **k: self._open(real_open, *a, **k))
        self._patch(io, "open", builtins.open)
        watchers = {
            "fsync": self._fsync, "fdatasync": self._fsync, "link": self._link, "rename": self._rename,
            "replace": self._rename, "unlink": self._unlink, "remove": self._unlink, "mkdir": self._mkdir,
            "rmdir": self._rmdir,
        }  # fmt: skip
        for name, watcher in watchers.items():
            real = getattr(os, name)
            self._patch(os, name, lambda *a, watcher=watcher, real=real, **k: watcher(real, *a, **k))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _patch(self, module: Any, name: str, value: Any) -> None:
        self._undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)

    def _note(self, kind: str, do: Callable[[], Any] = lambda: None, **fields: Any) -> Any:
        """Do it, or fail instead, and record it."""
        self.attempted.append(kind)
        if len(self.attempted) - 1 == self._fail_at:
            raise OSError(self._error, os.strerror(self._error))
        result = do()
        self.log.append(Operation(kind, **fields))
        return result

    def _relative(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path below the root, or None if it is elsewhere."""
        text = os.fsdecode(path)
        if dir_fd is not None and dir_fd >= 0:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        relative = os.path.relpath(os.path.abspath(text), self.root)
        return None if relative.startswith("..") else "" if relative == "." else relative

    def _open(self, real_open: Any, file: Any, mode: str = "r", buffering: int = -1, *more: Any, **options: Any) -> Any:
        path = None if isinstance(file, int) else self._relative(file)
        if path is None or not set(mode) & set("wax+"):
            return real_open(file, mode, buffering, *more, **options)
        is_new = not os.path.lexists(file)
        raw_mode = mode.replace("b", "").replace("t", "")
        size = 0 if is_new else os.path.getsize(file)
        if is_new:
            raw = self._note("create", lambda: _WatchedFile(self, file, raw_mode), path=path, inode=self._next_inode)
            self._inodes[os.fstat(raw.fileno()).st_ino] = self._next_inode
            self._next_inode += 1
        else:
            raw = _WatchedFile(self, file, raw_mode)
            if "w" in mode and size:
                self._note("truncate", inode=self._inode(raw.fileno()), offset=0)
        size = os.fstat(raw.fileno()).st_blksize  # as the real `open` does it
        buffered: Any = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    def _inode(self, descriptor: int) -> int:
        return self._inodes[os.fstat(descriptor).st_ino]

    def _fsync(self, real: Any, file: Any) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        link = os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")
        path = self._relative(link)
        if path is None:
            real(descriptor)
        elif os.path.isdir(link):
            self._note("fsync_folder", lambda: real(descriptor), path=path)
        else:
            self._note("fsync", lambda: real(descriptor), inode=self._inode(descriptor))

    def _link(self, real: Any, source: Any, target: Any, **options: Any) -> None:
        if not self._has_links:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._on_names("link", real, source, target, options)

    def _rename(self, real: Any, source: Any, target: Any, **options: Any) -> None:
        self._on_names("rename", real, source, target, options)

    def _on_names(self, kind: str, real: Any, source: Any, target: Any, options: Any) -> None:
        paths = self._relative(source), self._relative(target)
        if paths[0] is None or paths[1] is None:
            assert paths == (None, None), f"{kind} across the border: {source} {target}"
            real(source, target, **options)
            return
        assert not os.path.isdir(source), "the model does not move folders"
        self._note(kind, lambda: real(source, target, **options), path=paths[0], target=paths[1])

    def _unlink(self, real: Any, path: Any, *, dir_fd: int | None = None) -> None:
        self._on_name("unlink", real, path, dir_fd)

    def _rmdir(self, real: Any, path: Any, *, dir_fd: int | None = None) -> None:
        self._on_name("rmdir", real, path, dir_fd)

    def _mkdir(self, real: Any, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._on_name("mkdir", real, path, dir_fd)

    def _on_name(self, kind: str, real: Any, path: Any, dir_fd: int | None) -> None:
        relative = self._relative(path, dir_fd)
        if relative is None:
            real(path, dir_fd=dir_fd)
        else:
            self._note(kind, lambda: real(path, dir_fd=dir_fd), path=relative)


class _WatchedFile(io.FileIO):
    """An unbuffered file whose writes are noted."""

    def __init__(self, recorder: Recorder, file: Any, mode: str) -> None:
        super().__init__(file, mode)
        self._recorder = recorder
        self._appends = "a" in mode

    def write(self, data: Any) -> int:
        content = bytes(data)
        offset = os.fstat(self.fileno()).st_size if self._appends else self.tell()
        recorder = self._recorder

        def do() -> int:
            written = super(_WatchedFile, self).write(content)
            assert written == len(content)
            return written

        inode = recorder._inode(self.fileno())
        written: int = recorder._note("write", do, inode=inode, offset=offset, data=content)
        return written

    def truncate(self, size: int | None = None) -> int:
        length = self.tell() if size is None else size
        recorder = self._recorder
        return int(
            recorder._note(
                "truncate",
                lambda: super(_WatchedFile, self).truncate(length),
                inode=recorder._inode(self.fileno()),
                offset=length,
            )
        )
