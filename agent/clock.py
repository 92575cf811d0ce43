"""The clocks: boot time, wall time and whether the wall clock can be believed. Reads the kernel, nothing else.

Only the node, the camera's pacing, storage's stamping of rows, the link and health hold a clock.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.model import NS_PER_S


class Clock(Protocol):
    """boot_ns: CLOCK_BOOTTIME, never goes back. wall_ns: UNIX time, may step at any moment."""

    @property
    def boot_id(self) -> str: ...
    def boot_ns(self) -> int: ...
    def wall_ns(self) -> int: ...
    def synced(self) -> bool: ...


class SystemClock:
    """The kernel's clocks. boot_id: the kernel's id of this boot (new each boot, the same for its processes)."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._boot_id = (root / "proc/sys/kernel/random/boot_id").read_text().strip()

    @property
    def boot_id(self) -> str:
        return self._boot_id

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        return time.time_ns()

    def synced(self) -> bool:
        """Whether a time service disciplines the kernel clock: timesyncd, chrony and ntpd all tell the kernel."""
        return _kernel_clock_state() != _TIME_ERROR


class SimulatedClock:
    """A clock that tests move by hand: move(seconds) for time, step_wall(seconds) for a wall clock that jumps."""

    def __init__(self, boot_ns: int = 100 * NS_PER_S, wall_ns: int = 1_700_000_000 * NS_PER_S) -> None:
        self._boot_ns = boot_ns
        self._wall_ns = wall_ns
        self.boot_id = "00000000-0000-4000-8000-000000000001"
        self.is_synced = True

    def boot_ns(self) -> int:
        return self._boot_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def synced(self) -> bool:
        return self.is_synced

    def move(self, seconds: float) -> None:
        self.move_to(self._boot_ns + round(seconds * NS_PER_S))

    def move_to(self, boot_ns: int) -> None:
        if boot_ns < self._boot_ns:
            raise ValueError(f"boot time never goes back: {boot_ns} < {self._boot_ns}")
        self._wall_ns += boot_ns - self._boot_ns
        self._boot_ns = boot_ns

    def step_wall(self, seconds: float) -> None:
        self._wall_ns += round(seconds * NS_PER_S)


@dataclass(frozen=True, slots=True)
class Now:
    """One reading of all clocks, handed down to rooms that hold none (the ledger, the recorder)."""

    boot_id: str
    t_ns: int
    wall_ns: int
    clock_synced: bool

    def wall(self, t_ns: int) -> int:
        """UNIX time in ns of the boot-clock moment t_ns of this boot."""
        return self.wall_ns - self.t_ns + t_ns


def read(clock: Clock) -> Now:
    return Now(clock.boot_id, clock.boot_ns(), clock.wall_ns(), clock.synced())


def wall_of(clock: Clock, t_ns: int) -> int:
    """UNIX time in ns of the boot-clock moment t_ns, as the wall clock stands now."""
    return clock.wall_ns() - clock.boot_ns() + t_ns


LAST_WALL_NS = 9_223_000_000 * NS_PER_S
"""In the year 2262, where 64 bits of nanoseconds end; the kernel lets nobody set its clock beyond 2232."""


def is_wall(wall_ns: int) -> bool:
    """Whether a UNIX time that comes from outside can be one: the ledger holds it."""
    return 0 <= wall_ns <= LAST_WALL_NS


def rfc3339(wall_ns: int) -> str:
    """UTC with milliseconds, as the contract wants it: 2026-11-22T12:00:00.123Z. Years beyond 9999 are clamped."""
    ms = min(max(wall_ns // 1_000_000, 0), 253_402_300_799_999)
    moment = dt.datetime.fromtimestamp(ms // 1000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


_LIBC = ctypes.CDLL(None)
"""Loaded once: storage asks for the clock's state at every step."""

_TIME_ERROR = 5  # adjtimex(2): "the clock is not synchronised"


def _kernel_clock_state() -> int:
    # struct timex is at most 208 bytes on every Linux port; modes=0 only reads.
    buffer = ctypes.create_string_buffer(512)
    return int(_LIBC.adjtimex(buffer))
