"""The link on the real ledger: what the storage's transactions hold is what a dashboard gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Mosquitto, Subscriber, requires_mosquitto, until
from link_fixtures import Desk, check_message, ulid

from agent.clock import read
from agent.disk import Disk
from agent.ledger import ClipRow, Ledger, LedgerReader, Revision
from agent.model import Ack, Event, EventKind, Moment, Phase, Thumbnail
from agent.ring import erase

pytest_plugins = ["closing"]

pytestmark = [pytest.mark.broker, requires_mosquitto]
JPEG = b"\xff\xd8\xff\xe0\x00\x04xx\xff\xda" + bytes(range(256)) * 80 + b"\xff\xd9"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    mosquitto = Mosquitto(tmp_path / "broker", extra=["max_packet_size 40000"]).start()
    yield mosquitto
    mosquitto.kill()


class LedgerDesk(Desk):
    """A desk whose storage is the real ledger."""

    def __init__(self, port: int, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.ledger = Ledger(Disk(), directory, node="entrance")
        super().__init__(port, **settings)  # type: ignore[arg-type]

    def open_outbox(self) -> LedgerReader:
        return LedgerReader(self.directory)

    def step(self, wait_s: float = 0.02) -> None:
        self.link.step(wait_s)
        acks: list[Ack] = self.box.take()
        self.acks += acks
        for ack in acks:
            if ack.poison:
                self.ledger.quarantine(ack.seq, ack.reason, read(self.clock))
        self.ledger.mark([ack for ack in acks if not ack.poison], read(self.clock))

    def happen(self, number: int, jpeg: bytes) -> None:
        moment = Moment(self.clock.boot_ns(), number)
        event = Event(
            id=ulid(number),
            rev=1,
            phase=Phase.START,
            kind=EventKind.MOTION,
            start=moment,
            last=moment,
            peak=moment,
            score=0.7,
            thumbnail=Thumbnail(jpeg, 320, 240, moment),
        )
        self.ledger.store_events([Revision(event, None, moment.t_ns)], read(self.clock))
        self.link.bell.ring()

    def erase_clip_of(self, number: int) -> None:
        """What `clips erase` does, of a clip that shows event number."""
        (self.directory / "clips").mkdir(exist_ok=True)
        clip = ClipRow(
            *(0, ulid(number), f"{ulid(number)}.mp4", "final", False, self.clock.boot_id, 0, 10**9, 0),
            *(True, 0, 10, 1000, "0" * 64, (), (ulid(number),)),
        )
        self.ledger.store_clip(clip, read(self.clock))
        erase(Disk(), self.directory, self.ledger, [clip], read(self.clock))


def shown(port: int) -> bytes:
    """What a page that opens now sees as the last picture; b"" for none."""
    page = Subscriber(port, checked=False)
    page.say("said", b"after what is retained")

    def came() -> bool:
        page.wait_a_moment()
        return bool(page.of("said"))

    until(came, "what is retained comes first")
    page.close()
    return next((message.payload for message in page.of("/thumb/last")), b"")


def test_an_erased_picture_no_longer_stands_at_the_broker(broker: Mosquitto, tmp_path: Path) -> None:
    subscriber = Subscriber(broker.port, "edgecam/#")
    desk = LedgerDesk(broker.port, tmp_path)
    desk.ledger.open(None, read(desk.clock))
    for number in (1, 2):
        desk.happen(number, JPEG)
        desk.step_until(lambda: desk.ledger.load.rows == 0)
    desk.step_until(lambda: ulid(2).encode() in shown(broker.port))
    desk.erase_clip_of(2)
    desk.clock.move(1.1)
    desk.step_until(lambda: ulid(1).encode() in shown(broker.port), "the picture before it stands there")
    desk.erase_clip_of(1)
    desk.clock.move(1.1)
    desk.step_until(lambda: shown(broker.port) == b"", "no picture stands there")
    desk.link.close(1)
    desk.ledger.close()
    subscriber.close()


def test_a_picture_erased_while_the_node_was_away_is_taken_back_when_it_connects(
    broker: Mosquitto, tmp_path: Path
) -> None:
    subscriber = Subscriber(broker.port, "edgecam/#")
    desk = LedgerDesk(broker.port, tmp_path)
    desk.ledger.open(None, read(desk.clock))
    desk.happen(1, JPEG)
    desk.step_until(lambda: desk.ledger.load.rows == 0 and ulid(1).encode() in shown(broker.port))
    desk.link.close(1)
    desk.erase_clip_of(1)
    desk.ledger.close()
    again = LedgerDesk(broker.port, tmp_path)
    again.ledger.open(None, read(again.clock))
    again.step_until(lambda: shown(broker.port) == b"")
    again.link.close(1)
    again.ledger.close()
    subscriber.close()


def test_a_picture_that_was_read_and_then_erased_is_not_sent(broker: Mosquitto, tmp_path: Path) -> None:
    subscriber = Subscriber(broker.port, "edgecam/#")
    desk = LedgerDesk(broker.port, tmp_path, drain_per_s=1)
    desk.ledger.open(None, read(desk.clock))
    for number in (1, 2, 3):
        desk.happen(number, JPEG)
    pictures = desk.link._pictures.delivery
    while len(pictures._page) != 2:  # the first was sent, the rest was read with it
        desk.pass_time(0.3)
        desk.step()
    desk.erase_clip_of(2)
    while desk.ledger.load.rows:
        desk.pass_time(1.1)
        desk.step()
    desk.step_until(lambda: len(subscriber.of("/event")) == 3 and subscriber.of("/loss"))
    subscriber.catch_up()
    assert {m.properties["event_id"] for m in subscriber.of("/thumb")} == {ulid(1), ulid(3)}
    assert not [m for m in subscriber.of("/thumb/last") if ulid(2).encode() in m.payload]
    desk.link.close(1)
    desk.ledger.close()
    subscriber.close()


def test_events_and_pictures_of_the_ledger_arrive_and_are_marked(broker: Mosquitto, tmp_path: Path) -> None:
    subscriber = Subscriber(broker.port, "edgecam/#")
    desk = LedgerDesk(broker.port, tmp_path)
    desk.connect()  # before there is a ledger
    desk.ledger.open(None, read(desk.clock))
    for number in (1, 2):
        desk.happen(number, JPEG)
    desk.happen(3, JPEG + b"x" * 40_000)  # too large for this broker
    desk.happen(4, JPEG)
    desk.step_until(lambda: desk.ledger.load.rows == 0, "all is delivered or quarantined")
    desk.step_until(lambda: subscriber.of("/loss") and len(subscriber.of("/thumb")) == 3)
    assert [json.loads(message.payload)["id"] for message in subscriber.of("/event")] == [
        ulid(n) for n in range(1, 5)
    ]
    loss = json.loads(subscriber.of("/loss")[0].payload)
    poison = next(ack for ack in desk.acks if ack.poison)
    assert (loss["from_seq"], loss["to_seq"], loss["kind"]) == (poison.seq, poison.seq, "thumb")
    assert "too large" in loss["reason"]
    numbers = {ack.seq for ack in desk.acks if ack.delivered} | {poison.seq}
    assert numbers == set(range(1, desk.ledger.head_seq + 1)), "every number is accounted for"
    desk.link.close(1)
    desk.ledger.close()
    subscriber.close()
    for message in subscriber.messages:
        check_message(message)


def test_a_restarted_node_sends_what_the_last_one_still_owed(broker: Mosquitto, tmp_path: Path) -> None:
    desk = LedgerDesk(broker.port, tmp_path)
    desk.ledger.open(None, read(desk.clock))
    for number in range(1, 6):
        desk.happen(number, JPEG)
    desk.step_until(lambda: desk.link.status.refused, "nobody subscribes")
    desk.link.close(0.1)
    desk.ledger.close()
    subscriber = Subscriber(broker.port, "edgecam/#")
    again = LedgerDesk(broker.port, tmp_path)
    again.ledger.open(None, read(again.clock))
    again.step_until(lambda: again.ledger.load.rows == 0)
    again.step_until(lambda: len(subscriber.of("/event")) == 5 and len(subscriber.of("/thumb")) == 5)
    again.link.close(1)
    again.ledger.close()
    subscriber.close()
