"""Which message to blame when a broker ends one connection after the other, and when to give up. Touches nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from agent.model import OutboxRow

ENOUGH_DEATHS = 3
"""Connections in a row that ended on one message: it no longer stands before the others.

Where the broker says that the message is wrong, it is given up then. A network that breaks again and again may look
like a broker that hangs up without a word, so in silence the message only goes behind the others, to be tried later.
"""
GIVE_UP_DEATHS = 5
"""Connections that answered something first and ended while this one message was under way alone, all in all."""

MANY_PROOFS = 10
"""Before the tries that decide about a message behind the others, doubled with each death: 40, 80, 160 answers."""

BLAMES_MESSAGE = frozenset({0x81, 0x82, 0x95, 0x99})
"""Reasons of a DISCONNECT: malformed packet, protocol error, packet too large, payload format invalid."""


@dataclass(frozen=True, slots=True)
class Blame:
    """is_final: the row is given up; else it goes behind the others."""

    row: OutboxRow
    is_final: bool


class Suspicion:
    """deaths: connections in a row that ended while the same rows were unanswered."""

    def __init__(self) -> None:
        self.deaths = 0
        self._suspects: set[int] = set()
        self._alone: Counter[int] = Counter()
        self._behind: set[int] = set()

    @property
    def must_go_alone(self) -> bool:
        """Rows go one by one, with nothing else unanswered, until each suspect was answered or is blamed."""
        return self.deaths > 0

    def proofs(self, seq: int | None = None) -> int:
        """Answers to wait for before a suspect is sent, or row seq that went behind: ever more.

        A network that breaks by itself ends such a connection sooner, again and again, than it finds just this row
        under way.
        """
        return 1 + self.deaths if seq is None else MANY_PROOFS * 2 ** self._alone[seq]

    def clear(self) -> None:
        self.deaths = 0
        self._suspects.clear()
        self._alone = Counter({seq: self._alone[seq] for seq in self._behind})

    def answered(self, row: OutboxRow) -> None:
        """The broker read row and lives."""
        self._forget(row.seq)
        self._suspects.discard(row.seq)
        if not self._suspects:
            self.clear()

    def died(self, in_flight: Sequence[OutboxRow], *, had_answers: bool, is_told: bool) -> Blame | None:
        """A connection ended with these unanswered (at least one); which of them is to blame, if that is certain.

        had_answers: it had answered something before. is_told: the broker said that a message was wrong. Not the
        oldest of them is to blame: answers to those before the guilty one get lost with the connection.
        """
        seqs = {row.seq for row in in_flight}
        still = self._suspects & seqs
        if not still:
            self.clear()
        self._suspects = still or seqs
        self.deaths += 1
        if len(in_flight) > 1:
            return None
        row = in_flight[0]
        self._alone[row.seq] += had_answers
        times = self._alone[row.seq]
        is_certain = self.deaths >= ENOUGH_DEATHS or row.seq in self._behind
        if times >= GIVE_UP_DEATHS or (is_told and is_certain and times):
            self._forget(row.seq)
            self.clear()
            return Blame(row, is_final=True)
        if is_certain and times > 1:
            self._behind.add(row.seq)
            self.clear()
            return Blame(row, is_final=False)
        return None

    def _forget(self, seq: int) -> None:
        self._behind.discard(seq)
        self._alone.pop(seq, None)

    def forget_all(self) -> None:
        """A new ledger: its numbers mean other rows."""
        self._behind.clear()
        self.clear()
