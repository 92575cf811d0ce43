"""The ladder: what a hot or underfed board gives up first, and when it takes it back. Pure; time is a number."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import NS_PER_S

ENTER_C = 77.0
"""The firmware begins to slow the processor at 80 degrees (60 on a Pi 3B+, which its own flag tells): be earlier."""
LEAVE_C = 70.0
CLIMB_S = 20.0
"""Strain must last so long for the first step and each further one: each needs time to cool anything."""
DESCEND_S = 300.0
"""Calm must last so long for each step back: frame rates that change all the time are worse than low ones."""


@dataclass(frozen=True, slots=True)
class Strain:
    """What the board says at one moment; None and False where it does not tell."""

    temperature_c: float | None = None
    too_hot: bool = False
    under_voltage: bool = False

    @property
    def is_hard(self) -> bool:
        return self.too_hot or self.under_voltage or (self.temperature_c or 0) >= ENTER_C

    @property
    def is_gone(self) -> bool:
        return not self.too_hot and not self.under_voltage and (self.temperature_c or 0) < LEAVE_C

    def in_words(self) -> str:
        parts = []
        if self.under_voltage:
            parts.append("under-voltage: a stronger power supply is needed")
        if self.too_hot or (self.temperature_c or 0) >= LEAVE_C:
            parts.append("hot" if self.temperature_c is None else f"{self.temperature_c:.0f} degrees C")
        return ", ".join(parts) or "cooling down"


@dataclass(frozen=True, slots=True)
class Ease:
    """Shares of what the settings say, 0..1: frames analysed, frames recorded, bitrate."""

    analysis: float = 1.0
    frame_rate: float = 1.0
    bitrate: float = 1.0
    words: str = ""


RUNGS = (
    Ease(),
    Ease(analysis=0.5, words="half the frames are analysed"),
    Ease(analysis=0.5, frame_rate=0.5, words="half the frame rate"),
    Ease(analysis=0.5, frame_rate=0.5, bitrate=0.5, words="half the frame rate and bitrate"),
)


class Ladder:
    """One rung up after CLIMB_S of strain, one down after DESCEND_S without; in between it stays where it is."""

    def __init__(self) -> None:
        self._rung = 0
        self._since_ns: int | None = None
        self._was: str = ""
        self._words = ""

    @property
    def ease(self) -> Ease:
        return RUNGS[self._rung]

    @property
    def trouble(self) -> str:
        """What is given up and why, in one line; empty on the ground."""
        return f"{self._words}: {self.ease.words}" if self._rung else ""

    def step(self, strain: Strain, t_ns: int) -> Ease:
        """Look once (about each second). t_ns: boot clock."""
        state = "hard" if strain.is_hard else "gone" if strain.is_gone else ""
        if state != self._was or self._since_ns is None:
            self._was, self._since_ns = state, t_ns
        lasted_s = (t_ns - self._since_ns) / NS_PER_S
        if state == "hard" and lasted_s >= CLIMB_S and self._rung < len(RUNGS) - 1:
            self._move(1, strain, t_ns)
        elif state == "gone" and lasted_s >= DESCEND_S and self._rung:
            self._move(-1, strain, t_ns)
        return self.ease

    def _move(self, by: int, strain: Strain, t_ns: int) -> None:
        self._rung += by
        self._since_ns = t_ns
        self._words = strain.in_words()
