"""What is usual: pixels' levels at two speeds of forgetting, their noise, tiles' restlessness. Touches nothing."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from agent.model import Plane
from agent.motion.light import Levels, Light, doubt_of, light_between, lit, opencv, spread_out, tile_means
from agent.motion.rules import CLIPPED, Rules


def rate(since_s: float, time_s: float) -> float:
    """Share of the way that a memory of time_s goes in since_s."""
    return 1 - math.exp(-since_s / time_s)


class Background:
    """Mean level of each pixel, and the bounds within which it counts as the same."""

    def __init__(self, first: Plane, rules: Rules) -> None:
        self.mean: Levels = first.astype(np.float32)
        self.tiles = tile_means(first)
        self.level = self.low = self.high = first
        self._kernel = np.ones((rules.envelope, rules.envelope), np.uint8)

    def rebound(self, margin: Plane, light: Light | None = None) -> None:
        """A pixel may look like any of its neighbours (leaves, shaking), give or take the margin of noise.

        light: the bounds shall hold for pictures in this light, per tile, rather than in the background's own.
        """
        cv2 = opencv()
        self.tiles = tile_means(self.mean)
        self.level = lit(cv2.convertScaleAbs(self.mean), light)
        self.low = cv2.subtract(cv2.erode(self.level, self._kernel), margin)
        self.high = cv2.add(cv2.dilate(self.level, self._kernel), margin)

    def relight(self, light: Light | None, share: float) -> None:
        """Follow the light by share of the way. light: from now to the background's, per tile."""
        if light is not None:
            # Clipped: one mad ratio in the dark must not blow up what was learned.
            step = 1 + share * (1 / np.clip(light.tiles, 0.5, 2.0) - 1)
            self.mean *= spread_out(step.astype(np.float32), self.mean.shape)

    def like(self, small: Plane, level: Plane, light: Light | None, doubt: Plane | None) -> Plane:
        """255 where level (small in the background's light) lies within the bounds, doubt allowed for."""
        cv2 = opencv()
        low, high = self.low, self.high
        if doubt is not None:
            low, high = cv2.subtract(low, doubt), cv2.add(high, doubt)
        like: Plane = cv2.inRange(level, low, high)
        if light is not None and light.least < 0.97:
            like = cv2.bitwise_or(like, cv2.compare(small, CLIPPED, cv2.CMP_GE))
        return like


def _around(light: Light | None, things: Plane | None) -> Light | None:
    """light, with that of the tiles under things guessed from all others: a large thing is no light."""
    if light is None or things is None:
        return light
    cv2 = opencv()
    rows, columns = light.tiles.shape
    under = cv2.resize(things, (columns, rows), interpolation=cv2.INTER_AREA)
    under = cv2.dilate(under, np.ones((3, 3), np.uint8)) > 0
    if under.all():
        return None
    tiles = np.where(under, np.median(light.tiles[~under]), light.tiles).astype(np.float32)
    return light._replace(tiles=tiles)


class Scene:
    """Both backgrounds and the noise of the pixels. A thing must differ from both.

    The fast one knows what stands there since some seconds, the slow one what stood there before: who stands
    still leaves no ghost behind. The slow one's bounds are kept in the light of the fast one.
    """

    def __init__(self, first: Plane, rules: Rules) -> None:
        self._rules = rules
        self.fast = Background(first, rules)
        self.slow = Background(first, rules)
        self.margin = first
        self._noise: Levels = np.ones(first.shape, np.float32)

    def learn(self, small: Plane, frames: int) -> None:
        """Plain means, at first."""
        cv2 = opencv()
        if frames > 2:
            off = cv2.absdiff(small, cv2.convertScaleAbs(self.fast.mean))
            cv2.accumulateWeighted(cv2.min(off, 40.0), self._noise, max(1 / (frames - 2), 0.02))
        cv2.accumulateWeighted(small, self.fast.mean, max(1 / frames, 0.02))

    def settle(self, *, sensitivity_floor: float, spread: float) -> None:
        """What was learned is the background from now on."""
        self._floor, self._spread = sensitivity_floor, spread
        self.slow.mean[:] = self.fast.mean
        self._rebound_all()

    def adopt(self, small: Plane) -> None:
        """small is the background from now on."""
        self.fast.mean[:] = small
        self.slow.mean[:] = small
        self._noise *= 1.5
        self._rebound_all()

    def update(self, small: Plane, level: Plane, held: Plane | None, since_s: float) -> None:
        """Follow the picture; slowly where held is 255."""
        cv2, rules = opencv(), self._rules
        free = None if held is None else cv2.bitwise_not(held)
        # Bounded by the margin: a thing that stops does not make its place noisy.
        off = cv2.min(cv2.absdiff(level, self.fast.level), self.margin)
        cv2.accumulateWeighted(off, self._noise, rate(since_s, rules.noise_s), mask=free)
        if held is not None:
            cv2.accumulateWeighted(small, self.fast.mean, rate(since_s, rules.absorb_s), mask=held)
        cv2.accumulateWeighted(small, self.fast.mean, rate(since_s, rules.fast_s), mask=free)
        self.margin = cv2.convertScaleAbs(self._noise, alpha=self._spread, beta=self._floor)
        self.fast.rebound(self.margin)

    def update_slow(self, small: Plane, held: Plane | None, things: Plane | None, since_s: float) -> None:
        """The same for the slow background; and both follow the light, but not that of things (cells, 255)."""
        cv2, rules, slow = opencv(), self._rules, self.slow
        free = None if held is None else cv2.bitwise_not(held)
        tiles = tile_means(small)
        for background in (self.fast, slow):
            light = _around(light_between(background.tiles, tiles, rules), things)
            background.relight(light, rate(since_s, rules.relight_s))
        if held is not None:
            cv2.accumulateWeighted(small, slow.mean, rate(since_s, rules.absorb_slow_s), mask=held)
        cv2.accumulateWeighted(small, slow.mean, rate(since_s, rules.slow_s), mask=free)
        self.fast.rebound(self.margin)
        slow.rebound(self.margin, light_between(self.fast.tiles, tile_means(slow.mean), rules))

    def is_quiet(self, small: Plane, least: float) -> bool:
        """Whether fewer than least pixels differ, light and all: most frames of most days end here."""
        cv2 = opencv()
        same = cv2.countNonZero(cv2.inRange(small, self.fast.low, self.fast.high))
        return bool(small.size - same < least)

    def unlike(self, small: Plane, level: Plane, light: Light | None, least: float) -> Plane | None:
        """255 where a pixel is unlike both backgrounds; None when fewer than least are."""
        cv2 = opencv()
        doubt = doubt_of(light, small.shape, self._rules)
        like = self.fast.like(small, level, light, doubt)
        if like.size - cv2.countNonZero(like) < least:
            return None
        unlike: Plane = cv2.bitwise_not(cv2.bitwise_or(like, self.slow.like(small, level, light, doubt)))
        return unlike if cv2.countNonZero(unlike) >= least else None

    def _rebound_all(self) -> None:
        self.margin = opencv().convertScaleAbs(self._noise, alpha=self._spread, beta=self._floor)
        self.fast.rebound(self.margin)
        self.slow.rebound(self.margin)


class Restlessness:
    """How many changed pixels are usual in each tile: leaves, rain and noise are, after some seconds.

    limits: float32, one per cell; what is above it is too many.
    """

    def __init__(self, shape: tuple[int, int], need: float, calm: float) -> None:
        self._power: Levels = np.zeros(shape, np.float32)
        self._need, self._calm = need, calm
        self.limits: Levels = np.full(shape, need, np.float32)
        self.highest = need

    def learn(self, counts: Levels | None, busy: npt.NDArray[np.bool_] | None, share: float) -> None:
        """Running mean square of the counts, smoothed over neighbours; busy tiles learn a tenth as fast, and alone,

        or what moves would raise the limits around it.
        """
        cv2, power = opencv(), self._power
        if counts is None:
            if self.highest == self._need:
                return
            power *= 1 - share
        else:
            square = counts * counts
            if busy is None:
                power += share * (cv2.blur(square, (3, 3)) - power)
            else:
                calm = cv2.blur(np.where(busy, np.float32(0), square), (3, 3))
                power += np.where(busy, 0.1 * share * (square - power), share * (calm - power))
            power[power < 0.01] = 0  # OpenCV's running sums leave tiny negatives
        self.limits = np.sqrt(power) * np.float32(self._calm) + np.float32(self._need)
        self.highest = float(self.limits.max())
