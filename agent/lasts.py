"""The newest event and picture, which stand retained at the broker: what to say there, and when to take it back.

Reads the outbox, nothing else. No clock: the time is given.
"""

from __future__ import annotations

from agent.delivery import Outbox
from agent.handoffs import Status
from agent.model import NS_PER_S, OutboxKind, OutboxRow
from agent.topics import EVENT_LAST, THUMB_LAST

LOOK_S = 1.0
"""So soon an erased picture no longer stands at the broker."""

CLEARED = Status(b"")
"""A retained message with no bytes takes away the one before it."""

_TOPICS = {OutboxKind.EVENT: EVENT_LAST, OutboxKind.THUMB: THUMB_LAST}


class Lasts:
    """Answers are topics below the base -> what shall stand there."""

    def __init__(self) -> None:
        self._newest: dict[OutboxKind, int] = {}
        self._is_told = False
        self._next_look_ns = 0

    def begin(self) -> None:
        """A new connection: all is said anew."""
        self._is_told = False

    def forget(self) -> None:
        """A new ledger: its seq numbers mean other rows."""
        self._newest.clear()
        self._is_told = False

    def sent(self, row: OutboxRow) -> dict[str, OutboxRow]:
        """row was sent: it stands as the newest of its kind from now on, unless a newer one does."""
        topic = _TOPICS.get(row.kind)
        if topic is None or row.seq <= self._newest.get(row.kind, 0):
            return {}
        self._newest[row.kind] = row.seq
        return {topic: row}

    def look(self, outbox: Outbox, now_ns: int) -> dict[str, Status | OutboxRow]:
        """Once per connection the newest of both; after an erasure the picture before, or nothing in its place."""
        if not self._is_told:
            event, thumb = outbox.newest_event(), outbox.newest_thumb()
            found: dict[str, Status | OutboxRow] = {EVENT_LAST: event} if event is not None else {}
            if event is not None:
                self._newest[OutboxKind.EVENT] = max(event.seq, self._newest.get(OutboxKind.EVENT, 0))
            self._is_told = True
            return found | self._picture(outbox, thumb)
        if now_ns < self._next_look_ns:
            return {}
        self._next_look_ns = now_ns + round(LOOK_S * NS_PER_S)
        shown = self._newest.get(OutboxKind.THUMB)
        if shown is None or not outbox.is_erased(shown):
            return {}
        return self._picture(outbox, outbox.newest_thumb())

    def _picture(self, outbox: Outbox, thumb: OutboxRow | None) -> dict[str, Status | OutboxRow]:
        if thumb is not None:
            self._newest[OutboxKind.THUMB] = thumb.seq
            return {THUMB_LAST: thumb}
        self._newest.pop(OutboxKind.THUMB, None)
        # The broker may show a picture that was erased while we were not connected.
        return {THUMB_LAST: CLEARED} if outbox.is_erased() else {}
