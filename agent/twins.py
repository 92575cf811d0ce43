"""Whether another client lives under our name: what the broker says, and who spoke on our own topic. Touches nothing.

Each connection says its session on `echo`, retained, and hears what stood there before. A client with our name ends
our connection as a bad network does, but what it said stands there when we are back; a network says nothing.
"""

from __future__ import annotations

from collections import deque

from agent.model import NS_PER_S
from agent.ulid import is_ulid

ENOUGH = 3
"""Others of different sessions, or take-overs that the broker named; a broker that forgets may show an old one."""

WINDOW_S = 600.0
OWN = 8
"""Our own last sessions: one of them may stand there, not only the last."""


class Twins:
    """No clock: the time is given, boot-clock ns."""

    def __init__(self) -> None:
        self._session = ""
        self._own: deque[str] = deque(maxlen=OWN)
        self._seen: deque[tuple[int, str]] = deque(maxlen=ENOUGH)
        self._was_heard = False  # in this life: before, an earlier life of ours may stand there
        self._is_first = False
        self._is_counted = False

    def begin(self, session: str) -> None:
        """A new connection, in which we say session."""
        self._session = session
        self._own.append(session)
        self._is_first, self._is_counted = True, False

    def heard(self, payload: bytes, now_ns: int) -> None:
        """This stands on `echo`, or was said there."""
        words = payload.decode("ascii", errors="replace")
        is_first, self._is_first = self._is_first, False
        if words == self._session:
            self._was_heard = True
        elif is_first and words in self._own:
            self._seen.clear()  # nobody spoke since
        elif is_first and self._was_heard and is_ulid(words) and words not in (session for _, session in self._seen):
            self._count(words, now_ns)

    def ended(self, *, is_named: bool, now_ns: int) -> None:
        """The connection is over. is_named: the broker says that another client took our place."""
        if is_named and not self._is_counted:
            self._count("", now_ns)

    def _count(self, session: str, now_ns: int) -> None:
        self._seen.append((now_ns, session))
        self._is_counted = True

    def are_certain(self, now_ns: int) -> bool:
        return len(self._seen) == ENOUGH and now_ns - self._seen[0][0] <= WINDOW_S * NS_PER_S
