"""The one door to the disk: every file the node keeps is made, written, synced and removed here. Touches files.

SQLite is the exception: it opens the ledger's own files itself (agent/ledger_file.py), with its own fsyncs.
Each operation passes through Disk.guard(), so that a faulty twin in the tests can fail it or cut the power.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.errors import StorageError

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
FSTAB = Path("/etc/fstab")
STALL_NS = 1_000_000_000
"""A sync that takes longer counts as a stall: SD cards that tidy up inside stop for that long and longer."""

_HINTS = {
    errno.ENOSPC: "the disk is full; free some space or lower clips.budget_mb",
    errno.EDQUOT: "the disk quota is used up; free some space or lower clips.budget_mb",
    errno.EROFS: "the disk is read-only; an SD card often turns so when it fails: check dmesg, replace the card",
    errno.EIO: "the disk does not answer properly; check dmesg, replace the card",
    errno.ENODEV: "the disk is gone; check that it is plugged in and mounted",
    errno.ENXIO: "the disk is gone; check that it is plugged in and mounted",
    errno.EACCES: "the agent's user may not do this; check owner and mode of the directory",
    errno.EPERM: "the agent's user may not do this; check owner and mode of the directory",
    errno.ENOENT: "it does not exist; check clips.directory and that the disk is mounted",
    errno.ENOTDIR: "a part of the path is a file; check clips.directory",
    errno.EMFILE: "too many open files; raise LimitNOFILE",
}


class DirectoryRefusedError(StorageError):
    """The directory must not be used as it is (wrong disk, second agent, no permission): a human has to look."""


@dataclass(slots=True)
class OpenFile:
    """A file being appended to. length: bytes appended so far."""

    path: Path
    descriptor: int
    length: int = 0


def storage_error(operation: str, thing: object, cause: OSError) -> StorageError:
    """cause as a StorageError with the hint that belongs to its errno."""
    hint = _HINTS.get(cause.errno or 0, "")
    kind = DirectoryRefusedError if cause.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR) else StorageError
    return kind(operation, thing, cause, hint=hint)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


class Disk:
    """The real disk. Every method raises StorageError naming the operation, the path, the cause and a hint.

    clock: boot-clock ns; where it is given, syncs and commits are timed. sync_stalls: those longer than STALL_NS.
    """

    clock: Callable[[], int] | None = None
    sync_stalls = 0
    slowest_sync_ns = 0

    @contextmanager
    def guard(self, operation: str, path: Path) -> Iterator[None]:
        """Stands around every operation below; the faulty twin overrides it."""
        try:
            yield
        except OSError as error:
            raise storage_error(operation, path, error) from error

    def make_directory(self, path: Path) -> None:
        """Make path and its parents where they are missing; the new entries are durable on return."""
        missing = [path, *path.parents]
        with self.guard("look at", path):
            missing = missing[: next((i for i, p in enumerate(missing) if p.is_dir()), len(missing))]
        for directory in reversed(missing):
            with self.guard("make directory", directory):
                try:
                    directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
                except FileExistsError as error:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
            self.sync_directory(directory.parent)

    def create(self, path: Path) -> OpenFile:
        """A new empty file; an existing one is refused (EEXIST). Its name is durable after sync_directory."""
        with self.guard("create", path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            return OpenFile(path, os.open(path, flags, FILE_MODE))

    def append(self, file: OpenFile, data: bytes) -> None:
        """All of data at the end. After an error an unknown part of it is there: truncate or abandon the file."""
        with self.guard("write", file.path):
            view = memoryview(data)
            while view:
                view = view[os.write(file.descriptor, view) :]
        file.length += len(data)

    def datasync(self, file: OpenFile) -> None:
        """What was appended is durable on return. After an error it never will be: do not try again (fsyncgate)."""
        with self.guard("fdatasync", file.path):
            self._timed(os.fdatasync, file.descriptor)

    def sync(self, file: OpenFile) -> None:
        """Data and metadata are durable on return; after an error as datasync."""
        with self.guard("fsync", file.path):
            self._timed(os.fsync, file.descriptor)

    def _timed(self, sync: Callable[[int], None], descriptor: int) -> None:
        with self.timed():
            sync(descriptor)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around what makes something durable, also the ledger's commits."""
        began_ns = self.clock() if self.clock is not None else 0
        yield
        if self.clock is not None:
            took_ns = self.clock() - began_ns
            self.slowest_sync_ns = max(self.slowest_sync_ns, took_ns)
            self.sync_stalls += took_ns > STALL_NS

    def close(self, file: OpenFile) -> None:
        """Give the descriptor back; says nothing about durability and raises nothing."""
        descriptor, file.descriptor = file.descriptor, -1
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError:
                return  # Linux frees the descriptor also when close fails; durability was fsync's business.

    def rename(self, old: Path, new: Path) -> None:
        """Atomic; replaces new. Durable after sync_directory."""
        with self.guard("rename", old):
            os.replace(old, new)

    def sync_directory(self, path: Path) -> None:
        """Creations, renames and removals in path are durable on return."""
        with self.guard("sync directory", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Remove path; one that is gone already is as wanted. Durable after sync_directory."""
        with self.guard("delete", path):
            path.unlink(missing_ok=True)

    def truncate(self, path: Path, length: int) -> None:
        """Cut path to length bytes, durable on return."""
        with self.guard("truncate", path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(descriptor, length)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def write_whole(self, path: Path, data: bytes) -> None:
        """path holds data, durable, all or nothing: beside it first, then renamed over it."""
        beside = path.with_name(path.name + ".new")
        self.remove(beside)
        file = self.create(beside)
        try:
            self.append(file, data)
            self.sync(file)
        finally:
            self.close(file)
        self.rename(beside, path)
        self.sync_directory(path.parent)

    def let_all_read(self, path: Path) -> None:
        """path is no secret: of root's files the agent may read this one."""
        with self.guard("chmod", path):
            path.chmod(0o644)

    def point(self, link: Path, target: str) -> None:
        """The symbolic link leads to target, all or nothing, durable on return."""
        beside = link.with_name(link.name + ".new")
        self.remove(beside)
        with self.guard("symlink", beside):
            os.symlink(target, beside)
        self.rename(beside, link)
        self.sync_directory(link.parent)

    def target(self, link: Path) -> str | None:
        """Where the symbolic link leads; None where there is none."""
        with self.guard("look at", link):
            try:
                return os.readlink(link)
            except FileNotFoundError:
                return None

    def read(self, path: Path) -> bytes:
        with self.guard("read", path):
            return path.read_bytes()

    def open_to_read(self, path: Path) -> BinaryIO:
        """A seekable binary file; the caller closes it. What its own methods raise is OSError: see guard()."""
        with self.guard("open", path):
            return path.open("rb")

    def size(self, path: Path) -> int | None:
        """Bytes of path; None where there is no such file."""
        with self.guard("look at", path):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return None

    def sizes(self, path: Path) -> dict[str, int]:
        """The plain files in directory path and their bytes, sorted by name."""
        with self.guard("list", path), os.scandir(path) as entries:
            plain = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
            return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in sorted(plain, key=_name)}

    def free_bytes(self, path: Path) -> int:
        """What this user may still write to the file system of path."""
        with self.guard("look at", path):
            figures = os.statvfs(path)
            return figures.f_bavail * figures.f_frsize

    def missing_mount(self, path: Path, required: Path | None = None, table: Path = FSTAB) -> Path | None:
        """The mount point that path needs and where nothing is mounted; None where all is as it should be.

        required: a mount point by the settings. Beside it, those of table above path count (not "/").
        """
        wanted = {required} if required is not None else set()
        try:
            lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            fields = line.split()
            if len(fields) >= 2 and not line.lstrip().startswith("#") and fields[1].startswith("/"):
                wanted.add(Path(fields[1].replace("\\040", " ")))
        with self.guard("look at", path):
            here = path.resolve()
            above = [place for place in wanted if place == required or here.is_relative_to(place)]
            return next((place for place in sorted(above) if not os.path.ismount(place)), None)

    def lock(self, path: Path) -> OpenFile:
        """Hold path exclusively until closed or the process ends; DirectoryRefusedError if another has it."""
        with self.guard("lock", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                raise DirectoryRefusedError(
                    "lock",
                    path,
                    "another camera-agent uses this directory",
                    hint="stop it, or give this node a clips.directory of its own",
                ) from error
            except OSError:
                os.close(descriptor)
                raise
            return OpenFile(path, descriptor)
