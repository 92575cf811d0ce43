"""Where motion counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.settings import ZoneSettings
from agent.zones import Zones, fill

LEFT = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]
TOP = [(0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)]


def zone(zone_id: str, kind: str, polygon: list[tuple[float, float]]) -> ZoneSettings:
    return ZoneSettings.model_validate({"id": zone_id, "kind": kind, "polygon": polygon})


def test_without_zones_the_whole_picture_counts() -> None:
    zones = Zones([], 160, 120)
    assert zones.counted is None
    assert zones.touched(np.ones((120, 160), np.uint8)) == ()


def test_detect_zones_count_and_ignore_zones_do_not() -> None:
    counted = Zones([zone("left", "detect", LEFT), zone("sky", "ignore", TOP)], 160, 120).counted
    assert counted is not None
    assert counted[100, 20] == 255  # in the zone
    assert counted[100, 140] == 0  # outside of every detect zone
    assert counted[20, 20] == 0  # ignored


def test_an_ignore_zone_alone_leaves_the_rest() -> None:
    counted = Zones([zone("sky", "ignore", TOP)], 160, 120).counted
    assert counted is not None
    assert counted[:55].max() == 0
    assert counted[65:].min() == 255


def test_touched_names_the_zones_that_hold_a_moving_pixel() -> None:
    zones = Zones([zone("left", "detect", LEFT), zone("top", "detect", TOP)], 40, 30)
    moving = np.zeros((30, 40), np.uint8)
    moving[25, 5] = 1
    assert zones.touched(moving) == ("left",)
    moving[2, 5] = 1
    assert zones.touched(moving) == ("left", "top")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=12))
@settings(deadline=None)
def test_no_polygon_inside_the_picture_vanishes(polygon: list[tuple[float, float]]) -> None:
    mask = fill(polygon, 40, 30)
    assert mask.shape == (30, 40)
    assert mask.max() == 255
