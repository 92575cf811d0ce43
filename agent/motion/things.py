"""Moving tiles become things: their boxes and how much of them there is. Touches nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agent.model import Box, Plane
from agent.motion.light import opencv
from agent.motion.rules import CELL, PER_PIXEL

_JOIN = np.ones((3, 3), np.uint8)
SCATTERED = 6


def things(
    changed: Plane, candidates: Plane, old: npt.NDArray[np.bool_], share: tuple[float, float]
) -> tuple[Plane, tuple[Box, ...], float, bool]:
    """What of the candidates hangs together with old ones.

    changed: pixels, 255; candidates: cells, counts that are too many; old: cells; share: width and
    height of one pixel in the picture. Returns the cells (non-zero), boxes (largest first), the excess pixels of the
    greatest thing, and whether all is scattered: many small things at once are weather.
    """
    cv2 = opencv()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(candidates, _JOIN), connectivity=8)
    if len(stats) == 2:
        # The usual case, cheaper: all of it is one thing.
        is_old = [False, True]
        cells, is_scattered = candidates, False
        excess = float(candidates.sum())
    else:
        every = labels.ravel()
        found = np.bincount(every, weights=old.ravel(), minlength=len(stats)) > 0
        sums = np.bincount(every, weights=candidates.ravel(), minlength=len(stats))
        cells = candidates * found[labels]
        excess = float(sums[found].max())
        is_scattered = len(stats) > SCATTERED and bool(2 * sums.max() < sums.sum())
        is_old = found.tolist()
    boxes: list[Box] = []
    for (left, top, wide, high, _), counts in zip(stats.tolist(), is_old, strict=True):
        if not counts:
            continue
        # A cell counts the tile that begins one cell before it.
        left, top = max(left - 1, 0) * CELL, max(top - 1, 0) * CELL
        around = changed[top : top + (high + 1) * CELL, left : left + (wide + 1) * CELL]
        x, y, w, h = cv2.boundingRect(around)
        if w and h:
            boxes.append(Box((left + x) * share[0], (top + y) * share[1], w * share[0], h * share[1]))
    # Each pixel counts in four tiles.
    return cells, tuple(merged(boxes)), excess / (4 * PER_PIXEL), is_scattered


def merged(boxes: Sequence[Box], beside: float = 0.02, above: float = 0.08) -> list[Box]:
    """One box where two are parts of one thing, largest first.

    The head, body and legs of a person lie above each other, so that gap may be wider than one to the side.
    """
    if len(boxes) < 2:
        return list(boxes)
    left = list(boxes)
    done: list[Box] = []
    while left:
        box = left.pop()
        for other in left:
            side = min(box.x + box.w, other.x + other.w) - max(box.x, other.x)
            down = min(box.y + box.h, other.y + other.h) - max(box.y, other.y)
            if (side > 0.5 * min(box.w, other.w) and down > -above) or (
                down > 0.5 * min(box.h, other.h) and side > -beside
            ):
                x, y = min(box.x, other.x), min(box.y, other.y)
                right = max(box.x + box.w, other.x + other.w)
                bottom = max(box.y + box.h, other.y + other.h)
                left.remove(other)
                left.append(Box(x, y, right - x, bottom - y))
                break
        else:
            done.append(box)
    return sorted(done, key=lambda box: (-box.w * box.h, box))
