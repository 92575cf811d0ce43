"""Whether a thing that stopped moving still stands where it was last seen. Touches nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.model import NS_PER_S, Box, Plane
from agent.motion.light import opencv

APART_NS = NS_PER_S // 2
PICTURES = 10
BEFORE_NS = 600_000_000
"""What moved was often half in the picture before the detector was sure of it."""
MARGIN = 8
"""Levels beyond what the place looked like before, at least: noise and coding."""
LEAST_SHARE = 0.3
LEAST_PIXELS = 10
"""Of the box, in the analysis picture. Of the recordings: 0.45 and more where somebody stands, 0.1 where he left."""
SAME_LIGHT = (0.8, 1.25)
"""Ratio of light in which places can be compared so simply; in other light nobody is said to stand still."""
EDGE = 0.02
SLIVER = 0.08
"""A box at the left or right edge that is narrower than this is what was left of somebody who walked out."""


STIR_NS = NS_PER_S
STIR_LEVELS = 6
STIR_PIXELS = 4
"""Somebody who writes or nods moves his outline by less than a pixel of the analysis picture; that shows there."""
STIR_MORE = 3.0
"""As much more changes in his place than elsewhere: rain, leaves and noise are everywhere."""

BARE_SHARE = 0.1
"""Of the place of something that stayed, may look otherwise than before it came."""

_AROUND = np.ones((3, 3), np.uint8)


class StillThere:
    """Remembers some pictures from before an event, and compares a place in a later picture with them.

    The detector forgets within seconds who stands still (else it would see a ghost when he leaves). An event should
    not end for that. Leaves do not count: a pixel may look like it or any neighbour did in any of those pictures.
    """

    def __init__(self) -> None:
        self._past: deque[tuple[int, Plane]] = deque(maxlen=PICTURES)
        self._before: _Before | None = None
        self._boxes: Sequence[Box] = ()
        self._stayed: deque[tuple[_Before, Box]] = deque(maxlen=8)
        self._lately: deque[tuple[int, Plane]] = deque()

    def forget(self) -> None:
        self._past.clear()
        self._stayed.clear()
        self._boxes = ()
        self._before = None

    def look_around(self, t_ns: int, picture: Plane) -> None:
        """A frame while no event is open. picture: uint8 (h, w), about 160x120; kept, so it must not change."""
        if self._past and picture.shape != self._past[0][1].shape:
            self.forget()
        if not self._past or t_ns - self._past[-1][0] >= APART_NS:
            self._past.append((t_ns, picture))

    def begin(self, start_ns: int) -> None:
        """An event began at start_ns: what was seen until shortly before is how the place looks without the thing."""
        before = [picture for t_ns, picture in self._past if t_ns <= start_ns - BEFORE_NS]
        self._boxes = ()
        self._before = _Before(before) if before else None

    def see(self, boxes: Sequence[Box]) -> None:
        """Where the things of the open event are now."""
        self._boxes = boxes
        self._lately.clear()

    def stirs(self, t_ns: int, picture: Plane) -> bool:
        """Whether what is_there moves a little: a clerk does, a parked car does not.

        To be asked a few times a second; compares with the picture of a second ago.
        """
        lately = self._lately
        lately.append((t_ns, picture))
        while len(lately) > 1 and t_ns - lately[1][0] >= STIR_NS:
            lately.popleft()
        if t_ns - lately[0][0] < STIR_NS:
            return False
        cv2 = opencv()
        differs = cv2.absdiff(picture, lately[0][1])
        least = STIR_LEVELS + 2 * cv2.mean(differs)[0]
        changed = cv2.threshold(differs, least, 255, cv2.THRESH_BINARY)[1]
        everywhere = cv2.countNonZero(changed)
        for box in self._boxes:
            part = _part(changed, box)
            inside = cv2.countNonZero(part)
            outside = (everywhere - inside) / max(changed.size - part.size, 1)
            if inside >= max(STIR_PIXELS, STIR_MORE * outside * part.size):
                return True
        return False

    def is_there(self, picture: Plane) -> bool:
        """Whether picture still differs, where the things were last seen, from how it was before."""
        if self._before is None:
            return False
        unlike = self._before.unlike(picture)
        return unlike is not None and any(_is_full(unlike, box) for box in self._boxes if not _is_leaving(box))

    def absorb(self, picture: Plane) -> None:
        """The event ended; if a thing stays there, remember how its place looked without it."""
        before = self._before
        self._before = None
        unlike = before.unlike(picture) if before is not None else None
        if before is None or unlike is None:
            return
        cv2 = opencv()
        height, width = picture.shape
        _, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(unlike, _AROUND), connectivity=8)
        for box in self._boxes:
            if _is_leaving(box) or not _is_full(unlike, box):
                continue
            sizes = np.bincount(_part(labels, box).ravel(), minlength=2)
            x, y, w, h = (float(side) for side in stats[1 + int(sizes[1:].argmax())][:4])
            self._stayed.append((before, Box(x / width, y / height, w / width, h / height)))

    def is_uncovered(self, picture: Plane, boxes: Sequence[Box]) -> bool:
        """Whether all that moves is the place of something that stayed, and looks as it did before that came.

        So what is taken away makes no event of its own; who takes it, or a car that drives off, differs from that.
        """
        return bool(boxes) and all(self._is_bare(picture, box) for box in boxes)

    def _is_bare(self, picture: Plane, box: Box) -> bool:
        for before, place in self._stayed:
            across = min(box.x + box.w, place.x + place.w + EDGE) - max(box.x, place.x - EDGE)
            down = min(box.y + box.h, place.y + place.h + EDGE) - max(box.y, place.y - EDGE)
            if across <= 0 or down <= 0 or across * down < 0.8 * box.w * box.h:
                continue
            unlike = before.unlike(picture)
            if (
                unlike is not None
                and not _is_full(unlike, box, BARE_SHARE)
                and not _is_full(unlike, place, BARE_SHARE)
            ):
                return True
        return False


class _Before:
    """How the place looked, leaves and all: uint8 bounds of each pixel; and its light."""

    def __init__(self, pictures: Sequence[Plane]) -> None:
        cv2 = opencv()
        low, high = pictures[0], pictures[0]
        for picture in pictures[1:]:
            low, high = cv2.min(low, picture), cv2.max(high, picture)
        self._low, self._high = cv2.erode(low, _AROUND), cv2.dilate(high, _AROUND)
        self._tiles = _tiles(pictures[-1])

    def unlike(self, picture: Plane) -> Plane | None:
        """255 where picture cannot be that place; None where the light differs too much to say so."""
        if picture.shape != self._low.shape:
            return None
        # One number for the light of the whole picture is enough: the cost of an error is a later end.
        ratios = (_tiles(picture) / self._tiles).ravel()
        # The middle one; np.median would load numpy.ma for it, a tenth of a second.
        light = float(np.partition(ratios, ratios.size // 2)[ratios.size // 2])
        if not SAME_LIGHT[0] < light < SAME_LIGHT[1]:
            return None
        cv2 = opencv()
        low = cv2.subtract(cv2.convertScaleAbs(self._low, alpha=light), MARGIN)
        high = cv2.add(cv2.convertScaleAbs(self._high, alpha=light), MARGIN)
        unlike: Plane = cv2.bitwise_not(cv2.inRange(picture, low, high))
        return unlike


def _is_leaving(box: Box) -> bool:
    return box.w < SLIVER and (box.x < EDGE or box.x + box.w > 1 - EDGE)


def _is_full(unlike: Plane, box: Box, share: float = LEAST_SHARE) -> bool:
    part = _part(unlike, box)
    pixels: int = opencv().countNonZero(part)
    return pixels >= LEAST_PIXELS and pixels >= share * part.size


def _part(picture: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
    height, width = picture.shape
    return picture[
        int(box.y * height) : int((box.y + box.h) * height) + 1, int(box.x * width) : int((box.x + box.w) * width) + 1
    ]


def _tiles(picture: Plane) -> npt.NDArray[np.float32]:
    return opencv().resize(picture, (16, 12), interpolation=opencv().INTER_AREA).astype(np.float32) + 1  # type: ignore[no-any-return]
