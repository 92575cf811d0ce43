"""No pixel under a privacy polygon survives, on main or on lores, whatever the polygon."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cameras.planes import Planes, lores_size, scaled
from agent.masks import BLACK_Y, BLOCK, GREY_C, PrivacyMask, lores_mask, main_mask
from agent.model import Plane

share = st.floats(0, 1, allow_nan=False)
polygons = st.lists(st.tuples(share, share), min_size=3, max_size=7)
sides = st.integers(16, 90).map(lambda n: 2 * n)


def covered(mask: PrivacyMask) -> Plane:
    """1 where the mask paints luma."""
    hit = np.zeros((mask.height, mask.width), dtype=np.uint8)
    for x0, y0, x1, y1 in mask.rectangles:
        hit[y0:y1, x0:x1] = 1
    return hit


def inside(x: float, y: float, polygon: list[tuple[float, float]]) -> bool:
    """Even-odd rule, written again by another route than the code's."""
    result = False
    for i, (ax, ay) in enumerate(polygon):
        bx, by = polygon[i - 1]
        if (ay > y) != (by > y) and x < (bx - ax) * (y - ay) / (by - ay) + ax:
            result = not result
    return result


@given(polygon=polygons, width=sides, height=sides)
def test_every_pixel_under_the_polygon_is_masked(polygon: list[tuple[float, float]], width: int, height: int) -> None:
    hit = covered(main_mask([polygon], width, height))
    for x, y in itertools.product(np.linspace(0.013, 0.987, 12), repeat=2):
        if inside(x, y, polygon):
            assert hit[int(y * height), int(x * width)]


@given(polygon=polygons, width=sides, height=sides)
def test_the_outline_and_thin_polygons_are_masked_too(
    polygon: list[tuple[float, float]], width: int, height: int
) -> None:
    hit = covered(main_mask([polygon], width, height))
    for i, (ax, ay) in enumerate(polygon):
        bx, by = polygon[i - 1]
        for part in np.linspace(0, 1, 40):
            x, y = ax + (bx - ax) * part, ay + (by - ay) * part
            assert hit[min(int(y * height), height - 1), min(int(x * width), width - 1)]


@given(polygon=polygons, width=sides, height=sides)
def test_a_mask_is_made_of_whole_blocks(polygon: list[tuple[float, float]], width: int, height: int) -> None:
    for x0, y0, x1, y1 in main_mask([polygon], width, height).rectangles:
        assert x0 % BLOCK == 0
        assert y0 % BLOCK == 0
        assert x1 % BLOCK == 0 or x1 == width
        assert y1 % BLOCK == 0 or y1 == height


def test_a_mask_takes_no_more_than_the_blocks_it_touches() -> None:
    mask = main_mask([[(0.26, 0.26), (0.49, 0.26), (0.49, 0.49), (0.26, 0.49)]], 640, 640)
    assert mask.rectangles == ((160, 160, 320, 320),)


@given(polygon=polygons, width=sides, height=sides, limit=st.integers(8, 60), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_nothing_under_the_mask_reaches_lores(
    polygon: list[tuple[float, float]], width: int, height: int, limit: int, seed: int
) -> None:
    main = main_mask([polygon], width, height)
    lw, lh = lores_size(width, height, 2 * limit, 2 * limit)
    small = lores_mask(main, lw, lh)
    hit = covered(main).astype(bool)
    rng = np.random.default_rng(seed)
    results: list[Planes] = []
    common = rng.integers(0, 256, (height, width)).astype(np.uint8)
    for _ in range(2):
        y = np.where(hit, rng.integers(0, 256, (height, width)).astype(np.uint8), common)
        u, v = (y[::2, ::2].copy() for _ in range(2))
        planes = Planes(y, u, v)
        main.burn(*planes)
        lores = Planes(*(plane.copy() for plane in scaled(planes, lw, lh)))
        small.burn(*lores)
        results.append(lores)
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)
    ys, xs = np.nonzero(hit)
    painted = results[0].y[np.minimum(ys * lh // height, lh - 1), np.minimum(xs * lw // width, lw - 1)]
    assert np.all(painted == BLACK_Y)


def test_a_mask_is_black_and_colourless() -> None:
    planes = tuple(np.full(shape, 200, np.uint8) for shape in ((64, 64), (32, 32), (32, 32)))
    main_mask([[(0, 0), (0.4, 0), (0.4, 0.4), (0, 0.4)]], 64, 64).burn(*planes)
    assert np.all(planes[0][:32, :32] == BLACK_Y)
    assert np.all(planes[1][:16, :16] == GREY_C)
    assert np.all(planes[2][:16, :16] == GREY_C)
    assert np.all(planes[0][32:] == 200)
    assert np.all(planes[1][16:] == 200)


def test_a_mask_that_does_not_fit_or_cannot_be_painted_is_refused() -> None:
    mask = main_mask([[(0, 0), (1, 0), (1, 1)]], 64, 64)
    y, c = np.zeros((64, 64), np.uint8), np.zeros((32, 32), np.uint8)
    with pytest.raises(ValueError, match="does not fit"):
        mask.burn(np.zeros((62, 64), np.uint8), c, c)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        mask.burn(y, c, c)


@pytest.mark.parametrize("corner", [(-0.1, 0.0), (0.0, 1.1), (float("nan"), 0.5)])
def test_corners_outside_the_picture_are_refused(corner: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        main_mask([[corner, (1, 0), (1, 1)]], 64, 64)
