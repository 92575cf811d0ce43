"""Stills and live pictures: only under a lease, capped, and free of cost when the dashboard is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from broker import Mosquitto, requires_mosquitto
from command_fixtures import Bench, Client

from agent.live import LEASES, Live
from agent.model import NS_PER_S, Frame
from agent.pictures import MAIN_PATIENCE_S
from agent.requests import LiveArgs
from agent.settings import CommandSettings


def frame(number: int, t_ns: int, width: int = 320, height: int = 240) -> Frame:
    y = np.random.default_rng(number).integers(16, 235, (height, width), np.uint8)
    u = np.full((height // 2, width // 2), 128, np.uint8)
    return Frame(number, t_ns, y, u, u)


def args(**given: float) -> LiveArgs:
    return LiveArgs.model_validate(given)


def sent_in(live: Live, seconds: float, size: int, start_ns: int = 0, fps: int = 30) -> int:
    """Frames that a camera of so many frames a second gets through, each of size bytes."""
    count = 0
    for n in range(round(seconds * fps)):
        now_ns = start_ns + n * NS_PER_S // fps
        if live.width_now(now_ns) is not None:
            live.sent(size, now_ns)
            count += 1
    return count


def test_without_a_lease_nothing_is_sent() -> None:
    live = Live(CommandSettings())
    assert sent_in(live, 10, 1000) == 0


def test_a_lease_sends_as_many_frames_as_it_asked_for_and_ends() -> None:
    live = Live(CommandSettings())
    live.grant("page", args(fps=4, ttl_s=10), 0)
    assert sent_in(live, 30, 1000) == 40


def test_frames_width_and_time_are_capped_by_the_settings() -> None:
    live = Live(CommandSettings(live_max_fps=2, live_max_width=320, live_max_ttl_s=5))
    lease = live.grant("page", args(fps=30, width=4000, ttl_s=3600), 0)
    assert lease is not None
    assert (lease.fps, lease.width, lease.until_ns) == (2, 320, 5 * NS_PER_S)
    assert live.width_now(0) == 320
    assert sent_in(live, 30, 1000) == 10


def test_bytes_are_capped_by_the_settings() -> None:
    live = Live(CommandSettings(live_max_fps=30, live_max_kbps=800))
    live.grant("page", args(fps=30, ttl_s=60), 0)
    # 100 kB/s and one second of credit; a frame is 20 kB.
    assert sent_in(live, 20, 20_000) * 20_000 <= (20 + 1) * 100_000 + 20_000
    assert live.held_back > 0


def test_a_lease_is_renewed_and_given_back() -> None:
    live = Live(CommandSettings())
    live.grant("page", args(ttl_s=2), 0)
    live.grant("page", args(ttl_s=2), NS_PER_S)
    assert live.is_on(2 * NS_PER_S + 1)
    live.grant("page", args(ttl_s=0), 2 * NS_PER_S)
    assert not live.is_on(2 * NS_PER_S)


def test_too_many_watchers_are_refused() -> None:
    live = Live(CommandSettings())
    for number in range(LEASES):
        assert live.grant(f"page-{number}", args(), 0)
    assert live.grant("one more", args(), 0) is None
    assert live.grant("page-3", args(), 0)


@requires_mosquitto
def test_a_dead_dashboard_costs_nothing_after_its_lease(broker: Mosquitto, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "node", broker.port)
    bench.connect()
    client = Client(broker.port, bench)
    bench.clock.stop()
    assert client.ask("live", {"fps": 5, "width": 160, "ttl_s": 3})["result"]["width"] == 160
    for number in range(30):
        bench.mail.tap.put(frame(number, bench.clock.boot_ns()))
        bench.step()
        bench.clock.move(0.2)
    made = bench.commands.status.live_frames
    assert 12 <= made <= 16
    bench.until(lambda: client.of("entrance/live"))
    picture = client.of("entrance/live")[0]
    image = cv2.imdecode(np.frombuffer(picture.payload, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape[:2] == (120, 160)
    assert (picture.qos, picture.content_type, picture.retained) == (0, "image/jpeg", False)
    # Frames keep coming from the camera; nobody wants them, so none is even kept.
    bench.mail.tap.put(frame(99, bench.clock.boot_ns()))
    bench.step()
    assert bench.mail.tap.take() is None
    assert bench.commands.status.live_frames == made
    client.close()
    bench.close()


@requires_mosquitto
def test_a_still_comes_as_a_transfer_with_its_size_and_hash(broker: Mosquitto, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "node", broker.port)
    bench.connect()
    client = Client(broker.port, bench)
    request_id = client.request("snapshot", {"width": 200})
    bench.until(lambda: bench.commands._pictures.is_waiting)
    bench.mail.tap.put(frame(1, bench.clock.boot_ns()))
    bench.until(lambda: client.answers(request_id))
    result = client.answers(request_id)[0]["result"]
    jpeg = b"".join(piece for _, piece in client.chunks(request_id))
    assert (len(jpeg), hashlib.sha256(jpeg).hexdigest()) == (result["bytes"], result["sha256"])
    assert (result["stream"], result["width"], result["height"]) == ("lores", 200, 150)
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape[:2] == (150, 200)
    request_id = client.request("snapshot")
    bench.until(lambda: bench.commands._pictures.is_waiting)
    bench.clock.move(10)
    bench.until(lambda: client.answers(request_id))
    assert client.answers(request_id)[0]["error"]["code"] == "unavailable"
    client.close()
    bench.close()


class Main:
    """A camera that can show its main stream: wishes as they come."""

    def __init__(self) -> None:
        self.wishes: list[Callable[[Frame], None]] = []

    def want_still(self, take: Callable[[Frame], None]) -> None:
        self.wishes.append(take)


@requires_mosquitto
def test_a_still_is_taken_from_the_main_stream_where_the_camera_shows_it(broker: Mosquitto, tmp_path: Path) -> None:
    main = Main()
    bench = Bench(tmp_path / "node", broker.port, want_still=main.want_still)
    bench.connect()
    client = Client(broker.port, bench)
    request_id = client.request("snapshot", {"width": 1600})
    bench.until(lambda: main.wishes)
    bench.mail.tap.put(frame(1, bench.clock.boot_ns()))
    bench.step()
    assert not client.answers(request_id), "the analysis stream's picture is not what was wanted"
    main.wishes.pop()(frame(2, bench.clock.boot_ns(), 1920, 1080))
    bench.until(lambda: client.answers(request_id))
    result = client.answers(request_id)[0]["result"]
    assert (result["stream"], result["width"], result["height"]) == ("main", 1600, 900)
    jpeg = b"".join(piece for _, piece in client.chunks(request_id))
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape[:2] == (900, 1600)
    client.close()
    bench.close()


@requires_mosquitto
def test_a_main_stream_that_brings_nothing_leaves_the_still_to_the_analysis_stream_which_the_answer_says(
    broker: Mosquitto, tmp_path: Path
) -> None:
    main = Main()
    bench = Bench(tmp_path / "node", broker.port, want_still=main.want_still)
    bench.connect()
    client = Client(broker.port, bench)
    request_id = client.request("snapshot", {"width": 1600})
    bench.until(lambda: main.wishes)
    bench.clock.move(MAIN_PATIENCE_S + 0.1)
    bench.mail.tap.put(frame(1, bench.clock.boot_ns()))
    bench.until(lambda: client.answers(request_id))
    result = client.answers(request_id)[0]["result"]
    assert (result["stream"], result["width"], result["height"]) == ("lores", 320, 240)
    main.wishes.pop()(frame(2, bench.clock.boot_ns(), 1920, 1080))
    assert bench.mail.main_tap.take() is None, "too late: nobody wants it, so it is not even kept"
    client.close()
    bench.close()
