"""The real program: `camera-agent run` with its threads, a real broker, signals, systemd's socket, bad input."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from broker import (
    DEADLINE_S,
    Mosquitto,
    Received,
    Subscriber,
    fake_broker,
    read_packet,
    requires_mosquitto,
    until,
)
from program import Program, camera_agent, write_recording, write_settings

from agent.cli import load_settings
from agent.cli.check import check_broker
from agent.ledger_reader import LedgerReader
from agent.messages import JSON_PAYLOADS
from agent.topics import split

pytestmark = requires_mosquitto


def bodies(messages: list[Received]) -> list[dict[str, Any]]:
    return [json.loads(message.payload) for message in messages]


def wait_for(dashboard: Subscriber, feed: str, number: int, program: Program) -> list[dict[str, Any]]:
    """The first `number` live messages of a feed."""

    def came() -> bool:
        dashboard.wait_a_moment()
        return len(dashboard.of(f"/{feed}", live=True)) >= number

    until(came, f"{number} messages on {feed}; the node said: {program.log()}")
    return bodies(dashboard.of(f"/{feed}", live=True))


def holds_of(dashboard: Subscriber, feed: str, field: str, value: object, program: Program) -> None:
    def holds() -> bool:
        dashboard.wait_a_moment()
        messages = dashboard.of(f"/{feed}")
        return bool(messages) and json.loads(messages[-1].payload)[field] == value

    until(holds, f"{feed}.{field} = {value}; the node said: {program.log()}")


def test_a_node_tells_a_dashboard_all_it_promised(tmp_path: Path, broker: Mosquitto, dashboard: Subscriber) -> None:
    with Program(tmp_path, "run", "--config", write_settings(tmp_path, broker.port)) as node:
        wait_for(dashboard, "clip", 1, node)
        told = bodies(dashboard.of("/event", live=True))
        revisions = sum(body["id"] == told[0]["id"] for body in told)

        def pictures_came() -> bool:
            dashboard.wait_a_moment()
            return bool(len(dashboard.of("/thumb", live=True)) >= revisions)

        until(pictures_came, "the pictures of the first event")
        assert node.signal(signal.SIGTERM) == 0
        holds_of(dashboard, "state", "state", "stopped", node)

    for message in dashboard.messages:
        if message.topic.startswith("homeassistant/"):
            continue
        where = split(message.topic, "edgecam")
        assert where is not None
        assert where[:2] == ("ward-12", "door")
        if where[2] in JSON_PAYLOADS:
            JSON_PAYLOADS[where[2]].model_validate_json(message.payload)
    (session,) = {body["session"] for body in bodies(dashboard.of("/state"))}
    assert bodies(dashboard.of("/meta"))[-1]["name"] == "Cửa chính"
    assert [m.payload for m in dashboard.of("/motion")][:3] == [b"OFF", b"ON", b"OFF"]

    events = bodies(dashboard.of("/event"))
    first = [body for body in events if body["id"] == events[0]["id"]]
    assert [body["rev"] for body in first] == list(range(1, len(first) + 1))
    assert (first[0]["phase"], first[-1]["phase"], first[-1]["end_reason"]) == ("start", "end", "quiet")

    thumbs = dashboard.of("/thumb")
    pictures = {hashlib.sha256(m.payload).hexdigest(): m for m in thumbs}
    for body in first:
        picture = pictures[body["thumb"]["sha256"]]
        assert picture.payload.startswith(b"\xff\xd8")
        assert picture.content_type == "image/jpeg"
        assert picture.properties["event_id"] == body["id"]

    for clip in bodies(dashboard.of("/clip")):
        (path,) = (tmp_path / "node" / "clips").glob(f"*{clip['id']}*.mp4")
        data = path.read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (clip["bytes"], clip["sha256"])

    seqs = [body["seq"] for feed in ("event", "clip", "loss") for body in bodies(dashboard.of(f"/{feed}"))]
    seqs += [int(m.properties["seq"]) for m in thumbs]
    with contextlib.closing(LedgerReader(tmp_path / "node")) as reader:
        # What a slow machine could not send in the seconds of a shutdown stays owed.
        owed = {row.seq for row in reader.due(0, 1000)} - set(seqs)
    assert sorted([*seqs, *owed]) == list(range(1, max([*seqs, *owed]) + 1)), "every number once, none missing"
    assert session


def test_an_absent_broker_is_waited_for_and_then_told_everything(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker")
    config = write_settings(tmp_path, broker.port)
    with Program(tmp_path, "run", "--config", config) as node:
        until(lambda: "camera started" in node.log(), "the settings were read")
        config.unlink()  # no reason to stop
        until(lambda: "clip " in node.log() and " closed" in node.log(), "a clip without a broker")
        assert "Connection refused" in node.log()
        broker.start()
        dashboard = Subscriber(broker.port)
        try:
            events = wait_for(dashboard, "event", 2, node)
            assert events[0]["seq"] == 1
            holds_of(dashboard, "state", "session", bodies(dashboard.of("/state"))[-1]["session"], node)
        finally:
            dashboard.close()
        assert node.signal(signal.SIGINT) == 0
    broker.stop()


def test_a_killed_node_goes_on_where_it_was_and_ends_what_was_open(
    tmp_path: Path, broker: Mosquitto, dashboard: Subscriber
) -> None:
    # The event goes on as long as people hurry by, and so does its clip.
    config = write_settings(tmp_path, broker.port, detection={"quiet_s": 30.0})
    with Program(tmp_path, "run", "--config", config) as node:
        started = wait_for(dashboard, "event", 1, node)[0]
        parts = tmp_path / "node" / "clips"
        until(lambda: any(b"mdat" in part.read_bytes() for part in parts.glob("*.part")), "a fragment is on the disk")
        node.signal(signal.SIGKILL)
    with Program(tmp_path, "run", "--config", config) as node:

        def ended() -> bool:
            dashboard.wait_a_moment()
            return any(b["id"] == started["id"] and b["phase"] == "end" for b in bodies(dashboard.of("/event")))

        until(ended, f"the end of the event that was open: {node.log()}")
        clip = wait_for(dashboard, "clip", 1, node)[0]
        assert node.signal(signal.SIGTERM) == 0
    last = [body for body in bodies(dashboard.of("/event")) if body["id"] == started["id"]][-1]
    assert (last["epoch"], last["end_reason"]) == (started["epoch"], "power_loss")
    assert clip["flags"] == ["recovered"]
    assert camera_agent("clips", "verify", "--directory", tmp_path / "node").returncode == 0


def test_a_camera_that_appears_later_is_taken_up(tmp_path: Path, broker: Mosquitto, dashboard: Subscriber) -> None:
    video = tmp_path / "later.mp4"
    camera = {"backend": "video", "source": str(video), "loop": True}
    with Program(tmp_path, "run", "--config", write_settings(tmp_path, broker.port, camera=camera)) as node:
        holds_of(dashboard, "state", "state", "degraded", node)
        assert str(video) in node.log()
        write_recording(video, 2)
        until(lambda: "camera started" in node.log(), "the camera is taken up")
        assert node.signal(signal.SIGTERM) == 0


@pytest.mark.usefixtures("dashboard")  # what nobody hears stays owed, and is tried again for seconds before the end
def test_a_recording_that_ends_ends_the_node_in_order(tmp_path: Path, broker: Mosquitto) -> None:
    video = write_recording(tmp_path / "short.mp4", 1.5)
    camera = {"backend": "video", "source": str(video)}
    with Program(tmp_path, "run", "--config", write_settings(tmp_path, broker.port, camera=camera)) as node:
        assert node.wait() == 0
        assert "the recording has ended after 15 frames" in node.log()


def test_systemd_hears_ready_then_signs_of_life_then_stopping(tmp_path: Path, broker: Mosquitto) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(DEADLINE_S)
        config = write_settings(tmp_path, broker.port)
        with Program(tmp_path, "run", "--config", config, environ={"NOTIFY_SOCKET": str(address)}) as node:
            said: list[str] = []
            while "WATCHDOG=1" not in said:
                said += systemd.recv(4096).decode().splitlines()
            assert said.index("READY=1") < said.index("WATCHDOG=1")
            assert node.signal(signal.SIGTERM) == 0
            while "STOPPING=1" not in said:
                said += systemd.recv(4096).decode().splitlines()


def test_a_second_agent_on_the_same_directory_is_refused(tmp_path: Path, broker: Mosquitto) -> None:
    config = write_settings(tmp_path, broker.port)
    with Program(tmp_path, "run", "--config", config) as first:
        until(lambda: "camera started" in first.log(), "the first node runs")
        second = camera_agent("run", "--config", config)
        assert second.returncode == 1
        assert "another camera-agent uses this directory" in second.stderr
        assert "Traceback" not in second.stderr
        assert first.is_running()


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"camera": {"fps": 500}}, 78, "camera.fps = 500: input should be less than or equal to 60"),
        ({"camera": {"scene": "beach"}}, 78, "no such scene"),
        ({"camera": {"nope": 1}}, 78, "camera.nope: there is no such setting"),
        ({"clips": {"directory": "/dev/null/clips"}}, 1, "/dev/null"),
    ],
)
def test_bad_settings_end_the_program_with_one_line(
    tmp_path: Path, more: dict[str, Any], code: int, words: str
) -> None:
    result = camera_agent("run", "--config", write_settings(tmp_path, 1, **more))
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == code
    assert words in last
    assert last.startswith("camera-agent: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], *([name, "--help"] for name in ("run", "demo", "replay", "check", "clips", "watch"))],
)
def test_help_and_version_are_given(args: list[str]) -> None:
    result = camera_agent(*args)
    assert result.returncode == 0
    assert "camera-agent" in result.stdout
    assert result.stderr == ""


def test_check_says_what_is_likely_where_a_broker_hangs_up_on_its_word(tmp_path: Path) -> None:
    def serve(sock: socket.socket, _: int) -> None:
        """As RabbitMQ does where the permission is missing."""
        read_packet(sock)
        sock.sendall(b"\x20\x03\x00\x00\x00")
        read_packet(sock)

    with fake_broker(serve) as port:
        finding = check_broker(load_settings(write_settings(tmp_path, port)))
    assert not finding.passed
    assert f"127.0.0.1:{port} closed the connection" in finding.words
    assert finding.words.endswith("edgecam/v1/ward-12/door/check")
    assert "permission" in finding.hint


def test_check_passes_where_all_is_well_and_names_what_is_not(tmp_path: Path, broker: Mosquitto) -> None:
    good = camera_agent("check", "--config", write_settings(tmp_path, broker.port))
    lines = {
        line.split()[1]: line.split()[0] for line in good.stdout.splitlines() if line.split()[0] in ("pass", "FAIL")
    }
    assert {name: lines[name] for name in ("settings", "disk", "camera", "broker")} == dict.fromkeys(
        ("settings", "disk", "camera", "broker"), "pass"
    )
    camera = {"backend": "video", "source": str(tmp_path / "absent.mp4")}
    bad = camera_agent("check", "--config", write_settings(tmp_path, 1, camera=camera))
    assert bad.returncode == 1
    assert "FAIL  camera" in bad.stdout
    assert "absent.mp4" in bad.stdout
    assert "FAIL  broker    connect 127.0.0.1:1: Connection refused" in bad.stdout
    assert "Traceback" not in bad.stdout + bad.stderr


def test_the_demo_shows_events_pictures_and_clips_and_ends_cleanly(tmp_path: Path) -> None:
    made = write_settings(tmp_path, 1)
    scene = made.parent / "quick.toml"
    shown = tmp_path / "shown"
    with shown.open("w") as file:
        words = ("demo", "--scene", str(scene), "--out", str(tmp_path / "out"))
        demo = subprocess.Popen([sys.executable, "-m", "agent", *words], stdout=file, stderr=subprocess.PIPE)

    def has_shown_both() -> bool:
        assert demo.poll() is None, shown.read_text()
        return any((tmp_path / "out").glob("*/pictures/*.jpg")) and "event start" in shown.read_text()

    until(has_shown_both, "an event and its picture")
    demo.send_signal(signal.SIGINT)
    _, trouble = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 0, trouble
    assert "stopped" in shown.read_text()
    assert list((tmp_path / "out").glob("*/node/clips/*.mp4")), "what was being recorded is kept"
    assert "0 clips" not in shown.read_text()


def test_a_demo_of_a_video_that_is_not_there_says_so(tmp_path: Path) -> None:
    result = camera_agent("demo", tmp_path / "absent.mp4", "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "absent.mp4" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
