"""The ledger: events, clips and the outbox in one SQLite file, written by one and read by many. Touches that file.

"This happened", "this file exists" and "tell the broker" commit together. The writer (Ledger) belongs to the
storage thread and holds no clock: each call is handed the time. Readers (LedgerReader) have connections of
their own and see committed states only.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agent import outbox
from agent.clock import Now, rfc3339
from agent.disk import Disk
from agent.ledger_file import (
    LEDGER_NAME,
    SCHEMA,
    SCHEMA_VERSION,
    TRIGGERS,
    LedgerDamagedError,
    LedgerError,
    check_version,
    connect,
    keep_room,
    make_visible_durable,
    sqlite_errors,
)
from agent.ledger_reader import ClipRow, ClipTotals, EventRow, LedgerReader, clip_totals_of, clips_where
from agent.messages import ClipBody, EventBody, ThumbBody, event_body, sha256_hex
from agent.model import Ack, EndReason, Event, OutboxKind, Phase
from agent.outbox import Load, Post
from agent.ulid import new_ulid

__all__ = ["ClipRow", "ClipTotals", "EventRow", "Ledger", "LedgerReader", "Revision"]

QUICK_CHECK_BYTES = 32 << 20
"""A ledger up to this size is checked whole at start (0.1 s here per 32 MB); a larger one as it is used."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One state of an event to be stored. happened_ns: boot-clock time of this revision, of now's boot."""

    event: Event
    clip_id: str | None
    happened_ns: int


class Ledger:
    """The writer. One at a time: the storage holds the directory's lock. Methods raise StorageError.

    After an error nothing of the call is stored; the same call may be tried again (reopen() first).
    """

    def __init__(self, disk: Disk, directory: Path, *, node: str) -> None:
        self._disk = disk
        self._directory = directory
        self._path = directory / LEDGER_NAME
        self._node = node
        self._database: sqlite3.Connection | None = None
        self._refusals: dict[int, tuple[int, str]] = {}
        self.uuid = ""
        self.epoch = ""
        self.head_seq = 0
        self.load = Load()
        self.evicted = 0

    def open(self, directory_uuid: str | None, now: Now) -> bool:
        """Open the ledger or make one (with directory_uuid, or a new uuid). Returns whether it was made anew.

        LedgerDamagedError when it is corrupt, DirectoryRefusedError when a newer agent wrote it.
        """
        self.close()
        database = connect(self._path)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._database = database
            with sqlite_errors("open", self._path):
                is_new = check_version(database, self._path) == 0
                if is_new:
                    self._make(database, directory_uuid or str(uuid.uuid4()), now)
                elif (self._disk.size(self._path) or 0) <= QUICK_CHECK_BYTES:
                    verdict = database.execute("pragma quick_check(1)").fetchone()[0]
                    if verdict != "ok":
                        raise LedgerDamagedError("open", self._path, str(verdict))
                make_visible_durable(database)
                self.uuid, self.epoch = database.execute("select uuid, epoch from meta").fetchone()
            self.prove(now)
            undo.pop_all()
        if is_new:
            self._disk.sync_directory(self._directory)
        return is_new

    def _make(self, database: sqlite3.Connection, directory_uuid: str, now: Now) -> None:
        database.execute("begin immediate")
        for statement in (*SCHEMA.split(";"), *TRIGGERS):
            database.execute(statement)
        database.execute(
            "insert into meta(one, uuid, epoch, head_seq, running_ns, boot_id, boot_ns) values(1, ?, ?, 0, 0, ?, ?)",
            (directory_uuid, new_ulid(now.wall_ns // 1_000_000), now.boot_id, now.t_ns),
        )
        database.execute(f"pragma user_version = {SCHEMA_VERSION}")
        database.execute("commit")

    def close(self) -> None:
        """Never raises; what was committed stays."""
        if self._database is not None:
            # On a dead disk there is nothing left to save: commits were durable already.
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    @property
    def is_open(self) -> bool:
        return self._database is not None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if self._database is None:
            raise LedgerError("read", self._path, "the ledger is not open")
        with sqlite_errors("read", self._path):
            yield self._database

    @contextmanager
    def _transaction(self, now: Now) -> Iterator[sqlite3.Connection]:
        """All or nothing; on return durable. Also carries the node's running time forward."""
        if self._database is None:
            raise LedgerError("write", self._path, "the ledger is not open")
        database = self._database
        with sqlite_errors("write", self._path):
            try:
                database.execute("begin immediate")
                self._run_on(database, now)
                yield database
                with self._disk.timed():
                    database.execute("commit")
            finally:
                if database.in_transaction:
                    database.execute("rollback")
            self._refresh()

    def _run_on(self, database: sqlite3.Connection, now: Now) -> None:
        """Add what passed since the last commit of this boot; time without power is unknown and not counted."""
        database.execute(
            "update meta set running_ns = running_ns + case when boot_id = ?1 then max(0, ?2 - boot_ns) else 0 end,"
            " boot_id = ?1, boot_ns = ?2",
            (now.boot_id, now.t_ns),
        )

    def _refresh(self) -> None:
        if self._database is not None:
            self.head_seq = int(self._database.execute("select head_seq from meta").fetchone()[0])
            self.load = outbox.load(self._database)

    def transaction(self, now: Now) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """For rooms with rows of their own (agent/audit.py): all or nothing, durable on return."""
        return self._transaction(now)

    def settle(self) -> None:
        """Bring all commits into the database file and empty the WAL, where earlier contents still stand."""
        with self._reading() as database:
            make_visible_durable(database)

    def keep_room(self, wanted: int) -> bool:
        """Free pages of wanted bytes inside the file, for events on a full disk; whether some were added."""
        with self._reading() as database:
            try:
                return keep_room(database, wanted)
            finally:
                if database.in_transaction:
                    database.execute("rollback")

    def prove(self, now: Now) -> None:
        """A commit of nothing but the running time: the disk takes and keeps what it is given."""
        with self._transaction(now):
            pass

    def running_ns(self, now: Now) -> int:
        """How long this ledger's node has been running, over all boots, as far as it was written down."""
        with self._reading() as database:
            running_ns, boot_id, boot_ns = database.execute(
                "select running_ns, boot_id, boot_ns from meta"
            ).fetchone()
        return int(running_ns) + (max(0, now.t_ns - int(boot_ns)) if boot_id == now.boot_id else 0)

    # -- events ---------------------------------------------------------------------------------------------

    def store_events(self, revisions: Sequence[Revision], now: Now) -> None:
        """Each revision with its thumbnail (if the picture changed) and its outbox rows, all in one commit."""
        if not revisions:
            return
        with self._transaction(now) as database:
            for revision in revisions:
                self._store_event(database, revision, now)

    def _store_event(self, database: sqlite3.Connection, revision: Revision, now: Now) -> None:
        event = revision.event
        stored = database.execute(
            "select rev, thumb_t_ns, thumb_frame, clip_id, body, is_open, json_extract(body, '$.thumb.width')"
            " from events where id = ?",
            (event.id,),
        ).fetchone()
        if stored is not None and (event.rev <= stored[0] or not stored[5]):
            return  # given back after a commit that did reach the disk, or ended by recovery
        clip_id = revision.clip_id or (stored[3] if stored is not None else None)
        picture = event.thumbnail
        kept = stored is not None and (
            picture is None
            or (stored[1], stored[2], stored[6]) == (picture.moment.t_ns, picture.moment.frame, picture.width)
        )
        jpeg: bytes | None = None
        if picture is not None and not kept:
            fields = {
                "node": self._node,
                "event_id": event.id,
                "rev": event.rev,
                "seq": outbox.next_seq(database) + 1,  # the event's row comes first
                "time": rfc3339(now.wall(picture.moment.t_ns)),
                # What stands in a picture is not corrected later: whoever reads it must know.
                "clock_synced": now.clock_synced,
            }
            jpeg = outbox.stamped(picture.jpeg, fields)
            event = replace(event, thumbnail=replace(picture, jpeg=jpeg))
        body = event_body(
            event, wall=now.wall, thumb_sha256=sha256_hex(jpeg) if jpeg is not None else None, clip_id=clip_id
        )
        if kept and stored is not None:
            body = body.model_copy(update={"thumb": EventBody.model_validate_json(stored[4]).thumb})
        thumb_at = (picture.moment.t_ns, picture.moment.frame) if picture is not None else (None, None)
        if kept and stored is not None:
            thumb_at = (stored[1], stored[2])
        text = body.model_dump_json()
        database.execute(
            "insert into events(id, rev, is_open, boot_id, start_t_ns, last_t_ns, start_wall_ns, clock_synced,"
            " thumb_t_ns, thumb_frame, clip_id, body) values(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " on conflict(id) do update set rev = excluded.rev, is_open = excluded.is_open,"
            " boot_id = excluded.boot_id, start_t_ns = excluded.start_t_ns, last_t_ns = excluded.last_t_ns,"
            " start_wall_ns = excluded.start_wall_ns, clock_synced = excluded.clock_synced,"
            " thumb_t_ns = excluded.thumb_t_ns, thumb_frame = excluded.thumb_frame, clip_id = excluded.clip_id,"
            " body = excluded.body",
            (
                event.id,
                event.rev,
                int(event.phase is not Phase.END),
                now.boot_id,
                event.start.t_ns,
                event.last.t_ns,
                now.wall(event.start.t_ns),
                int(now.clock_synced),
                *thumb_at,
                clip_id,
                text,
            ),
        )
        outbox.append(
            database,
            Post(OutboxKind.EVENT, revision.happened_ns, text, event_id=event.id, phase=event.phase),
            now,
        )
        if jpeg is not None and picture is not None:
            thumb = ThumbBody(event_id=event.id, rev=event.rev, sha256=sha256_hex(jpeg))
            outbox.append(
                database,
                Post(
                    OutboxKind.THUMB,
                    picture.moment.t_ns,
                    thumb.model_dump_json(),
                    blob=jpeg,
                    event_id=event.id,
                    phase=event.phase,
                ),
                now,
            )

    def end_open_events(self, reason: EndReason, now: Now) -> int:
        """End what an earlier run left open, at the last moment it moved, and owe the broker the end."""
        with self._transaction(now) as database:
            left = database.execute(
                "select id, rev, boot_id, start_t_ns, last_t_ns, start_wall_ns, clock_synced, body"
                " from events where is_open = 1 order by n"
            ).fetchall()
            for event_id, rev, boot_id, start_t_ns, last_t_ns, start_wall_ns, clock_synced, text in left:
                end_wall_ns = start_wall_ns + last_t_ns - start_t_ns
                body = EventBody.model_validate_json(text).model_copy(
                    update={
                        "rev": rev + 1,
                        "phase": Phase.END.value,
                        "end": rfc3339(end_wall_ns),
                        "end_reason": reason.value,
                    }
                )
                ended = body.model_dump_json()
                database.execute(
                    "update events set rev = ?, is_open = 0, body = ? where id = ?", (rev + 1, ended, event_id)
                )
                outbox.append(
                    database,
                    Post(
                        OutboxKind.EVENT,
                        last_t_ns,
                        ended,
                        event_id=event_id,
                        phase=Phase.END,
                        boot_id=boot_id,
                        wall_ns=end_wall_ns,
                        clock_synced=bool(clock_synced),
                    ),
                    now,
                )
            return len(left)

    def events_of_clip(self, clip_id: str) -> tuple[str, ...]:
        """Events that named clip_id as the clip that shows them."""
        with self._reading() as database:
            found = database.execute("select id from events where clip_id = ? order by n", (clip_id,)).fetchall()
        return tuple(str(row[0]) for row in found)

    # -- clips ----------------------------------------------------------------------------------------------

    def store_clip(self, clip: ClipRow, now: Now) -> None:
        """The clip's row and, unless it is damaged, its message. clip.n and running_ns are given here.

        A clip that is known already is left as it is: the same call may be repeated.
        """
        with self._transaction(now) as database:
            if database.execute("select 1 from clips where id = ?", (clip.id,)).fetchone() is not None:
                return
            database.execute(
                "insert into clips(id, file, state, is_protected, boot_id, start_t_ns, end_t_ns, start_wall_ns,"
                " clock_synced, running_ns, frames, bytes, sha256, flags)"
                " values(?, ?, ?, ?, ?, ?, ?, ?, ?, (select running_ns from meta), ?, ?, ?, ?)",
                (
                    clip.id,
                    clip.file,
                    clip.state,
                    int(clip.is_protected),
                    clip.boot_id,
                    clip.start_t_ns,
                    clip.end_t_ns,
                    clip.start_wall_ns,
                    int(clip.clock_synced),
                    clip.frames,
                    clip.bytes,
                    clip.sha256,
                    json.dumps(clip.flags),
                ),
            )
            database.executemany(
                "insert into clip_events(clip_id, event_id) values(?, ?)",
                [(clip.id, event_id) for event_id in dict.fromkeys(clip.event_ids)],
            )
            if clip.state != "final":
                return
            body = ClipBody(
                id=clip.id,
                event_ids=list(dict.fromkeys(clip.event_ids)),
                start=rfc3339(clip.start_wall_ns),
                duration_s=round(clip.duration_s, 3),
                bytes=clip.bytes,
                sha256=clip.sha256,
                flags=list(clip.flags),
            )
            end_wall_ns = clip.start_wall_ns + clip.end_t_ns - clip.start_t_ns
            outbox.append(
                database,
                Post(
                    OutboxKind.CLIP,
                    clip.end_t_ns,
                    body.model_dump_json(),
                    boot_id=clip.boot_id,
                    wall_ns=end_wall_ns,
                    clock_synced=clip.clock_synced,
                ),
                now,
            )

    def set_clip_states(self, ids: Sequence[str], state: str, now: Now) -> None:
        with self._transaction(now) as database:
            database.executemany("update clips set state = ? where id = ?", [(state, clip_id) for clip_id in ids])

    def drop_clips(self, ids: Sequence[str], now: Now) -> None:
        """Forget rows whose files are gone for good."""
        with self._transaction(now) as database:
            database.executemany("delete from clips where id = ?", [(clip_id,) for clip_id in ids])

    def clips(self, *, state: str | None = None) -> list[ClipRow]:
        """All clips, oldest first, without their event ids."""
        with self._reading() as database:
            return clips_where(database, "state = ?" if state else "1 = 1", (state,) if state else (), "order by n")

    def oldest_clips(self, limit: int, *, delivered_first: bool = False) -> list[ClipRow]:
        """The oldest clips that may be deleted: neither protected nor lost nor in deletion.

        delivered_first: those whose message the broker has not taken come last.
        """
        untold = "(select json_extract(body, '$.id') from outbox where kind = 'clip' and is_pending = 1)"
        order = f"id in {untold}, n" if delivered_first else "n"
        with self._reading() as database:
            return clips_where(
                database,
                "is_protected = 0 and state in ('final', 'damaged')",
                (),
                f"order by {order} limit {int(limit)}",
            )

    def clip_totals(self) -> ClipTotals:
        """Of the clips whose files are there."""
        with self._reading() as database:
            return clip_totals_of(database)

    # -- outbox ---------------------------------------------------------------------------------------------

    def mark(self, acks: Sequence[Ack], now: Now) -> bool:
        """Write down what the broker took; returns whether there was a commit.

        Refusals alone are not worth one: they go with the next.
        """
        delivered = [ack.seq for ack in acks if ack.delivered]
        for ack in acks:
            if not ack.delivered:
                self._refusals[ack.seq] = (self._refusals.get(ack.seq, (0, ""))[0] + 1, ack.reason[:200])
        if not delivered:
            return False
        running_ns = self.running_ns(now)
        with self._transaction(now) as database:
            outbox.deliver(database, delivered, now, running_ns)
            outbox.refuse(database, self._refusals)
        self._refusals.clear()
        return True

    def quarantine(self, seq: int, reason: str, now: Now) -> bool:
        """A row the broker can never take (too large): out of the way, named by a loss record."""
        running_ns = self.running_ns(now)
        with self._transaction(now) as database:
            return outbox.quarantine(database, seq, reason, now, running_ns)

    def bound_outbox(self, max_rows: int, max_bytes: int, now: Now) -> int:
        """Evict what is beyond the bounds, named by a loss record; returns rows evicted."""
        if self.load.rows <= max_rows and self.load.bytes <= max_bytes:
            return 0
        with self._transaction(now) as database:
            evicted = outbox.evict(database, max_rows, max_bytes, now)
        self.evicted += evicted
        return evicted

    def tidy(self, *, replay_s: float, replay_bytes: int, now: Now, limit: int = 2000) -> int:
        """Delete delivered rows beyond the replay window, and ended events nothing refers to; up to limit of each.

        Always commits (the running time at least), so that it also proves the disk. Returns outbox rows deleted.
        """
        running_ns = self.running_ns(now)
        with self._transaction(now) as database:
            gone = outbox.expire(
                database, now=now, running_ns=running_ns, replay_s=replay_s, replay_bytes=replay_bytes, limit=limit
            )
            database.execute(
                "delete from events where n in (select n from events where is_open = 0"
                " and not exists (select 1 from outbox where event_id = events.id)"
                " and not exists (select 1 from clip_events where event_id = events.id) limit ?)",
                (limit,),
            )
            return gone

    def oldest_owed_wall_ns(self) -> int | None:
        with self._reading() as database:
            found = database.execute(
                "select wall_ns from outbox where is_pending = 1 order by seq limit 1"
            ).fetchone()
        return int(found[0]) if found is not None else None

    def set_aside(self) -> Path:
        """Close a damaged ledger and rename its files out of the way; the next open() makes a new one."""
        self.close()
        mark = secrets.token_hex(4)
        aside = self._path.with_name(f"{LEDGER_NAME}.damaged-{mark}")
        for suffix in ("-wal", "-shm", ""):
            old = self._path.with_name(self._path.name + suffix)
            if self._disk.size(old) is not None:
                self._disk.rename(old, aside.with_name(aside.name + suffix))
        self._disk.sync_directory(self._directory)
        return aside
