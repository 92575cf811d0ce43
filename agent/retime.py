"""Wall times written before the clock was synchronised are put right afterwards. Works in the ledger only.

The boot clock was right all along, so each moment's wall time follows from it. What the broker has not taken yet is
corrected in place; what it took already is said once more. Order and retention never depended on it.
"""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from typing import Any

from agent import outbox
from agent.clock import Now, rfc3339
from agent.ledger import Ledger
from agent.model import OutboxKind, Phase
from agent.outbox import Post

PER_CALL = 200
_EVENT_TIMES = ("start", "end", "peak_time")


def retime(ledger: Ledger, now: Now) -> int:
    """Correct up to PER_CALL messages, events and clips of now's boot; returns how many, 0 when all are right.

    now.clock_synced must hold. Open events are left: their next revision brings the right times by itself.
    """
    with ledger.transaction(now) as database:
        return _messages(database, now) + _events(database, now) + _clips(database, now)


def _shift_ns(now: Now, t_ns: int, wall_ns: int) -> int:
    """How far the wall time of a moment was wrong."""
    return now.wall(t_ns) - wall_ns


def _messages(database: sqlite3.Connection, now: Now) -> int:
    rows = database.execute(
        "select seq, kind, t_ns, wall_ns, body from outbox where is_pending = 1 and clock_synced = 0 and boot_id = ?"
        " order by seq limit ?",
        (now.boot_id, PER_CALL),
    ).fetchall()
    for seq, kind, t_ns, wall_ns, text in rows:
        body = _shifted(kind, text, _shift_ns(now, t_ns, wall_ns))
        database.execute(
            "update outbox set wall_ns = ?, clock_synced = 1, body = ? where seq = ?", (now.wall(t_ns), body, seq)
        )
        if kind == OutboxKind.EVENT:
            database.execute(
                "update events set body = ?2 where id = ?1 and rev = ?3",
                (json.loads(body)["id"], body, json.loads(body)["rev"]),
            )
    return len(rows)


def _events(database: sqlite3.Connection, now: Now) -> int:
    """Ended events: their row; and a new revision where the broker has the wrong times already."""
    rows = database.execute(
        "select id, rev, start_t_ns, last_t_ns, start_wall_ns, body from events"
        " where is_open = 0 and clock_synced = 0 and boot_id = ? order by n limit ?",
        (now.boot_id, PER_CALL),
    ).fetchall()
    for event_id, rev, start_t_ns, last_t_ns, start_wall_ns, text in rows:
        pending = database.execute(
            "select 1 from outbox where event_id = ? and kind = 'event' and is_pending = 1", (event_id,)
        ).fetchone()
        if pending is None:
            shifted = json.loads(_shifted(OutboxKind.EVENT, text, _shift_ns(now, start_t_ns, start_wall_ns)))
            rev, text = rev + 1, _text({**shifted, "rev": rev + 1})
            post = Post(OutboxKind.EVENT, last_t_ns, text, event_id=event_id, phase=Phase.END)
            outbox.append(database, post, now)
        else:
            text = database.execute("select body from events where id = ?", (event_id,)).fetchone()[0]
        database.execute(
            "update events set clock_synced = 1, start_wall_ns = ?, rev = ?, body = ? where id = ?",
            (now.wall(start_t_ns), rev, text, event_id),
        )
    return len(rows)


def _clips(database: sqlite3.Connection, now: Now) -> int:
    rows = database.execute(
        "select id, start_t_ns, end_t_ns, start_wall_ns from clips where clock_synced = 0 and boot_id = ?"
        " order by n limit ?",
        (now.boot_id, PER_CALL),
    ).fetchall()
    # All at once: a node that ran for weeks without a time service has thousands, and asking for each by its id
    # would read all of them each time.
    sent = _sent_clips(database) if rows else {}
    for clip_id, start_t_ns, end_t_ns, start_wall_ns in rows:
        database.execute(
            "update clips set start_wall_ns = ?, clock_synced = 1 where id = ?", (now.wall(start_t_ns), clip_id)
        )
        if clip_id in sent:
            text = _shifted(OutboxKind.CLIP, sent[clip_id], _shift_ns(now, start_t_ns, start_wall_ns))
            outbox.append(database, Post(OutboxKind.CLIP, end_t_ns, text), now)
    return len(rows)


def _sent_clips(database: sqlite3.Connection) -> dict[str, str]:
    """Clip id -> body of each clip's message that the broker has, with a wall time that was not sure."""
    return dict(
        database.execute(
            "select json_extract(body, '$.id'), body from outbox where kind = 'clip' and is_pending = 0"
            " and quarantined is null and clock_synced = 0"
        )
    )


def _shifted(kind: str, text: str, shift_ns: int) -> str:
    """The body with its times moved; a thumbnail's body has none."""
    body = json.loads(text)
    names = _EVENT_TIMES if kind == OutboxKind.EVENT else ("start",) if kind == OutboxKind.CLIP else ()
    for name in names:
        if body.get(name):
            body[name] = _moved(body[name], shift_ns)
    if kind == OutboxKind.EVENT and body.get("thumb"):
        body["thumb"]["time"] = _moved(body["thumb"]["time"], shift_ns)
    return _text(body)


def _moved(text: str, shift_ns: int) -> str:
    moment = dt.datetime.fromisoformat(text)
    since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return rfc3339((since // dt.timedelta(microseconds=1)) * 1000 + shift_ns)


def _text(body: dict[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)
