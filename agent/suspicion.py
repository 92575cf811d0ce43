"""Which message to blame when a broker ends one connection after the other, and when to give up. Touches nothing."""

from __future__ import annotations

from collections.abc import Sequence

from agent.model import OutboxRow

ALONE_DEATHS = 2
POISON_DEATHS = 5
LARGE_POISON_DEATHS = 3
"""Connections that ended on one row: after 2 it is sent alone, after 5 it is given up.

One that is larger than all this broker took so far is given up after 3: brokers hang up on what is too large, and
not all say their limit.
"""

LARGE_BYTES = 4096


class Suspicion:
    """deaths: connections in a row that ended while the same rows were unanswered."""

    def __init__(self) -> None:
        self.deaths = 0
        self._suspects: set[int] = set()
        self._largest_answered = LARGE_BYTES

    @property
    def must_go_alone(self) -> bool:
        """Rows go one by one until each suspect was answered or is certain."""
        return self.deaths >= ALONE_DEATHS

    def clear(self) -> None:
        self.deaths = 0
        self._suspects.clear()

    def answered(self, row: OutboxRow) -> None:
        """The broker read row and lives."""
        self._largest_answered = max(self._largest_answered, _size(row))
        self._suspects.discard(row.seq)
        if not self._suspects:
            self.deaths = 0

    def died(self, in_flight: Sequence[OutboxRow]) -> OutboxRow | None:
        """A connection ended with these unanswered (at least one); the row to give up, if it is certain.

        Not the oldest of them is to blame: answers to those before the guilty one get lost with the connection.
        """
        seqs = {row.seq for row in in_flight}
        still = self._suspects & seqs
        self.deaths = self.deaths + 1 if still else 1
        self._suspects = still or seqs
        row = in_flight[0]
        limit = LARGE_POISON_DEATHS if _size(row) > self._largest_answered else POISON_DEATHS
        if len(in_flight) > 1 or self.deaths < limit:
            return None
        self.clear()
        return row


def _size(row: OutboxRow) -> int:
    return len(row.body) + len(row.blob or b"")
