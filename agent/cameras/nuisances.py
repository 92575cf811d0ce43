"""What fools detectors, as data: snow, insects, shaking, hunting exposure, headlights, fans, things moved. Pure.

Times are scene seconds, lengths shares of the picture, as in scene.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ThingLook = Literal["car", "chair", "parcel"]


@dataclass(frozen=True, slots=True)
class Snow:
    """Snow from at_s for for_s; flakes: in view at a time; speed: of the fastest, picture heights per second."""

    at_s: float
    for_s: float
    flakes: int = 150
    speed: float = 0.35


@dataclass(frozen=True, slots=True)
class Insects:
    """Insects and drops before an infrared camera from at_s for for_s, per_s of them on average, at uneven intervals;
    size: of an ordinary one across its way, in widths; one in eight is near the lens, large and faint.
    """

    at_s: float
    for_s: float
    per_s: float = 0.35
    size: float = 0.02


@dataclass(frozen=True, slots=True)
class Shake:
    """The camera's pole sways in the wind from at_s for for_s: by up to sway, hz times a second."""

    at_s: float
    for_s: float
    sway: float = 0.008
    hz: float = 1.3

    def by(self, t_s: float) -> tuple[float, float]:
        """Where the camera looks, in shares of the picture from its usual direction."""
        since = t_s - self.at_s
        if not 0 <= since < self.for_s:
            return 0.0, 0.0
        swell = min(1.0, since / 0.5, (self.for_s - since) / 0.5)
        turn = 2 * math.pi * self.hz * since
        dx = 0.6 * math.sin(turn) + 0.4 * math.sin(1.7 * turn)
        dy = 0.4 * math.sin(1.3 * turn) + 0.2 * math.sin(2.3 * turn)
        return self.sway * swell * dx, self.sway * swell * dy


@dataclass(frozen=True, slots=True)
class Hunt:
    """The exposure control swings about the right exposure from at_s for for_s, by up to stops, once in period_s."""

    at_s: float
    for_s: float
    stops: float = 0.5
    period_s: float = 1.5

    def swing(self, t_s: float) -> float:
        """How many stops too bright the picture is."""
        since = t_s - self.at_s
        return self.stops * math.sin(2 * math.pi * since / self.period_s) if 0 <= since < self.for_s else 0.0


@dataclass(frozen=True, slots=True)
class Headlights:
    """The light of a car that is not in view travels over the place within for_s; brightness: what it adds."""

    at_s: float
    for_s: float = 2.5
    from_x: float = -0.4
    to_x: float = 1.4
    y: float = 0.6
    reach: float = 0.22
    brightness: float = 1.5

    def middle(self, t_s: float) -> float | None:
        """x of its middle; None while there is none."""
        done = (t_s - self.at_s) / self.for_s
        return self.from_x + (self.to_x - self.from_x) * done if 0 <= done < 1 else None


@dataclass(frozen=True, slots=True)
class Fan:
    """A fan whose blades turn before what is behind, all day; radius: share of the picture's height."""

    x: float
    y: float
    radius: float = 0.1
    turns_per_s: float = 1.7
    blades: int = 3


@dataclass(frozen=True, slots=True)
class Thing:
    """A car, chair or parcel that stands at x from at_s for for_s, is moved to to_x at moves_at_s, on to away_x at
    leaves_at_s; speed: while it moves. Beyond 0..1 it is out of sight; that is how a car comes and goes.
    """

    at_s: float = 0.0
    for_s: float = math.inf
    look: ThingLook = "chair"
    x: float = 0.3
    feet_y: float = 0.9
    height: float = 0.25
    moves_at_s: float = math.inf
    to_x: float = 0.6
    leaves_at_s: float = math.inf
    away_x: float = 1.4
    speed: float = 0.2

    def place(self, t_s: float) -> tuple[float, bool] | None:
        """x and whether it moves; None when not there."""
        if not 0 <= t_s - self.at_s < self.for_s:
            return None
        x, moving = self.x, False
        for start_s, goal in ((self.moves_at_s, self.to_x), (self.leaves_at_s, self.away_x)):
            if t_s >= start_s:
                way = min(self.speed * (t_s - start_s), abs(goal - x))
                moving = way < abs(goal - x)
                x += math.copysign(way, goal - x)
        return x, moving
