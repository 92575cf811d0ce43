"""The detector itself: from frame to word. Touches nothing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agent.model import NS_PER_S, Frame, Moment, Motion, Plane
from agent.motion.background import Restlessness, Scene, rate
from agent.motion.light import (
    ALIKE,
    Levels,
    LightChange,
    doubt_of,
    gain_of,
    is_like,
    light_between,
    lit,
    opencv,
    tile_means,
)
from agent.motion.rules import ANALYSIS_WIDTH, AT_FIRST, BLACK, CELL, FORGET_GAP_S, PER_PIXEL, TILE, Rules
from agent.motion.seen import Look, Seen
from agent.motion.things import things
from agent.settings import ZoneSettings
from agent.zones import Zones, fill

_NEAR = np.ones((5, 5), np.uint8)
_INSIDE = np.ones((9, 9), np.uint8)
_ACROSS = np.ones((1, 3), np.uint8)
MANY = 1000


class Counts(NamedTuple):
    """Changed pixels per overlapping tile, uint8, PER_PIXEL for each; over: how many more than usual.

    once: all. twice: that had changed at the look before too: a thing, not rain. solid: of what is 3 pixels wide: a
    thing, not streaks and flakes. None where nothing falls and leaves are still: there the first says all.
    """

    once: Plane
    twice: Plane | None
    solid: Plane | None
    over: Plane


class Detector:
    """Finds what moves in frames of one size, whatever the light does.

    width, height: of the frames' luma, pixels. sensitivity: 0..100. confirm_frames: so many frames in a row
    must show the movement before `active`. All else goes by t_ns, so that 5 and 30 frames per second are alike.
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        sensitivity: int = 50,
        confirm_frames: int = 3,
        zones: Sequence[ZoneSettings] = (),
        rules: Rules | None = None,
    ) -> None:
        self.width, self.height = width, height
        self._seen: Seen | None = None
        self._rules = rules or Rules()
        self._active_ns = round(self._rules.active_s * NS_PER_S)
        self._idle_ns = round(self._rules.idle_s * NS_PER_S)
        self._stir_ns = round(self._rules.stir_s * NS_PER_S)
        self._halvings = max(0, round(math.log2(max(width, height * 4 // 3) / ANALYSIS_WIDTH)))
        step = 1 << self._halvings
        # Whole tiles only: the few columns and rows that do not fill one are left out.
        self._w = max(width // step // TILE, 1) * TILE
        self._h = max(height // step // TILE, 1) * TILE
        self._crop = (min(self._h * step, height), min(self._w * step, width))
        self._cells = (self._w // CELL, self._h // CELL)
        self._pixel = (self._crop[1] / width / self._w, self._crop[0] / height / self._h)
        ours = [
            zone.model_copy(
                update={"polygon": [(x * width / self._crop[1], y * height / self._crop[0]) for x, y in zone.polygon]}
            )
            for zone in zones
        ]
        self._counted = Zones(ours, self._w, self._h).counted
        self._zones = Zones(ours, *self._cells)
        self._confirm = min(confirm_frames, 250)
        self._one = np.ones((self._cells[1], self._cells[0]), np.uint8)
        self._two = self._one * 2
        # Kept, since memory of this size would be asked of the system and given back for each frame.
        self._halves = [
            np.empty((self._crop[0] >> n, self._crop[1] >> n), np.uint8) for n in range(1, self._halvings + 1)
        ]
        self._black = np.full((self._h, self._w), BLACK, np.uint8)
        self._set_sensitivity(sensitivity, ours)
        self._t_ns: int | None = None

    def _set_sensitivity(self, sensitivity: int, zones: Sequence[ZoneSettings]) -> None:
        rules = self._rules
        # 0: four times as many changed pixels and twice the contrast; 100: a quarter and half.
        ease = 2.0 ** ((50 - sensitivity) / 25)
        self._need: Levels = np.full((self._cells[1], self._cells[0]), rules.need * ease, np.float32)
        self._floor: Levels | float = rules.floor * math.sqrt(ease)
        self._spread: Levels | float = rules.spread * max(1.0, math.sqrt(ease))
        own = [
            (zone.sensitivity, zone.polygon)
            for zone in zones
            if zone.kind == "detect" and zone.sensitivity is not None
        ]
        if own:
            eases = np.full((self._h, self._w), ease, np.float32)
            # The greatest last, so that it holds where zones overlap.
            for wanted, polygon in sorted(own):
                zone_ease = 2.0 ** ((50 - wanted) / 25)
                eases[fill(polygon, self._w, self._h) > 0] = zone_ease
                self._need[fill(polygon, *self._cells) > 0] = rules.need * zone_ease
            self._floor = (rules.floor * np.sqrt(eases)).astype(np.float32)
            self._spread = (rules.spread * np.maximum(1, np.sqrt(eases))).astype(np.float32)
        self._least = float(self._need.min())
        # Bytes: at least so many count.
        enough = np.ceil(self._need * np.float32(rules.moves * PER_PIXEL))
        self._moves_least: Plane = np.clip(enough, 1 if rules.moves else 0, 255).astype(np.uint8)

    def _begin(self, small: Plane, t_ns: int) -> None:
        """Forget everything; small is the first frame of a new scene."""
        self._t0_ns = self._updated_ns = self._light_updated_ns = t_ns
        self._learning = True
        self._is_known = False
        self._frames = self._updates = 0
        self._counts_since_s = 0.0
        self._scene = Scene(small, self._rules)
        self._light_change = LightChange(self._rules, t_ns)
        self._once = Restlessness(self._need, self._rules.calm_once)
        self._twice = Restlessness(self._need, self._rules.calm)
        self._solid = Restlessness(self._need, self._rules.calm_solid)
        self._age: Plane = np.zeros_like(self._one)
        self._has_ages = False
        self._restless = 0.0
        self._trusted_until_ns = 0
        self._shadow_ns, self._is_doubted = t_ns - NS_PER_S, False
        self._past: deque[Look] = deque()
        self._changes: deque[tuple[int, Plane | None]] = deque()
        self._moments: deque[Moment] = deque(maxlen=self._confirm)
        self._since: Moment | None = None
        self._last = Motion(0, t_ns, score=0.0, active=False)
        self._frames_passed, self._passes_most, self._pass_until_ns = 1, 0, t_ns

    def step(self, frame: Frame) -> Motion:
        """Compare one frame with what is usual here.

        frame.y: uint8 of the size given at construction (ValueError); t_ns must rise (ValueError).
        """
        if frame.y.shape != (self.height, self.width):
            raise ValueError(f"a frame of {frame.y.shape[1]}x{frame.y.shape[0]}, not {self.width}x{self.height}")
        now = frame.t_ns
        if self._t_ns is None or now - self._t_ns > FORGET_GAP_S * NS_PER_S:
            small = self._shrink(frame.y)
            self._begin(small, now)
        elif now <= self._t_ns:
            raise ValueError(f"t_ns must rise: {now} after {self._t_ns}")
        elif now < self._pass_until_ns and self._frames_passed <= self._passes_most:
            self._t_ns = now
            self._frames_passed += 1
            last = self._last
            return Motion(frame.seq, now, last.score, last.active, last.boxes, last.zones, since=last.since)
        else:
            small = self._shrink(frame.y)
        self._t_ns = now
        self._frames += 1
        if self._is_known:
            self._last = self._look(small, frame)
            self._plan(now)
            return self._last
        self._scene.learn(small, self._frames)
        if now - self._t0_ns >= self._rules.learn_s * NS_PER_S and self._frames >= 4:
            self._scene.settle(self._floor, self._spread)
            self._updated_ns = self._light_updated_ns = now
            self._is_known = True
        return Motion(frame.seq, now, score=0.0, active=False, learning=True)

    def _plan(self, now: int) -> None:
        """How many of the next frames are so near to this one that they may be taken to show the same."""
        self._frames_passed = 1
        self._pass_until_ns = now
        if self._since is not None:
            self._pass_until_ns = now + self._active_ns
            self._passes_most = MANY
        elif not (self._has_ages or self._learning or self._light_change.holds(now)):
            # While nothing stirs. No more than that: what is new must be confirmed within three frames.
            self._pass_until_ns = now + self._idle_ns
            self._passes_most = 2
        elif not self._learning:
            self._pass_until_ns = now + self._stir_ns
            self._passes_most = 1

    def _shrink(self, y: Plane) -> Plane:
        """The luma halved, whole tiles of it, less BLACK."""
        cv2 = opencv()
        y = y[: self._crop[0], : self._crop[1]]
        for half in self._halves:
            y = cv2.resize(y, half.shape[::-1], dst=half, interpolation=cv2.INTER_AREA)
        if y.shape != self._black.shape:
            # Smaller than one tile.
            y = cv2.resize(y, (self._w, self._h), interpolation=cv2.INTER_AREA)
        small: Plane = cv2.subtract(y, self._black)
        return small

    @property
    def seen(self) -> Seen | None:
        """What was seen on the last frame looked at; None before the first."""
        return self._seen

    def _look(self, small: Plane, frame: Frame) -> Motion:
        now, scene = frame.t_ns, self._scene
        before = self._changed_before(now)
        if scene.is_quiet(small, self._least):
            return self._rest(small, frame)
        if self._may_be_as_usual(now):
            still = self._changed(small)
            if still is None:
                return self._rest(small, frame)
            few = self._count_all(still, before)
            if not opencv().countNonZero(few.over):
                return self._rest(small, frame, still, few)
        means = tile_means(small)
        ratio = scene.relight(small, means)
        level, light = scene.level, scene.light
        changed = self._changed(small)
        self._remember(now, small, means, changed)
        counts: Counts | None = None
        candidates = None
        restless = moving_share = 0.0
        if changed is not None:
            counts = self._count_all(changed, before)
            restless = np.count_nonzero(counts.over) / counts.over.size
        self._light_change.see(now, ratio, light, restless, frame.sensor)
        if self._light_change.is_another_picture:
            return self._adopt(small, frame)
        if restless and changed is not None and counts is not None:
            candidates = self._moving(small, means, level, changed, counts.over)
            if candidates is not None:
                moving_share = np.count_nonzero(candidates) / candidates.size
        self._grow_older(frame.moment, candidates, counts)
        light_changed = self._light_change.is_on(now, moving_share)
        if self._has_ages and self._since is None and self._light_change.holds(now):
            # What is there already is believed as soon as the light is steady.
            self._age = np.minimum(self._age, self._confirm - 1)
        motion = self._word(frame, changed, before, candidates, light_changed)
        self._follow(now, small, candidates, counts)
        self._end_of_learning(now, restless)
        self._show(small, changed, counts, candidates)
        return motion

    def _may_be_as_usual(self, now: int) -> bool:
        """Whether leaves or rain that stay within their limits need no closer look: now and then they do."""
        if self._has_ages or self._learning or self._since is not None:
            return False
        return now - self._updated_ns < self._rules.update_s * NS_PER_S

    def _rest(self, small: Plane, frame: Frame, changed: Plane | None = None, counts: Counts | None = None) -> Motion:
        """A frame in which nothing changed, or no more than is usual, but, perhaps, the light some frames ago."""
        now = frame.t_ns
        self._remember(now, small, None, changed)
        self._light_change.see_same(now, self._scene.light is None, frame.sensor)
        if self._has_ages:
            self._grow_older(frame.moment, None, None)
        self._since = None
        self._follow(now, small, None, None)
        if self._learning:
            self._end_of_learning(now, 0.0)
        self._show(small, changed, counts, None)
        return Motion(frame.seq, now, score=0.0, active=False, learning=self._learning)

    def _show(self, small: Plane, changed: Plane | None, counts: Counts | None, candidates: Plane | None) -> None:
        scene, once = self._scene, None if counts is None else counts.once
        self._seen = Seen(small, scene.level, scene.light, changed, once, self._once.limits, candidates)

    def _end_of_learning(self, now: int, restless: float) -> None:
        """Where tiles do not come to rest, their histories must be known before they are believed."""
        if not self._learning:
            return
        self._restless = max(restless, self._restless * 0.8)
        elapsed_s = (now - self._t0_ns) / NS_PER_S
        is_calm = self._restless < 0.03 and elapsed_s > self._rules.learn_s + 0.25
        self._learning = not is_calm and elapsed_s < self._rules.learn_restless_s

    def _changed(self, small: Plane) -> Plane | None:
        """255 where a pixel is unlike the background and counts; None when hardly any is."""
        changed = self._scene.unlike(small, self._least)
        if changed is None or self._counted is None:
            return changed
        cv2 = opencv()
        changed = cv2.bitwise_and(changed, self._counted)
        return changed if cv2.countNonZero(changed) >= self._least else None

    def _remember(self, now: int, small: Plane, means: Levels | None, changed: Plane | None) -> None:
        """Keep this frame for comparison."""
        past = self._past
        past.append(Look(now, small, means, self._scene.level, self._scene.light))
        while len(past) > 2 and now - past[1].t_ns >= self._rules.look_back_s * NS_PER_S:
            past.popleft()
        self._changes.append((now, changed))

    def _changed_before(self, now: int) -> Plane | None:
        """What had changed pair_s ago; None: nothing."""
        changes = self._changes
        while len(changes) > 1 and now - changes[1][0] >= self._rules.pair_s * NS_PER_S:
            changes.popleft()
        return changes[0][1] if changes else None

    def _count_all(self, changed: Plane, before: Plane | None) -> Counts:
        cv2 = opencv()
        once = self._count(changed)
        over = cv2.subtract(once, self._once.limits)
        if not self._once.is_used:
            return Counts(once, None, None, over)
        solid = self._count(cv2.morphologyEx(changed, cv2.MORPH_OPEN, _ACROSS))
        over = cv2.max(over, cv2.subtract(solid, self._solid.limits))
        if before is None:
            return Counts(once, None, solid, over)
        twice = self._count(cv2.bitwise_and(changed, before))
        return Counts(once, twice, solid, cv2.max(over, cv2.subtract(twice, self._twice.limits)))

    def _count(self, mask: Plane) -> Plane:
        """Set pixels in each overlapping tile: uint8, one per cell, PER_PIXEL for each."""
        cv2 = opencv()
        # Two halvings: a third of what one step costs.
        half = cv2.resize(mask, (self._w // 2, self._h // 2), interpolation=cv2.INTER_AREA)
        cells = cv2.resize(half, self._cells, interpolation=cv2.INTER_AREA)
        counts: Plane = cv2.blur(cells, (2, 2))
        return counts

    def _moving(self, small: Plane, means: Levels, level: Plane, changed: Plane, over: Plane) -> Plane | None:
        """over where the picture differs from that of look_back_s ago too."""
        cv2 = opencv()
        then, margin, light = self._past[0], self._scene.margin, self._scene.light
        if light is then.light or is_like(light, then.light, ALIKE):
            differs = cv2.absdiff(level, then.level)
        else:
            # Straight from one to the other: by way of the usual light two errors would add.
            between = light_between(tile_means(then.small) if then.means is None else then.means, means, self._rules)
            gain = None if between is None else gain_of(between, small.shape)
            differs = cv2.absdiff(lit(small, gain), then.small)
            doubt = doubt_of(between, gain, self._rules)
            margin = margin if doubt is None else cv2.add(margin, doubt)
        moved = cv2.bitwise_and(cv2.compare(differs, margin, cv2.CMP_GT), changed)
        moves = cv2.dilate(self._count(moved), _NEAR)
        candidates: Plane = over * (moves >= self._moves_least)
        return candidates if candidates.any() else None

    def _grow_older(self, moment: Moment, candidates: Plane | None, counts: Counts | None) -> None:
        """Each candidate inherits the age of its neighbourhood, in frames: a thing moves on by less than a tile."""
        if candidates is None and not self._has_ages:
            return
        if not self._has_ages:
            self._moments.clear()
        self._moments.append(moment)
        cv2 = opencv()
        less = cv2.subtract(self._age, self._one)
        if candidates is None:
            self._age = less
            self._has_ages = bool(less.any())
            return
        # What was passed over counts, but one look alone is never enough.
        passed = self._frames_passed if self._has_ages else min(self._frames_passed, max(self._confirm - 1, 1))
        grown = cv2.add(cv2.dilate(self._age, _NEAR), self._one * passed)
        if counts is not None and counts.twice is not None:
            # A pixel that changed twice running is two frames' worth.
            grown = np.maximum(grown, (counts.twice > self._twice.limits) * self._two)
        # Where nothing is a candidate now, a frame or two of it are forgiven.
        # At most so old: where somebody was long ago, rain must not be believed at once.
        self._age = np.minimum(np.maximum(grown * (candidates > 0), less), min(4 * self._confirm, 250))
        self._has_ages = True

    def _adopt(self, small: Plane, frame: Frame) -> Motion:
        """The whole picture is another one (an infrared filter, a turned camera): it is the background now."""
        self._scene.adopt(small)
        self._light_change.begin_anew(frame.t_ns)
        self._updated_ns = self._light_updated_ns = frame.t_ns
        self._age[:] = 0
        self._has_ages = False
        self._since = None
        self._past.clear()
        self._changes.clear()
        return Motion(frame.seq, frame.t_ns, score=0.0, active=False, light_changed=True)

    def _follow(self, now: int, small: Plane, candidates: Plane | None, counts: Counts | None) -> None:
        """Now and then what is usual follows what is seen."""
        since_s = (now - self._updated_ns) / NS_PER_S
        is_idle = counts is None and self._updates >= AT_FIRST
        if since_s < (self._rules.rest_update_s if is_idle else self._rules.update_s):
            return
        self._updated_ns = now
        is_held = held = things = None
        if candidates is not None:
            cv2 = opencv()
            # Filled: the inside of a large even thing may pass for a change of light, and only its rim for a thing.
            is_held = cv2.compare(candidates, 0, cv2.CMP_GT)
            things = cv2.morphologyEx(is_held, cv2.MORPH_CLOSE, _INSIDE)
            held = cv2.dilate(cv2.resize(things, (self._w, self._h), interpolation=cv2.INTER_NEAREST), _NEAR)
        light_since_s = (now - self._light_updated_ns) / NS_PER_S
        if light_since_s >= self._rules.light_update_s:
            self._light_updated_ns = now
            self._scene.follow_light(things, light_since_s)
        self._scene.update(small, held, since_s)
        self._updates += 1
        self._counts_since_s += since_s
        if self._updates % self._rules.counts_every and self._updates >= AT_FIRST:
            return
        # At first plain means: leaves should be known after one sway.
        share = max(rate(self._counts_since_s, self._rules.history_s), 1 / (self._updates + 1))
        self._counts_since_s = 0.0
        busy = is_held if now - self._t0_ns > 3 * NS_PER_S else None
        once, twice, solid, _ = counts or (None, None, None, None)
        self._once.learn(once, busy, share)
        self._twice.learn(twice, busy, share)
        self._solid.learn(solid, busy, share)

    def _word(
        self,
        frame: Frame,
        changed: Plane | None,
        before: Plane | None,
        candidates: Plane | None,
        light_changed: bool,
    ) -> Motion:
        was_doubted, self._is_doubted = self._is_doubted, False
        if candidates is None or changed is None:
            return self._not_active(frame, 0.0, light_changed)
        ages = self._age * (candidates > 0)
        oldest = int(ages.max())
        score = round(0.5 * min(1.0, oldest / (self._confirm + 1)), 3)
        if oldest < self._confirm or self._learning:
            return self._not_active(frame, score, light_changed)
        pictures = self._pictures(frame.t_ns, light_changed)
        # Who is so small that he is elsewhere at each look is found when he has been there for three times as long.
        is_soon = oldest < 3 * self._confirm and frame.t_ns - self._changes[0][0] <= self._rules.soon_s * NS_PER_S
        found = things(changed, before, is_soon, candidates, ages >= self._confirm, self._pixel, pictures)
        if found.has_shadows:
            self._shadow_ns = frame.t_ns
        if not found.boxes or found.is_lost:
            return self._not_active(frame, min(score, 0.5), light_changed)
        if self._since is None:
            # Little of it must show for twice as long: of noise, rain and leaves there is seldom more than a trace.
            is_faint = found.excess < self._rules.trace and oldest < 2 * self._confirm
            # Where shadows pass, one look at which one of them is taken for a thing is not enough.
            self._is_doubted = frame.t_ns - self._shadow_ns < NS_PER_S
            is_doubtful = self._is_doubted and not was_doubted
            if is_faint or found.is_scattered or is_doubtful:
                return self._not_active(frame, min(score, 0.5), light_changed)
            self._since = self._moments[0]
        elif pictures is not None and not found.has_shadows:
            self._trusted_until_ns = frame.t_ns + round(self._rules.trust_s * NS_PER_S)
        return Motion(
            frame.seq,
            frame.t_ns,
            # 60 pixels beyond the usual, a person of 15 % of the picture's height, come to 0.82.
            score=round(1 - 0.5 * math.exp(-found.excess / 60), 3),
            active=True,
            boxes=found.boxes,
            zones=self._zones.touched(found.cells),
            light_changed=light_changed,
            since=self._since,
        )

    def _pictures(self, now: int, light_changed: bool) -> tuple[Plane, Plane, Levels] | None:
        """Of now, as usual, and the noise, where it must be asked whether what moves is a shadow."""
        scene = self._scene
        if scene.light is None:
            return None
        # What was no shadow a moment ago is none now. A lamp leaves texture too: who was active stays so.
        is_sure = now < self._trusted_until_ns or light_changed or self._light_change.holds(now)
        if self._since is not None and is_sure:
            return None
        # In the light of most of the picture, so that what is left is of some part of it.
        return opencv().convertScaleAbs(self._past[-1].small, alpha=scene.light.middle), scene.usual, scene.noise

    def _not_active(self, frame: Frame, score: float, light_changed: bool) -> Motion:
        self._since = None
        return Motion(frame.seq, frame.t_ns, score, False, learning=self._learning, light_changed=light_changed)
