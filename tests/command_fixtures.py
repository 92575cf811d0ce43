"""A node without a camera, stepped by a test at a real broker: link, storage, commands; and a client who asks."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker import DEADLINE_S, Received, Subscriber
from link_fixtures import NODE, MovableClock, ulid, waits_for_broker
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.arming import Arming
from agent.clock import read, rfc3339
from agent.commands import Commands
from agent.disk import Disk
from agent.handoffs import AckBox, Doorbell, EventBoard, PacketRing, StatusBoard
from agent.ledger import Ledger
from agent.ledger_reader import ClipRow, LedgerReader
from agent.link import Link
from agent.mail import Mail
from agent.model import NS_PER_S, Event, EventKind, Moment, Phase
from agent.operators import admission_of
from agent.pictures import WantStill
from agent.requests import Response
from agent.settings import Settings, load_settings
from agent.storage import Storage

BASE = "edgecam/v1/ward-12/entrance"


def settings(directory: Path, port: int, **more: dict[str, Any]) -> Settings:
    tree: dict[str, Any] = {
        "node": NODE.model_dump(),
        "clips": {"directory": str(directory), "min_free_mb": 0},
        "mqtt": {"host": "127.0.0.1", "port": port},
    }
    for section, values in more.items():
        tree[section] = {**tree.get(section, {}), **values}
    return load_settings(environ={}, overrides=tree)


class Bench:
    """The rooms that answer commands, in one thread. restarts: why the program was asked to start again."""

    def __init__(
        self,
        directory: Path,
        port: int,
        *,
        disk: Disk | None = None,
        given: Settings | None = None,
        want_still: WantStill | None = None,
        **more: dict[str, Any],
    ) -> None:
        self.settings = given or settings(directory, port, **more)
        self.directory = directory
        self.clock = MovableClock()
        self.disk = disk or Disk()
        bell = Doorbell()
        self.board = EventBoard(doorbell=bell)
        self.statuses = StatusBoard()
        self.mail = Mail.make(bell)
        acks = AckBox(bell)
        self.restarts: list[str] = []
        self.link = Link(
            self.settings.mqtt,
            self.settings.node,
            lambda: LedgerReader(directory),
            acks,
            self.statuses,
            self.clock,
            listen={"cmd/+": self.mail.hear, "config/desired": self.mail.hear_desired},
            replies=self.mail.replies,
            media=self.mail.media,
            will_delay_s=0,
            jitter=lambda: 0.0,
        )
        self.mail.replies.wake(self.link.bell)
        self.mail.media.wake(self.link.bell)
        self.storage = Storage(
            self.settings,
            self.clock,
            PacketRing(1_000_000, bell),
            self.board,
            acks,
            bell,
            self.link.bell,
            self.disk,
            errands=self.mail.errands,
        )
        self._want_still = want_still
        self.arming = Arming(directory, self.statuses, self.disk)
        self.commands = self.new_commands()
        self.storage.open()

    def new_commands(self) -> Commands:
        return Commands(
            self.settings,
            self.clock,
            self.mail,
            admission_of(self.settings, self.disk),
            post_test=self._post_test,
            manual=self._manual,
            restart=self.restarts.append,
            want_still=self._want_still,
            arming=self.arming,
        )

    def _post_test(self) -> str:
        at = Moment(self.clock.boot_ns(), 0)
        self.board.put(Event(ulid(99), 1, Phase.END, EventKind.TEST, at, at, at, score=1.0, end=at))
        return ulid(99)

    def _manual(self, begun: Event | None) -> Event:
        at = Moment(self.clock.boot_ns(), 0)
        event = begun or Event(ulid(98), 1, Phase.START, EventKind.MANUAL, at, at, at, score=1.0)
        if begun is not None:
            event = replace(begun, rev=2, phase=Phase.END, last=at, end=at)
        self.board.put(event)
        return event

    def step(self) -> None:
        self.link.step(0.005)
        self.commands.step(0)
        self.storage.step(0)

    def until(self, condition: Any, what: str = "") -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"did not happen: {what}; {self.link.status}; {self.commands.status}"
            self.step()

    def connect(self) -> None:
        self.until(lambda: self.link.status.connected, "connected")
        self.until(lambda: self.link._connection is not None and not self.link._connection._asked, "subscribed")

    def pass_time(self, seconds: float) -> None:
        """Move the clock on, unless the broker has to answer first: how soon it does is the test machine's affair."""
        if not waits_for_broker(self.link):
            self.clock.move(seconds)

    def let_pass(self, seconds: float) -> None:
        """Step until the broker has answered everything, then move the clock on."""
        self.until(lambda: not waits_for_broker(self.link), "the broker answers everything")
        self.clock.move(seconds)

    def close(self) -> None:
        self.commands.close()
        self.storage.close()
        self.link.close(1.0)

    def add_clip(self, number: int = 1, content: bytes = b"0123456789" * 5000) -> ClipRow:
        """A clip's file and row, as the recorder leaves them (its bytes are not video: nobody here decodes)."""
        clip_id = ulid(number)
        path = self.directory / "clips" / f"{clip_id}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        now = read(self.clock)
        row = ClipRow(
            n=0,
            id=clip_id,
            file=path.name,
            state="final",
            is_protected=False,
            boot_id=now.boot_id,
            start_t_ns=now.t_ns - 10 * NS_PER_S,
            end_t_ns=now.t_ns,
            start_wall_ns=now.wall_ns - 10 * NS_PER_S,
            clock_synced=True,
            running_ns=0,
            frames=100,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            flags=(),
            event_ids=(ulid(number + 500),),
        )
        self.storage_ledger.store_clip(row, now)
        return row

    @property
    def storage_ledger(self) -> Ledger:
        return self.storage._ledger

    def add_event(self, number: int, kind: EventKind = EventKind.MOTION) -> None:
        at = Moment(self.clock.boot_ns(), number)
        self.board.put(Event(ulid(number), 1, Phase.END, kind, at, at, at, score=0.8, end=at))

    def later(self, seconds: float) -> str:
        return rfc3339(self.clock.wall_ns() + round(seconds * NS_PER_S))


class Client(Subscriber):
    """A dashboard that sends commands and hears the answers."""

    def __init__(self, port: int, bench: Bench, name: str = "page-1") -> None:
        super().__init__(port, "edgecam/#", checked=False)
        self.name = name
        self._bench = bench
        self._count = 0

    def send(
        self,
        verb: str,
        payload: bytes,
        *,
        retain: bool = False,
        response_topic: str = "",
        correlation: bytes = b"",
    ) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if response_topic:
            properties.ResponseTopic = response_topic
        if correlation:
            properties.CorrelationData = correlation
        self._client.publish(f"{BASE}/cmd/{verb}", payload, qos=1, retain=retain, properties=properties)

    def request(self, verb: str, args: dict[str, Any] | None = None, **more: Any) -> str:
        """Send it; its id."""
        self._count += 1
        body = {"id": f"{self.name}-{self._count}", "client": self.name, "args": args or {}, **more}
        self.send(verb, json.dumps(body).encode())
        return str(body["id"])

    def answers(self, request_id: str | None = None) -> list[dict[str, Any]]:
        """Answers without the parts of a replay, each checked against its model."""
        found = [json.loads(message.payload) for message in self.of(f"/rsp/{self.name}")]
        for answer in found:
            Response.model_validate(answer, strict=True)
        return [a for a in found if "part" not in a and (request_id is None or a["id"] == request_id)]

    def ask(self, verb: str, args: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Send it and step the node until the answer came."""
        request_id = self.request(verb, args, **more)
        self._bench.until(lambda: self.answers(request_id), f"an answer to {verb}")
        return self.answers(request_id)[0]

    def chunks(self, request_id: str) -> list[tuple[int, bytes]]:
        """(offset, bytes) of a transfer, as they came."""
        messages: list[Received] = [m for m in self.messages if f"/xfer/{request_id}/" in m.topic]
        return [(int(m.topic.rsplit("/", 1)[1]), m.payload) for m in messages]
