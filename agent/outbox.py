"""The outbox: messages owed to the broker, as rows of the ledger. Works within the ledger's transactions only.

A row's seq is contiguous within the epoch and given in the transaction that stores it. What leaves undelivered
is named by a `loss` row: of the numbers from_seq..to_seq, those that did not arrive before it never will.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass

from agent.clock import Now
from agent.messages import LossBody
from agent.model import OutboxKind, OutboxRow, Phase

ROW_BYTES = 256
"""What a row costs beside its body and blob, roughly: columns, indexes, page overhead."""
EVICT_TO_SHARE = 0.9
"""An eviction makes this much room at once, so that it leaves one loss record and not a thousand."""


@dataclass(frozen=True, slots=True)
class Post:
    """A message about to be stored. t_ns on now's boot clock unless boot_id and wall_ns say another boot's."""

    kind: OutboxKind
    t_ns: int
    body: str
    blob: bytes | None = None
    event_id: str | None = None
    phase: Phase | None = None
    boot_id: str | None = None
    wall_ns: int | None = None
    clock_synced: bool | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What is owed: rows and bytes not yet delivered."""

    rows: int = 0
    bytes: int = 0


def append(database: sqlite3.Connection, post: Post, now: Now) -> int:
    """Store post; returns its seq."""
    seq = int(database.execute("update meta set head_seq = head_seq + 1 returning head_seq").fetchone()[0])
    cost = ROW_BYTES + len(post.body.encode()) + len(post.blob or b"")
    database.execute(
        "insert into outbox(seq, kind, phase, event_id, boot_id, t_ns, wall_ns, clock_synced, body, blob, bytes)"
        " values(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq,
            post.kind.value,
            post.phase.value if post.phase is not None else None,
            post.event_id,
            post.boot_id if post.boot_id is not None else now.boot_id,
            post.t_ns,
            post.wall_ns if post.wall_ns is not None else now.wall(post.t_ns),
            int(post.clock_synced if post.clock_synced is not None else now.clock_synced),
            post.body,
            post.blob,
            cost,
        ),
    )
    return seq


def next_seq(database: sqlite3.Connection) -> int:
    """The seq that the next append will give."""
    return int(database.execute("select head_seq + 1 from meta").fetchone()[0])


def load(database: sqlite3.Connection) -> Load:
    rows, cost = database.execute("select owed_rows, owed_bytes from meta").fetchone()
    return Load(int(rows), int(cost))


def deliver(database: sqlite3.Connection, seqs: list[int], now: Now, running_ns: int) -> None:
    database.executemany(
        "update outbox set is_pending = 0, delivered_wall_ns = ?, delivered_running_ns = ?"
        " where seq = ? and is_pending = 1",
        [(now.wall_ns, running_ns, seq) for seq in seqs],
    )


def refuse(database: sqlite3.Connection, refusals: dict[int, tuple[int, str]]) -> None:
    """refusals: seq -> how often since the last call, and the last reason."""
    database.executemany(
        "update outbox set refusals = refusals + ?, last_refusal = ? where seq = ?",
        [(count, reason, seq) for seq, (count, reason) in refusals.items()],
    )


def quarantine(database: sqlite3.Connection, seq: int, reason: str, now: Now, running_ns: int) -> bool:
    """Take a row that can never be delivered out of the way and name it lost; False if it is not owed (any more)."""
    found = database.execute("select kind, body from outbox where seq = ? and is_pending = 1", (seq,)).fetchone()
    if found is None:
        return False
    database.execute(
        "update outbox set is_pending = 0, quarantined = ?, delivered_wall_ns = ?, delivered_running_ns = ?"
        " where seq = ?",
        (reason, now.wall_ns, running_ns, seq),
    )
    first, last, kind = seq, seq, str(found[0])
    if kind == OutboxKind.LOSS:  # what it explained is explained again
        earlier = LossBody.model_validate_json(found[1])
        first, last, kind = min(seq, earlier.from_seq), max(seq, earlier.to_seq), earlier.kind
    append_loss(database, first, last, kind, reason, now)
    return True


def append_loss(database: sqlite3.Connection, from_seq: int, to_seq: int, kind: str, reason: str, now: Now) -> None:
    body = LossBody(from_seq=from_seq, to_seq=to_seq, kind=kind, reason=reason)
    append(database, Post(OutboxKind.LOSS, now.t_ns, body.model_dump_json()), now)


def evict(database: sqlite3.Connection, max_rows: int, max_bytes: int, now: Now) -> int:
    """Bring what is owed below its bounds: thumbs first, then updates, then the oldest. Returns rows evicted.

    Earlier loss rows that were not sent yet are taken up in the new one, so that they never pile up.
    """
    owed = load(database)
    if owed.rows <= max_rows and owed.bytes <= max_bytes:
        return 0
    rows_over = owed.rows - int(max_rows * EVICT_TO_SHARE)
    bytes_over = owed.bytes - int(max_bytes * EVICT_TO_SHARE)
    evicted: dict[int, str] = {}
    for choice in ("kind = 'thumb'", "kind = 'event' and phase = 'update'", "kind in ('event', 'clip')"):
        for seq, kind, cost in database.execute(
            f"select seq, kind, bytes from outbox where is_pending = 1 and {choice} order by seq"
        ):
            if rows_over <= 0 and bytes_over <= 0:
                break
            if seq not in evicted:
                evicted[seq] = kind
                rows_over -= 1
                bytes_over -= cost
    if not evicted:
        return 0
    count = len(evicted)
    first, last, kinds = min(evicted), max(evicted), set(evicted.values())
    for seq, body in database.execute(
        "select seq, body from outbox where is_pending = 1 and kind = 'loss'"
    ).fetchall():
        earlier = LossBody.model_validate_json(body)
        first, last = min(first, earlier.from_seq, seq), max(last, earlier.to_seq, seq)
        kinds.add(earlier.kind)
        evicted[seq] = "loss"
    database.executemany("delete from outbox where seq = ?", [(seq,) for seq in evicted])
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    append_loss(database, first, last, kind, "outbox full", now)
    return count


def expire(
    database: sqlite3.Connection, *, now: Now, running_ns: int, replay_s: float, replay_bytes: int, limit: int
) -> int:
    """Delete rows delivered longer ago than the replay window, and the oldest delivered beyond replay_bytes.

    Both the wall clock and the node's running time must say so (docs/STORAGE.md, age). The newest event and
    thumb stay for those who connect anew. At most limit rows; returns how many.
    """
    newest = [
        int(row[0])
        for row in database.execute("select max(seq) from outbox where kind in ('event', 'thumb') group by kind")
    ]
    keep = f"seq not in ({', '.join(map(str, newest)) or '-1'})"
    old = [
        int(row[0])
        for row in database.execute(
            f"select seq from outbox where is_pending = 0 and {keep} and delivered_wall_ns < ?"
            " and delivered_running_ns < ? order by seq limit ?",
            (now.wall_ns - int(replay_s * 1e9), running_ns - int(replay_s * 1e9), limit),
        )
    ]
    over = int(database.execute("select kept_bytes from meta").fetchone()[0]) - replay_bytes
    gone = set(old)
    for seq, cost in database.execute(
        f"select seq, bytes from outbox where is_pending = 0 and {keep} order by seq limit ?", (limit,)
    ):
        if over <= 0:
            break
        gone.add(int(seq))
        over -= cost
    database.executemany("delete from outbox where seq = ?", [(seq,) for seq in sorted(gone)])
    if gone:
        database.execute("update meta set expired_seq = max(expired_seq, ?)", (max(gone),))
    return len(gone)


def rows(database: sqlite3.Connection, condition: str, parameters: tuple[object, ...], order: str) -> list[OutboxRow]:
    """Rows that meet an SQL condition. condition and order are words of this program, never input."""
    return [
        OutboxRow(
            seq=seq,
            kind=OutboxKind(kind),
            boot_id=boot_id,
            t_ns=t_ns,
            wall_ns=wall_ns,
            clock_synced=bool(clock_synced),
            body=body,
            blob=blob,
        )
        for seq, kind, boot_id, t_ns, wall_ns, clock_synced, body, blob in database.execute(
            "select seq, kind, boot_id, t_ns, wall_ns, clock_synced, body, blob from outbox"
            f" where {condition} {order}",
            parameters,
        )
    ]


def stamped(jpeg: bytes, fields: dict[str, object]) -> bytes:
    """jpeg with fields as JSON in a comment segment (COM) behind the JFIF header. ValueError if it is no JPEG."""
    if jpeg[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG: it does not start with FF D8")
    at = 2
    if jpeg[2:4] == b"\xff\xe0":  # JFIF wants its APP0 first
        at = 4 + int.from_bytes(jpeg[4:6], "big")
    comment = json.dumps(fields, separators=(",", ":")).encode()
    return jpeg[:at] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[at:]


def stamp_of(jpeg: bytes) -> dict[str, object] | None:
    """The fields that stamped() wrote; None where there are none."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and at + 4 <= len(jpeg):
        kind, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if kind == 0xFE:
            try:
                fields = json.loads(jpeg[at + 4 : at + 2 + length])
            except ValueError:
                return None
            return fields if isinstance(fields, dict) else None
        if kind == 0xDA:
            return None
        at += 2 + length
    return None
