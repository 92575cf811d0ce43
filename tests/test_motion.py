"""What the detector finds and what it leaves alone, on small drawn scenes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from agent.cameras.fake import FakeSource
from agent.cameras.scenes import BUILT_IN
from agent.model import NS_PER_S, Box, Frame, Motion, Packet, SensorReading
from agent.motion import Detector
from agent.motion.things import MAYBE, SURE, merged, shadow_likeness, things
from agent.settings import ZoneSettings

W, H = 320, 240
Picture = npt.NDArray[np.float64]


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """What was drawn for these tests is kept for none of the others."""
    yield
    drawn_wall.cache_clear()
    drawn_ground.cache_clear()
    cone.cache_clear()
    grain.cache_clear()


def wall() -> Picture:
    """A room without people: a shaded wall, a darker floor with planks, a door, a bright board."""
    return drawn_wall().copy()


@functools.cache
def drawn_wall() -> Picture:
    x, y = np.meshgrid(np.arange(W), np.arange(H))
    picture = 150.0 + 30 * x / W - 20 * y / H
    picture[170:] = 90 + 12 * ((x[170:] // 14) % 2)
    picture[60:170, 250:290] = 70
    picture[40:90, 40:110] = 200
    return picture


def person(picture: Picture, x: float, *, height: int = 90, level: float = 50.0, feet: int = 220) -> Picture:
    """Somebody dark in front of it: head, body and legs, centre at x."""
    out = picture.copy()
    left, right = round(x - height * 0.15), round(x + height * 0.15)
    top = feet - height
    for a, b, inset in ((top, top + height // 6, height // 14), (top + height // 6, feet, 0)):
        out[max(a, 0) : max(b, 0), max(left + inset, 0) : max(right - inset, 0)] = level
    return out


def frames(
    scene: Callable[[float], Picture], seconds: float, *, fps: float = 15.0, noise: float = 2.0, seed: int = 1
) -> Iterator[Frame]:
    """scene(t_s) as a camera would show it, with sensor noise."""
    grey = np.full((H // 2, W // 2), 128, np.uint8)
    noise_of = grain(seed)
    for i in range(round(seconds * fps)):
        picture = scene(i / fps) + noise * noise_of(i)
        yield Frame(i, round(i / fps * NS_PER_S) + 1, np.clip(picture, 16, 235).astype(np.uint8), grey, grey)


@functools.cache
def grain(seed: int) -> Callable[[int], npt.NDArray[np.float32]]:
    """The noise of each frame, of deviation 1. Kept: to draw it takes longer than to look at the frame."""
    random, drawn = np.random.default_rng(seed), list[npt.NDArray[np.float32]]()

    def of(number: int) -> npt.NDArray[np.float32]:
        while len(drawn) <= number:
            drawn.append(random.standard_normal((H, W)).astype(np.float32))
        return drawn[number]

    return of


def watch(
    scene: Callable[[float], Picture], seconds: float, *, fps: float = 15.0, noise: float = 2.0, **options: Any
) -> list[Motion]:
    detector = Detector(W, H, **options)
    return [detector.step(frame) for frame in frames(scene, seconds, fps=fps, noise=noise)]


def active_times(motions: list[Motion]) -> list[float]:
    return [motion.t_ns / NS_PER_S for motion in motions if motion.active]


def walker(t_s: float, *, at_s: float = 4.0, speed: float = 60.0, **look: Any) -> Picture:
    return walker_on(wall(), t_s, at_s=at_s, speed=speed, **look)


def walker_on(picture: Picture, t_s: float, *, at_s: float = 4.0, speed: float = 60.0, **look: Any) -> Picture:
    return person(picture, -14 + speed * (t_s - at_s), **look) if t_s >= at_s else picture


@pytest.mark.parametrize("fps", [5.0, 15.0, 30.0])
def test_a_walker_is_found_within_three_frames_at_any_rate(fps: float) -> None:
    # From 4 s on some part of him is in the picture.
    first = active_times(watch(walker, 6, fps=fps))[0]
    assert 4.0 <= first <= 4.0 + 3.01 / fps + 2 / 60


def test_the_box_holds_the_person() -> None:
    motion = watch(walker, 6.5)[-1]
    x = (-14 + 60 * (motion.t_ns / NS_PER_S - 4)) / W
    box = motion.boxes[0]
    assert box.x < x < box.x + box.w
    assert abs(box.y - 130 / H) < 0.06
    assert abs(box.y + box.h - 220 / H) < 0.06
    assert box.w < 0.25
    assert motion.score > 0.8
    assert motion.since is not None
    assert 58 <= motion.since.frame <= 64


@pytest.mark.parametrize("brighter", [16, 32, 48, 64])
def test_a_thing_brighter_by_a_multiple_of_sixteen_is_found(brighter: int) -> None:
    """Arithmetic in eight bits without a sign calls these even."""
    flat = np.full((H, W), 100.0)
    motions = watch(lambda t: person(flat, 60 * (t - 4), level=100.0 + brighter) if t > 4 else flat, 7)
    assert active_times(motions)


def test_an_empty_scene_is_quiet_whatever_the_noise() -> None:
    for noise in (0.0, 1.0, 4.0, 12.0):
        assert active_times(watch(lambda _: wall(), 8, noise=noise)) == []


def lamp(t_s: float, on_s: float = 4.0, ramp_s: float = 0.0) -> Picture:
    """1 everywhere, then more light around the upper left."""
    power = 1.0 if ramp_s == 0 else min(1.0, max(0.0, (t_s - on_s) / ramp_s))
    return 1 + power * cone() if t_s >= on_s else np.ones((H, W))


@functools.cache
def cone() -> Picture:
    x, y = np.meshgrid(np.arange(W), np.arange(H))
    light: Picture = 0.9 * np.exp(-((x - 80) ** 2 + (y - 40) ** 2) / (2 * 130.0**2))
    return light


def lit(picture: Picture, light: Picture | float) -> Picture:
    """Light multiplies what is above black."""
    return 16 + (picture - 16) * light


@pytest.mark.parametrize("ramp_s", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("darker", [0.4, 0.7])
def test_a_lamp_is_no_motion_however_fast_it_comes(ramp_s: float, darker: float) -> None:
    motions = watch(lambda t: lit(wall(), darker * lamp(t, 4.0, ramp_s)), 9)
    assert active_times(motions) == []


def test_a_dimmed_room_is_no_motion() -> None:
    for factor in (0.25, 0.5, 0.8):
        motions = watch(lambda t, f=factor: lit(wall(), f if t > 4 else 1.0), 9)  # type: ignore[misc]
        assert active_times(motions) == []


def test_a_change_of_light_is_told() -> None:
    motions = watch(lambda t: lit(wall(), 0.5 if t > 4 else 1.0), 6)
    told = [motion.t_ns / NS_PER_S for motion in motions if motion.light_changed]
    assert told
    assert 4.0 <= told[0] < 4.2


def test_whoever_switches_the_lamp_on_is_found() -> None:
    motions = watch(lambda t: lit(walker(t, at_s=4.0, speed=40), 0.5 * lamp(t, 6.0)), 10)
    assert [t for t in active_times(motions) if 4 < t < 6]
    assert [t for t in active_times(motions) if t > 6.7]


def test_whoever_comes_right_after_the_light_is_found() -> None:
    motions = watch(lambda t: lit(walker(t, at_s=4.3), 0.6 if t > 4 else 1.0), 8)
    assert [t for t in active_times(motions) if t < 5.5]


def test_a_large_thing_to_which_the_camera_adapts_its_exposure_stays_in_sight() -> None:
    def scene(t_s: float) -> Picture:
        picture = np.full((H, W), 90.0)
        picture[:, np.arange(W) // 20 % 2 == 1] += 8
        if t_s < 4:
            return picture
        top = round(240 - 90 * (t_s - 4))
        picture[max(top, 0) : max(top + 150, 0), 90:230] = 215  # a white van from above
        share = (min(top + 150, H) - max(top, 0)) * 140 / (W * H)
        return lit(picture, 1 - 1.2 * max(share, 0))

    times = active_times(watch(scene, 8))
    missed = [t for t in np.arange(4.5, 7.5, 1 / 15) if not any(abs(t - at) < 0.05 for at in times)]
    assert missed == []


def test_the_sensor_tells_that_the_infrared_filter_came() -> None:
    """A few things reflect infrared otherwise: to the picture alone they have moved."""

    def scene(t_s: float) -> Picture:
        picture = wall()
        if t_s > 5:
            picture[40:90, 40:110] = 110
            picture[60:170, 250:290] = 150
        return person(picture, 60 * (t_s - 7)) if t_s > 7 else picture

    def motions(tells: bool) -> list[Motion]:
        detector, said = Detector(W, H), []
        for frame in frames(scene, 9):
            gains = (1.0, 1.0) if frame.t_ns > 5 * NS_PER_S else (2.1, 1.6)
            said.append(detector.step(replace(frame, sensor=SensorReading(colour_gains=gains) if tells else None)))
        return said

    assert min(active_times(motions(False))) < 6
    told = motions(True)
    assert 7 < min(active_times(told)) < 7.5
    assert [motion.light_changed for motion in told[74:78]].count(True) >= 2


def test_a_soft_shadow_passing_over_is_no_motion() -> None:
    x = np.arange(W)

    def scene(t_s: float) -> Picture:
        edge = np.clip((x - 60 * (t_s - 3)) / 80, 0, 1)
        shadow: Picture = np.tile(0.6 + 0.4 * (edge * edge * (3 - 2 * edge)), (H, 1))
        return lit(wall(), shadow)

    assert active_times(watch(scene, 11)) == []


def ground() -> Picture:
    """Grass or gravel: texture everywhere."""
    return drawn_ground().copy()


@functools.cache
def drawn_ground() -> Picture:
    texture = cv2.GaussianBlur(np.random.default_rng(4).normal(0, 1, (H, W)), (0, 0), 2.5)
    rough: Picture = wall() + 14 * texture / texture.std()
    return rough


def hard_shadow(t_s: float, *, takes: float = 0.45) -> Picture:
    """A cloud's shadow, 200 pixels wide, whose edge is sharp, at 70 pixels a second from 4 s on."""
    x, y = np.meshgrid(np.arange(W), np.arange(H))
    right = 70 * (t_s - 4) - 0.4 * y
    shadow: Picture = 1 - takes * np.clip((right - x) / 4, 0, 1) * np.clip((x - right + 200) / 4, 0, 1)
    return shadow


@pytest.mark.parametrize("takes", [0.25, 0.35, 0.45])
def test_a_hard_shadow_passing_over_ground_with_texture_is_no_motion(takes: float) -> None:
    assert active_times(watch(lambda t: lit(ground(), hard_shadow(t, takes=takes)), 14, noise=1.0)) == []


def test_somebody_in_one_dark_colour_is_no_shadow() -> None:
    for level in (30.0, 60.0, 90.0):
        times = active_times(watch(lambda t, of=level: walker_on(ground(), t, level=of), 7))  # type: ignore[misc]
        assert 4.0 < times[0] < 4.5


def test_a_shadow_that_took_the_texture_is_told_by_the_levels_under_it() -> None:
    random = np.random.default_rng(5)
    rough = cv2.GaussianBlur(random.normal(0, 1, (60, 60)), (0, 0), 4)
    usual = np.clip(110 + 40 * rough / rough.std() + 6 * random.normal(size=(60, 60)), 20, 220).astype(np.uint8)
    smooth = cv2.GaussianBlur(usual, (0, 0), 1.5)
    noise = np.ones((60, 60), np.float32)

    def likeness(now: npt.NDArray[np.uint8]) -> float:
        found = shadow_likeness(now, usual, noise, (10, 10, 40, 40))
        assert found is not None
        return found

    assert likeness((smooth * 0.55).astype(np.uint8)) >= SURE
    assert likeness(np.full((60, 60), 45, np.uint8)) < MAYBE
    assert likeness(smooth[::-1, ::-1] // 2) < MAYBE  # clothes of as many levels, but others


def test_somebody_who_walks_while_a_hard_shadow_passes_is_found() -> None:
    times = active_times(watch(lambda t: lit(walker_on(ground(), t, at_s=6.0), hard_shadow(t)), 12, noise=1.0))
    assert 6.0 < times[0] < 7.0


def test_who_stands_and_leaves_leaves_no_ghost() -> None:
    """Comes, stands for 12 s without moving, leaves: afterwards the room is empty and quiet."""

    def scene(t_s: float) -> Picture:
        if t_s < 4 or t_s > 20:
            return wall()
        x = min(-14 + 80 * (t_s - 4), 160) if t_s < 17 else 160 + 80 * (t_s - 17)
        return person(wall(), x)

    times = active_times(watch(scene, 26))
    assert [t for t in times if 4 < t < 6]
    assert [t for t in times if 8 < t < 17] == []
    assert [t for t in times if 17 < t < 20]
    assert [t for t in times if t > 20.3] == []


def test_a_thing_that_stays_is_absorbed_without_a_second_event() -> None:
    def scene(t_s: float) -> Picture:
        picture = wall()
        if t_s > 6:
            picture[180:225, 150:200] = 170  # a parcel
        return picture

    times = active_times(watch(scene, 40))
    assert all(t < 7.5 for t in times)


def test_waving_leaves_come_to_rest_and_a_person_before_them_is_found() -> None:
    x, y = np.meshgrid(np.arange(W), np.arange(H))

    def scene(t_s: float) -> Picture:
        picture = wall()
        sway = 3 * np.sin(2 * np.pi * t_s / 1.7 + y / 40)
        leaves = 90 + 60 * np.sign(np.sin((x + sway) / 2.3) * np.sin((y + sway / 2) / 2.9))
        picture[20:200, 180:310] = leaves[20:200, 180:310]
        return person(picture, 200 + 25 * (t_s - 14), height=150) if t_s > 14 else picture

    times = active_times(watch(scene, 18))
    assert [t for t in times if 5 < t < 14] == []
    assert times


def test_rain_is_no_motion() -> None:
    random = np.random.default_rng(4)

    def scene(_: float) -> Picture:
        picture = wall()
        for _ in range(60):
            x, y = random.integers(0, W), random.integers(0, H - 16)
            picture[y : y + 14, x : x + 1] += 60
        return picture

    assert [t for t in active_times(watch(scene, 15)) if t > 5] == []


def heavy_rain(t_s: float, streaks: int = 30, brighter: int = 60) -> Picture:
    """From 6 s on, within two seconds; each frame's streaks are elsewhere."""
    random, picture = np.random.default_rng(round(t_s * 1000)), wall()
    for _ in range(round(streaks * min(1.0, max(0.0, t_s - 6) / 2))):
        x, y = random.integers(0, W), random.integers(0, H - 20)
        picture[y : y + 18, x : x + 1] += brighter
    return picture


def test_rain_that_sets_in_hard_is_no_motion() -> None:
    assert [t for t in active_times(watch(heavy_rain, 14)) if t > 5] == []


def test_somebody_who_walks_as_the_rain_sets_in_is_found() -> None:
    times = active_times(watch(lambda t: walker_on(heavy_rain(t), t, at_s=7.0), 11))
    assert 7.0 < times[0] < 8.0


def test_somebody_far_away_and_slow_is_found_in_the_rain() -> None:
    """He is no wider than a streak, but at the next look he is there still."""

    def scene(t_s: float) -> Picture:
        picture = heavy_rain(t_s, streaks=60)
        if t_s >= 11:
            x = round(100 + 5 * (t_s - 11))
            picture[150:180, x : x + 3] -= 24
        return picture

    assert 11.0 < active_times(watch(scene, 13, fps=10))[0] < 11.8


def snow_on(picture: Picture, t_s: float) -> Picture:
    """Hundreds of flakes, each of 9 pixels, in each frame elsewhere."""
    random, out = np.random.default_rng(round(t_s * 1000)), picture.copy()
    for _ in range(400):
        x, y = random.integers(0, W - 3), random.integers(0, H - 3)
        out[y : y + 3, x : x + 3] += 60
    return out


def test_somebody_small_and_quick_is_found_in_the_snow() -> None:
    """At each look he is elsewhere, as the flakes are, but wider than they."""
    times = active_times(watch(lambda t: walker_on(snow_on(wall(), t), t, at_s=9, height=24, speed=100), 11, fps=10))
    assert 9.0 < times[0] < 9.8


def test_traces_are_weather_where_most_of_what_changes_is_elsewhere() -> None:
    candidates = np.zeros((30, 40), np.uint8)
    candidates[10:12, 10:12] = 6
    changed = np.zeros((120, 160), np.uint8)
    changed[38:46, 40:46] = 255

    def is_lost(changed: npt.NDArray[np.uint8]) -> bool:
        return things(changed, changed, False, candidates, candidates > 0, (1 / 160, 1 / 120)).is_lost

    snow = changed.copy()
    snow[::4, 60::4] = 255
    assert not is_lost(changed)
    assert is_lost(snow)
    candidates *= 20
    assert not is_lost(snow)


def insects_on(picture: Picture, t_s: float) -> Picture:
    """One a second, from 4 s on: a bright streak that flies through the whole picture in five eighths of a second."""
    out = picture.copy()
    share = t_s % 1.0 * 1.6
    if t_s >= 4 and share < 1:
        x, y = round(share * W), round(60 + 30 * (int(t_s) % 4) + 20 * np.sin(6 * share))
        out[y : y + 10, x : x + 16] += 70
    return out


@pytest.mark.parametrize("fps", [10.0, 15.0, 30.0])
def test_insects_that_fly_by_are_no_motion(fps: float) -> None:
    assert active_times(watch(lambda t: insects_on(wall(), t), 14, fps=fps)) == []


@pytest.mark.parametrize("fps", [10.0, 30.0])
def test_somebody_who_hurries_among_insects_is_found(fps: float) -> None:
    # 160 pixels a second: two of his own heights.
    times = active_times(watch(lambda t: walker_on(insects_on(wall(), t), t, at_s=7.0, speed=160), 9, fps=fps))
    assert 7.0 < times[0] < 7.4


def test_what_had_not_changed_a_moment_ago_is_no_thing_and_small_bits_none_among_many_of_their_kind() -> None:
    candidates = np.zeros((30, 40), np.uint8)
    candidates[10:13, 10:13] = 30
    changed = np.zeros((120, 160), np.uint8)
    changed[36:48:2, 36:48] = 255

    def boxes(before: npt.NDArray[np.uint8], changed: npt.NDArray[np.uint8] = changed, is_soon: bool = False) -> int:
        return len(things(changed, before, is_soon, candidates, candidates > 0, (1 / 160, 1 / 120)).boxes)

    gone, rain = np.zeros_like(changed), changed.copy()
    rain[::7, 60::5] = 255
    assert boxes(changed) == 1
    assert boxes(gone) == 1  # whoever runs alone may be elsewhere a fifth of a second later
    assert boxes(gone, is_soon=True) == 0
    assert boxes(changed, is_soon=True) == 1
    assert boxes(gone, rain) == 0
    assert boxes(changed, rain) == 1


def test_it_learns_within_five_seconds_and_says_so_meanwhile() -> None:
    motions = watch(walker, 6)
    learning = [motion.t_ns / NS_PER_S for motion in motions if motion.learning]
    assert learning[0] < 0.1
    assert learning[-1] < 1.6
    assert not any(motion.active for motion in motions if motion.learning)


def test_a_scene_that_never_rests_is_learned_after_five_seconds_at_most() -> None:
    random = np.random.default_rng(5)
    motions = watch(lambda _: random.uniform(40, 200, (H, W)), 7)
    assert max(motion.t_ns for motion in motions if motion.learning) < 5 * NS_PER_S


def test_after_a_gap_it_learns_anew() -> None:
    detector = Detector(W, H)
    for frame in frames(lambda _: wall(), 3):
        detector.step(frame)
    grey = np.full((H // 2, W // 2), 128, np.uint8)
    other = np.full((H, W), 180, np.uint8)
    later = detector.step(Frame(0, 60 * NS_PER_S, other, grey, grey))
    assert later.learning
    assert not later.active


def zone(kind: str, polygon: list[tuple[float, float]]) -> ZoneSettings:
    return ZoneSettings.model_validate({"id": "here", "kind": kind, "polygon": polygon})


RIGHT = [(0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)]


def test_a_detect_zone_sees_what_is_in_it_and_is_named() -> None:
    motions = watch(walker, 8, zones=[zone("detect", RIGHT)])
    times = active_times(motions)
    # He reaches the middle of the picture at 4 + (160 + 14 - 13) / 60 s.
    assert 6.5 < times[0] < 7.2
    assert all(motion.zones == ("here",) for motion in motions if motion.active)


def test_an_ignore_zone_hides_what_is_in_it() -> None:
    times = active_times(watch(walker, 8, zones=[zone("ignore", RIGHT)]))
    assert times
    # He is behind its edge at 7.13 s, and while something is active the detector looks four times a second.
    assert max(times) < 7.65


def test_higher_sensitivity_finds_smaller_and_fainter_people() -> None:
    def found(sensitivity: int, height: int, level: float) -> bool:
        def scene(t_s: float) -> Picture:
            return walker(t_s, height=height, level=level, feet=200)

        return bool(active_times(watch(scene, 9, sensitivity=sensitivity)))

    assert found(50, 30, 50.0)
    assert not found(0, 14, 50.0)
    assert found(100, 14, 50.0)


def test_a_zone_has_a_sensitivity_of_its_own() -> None:
    """Somebody small crosses; he is found where the zone is sensitive, and only there."""

    def scene(t_s: float) -> Picture:
        return walker(t_s, height=14, level=50.0, feet=200)

    left = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]

    def zones(of_left: int | None, of_right: int | None) -> list[ZoneSettings]:
        return [
            ZoneSettings.model_validate({"id": name, "kind": "detect", "polygon": polygon, "sensitivity": own})
            for name, polygon, own in (("left", left, of_left), ("right", RIGHT, of_right))
        ]

    assert active_times(watch(scene, 9, sensitivity=0, zones=zones(None, None))) == []
    motions = watch(scene, 9, sensitivity=0, zones=zones(None, 100))
    # He is at the middle 2.9 s after he came.
    assert 6.6 < min(active_times(motions)) < 7.4
    times = active_times(watch(scene, 9, sensitivity=100, zones=zones(None, 0)))
    assert 4 < min(times) < 5
    assert max(times) < 7.4


def test_two_runs_say_the_same() -> None:
    assert watch(walker, 7) == watch(walker, 7)


def test_time_that_does_not_rise_and_another_size_are_refused() -> None:
    detector = Detector(W, H)
    frame = next(frames(lambda _: wall(), 1))
    detector.step(frame)
    with pytest.raises(ValueError, match="must rise"):
        detector.step(frame)
    with pytest.raises(ValueError, match="not 640x480"):
        Detector(640, 480).step(frame)


@pytest.mark.parametrize("size", [(64, 64), (322, 182), (640, 360), (480, 640), (1920, 1080), (66, 1080)])
def test_any_size_of_picture_will_do(size: tuple[int, int]) -> None:
    width, height = size
    detector = Detector(width, height)
    grey = np.full((height // 2, width // 2), 128, np.uint8)
    found = False
    for i in range(60):
        y = np.full((height, width), 120, np.uint8)
        if i > 30:
            left = (i - 30) * width // 40
            y[height // 3 :, left : left + width // 4] = 40
        motion = detector.step(Frame(i, i * NS_PER_S // 15 + 1, y, grey, grey))
        found |= motion.active
        for box in motion.boxes:
            assert 0 <= box.x <= box.x + box.w <= 1.0001
            assert 0 <= box.y <= box.y + box.h <= 1.0001
    assert found


def test_parts_of_one_person_make_one_box_and_two_people_two() -> None:
    head, legs, other = Box(0.5, 0.2, 0.1, 0.1), Box(0.49, 0.34, 0.1, 0.3), Box(0.8, 0.2, 0.1, 0.4)
    boxes = merged([head, legs, other])
    assert len(boxes) == 2
    assert boxes[0].y == 0.2
    assert boxes[0].h == pytest.approx(0.44)
    assert merged([]) == []


def test_who_walks_when_the_lamp_goes_off_stays_in_sight() -> None:
    source, sink, detector = (
        FakeSource(BUILT_IN["lamp"], width=320, height=240, fps=15, want_packets=False),
        Collected(),
        Detector(320, 240),
    )
    source.open(NS_PER_S)
    lost = []
    for i in range(34 * 15):
        source.step(sink)
        is_active = detector.step(sink.frames.pop()).active
        # He comes at 31.1 s; the lamp goes off at 32.2 s.
        if i > 31.5 * 15 and not is_active:
            lost.append(i)
    assert lost == []


class Collected:
    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def on_packet(self, packet: Packet) -> None:
        """Frames are enough."""

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(frame)


@pytest.mark.parametrize(
    ("name", "seconds", "fps"),
    [
        ("office", 22, 10),
        ("lamp", 37, 10),
        ("night-ir", 32, 10),
        ("flicker", 17, 10),
        ("garden", 22, 10),
        ("insects", 25, 10),
        ("insects", 25, 30),
    ],
)
def test_the_fake_cameras_people_are_found_and_all_else_is_left_alone(name: str, seconds: int, fps: int) -> None:
    source, sink = FakeSource(BUILT_IN[name], width=320, height=240, fps=fps, want_packets=False), Collected()
    source.open(NS_PER_S)
    detector = Detector(320, 240)
    truth, said = [], []
    for _ in range(seconds * fps):
        truth.append(bool(source.truth(source.next_frame).boxes))
        source.step(sink)
        said.append(detector.step(sink.frames.pop()).active)
    starts = [i for i in range(1, len(truth) - 5) if not truth[i - 1] and all(truth[i : i + 5])]
    assert starts
    for start in starts:
        assert any(said[start : start + 3 * fps // 2]), f"nobody found who came at frame {start}"
    empty = [i for i in range(5 * fps, len(truth)) if not any(truth[max(i - fps, 0) : i + 2])]
    assert [i for i in empty if said[i]] == []
