"""The ledger's SQLite file: how it is opened, its tables, and SQLite's errors in our words. Touches that file.

WAL, synchronous=FULL: a commit is durable when it returns (NORMAL loses acknowledged rows at a power cut).
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.disk import DirectoryRefusedError, storage_error
from agent.errors import StorageError

LEDGER_NAME = "ledger.db"
CLIPS_NAME = "clips"
ID_NAME = "directory.id"
LOCK_NAME = "lock"

SCHEMA_VERSION = 1
SCHEMA = """
create table meta(
    one integer primary key check (one = 1),
    uuid text not null,
    epoch text not null,
    head_seq integer not null,
    running_ns integer not null,
    boot_id text not null,
    boot_ns integer not null,
    owed_rows integer not null default 0,
    owed_bytes integer not null default 0,
    kept_bytes integer not null default 0,
    expired_seq integer not null default 0
) strict;
create table events(
    n integer primary key autoincrement,
    id text not null unique,
    rev integer not null,
    is_open integer not null,
    boot_id text not null,
    start_t_ns integer not null,
    last_t_ns integer not null,
    start_wall_ns integer not null,
    clock_synced integer not null,
    thumb_t_ns integer,
    thumb_frame integer,
    clip_id text,
    body text not null
) strict;
create index events_open on events(n) where is_open = 1;
create table clips(
    n integer primary key autoincrement,
    id text not null unique,
    file text not null unique,
    state text not null check (state in ('final', 'deleting', 'lost', 'damaged')),
    is_protected integer not null default 0,
    boot_id text not null,
    start_t_ns integer not null,
    end_t_ns integer not null,
    start_wall_ns integer not null,
    clock_synced integer not null,
    running_ns integer not null,
    frames integer not null,
    bytes integer not null,
    sha256 text not null,
    flags text not null
) strict;
create table clip_events(
    clip_id text not null references clips(id) on delete cascade,
    event_id text not null,
    primary key (clip_id, event_id)
) strict, without rowid;
create index clip_events_event on clip_events(event_id);
create table outbox(
    seq integer primary key,
    kind text not null,
    phase text,
    event_id text,
    boot_id text not null,
    t_ns integer not null,
    wall_ns integer not null,
    clock_synced integer not null,
    body text not null,
    blob blob,
    bytes integer not null,
    is_pending integer not null default 1,
    delivered_wall_ns integer,
    delivered_running_ns integer,
    refusals integer not null default 0,
    last_refusal text not null default '',
    quarantined text
) strict;
create index outbox_pending on outbox(seq, kind, bytes) where is_pending = 1;
create index outbox_event on outbox(event_id);
create index outbox_kind on outbox(kind, seq);
"""
# Counting a backlog of 100,000 rows at each commit would cost more than the commit, so the sums are kept.
TRIGGERS = (
    """create trigger outbox_in after insert on outbox when new.is_pending = 1 begin
    update meta set owed_rows = owed_rows + 1, owed_bytes = owed_bytes + new.bytes; end""",
    """create trigger outbox_done after update of is_pending on outbox when old.is_pending = 1 and new.is_pending = 0
    begin update meta set owed_rows = owed_rows - 1, owed_bytes = owed_bytes - new.bytes,
    kept_bytes = kept_bytes + new.bytes; end""",
    """create trigger outbox_evicted after delete on outbox when old.is_pending = 1 begin
    update meta set owed_rows = owed_rows - 1, owed_bytes = owed_bytes - old.bytes; end""",
    """create trigger outbox_expired after delete on outbox when old.is_pending = 0 begin
    update meta set kept_bytes = kept_bytes - old.bytes; end""",
)

CACHE_KIB = 2048
WAL_PAGES = 500
"""The WAL is copied into the database after so many pages, and then written from its beginning again."""
WAL_LIMIT_BYTES = 4 << 20
"""More than WAL_PAGES: on a full disk the WAL needs no room that it does not have already."""
BUSY_MS = 5000


class LedgerError(StorageError):
    """SQLite failed: nothing of the call is stored. Other StorageErrors are about the clips' files."""


class LedgerDamagedError(LedgerError):
    """The index is corrupt: set it aside and rebuild it from the clips."""


_ERRNO_OF = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.ENOENT,
    sqlite3.SQLITE_PERM: errno.EACCES,
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@contextmanager
def sqlite_errors(operation: str, path: Path) -> Iterator[None]:
    """SQLite's expected trouble as StorageError (LedgerDamagedError when corrupt); misuse of SQL stays a bug."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code, without SQLite's subtype
        if code in _DAMAGED:
            raise LedgerDamagedError(operation, path, error, hint="it is set aside and rebuilt at start") from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LedgerError(operation, path, error, hint="another program keeps the ledger locked") from error
        if code in _ERRNO_OF:
            cause = OSError(_ERRNO_OF[code], f"SQLite: {error}")
            raise LedgerError(operation, path, cause, hint=storage_error(operation, path, cause).hint) from error
        raise


def connect(path: Path) -> sqlite3.Connection:
    """The writer's connection; makes an empty database where there is none. May be used from any one thread."""
    with sqlite_errors("open", path):
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
        try:
            database.execute("pragma journal_mode = wal")
            database.execute("pragma synchronous = full")
            database.execute("pragma foreign_keys = on")
            database.execute(f"pragma cache_size = -{CACHE_KIB}")
            database.execute(f"pragma wal_autocheckpoint = {WAL_PAGES}")
            # The WAL file is cut back after a checkpoint, so that one large burst does not keep its size for ever.
            database.execute(f"pragma journal_size_limit = {WAL_LIMIT_BYTES}")
        except sqlite3.Error:
            database.close()
            raise
        return database


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A read-only connection that sees committed states while the writer works. StorageError if there is none."""
    if not path.exists():
        raise LedgerError("open", path, "there is no ledger", hint="has the agent run with this directory?")
    with sqlite_errors("read", path):
        uri = path.absolute().as_uri()
        try:
            return _opened(uri + "?mode=ro")
        except sqlite3.OperationalError:
            # A user who may not write the directory cannot make the WAL's index. With no WAL beside it the
            # database is whole in itself and nobody is writing.
            if path.with_name(path.name + "-wal").exists() or not os.access(path, os.R_OK):
                raise
            return _opened(uri + "?immutable=1")


def keep_room(database: sqlite3.Connection, wanted: int) -> bool:
    """Have free pages of wanted bytes inside the database file, written and durable; whether some were added.

    Rows then find room when others have filled the disk. A file beside it, released at need, the others would
    fill first. Pages freed before they were written once are holes, hence the checkpoint in between.
    """
    page_bytes = int(database.execute("pragma page_size").fetchone()[0])
    free = int(database.execute("pragma freelist_count").fetchone()[0]) * page_bytes
    if free >= wanted // 2:
        return False
    # Written as one row, so that a cut leaves it whole or not at all; a whole one is dropped the next time.
    database.execute("drop table if exists room")
    database.execute("begin immediate")
    database.execute("create table room(filler blob)")
    database.execute("insert into room values(zeroblob(?))", (max(wanted - free, WAL_LIMIT_BYTES),))
    database.execute("commit")
    database.execute("pragma wal_checkpoint(restart)").fetchone()
    database.execute("drop table room")
    return True


def make_visible_durable(database: sqlite3.Connection) -> None:
    """Bring all that this connection sees to the disk; raises sqlite3.Error where that fails.

    After a kill or a failed fsync SQLite finds frames in the WAL that only the kernel's memory holds. Were they
    published and then lost with the power, their seq would be given out a second time. Copying them into the
    database file writes them anew, which an fsync of the WAL would not.
    """
    database.execute("pragma wal_checkpoint(truncate)").fetchone()


def _opened(uri: str) -> sqlite3.Connection:
    database = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
    try:
        if database.execute("pragma user_version").fetchone()[0] == 0:
            raise LedgerError("read", uri, "there is no ledger yet", hint="it is just being made")
    except (sqlite3.Error, LedgerError):
        database.close()
        raise
    return database


def check_version(database: sqlite3.Connection, path: Path) -> int:
    """The schema version, 0 for an empty database. DirectoryRefusedError for one that a newer agent wrote."""
    version = int(database.execute("pragma user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise DirectoryRefusedError(
            "open",
            path,
            f"its format is version {version}, this agent knows {SCHEMA_VERSION}",
            hint="a newer agent wrote it: install that one again",
        )
    return version
