"""The places where one thread leaves something for another. Touch memory only; every lock is a leaf.

`put` never waits; `take` may. What is full replaces or discards, and counts it.
"""

from __future__ import annotations

import os
import select
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Literal

from agent.model import NS_PER_S, Ack, Event, Frame, Packet, Phase


class Doorbell:
    """Wakes the one thread that waits on it. Rings before the wait count."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float) -> None:
        """Return when rung since the last wait, or after timeout_s (0 never blocks)."""
        self._event.wait(timeout_s)
        self._event.clear()


class SelectableDoorbell(Doorbell):
    """A doorbell that select() can wait on beside sockets: an eventfd. ring() from any thread, also after close()."""

    def __init__(self) -> None:
        super().__init__()
        # The lock keeps a late ring from writing into whatever got the closed descriptor's number.
        self._lock = threading.Lock()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """For select(); -1 once closed."""
        return self._fd

    def ring(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> bool:
        """Whether it was rung since the last clear."""
        with self._lock:
            try:
                return self._fd >= 0 and os.eventfd_read(self._fd) > 0
            except BlockingIOError:
                return False

    def wait(self, timeout_s: float) -> None:
        if self._fd >= 0:
            select.select([self._fd], [], [], max(timeout_s, 0.0))
            self.clear()

    def close(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


class FrameSlot:
    """One place for the newest frame. skipped: frames overwritten before vision took them."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._frame: Frame | None = None
        self._is_interrupted = False
        self.skipped = 0

    def put(self, frame: Frame) -> None:
        with self._ready:
            if self._frame is not None:
                self.skipped += 1
            self._frame = frame
            self._ready.notify()

    def take(self, wait_s: float) -> Frame | None:
        """The newest frame, waiting up to wait_s for one; None if none came."""
        with self._ready:
            if self._frame is None and not self._is_interrupted:
                self._ready.wait(wait_s)
            frame, self._frame = self._frame, None
            return frame

    def interrupt(self) -> None:
        """The camera was lost: what was going on has ended, and what comes next is another start."""
        with self._ready:
            self._is_interrupted = True
            self._ready.notify()

    def take_interruption(self) -> bool:
        """Whether the camera was lost since the last call."""
        with self._ready:
            was, self._is_interrupted = self._is_interrupted, False
            return was


class PacketRing:
    """The newest encoded packets in whole GOPs: pre-roll and stall budget.

    It keeps at least keep_s seconds (None: as much as fits), but never more than capacity_bytes. Positions count
    packets since the ring was made, so a reader's position stays true while old GOPs leave. dropped_packets:
    packets before the first keyframe, of no use.
    """

    def __init__(self, capacity_bytes: int, doorbell: Doorbell | None = None, keep_s: float | None = None) -> None:
        if capacity_bytes <= 0:
            raise ValueError(f"capacity_bytes must be positive, not {capacity_bytes}")
        self._lock = threading.Lock()
        self._packets: deque[Packet] = deque()
        self._first = 0  # position of _packets[0], always a keyframe
        self._keys: deque[int] = deque()  # positions of the keyframes in _packets
        self._capacity_bytes = capacity_bytes
        self._keep_ns = None if keep_s is None else round(keep_s * NS_PER_S)
        self._bytes = 0
        self._doorbell = doorbell
        self.dropped_packets = 0

    def put(self, packet: Packet) -> None:
        with self._lock:
            if not self._packets and not packet.is_key:
                self.dropped_packets += 1
                return
            if packet.is_key:
                self._keys.append(self._first + len(self._packets))
            self._packets.append(packet)
            self._bytes += len(packet.data)
            while self._second_gop_is_old(packet.t_ns):
                self._drop_oldest_gop()
            while self._bytes > self._capacity_bytes:
                self._drop_oldest_gop()
        if self._doorbell is not None:
            self._doorbell.ring()

    def _second_gop_is_old(self, now_ns: int) -> bool:
        """Whether what is asked for is there without the oldest GOP, so that this one may go."""
        if self._keep_ns is None or len(self._keys) < 2:
            return False
        return now_ns - self._packets[self._keys[1] - self._first].t_ns >= self._keep_ns

    def _drop_oldest_gop(self) -> None:
        """Also the one that is still growing, when it alone is over the capacity."""
        self._keys.popleft()
        until = self._keys[0] if self._keys else self._first + len(self._packets)
        while self._first < until:
            self._bytes -= len(self._packets.popleft().data)
            self._first += 1

    @property
    def end(self) -> int:
        """The position that the next packet will have."""
        with self._lock:
            return self._first + len(self._packets)

    @property
    def bytes(self) -> int:
        with self._lock:
            return self._bytes

    def position_before(self, pts_ns: int) -> int:
        """Position of the newest keyframe shown at or before pts_ns; the oldest one kept if all are younger."""
        with self._lock:
            found = self._first
            for position in self._keys:
                if self._packets[position - self._first].pts_ns > pts_ns:
                    break
                found = position
            return found

    def read(self, position: int, limit: int) -> tuple[list[Packet], int, bool]:
        """Up to limit packets from position on; the position after them; whether packets between were lost."""
        with self._lock:
            start = max(position, self._first)
            offset = start - self._first
            packets = [self._packets[i] for i in range(offset, min(offset + limit, len(self._packets)))]
            return packets, start + len(packets), start > position


class EventBoard:
    """The newest state of each event that storage has not taken yet.

    A newer state replaces an older one of the same event, so nothing is lost by coalescing. Beyond
    capacity the oldest ended event leaves and is counted in lost, which should stay 0 for ever.
    """

    def __init__(self, capacity: int = 64, doorbell: Doorbell | None = None) -> None:
        self._lock = threading.Lock()
        self._events: OrderedDict[str, Event] = OrderedDict()
        self._capacity = capacity
        self._doorbell = doorbell
        self.lost = 0

    def put(self, event: Event) -> None:
        with self._lock:
            self._events[event.id] = event
            if len(self._events) > self._capacity:
                ended = next((i for i, e in self._events.items() if e.phase is Phase.END), None)
                self._events.pop(ended if ended is not None else next(iter(self._events)))
                self.lost += 1
        if self._doorbell is not None:
            self._doorbell.ring()

    def take(self) -> list[Event]:
        """All waiting states, oldest event first. Never waits: storage waits on its doorbell."""
        with self._lock:
            events = list(self._events.values())
            self._events.clear()
            return events

    def give_back(self, events: list[Event]) -> None:
        """Return states that could not be stored; a newer state that came meanwhile wins."""
        with self._lock:
            newer = self._events
            self._events = OrderedDict((event.id, event) for event in events)
            for event_id, event in newer.items():
                self._events[event_id] = event


class AckBox:
    """What the broker said of outbox rows, for storage to write down."""

    def __init__(self, doorbell: Doorbell | None = None) -> None:
        self._lock = threading.Lock()
        self._acks: list[Ack] = []
        self._doorbell = doorbell

    def put(self, ack: Ack) -> None:
        with self._lock:
            self._acks.append(ack)
        if self._doorbell is not None:
            self._doorbell.ring()

    def take(self) -> list[Ack]:
        with self._lock:
            acks, self._acks = self._acks, []
            return acks


@dataclass(frozen=True, slots=True)
class Status:
    """A retained truth of the moment (motion ON, health): the newest replaces what was not sent yet."""

    payload: bytes
    qos: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the node says of itself in one word, and why in plain words (empty when online)."""

    state: Literal["online", "degraded"] = "online"
    reasons: tuple[str, ...] = ()


class StatusBoard:
    """The newest retained states by topic below the node's base, and the verdict; the link sends what changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verdict = Verdict()
        self._all: dict[str, Status] = {}
        self._changed: dict[str, Status] = {}
        self._on_change: Doorbell | None = None

    def wake(self, doorbell: Doorbell) -> None:
        """Ring doorbell from now on whenever a state is put."""
        self._on_change = doorbell

    def put(self, topic: str, status: Status) -> None:
        with self._lock:
            self._all[topic] = status
            self._changed[topic] = status
        if self._on_change is not None:
            self._on_change.ring()

    def take(self) -> dict[str, Status]:
        """What changed since the last take."""
        with self._lock:
            changed, self._changed = self._changed, {}
            return changed

    def again(self, topic: str) -> None:
        """Send what stands at topic once more, as if it had changed; nothing where nothing stands."""
        with self._lock:
            status = self._all.get(topic)
            if status is not None:
                self._changed[topic] = status
        if status is not None and self._on_change is not None:
            self._on_change.ring()

    def all(self) -> dict[str, Status]:
        """Everything, for a new connection; counts as taken."""
        with self._lock:
            self._changed.clear()
            return dict(self._all)

    def put_verdict(self, verdict: Verdict) -> None:
        """What `state` shall say; rings only when it differs from the last one."""
        with self._lock:
            changed, self._verdict = verdict != self._verdict, verdict
        if changed and self._on_change is not None:
            self._on_change.ring()

    def verdict(self) -> Verdict:
        with self._lock:
            return self._verdict
