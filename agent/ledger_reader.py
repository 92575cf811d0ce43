"""The ledger as others see it: its rows as values, and readers with a connection of their own. Reads that file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agent import audit, outbox
from agent.audit import AuditRow
from agent.errors import StorageError
from agent.ledger_file import LEDGER_NAME, connect_to_read, sqlite_errors
from agent.messages import EventBody
from agent.model import OutboxKind, OutboxRow


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip as the ledger knows it.

    n orders the ring; start_t_ns: presentation time of the first frame, end_t_ns: of the last one plus its
    duration, both on the boot clock of boot_id; running_ns: the node's running time when it was stored;
    state: final, deleting (half deleted), lost (the file vanished) or damaged (it does not play).
    """

    n: int
    id: str
    file: str
    state: str
    is_protected: bool
    boot_id: str
    start_t_ns: int
    end_t_ns: int
    start_wall_ns: int
    clock_synced: bool
    running_ns: int
    frames: int
    bytes: int
    sha256: str
    flags: tuple[str, ...]
    event_ids: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        return (self.end_t_ns - self.start_t_ns) / 1e9


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event as the ledger knows it: its newest stored state."""

    id: str
    is_open: bool
    boot_id: str
    start_t_ns: int
    last_t_ns: int
    clock_synced: bool
    clip_id: str | None
    body: EventBody


@dataclass(frozen=True, slots=True)
class ClipTotals:
    clips: int
    bytes: int
    oldest_wall_ns: int | None


CLIP_COLUMNS = (
    "n, id, file, state, is_protected, boot_id, start_t_ns, end_t_ns, start_wall_ns, clock_synced, running_ns,"
    " frames, bytes, sha256, flags"
)


NOT_ERASED = "(kind <> 'thumb' or blob is not null)"
"""An erased picture leaves its row behind, so that its number stays explained."""


class LedgerReader:
    """Sees what is committed, on a read-only connection of its own; for one thread (the link, a command).

    Connects at the first question and again after any error or when the ledger was replaced. Every method
    raises StorageError, also where there is no ledger yet.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LEDGER_NAME
        self._database: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            found = self._path.stat()
            identity = (found.st_dev, found.st_ino)
        except OSError:
            identity = None
        if identity != self._identity or identity is None:
            self.close()
        if self._database is None:
            self._database = connect_to_read(self._path)
            self._identity = identity
        try:
            with sqlite_errors("read", self._path):
                yield self._database
        except StorageError:
            self.close()
            raise

    @property
    def epoch(self) -> str:
        with self._reading() as database:
            return str(database.execute("select epoch from meta").fetchone()[0])

    @property
    def uuid(self) -> str:
        with self._reading() as database:
            return str(database.execute("select uuid from meta").fetchone()[0])

    @property
    def head_seq(self) -> int:
        with self._reading() as database:
            return int(database.execute("select head_seq from meta").fetchone()[0])

    def due(self, after_seq: int, limit: int, kinds: Collection[OutboxKind] = tuple(OutboxKind)) -> list[OutboxRow]:
        """Up to limit rows of these kinds owed to the broker with seq above after_seq, in order."""
        # "+kind": the index of what is pending serves; the one by kind would go through all that was delivered.
        condition = f"is_pending = 1 and seq > ? and +kind in ({', '.join('?' * len(kinds))})"
        with self._reading() as database:
            return outbox.rows(
                database, condition, (after_seq, *(kind.value for kind in kinds)), f"order by seq limit {int(limit)}"
            )

    def newest_event(self) -> OutboxRow | None:
        """The newest event message, sent or not, but none that was given up."""
        return self._newest(OutboxKind.EVENT)

    def newest_thumb(self) -> OutboxRow | None:
        return self._newest(OutboxKind.THUMB)

    def is_erased(self, seq: int | None = None) -> bool:
        """Whether the picture of row seq was erased, or (None) any picture that still has its row."""
        condition, parameters = ("seq = ?", (seq,)) if seq is not None else ("1 = 1", ())
        with self._reading() as database:
            found = database.execute(
                f"select 1 from outbox where {condition} and kind = 'thumb' and blob is null limit 1", parameters
            ).fetchone()
        return found is not None

    def _newest(self, kind: OutboxKind) -> OutboxRow | None:
        with self._reading() as database:
            found = outbox.rows(
                database,
                f"kind = ? and quarantined is null and {NOT_ERASED}",
                (kind.value,),
                "order by seq desc limit 1",
            )
        return found[0] if found else None

    def sent(self, from_seq: int, to_seq: int, limit: int) -> list[OutboxRow]:
        """Rows from_seq..to_seq that are still kept, delivered or not, for consumers that lost some."""
        with self._reading() as database:
            return outbox.rows(
                database,
                f"seq between ? and ? and {NOT_ERASED}",
                (from_seq, to_seq),
                f"order by seq limit {int(limit)}",
            )

    def thumb_of(self, event_id: str) -> OutboxRow | None:
        """The newest thumbnail of an event that is still kept."""
        with self._reading() as database:
            found = outbox.rows(
                database,
                "event_id = ? and kind = 'thumb' and blob is not null",
                (event_id,),
                "order by seq desc limit 1",
            )
        return found[0] if found else None

    def clips(self, limit: int | None = None) -> list[ClipRow]:
        """Clips with their event ids, oldest first (the newest `limit` of them)."""
        with self._reading() as database:
            found = clips_where(database, "1 = 1", (), f"order by n desc limit {-1 if limit is None else int(limit)}")
            shown: dict[str, list[str]] = {}
            for clip_id, event_id in database.execute("select clip_id, event_id from clip_events"):
                shown.setdefault(clip_id, []).append(event_id)
        return [replace(clip, event_ids=tuple(shown.get(clip.id, ()))) for clip in reversed(found)]

    def clip(self, clip_id: str) -> ClipRow | None:
        with self._reading() as database:
            found = clips_where(database, "id = ?", (clip_id,), "")
            shown = database.execute("select event_id from clip_events where clip_id = ?", (clip_id,)).fetchall()
        return replace(found[0], event_ids=tuple(str(row[0]) for row in shown)) if found else None

    def clip_totals(self) -> ClipTotals:
        with self._reading() as database:
            return clip_totals_of(database)

    def event(self, event_id: str) -> EventRow | None:
        with self._reading() as database:
            found = events_where(database, "id = ?", (event_id,), "")
        return found[0] if found else None

    def events(self, limit: int | None = None) -> list[EventRow]:
        """The newest `limit` events, oldest of them first."""
        with self._reading() as database:
            found = events_where(
                database, "1 = 1", (), f"order by n desc limit {-1 if limit is None else int(limit)}"
            )
        return found[::-1]

    # -- what commands ask ------------------------------------------------------------------------------------

    def clips_page(
        self, before_n: int | None, from_wall_ns: int | None, to_wall_ns: int | None, limit: int
    ) -> list[ClipRow]:
        """Clips that can be had, newest first: older than row before_n, begun within the times given."""
        condition, parameters = _page(before_n, from_wall_ns, to_wall_ns)
        with self._reading() as database:
            found = clips_where(
                database, f"{condition} and state = 'final'", parameters, f"order by n desc limit {int(limit)}"
            )
            return [
                replace(
                    clip,
                    event_ids=tuple(
                        str(row[0])
                        for row in database.execute("select event_id from clip_events where clip_id = ?", (clip.id,))
                    ),
                )
                for clip in found
            ]

    def events_page(
        self, before_n: int | None, from_wall_ns: int | None, to_wall_ns: int | None, limit: int
    ) -> list[tuple[int, EventRow]]:
        """Events with their row numbers, as clips_page."""
        condition, parameters = _page(before_n, from_wall_ns, to_wall_ns)
        with self._reading() as database:
            numbers = [
                int(row[0])
                for row in database.execute(
                    f"select n from events where {condition} order by n desc limit {int(limit)}", parameters
                )
            ]
            return [(n, events_where(database, "n = ?", (n,), "")[0]) for n in numbers]

    def command(self, client: str, request_id: str) -> AuditRow | None:
        """What became of an accepted command."""
        with self._reading() as database:
            return audit.command(database, client, request_id)

    def commands(self, limit: int) -> list[AuditRow]:
        """The newest commands, accepted and refused, oldest of them first."""
        with self._reading() as database:
            return audit.newest(database, limit)

    # -- what verification asks --------------------------------------------------------------------------------

    def integrity(self) -> list[str]:
        """SQLite's own complaints; empty when it is whole."""
        with self._reading() as database:
            found = [str(row[0]) for row in database.execute("pragma integrity_check(5)")]
            found += [f"foreign key: {row}" for row in database.execute("pragma foreign_key_check")]
        return [f"ledger: {words}" for words in found if words != "ok"]

    def unexplained_holes(self) -> list[tuple[int, int]]:
        """Runs of seq that are neither there nor named by a loss record, above what has expired after delivery."""
        with self._reading() as database:
            database.execute("begin")  # one snapshot for the three questions
            try:
                head, expired = database.execute("select head_seq, expired_seq from meta").fetchone()
                present = [
                    int(row[0])
                    for row in database.execute("select seq from outbox where seq > ? order by seq", (expired,))
                ]
                bodies = [row[0] for row in database.execute("select body from outbox where kind = 'loss'")]
            finally:
                database.execute("rollback")
        losses = [(int(loss["from_seq"]), int(loss["to_seq"])) for loss in map(json.loads, bodies)]
        return holes(present, int(expired) + 1, int(head), losses)

    def false_thumbs(self, hash_of: Callable[[bytes], str]) -> Iterator[tuple[int, str]]:
        """Thumbnails whose bytes, stamp and row do not agree: (seq, words)."""
        after = 0
        while True:
            with self._reading() as database:
                page = outbox.rows(
                    database, "kind = 'thumb' and blob is not null and seq > ?", (after,), "order by seq limit 100"
                )
            if not page:
                return
            for row in page:
                after = row.seq
                body = json.loads(row.body)
                stamp = outbox.stamp_of(row.blob or b"")
                if hash_of(row.blob or b"") != body["sha256"]:
                    yield row.seq, "the picture's SHA-256 is not the one announced"
                elif stamp is None or (stamp["seq"], stamp["event_id"]) != (row.seq, body["event_id"]):
                    yield row.seq, "the picture's stamp names another message"

    def events_without_messages(self) -> list[str]:
        """Events whose newest message does not say their newest state.

        Asked only where the newest message can be known: above what expired, and while none was evicted.
        """
        with self._reading() as database:
            found = database.execute(
                "select events.id from events join"
                " (select event_id, max(seq) as seq from outbox where kind = 'event' group by event_id) as newest"
                " on newest.event_id = events.id join outbox on outbox.seq = newest.seq"
                " where outbox.body <> events.body and newest.seq > (select expired_seq from meta)"
                " and not exists (select 1 from outbox where kind = 'loss')"
            ).fetchall()
        return [str(row[0]) for row in found]


def _page(before_n: int | None, from_wall_ns: int | None, to_wall_ns: int | None) -> tuple[str, tuple[object, ...]]:
    parts = (("n < ?", before_n), ("start_wall_ns >= ?", from_wall_ns), ("start_wall_ns < ?", to_wall_ns))
    given = [(words, value) for words, value in parts if value is not None]
    return " and ".join(["1 = 1", *(words for words, _ in given)]), tuple(value for _, value in given)


def holes(present: list[int], first: int, head: int, losses: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs of numbers in first..head that are not in present (sorted) and not within one of losses."""
    found: list[tuple[int, int]] = []
    expected = first
    for seq in (*present, head + 1):
        while expected < seq:
            covering = max((to for start, to in losses if start <= expected <= to), default=None)
            if covering is not None:
                expected = covering + 1
                continue
            until = min([seq, *(start for start, _ in losses if start > expected)])
            found.append((expected, until - 1))
            expected = until
        expected = max(expected, seq + 1)
    return found


def clips_where(
    database: sqlite3.Connection, condition: str, parameters: tuple[object, ...], order: str
) -> list[ClipRow]:
    found = database.execute(f"select {CLIP_COLUMNS} from clips where {condition} {order}", parameters)
    return [
        ClipRow(
            n=row[0],
            id=row[1],
            file=row[2],
            state=row[3],
            is_protected=bool(row[4]),
            boot_id=row[5],
            start_t_ns=row[6],
            end_t_ns=row[7],
            start_wall_ns=row[8],
            clock_synced=bool(row[9]),
            running_ns=row[10],
            frames=row[11],
            bytes=row[12],
            sha256=row[13],
            flags=tuple(json.loads(row[14])),
        )
        for row in found
    ]


def clip_totals_of(database: sqlite3.Connection) -> ClipTotals:
    count, size, oldest = database.execute(
        "select count(*), coalesce(sum(bytes), 0), min(n) from clips where state in ('final', 'damaged')"
    ).fetchone()
    wall = database.execute("select start_wall_ns from clips where n = ?", (oldest,)).fetchone()
    return ClipTotals(int(count), int(size), int(wall[0]) if wall is not None else None)


def events_where(
    database: sqlite3.Connection, condition: str, parameters: tuple[object, ...], order: str
) -> list[EventRow]:
    found = database.execute(
        "select id, is_open, boot_id, start_t_ns, last_t_ns, clock_synced, clip_id, body"
        f" from events where {condition} {order}",
        parameters,
    )
    return [
        EventRow(
            id=row[0],
            is_open=bool(row[1]),
            boot_id=row[2],
            start_t_ns=row[3],
            last_t_ns=row[4],
            clock_synced=bool(row[5]),
            clip_id=row[6],
            body=EventBody.model_validate_json(row[7]),
        )
        for row in found
    ]
