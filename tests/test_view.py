"""The view check sees a camera that was turned, covered or put out of focus, and no lamp, cloud or person."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from broker import Mosquitto, requires_mosquitto
from program import camera_agent, write_settings

from agent import thumbnail
from agent.cameras.fake import FakeSource
from agent.cameras.scene import Cloud, Cover, Daylight, Foliage, Infrared, Lamp, Scene, Turn, Walker
from agent.model import NS_PER_S, Frame, Packet, Plane
from agent.settings import Settings, ZoneSettings, load_settings
from agent.view import View, compare
from agent.viewing import EVERY_S, FIRST_S, Viewing

MASK = ((0.0, 0.0), (0.3, 0.0), (0.3, 0.4), (0.0, 0.4))
OFFICE = Scene("office", "office")


class Seconds:
    """A sink that keeps a frame of each second."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def on_packet(self, packet: Packet) -> None:
        pass

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(frame)


def seconds(scene: Scene, count: int, masks: tuple[tuple[tuple[float, float], ...], ...] = ()) -> list[Frame]:
    source, sink = FakeSource(scene, width=640, height=480, fps=1, want_packets=False, masks=masks), Seconds()
    source.open(0)
    while len(sink.frames) < count:
        source.step(sink)
    source.close()
    return sink.frames


def looks(scene: Scene, count: int) -> list[View]:
    first, *others = seconds(scene, count)
    return [compare(first.y, frame.y) for frame in others]


@pytest.mark.parametrize("view", ["office", "counter", "garden"])
def test_light_people_and_leaves_do_not_change_the_view(view: Literal["office", "counter", "garden"]) -> None:
    scene = Scene(
        "day",
        view,
        lamps=(Lamp(3, 4), Lamp(20, 3, x=0.2, brightness=1.0)),
        daylight=(Daylight(9, 1, 1.0, 0.35), Daylight(14, 1, 0.35, 1.3)),
        clouds=(Cloud(24, 8),),
        infrared=(Infrared(33, 4),),
        foliage=(Foliage(0.6, 0.1, 0.35, 0.4, sway=0.012),),
        walkers=(Walker(at_s=3, from_x=-0.1, to_x=1.1, speed=0.1, height=0.7),),
    )
    found = looks(scene, 40)
    assert [(second, look.words) for second, look in enumerate(found, 1) if look.is_wrong] == []
    assert sum(look.state == "same" for look in found) > 30, "that it cannot tell would prove nothing"


@pytest.mark.parametrize(
    ("dx", "dy", "words"),
    [(0.25, 0.0, "25% to the "), (-0.1, 0.0, "10% to the "), (0.0, 0.12, "12% "), (0.04, 0.0, "4% to the ")],
)
def test_a_camera_that_was_turned_is_told_by_how_much(dx: float, dy: float, words: str) -> None:
    found = looks(Scene("pushed", "office", turns=(Turn(2, 4, dx=dx, dy=dy),)), 9)
    assert {look.state for look in found[2:5]} == {"turned"}
    assert words in found[3].words
    assert found[-1].state == "same"


def test_to_the_right_is_to_the_right() -> None:
    (picture,) = seconds(OFFICE, 1)
    view = compare(picture.y, np.roll(picture.y, 64, axis=1))
    assert (view.state, view.words) == ("turned", "the camera was turned: what it showed is now 10% to the right")
    assert "10% up" in compare(picture.y, np.roll(picture.y, -48, axis=0)).words


def test_a_hand_before_the_lens_is_no_night_and_a_night_is_no_hand() -> None:
    hand = looks(Scene("hand", "office", covers=(Cover(2, 5),)), 7)
    assert {look.state for look in hand[2:6]} == {"covered"}
    (picture,) = seconds(OFFICE, 1)
    assert compare(picture.y, (picture.y * 0.06).astype(np.uint8)).state == "dark"
    bag = cv2.GaussianBlur(picture.y, (0, 0), 90)
    assert compare(picture.y, np.asarray(bag)).state == "covered"


def softened(picture: Plane, sigma: float) -> Plane:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma))


def test_a_lens_out_of_focus_is_told_from_a_soft_evening() -> None:
    first, *_, evening = seconds(Scene("evening", "office", daylight=(Daylight(1, 1, 1.0, 0.3),)), 4)
    assert compare(first.y, evening.y).state == "same"
    assert compare(first.y, softened(first.y, 5)).state == "soft"
    assert compare(first.y, softened(evening.y, 5)).state == "soft"
    assert compare(first.y, softened(first.y, 0.8)).state == "same"


def test_another_room_is_another_room() -> None:
    (here,), (there,) = seconds(OFFICE, 1), seconds(Scene("other", "garden"), 1)
    assert compare(here.y, there.y).state == "other"


def test_a_mask_that_stays_does_not_hide_that_the_camera_was_turned() -> None:
    zone = ZoneSettings(id="neighbour", kind="privacy", polygon=list(MASK))
    scene = Scene("pushed", "office", turns=(Turn(2, 9, dx=0.2),))
    frames = seconds(scene, 6, masks=(MASK,))
    assert compare(frames[0].y, frames[1].y, [zone]).state == "same"
    assert compare(frames[0].y, frames[5].y, [zone]).state == "turned"


def test_a_wall_without_anything_on_it_cannot_be_told_apart() -> None:
    wall = np.full((480, 640), 120, np.uint8)
    assert compare(wall, wall).state == "unknown"


def node(directory: Path, baseline: Frame | None) -> tuple[Viewing, Settings]:
    settings = load_settings(environ={}, overrides={"clips": {"directory": str(directory)}})
    if baseline is not None:
        (directory / "commissioning").mkdir()
        (directory / "commissioning/view.jpg").write_bytes(thumbnail.encode(baseline).jpeg)
    return Viewing(settings), settings


def test_a_node_says_so_after_three_looks_and_takes_it_back(tmp_path: Path) -> None:
    frames = seconds(Scene("pushed", "office", turns=(Turn(2, 90, dx=0.2),)), 6)
    straight, turned = frames[0], frames[5]
    viewing, _ = node(tmp_path, straight)
    now_s = 0.0

    def wait(seconds: float, frame: Frame | None, *, is_quiet: bool = True) -> str:
        nonlocal now_s
        now_s += seconds
        viewing.step(round(now_s * NS_PER_S), frame, is_quiet=is_quiet)
        return viewing.trouble

    assert wait(0, straight) == ""
    assert wait(FIRST_S, straight) == ""
    assert wait(EVERY_S, turned, is_quiet=False) == "", "somebody walks: it waits"
    assert wait(1, turned) == ""
    assert wait(1, turned) == "", "not yet time for another look"
    assert wait(FIRST_S, turned) == ""
    assert "the camera was turned: what it showed is now 20% to the" in wait(FIRST_S, turned)
    assert "turned" in wait(FIRST_S, None), "no picture is no news"
    assert wait(FIRST_S, straight) == ""


@pytest.mark.parametrize("content", [None, b"", b"\xff\xd8 not a picture"])
def test_a_node_without_a_walk_test_says_nothing(tmp_path: Path, content: bytes | None) -> None:
    (frame,) = seconds(OFFICE, 1)
    viewing, _ = node(tmp_path, None)
    if content is not None:
        (tmp_path / "commissioning").mkdir()
        (tmp_path / "commissioning/view.jpg").write_bytes(content)
    for second in range(0, 4000, 50):
        viewing.step(second * NS_PER_S, frame, is_quiet=True)
    assert viewing.trouble == ""


@requires_mosquitto
def test_check_compares_with_the_walk_test(shared_broker: Mosquitto, tmp_path: Path) -> None:
    config = write_settings(tmp_path, shared_broker.port, camera={"scene": "empty"})
    before = camera_agent("check", "--config", config)
    assert "pass  view      no walk test to compare with yet" in before.stdout, before.stdout + before.stderr
    camera_agent("aim", "--config", config, "--seconds", "1", "--no-publish")
    after = camera_agent("check", "--config", config)
    assert "pass  view      as at the walk test" in after.stdout, after.stdout + after.stderr
    (other,) = seconds(Scene("other", "garden"), 1)
    (tmp_path / "node/commissioning/view.jpg").write_bytes(thumbnail.encode(other).jpeg)
    turned = camera_agent("check", "--config", config)
    assert turned.returncode == 1
    assert "FAIL  view      it shows something else than at the walk test" in turned.stdout
    assert "do the walk test again" in turned.stdout
