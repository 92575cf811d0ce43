"""Breaks of the code on purpose, as a test of the tests: each forgets one thing that durability rests on."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import agent.ledger
from agent.disk import Disk, OpenFile
from agent.ledger_file import connect
from agent.recovery import Recovery


@contextlib.contextmanager
def _no_data_sync() -> Iterator[None]:
    with patch.object(Disk, "_timed", lambda self, sync, descriptor: None):
        yield


@contextlib.contextmanager
def _no_directory_sync() -> Iterator[None]:
    with patch.object(Disk, "sync_directory", lambda self, path: None):
        yield


@contextlib.contextmanager
def _row_before_file() -> Iterator[None]:
    """The clip's row is written, and only at the next clip is the file before it made durable and final."""
    late: list[tuple[Disk, Path, Path]] = []
    rename, create, sync = Disk.rename, Disk.create, Disk.sync

    def sync_later(self: Disk, file: OpenFile) -> None:
        if file.path.suffix != ".part":
            sync(self, file)

    def rename_later(self: Disk, old: Path, new: Path) -> None:
        if new.suffix == ".mp4":
            late.append((self, old, new))
        else:
            rename(self, old, new)

    def create_after(self: Disk, path: Path) -> OpenFile:
        while late:
            disk, old, new = late.pop(0)
            descriptor = os.open(old, os.O_WRONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            rename(disk, old, new)
        return create(self, path)

    with (
        patch.object(Disk, "sync", sync_later),
        patch.object(Disk, "rename", rename_later),
        patch.object(Disk, "create", create_after),
    ):
        yield


@contextlib.contextmanager
def _synchronous_normal() -> Iterator[None]:
    def careless(path: Path) -> sqlite3.Connection:
        database = connect(path)
        database.execute("pragma synchronous = normal")
        return database

    with patch.object(agent.ledger, "connect", careless):
        yield


@contextlib.contextmanager
def _no_adoption() -> Iterator[None]:
    with patch.object(Recovery, "step", lambda self, now: False), patch.object(Recovery, "left", 0):
        yield


MUTANTS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "no-data-sync": _no_data_sync,
    "no-directory-sync": _no_directory_sync,
    "row-before-file": _row_before_file,
    "synchronous-normal": _synchronous_normal,
    "no-adoption": _no_adoption,
}


def applied(name: str) -> contextlib.AbstractContextManager[None]:
    """The mutant of that name in force; "" for none."""
    return MUTANTS[name]() if name else contextlib.nullcontext()
