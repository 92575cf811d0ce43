"""The audit table: every command that came, and its answer. Works within the ledger's transactions.

The table is made at the first write, so a ledger of an older agent needs no migration and an older agent can
still read this one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from agent.clock import Now

BEGUN = "begun"
KEPT_ANSWERS = 10_000
KEPT_REFUSALS = 2_000
"""A flood of refused commands must not push out the answers that guard against doing things twice."""

_TABLE = """create table if not exists audit(
    n integer primary key autoincrement,
    client text not null,
    id text not null,
    verb text not null,
    code text not null,
    detail text not null,
    key text not null,
    counter integer not null,
    is_refusal integer not null,
    answer text,
    boot_id text not null,
    t_ns integer not null,
    wall_ns integer not null,
    clock_synced integer not null
) strict"""
_INDEX = "create unique index if not exists audit_command on audit(client, id) where is_refusal = 0"


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One command. code: ok, an error's code, or begun (nothing is known of its end). answer: JSON as it was sent.

    A row that is no refusal replaces the one of the same client and id. key, counter: of a signed command.
    """

    client: str
    id: str
    verb: str
    code: str
    detail: str = ""
    key: str = ""
    counter: int = 0
    is_refusal: bool = False
    answer: str | None = None
    wall_ns: int = 0


def write(database: sqlite3.Connection, rows: Iterable[AuditRow], now: Now) -> None:
    """Add rows and forget the oldest beyond the bounds."""
    database.execute(_TABLE)
    database.execute(_INDEX)
    for row in rows:
        database.execute(
            "insert into audit(client, id, verb, code, detail, key, counter, is_refusal, answer, boot_id, t_ns,"
            " wall_ns, clock_synced) values(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " on conflict(client, id) where is_refusal = 0 do update set code = excluded.code,"
            " detail = excluded.detail, answer = excluded.answer",
            (
                row.client,
                row.id,
                row.verb,
                row.code,
                row.detail[:300],
                row.key,
                row.counter,
                int(row.is_refusal),
                row.answer,
                now.boot_id,
                now.t_ns,
                now.wall_ns,
                int(now.clock_synced),
            ),
        )
    for is_refusal, kept in ((0, KEPT_ANSWERS), (1, KEPT_REFUSALS)):
        database.execute(
            "delete from audit where is_refusal = ?1 and n <="
            " (select n from audit where is_refusal = ?1 order by n desc limit 1 offset ?2)",
            (is_refusal, kept),
        )


def command(database: sqlite3.Connection, client: str, request_id: str) -> AuditRow | None:
    """What became of an accepted command."""
    found = _rows(database, "is_refusal = 0 and client = ? and id = ?", (client, request_id), "")
    return found[0] if found else None


def newest(database: sqlite3.Connection, limit: int) -> list[AuditRow]:
    """The newest commands, accepted and refused, oldest of them first."""
    return _rows(database, "1 = 1", (), f"order by n desc limit {int(limit)}")[::-1]


def _rows(database: sqlite3.Connection, condition: str, parameters: tuple[object, ...], order: str) -> list[AuditRow]:
    if not database.execute("select 1 from sqlite_master where name = 'audit'").fetchone():
        return []
    found = database.execute(
        "select client, id, verb, code, detail, key, counter, is_refusal, answer, wall_ns"
        f" from audit where {condition} {order}",
        parameters,
    )
    return [
        AuditRow(
            client=row[0],
            id=row[1],
            verb=row[2],
            code=row[3],
            detail=row[4],
            key=row[5],
            counter=int(row[6]),
            is_refusal=bool(row[7]),
            answer=row[8],
            wall_ns=int(row[9]),
        )
        for row in found
    ]
