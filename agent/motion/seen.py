"""What the detector keeps of frames: for comparison, and for pictures of its stages. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from agent.model import Plane
from agent.motion.light import Levels, Light
from agent.motion.rules import PER_PIXEL


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the detector saw on its last frame, for pictures of its stages. Arrays are its own: look, don't touch.

    small, level: the analysis picture less BLACK, and the same in the light of the background. changed: 255 where
    a pixel is unlike the background. counts, limits: changed pixels per overlapping tile, and what is too many.
    candidates: 255 where too many changed and something moves. light: what level was multiplied by, per tile.
    """

    small: Plane
    level: Plane
    light: Light | None
    changed: Plane | None
    _counts: Plane | None
    _limits: Plane
    _candidates: Plane | None

    @property
    def counts(self) -> Levels | None:
        return None if self._counts is None else self._counts * np.float32(1 / PER_PIXEL)

    @property
    def limits(self) -> Levels:
        return self._limits * np.float32(1 / PER_PIXEL)

    @property
    def candidates(self) -> Plane | None:
        return None if self._candidates is None else (self._candidates > 0) * np.uint8(255)


class Look(NamedTuple):
    """A frame kept for comparison. means: of its tiles, where they were needed."""

    t_ns: int
    small: Plane
    means: Levels | None
    level: Plane
    light: Light | None
