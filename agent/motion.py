"""The motion detector: one frame after another becomes a word on what moved. Touches nothing.

It looks at a picture of about 160x120. How and why: docs/MOTION.md, with the measurements behind the numbers.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.model import NS_PER_S, Box, Frame, Moment, Motion, Plane
from agent.settings import ZoneSettings
from agent.zones import Zones

Levels = npt.NDArray[np.float32]

ANALYSIS_WIDTH = 160
TILE = 8  # pixels of the analysis picture: a person 8 % of the picture tall is one tile
CELL = 4  # tiles overlap by half, so that nothing falls between two of them
BLACK = 8  # level that light multiplies from: video black is 16, less some room for noise below it
SATURATED = 228 - BLACK  # above, the sensor clips, so that light no longer multiplies

LEARN_S = 1.2
LEARN_RESTLESS_S = 4.5  # where tiles do not come to rest, learn longer
RELEARN_GAP_S = 5.0
FAST_S = 3.0
SLOW_S = 60.0
ABSORB_S = 12.0  # what stays becomes part of the fast background
ABSORB_SLOW_S = 240.0
NOISE_S = 8.0
LOOK_BACK_S = 0.35  # what moves differs from the picture of so long ago
HISTORY_S = 10.0
UPDATE_S = 0.07  # backgrounds need no more than 14 updates a second
BOUNDS_S = 0.25


@functools.cache
def _opencv() -> Any:
    """OpenCV, loaded when the first picture is looked at. Untyped: its stubs differ between 4.6 and 5.0."""
    import cv2

    return cv2


def _tile_means(picture: Plane | Levels, tiles: tuple[int, int]) -> Levels:
    """float32, tiles[0] wide: each tile's mean level, at least 1, so that ratios exist."""
    cv2 = _opencv()
    means: Levels = cv2.resize(picture.astype(np.float32), tiles, interpolation=cv2.INTER_AREA)
    return np.maximum(means, 1.0)


class _Background:
    """What is usual, at one speed of forgetting: mean level of each pixel and the bounds of what is like it."""

    def __init__(self, width: int, height: int) -> None:
        self.mean: Levels = np.zeros((height, width), np.float32)
        self.low: Plane = np.zeros((height, width), np.uint8)
        self.high: Plane = self.low
        self.tiles: Levels = np.ones((height // TILE, width // TILE), np.float32)

    def rebound(self, margin: Plane) -> None:
        """A pixel may look like any of its neighbours (leaves, shaking), give or take the margin of noise."""
        cv2 = _opencv()
        level = cv2.convertScaleAbs(self.mean)
        self.low = cv2.subtract(cv2.erode(level, None), margin)
        self.high = cv2.add(cv2.dilate(level, None), margin)
        self.tiles = _tile_means(self.mean, (self.tiles.shape[1], self.tiles.shape[0]))


class Detector:
    """Finds what moves in frames of one size, whatever the light does.

    width, height: of the frames' luma, pixels. fps: a hint, for the length of histories only; all rules go
    by t_ns. sensitivity: 0..100. confirm_frames: so many frames in a row must show it before `active`.
    """

    def __init__(
        self,
        width: int,
        height: int,
        fps: float = 15.0,
        sensitivity: int = 50,
        confirm_frames: int = 3,
        zones: Sequence[ZoneSettings] = (),
    ) -> None:
        self.width, self.height = width, height
        self._halvings = max(0, round(math.log2(max(width, height * 4 // 3) / ANALYSIS_WIDTH)))
        step = 1 << self._halvings
        # Whole tiles only: the few rows and columns that do not fill one are left out.
        self._w = width // step // TILE * TILE
        self._h = height // step // TILE * TILE
        self._crop = (self._h * step, self._w * step)
        self._cells = (self._w // CELL, self._h // CELL)
        self._tiles = (self._w // TILE, self._h // TILE)
        scale_x, scale_y = width / self._crop[1], height / self._crop[0]
        cut = [z.model_copy(update={"polygon": [(x * scale_x, y * scale_y) for x, y in z.polygon]}) for z in zones]
        self._zones = Zones(cut, self._w, self._h)
        self._zone_cells = Zones(cut, *self._cells)
        self._shares = (self._crop[1] / width, self._crop[0] / height)
        self._confirm_frames = confirm_frames
        ease = 2.0 ** ((50 - sensitivity) / 25)  # 0: four times as hard, 100: four times as easy
        self._floor = 3.0 * math.sqrt(ease)
        self._spread = 3.0 * max(1.0, math.sqrt(ease))
        self._need = 6.0 * ease  # changed pixels in one tile of 64
        self._noise_at_start = 1.0
        self._forget()

    # -- state ---------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        shape = (self._h, self._w)
        cells = (self._cells[1], self._cells[0])
        self._t0_ns: int | None = None
        self._t_ns = 0
        self._learning = True
        self._fast = _Background(self._w, self._h)
        self._slow = _Background(self._w, self._h)
        self._noise: Levels = np.full(shape, self._noise_at_start, np.float32)
        self._usual: Levels = np.zeros(cells, np.float32)
        self._swing: Levels = np.zeros(cells, np.float32)
        self._age: Levels = np.zeros(cells, np.float32)
        self._gain: Levels | None = None
        self._past: deque[tuple[int, Plane]] = deque()
        self._updated_ns = 0
        self._bounded_ns = 0
        self._seen = 0
        self._share_before = 0.0
        self._moments: deque[Moment] = deque(maxlen=self._confirm_frames)
        self._since: Moment | None = None

    # -- one frame -----------------------------------------------------------------------------------------

    def step(self, frame: Frame) -> Motion:
        """Compare one frame with what is usual here.

        frame.y: uint8 of the size given at construction; t_ns must rise (ValueError). After a gap of more
        than RELEARN_GAP_S it learns anew.
        """
        if self._t0_ns is not None:
            if frame.t_ns <= self._t_ns:
                raise ValueError(f"t_ns must rise: {frame.t_ns} after {self._t_ns}")
            if frame.t_ns - self._t_ns > RELEARN_GAP_S * NS_PER_S:
                self._forget()
        small = self._shrink(frame.y)
        if self._t0_ns is None:
            self._t0_ns = self._updated_ns = self._bounded_ns = frame.t_ns
            self._fast.mean[:] = small
            self._slow.mean[:] = small
        self._t_ns = frame.t_ns
        self._seen += 1
        return self._look(small, frame)

    def _shrink(self, luma: Plane) -> Plane:
        """Halvings average exactly, and cost a seventh of one INTER_AREA step."""
        cv2 = _opencv()
        small = luma[: self._crop[0], : self._crop[1]]
        for _ in range(self._halvings):
            small = cv2.resize(small, (small.shape[1] // 2, small.shape[0] // 2), interpolation=cv2.INTER_AREA)
        dark: Plane = cv2.subtract(small, BLACK)
        return dark

    def _look(self, small: Plane, frame: Frame) -> Motion:
        cv2 = _opencv()
        since_s = (frame.t_ns - self._updated_ns) / NS_PER_S
        if self._learning:
            self._learn(small, frame.t_ns)
            return Motion(frame.seq, frame.t_ns, score=0.0, active=False, learning=True)
        inverse, level, light_changed = self._in_light_of(self._fast.tiles, small)
        self._past.append((frame.t_ns, level))
        while len(self._past) > 2 and frame.t_ns - self._past[1][0] >= LOOK_BACK_S * NS_PER_S:
            self._past.popleft()
        changed = cv2.bitwise_not(self._within(level, self._fast, inverse, small))
        if cv2.countNonZero(changed) >= self._need:
            slow_inverse, slow_level, _ = self._in_light_of(self._slow.tiles, small)
            same = self._within(slow_level, self._slow, slow_inverse, small)
            changed = cv2.bitwise_and(changed, cv2.bitwise_not(same))
        if self._zones.counted is not None:
            changed = cv2.bitwise_and(changed, self._zones.counted)
        counts = self._count(changed)
        over = counts - (self._need + self._usual + 3.0 * self._swing)
        candidates: Plane = np.zeros(over.shape, np.uint8)
        restless = bool((over > 0).any())
        if restless:
            differs = cv2.absdiff(level, self._past[0][1])
            moved = cv2.bitwise_and(cv2.compare(differs, self._margin, cv2.CMP_GT), changed)
            moves = cv2.dilate(self._count(moved), np.ones((5, 5), np.uint8))
            candidates = ((over > 0) & (moves >= self._need * 0.5)).astype(np.uint8)
            share = float((over > 0).mean())
            if share > 0.5 and self._share_before < 0.2:
                self._relearn(small)
                return Motion(frame.seq, frame.t_ns, score=0.0, active=False, light_changed=True)
        self._share_before += 0.2 * (float((over > 0).mean()) - self._share_before)
        if restless or self._age.any():
            grown = cv2.dilate(self._age, np.ones((5, 5), np.uint8)) + 1
            self._age = np.where(candidates > 0, np.minimum(grown, 1000), np.maximum(self._age - 1, 0))
        confirmed = bool((self._age[candidates > 0] >= self._confirm_frames).any())
        boxes, excess = self._boxes(changed, candidates, over)
        score = 0.0
        if candidates.any():
            top = float(self._age.max())
            strength = 1 - math.exp(-excess / 100.0)
            score = 0.5 + 0.5 * strength if confirmed else 0.5 * min(1.0, top / self._confirm_frames)
        if since_s >= UPDATE_S:
            self._update(small, level, changed, candidates, counts, inverse, frame.t_ns, since_s)
        self._moments.append(frame.moment)
        since = None
        if confirmed:
            since = self._since or self._moments[0]
        self._since = since
        zones: tuple[str, ...] = ()
        if confirmed and self._zones.counted is not None:
            zones = self._zone_cells.touched(candidates)
        return Motion(
            frame.seq,
            frame.t_ns,
            round(score, 4),
            confirmed,
            tuple(boxes) if candidates.any() else (),
            zones,
            light_changed=light_changed,
            since=since,
        )

    def _count(self, mask: Plane) -> Levels:
        """Set pixels in each overlapping tile: float32 (cells), 0..64."""
        cv2 = _opencv()
        cells = cv2.resize(mask, self._cells, interpolation=cv2.INTER_AREA)
        counts: Levels = cv2.boxFilter(cells, cv2.CV_32F, (2, 2), normalize=False)
        counts *= CELL * CELL / 255.0
        return counts

    def _in_light_of(self, tiles: Levels, small: Plane) -> tuple[Levels | None, Plane, bool]:
        """small as it would look in the light of the background whose tile means are given."""
        cv2 = _opencv()
        ratio = tiles / _tile_means(small, self._tiles)
        inverse: Levels = cv2.medianBlur(ratio, 5)
        inverse = cv2.blur(inverse, (3, 3))
        if float(np.abs(inverse - 1).max()) < 0.004:
            return None, small, False
        up = cv2.resize(inverse, (self._w, self._h), interpolation=cv2.INTER_LINEAR)
        level = cv2.multiply(small, up, dtype=cv2.CV_8U)
        changed = float((np.abs(inverse - 1) > 0.04).mean()) > 0.3
        return inverse, level, changed

    def _within(self, level: Plane, background: _Background, inverse: Levels | None, small: Plane) -> Plane:
        """Where level lies in its bounds: 255, else 0. A dimmer picture is coarser once brightened: wider bounds."""
        cv2 = _opencv()
        low, high = background.low, background.high
        if inverse is None:
            same: Plane = cv2.inRange(level, low, high)
            return same
        if float(inverse.max()) > 1.1:
            up = cv2.resize(np.maximum(inverse - 1, 0) * 3, (self._w, self._h), interpolation=cv2.INTER_LINEAR)
            wider = up.astype(np.uint8)
            low, high = cv2.subtract(low, wider), cv2.add(high, wider)
        same = cv2.inRange(level, low, high)
        if float(inverse.min()) < 0.97:
            same |= (small >= SATURATED).astype(np.uint8) * 255
        return same

    def _relearn(self, small: Plane) -> None:
        self._fast.mean[:] = small
        self._slow.mean[:] = small
        self._age[:] = 0
        self._past.clear()
        self._share_before = 0.0
        self._rebound()

    def _learn(self, small: Plane, t_ns: int) -> None:
        cv2 = _opencv()
        assert self._t0_ns is not None
        alpha = max(1.0 / self._seen, 0.02)
        if self._seen > 2:
            off = cv2.absdiff(small.astype(np.float32), self._fast.mean)
            cv2.accumulateWeighted(np.minimum(off, 40), self._noise, max(1.0 / (self._seen - 2), 0.02))
        cv2.accumulateWeighted(small, self._fast.mean, alpha)
        elapsed_s = (t_ns - self._t0_ns) / NS_PER_S
        self._past.append((t_ns, small))
        if elapsed_s >= LEARN_S and self._seen >= 8:
            self._slow.mean[:] = self._fast.mean
            self._learning = False
            self._past.clear()
            self._rebound()

    def _rebound(self) -> None:
        self._margin = _opencv().convertScaleAbs(self._noise, alpha=self._spread, beta=self._floor)
        self._fast.rebound(self._margin)
        self._slow.rebound(self._margin)

    def _update(
        self,
        small: Plane,
        level: Plane,
        changed: Plane,
        candidates: Plane,
        counts: Levels,
        inverse: Levels | None,
        t_ns: int,
        since_s: float,
    ) -> None:
        cv2 = _opencv()
        self._updated_ns = t_ns
        learn = 1 - math.exp(-since_s / HISTORY_S)
        # a tile that moves teaches its history a tenth as fast
        rate = np.where(candidates > 0, learn * 0.1, learn).astype(np.float32)
        off = counts - self._usual
        self._usual += rate * off
        self._swing += rate * (np.abs(off) - self._swing)
        target = small
        if candidates.any():
            held = cv2.resize(candidates * 255, (self._w, self._h), interpolation=cv2.INTER_NEAREST)
            held = cv2.bitwise_and(cv2.dilate(held, np.ones((5, 5), np.uint8)), changed)
            free = cv2.bitwise_not(held)
            cv2.accumulateWeighted(small, self._fast.mean, 1 - math.exp(-since_s / ABSORB_S), mask=held)
            cv2.accumulateWeighted(small, self._slow.mean, 1 - math.exp(-since_s / ABSORB_SLOW_S), mask=held)
        else:
            free = None
        off_level = cv2.absdiff(level, cv2.convertScaleAbs(self._fast.mean))
        off_level = cv2.min(off_level, 40)
        cv2.accumulateWeighted(off_level, self._noise, 1 - math.exp(-since_s / NOISE_S), mask=free)
        cv2.accumulateWeighted(target, self._fast.mean, 1 - math.exp(-since_s / FAST_S), mask=free)
        cv2.accumulateWeighted(target, self._slow.mean, 1 - math.exp(-since_s / SLOW_S), mask=free)
        self._rebound()

    def _boxes(self, changed: Plane, candidates: Plane, over: Levels) -> tuple[list[Box], float]:
        cv2 = _opencv()
        if not candidates.any():
            return [], 0.0
        count, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(candidates, np.ones((3, 3), np.uint8)))
        found = []
        for label in range(1, count):
            members = (labels == label) & (candidates > 0)
            excess = float(over[members].sum()) / 4
            x, y, w, h = (int(v) * CELL for v in stats[label][:4])
            x0, y0, x1, y1 = max(x - CELL, 0), max(y - CELL, 0), min(x + w, self._w), min(y + h, self._h)
            bx, by, bw, bh = cv2.boundingRect(changed[y0:y1, x0:x1])
            sx, sy = self._shares[0] / self._w, self._shares[1] / self._h
            found.append((excess, Box((x0 + bx) * sx, (y0 + by) * sy, bw * sx, bh * sy)))
        found.sort(key=lambda pair: -pair[1].w * pair[1].h)
        return [box for _, box in found], max(excess for excess, _ in found)
