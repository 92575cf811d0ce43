"""camera-agent aim: the walk test counts, the record says what was measured, the picture shows the zones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest
from broker import Mosquitto, Subscriber, free_port, requires_mosquitto, until
from program import camera_agent, write_settings

from agent import commissioning as record
from agent import configuration
from agent.model import Frame
from agent.records import Record
from agent.settings import ZoneSettings

ZONE = ZoneSettings(id="door", kind="detect", polygon=[(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)])


def frame(luma: int) -> Frame:
    chroma = np.full((60, 80), 128, np.uint8)
    return Frame(0, 0, np.full((120, 160), luma, np.uint8), chroma, chroma)


@requires_mosquitto
def test_two_walks_are_counted_recorded_and_published(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker").start()
    try:
        config = write_settings(tmp_path, broker.port)
        result = camera_agent("aim", "--config", config, "--walk", "2")
        assert "pass  walk      2 of 2" in result.stdout, result.stdout + result.stderr
        assert "seen: 1 of 2" in result.stdout, "one walk counts once"
        assert "pass  broker" in result.stdout
        kept = tmp_path / "node/commissioning"
        made = Record.model_validate_json((kept / "record.json").read_bytes())
        assert (made.walks_wanted, made.walks_seen) == (2, 2)
        assert made.name == "Cửa chính"
        assert made.fps == pytest.approx(10, rel=0.3)
        assert hashlib.sha256((kept / "view.jpg").read_bytes()).hexdigest() == made.picture_sha256
        assert (kept / "view-zones.jpg").read_bytes().startswith(b"\xff\xd8")
        assert result.returncode == (0 if made.passed else 1)
        # Unchecked: the record is the installer's tool's, not part of the stream that schema --asyncapi describes.
        late = Subscriber(broker.port, checked=False)

        def came() -> bool:
            late.wait_a_moment()
            return bool(late.of("/commissioning"))

        until(came, "the retained record")
        (message,) = late.of("/commissioning")
        late.close()
        assert message.retained
        assert json.loads(message.payload) == json.loads((kept / "record.json").read_bytes())
    finally:
        broker.stop()


def test_the_walk_test_goes_by_the_settings_in_force_with_zones_that_came_over_mqtt(tmp_path: Path) -> None:
    config = write_settings(tmp_path, free_port())
    zone = {"id": "quay-so-1", "kind": "ignore", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    state = configuration.State(kept=configuration.Patch(7, {"zones": [zone]}))
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / configuration.STATE_NAME).write_bytes(configuration.to_bytes(state))
    result = camera_agent("aim", "--config", config, "--seconds", "1", "--no-publish")
    assert "with revision 7 of config/desired" in result.stdout, result.stdout + result.stderr
    drawn = grey(tmp_path / "node/commissioning/view-zones.jpg")
    plain = grey(tmp_path / "node/commissioning/view.jpg")
    assert np.abs(drawn[:, 0].astype(int) - plain[:, 0]).max() > 30, (
        "the zone's outline runs along the picture's edge"
    )


def grey(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="gray")


def test_a_zone_is_drawn_where_it_is() -> None:
    picture = record.with_zones(frame(128), [ZONE])
    assert picture.shape == (120, 160, 3)
    edge = picture[60, 40]
    assert edge[1] > edge[0]
    assert edge[1] > edge[2]
    assert np.ptp(picture[100, 120]) <= 6, "outside it nothing is drawn"


@pytest.mark.parametrize(("luma", "passes"), [(10, False), (120, True), (235, False)])
def test_a_view_too_dark_or_too_bright_does_not_pass(luma: int, passes: bool) -> None:
    assert record.light_check(record.light_of(frame(luma).y)).passed is passes


def test_a_privacy_mask_does_not_make_a_view_too_dark() -> None:
    half = np.full((120, 160), 120, np.uint8)
    half[:84] = 16
    mask = ZoneSettings(id="street", kind="privacy", polygon=[(0, 0), (1, 0), (1, 0.7), (0, 0.7)])
    assert not record.light_check(record.light_of(half)).passed
    assert record.light_of(half, [mask]) == (120.0, 0.0, 0.0)


def test_walks_must_be_as_many_as_wanted() -> None:
    assert record.walk_check(5, 5).passed
    assert not record.walk_check(4, 5).passed
    assert not record.walk_check(6, 5).passed


def test_a_camera_that_is_slower_than_set_does_not_pass() -> None:
    assert record.fps_check(14.5, 15).passed
    assert not record.fps_check(9, 15).passed
    assert not record.fps_check(0, 0).passed


def test_the_wireless_level_is_read_where_there_is_one() -> None:
    text = "Inter-| sta-|\n face | tus |\n wlan0: 0000   58.  -52.  -256        0\n"
    assert record.signal_dbm(text) == -52
    assert record.signal_dbm("Inter-|\n face |\n") is None
    assert record.signal_dbm("") is None
