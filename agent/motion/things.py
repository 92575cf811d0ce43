"""Moving tiles become things: their boxes and how much of them there is. Touches nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent.model import Box, Plane
from agent.motion.light import Levels, opencv
from agent.motion.rules import CELL, PER_PIXEL, TILE

_JOIN = np.ones((3, 3), np.uint8)
SCATTERED = 6
LOST = 0.015
"""Of all changed pixels: rain and snow leave traces all the time, a person has ten times as many too many."""
STRONG = 0.15
"""A shadow that takes less of the light than this leaves too few changed pixels to matter."""
PIXELS = 24
SURE, MAYBE = 0.8, 0.6
"""Correlation of the texture with that of the background. Of 3,774 boxes of people and cars in 56 recordings 0.7 %
pass for shadows, of 156 boxes at the edges of clouds 90 %."""
EVEN = 0.12
OF_LEVELS, ALIKE_LEVELS = 0.6, 0.3
"""Where a shadow or the codec took the fine texture, the levels still show through: the ratios to them spread less
than they do. Before a thing in one colour both spread alike. From 0.7 on a person loses to a lamp that went off."""
BIT = 20.0
"""Excess pixels: fewer are too few to tell a shadow."""
PASSING = 80.0
"""Excess pixels. An insect or a drop close to the lens has up to 65, streaks of rain that hang together as many; a
car that comes in fast has more than this."""
STAYS, OVERLAPS = 0.12, 0.1
"""Of the changed pixels of rain and snow 3 to 10 % had changed at the look before, of insects none, of whoever walks
most."""


class Things(NamedTuple):
    """cells: where the things are, non-zero. boxes: largest first. excess: pixels too many, of the greatest thing.

    is_scattered: many small things at once are weather. is_lost: next to nothing of what changed.
    has_shadows: something was left out since it is a shadow.
    """

    cells: Plane
    boxes: tuple[Box, ...]
    excess: float
    is_scattered: bool
    is_lost: bool
    has_shadows: bool


def things(
    changed: Plane,
    before: Plane | None,
    is_soon: bool,
    candidates: Plane,
    old: npt.NDArray[np.bool_],
    share: tuple[float, float],
    pictures: tuple[Plane, Plane, Levels] | None = None,
) -> Things:
    """What of the candidates hangs together with old ones and is neither shadow nor rain, nor merely flies by.

    changed: pixels, 255; before: those of a look before, if any; is_soon: that was so short a time ago that who walks
    would overlap himself; candidates: cells, counts that are too many; old: cells; share: width and height of one
    pixel in the picture; pictures: of now, as usual, and its noise (mean deviation), where there may be shadows.
    """
    cv2 = opencv()
    _, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.dilate(candidates, _JOIN), connectivity=8)
    every = labels.ravel()
    found = np.zeros(len(stats), np.bool_)
    found[labels[old]] = True
    # Each pixel counts in four tiles.
    excess = np.bincount(every, weights=candidates.ravel(), minlength=len(stats)) / (4 * PER_PIXEL)
    # Of all pixels that changed, those that had not at the look before.
    fresh = None if before is None else cv2.subtract(changed, before)
    rectangles: list[tuple[int, int, int, int, int]] = []
    unsure: list[int] = []
    shadows = 0
    for label, (left, top, wide, high, _) in enumerate(stats.tolist()):
        if not found[label]:
            continue
        # A cell counts the tile that begins one cell before it.
        left, top = max(left - 1, 0) * CELL, max(top - 1, 0) * CELL
        part = np.s_[top : top + (high + 1) * CELL, left : left + (wide + 1) * CELL]
        if fresh is not None and excess[label] < PASSING and _passes(changed, fresh, part, is_soon):
            found[label] = False
            continue
        x, y, w, h = cv2.boundingRect(changed[part])
        likeness = 0.0 if pictures is None or not w else shadow_likeness(*pictures, (left + x, top + y, w, h))
        if likeness is None:
            likeness = MAYBE if excess[label] < BIT else 0.0
        if likeness >= SURE:
            shadows += 1
            found[label] = False
            continue
        if likeness >= MAYBE:
            unsure.append(label)
        if w and h:
            rectangles.append((label, left + x, top + y, w, h))
    if shadows:
        # Where one shadow passes, what may be another one, or is too small to tell, is.
        found[unsure] = False
    cells = candidates if len(stats) == 2 and found[1] else candidates * found[labels]
    boxes = [Box(x * share[0], y * share[1], w * share[0], h * share[1]) for i, x, y, w, h in rectangles if found[i]]
    is_scattered = len(stats) > SCATTERED and bool(2 * excess.max() < excess.sum())
    most = float(excess[found].max(initial=0.0))
    is_lost = most < LOST * cv2.countNonZero(changed)
    return Things(cells, tuple(merged(boxes)), most, is_scattered, is_lost, shadows > 0)


def _passes(changed: Plane, fresh: Plane, part: tuple[slice, slice], is_soon: bool) -> bool:
    """Whether hardly anything of the part had changed before too: an insect, a drop, rain.

    fresh: of changed, what had not.
    Somebody quick would be elsewhere too where the look before is not of just now: then only if most such pixels are.
    """
    cv2 = opencv()
    here, every = cv2.countNonZero(fresh[part]), cv2.countNonZero(changed[part])
    if is_soon and here > (1 - OVERLAPS) * every:
        return True
    if here <= (1 - STAYS) * every:
        return False
    return bool(cv2.countNonZero(fresh) > 2 * here)


def shadow_likeness(small: Plane, usual: Plane, noise: Levels, box: tuple[int, int, int, int]) -> float | None:
    """0..1: how well what is much darker or brighter in and around the box shows the texture of the background.

    A shadow multiplies what lies under it, a thing covers it. None where too little differs by much.
    """
    cv2 = opencv()
    x, y, w, h = box
    part = np.s_[max(y - TILE, 0) : y + h + TILE, max(x - TILE, 0) : x + w + TILE]
    now, then = small[part], usual[part]
    least = cv2.convertScaleAbs(cv2.max(now, then), alpha=STRONG, beta=4)
    differs = cv2.erode(cv2.compare(cv2.absdiff(now, then), least, cv2.CMP_GT), _JOIN) > 0
    if np.count_nonzero(differs) < PIXELS:
        return None
    texture_now = cv2.Laplacian(now, cv2.CV_32F)[differs]
    texture_then = cv2.Laplacian(then, cv2.CV_32F)[differs]
    all_now, all_then = float(texture_now @ texture_now), float(texture_then @ texture_then)
    # Noise has no texture in common with anything: 20 times its variance is what Laplace's kernel makes of it.
    of_noise = 20 * (1.25 * float(noise[part].mean())) ** 2 * texture_now.size
    both = math.sqrt(max(all_now - of_noise, 0.5 * all_now) * all_then)
    likeness = min(float(texture_now @ texture_then) / max(both, 1.0), 1.0)
    if likeness < SURE:
        # The same share of the light is missing everywhere: half of the ratios lie near each other.
        levels = np.log(then[differs] + 1.0)
        spread = _spread(np.log(now[differs] + 1.0) - levels)
        if spread < min(ALIKE_LEVELS, OF_LEVELS * _spread(levels)):
            return SURE
        if spread < EVEN:
            return SURE if likeness >= MAYBE else MAYBE
    return likeness


def _spread(values: npt.NDArray[np.float64]) -> float:
    """What half of the values lie within."""
    ranked = np.sort(values)
    return float(ranked[3 * ranked.size // 4] - ranked[ranked.size // 4])


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
