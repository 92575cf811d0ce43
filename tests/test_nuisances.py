"""What fools detectors, as the fake camera shows it: the picture does what the truth says, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from test_fake_camera import FPS, QUIET, H, W, differs, mask_of, renderer

from agent.cameras.nuisances import Fan, Headlights, Hunt, Insects, Shake, Snow, Thing
from agent.cameras.render import Renderer, Truth
from agent.cameras.scene import Cloud, Scene, Walker
from agent.cameras.scenes import BUILT_IN
from agent.model import Plane


def quiet(**more: object) -> Scene:
    return dataclasses.replace(QUIET, **more)  # type: ignore[arg-type]


# --- things ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", ["car", "chair", "parcel"])
def test_boxes_of_things_hold_every_pixel_that_is_there_because_of_them(look: str) -> None:
    thing = Thing(look=look, x=0.2, to_x=0.7, moves_at_s=1, speed=0.3)  # type: ignore[arg-type]
    bare, full = renderer(QUIET), renderer(quiet(things=(thing,)))
    for frame in range(0, 40, 3):
        (there,) = full.truth(frame).things
        a, b = bare.render(frame)[0].y, full.render(frame)[0].y
        own = mask_of((there.box,), a.shape)
        assert not np.any(differs(a, b) & (1 - own))
        assert (differs(a, b, 4) & own).sum() > 0.2 * own.sum()


def test_a_car_comes_parks_and_goes_and_moves_only_while_it_does() -> None:
    car = Thing(look="car", x=-0.4, to_x=0.4, away_x=1.4, moves_at_s=1, leaves_at_s=8, speed=0.2, height=0.2)
    made = renderer(quiet(things=(car,)))
    moving = [bool(made.truth(frame).moving_boxes) for frame in range(150)]
    # It shows as soon as its nose does; then 0.8 of the width at 0.2 a second, and off again at 8 s.
    assert not any(moving[:10])
    assert all(moving[20:50])
    assert not any(moving[50:80])
    assert all(moving[80:118])
    assert not any(moving[131:])
    parked = made.truth(60)
    assert parked.things
    assert not parked.boxes
    assert np.array_equal(made.render(60)[0].y, made.render(79)[0].y)
    assert not made.truth(140).things


def test_who_walks_before_a_car_does_not_rub_it_out() -> None:
    car = Thing(look="car", x=0.5, feet_y=0.85, height=0.3)
    walker = Walker(0, from_x=0.3, speed=0.1, height=0.6, feet_y=0.95)
    with_car, both = renderer(quiet(things=(car,))), renderer(quiet(things=(car,), walkers=(walker,)))
    for frame in range(0, 40, 5):
        sprite = both._people(both._time(frame))[-1].sprite
        (person,) = both.truth(frame).people
        own = mask_of((person.box,), (H, W))
        changed = differs(with_car.render(frame)[0].y, both.render(frame)[0].y) & own
        drawn = ((sprite.alpha | sprite.shadow) > 0).sum()
        assert changed.sum() <= drawn


def test_faint_clothes_have_colours_between_their_own_and_those_behind() -> None:
    def colours(contrast: float) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
        scene = quiet(walkers=(Walker(0, from_x=0.5, height=0.7, contrast=contrast),))
        planes = renderer(scene).render(2)[0]
        return np.stack([planes.u, planes.v]).astype(np.int16)

    behind, faint, full = colours(0.0), colours(0.3), colours(1.0)
    assert np.all(faint >= np.minimum(behind, full) - 1)
    assert np.all(faint <= np.maximum(behind, full) + 1)
    assert np.any(faint != behind)


# --- weather and light ----------------------------------------------------------------------------------------


def test_snow_brightens_flakes_and_nothing_else_while_it_snows() -> None:
    made, bare = renderer(quiet(snow=(Snow(2, 3),))), renderer(QUIET)
    for t_s in (1.9, 2.0, 3.5, 4.9, 5.0):
        frame = round(t_s * FPS)
        a, b = bare.render(frame)[0].y, made.render(frame)[0].y
        assert made.truth(frame).snowing == (2 <= t_s < 5)
        assert np.all(b >= a)
        assert (0.001 < differs(a, b).mean() < 0.2) == made.truth(frame).snowing


def test_a_flake_falls_on_from_frame_to_frame() -> None:
    made, bare = renderer(quiet(snow=(Snow(0, 60, flakes=1, speed=0.4),))), renderer(QUIET)
    heights = []
    for frame in range(300):
        rows = np.nonzero(differs(bare.render(frame)[0].y, made.render(frame)[0].y))[0]
        heights.append(float(rows.mean()) if rows.size else None)
    steps = [b - a for a, b in itertools.pairwise(heights) if a is not None and b is not None and b > a]
    inner = sorted(steps)[len(steps) // 4 : -len(steps) // 4]
    assert len(inner) > 20
    assert inner[-1] - inner[0] < 0.6, "at one speed"
    assert 0 < inner[0] <= 0.4 * H / FPS + 0.6


def test_insects_brighten_what_they_cover_and_nothing_else_while_they_fly() -> None:
    made, bare = renderer(quiet(insects=(Insects(2, 6, per_s=4),))), renderer(QUIET).render(0)[0].y
    seen = 0
    for frame in range(100):
        truth, y = made.truth(frame), made.render(frame)[0].y
        assert not truth.boxes
        assert not truth.things
        assert 2 <= frame / FPS < 8 or not truth.insects
        assert np.all(y >= bare)
        assert truth.insects or np.array_equal(y, bare)
        assert differs(bare, y).mean() <= 0.02 * truth.insects
        seen += bool(differs(bare, y, 10).any())
    assert seen > 10


def insects_alone(fps: float, seeds: int) -> Iterator[tuple[int, int, Plane]]:
    """Seed, frame and how much brighter its pixels are, of frames with a single insect; they are rare."""
    for seed in range(seeds):
        made = Renderer(quiet(insects=(Insects(0, 120, per_s=0.1),)), W, H, fps, seed)
        bare = Renderer(QUIET, W, H, fps, seed).render(0)[0].y
        for frame in range(round(120 * fps)):
            if made.truth(frame).insects == 1:
                yield seed, frame, made.render(frame)[0].y - bare


@pytest.mark.parametrize("fps", [10, 30])
def test_an_insect_is_elsewhere_in_each_frame(fps: int) -> None:
    pairs = 0
    for (seed, frame, before), (same_seed, following, now) in itertools.pairwise(insects_alone(fps, 3)):
        if (same_seed, following) == (seed, frame + 1):
            assert not np.any((before > 0) & (now > 0)), (seed, following)
            pairs += bool(before.any() and now.any())
    assert pairs > 20


def test_an_insect_is_a_dash_and_now_and_then_one_near_the_lens_is_large_and_faint() -> None:
    dashes = []
    for _, _, brighter in insects_alone(10, 8):
        ys, xs = np.nonzero(brighter > 3)
        if xs.size and xs.min() > 0 and ys.min() > 0 and xs.max() < W - 1 and ys.max() < H - 1:
            spread = np.linalg.eigvalsh(np.cov(np.stack([xs, ys])))
            # Of an even bar of length l the variance along it is l * l / 12.
            dashes.append((*np.sqrt(12 * spread) / W, int(brighter.max())))
    assert len(dashes) > 50
    assert all(0.008 < across < 0.05 and 0.02 < along < 0.14 for across, along, _ in dashes)
    assert all(along > 1.5 * across for across, along, _ in dashes)
    near = [brighter for across, _, brighter in dashes if across > 0.03]
    far = [brighter for across, _, brighter in dashes if across < 0.025]
    assert 0 < len(near) < 0.25 * len(dashes)
    assert max(near) < 0.6 * max(far)


def test_an_insect_is_gone_within_four_tenths_of_a_second() -> None:
    made = Renderer(quiet(insects=(Insects(0, 900, per_s=0.03),)), W, H, 30)
    there = [made.truth(frame).insects > 0 for frame in range(900 * 30)]
    lengths_s = [len(list(group)) / 30 for flying, group in itertools.groupby(there) if flying]
    assert len(lengths_s) > 10
    assert max(lengths_s) <= 0.4 + 1 / 30
    assert np.median(lengths_s) > 0.1


def test_insects_come_as_often_as_asked_a_few_at_a_time_with_seconds_between() -> None:
    made = Renderer(quiet(insects=(Insects(0, 900),)), W, H, 30)
    there = np.array([made.truth(frame).insects for frame in range(900 * 30)])
    comes = np.nonzero(np.diff(there) > 0)[0] / 30
    assert 0.25 < comes.size / 900 < 0.45
    gaps_s = np.diff(comes)
    # By mere chance the median is 0.69 of the mean.
    assert np.median(gaps_s) < 0.55 * gaps_s.mean()
    assert 10 < gaps_s.max() < 60


def test_a_shaking_camera_shows_the_place_shifted_and_comes_to_rest() -> None:
    shake = Shake(1, 3, sway=0.03, hz=0.6)
    made = renderer(quiet(shakes=(shake,)))
    still = made.render(5)[0].y
    ways = set()
    for frame in range(11, 40):
        dx, dy = made._offset(made._time(frame))
        ways.add((dx, dy))
        shown = made.render(frame)[0].y
        top, left = max(0, -dy), max(0, -dx)
        h, w = H - abs(dy), W - abs(dx)
        same = shown[top : top + h, left : left + w] == still[top + dy : top + dy + h, left + dx : left + dx + w]
        assert made._smear(frame) or same.all()
        assert made.truth(frame).shaken or (dx, dy) == (0, 0)
        assert not made.truth(frame).turned
    assert len(ways) > 5
    assert np.array_equal(made.render(45)[0].y, still)


def test_somebody_before_a_shaking_camera_stays_in_their_box() -> None:
    shaking = quiet(shakes=(Shake(0, 9, sway=0.04, hz=1.5),))
    bare, full = renderer(shaking), renderer(dataclasses.replace(shaking, walkers=(Walker(1, from_x=0.3),)))
    for frame in range(12, 50, 3):
        changed = differs(bare.render(frame)[0].y, full.render(frame)[0].y)
        assert not np.any(changed & (1 - mask_of(full.truth(frame).boxes, changed.shape))), frame


def test_a_hunting_exposure_swings_the_picture_and_not_the_light() -> None:
    made = renderer(quiet(hunts=(Hunt(2, 6, stops=0.5, period_s=2),)))
    usual = made.render(10)[0].y.mean()
    for frame in range(20, 80, 4):
        planes, reading = made.render(frame)
        truth = made.truth(frame)
        assert truth.light == made.truth(0).light
        assert reading.lux == made.render(0)[1].lux
        if abs(truth.hunting) > 0.1:
            assert (planes.y.mean() > usual) == (truth.hunting > 0)
    assert made.truth(81).hunting == 0


def test_headlights_travel_and_light_nothing_before_or_after() -> None:
    made = renderer(quiet(light=0.15, headlights=(Headlights(3, for_s=2),)))
    dark = made.render(25)[0].y
    middles = []
    for frame in range(30, 50, 2):
        assert made.truth(frame).headlights
        gain = made.render(frame)[0].y.astype(np.int16) - dark
        weight = np.clip(gain - gain.max() + 10, 0, None).sum(axis=0)
        middles.append(float((weight * np.arange(W)).sum() / weight.sum()))
    inside = middles[2:-2]
    assert inside == sorted(inside)
    assert inside[-1] - inside[0] > 0.4 * W
    assert not made.truth(29).headlights
    assert not made.truth(51).headlights
    assert np.array_equal(made.render(29)[0].y, dark)
    assert np.array_equal(made.render(90)[0].y, dark), "the exposure has come back"


def test_a_fan_turns_within_its_disc_only_and_begins_again_after_a_blade() -> None:
    fan = Fan(x=0.5, y=0.4, radius=0.2, turns_per_s=0.5, blades=4)
    bare, made = renderer(QUIET), renderer(quiet(fans=(fan,)))
    disc = mask_of(((0.5 - 0.2 * H / W - 0.01, 0.19, 0.4 * H / W + 0.02, 0.42),), (H, W))  # type: ignore[arg-type]
    pictures = [made.render(frame)[0].y for frame in range(6)]
    for frame, picture in enumerate(pictures):
        changed = differs(bare.render(frame)[0].y, picture)
        assert changed.any()
        assert not np.any(changed & (1 - disc))
    assert not np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(pictures[0], pictures[5]), "half a second is a quarter of a turn"


def test_the_shade_of_a_hard_edged_cloud_is_as_sharp_as_asked() -> None:
    def width_of_edge(edge: float) -> int:
        scene = quiet(clouds=(Cloud(1, for_s=10, depth=0.5, size=0.6, edge=edge),))
        field = renderer(scene)._changing(5.0)
        assert field is not None
        row = field[H // 2]
        low, high = row.min() + 0.1 * (1 - row.min()), 1 - 0.1 * (1 - row.min())
        return int(((row > low) & (row < high)).sum())

    hard, soft = width_of_edge(0.02), width_of_edge(0.0)
    assert 1 <= hard <= 0.06 * W
    assert soft > 3 * hard


# --- scenes ---------------------------------------------------------------------------------------------------

CAUSES: dict[str, Callable[[Truth], bool]] = {
    "lamp": lambda truth: any(truth.lamps_on),
    "night-ir": lambda truth: truth.infrared,
    "rain": lambda truth: truth.raining,
    "snow": lambda truth: truth.snowing,
    "insects": lambda truth: truth.insects > 0,
    "shake": lambda truth: truth.shaken,
    "hunting": lambda truth: abs(truth.hunting) > 0.1,
    "headlights": lambda truth: truth.headlights,
    "parked": lambda truth: bool(truth.things),
    "chair": lambda truth: any(thing.is_moving for thing in truth.things),
}


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"empty", "tamper"}))
def test_each_scene_has_its_cause_alone_and_with_somebody_and_an_empty_time(name: str) -> None:
    scene = BUILT_IN[name]
    made = Renderer(scene, 64, 48, 5)
    truths = [made.truth(frame) for frame in range(round(scene.period_s * 5))]
    assert any(truth.moving_boxes for truth in truths)
    if not scene.sitters:
        assert sum(not truth.boxes for truth in truths) > 5 * 5
    if name in CAUSES:
        assert any(CAUSES[name](truth) and truth.people for truth in truths)
        if name != "chair":
            assert any(CAUSES[name](truth) and not truth.people for truth in truths)
