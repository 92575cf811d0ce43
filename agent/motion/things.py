"""Moving tiles become things: their boxes and how much of them there is. Touches nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.model import Box, Plane
from agent.motion.light import Levels, opencv
from agent.motion.rules import CELL

_JOIN = np.ones((3, 3), np.uint8)
SCATTERED = 6


def things(
    changed: Plane, candidates: Plane, over: Levels, old: Plane, share: tuple[float, float]
) -> tuple[Plane, tuple[Box, ...], float, bool]:
    """What of the candidates hangs together with old ones.

    changed: pixels; candidates, old: cells, non-zero where so; over: changed pixels too many per cell; share:
    width and height of one pixel in the picture. Returns the cells (255), boxes (largest first), the excess pixels
    of the greatest thing, and whether all is scattered: many small things at once are weather.
    """
    cv2 = opencv()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(candidates, _JOIN), connectivity=8)
    if len(stats) == 2:
        # The usual case, cheaper: all of it is one thing.
        is_old = np.array([False, True])
        cells, is_scattered = candidates, False
        sums = [0.0, cv2.mean(over, candidates)[0] * cv2.countNonZero(candidates)]
    else:
        is_old = np.bincount(labels[old > 0], minlength=len(stats)) > 0
        is_old[0] = False
        cells = cv2.bitwise_and(is_old.astype(np.uint8)[labels] * np.uint8(255), candidates)
        sums = np.bincount(labels[candidates > 0], weights=over[candidates > 0], minlength=len(stats)).tolist()
        is_scattered = len(stats) > SCATTERED and 2 * max(sums) < sum(sums)
    # Each pixel counts in four tiles.
    excess = max(float(total) for total, counts in zip(sums, is_old, strict=True) if counts)
    boxes: list[Box] = []
    for label in np.flatnonzero(is_old):
        left, top, wide, high = (int(side) * CELL for side in stats[label][:4])
        # A cell counts the tile that begins one cell before it.
        left, top = max(left - CELL, 0), max(top - CELL, 0)
        x, y, w, h = cv2.boundingRect(changed[top : top + high + CELL, left : left + wide + CELL])
        if w and h:
            boxes.append(Box((left + x) * share[0], (top + y) * share[1], w * share[0], h * share[1]))
    return cells, tuple(merged(boxes)), excess / 4, is_scattered


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
