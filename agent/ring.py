"""The ring's rules: which clips go and in which order, and protecting, releasing, erasing. Touches ledger and disk.

Delete = mark the row -> remove the file -> fsync the directory -> drop the row; a cut anywhere is finished at start.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from agent import outbox
from agent.clock import Now
from agent.disk import Disk
from agent.errors import StorageError
from agent.ledger import Ledger
from agent.ledger_file import CLIPS_NAME
from agent.ledger_reader import ClipRow
from agent.model import OutboxKind


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did. pictures: thumbnails of the clip's events taken out of the ledger; bytes: of the clips."""

    clips: int = 0
    bytes: int = 0
    pictures: int = 0


def choose(ledger: Ledger, over_bytes: int, is_old: Callable[[ClipRow], bool], limit: int) -> list[ClipRow]:
    """The clips to delete now, at most limit: those too old, then as many as it takes to free over_bytes.

    For space the oldest that the broker knows of go first, those it was never told of last; protected ones never.
    """
    chosen = list(takewhile(is_old, ledger.oldest_clips(limit)))
    over_bytes -= sum(clip.bytes for clip in chosen)
    if over_bytes <= 0 or len(chosen) == limit:
        return chosen
    known = {clip.id for clip in chosen}
    for clip in ledger.oldest_clips(limit, delivered_first=True):
        if over_bytes <= 0 or len(chosen) == limit:
            break
        if clip.id not in known:
            chosen.append(clip)
            over_bytes -= clip.bytes
    return chosen


def delete_clips(disk: Disk, clips: Path, ledger: Ledger, rows: Sequence[ClipRow], now: Now, reason: str = "") -> int:
    """Delete clips; reason in words, for the loss records. Returns how many the broker had not been told of.

    Those messages are taken back in the same commit and named by loss records: the deletion itself is told.
    """
    with ledger.transaction(now) as database:
        _mark(database, rows)
        untold = _take_back_messages(database, rows, reason or "the clip was deleted", now, ledger.running_ns(now))
    delete_files(disk, clips, ledger, rows, now)
    return untold


def _mark(database: sqlite3.Connection, rows: Sequence[ClipRow]) -> None:
    database.executemany("update clips set state = 'deleting' where id = ?", [(row.id,) for row in rows])


def _take_back_messages(
    database: sqlite3.Connection, rows: Sequence[ClipRow], reason: str, now: Now, running_ns: int
) -> int:
    gone = {row.id for row in rows}
    untold = [
        int(seq)
        for seq, body in database.execute(
            "select seq, body from outbox where is_pending = 1 and kind = ? order by seq", (OutboxKind.CLIP.value,)
        ).fetchall()
        if json.loads(body)["id"] in gone
    ]
    for seq in untold:
        outbox.quarantine(database, seq, f"{reason} before the broker was told of it", now, running_ns)
    return len(untold)


def delete_files(disk: Disk, clips: Path, ledger: Ledger, rows: Sequence[ClipRow], now: Now) -> None:
    """The second half of a deletion: the rows are marked already."""
    for row in rows:
        disk.remove(clips / row.file)
    disk.sync_directory(clips)
    ledger.drop_clips([row.id for row in rows], now)


def protect(ledger: Ledger, ids: Sequence[str], now: Now, *, is_protected: bool = True) -> None:
    """Protected clips are never deleted by the ring, nor erased before they are released."""
    with ledger.transaction(now) as database:
        database.executemany(
            "update clips set is_protected = ? where id = ?", [(int(is_protected), clip_id) for clip_id in ids]
        )


def erase(disk: Disk, directory: Path, ledger: Ledger, rows: Sequence[ClipRow], now: Now) -> Erased:
    """Take clips and the pictures of their events out of directory for good; StorageError for a protected one.

    One commit marks the clips, empties the pictures and takes back what the broker was not yet told; the files
    follow. A power cut in between is finished at the start, before anything can be read.
    """
    for row in rows:
        if row.is_protected:
            raise StorageError("erase", f"clip {row.id}", "it is protected", hint="release it first")
    reason = "erased by an operator"
    with ledger.transaction(now) as database:
        # What SQLite frees is overwritten with zeros, also in pages that other rows share.
        database.execute("pragma secure_delete = on")
        running_ns = ledger.running_ns(now)
        _mark(database, rows)
        _take_back_messages(database, rows, reason, now, running_ns)
        pictures = sum(_empty_pictures(database, row.id, reason, now, running_ns) for row in rows)
        database.execute("pragma secure_delete = off")
    ledger.settle()
    delete_files(disk, directory / CLIPS_NAME, ledger, rows, now)
    return Erased(len(rows), sum(row.bytes for row in rows), pictures)


def _empty_pictures(database: sqlite3.Connection, clip_id: str, reason: str, now: Now, running_ns: int) -> int:
    """Empty the thumbnails of the clip's events, unless another clip that stays shows the same event."""
    found = database.execute(
        "select seq, is_pending from outbox where kind = 'thumb' and blob is not null and event_id in"
        " (select event_id from clip_events where clip_id = ?1) and not exists"
        " (select 1 from clip_events join clips on clips.id = clip_events.clip_id"
        "  where clip_events.event_id = outbox.event_id and clips.state = 'final')",
        (clip_id,),
    ).fetchall()
    for seq, is_pending in found:
        if is_pending:
            outbox.quarantine(database, int(seq), reason, now, running_ns)
        database.execute("update outbox set blob = null, quarantined = ? where seq = ?", (reason, seq))
    return len(found)
