"""The link against a real mosquitto: birth and will, order, what counts as delivered, and what is kept."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from broker import DEADLINE_S, Mosquitto, Received, Subscriber, requires_mosquitto, until
from link_fixtures import BASE, META, Desk, check_message, ulid
from paho.mqtt.enums import MQTTProtocolVersion
from pydantic import SecretStr

from agent.errors import StorageError
from agent.handoffs import Status, Verdict
from agent.messages import to_bytes
from agent.model import OutboxKind

pytestmark = [pytest.mark.broker, requires_mosquitto]

Start = Callable[..., Mosquitto]
Watch = Callable[..., Subscriber]
JPEG = b"\xff\xd8" + bytes(range(256)) * 8 + b"\xff\xd9"


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Subscribe; at the end of the test every message that came is checked against its model."""
    subscribers: list[Subscriber] = []

    def begin(broker: Mosquitto, topic: str = "edgecam/#", **options: object) -> Subscriber:
        subscriber = Subscriber(broker.port, topic, **options)  # type: ignore[arg-type]
        subscribers.append(subscriber)
        return subscriber

    yield begin
    for subscriber in subscribers:
        subscriber.close()
        for message in subscriber.messages:
            check_message(message)


@pytest.fixture
def desk_at() -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def sit(broker: Mosquitto, **options: object) -> Desk:
        desk = Desk(broker.port, **options)  # type: ignore[arg-type]
        desks.append(desk)
        return desk

    yield sit
    for desk in desks:
        desk.link.close(0.1)


Sit = Callable[..., Desk]


def states(messages: list[Received]) -> list[str]:
    return [json.loads(message.payload)["state"] for message in messages]


def seqs(messages: list[Received]) -> list[int]:
    """The numbers of messages of the event stream, whatever their kind."""
    return [
        int(message.properties["seq"]) if message.properties else json.loads(message.payload)["seq"]
        for message in messages
    ]


def stream(subscriber: Subscriber) -> list[int]:
    return seqs([m for m in subscriber.messages if m.topic.rpartition("/")[2] in ("event", "thumb", "clip", "loss")])


def cut(desk: Desk) -> None:
    """The connection is gone without a DISCONNECT."""
    assert desk.link._connection is not None
    sock = desk.link._connection._client.socket()
    assert isinstance(sock, socket.socket)
    sock.shutdown(socket.SHUT_RDWR)


def seen(subscriber: Subscriber, condition: Callable[[], object]) -> None:
    """Wait for what a subscriber sees while no link is stepped."""

    def look() -> bool:
        subscriber.wait_a_moment()
        return bool(condition())

    until(look, "messages at the subscriber")


# -- birth, will, farewell


def test_birth_says_everything_retained(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    everybody = watch(broker)
    desk = desk_at(broker)
    desk.statuses.put("motion", Status(b"OFF"))
    desk.statuses.put("meta", Status(to_bytes(META)))
    desk.outbox.event(1, thumb=JPEG)
    desk.step_until(desk.drained)
    desk.step_until(lambda: everybody.of("/event/last") and everybody.of("/thumb/last"))
    late_comer = watch(broker)
    desk.step_until(lambda: len(late_comer.messages) == 6)
    assert {m.topic.removeprefix(BASE + "/") for m in late_comer.messages} == {
        "state",
        "meta",
        "motion",
        "event/last",
        "thumb/last",
        "echo",
    }
    assert all(m.retained for m in late_comer.messages)
    assert "Cửa chính".encode() in late_comer.of("/meta")[0].payload
    assert late_comer.of("/thumb/last")[0].payload == JPEG
    assert json.loads(late_comer.of("/event/last")[0].payload)["id"] == ulid(1)
    order = [m.topic.removeprefix(BASE + "/") for m in everybody.messages if not m.topic.endswith("/echo")]
    assert order[:2] == ["state", "meta"]


def test_state_says_lost_after_the_will_delay_and_with_the_session_that_was_lost(
    start: Start, watch: Watch, desk_at: Sit
) -> None:
    broker = start()
    subscriber = watch(broker)
    desk = desk_at(broker, will_delay_s=1)
    desk.connect()
    desk.step_until(lambda: subscriber.of("/state"))
    cut(desk)
    seen(subscriber, lambda: len(subscriber.of("/state")) == 2)
    online, lost = [json.loads(m.payload) for m in subscriber.of("/state")]
    assert (online["state"], lost["state"]) == ("online", "lost")
    assert online["session"] == lost["session"]
    assert lost["reasons"]


def test_a_new_connection_has_a_new_session(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    desk = desk_at(broker)
    desk.connect()
    first = desk.link.status.session
    broker.kill()
    desk.step_until(lambda: not desk.link.status.connected)
    broker.start()
    desk.clock.move(60)
    desk.connect()
    assert desk.link.status.session != first
    assert desk.link.status.reconnects == 1
    subscriber = watch(broker)
    desk.step_until(lambda: subscriber.of("/state"))
    assert json.loads(subscriber.of("/state")[0].payload)["session"] == desk.link.status.session


def test_closing_says_stopped_retained_and_no_will_follows(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    subscriber = watch(broker)
    desk = desk_at(broker)
    desk.connect()
    desk.outbox.event(1)
    desk.link.close(DEADLINE_S)  # it takes as long as the broker's answers take
    seen(subscriber, lambda: states(subscriber.of("/state")) == ["online", "stopped"])
    assert stream(subscriber) == [1], "what was owed goes out before the farewell"
    first, last = [json.loads(m.payload) for m in subscriber.of("/state")]
    assert first["session"] == last["session"]
    late_comer = watch(broker)
    seen(late_comer, lambda: states(late_comer.of("/state")) == ["stopped"])
    desk.link = desk.new_link()


def test_state_follows_the_verdict(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    subscriber = watch(broker)
    desk = desk_at(broker)
    desk.connect()
    desk.statuses.put_verdict(Verdict("degraded", ("thẻ nhớ đầy",)))
    desk.step_until(lambda: len(subscriber.of("/state")) == 2)
    desk.statuses.put_verdict(Verdict("degraded", ("thẻ nhớ đầy",)))
    desk.statuses.put_verdict(Verdict())
    desk.step_until(lambda: len(subscriber.of("/state")) == 3)
    assert states(subscriber.of("/state")) == ["online", "degraded", "online"]
    assert "thẻ nhớ đầy".encode() in subscriber.of("/state")[1].payload


def test_changes_on_the_status_board_are_published_at_once_and_retained(
    start: Start, watch: Watch, desk_at: Sit
) -> None:
    broker = start()
    subscriber = watch(broker)
    desk = desk_at(broker)
    desk.connect()
    for count, word in enumerate((b"ON", b"OFF", b"ON"), 1):
        desk.statuses.put("motion", Status(word))
        desk.step_until(lambda count=count: len(subscriber.of("/motion")) == count)  # type: ignore[misc]
    assert [m.payload for m in subscriber.of("/motion")] == [b"ON", b"OFF", b"ON"]
    late_comer = watch(broker)
    desk.step_until(lambda: late_comer.of("/motion"))
    assert [(m.payload, m.retained) for m in late_comer.of("/motion")] == [(b"ON", True)]


# -- order and delivery


def test_rows_arrive_in_order_each_once(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    subscriber = watch(broker)
    desk = desk_at(broker, lazy=True)  # storage that marks nothing: due() shows delivered rows again and again
    for number in range(1, 41):
        desk.outbox.event(number, thumb=JPEG + bytes([number]))
    desk.outbox.clip(40)
    desk.outbox.loss(3, 4)
    desk.step_until(lambda: len(desk.delivered) == 82)
    for _ in range(5):
        desk.clock.move(2)
        desk.step()
    assert sorted(desk.delivered) == list(range(1, 83))
    desk.step_until(lambda: len(stream(subscriber)) == 82)
    came = stream(subscriber)
    assert sorted(came) == list(range(1, 83))
    words = [seq for seq in came if seq > 80 or seq % 2]
    pictures = [seq for seq in came if seq <= 80 and seq % 2 == 0]
    assert (words, pictures) == (sorted(words), sorted(pictures)), "each connection keeps the order"
    assert all(came.index(seq - 1) < came.index(seq) for seq in pictures), "no picture before its event"
    assert len(subscriber.of("/event/last")) <= 2, "old rows are not the newest event"


def test_a_picture_names_its_event(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    subscriber = watch(broker)
    desk = desk_at(broker)
    desk.outbox.event(7, rev=3, thumb=JPEG)
    desk.step_until(desk.drained)
    desk.step_until(lambda: subscriber.of("/thumb"))
    thumb, event = subscriber.of("/thumb")[0], json.loads(subscriber.of("/event")[0].payload)
    assert thumb.payload == JPEG
    assert (thumb.properties["event_id"], thumb.properties["rev"], thumb.properties["seq"]) == (ulid(7), "3", "2")
    assert thumb.properties["sha256"] == event["thumb"]["sha256"]
    assert (thumb.content_type, thumb.qos, thumb.retained) == ("image/jpeg", 1, False)


def test_a_message_is_late_when_it_is_sent_more_than_30_s_after_it_happened(
    start: Start, watch: Watch, desk_at: Sit
) -> None:
    broker = start()
    subscriber = watch(broker)
    desk = desk_at(broker)
    desk.outbox.event(1, age_s=31)
    desk.outbox.event(2, age_s=2)
    desk.step_until(desk.drained)
    desk.step_until(lambda: len(subscriber.of("/event")) == 2)
    assert [json.loads(m.payload)["late"] for m in subscriber.of("/event")] == [True, False]


def test_the_newest_event_is_kept_for_pages_that_open_now(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    everybody = watch(broker)
    desk = desk_at(broker)
    desk.connect()
    for number in (1, 2, 3):
        desk.outbox.event(number, thumb=JPEG + bytes([number]))
        desk.link.bell.ring()
        desk.step_until(desk.drained)
    desk.step_until(lambda: any(ulid(3).encode() in m.payload for m in everybody.of("/event/last")))
    desk.step_until(lambda: any(m.payload == JPEG + bytes([3]) for m in everybody.of("/thumb/last")))
    late_comer = watch(broker)
    desk.step_until(lambda: late_comer.of("/event/last") and late_comer.of("/thumb/last"))
    assert json.loads(late_comer.of("/event/last")[0].payload)["id"] == ulid(3)
    assert late_comer.of("/thumb/last")[0].payload == JPEG + bytes([3])
    assert not late_comer.of("/event"), "events themselves are never retained"


def test_what_nobody_subscribes_to_is_kept_until_somebody_does(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    desk = desk_at(broker)
    for number in range(1, 31):
        desk.outbox.event(number, thumb=JPEG)
    desk.step_until(lambda: desk.link.status.refused >= 2)
    desk.let_pass(61)
    desk.step_until(lambda: desk.link.status.refused >= 4)
    assert not desk.delivered
    assert "nobody subscribes" in desk.link.status.trouble
    assert f"{BASE}/event" in desk.link.status.trouble
    subscriber = watch(broker)
    desk.let_pass(61)
    desk.step_until(desk.drained)
    desk.step_until(lambda: len(stream(subscriber)) >= 60)
    assert sorted(set(stream(subscriber))) == list(range(1, 61))
    assert seqs(subscriber.of("/event")) == list(range(1, 60, 2)), "in order"
    assert desk.link.status.trouble == ""


def test_a_puback_is_enough_where_the_settings_say_so(start: Start, desk_at: Sit) -> None:
    desk = desk_at(start(), require_subscriber=False)
    desk.outbox.event(1)
    desk.step_until(desk.drained)
    assert desk.link.status.trouble == ""


def test_a_feed_that_nobody_wants_does_not_hold_up_the_others(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    subscriber = watch(broker, f"{BASE}/event")
    desk = desk_at(broker)
    for number in range(1, 101):
        desk.outbox.event(number, thumb=JPEG)
    desk.step_until(lambda: len(desk.delivered) == 100)
    assert {row.kind for row in desk.outbox.owed.values()} == {OutboxKind.THUMB}
    desk.step_until(lambda: len(subscriber.of("/event")) == 100)
    desk.step_until(lambda: f"{BASE}/thumb: nobody subscribes" in desk.link.status.trouble)
    watch(broker, f"{BASE}/thumb")
    desk.let_pass(61)
    desk.step_until(desk.drained)


def test_what_the_access_list_denies_is_kept_and_said(
    start: Start, watch: Watch, desk_at: Sit, tmp_path: Path
) -> None:
    acl = ["user ward-12/entrance", f"topic write {BASE}/state", f"topic write {BASE}/clip", "user boss", "topic #"]
    broker = start(users={"ward-12/entrance": "geheim", "boss": "chef"}, acl=acl)
    subscriber = watch(broker, user=("boss", "chef"))
    desk = desk_at(broker, username="ward-12/entrance", password=SecretStr("geheim"))
    desk.outbox.event(1)
    desk.outbox.clip(1)
    desk.step_until(lambda: desk.link.status.refused and desk.delivered)
    assert desk.delivered == [2]
    assert list(desk.outbox.owed) == [1]
    assert f"{BASE}/event: not authorized" in desk.link.status.trouble
    refusal = next(ack for ack in desk.acks if not ack.delivered)
    assert (refusal.seq, refusal.reason, refusal.poison) == (1, "not authorized", False)
    desk.step_until(lambda: subscriber.of("/clip"))


def test_a_message_above_the_brokers_limit_does_not_block_those_behind_it(
    start: Start, watch: Watch, desk_at: Sit
) -> None:
    broker = start(extra=["max_packet_size 30000"])
    subscriber = watch(broker)
    desk = desk_at(broker)
    desk.outbox.event(1)
    desk.outbox.event(2, thumb=JPEG * 40)
    desk.outbox.event(3, thumb=JPEG)
    desk.step_until(desk.drained)
    poison = [ack for ack in desk.acks if ack.poison]
    assert [ack.seq for ack in poison] == [3]
    assert "too large" in poison[0].reason
    assert "30000" in poison[0].reason
    assert desk.delivered == [1, 2, 4, 5]
    assert desk.link.status.reconnects == 0
    desk.step_until(lambda: len(stream(subscriber)) == 4)


def test_a_message_just_within_the_brokers_limit_goes_through(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start(extra=["max_packet_size 30000"])
    watch(broker)
    desk = desk_at(broker)
    desk.connect()
    desk.outbox.event(1, thumb=b"x" * 29_000)
    row = desk.outbox.rows[1]
    payload, properties = desk.link._pictures.encode(row)
    assert desk.link._connection is not None
    around = desk.link._connection.packet_bytes(f"{BASE}/thumb", payload, properties) - len(payload)
    desk.outbox.owed.clear()
    for size in (30_000 - around, 30_000 - around + 1):
        desk.outbox.event(2, thumb=b"x" * size)
    desk.link.bell.ring()
    desk.step_until(desk.drained)
    assert [ack.seq for ack in desk.acks if ack.poison] == [6]
    assert sorted(desk.delivered) == [3, 4, 5]
    assert desk.link.status.reconnects == 0, "the broker agrees about the size"


def test_a_broker_that_is_killed_and_comes_back_loses_nothing(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    # QoS 0 subscribers are written to before we get our PUBACK. To a slow QoS 1 subscriber the broker still owes
    # messages that it has acknowledged to us; a kill -9 loses those, and `replay` repairs that, not the link.
    first = watch(broker, qos=0)
    desk = desk_at(broker)
    for number in range(1, 401):
        desk.outbox.event(number)
    desk.step_until(lambda: len(desk.delivered) > 100)
    broker.kill()
    desk.step_until(lambda: not desk.link.status.connected)
    assert "127.0.0.1" in desk.link.status.trouble
    broker.start()
    second = watch(broker, qos=0)
    desk.clock.move(60)
    desk.step_until(desk.drained)
    desk.step_until(lambda: set(stream(first)) | set(stream(second)) == set(range(1, 401)))
    assert stream(second) == sorted(stream(second)), "in order, from the oldest undelivered"


def test_an_outbox_that_is_not_there_yet_is_waited_for(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    watch(broker)
    desk = desk_at(broker)
    desk.outbox.fails = StorageError("open", "ledger.db", "no such file")
    desk.connect()
    desk.step()
    desk.outbox.event(1)
    desk.outbox.fails = None
    desk.step_until(desk.drained)


def test_a_new_ledger_starts_its_numbers_anew(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    subscriber = watch(broker)
    desk = desk_at(broker)
    desk.outbox.event(1)
    desk.step_until(desk.drained)
    desk.outbox.epoch = "01JD9ZV6Q2M4S8T1C3R5W7Y9AC"
    desk.outbox.rows.clear()
    desk.outbox.event(2)
    desk.link.bell.ring()
    desk.step_until(desk.drained)
    desk.step_until(lambda: len(subscriber.of("/event")) == 2)
    assert [json.loads(m.payload)["epoch"][-1] for m in subscriber.of("/event")] == ["B", "C"]


def test_subscribers_of_the_older_protocol_get_the_same_bytes(start: Start, watch: Watch, desk_at: Sit) -> None:
    broker = start()
    subscriber = watch(broker, version=MQTTProtocolVersion.MQTTv311)
    desk = desk_at(broker)
    desk.outbox.event(1, thumb=JPEG)
    desk.step_until(desk.drained)
    desk.step_until(lambda: subscriber.of("/thumb"))
    assert subscriber.of("/thumb")[0].payload == JPEG
