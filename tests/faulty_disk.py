"""Faulty twins of the disk door: one fails at the N-th operation, one remembers what a power cut may leave."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from agent.disk import Disk, OpenFile

LEDGER_FILES = ("ledger.db", "ledger.db-wal")


class FailingDisk(Disk):
    """Fails with an errno from operation number `at` on, `times` times (None: until heal())."""

    def __init__(self, at: int | None = None, number: int = errno.EIO, times: int | None = 1) -> None:
        self.operations = 0
        self.failed: list[str] = []
        self._at = at
        self._number = number
        self._times = times

    def fail_from_now(self, number: int, times: int | None = None) -> None:
        self._at, self._number, self._times = self.operations, number, times

    def heal(self) -> None:
        self._at = None

    @contextmanager
    def guard(self, operation: str, path: Path) -> Iterator[None]:
        with super().guard(operation, path):
            self._fail(operation, path)
            yield

    def _fail(self, operation: str, path: Path) -> None:
        here = self.operations
        self.operations += 1
        if self._at is None or here < self._at or (self._times is not None and here >= self._at + self._times):
            return
        self.failed.append(f"{operation} {path.name}")
        raise OSError(self._number, os.strerror(self._number))

    def append(self, file: OpenFile, data: bytes) -> None:
        """A failing write leaves a part of its bytes behind, as a full disk does."""
        failed = len(self.failed)
        try:
            super().append(file, data)
        finally:
            if len(self.failed) > failed:
                os.write(file.descriptor, data[: len(data) // 2])


class Leaves(StrEnum):
    """What of the unsynced effects a power cut leaves."""

    NOTHING = "nothing"
    ALL = "all"
    NAMES = "names without bytes"
    BYTES = "bytes without names"
    TORN = "half of the bytes"
    REORDERED = "the later half of the bytes, zeros before"


@dataclass(slots=True)
class _File:
    content: bytearray = field(default_factory=bytearray)
    synced: int = 0

    def left(self, leaves: Leaves) -> bytes:
        content, synced = bytes(self.content), self.synced
        loose = len(content) - synced
        if leaves in (Leaves.NOTHING, Leaves.NAMES):
            return content[:synced]
        if leaves is Leaves.TORN:
            return content[: synced + loose // 2]
        if leaves is Leaves.REORDERED:
            return content[:synced] + bytes(loose // 2) + content[synced + loose // 2 :]
        return content


@dataclass(frozen=True, slots=True)
class Image:
    """The disk as it is just before one operation. ledger: SQLite's files, whose own syncs are trusted."""

    number: int
    operation: str
    live: dict[Path, _File]
    durable: dict[Path, _File]
    ledger: dict[str, bytes]

    def restore(self, directory: Path, leaves: Leaves) -> None:
        """Make directory what a node finds after the cut. Paths are relative to the recorded directory."""
        (directory / "clips").mkdir(parents=True)
        names = self.durable if leaves in (Leaves.NOTHING, Leaves.BYTES) else self.live
        for path, file in names.items():
            (directory / path).write_bytes(file.left(leaves))
        for name, content in self.ledger.items():
            (directory / name).write_bytes(content)


class RecordingDisk(Disk):
    """Works like the disk and takes an image before every operation that changes something."""

    CHANGES = ("create", "write", "fdatasync", "fsync", "rename", "sync directory", "delete", "truncate")

    def __init__(self, directory: Path) -> None:
        self._root = directory
        self.images: list[Image] = []
        found = {
            path.relative_to(directory): _File(bytearray(path.read_bytes()), path.stat().st_size)
            for path in directory.rglob("*")
            if path.is_file() and not path.name.startswith(("ledger.db", "lock"))
        }
        self._live = found
        self._durable = dict(found)

    @contextmanager
    def guard(self, operation: str, path: Path) -> Iterator[None]:
        if operation in self.CHANGES:
            self.take_image(f"{operation} {path.name}")
        with super().guard(operation, path):
            yield

    def take_image(self, operation: str) -> None:
        copies = {
            id(f): _File(bytearray(f.content), f.synced) for f in (*self._live.values(), *self._durable.values())
        }
        ledger = {name: (self._root / name).read_bytes() for name in LEDGER_FILES if (self._root / name).exists()}
        self.images.append(
            Image(
                len(self.images),
                operation,
                {path: copies[id(file)] for path, file in self._live.items()},
                {path: copies[id(file)] for path, file in self._durable.items()},
                ledger,
            )
        )

    def _at(self, path: Path) -> Path:
        return path.relative_to(self._root)

    def create(self, path: Path) -> OpenFile:
        file = super().create(path)
        self._live[self._at(path)] = _File()
        return file

    def append(self, file: OpenFile, data: bytes) -> None:
        super().append(file, data)
        self._live[self._at(file.path)].content += data

    def datasync(self, file: OpenFile) -> None:
        super().datasync(file)
        self._confirm(self._at(file.path))

    def sync(self, file: OpenFile) -> None:
        super().sync(file)
        self._confirm(self._at(file.path))

    def _confirm(self, path: Path) -> None:
        file = self._live[path]
        file.synced = len(file.content)

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self._live[self._at(new)] = self._live.pop(self._at(old))

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._live.pop(self._at(path), None)

    def truncate(self, path: Path, length: int) -> None:
        super().truncate(path, length)
        file = self._live[self._at(path)]
        # The cut-off tail may still be there after a power cut in between; recovery cuts it off again.
        del file.content[length:]
        file.synced = length

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        if path.is_relative_to(self._root):
            here = self._at(path)
            kept = {p: f for p, f in self._durable.items() if p.parent != here}
            self._durable = kept | {p: f for p, f in self._live.items() if p.parent == here}
