"""Privacy masks: polygons become rectangles of whole blocks, burned into planes. Touches the planes it is given.

A mask is rounded outward to 16x16 blocks of the main stream, so that neither 4:2:0 chroma nor a macroblock mixes
masked pixels with others; on lores it is rounded outward to whole chroma samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.model import Plane

BLOCK = 16
BLACK_Y = 16
GREY_C = 128

Polygon = Sequence[tuple[float, float]]
Raster = npt.NDArray[np.bool_]
Rectangle = tuple[int, int, int, int]


class PrivacyMask:
    """The masked rectangles of one picture size; x0, y0, x1, y1 in pixels, even but at the picture's rim."""

    def __init__(self, rectangles: Sequence[Rectangle], width: int, height: int) -> None:
        self.rectangles = tuple(rectangles)
        self.width = width
        self.height = height

    def __bool__(self) -> bool:
        return bool(self.rectangles)

    def burn(self, y: Plane, u: Plane, v: Plane) -> None:
        """Paint the mask black (y 16, u and v 128) into writable 4:2:0 planes of exactly this picture's size.

        ValueError when a plane has another size or is read-only: the picture must not be used then.
        """
        if not self.rectangles:
            return
        half = ((self.height + 1) // 2, (self.width + 1) // 2)
        if y.shape != (self.height, self.width) or u.shape != half or v.shape != half:
            raise ValueError(
                f"a mask for {self.width}x{self.height} does not fit planes {y.shape} {u.shape} {v.shape}"
            )
        for x0, y0, x1, y1 in self.rectangles:
            y[y0:y1, x0:x1] = BLACK_Y
            chroma = np.s_[y0 // 2 : (y1 + 1) // 2, x0 // 2 : (x1 + 1) // 2]
            u[chroma] = GREY_C
            v[chroma] = GREY_C


def main_mask(polygons: Sequence[Polygon], width: int, height: int) -> PrivacyMask:
    """The mask of the main stream. polygons: corners in shares of the picture, 0..1 (ValueError outside)."""
    raster = np.zeros((-(-height // BLOCK), -(-width // BLOCK)), dtype=np.bool_)
    for polygon in polygons:
        raster |= touched(polygon, width / BLOCK, height / BLOCK, raster.shape)
    rectangles = [
        (c0 * BLOCK, r0 * BLOCK, min(c1 * BLOCK, width), min(r1 * BLOCK, height))
        for c0, r0, c1, r1 in _rectangles(raster)
    ]
    return PrivacyMask(rectangles, width, height)


def lores_mask(main: PrivacyMask, width: int, height: int) -> PrivacyMask:
    """The same mask on lores: every chroma sample that any masked main pixel falls into. width, height are even."""
    # One more sample on each side: the scaler's filter reaches over the edge.
    raster = np.zeros((height // 2, width // 2), dtype=np.bool_)
    for x0, y0, x1, y1 in main.rectangles:
        c0, c1 = x0 * width // (2 * main.width), -(-x1 * width // (2 * main.width))
        r0, r1 = y0 * height // (2 * main.height), -(-y1 * height // (2 * main.height))
        raster[max(r0 - 1, 0) : r1 + 1, max(c0 - 1, 0) : c1 + 1] = True
    return PrivacyMask([(2 * c0, 2 * r0, 2 * c1, 2 * r1) for c0, r0, c1, r1 in _rectangles(raster)], width, height)


def touched(polygon: Polygon, columns: float, rows: float, shape: tuple[int, int]) -> Raster:
    """Which cells of a grid a polygon touches, its outline included; (columns, rows) is the picture in cells.

    Conservative: cells are grown by a millionth, and a polygon that crosses itself counts as filled wherever
    its winding number is not zero. ValueError for corners outside 0..1.
    """
    corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    if not len(corners) or not np.all((corners >= 0) & (corners <= 1)):
        raise ValueError(f"a mask's corners lie within 0..1, not {list(polygon)}")
    corners = corners * (columns, rows)
    grow = 1e-6
    x0 = np.arange(shape[1])[None, :] - grow
    y0 = np.arange(shape[0])[:, None] - grow
    x1, y1 = x0 + 1 + 2 * grow, y0 + 1 + 2 * grow
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    hit = np.zeros(shape, dtype=np.bool_)
    winding = np.zeros(shape, dtype=np.int64)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        hit |= _segment_in_cells(ax, ay, bx, by, x0, y0, x1, y1)
        side = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        winding += ((ay <= cy) & (by > cy) & (side > 0)).astype(np.int64)
        winding -= ((by <= cy) & (ay > cy) & (side < 0)).astype(np.int64)
    filled: Raster = hit | (winding != 0)
    return filled


Cells = npt.NDArray[np.floating[Any]]


def _segment_in_cells(
    ax: float, ay: float, bx: float, by: float, x0: Cells, y0: Cells, x1: Cells, y1: Cells
) -> Raster:
    """Which cells a segment meets (clipping after Liang and Barsky, 1984)."""
    enter = np.zeros(np.broadcast_shapes(x0.shape, y0.shape))
    leave = np.ones_like(enter)
    for start, end, low, high in ((ax, bx, x0, x1), (ay, by, y0, y1)):
        step = end - start
        if abs(step) < 1e-9:  # below what the cells are grown by; dividing by it would overflow
            outside = (low > start) | (high < start)
            leave = np.where(outside, -1.0, leave)
        else:
            first, second = (low - start) / step, (high - start) / step
            enter = np.maximum(enter, np.minimum(first, second))
            leave = np.minimum(leave, np.maximum(first, second))
    result: Raster = enter <= leave
    return result


def _rectangles(raster: Raster) -> list[Rectangle]:
    """The set cells as few rectangles (c0, r0, c1, r1): runs of each row, equal runs of rows below joined."""
    done: list[Rectangle] = []
    growing: dict[tuple[int, int], int] = {}
    for r in range(raster.shape[0] + 1):
        runs: set[tuple[int, int]] = set()
        if r < raster.shape[0]:
            edges = np.flatnonzero(np.diff(np.concatenate(([0], raster[r].view(np.int8), [0]))))
            runs = {(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)}
        ended = [run for run in growing if run not in runs]
        done.extend((run[0], growing.pop(run), run[1], r) for run in ended)
        for run in runs:
            growing.setdefault(run, r)
    return sorted(done)
