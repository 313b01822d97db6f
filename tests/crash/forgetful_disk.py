"""A disk that forgets, at a cut, what was not synced: a file system in memory, mounted through the kernel (FUSE).

    python forgetful_disk.py FOLDER MOUNT_POINT CUT_AFTER SEED

FOLDER is what the disk holds at first. After CUT_AFTER changing operations (0: never; -5: after five that are not
writes) the power fails. The process that made the request is killed together with all others that use the disk. What
the disk then holds is written to FOLDER, and the disk answers only errors. SEED decides, file by file and name by name,
what is lost of everything that was not synced. If it is unmounted without a cut, everything is written to FOLDER.

It speaks the kernel's protocol (linux/fuse.h) itself. So it needs only root and /dev/fuse, and shares no code with the
model that it checks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import shutil
import signal
import stat
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = 1
LOOKUP, FORGET, GETATTR, SETATTR, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK = 1, 2, 3, 4, 8, 9, 10, 11, 12, 13
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = 14, 15, 16, 17, 18, 20, 25, 26
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, CREATE, DESTROY, BATCH_FORGET, RENAME2 = 27, 28, 29, 30, 35, 38, 42, 45
IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
MODE, UID, GID, SIZE = 1, 2, 4, 8  # FATTR_*
EXCHANGE, NO_REPLACE = 2, 1
MAX_WRITE = 1 << 17
VALID_SECONDS = 1


@dataclass
class Node:
    mode: int
    uid: int
    gid: int
    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    dirty_from: int | None = None
    """Where what was written since the last sync begins; what lies before it is safe."""
    names: dict[str, int] = field(default_factory=dict)
    """Of a folder."""
    synced_names: dict[str, int] = field(default_factory=dict)
    changed_names: dict[str, list[int | None]] = field(default_factory=dict)
    """What each name has meant since the folder was synced."""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Cut(Exception):  # noqa: N818
    """The power fails now."""


class ForgetfulDisk:
    def __init__(self, backing: Path, mount_point: Path, cut_after: int, seed: int) -> None:
        self.backing, self.mount_point = backing, mount_point
        self.left, self.chance = cut_after, random.Random(seed)
        self.num_changes = 0
        self.nodes: dict[int, Node] = {}
        self.next_node = ROOT
        self.is_cut = False
        self.users: set[int] = set()
        self._load(backing, {})
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        libc = ctypes.CDLL(None, use_errno=True)
        no_devices_no_suid = ctypes.c_ulong(6)
        arguments = (b"forgetful", os.fsencode(mount_point), b"fuse", no_devices_no_suid, options.encode())
        if libc.mount(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "mount failed")

    # --- between the real folder and this one ---

    def _load(self, path: Path, seen: dict[int, int]) -> int:
        status = path.lstat()
        if status.st_ino in seen:
            return seen[status.st_ino]
        number = self.next_node
        self.next_node += 1
        node = self.nodes[number] = Node(status.st_mode, status.st_uid, status.st_gid)
        if node.is_folder:
            for child in sorted(path.iterdir()):
                node.names[child.name] = self._load(child, seen)
            node.synced_names = dict(node.names)
        else:
            seen[status.st_ino] = number
            node.synced = path.read_bytes()
            node.content = bytearray(node.synced)
        return number

    def store(self, number: int, path: Path, written: dict[int, Path]) -> None:
        node = self.nodes[number]
        if node.is_folder:
            path.mkdir()
            for name, child in sorted(node.names.items()):
                self.store(child, path / name, written)
        elif number in written:
            path.hardlink_to(written[number])
        else:
            path.write_bytes(node.content)
            written[number] = path
        os.chown(path, node.uid, node.gid)
        path.chmod(stat.S_IMODE(node.mode))

    def forget(self) -> None:
        """What was not synced may be lost."""
        chance = self.chance
        for node in self.nodes.values():
            for name, meanings in node.changed_names.items():
                meaning = chance.choice([node.synced_names.get(name), *meanings])
                node.names.pop(name, None)
                if meaning is not None:
                    node.names[name] = meaning
            if node.dirty_from is not None:
                safe, now = bytes(node.content[: node.dirty_from]), bytes(node.content[node.dirty_from :])
                losses = [now, b"", bytes(len(now)), now[: chance.randrange(0, len(now) + 1, 512)]]
                torn = bytearray(now)
                for start in range(0, len(now), 4096):
                    if chance.random() < 0.3:
                        torn[start : start + 4096] = bytes(len(torn[start : start + 4096]))
                node.content = bytearray(
                    chance.choice([node.synced, *(safe + loss for loss in [*losses, bytes(torn)])])
                )

    def write_back(self) -> None:
        """Replace the folder that the disk came from."""
        shutil.rmtree(self.backing)
        self.store(ROOT, self.backing, {})

    # --- the protocol ---

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, MAX_WRITE + 8192)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    break
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                raise
            length, opcode, unique, number, _uid, _gid, pid, _ = IN_HEADER.unpack_from(request)
            body = request[IN_HEADER.size : length]
            if opcode in (FORGET, BATCH_FORGET):
                continue
            if pid:
                self.users.add(pid)
            try:
                answer = self.answer(opcode, number, body, _uid, _gid)
                code = 0
            except Cut:
                self.cut()
                answer, code = b"", -errno.EIO
            except OSError as error:
                answer, code = b"", -(error.errno or errno.EIO)
            self.reply(unique, code, answer)
        if not self.is_cut:
            self.write_back()

    def reply(self, unique: int, code: int, answer: bytes) -> None:
        try:
            os.write(self.device, OUT_HEADER.pack(OUT_HEADER.size + len(answer), code, unique) + answer)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # the one who asked is dead
                raise

    def cut(self) -> None:
        self.is_cut = True
        for pid in self.users - {os.getpid(), os.getppid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.forget()
        self.write_back()

    def change(self, is_write: bool = False) -> None:
        """Called before each operation that changes something."""
        self.num_changes += 1
        if self.left > 0 or (self.left < 0 and not is_write):
            self.left -= 1 if self.left > 0 else -1
            if not self.left:
                raise Cut

    def mean(self, folder: int, name: str, meaning: int | None) -> None:
        node = self.nodes[folder]
        if meaning is None:
            node.names.pop(name, None)
        else:
            node.names[name] = meaning
        node.changed_names.setdefault(name, []).append(meaning)

    def child(self, folder: int, name: str) -> int:
        number = self.nodes[folder].names.get(name)
        if number is None:
            raise OSError(errno.ENOENT, name)
        return number

    def attributes(self, number: int) -> bytes:
        node = self.nodes[number]
        links = sum(list(other.names.values()).count(number) for other in self.nodes.values() if other.is_folder)
        size = len(node.content)
        return ATTRIBUTES.pack(
            number,
            size,
            (size + 511) // 512,
            0,
            0,
            0,
            0,
            0,
            0,
            node.mode,
            max(1, links),
            node.uid,
            node.gid,
            0,
            4096,
            0,
        )

    def entry(self, number: int) -> bytes:
        return struct.pack("<QQQQII", number, 0, VALID_SECONDS, VALID_SECONDS, 0, 0) + self.attributes(number)

    def make(self, folder: int, name: str, mode: int, uid: int, gid: int) -> int:
        if name in self.nodes[folder].names:
            raise OSError(errno.EEXIST, name)
        self.change()
        number = self.next_node
        self.next_node += 1
        self.nodes[number] = Node(mode, uid, gid)
        self.mean(folder, name, number)
        return number

    def answer(self, opcode: int, number: int, body: bytes, uid: int, gid: int) -> bytes:
        if opcode == INIT:
            (readahead,) = struct.unpack_from("<I", body, 8)
            big_writes = 1 << 5
            numbers = (7, 31, readahead, big_writes, 12, 9, MAX_WRITE, 1, MAX_WRITE // 4096, 0, 0)
            return struct.pack("<IIIIHHIIHHI", *numbers) + bytes(28)
        if self.is_cut:
            raise OSError(errno.EIO, "the power is off")
        node = self.nodes[number] if number in self.nodes else Node(0, 0, 0)
        if opcode == LOOKUP:
            return self.entry(self.child(number, text(body)))
        if opcode == GETATTR:
            return struct.pack("<QII", VALID_SECONDS, 0, 0) + self.attributes(number)
        if opcode == SETATTR:
            valid, _, _, size = struct.unpack_from("<IIQQ", body)
            mode, _, new_uid, new_gid = struct.unpack_from("<IIII", body, 68)
            if valid & SIZE:
                self.change()
                node.content = node.content[:size].ljust(size, b"\0")
                node.dirty_from = min(size, size if node.dirty_from is None else node.dirty_from)
            if valid & MODE:
                node.mode = mode
            node.uid = new_uid if valid & UID else node.uid
            node.gid = new_gid if valid & GID else node.gid
            return struct.pack("<QII", VALID_SECONDS, 0, 0) + self.attributes(number)
        if opcode in (MKNOD, MKDIR, CREATE):
            (mode,) = struct.unpack_from("<I", body, 4 if opcode == CREATE else 0)
            kind = stat.S_IFDIR if opcode == MKDIR else stat.S_IFREG
            name = text(body[8 if opcode == MKDIR else 16 :])
            made = self.make(number, name, kind | stat.S_IMODE(mode), uid, gid)
            return self.entry(made) + (struct.pack("<QII", 0, 0, 0) if opcode == CREATE else b"")
        if opcode in (UNLINK, RMDIR):
            child = self.child(number, text(body))
            if opcode == RMDIR and self.nodes[child].names:
                raise OSError(errno.ENOTEMPTY, text(body))
            self.change()
            self.mean(number, text(body), None)
            return b""
        if opcode in (RENAME, RENAME2):
            target, flags = struct.unpack_from("<QI", body)
            flags = flags if opcode == RENAME2 else 0
            old, new = (os.fsdecode(part) for part in body[16 if opcode == RENAME2 else 8 :].split(b"\0")[:2])
            moved = self.child(number, old)
            replaced = self.nodes[target].names.get(new)
            if flags & NO_REPLACE and replaced is not None:
                raise OSError(errno.EEXIST, new)
            if moved == replaced:
                return b""
            self.change()
            self.mean(target, new, moved)
            self.mean(number, old, replaced if flags & EXCHANGE else None)
            return b""
        if opcode == LINK:
            (old_node,) = struct.unpack_from("<Q", body)
            if text(body[8:]) in self.nodes[number].names:
                raise OSError(errno.EEXIST, text(body[8:]))
            self.change()
            self.mean(number, text(body[8:]), old_node)
            return self.entry(old_node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<QII", 0, 0, 0)
        if opcode == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return bytes(node.content[offset : offset + size])
        if opcode == WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            self.change(is_write=True)
            node.content = node.content.ljust(offset, b"\0") if len(node.content) < offset else node.content
            node.content[offset : offset + size] = body[40 : 40 + size]
            node.dirty_from = min(offset, offset if node.dirty_from is None else node.dirty_from)
            return struct.pack("<II", size, 0)
        if opcode == FSYNC:
            self.change()
            node.synced, node.dirty_from = bytes(node.content), None
            return b""
        if opcode == FSYNCDIR:
            self.change()
            node.synced_names, node.changed_names = dict(node.names), {}
            return b""
        if opcode == READDIR:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self.listing(node, offset, size)
        if opcode == STATFS:
            return struct.pack("<QQQQQIIII", 1 << 22, 1 << 21, 1 << 21, 1 << 20, 1 << 19, 4096, 255, 4096, 0) + bytes(
                24
            )
        if opcode in (RELEASE, RELEASEDIR, FLUSH, DESTROY):
            return b""
        raise OSError(errno.ENOSYS, str(opcode))

    def listing(self, node: Node, offset: int, size: int) -> bytes:
        entries = b""
        for position, (name, number) in enumerate(sorted(node.names.items()), 1):
            if position <= offset:
                continue
            data = os.fsencode(name)
            entry = struct.pack("<QQII", number, position, len(data), self.nodes[number].mode >> 12) + data
            entry += bytes(-len(entry) % 8)
            if len(entries) + len(entry) > size:
                break
            entries += entry
        return entries


def text(body: bytes) -> str:
    return os.fsdecode(body.split(b"\0", 1)[0])


def main() -> None:
    disk = ForgetfulDisk(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    print("mounted", flush=True)
    disk.serve()
    print(f"cut={disk.is_cut} changes={disk.num_changes}", flush=True)


if __name__ == "__main__":
    main()
