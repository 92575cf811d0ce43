"""What is usual: pixels' levels, their noise, tiles' restlessness. Touches nothing."""

from __future__ import annotations

import math

import numpy as np

from agent.model import Plane
from agent.motion.light import Levels, Light, doubt_of, light_between, opencv, spread_out, tile_means
from agent.motion.rules import CLIPPED, PER_PIXEL, Rules

_AROUND = np.ones((3, 3), np.uint8)


def rate(since_s: float, time_s: float) -> float:
    """Share of the way that a memory of time_s goes in since_s."""
    return 1 - math.exp(-since_s / time_s)


class Scene:
    """Mean level and noise of each pixel, and the bounds within which it counts as the same.

    tiles: mean level of each tile. margin: uint8, what noise may do.
    """

    def __init__(self, first: Plane, rules: Rules) -> None:
        self._rules = rules
        self._mean: Levels = first.astype(np.float32)
        self._noise: Levels = np.ones(first.shape, np.float32)
        self._kernel = np.ones((rules.envelope, rules.envelope), np.uint8)
        self._floor: Levels | float = 0.0
        self._spread: Levels | float = 0.0
        self._updates = 0
        self._noise_since_s = 0.0
        self._same = self._level = self._low = self._high = self.margin = first
        self.tiles = tile_means(first)

    def learn(self, small: Plane, frames: int) -> None:
        """Plain means, at first."""
        cv2 = opencv()
        if frames > 2:
            off = cv2.absdiff(small, cv2.convertScaleAbs(self._mean))
            cv2.accumulateWeighted(cv2.min(off, 40.0), self._noise, max(1 / (frames - 2), 0.02))
        cv2.accumulateWeighted(small, self._mean, max(1 / frames, 0.02))

    def settle(self, floor: Levels | float, spread: Levels | float) -> None:
        """What was learned is the background from now on. floor, spread: as in Rules; arrays where zones differ."""
        self._floor, self._spread = floor, spread
        self._set_margin()
        self._rebound()

    def adopt(self, small: Plane) -> None:
        """small is the background from now on."""
        self._mean[:] = small
        self._noise *= 1.5
        self._set_margin()
        self._rebound()

    def update(self, small: Plane, level: Plane, held: Plane | None, since_s: float) -> None:
        """Follow the picture, a fourth as fast where held (uint8 per pixel) is 255."""
        cv2, rules = opencv(), self._rules
        free = None if held is None else cv2.bitwise_not(held)
        self._updates += 1
        self._noise_since_s += since_s
        # At first each time: what was learned in a second and a half is rough.
        if self._updates % rules.noise_every == 0 or self._updates < 40:
            # Bounded by the margin: a thing that stops does not make its place noisy.
            off = cv2.min(cv2.absdiff(level, self._level), self.margin)
            cv2.accumulateWeighted(off, self._noise, rate(self._noise_since_s, rules.noise_s), mask=free)
            self._noise_since_s = 0.0
            self._set_margin()
        if self._updates % rules.absorb_every == 0:
            free = None
        cv2.accumulateWeighted(small, self._mean, rate(since_s, rules.fast_s), mask=free)
        self._rebound()

    def follow_light(self, small: Plane, things: Plane | None, since_s: float) -> None:
        """Follow the light, but not that of things (cells, 255). To be followed by an update."""
        light = _around(light_between(self.tiles, tile_means(small), self._rules), things)
        if light is not None:
            # Clipped: one mad ratio in the dark must not blow up what was learned.
            step = 1 + rate(since_s, self._rules.relight_s) * (1 / np.clip(light.tiles, 0.5, 2.0) - 1)
            self._mean *= spread_out(step.astype(np.float32), self._mean.shape)

    def is_quiet(self, small: Plane, least: float) -> bool:
        """Whether fewer than least pixels differ, light and all: most frames of most days end here."""
        cv2 = opencv()
        self._same = cv2.inRange(small, self._low, self._high)
        return bool(small.size - cv2.countNonZero(self._same) < least)

    def unlike(self, small: Plane, level: Plane, light: Light | None, least: float) -> Plane | None:
        """255 where a pixel is unlike the background, after is_quiet; None when fewer than least are.

        level: small in the background's light, which is `light` times that of small.
        """
        cv2 = opencv()
        same = self._same
        if light is not None:
            low, high = self._low, self._high
            doubt = doubt_of(light, small.shape, self._rules)
            if doubt is not None:
                low, high = cv2.subtract(low, doubt), cv2.add(high, doubt)
            same = cv2.inRange(level, low, high)
            if light.least < 0.97:
                same = cv2.bitwise_or(same, cv2.compare(small, CLIPPED, cv2.CMP_GE))
        return cv2.bitwise_not(same) if same.size - cv2.countNonZero(same) >= least else None

    def _set_margin(self) -> None:
        cv2 = opencv()
        if isinstance(self._spread, float):
            self.margin = cv2.convertScaleAbs(self._noise, alpha=self._spread, beta=self._floor)
        else:
            self.margin = cv2.convertScaleAbs(self._noise * self._spread + self._floor)

    def _rebound(self) -> None:
        """A pixel may look like any of its neighbours (leaves, shaking), give or take the margin of noise."""
        cv2 = opencv()
        self._level = cv2.convertScaleAbs(self._mean)
        self._low = cv2.subtract(cv2.erode(self._level, self._kernel), self.margin)
        self._high = cv2.add(cv2.dilate(self._level, self._kernel), self.margin)
        self.tiles = tile_means(self._level)


def _around(light: Light | None, things: Plane | None) -> Light | None:
    """light, with that of the tiles under things guessed from all others: a large thing is no light."""
    if light is None or things is None:
        return light
    cv2 = opencv()
    rows, columns = light.tiles.shape
    under = cv2.resize(things, (columns, rows), interpolation=cv2.INTER_AREA)
    under = cv2.dilate(under, _AROUND) > 0
    if under.all():
        return None
    tiles = np.where(under, np.median(light.tiles[~under]), light.tiles).astype(np.float32)
    return light._replace(tiles=tiles)


class Restlessness:
    """How many changed pixels are usual in each tile: leaves, rain and noise are, after some seconds.

    limits: uint8, one per cell, in counts (PER_PIXEL to a pixel); what is above it is too many. is_used:
    whether any tile takes clearly more than it would if nothing ever moved in it.
    """

    def __init__(self, need: Levels, calm: float) -> None:
        self._power: Levels = np.zeros(need.shape, np.float32)
        self._calm, self._least = calm, float(need.min())
        self._bytes: Plane = np.minimum(need * np.float32(PER_PIXEL) + np.float32(0.5), 255).astype(np.uint8)
        self._set_limits()

    def learn(self, counts: Plane | None, busy: Plane | None, share: float) -> None:
        """Running mean square of the counts, smoothed over neighbours; busy tiles learn a tenth as fast, and alone,

        or what moves would raise the limits around it.
        """
        cv2, power = opencv(), self._power
        if counts is None:
            if not self._is_raised:
                return
            power *= 1 - share
        else:
            square = cv2.multiply(counts, counts, scale=1 / PER_PIXEL**2, dtype=cv2.CV_32F)
            if busy is None:
                cv2.accumulateWeighted(cv2.blur(square, (3, 3)), power, share)
            else:
                calm = cv2.bitwise_not(busy)
                cv2.accumulateWeighted(cv2.blur(cv2.copyTo(square, calm), (3, 3)), power, share, mask=calm)
                cv2.accumulateWeighted(square, power, 0.1 * share, mask=busy)
        self._set_limits()

    def _set_limits(self) -> None:
        cv2 = opencv()
        # OpenCV's running sums leave tiny negatives, and what is below a tenth of a pixel is none.
        usual = cv2.sqrt(cv2.threshold(self._power, 0.01, 0, cv2.THRESH_TOZERO)[1])
        more = cv2.convertScaleAbs(usual, alpha=self._calm * PER_PIXEL)
        highest = cv2.minMaxLoc(more)[1] / PER_PIXEL
        self._is_raised = highest > 0
        self.is_used = highest >= 0.3 * self._least
        self.limits: Plane = cv2.add(more, self._bytes)
