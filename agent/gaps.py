"""A consumer's account of one stream of messages: which numbers came, which are missing. Touches nothing."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from enum import StrEnum


class Seen(StrEnum):
    """What a number means to the account: the next ones, the return of a missing one, or one that came before."""

    NEW = "new"
    FILLS = "fills"
    AGAIN = "again"


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """Missing numbers from first to last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}..{self.last}"


class Gaps:
    """The numbers of one (node, epoch). It begins with the first number it sees: what was before is not known."""

    def __init__(self) -> None:
        self.head = 0
        """The highest number known to exist; 0 before the first."""
        self._missing: list[Gap] = []

    @property
    def missing(self) -> tuple[Gap, ...]:
        return tuple(self._missing)

    def saw(self, seq: int) -> Seen:
        """Note that message seq came."""
        if seq > self.head:
            if self.head:
                self.exists(seq - 1)
            self.head = seq
            return Seen.NEW
        return Seen.FILLS if self._remove(seq, seq) else Seen.AGAIN

    def exists(self, head: int) -> Gap | None:
        """The node says that head was its newest number: whatever is above ours is missing. The new gap, if any."""
        if not self.head:
            self.head = head
            return None
        if head <= self.head:
            return None
        gap = Gap(self.head + 1, head)
        self._missing.append(gap)
        self.head = head
        return gap

    def explained(self, first: int, last: int) -> bool:
        """A `loss` message names first..last: they are not missing but lost. Whether any of them was missing."""
        return self._remove(first, last)

    def _remove(self, first: int, last: int) -> bool:
        # Gaps do not overlap, so they are sorted by their ends too.
        start = bisect_left(self._missing, first, key=lambda gap: gap.last)
        end = start
        while end < len(self._missing) and self._missing[end].first <= last:
            end += 1
        touched = self._missing[start:end]
        del self._missing[start:end]
        for gap in touched:
            if gap.first < first:
                insort(self._missing, Gap(gap.first, first - 1))
            if gap.last > last:
                insort(self._missing, Gap(last + 1, gap.last))
        return bool(touched)
