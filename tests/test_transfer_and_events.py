"""Neither a clip nor a backlog of pictures stands in front of events on a slow uplink."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import pytest
from broker import Mosquitto, Subscriber, requires_mosquitto
from command_fixtures import Bench, Client
from link_fixtures import Desk, ulid
from throttle import Throttle

from agent.jobs import CHUNK_BYTES
from agent.media import PICTURES
from agent.model import OutboxKind

pytestmark = [pytest.mark.broker, requires_mosquitto]


def came_before(subscriber: Subscriber, topics: str, event_id: str) -> int:
    """How many messages of topics (an expression) the broker had before the first word of the event."""
    messages = subscriber.take_all()
    words = next(n for n, m in enumerate(messages) if m.topic.endswith("/event") and event_id.encode() in m.payload)
    return sum(bool(re.search(topics, message.topic)) for message in messages[:words])


def test_an_event_overtakes_a_clip_that_crosses_the_same_slow_uplink(broker: Mosquitto, tmp_path: Path) -> None:
    """No stopwatch: the event was made after the transfer began, and is there while most of the clip is not.

    Nothing here depends on how far the client lags behind: the uplink counts what left, the broker's order the rest.
    """
    throttle = Throttle(broker.port, 4e6)
    bench = Bench(tmp_path / "node", throttle.port)
    bench.connect()
    client = Client(broker.port, bench)
    clip = bench.add_clip(1, secrets.token_bytes(600_000))
    request_id = client.request("clip.get", {"clip_id": clip.id})
    bench.until(lambda: throttle.sent_bytes > 3 * CHUNK_BYTES, "the transfer is under way")
    bench.clock.stop()  # a picture or piece goes in spite of an event after half a second of it
    left = throttle.sent_bytes // CHUNK_BYTES
    bench.add_event(1)
    bench.until(lambda: client.of("/event", live=True), "the event")
    bench.until(lambda: client.answers(request_id), "the clip")
    assert client.answers(request_id)[0]["ok"]
    bench.until(lambda: len(client.chunks(request_id)) == 600_000 // CHUNK_BYTES + 1, "its last piece")
    # What may be before it: the two chunks of the window and what a step of the test adds.
    assert came_before(client, "/xfer/", ulid(1)) <= left + 8
    client.close()
    bench.close()
    throttle.close()


def test_an_event_overtakes_a_backlog_of_pictures_on_the_same_slow_uplink(broker: Mosquitto) -> None:
    """No stopwatch here either: the event was made while pictures were on their way, and is there before most."""
    throttle = Throttle(broker.port, 4e6)
    desk = Desk(throttle.port)
    subscriber = Subscriber(broker.port)
    for number in range(1, 41):
        desk.outbox.event(number, thumb=b"\xff\xd8" + secrets.token_bytes(30_000))
    pictures = {row.seq for row in desk.outbox.rows if row.kind is OutboxKind.THUMB}
    desk.step_until(lambda: len(set(desk.delivered) - pictures) == 40, "the words of the backlog")
    desk.step_until(lambda: len(pictures & set(desk.delivered)) >= 3, "pictures")
    desk.clock.stop()  # a picture goes in spite of an event after half a second of it
    left = len(pictures & set(desk.delivered))
    assert left < 20, "words do not wait for pictures"
    desk.outbox.event(41)
    desk.link.bell.ring()
    desk.step_until(lambda: len(subscriber.of("/event", live=True)) == 41, "the event")
    desk.step_until(desk.drained)
    desk.step_until(lambda: len(subscriber.of("/thumb")) == 40, "all pictures")
    # What may be before it: the pictures in flight.
    assert came_before(subscriber, "/thumb$", ulid(41)) <= left + PICTURES
    desk.link.close(1)
    subscriber.close()
    throttle.close()
