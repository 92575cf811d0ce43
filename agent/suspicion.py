"""Which message to blame when a broker ends one connection after the other, and when to give up. Touches nothing."""

from __future__ import annotations

from collections.abc import Sequence

from agent.model import OutboxRow

POISON_DEATHS = 5
"""Connections that answered something before and ended while one row alone was in flight: then it is given up.

So many, because a network that breaks again and again looks the same.
"""
TOLD_DEATHS = 3
"""Enough where the broker says that the message is wrong, or speaks MQTT 3.1.1, in which it could not say so."""

BLAMES_MESSAGE = frozenset({0x81, 0x82, 0x95, 0x99})
"""Reasons of a DISCONNECT: malformed packet, protocol error, packet too large, payload format invalid."""


class Suspicion:
    """deaths: connections in a row that ended while the same rows were unanswered."""

    def __init__(self) -> None:
        self.deaths = 0
        self._certain = 0
        self._suspects: set[int] = set()

    @property
    def must_go_alone(self) -> bool:
        """Rows go one by one, with nothing else unanswered, until each suspect was answered or is certain."""
        return self.deaths > 0

    def clear(self) -> None:
        self.deaths = self._certain = 0
        self._suspects.clear()

    def answered(self, row: OutboxRow) -> None:
        """The broker read row and lives."""
        self._suspects.discard(row.seq)
        if not self._suspects:
            self.clear()

    def died(self, in_flight: Sequence[OutboxRow], *, had_answers: bool, is_told: bool) -> OutboxRow | None:
        """A connection ended with these unanswered (at least one); the row to give up, if it is certain.

        had_answers: it had answered something before. is_told: it ended as TOLD_DEATHS says. Not the oldest of them
        is to blame: answers to those before the guilty one get lost with the connection.
        """
        seqs = {row.seq for row in in_flight}
        still = self._suspects & seqs
        if not still:
            self.clear()
        self._suspects = still or seqs
        self.deaths += 1
        self._certain += len(in_flight) == 1 and had_answers
        is_enough = self.deaths >= TOLD_DEATHS if is_told else self._certain >= POISON_DEATHS
        if not is_enough or not self._certain or len(in_flight) > 1:
            return None
        self.clear()
        return in_flight[0]
