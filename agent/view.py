"""The view check: does the camera still show what it showed when it was hung? Compares two pictures. Pure.

What counts is where edges are, not how bright they are: light changes all day, walls and door frames do not. The
picture is cut into blocks, each compared by itself, so that a person or a moved chair speaks for its own blocks only.
Figures and their limits are measured in tests/test_view.py and docs/OPERATIONS.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agent.model import Plane
from agent.settings import ZoneSettings

WIDTH = 320
COLUMNS, ROWS = 8, 6
LEAST_BLOCKS = 6
"""Blocks of the baseline with something to hold on to; with fewer there is no telling."""

TEXTURED = 1.5
"""Mean edge strength, levels per pixel, from which on a block has something to hold on to."""

ALIKE = 0.45
"""Correlation of a block's edges with those of the baseline, from which on it shows the same."""

SAME_SHARE = 0.4
"""Share of the blocks that must show the same; people and furniture hide the others."""

DARK = 30.0
FLAT_SHARE = 0.3
"""Coarse edges left, of the baseline's, below which something is in front of the lens: a hand has few of its own."""

SOFT_SHARE = 0.45
"""Fine detail left, of the baseline's, below which the picture is out of focus."""

MOST_SHIFT = 0.45
LEAST_SHIFT = 0.02

State = Literal["same", "turned", "other", "covered", "soft", "dark", "unknown"]


@dataclass(frozen=True, slots=True)
class View:
    """alike: share of blocks that show what the baseline showed. sharp: fine detail left, 1 as in the baseline.

    shift: to the right and down, shares of the picture; where it is known.
    """

    state: State
    words: str
    alike: float = 0.0
    sharp: float = 0.0
    shift: tuple[float, float] | None = None

    @property
    def is_wrong(self) -> bool:
        return self.state in ("turned", "other", "covered", "soft")


def compare(baseline: Plane, present: Plane, zones: Sequence[ZoneSettings] = ()) -> View:
    """Two luma pictures, uint8 (h, w), of the same shape or nearly. zones: privacy masks, which never change."""
    import cv2

    size = (WIDTH, round(WIDTH * baseline.shape[0] / baseline.shape[1] / 2) * 2)
    before, now = (
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.float32) for picture in (baseline, present)
    )
    seen = unmasked(size, zones)
    edges_before, edges_now = _edges(before) * seen, _edges(now) * seen
    blocks = [block for block in _blocks(size) if seen[block].mean() > 0.9 and edges_before[block].mean() > TEXTURED]
    if len(blocks) < LEAST_BLOCKS:
        return View("unknown", "the picture of the walk test shows too little to compare with")
    strength = _strength(_edges(before, 3) * seen, _edges(now, 3) * seen, blocks)
    is_dark = float(np.median(now[seen > 0])) < DARK and float(np.median(before[seen > 0])) > 2 * DARK
    if is_dark and strength < FLAT_SHARE:
        return View("dark", "dark, or covered: look again when there is light")
    alike = [_correlation(edges_before[block], edges_now[block]) > ALIKE for block in blocks]
    share = sum(alike) / len(blocks)
    sharp = _sharp(before, now, blocks)
    if share >= SAME_SHARE:
        if sharp < SOFT_SHARE:
            words = f"out of focus, or the lens is dirty: {sharp:.0%} of the fine detail is left"
            return View("soft", words, share, sharp, (0.0, 0.0))
        return View("same", f"as at the walk test ({share:.0%} of it alike)", share, sharp, (0.0, 0.0))
    if strength < FLAT_SHARE:
        return View("covered", "something is in front of the camera", share, sharp)
    shift = _shift(edges_before, edges_now)
    if shift is not None:
        right, down = shift
        parts = [f"{abs(right):.0%} to the {'right' if right > 0 else 'left'}"] if abs(right) >= LEAST_SHIFT else []
        parts += [f"{abs(down):.0%} {'down' if down > 0 else 'up'}"] if abs(down) >= LEAST_SHIFT else []
        words = f"the camera was turned: what it showed is now {' and '.join(parts)}"
        return View("turned", words, share, sharp, shift)
    return View("other", f"it shows something else than at the walk test ({share:.0%} of it alike)", share, sharp)


def _edges(picture: Any, sigma: float = 1.2) -> Any:
    """Edge strength, levels per pixel, after a blur that takes the noise."""
    import cv2

    smooth = cv2.GaussianBlur(picture, (0, 0), sigma)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    return cv2.magnitude(across, down) / 8


def _strength(before: Any, now: Any, blocks: Sequence[tuple[slice, slice]]) -> float:
    left: float = sum(now[block].mean() for block in blocks) / sum(before[block].mean() for block in blocks)
    return left


def _blocks(size: tuple[int, int]) -> list[tuple[slice, slice]]:
    width, height = size[0] // COLUMNS, size[1] // ROWS
    return [
        (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]


def unmasked(size: tuple[int, int], zones: Sequence[ZoneSettings]) -> Any:
    """1 where the camera itself is seen; 0 under privacy masks and at their edges."""
    import cv2

    hidden = np.zeros((size[1], size[0]), np.uint8)
    for zone in zones:
        if zone.kind == "privacy":
            corners = np.array([(x * size[0], y * size[1]) for x, y in zone.polygon]).round().astype(np.int32)
            cv2.fillPoly(hidden, [corners], 1)
    # Masks are rounded outward to 16 pixels of the main stream, and blur carries their edge further.
    return 1.0 - cv2.dilate(hidden, np.ones((25, 25), np.uint8)).astype(np.float32)


def _correlation(one: Any, other: Any) -> float:
    one, other = one - one.mean(), other - other.mean()
    length = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / length if length else 0.0


def _fine(picture: Any) -> Any:
    import cv2

    return np.abs(picture - cv2.GaussianBlur(picture, (0, 0), 1.5))


def _sharp(before: Any, now: Any, blocks: Sequence[tuple[slice, slice]]) -> float:
    """Fine detail left, of the baseline's, against the contrast of the same block."""
    fine_before, fine_now = _fine(before), _fine(now)
    shares = []
    for block in blocks:
        was = float(fine_before[block].mean()) / max(4.0, float(before[block].std()))
        is_now = float(fine_now[block].mean()) / max(4.0, float(now[block].std()))
        shares.append(is_now / was if was else 1.0)
    return float(np.median(shares))


def _shift(before: Any, now: Any) -> tuple[float, float] | None:
    """Where the baseline's edges went, if they are still in the picture."""
    import cv2

    height, width = before.shape
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(before, now, window)
    if abs(right) > MOST_SHIFT * width or abs(down) > MOST_SHIFT * height:
        return None
    moved = cv2.warpAffine(before, np.array([[1, 0, right], [0, 1, down]], np.float32), (width, height))
    left, top = max(0, round(right)), max(0, round(down))
    part = (slice(top, height + min(0, round(down))), slice(left, width + min(0, round(right))))
    if _correlation(moved[part], now[part]) < ALIKE:
        return None
    shift = (right / width, down / height)
    return shift if max(abs(shift[0]), abs(shift[1])) >= LEAST_SHIFT else None
