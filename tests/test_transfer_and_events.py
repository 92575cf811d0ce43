"""Neither a clip nor a backlog of pictures stands in front of events on a slow uplink."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from broker import Mosquitto, Subscriber, requires_mosquitto
from command_fixtures import Bench, Client
from link_fixtures import Desk
from throttle import Throttle

from agent.media import PICTURES

pytestmark = [pytest.mark.broker, requires_mosquitto]


def test_an_event_overtakes_a_clip_that_crosses_the_same_slow_uplink(tmp_path: Path) -> None:
    """No stopwatch: the event was made after the transfer began, and is there while most of the clip is not."""
    broker = Mosquitto(tmp_path / "broker").start()
    throttle = Throttle(broker.port, 4e6)
    bench = Bench(tmp_path / "node", throttle.port)
    bench.connect()
    client = Client(broker.port, bench)
    clip = bench.add_clip(1, secrets.token_bytes(600_000))
    request_id = client.request("clip.get", {"clip_id": clip.id})
    bench.until(lambda: len(client.chunks(request_id)) >= 3)
    began_with = len(client.chunks(request_id))
    bench.add_event(1)
    bench.until(lambda: client.of("/event", live=True), "the event")
    # What may be before it: the two chunks of the window and what a step of the test adds.
    assert len(client.chunks(request_id)) <= began_with + 8
    bench.until(lambda: client.answers(request_id), "the clip")
    assert client.answers(request_id)[0]["ok"]
    client.close()
    bench.close()
    throttle.close()
    broker.stop()


def test_an_event_overtakes_a_backlog_of_pictures_on_the_same_slow_uplink(tmp_path: Path) -> None:
    """No stopwatch here either: the event was made while pictures were on their way, and is there before most."""
    broker = Mosquitto(tmp_path / "broker").start()
    throttle = Throttle(broker.port, 4e6)
    desk = Desk(throttle.port)
    subscriber = Subscriber(broker.port)
    for number in range(1, 41):
        desk.outbox.event(number, thumb=b"\xff\xd8" + secrets.token_bytes(30_000))
    desk.step_until(lambda: len(subscriber.of("/event", live=True)) == 40, "the words of the backlog")
    desk.step_until(lambda: len(subscriber.of("/thumb")) >= 3, "pictures")
    came = len(subscriber.of("/thumb"))
    desk.outbox.event(41)
    desk.link.bell.ring()
    desk.step_until(lambda: len(subscriber.of("/event", live=True)) == 41, "the event")
    # What may be before it: the pictures in flight and what a step of the test adds.
    assert len(subscriber.of("/thumb")) <= came + PICTURES + 2
    desk.step_until(desk.drained)
    assert len(subscriber.of("/thumb")) == 40
    desk.link.close(1)
    subscriber.close()
    throttle.close()
    broker.stop()
