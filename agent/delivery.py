"""The order of delivery: which outbox row goes next and what an answer means for it. Reads the outbox, nothing else.

Rows of the kinds it is for go out in seq order. What the broker refuses holds back the rows of its kind (a broker may
deny one topic, or nobody may listen to it) and no others; after a while the oldest one held is tried alone, and once
one is taken everything goes on in seq order from the oldest. No clock: the time is given.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from agent.backoff import Backoff, Pace
from agent.model import NS_PER_S, OutboxKind, OutboxRow

PAGE = 32
PAGES_PER_CALL = 8
"""Rows that are held back are passed over in bounded pieces."""

REMEMBERED = 4096
"""Rows that were answered but that storage may not have marked yet."""

BEHIND_S = 60.0
"""So soon a row that went behind the others is tried again; each time twice as late."""


class Outbox(Protocol):
    """The rows owed to the broker, as the link reads them. Any call may raise StorageError: try again later.

    due: undelivered rows of these kinds with a higher seq than after_seq, oldest first, at most limit. newest_event,
    newest_thumb: the newest row of that kind, delivered or not. is_erased: whether the picture of row seq was
    erased, or (None) any was.
    """

    @property
    def epoch(self) -> str: ...
    def due(self, after_seq: int, limit: int, kinds: Collection[OutboxKind] = ...) -> list[OutboxRow]: ...
    def newest_event(self) -> OutboxRow | None: ...
    def newest_thumb(self) -> OutboxRow | None: ...
    def is_erased(self, seq: int | None = None) -> bool: ...


@dataclass(frozen=True, slots=True)
class Behind:
    """A row that connections ended on: it is passed over, and tried alone at retry_ns."""

    kind: OutboxKind
    retry_ns: int
    wait_s: float = BEHIND_S


class Delivery:
    """What was sent, answered and held back in one connection.

    refused: kinds held back -> the broker's words. delivered_some: this connection settled at least one row.
    before: only rows below this number may go now; None: all. behind: by number, in any connection.
    """

    def __init__(
        self, backoff: Backoff, pace: Pace | None = None, kinds: Collection[OutboxKind] = tuple(OutboxKind)
    ) -> None:
        """pace: how fast a backlog may go; None: as fast as it can."""
        self.before: int | None = None
        self._kinds = kinds
        self._backoff = backoff
        self._pace = pace or Pace(0)
        self._cursor = 0
        self._page: deque[OutboxRow] = deque()
        self._look = True
        self._in_flight: OrderedDict[int, OutboxKind] = OrderedDict()
        self._settled: OrderedDict[int, None] = OrderedDict()
        self._held: dict[OutboxKind, int] = {}
        self._retry_ns = 0
        self._probes: deque[OutboxRow] = deque()
        self._probing: set[int] = set()
        self.refused: dict[OutboxKind, str] = {}
        self.behind: dict[int, Behind] = {}
        self.delivered_some = False

    def restart(self) -> None:
        """A new connection: whatever was not answered is owed again, from the oldest on."""
        self.delivered_some = False
        self._rewind(0)
        self._in_flight.clear()
        self._held.clear()
        self._probes.clear()
        self._probing.clear()
        self.refused.clear()

    def forget(self) -> None:
        """A new ledger: its seq numbers mean other rows."""
        self.restart()
        self._settled.clear()
        self.behind.clear()

    def look(self) -> None:
        """There may be new rows."""
        self._look = True

    def _rewind(self, seq: int) -> None:
        """Read again from seq on."""
        self._cursor = max(0, min(self._cursor, seq - 1))
        self._page.clear()
        self._look = True

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def wake_ns(self) -> int | None:
        """Boot-clock time when held rows are tried again; None when none are, or their trial is under way."""
        return self._retry_ns if self._held and not self._probing and not self._probes else None

    def pause_ns(self, now_ns: int) -> int:
        """How long nothing may be sent, for the pace."""
        return self._pace.wait_ns(now_ns)

    def next(self, outbox: Outbox, now_ns: int) -> OutboxRow | None:
        """The row to send now, noted as in flight; None when there is none."""
        if self._pace.wait_ns(now_ns):
            return None
        wake_ns = self.wake_ns()
        if wake_ns is not None and now_ns >= wake_ns:
            self._begin_trial(outbox)
        row = self._probes.popleft() if self._probes else self._next_in_order(outbox)
        if row is not None:
            self._in_flight[row.seq] = row.kind
            self._pace.went(now_ns)
        return row

    # -- rows behind the others

    def put_behind(self, row: OutboxRow, now_ns: int) -> None:
        """Connections end on row: from now on those behind it go first."""
        if row.seq not in self.behind:
            self.behind[row.seq] = Behind(row.kind, now_ns + round(BEHIND_S * NS_PER_S))

    def behind_ns(self) -> int | None:
        """Boot-clock time when the next of those behind is to be tried; None: there is none."""
        return min((each.retry_ns for each in self.behind.values()), default=None)

    def due_behind(self, now_ns: int) -> int | None:
        """The number of a row behind the others whose time has come, if there is nothing else to do."""
        if self._in_flight or self._probes or (self._page and not self._is_early(self._page[0])):
            return None
        return next((seq for seq, each in self.behind.items() if now_ns >= each.retry_ns), None)

    def next_behind(self, outbox: Outbox, seq: int, now_ns: int) -> OutboxRow | None:
        """Row seq, noted as in flight; None when it is not owed any more."""
        row = next(iter(outbox.due(seq - 1, 1, self._kinds)), None)
        if row is None or row.seq != seq:
            del self.behind[seq]
            return None
        wait_s = 2 * self.behind[seq].wait_s
        self.behind[seq] = Behind(row.kind, now_ns + round(wait_s * NS_PER_S), wait_s)
        self._in_flight[seq] = row.kind
        return row

    # -- in order

    def _begin_trial(self, outbox: Outbox) -> None:
        for kind, seq in sorted(self._held.items(), key=lambda item: item[1]):
            rows = (row for row in outbox.due(seq - 1, PAGE, (kind,)) if row.kind is kind and not self._is_done(row))
            row = next(rows, None)
            if row is None:  # evicted meanwhile
                del self._held[kind]
                self.refused.pop(kind, None)
                self._rewind(seq)
            else:
                self._probes.append(row)
                self._probing.add(row.seq)

    def _next_in_order(self, outbox: Outbox) -> OutboxRow | None:
        for _ in range(PAGE * PAGES_PER_CALL):
            if not self._has_page(outbox) or self._is_early(self._page[0]):
                return None
            row = self._page.popleft()
            if row.kind not in self._held and not self._is_done(row):
                return row
        return None

    def _has_page(self, outbox: Outbox) -> bool:
        if not self._page and self._look:
            page = outbox.due(self._cursor, PAGE, self._kinds)
            self._look = len(page) == PAGE
            if page:
                self._cursor = page[-1].seq
                self._page.extend(page)
        return bool(self._page)

    def _is_early(self, row: OutboxRow) -> bool:
        return self.before is not None and row.seq >= self.before

    @property
    def has_more(self) -> bool:
        """Whether next() is worth calling again without any news."""
        if self._probes:
            return True
        return not self._is_early(self._page[0]) if self._page else self._look

    @property
    def is_drained(self) -> bool:
        """Nothing is owed but what went behind the others."""
        return not (self._in_flight or self._probes or self._page or self._look or self._held)

    def is_due(self, outbox: Outbox, now_ns: int) -> bool:
        """Whether next() may have a row: held ones are to be tried again, or some are next in order."""
        wake_ns = self.wake_ns()
        if self._probes or (wake_ns is not None and now_ns >= wake_ns):
            return True
        if self._has_page(outbox) and not self._is_early(self._page[0]):
            return True
        return self.due_behind(now_ns) is not None

    @property
    def frontier(self) -> int | None:
        """All rows below this number were answered, or are held back; None: all rows there are."""
        ahead = [*self._in_flight]
        if self._page:
            ahead.append(self._page[0].seq)
        elif self._look:
            ahead.append(self._cursor + 1)
        return min(ahead, default=None)

    def _is_done(self, row: OutboxRow) -> bool:
        return row.seq in self._settled or row.seq in self._in_flight or row.seq in self.behind

    def settled(self, seq: int) -> None:
        """The broker took it, or never will: it is not sent again, though the outbox may still show it."""
        self._in_flight.pop(seq, None)
        self.behind.pop(seq, None)
        self.delivered_some = True
        self._settled[seq] = None
        if len(self._settled) > REMEMBERED:
            self._settled.popitem(last=False)
        if seq in self._probing:
            # The way is free again: everything held goes in seq order, together.
            oldest = min(self._held.values(), default=seq)
            self._held.clear()
            self.refused.clear()
            self._probing.clear()
            self._probes.clear()
            self._backoff.reset()
            self._rewind(oldest)

    def kept(self, seq: int, words: str, now_ns: int) -> None:
        """The broker refused it: it and the later rows of its kind wait."""
        kind = self._in_flight.pop(seq)
        self.behind.pop(seq, None)
        was_trial = seq in self._probing
        self._probing.discard(seq)
        if was_trial or not self._held:
            self._retry_ns = now_ns + round(self._backoff.next_s() * NS_PER_S)
        self._held[kind] = min(seq, self._held.get(kind, seq))
        self.refused[kind] = words
