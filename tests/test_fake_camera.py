"""The fake camera shows what its scene says, and its truth is true of the pixels."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_fixtures import Recorder, decode_packets

from agent.cameras.fake import FakeSource
from agent.cameras.nuisances import Fan, Headlights, Hunt, Insects, Shake, Snow, Thing
from agent.cameras.planes import Planes
from agent.cameras.render import Renderer
from agent.cameras.scene import (
    Cloud,
    Cover,
    Daylight,
    Fault,
    FaultKind,
    Foliage,
    Freeze,
    Infrared,
    Lamp,
    Rain,
    Scene,
    Sitter,
    Turn,
    Walker,
    load_scene,
)
from agent.cameras.scenes import BUILT_IN, find_scene
from agent.cameras.strip import MAX_NUMBER, draw_frame_number, read_frame_number
from agent.errors import CameraError, ConfigError
from agent.model import Box, Plane

FPS = 10
W, H = 320, 240
QUIET = Scene("quiet", gain_noise=0)
"""Without sensor noise a pixel changes only where the scene does."""


def renderer(scene: Scene, **more: float) -> Renderer:
    return Renderer(scene, W, H, more.get("fps", FPS))


def luma(scene: Scene, *times_s: float) -> list[Plane]:
    made = renderer(scene)
    return [made.render(round(t * FPS))[0].y for t in times_s]


def mask_of(boxes: tuple[Box, ...], shape: tuple[int, int]) -> Plane:
    inside = np.zeros(shape, np.uint8)
    for x, y, w, h in boxes:
        height, width = shape
        x0, y0, x1, y1 = x * width, y * height, (x + w) * width, (y + h) * height
        inside[round(y0) : round(y1), round(x0) : round(x1)] = 1
    return inside


def differs(a: Plane, b: Plane, by: int = 0) -> Plane:
    return np.asarray(np.abs(a.astype(np.int16) - b) > by, np.uint8)


# --- people ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("place", ["office", "garden", "counter"])
def test_boxes_hold_every_pixel_that_is_there_because_of_somebody(place: str, noise: float) -> None:
    empty = Scene("empty", place, gain_noise=noise)  # type: ignore[arg-type]
    people = dataclasses.replace(
        empty,
        walkers=(Walker(1, height=0.6), Walker(1.5, from_x=1.1, to_x=-0.1, height=0.4, feet_y=0.8, look=2)),
        sitters=(Sitter(x=0.6, look=1),),
    )
    bare, full = renderer(empty), renderer(people)
    for frame in range(0, 90, 4):
        a, b = bare.render(frame)[0].y, full.render(frame)[0].y
        truth = full.truth(frame)
        inside = mask_of(truth.boxes, a.shape)
        changed = differs(a, b)
        assert not np.any(changed & (1 - inside)), f"frame {frame}: pixels changed outside of all boxes"
        for person in truth.people:
            if person.box.x > 0.02 and person.box.x + person.box.w < 0.98:
                own = mask_of((person.box,), a.shape)
                assert (differs(a, b, 4) & own).sum() > 0.2 * own.sum(), f"frame {frame}: {person} is hardly there"


def test_a_walker_crosses_at_the_stated_speed_and_size() -> None:
    made = renderer(dataclasses.replace(QUIET, walkers=(Walker(1, from_x=-0.1, to_x=1.1, speed=0.2, height=0.5),)))
    middles = {}
    for frame in range(90):
        boxes = made.truth(frame).boxes
        if boxes and boxes[0].x > 0.02 and boxes[0].x + boxes[0].w < 0.98:
            middles[frame] = boxes[0].x + boxes[0].w / 2
            assert 0.46 < boxes[0].h < 0.56
            assert abs(boxes[0].y + boxes[0].h - 0.92) < 0.04, "the feet are on the floor"
    frames = sorted(middles)
    speed = (middles[frames[-1]] - middles[frames[0]]) / (frames[-1] - frames[0]) * FPS
    assert abs(speed - 0.2) < 0.02
    assert not made.truth(9).boxes
    assert not made.truth(10 + 61).boxes


def test_a_walker_who_pauses_stands_still_and_is_not_called_moving() -> None:
    walker = Walker(0, from_x=0.2, to_x=0.8, speed=0.2, pause_at=0.5, pause_s=2, back=True)
    made = renderer(dataclasses.replace(QUIET, walkers=(walker,)))
    truths = [made.truth(frame) for frame in range(round(walker.for_s * FPS))]
    moving = [bool(truth.moving_boxes) for truth in truths]
    assert all(truth.boxes for truth in truths)
    assert moving.count(False) == pytest.approx(40, abs=2), "once on the way there, once on the way back"
    standing = [i for i, value in enumerate(moving) if not value][:15]
    pictures = [made.render(frame)[0].y for frame in standing]
    assert all(np.array_equal(pictures[0], other) for other in pictures)


def test_legs_and_arms_move_while_walking() -> None:
    made = renderer(dataclasses.replace(QUIET, walkers=(Walker(0, from_x=0.2, speed=0.15, height=0.8, feet_y=1.0),)))
    widths = {round(made.truth(frame).boxes[0].w * W) for frame in range(20)}
    assert max(widths) > 1.3 * min(widths)


def test_low_contrast_is_harder_to_see() -> None:
    differences = []
    empty = luma(QUIET, 2)[0]
    for contrast in (1.0, 0.5, 0.15):
        scene = dataclasses.replace(QUIET, walkers=(Walker(0, height=0.6, speed=0.2, contrast=contrast),))
        differences.append(float(np.abs(luma(scene, 2)[0].astype(float) - empty).sum()))
    assert differences[0] > 1.5 * differences[1] > 3 * differences[2] > 0


def test_a_seated_clerk_hardly_moves_but_does() -> None:
    scene = dataclasses.replace(QUIET, place="counter", sitters=(Sitter(x=0.55, seat_y=0.66, height=0.4),))
    made = renderer(scene)
    pictures = [made.render(frame)[0].y for frame in range(0, 300, 5)]
    box = mask_of(made.truth(0).boxes, (H, W)).sum()
    changed = [int(differs(a, b, 8).sum()) for a, b in itertools.pairwise(pictures)]
    assert 3 < sum(1 for count in changed if count) < len(changed)
    assert max(changed) < 0.5 * box
    assert sorted(changed)[len(changed) // 2] < 0.1 * box
    assert all(not made.truth(frame).moving_boxes for frame in range(0, 300, 5))


# --- light ----------------------------------------------------------------------------------------------------


def test_a_lamp_brightens_the_picture_at_once_and_the_exposure_takes_it_back() -> None:
    scene = dataclasses.replace(QUIET, light=0.35, lamps=(Lamp(at_s=2, for_s=5),))
    made = renderer(scene)
    means = [float(made.render(frame)[0].y.mean()) for frame in range(120)]
    lamps = [made.truth(frame).lamps_on[0] for frame in range(120)]
    assert lamps.index(True) in (20, 21)
    assert sum(lamps) == pytest.approx(50, abs=2)
    assert abs(means[19] - means[0]) < 0.5
    assert max(means[21:24]) > means[19] + 30, "the step shows at once"
    assert abs(means[60] - means[19]) < 12, "the exposure has settled"
    assert min(means[71:75]) < means[60] - 20, "and the other way round"
    before, after = made.render(19)[1], made.render(60)[1]
    assert before.exposure_us is not None
    assert after.exposure_us is not None
    assert after.exposure_us < 0.6 * before.exposure_us
    assert made.truth(60).light > 1.5 * made.truth(19).light


def test_a_lamp_lights_its_own_side_more() -> None:
    off, on = luma(dataclasses.replace(QUIET, light=0.35, lamps=(Lamp(2, 9, x=0.9, reach=0.4),)), 1.9, 2.1)
    gain = on.astype(float) / np.maximum(off, 1)
    assert gain[:, W // 2 :].mean() > 1.05 * gain[:, : W // 2].mean()


def test_somebody_under_a_lamp_is_lit_by_it() -> None:
    scene = dataclasses.replace(QUIET, light=0.1, lamps=(Lamp(3, 9),), walkers=(Walker(0, speed=0.2, height=0.7),))
    made = renderer(scene)
    dark, lit = made.render(29)[0].y, made.render(31)[0].y
    for y, frame in ((dark, 29), (lit, 31)):
        assert mask_of(made.truth(frame).boxes, y.shape).any()
    inside = mask_of(made.truth(29).boxes, dark.shape) & mask_of(made.truth(31).boxes, lit.shape)
    assert lit[inside > 0].mean() > dark[inside > 0].mean() + 20


def test_daylight_fades_in_lux_while_exposure_and_gain_make_up_for_it() -> None:
    made = renderer(dataclasses.replace(QUIET, daylight=(Daylight(0, 30, 1.0, 0.05),)))
    made_frames = [made.render(frame) for frame in range(0, 310, 10)]
    readings = [reading for _, reading in made_frames]
    lux = [reading.lux or 0 for reading in readings]
    assert all(a >= b for a, b in itertools.pairwise(lux))
    assert lux[-1] < 0.1 * lux[0]
    gains = [reading.analogue_gain or 0 for reading in readings]
    assert gains[0] == 1
    assert gains[-1] > 4
    means = [float(planes.y.mean()) for planes, _ in made_frames]
    assert max(means) - min(means) < 25


def test_a_cloud_travels_from_left_to_right() -> None:
    scene = dataclasses.replace(QUIET, clouds=(Cloud(at_s=1, for_s=10, depth=0.5, size=0.4),))
    made = renderer(scene)
    bare = made.render(0)[0].y.astype(float).mean(axis=0)
    columns = []
    for frame in (45, 55, 65, 75):
        ratio = made.render(frame)[0].y.astype(float).mean(axis=0) / bare
        columns.append(int(np.argmin(np.convolve(ratio, np.ones(31) / 31, "valid"))))
    assert columns == sorted(columns)
    assert columns[-1] > columns[0] + 0.2 * W


def test_infrared_makes_the_picture_grey_and_noisy_until_day() -> None:
    scene = Scene("night", light=0.02, infrared=(Infrared(2, 3),))
    made = renderer(scene)
    night, night_reading = made.render(40)
    day, _ = made.render(10)
    assert np.all(night.u == 128)
    assert np.all(night.v == 128)
    assert day.u.std() > 1
    assert night_reading.analogue_gain is not None
    assert night_reading.analogue_gain > 3
    assert [made.truth(frame).infrared for frame in (19, 20, 49, 50)] == [False, True, True, False]
    assert abs(float(made.render(21)[0].y.mean()) - float(made.render(19)[0].y.mean())) > 15, "the switch jumps"


def test_weak_infrared_leaves_the_place_dark_and_noisy() -> None:
    usual, weak = (
        [y.astype(np.int16) for y in luma(Scene("night", infrared=(Infrared(0, 9, brightness=brightness),)), 2, 2.1)]
        for brightness in (1.0, 0.1)
    )
    assert 60 < weak[0].mean() < 0.7 * usual[0].mean()
    assert (weak[1] - weak[0]).std() > 1.2 * (usual[1] - usual[0]).std()


def test_mains_flicker_makes_bands_that_roll() -> None:
    def bands(flicker: float, frame: int) -> npt.NDArray[np.float64]:
        made = Renderer(dataclasses.replace(QUIET, flicker=flicker), W, H, 15)
        still = Renderer(QUIET, W, H, 15)
        a, b = (each.render(frame)[0].y.astype(float) for each in (made, still))
        return np.asarray(a.mean(axis=1) - b.mean(axis=1), np.float64)

    assert np.abs(bands(0.0, 3)).max() == 0
    assert np.ptp(bands(0.1, 3)) > 4
    assert np.abs(bands(0.1, 3) - bands(0.1, 4)).max() > 2
    assert np.ptp(bands(0.2, 3)) > 1.6 * np.ptp(bands(0.1, 3))


def test_noise_grows_with_gain_and_is_new_in_each_frame() -> None:
    def noise(light: float) -> float:
        made = renderer(Scene("dark", light=light))
        a, b = (made.render(frame)[0].y.astype(float) for frame in (5, 6))
        return float((a - b).std()) / 2**0.5

    assert 0.7 < noise(1.0) < 2
    assert noise(0.03) > 2.5 * noise(1.0)
    a, b = luma(QUIET, 1, 2)
    assert np.array_equal(a, b)


# --- weather and leaves ---------------------------------------------------------------------------------------


def test_rain_brightens_streaks_and_nothing_else() -> None:
    scene = dataclasses.replace(QUIET, place="garden", rain=(Rain(2, 3),))
    made = renderer(scene)
    dry, wet, other, after = (made.render(frame)[0].y for frame in (19, 20, 21, 50))
    assert np.array_equal(dry, after)
    assert np.all(wet >= dry)
    assert 0.002 < differs(wet, dry, 5).mean() < 0.1
    assert not np.array_equal(wet, other)
    assert [made.truth(frame).raining for frame in (19, 20, 49, 50)] == [False, True, True, False]


def test_leaves_wave_within_their_region_only() -> None:
    region = Foliage(x=0.6, y=0.05, w=0.35, h=0.45)
    made = renderer(dataclasses.replace(QUIET, place="garden", foliage=(region,)))
    pictures = [made.render(frame)[0].y for frame in range(0, 60, 7)]
    inside = mask_of((Box(region.x, region.y, region.w, region.h),), (H, W))
    for a, b in itertools.pairwise(pictures):
        changed = differs(a, b, 3)
        assert not np.any(changed & (1 - inside))
        assert changed.sum() > 0.01 * inside.sum()
    assert not made.truth(10).boxes


# --- tampering ------------------------------------------------------------------------------------------------


def test_a_covering_hand_darkens_and_hides_everything() -> None:
    made = renderer(dataclasses.replace(QUIET, covers=(Cover(2, 3),)))
    free, coming, covered, after = (made.render(frame)[0].y.astype(float) for frame in (19, 25, 45, 70))

    def detail(y: npt.NDArray[np.float64]) -> float:
        return float(np.abs(np.diff(y, axis=1)).mean())

    assert coming.mean() < 0.6 * free.mean()
    assert detail(covered) < 0.3 * detail(free)
    assert np.abs(after - free).mean() < 3
    assert [made.truth(frame).covered for frame in (19, 25, 45, 60)] == [False, True, True, False]


def test_half_a_cover_leaves_the_other_half() -> None:
    free, half = luma(dataclasses.replace(QUIET, covers=(Cover(2, 3, share=0.4),)), 1.9, 2.5)
    assert half[:, : W // 5].mean() < 0.6 * free[:, : W // 5].mean()
    assert half[:, -W // 4 :].mean() > 0.8 * free[:, -W // 4 :].mean()


def test_a_turned_camera_shows_the_place_shifted_and_people_with_it() -> None:
    sitter = Sitter(x=0.7)
    scene = dataclasses.replace(QUIET, turns=(Turn(2, 3, dx=0.25, ramp_s=0.3),), sitters=(sitter,))
    made = renderer(scene)
    before, turned, after = (made.render(frame)[0].y for frame in (19, 40, 60))
    shift = round(0.25 * W)
    assert np.abs(turned[:, :-shift].astype(float) - before[:, shift:]).mean() < 1
    assert np.array_equal(before, after)
    assert [made.truth(frame).turned for frame in (19, 22, 40, 60)] == [False, True, True, False]
    moved = made.truth(19).boxes[0].x - made.truth(40).boxes[0].x
    assert abs(moved - 0.25) < 0.02


def test_a_frozen_picture_stays_the_same_to_the_pixel_while_its_number_goes_on() -> None:
    scene = Scene("frozen", freezes=(Freeze(1, 2),), walkers=(Walker(0.5, speed=0.3),))
    source, got = FakeSource(scene, width=W, height=H, fps=FPS), Recorder()
    source.open(0)
    for _ in range(40):
        source.step(got)
    assert all(np.array_equal(got.frames[10].y, got.frames[i].y) for i in range(10, 30))
    assert not np.array_equal(got.frames[9].y, got.frames[10].y)
    assert not np.array_equal(got.frames[29].y, got.frames[30].y)
    assert [read_frame_number(picture.y) for picture in decode_packets(got.packets)] == list(range(40))
    assert [source.truth(i).frozen for i in (9, 10, 29, 30)] == [False, True, True, False]
    assert not source.truth(15).moving_boxes
    assert source.truth(15).boxes == source.truth(10).boxes


# --- determinism ----------------------------------------------------------------------------------------------

EVERYTHING = Scene(
    "everything",
    period_s=6,
    light=0.5,
    flicker=0.03,
    walkers=(Walker(0.5, speed=0.4),),
    sitters=(Sitter(x=0.8),),
    lamps=(Lamp(1, 2),),
    daylight=(Daylight(2, 2, 0.5, 0.3),),
    clouds=(Cloud(2, 3),),
    infrared=(Infrared(4.5, 0.6),),
    foliage=(Foliage(0.1, 0.1, 0.3, 0.3),),
    rain=(Rain(1, 2),),
    insects=(Insects(1, 4, per_s=3),),
    covers=(Cover(3, 0.3),),
    turns=(Turn(3.8, 0.4),),
    freezes=(Freeze(5.2, 0.3),),
)


@pytest.mark.parametrize("scene", [EVERYTHING, *BUILT_IN.values()], ids=lambda scene: scene.name)
def test_a_picture_depends_only_on_scene_seed_and_frame_number(scene: Scene) -> None:
    forwards, backwards = renderer(scene), renderer(scene)
    frames = list(range(0, 120, 9))
    a = {frame: forwards.render(frame) for frame in frames}
    b = {frame: backwards.render(frame) for frame in reversed(frames)}
    for frame in frames:
        assert a[frame][1] == b[frame][1]
        assert all(np.array_equal(x, y) for x, y in zip(a[frame][0], b[frame][0], strict=True)), frame
        assert forwards.truth(frame) == backwards.truth(frame)


def test_another_seed_gives_another_picture() -> None:
    one, two = (Renderer(BUILT_IN["empty"], W, H, FPS, seed).render(3)[0].y for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_a_scene_with_a_period_repeats_for_ever() -> None:
    made = renderer(dataclasses.replace(QUIET, period_s=4, walkers=(Walker(1, speed=0.5),), lamps=(Lamp(2, 1),)))
    for frame in (12, 25, 38):
        later = frame + 40 * 50_000
        assert made.truth(frame).boxes == made.truth(later).boxes
        assert np.array_equal(made.render(frame + 40)[0].y, made.render(later)[0].y)


# --- the frame number -----------------------------------------------------------------------------------------


@given(number=st.integers(0, MAX_NUMBER), width=st.sampled_from([64, 160, 320, 640, 1280]), shade=st.integers(0, 255))
@settings(max_examples=80)
def test_the_frame_number_can_be_read_back(number: int, width: int, shade: int) -> None:
    y = np.full((max(48, width // 4), width), shade, np.uint8)
    draw_frame_number(y, number)
    assert read_frame_number(y) == number


@given(st.integers(0, 10_000))
@settings(max_examples=50)
def test_a_picture_without_a_number_gives_none(seed: int) -> None:
    y = np.random.default_rng(seed).integers(0, 256, (120, 160)).astype(np.uint8)
    assert read_frame_number(y) is None
    y[:] = seed % 256
    assert read_frame_number(y) is None
    assert read_frame_number(y[:10, :20]) is None


@pytest.mark.parametrize(
    ("width", "height", "kbps"), [(1280, 720, 150), (640, 480, 100), (320, 240, 50), (64, 64, 50)]
)
def test_the_frame_number_survives_a_low_bitrate_in_every_frame(width: int, height: int, kbps: int) -> None:
    scene = dataclasses.replace(BUILT_IN["rain"], light=0.02)  # noise, rain and leaves: all that costs bits
    source = FakeSource(scene, width=width, height=height, fps=15, bitrate_kbps=kbps, gop_s=2)
    got = Recorder()
    source.open(0)
    for _ in range(150 if width < 1000 else 45):
        source.step(got)
    numbers = [read_frame_number(picture.y) for picture in decode_packets(got.packets)]
    assert numbers == list(range(len(got.packets)))


def test_the_number_is_not_in_lores() -> None:
    source, got = FakeSource(QUIET, width=W, height=H, fps=FPS, lores_width=W, lores_height=H), Recorder()
    source.open(0)
    source.step(got)
    source.step(got)
    assert read_frame_number(got.frames[0].y) is None
    assert np.array_equal(got.frames[0].y, got.frames[1].y)


def test_a_mask_over_the_number_hides_it() -> None:
    corner = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.3), (0.0, 0.3))
    source, got = FakeSource(QUIET, width=W, height=H, fps=FPS, masks=(corner,)), Recorder()
    source.open(0)
    source.step(got)
    picture = decode_packets(got.packets)[0]
    assert read_frame_number(picture.y) is None
    assert picture.y[: int(0.3 * H)].max() < 20


# --- faults ---------------------------------------------------------------------------------------------------


def faulty(*faults: Fault, frames: int = 60, t0_ns: int = 0) -> tuple[FakeSource, Recorder]:
    scene = Scene("faulty", faults=faults)
    source, got = FakeSource(scene, width=160, height=128, fps=FPS, gop_s=1), Recorder()
    source.open(t0_ns)
    for _ in range(frames):
        source.step(got)
    return source, got


def numbers(got: Recorder) -> list[int]:
    return [frame.seq for frame in got.frames]


def test_a_stall_loses_frames_and_packets_alike_and_says_so_in_seq() -> None:
    _, got = faulty(Fault("stall", at_s=2, for_s=1.5, times=2, every_s=2.5))
    lost = [*range(20, 35), *range(45, 60)]
    assert numbers(got) == [n for n in range(60) if n not in lost]
    assert [packet.seq for packet in got.packets] == numbers(got)
    assert len(decode_packets(got.packets)) == 30
    assert [frame.t_ns for frame in got.frames] == [n * 100_000_000 for n in numbers(got)]


def test_a_packet_gap_loses_packets_only() -> None:
    _, got = faulty(Fault("packet-gap", at_s=2, for_s=1))
    assert numbers(got) == list(range(60))
    assert [packet.seq for packet in got.packets] == [n for n in range(60) if not 20 <= n < 30]


def test_jitter_moves_times_but_never_back() -> None:
    _, got = faulty(Fault("jitter", at_s=1, for_s=4, jitter_ms=150))
    times = [frame.t_ns for frame in got.frames]
    assert all(a < b for a, b in itertools.pairwise(times))
    off = [abs(t - n * 100_000_000) for n, t in enumerate(times)]
    assert max(off[10:50]) > 50_000_000
    assert max(off) <= 151_000_000
    assert max(off[:10]) == 0
    assert [packet.t_ns for packet in got.packets] == times


def test_a_late_keyframe_makes_one_long_gop() -> None:
    _, got = faulty(Fault("late-keyframe", at_s=1.5, for_s=2))
    assert [packet.seq for packet in got.packets if packet.is_key] == [0, 10, 35, 45, 55]


def test_a_dying_camera_raises_until_it_is_opened_again_and_dies_once_per_time() -> None:
    source, got = faulty(Fault("die", at_s=1, times=2, every_s=1), frames=10)
    for _ in range(2):
        with pytest.raises(CameraError):
            source.step(got)
    source.open(1_050_000_000)
    for _ in range(9):
        source.step(got)
    with pytest.raises(CameraError, match=r"died at 2\.0 s"):
        source.step(got)
    source.open(2_100_000_000)
    for _ in range(50):
        source.step(got)


def test_a_silent_camera_stays_silent_until_it_is_opened_again() -> None:
    source, got = faulty(Fault("silent", at_s=2), frames=60)
    assert numbers(got) == list(range(20))
    source.open(6_000_000_000)
    again = Recorder()
    for _ in range(20):
        source.step(again)
    assert numbers(again) == list(range(20))
    assert again.packets[0].is_key


@pytest.mark.parametrize("kind", ["absent", "busy"])
def test_an_absent_or_busy_camera_cannot_be_opened_so_many_times(kind: FaultKind) -> None:
    source = FakeSource(Scene("gone", faults=(Fault(kind, times=2),)), width=64, height=64)
    for _ in range(2):
        with pytest.raises(CameraError):
            source.open(0)
    source.open(0)


def test_an_absent_camera_can_be_absent_for_a_time() -> None:
    source = FakeSource(Scene("gone", faults=(Fault("absent", at_s=5, for_s=3),)), width=64, height=64, fps=FPS)
    source.open(0)
    with pytest.raises(CameraError):
        source.open(6_000_000_000)
    source.open(8_500_000_000)


def test_the_scene_goes_on_over_a_restart_while_seq_begins_anew() -> None:
    source, got = faulty(frames=5, t0_ns=7_000_000_000)
    source.open(10_030_000_000)
    again = Recorder()
    source.step(again)
    assert again.frames[0].seq == 0
    assert again.frames[0].t_ns == 10_030_000_000
    assert read_frame_number(decode_packets(again.packets)[0].y) == 31
    assert read_frame_number(decode_packets(got.packets)[0].y) == 0


def test_sensor_readings_can_be_left_out() -> None:
    for with_sensor in (True, False):
        source, got = FakeSource(QUIET, width=64, height=64, with_sensor=with_sensor), Recorder()
        source.open(0)
        source.step(got)
        assert (got.frames[0].sensor is not None) == with_sensor


# --- scenes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_scene_looks_like_a_picture(name: str) -> None:
    made = renderer(BUILT_IN[name])
    for frame in (0, 70):
        planes, reading = made.render(frame)
        assert 60 < planes.y.mean() < 190
        assert planes.y.std() > 20
        assert planes.y.min() >= 5
        assert planes.u.shape == (H // 2, W // 2)
        assert reading.exposure_us is not None
    assert BUILT_IN[name].about


def test_the_office_shows_two_events_in_25_s_after_5_s_of_quiet_with_6_s_between() -> None:
    made = renderer(BUILT_IN["office"])
    moving = [bool(made.truth(frame).boxes) for frame in range(25 * FPS)]
    runs = [(value, len(list(group)) / FPS) for value, group in itertools.groupby(moving)]
    assert [value for value, _ in runs] == [False, True, False, True, False]
    quiet_s = [length for value, length in runs if not value]
    assert quiet_s[0] >= 5
    assert quiet_s[1] >= 6
    assert quiet_s[2] >= 3.5
    assert all(length > 2 for value, length in runs if value)


DOCS = Path(__file__).parent.parent / "docs" / "FAKE-CAMERA.md"


def test_the_example_in_the_documentation_works(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    (tmp_path / "shop.toml").write_text(example.group(1), encoding="utf-8")
    scene = find_scene(str(tmp_path / "shop.toml"))
    assert scene.walkers
    assert scene.faults
    source, got = FakeSource(scene, width=160, height=128, fps=5), Recorder()
    source.open(0)
    for _ in range(10):
        source.step(got)
    assert got.frames


def test_the_documentation_names_every_scene_ingredient_and_fault() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for field in dataclasses.fields(Scene):
        assert f"`{field.name}`" in text, field.name
    for name in BUILT_IN:
        assert f"`{name}`" in text, name
    for kind in ("stall", "die", "packet-gap", "jitter", "late-keyframe", "absent", "busy", "silent"):
        assert f"`{kind}`" in text, kind
    ingredients = (Walker, Sitter, Lamp, Daylight, Cloud, Infrared, Foliage, Rain, Cover, Turn, Fault)
    nuisances = (Snow, Insects, Shake, Hunt, Headlights, Fan, Thing)
    for ingredient in (*ingredients, *nuisances):
        for field in dataclasses.fields(ingredient):
            assert f"`{field.name}" in text, f"{ingredient.__name__}.{field.name}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("light = 'bright'", "light = 'bright': should be a number"),
        ("lihgt = 1", "lihgt: there is no such field"),
        ("place = 'moon'", "place = 'moon': should be one of office"),
        ("walkers = 3", "walkers = 3: should be a list of tables"),
        ("[[walkers]]\nspeed = 1", "walkers[0].at_s: is missing"),
        ("[[walkers]]\nat_s = 1\nspeed = 0", "walkers[0].speed = 0: should be above 0"),
        ("[[walkers]]\nat_s = 1\nlook = 1.5", "walkers[0].look = 1.5: should be a whole number"),
        ("[[walkers]]\nat_s = 1\nback = 1", "walkers[0].back = 1: should be a true or false"),
        ("[[walkers]]\nat_s = -1", "walkers[0].at_s = -1: should be 0 or more"),
        ("[[walkers]]\nat_s = nan", "walkers[0].at_s = nan: should be a number"),
        ("[[faults]]\nkind = 'explode'", "faults[0].kind = 'explode': should be one of stall"),
        ("[[clouds]]\nat_s = 1\ndepth = 2", "clouds[0].depth = 2: should be at most 1"),
        ("[[lamps]]\nat_s = 1\nfor_s = inf\nreach = inf", "reach = inf: should be"),
        ("[[clouds]]\nat_s = 1\nfor_s = 0", "clouds[0].for_s = 0: should be above 0"),
        ("[[infrared]]\nat_s = 1\nfor_s = 9\nbrightness = 0", "infrared[0].brightness = 0: should be above 0"),
        ("[[insects]]\nat_s = 1\nfor_s = 9\nsize = 0", "insects[0].size = 0: should be above 0"),
        ("[[insects]]\nat_s = 1\nfor_s = 9\nsize = 0.2", "insects[0].size = 0.2: should be at most 0.1"),
        ("[[insects]]\nat_s = 1\nfor_s = 9\nper_s = 30", "insects[0].per_s = 30: should be at most 20"),
        ("[[insects]]\nat_s = 1\nfor_s = 9\nper_s = -1", "insects[0].per_s = -1: should be 0 or more"),
        ("[[insects]]\nat_s = 1", "insects[0].for_s: is missing"),
        ("period_s = -2", "period_s = -2: should be"),
        ("this is not toml", "not TOML"),
    ],
)
def test_a_wrong_scene_file_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_scene(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unknown_scene_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(ConfigError, match="office, empty"):
        find_scene("offcie")
    with pytest.raises(ConfigError, match="No such file"):
        find_scene("/nowhere/scene.toml")
    with pytest.raises(ConfigError, match="not TOML"):
        find_scene(__file__)


def test_planes_are_new_for_each_frame() -> None:
    made = renderer(QUIET)
    first, _ = made.render(0)
    for plane in first:
        plane[:] = 0
    second: Planes = made.render(1)[0]
    assert second.y.mean() > 50
