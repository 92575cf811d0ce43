"""The places where commands, their answers and what they ask of other threads pass. Touch memory only.

As in agent/handoffs.py: `put` never waits, every lock is a leaf, what is full refuses or replaces and counts it.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from agent.model import Frame

T = TypeVar("T")

COMMANDS = 8
"""Commands that may wait; a ninth is answered `busy`."""

CHUNKS = 2
"""Pieces of a transfer under way at once: more would fill a router's queue in front of the events."""


class Bell(Protocol):
    def ring(self) -> None: ...


class _Silent:
    def ring(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class RawCommand:
    """A message to the node as it came, not looked into. payload is empty when it was over the limit; size tells.

    verb: last level of the topic, or "config/desired". response_topic, correlation: MQTT 5 properties.
    """

    verb: str
    payload: bytes = field(repr=False)
    size: int
    retained: bool = False
    response_topic: str = ""
    correlation: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer on its way out. topic: below the node's base."""

    topic: str
    payload: bytes = field(repr=False)
    correlation: bytes = b""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a transfer or a replay. ticket: of the job that waits for its PUBACK."""

    ticket: int
    topic: str
    payload: bytes = field(repr=False)
    correlation: bytes = b""


@dataclass(frozen=True, slots=True)
class ChunkFate:
    """What became of a chunk: words is empty when the broker took it."""

    ticket: int
    words: str = ""


class CommandBox:
    """What the link heard for the dispatcher. dropped: what was not even answered.

    The newest config/desired replaces one that was not looked at yet. Commands beyond the capacity are handed on
    marked busy, as many again; beyond that they are only counted.
    """

    def __init__(self, bell: Bell | None = None, capacity: int = COMMANDS) -> None:
        self._lock = threading.Lock()
        self._bell = bell or _Silent()
        self._capacity = capacity
        self._commands: deque[RawCommand] = deque()
        self._busy: deque[RawCommand] = deque()
        self._desired: RawCommand | None = None
        self.dropped = 0

    def put(self, command: RawCommand) -> None:
        with self._lock:
            if len(self._commands) < self._capacity:
                self._commands.append(command)
            elif len(self._busy) < self._capacity:
                self._busy.append(command)
            else:
                self.dropped += 1
        self._bell.ring()

    def put_desired(self, command: RawCommand) -> None:
        with self._lock:
            self._desired = command
        self._bell.ring()

    def take(self) -> tuple[RawCommand | None, bool]:
        """The next command and whether it shall be answered `busy`."""
        with self._lock:
            if self._busy:
                return self._busy.popleft(), True
            return (self._commands.popleft() if self._commands else None), False

    def take_desired(self) -> RawCommand | None:
        with self._lock:
            desired, self._desired = self._desired, None
            return desired


class Box(Generic[T]):
    """A bounded queue from one thread to another. put: False when it is full."""

    def __init__(self, capacity: int, bell: Bell | None = None) -> None:
        self._lock = threading.Lock()
        self._bell = bell or _Silent()
        self._capacity = capacity
        self._items: deque[T] = deque()

    def wake(self, bell: Bell) -> None:
        """Ring bell from now on."""
        self._bell = bell

    def put(self, item: T) -> bool:
        with self._lock:
            if len(self._items) >= self._capacity:
                return False
            self._items.append(item)
        self._bell.ring()
        return True

    @property
    def is_full(self) -> bool:
        with self._lock:
            return len(self._items) >= self._capacity

    def take(self) -> T | None:
        with self._lock:
            return self._items.popleft() if self._items else None

    def take_all(self) -> list[T]:
        with self._lock:
            items = list(self._items)
            self._items.clear()
            return items

    def give_back(self, items: list[T]) -> None:
        """Put items back at the front, whatever the capacity: they could not be worked on."""
        with self._lock:
            self._items.extendleft(reversed(items))


class MediaBox:
    """What the commands send over the media connection: chunks of transfers, and the newest live frame.

    window: chunks that are waiting here or not yet acknowledged. put_live replaces a frame that was not sent.
    newest_ticket: of the chunk that was put last; 0 before the first.
    """

    def __init__(self, to_link: Bell | None = None, to_commands: Bell | None = None, window: int = CHUNKS) -> None:
        self._lock = threading.Lock()
        self._to_link = to_link or _Silent()
        self._to_commands = to_commands or _Silent()
        self._window = window
        self._chunks: deque[Chunk] = deque()
        self._out = 0
        self._fates: list[ChunkFate] = []
        self._live: bytes | None = None
        self.newest_ticket = 0

    def wake(self, to_link: Bell) -> None:
        """Ring to_link from now on when there is something to send."""
        self._to_link = to_link

    @property
    def has_room(self) -> bool:
        with self._lock:
            return self._out < self._window

    def put(self, chunk: Chunk) -> None:
        """Only while has_room."""
        with self._lock:
            self._out += 1
            self._chunks.append(chunk)
            self.newest_ticket = chunk.ticket
        self._to_link.ring()

    def put_live(self, jpeg: bytes) -> None:
        with self._lock:
            self._live = jpeg
        self._to_link.ring()

    def take(self) -> Chunk | None:
        with self._lock:
            return self._chunks.popleft() if self._chunks else None

    def take_live(self) -> bytes | None:
        with self._lock:
            live, self._live = self._live, None
            return live

    @property
    def is_empty(self) -> bool:
        with self._lock:
            return not self._chunks and self._live is None

    def settle(self, fate: ChunkFate) -> None:
        """The link says what became of a chunk it took."""
        with self._lock:
            self._out = max(0, self._out - 1)
            self._fates.append(fate)
        self._to_commands.ring()

    def take_fates(self) -> list[ChunkFate]:
        with self._lock:
            fates, self._fates = self._fates, []
            return fates

    def withdraw(self, ticket: int) -> None:
        """The job of this ticket is over: what still waits of it is not sent."""
        with self._lock:
            kept = deque(chunk for chunk in self._chunks if chunk.ticket != ticket)
            self._out = max(0, self._out - (len(self._chunks) - len(kept)))
            self._chunks = kept


class FrameTap:
    """The newest picture for a still or for live, kept only while somebody wants one."""

    def __init__(self, bell: Bell | None = None) -> None:
        self._lock = threading.Lock()
        self._bell = bell or _Silent()
        self._is_wanted = False
        self._frame: Frame | None = None

    def want(self, is_wanted: bool) -> None:
        with self._lock:
            self._is_wanted = is_wanted
            if not is_wanted:
                self._frame = None

    def put(self, frame: Frame) -> None:
        """From the camera's thread."""
        with self._lock:
            if not self._is_wanted:
                return
            self._frame = frame
        self._bell.ring()

    def take(self) -> Frame | None:
        with self._lock:
            frame, self._frame = self._frame, None
            return frame
