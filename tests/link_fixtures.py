"""A link at a desk: an outbox in memory, the boxes it meets other threads through, a clock that can be moved on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection
from typing import Any

from broker import DEADLINE_S, Received

from agent.clock import SystemClock
from agent.delivery import Outbox
from agent.handoffs import AckBox, StatusBoard
from agent.link import Link
from agent.messages import (
    JSON_PAYLOADS,
    CameraMeta,
    ClipBody,
    EventBody,
    LimitsMeta,
    LossBody,
    MetaMessage,
    ThumbBody,
    ThumbProperties,
    ThumbRef,
)
from agent.model import NS_PER_S, Ack, OutboxKind, OutboxRow
from agent.settings import MqttSettings, NodeSettings
from agent.topics import split
from agent.ulid import is_ulid

EPOCH = "01JD9ZV6Q2M4S8T1C3R5W7Y9AB"
TIME = "2026-11-22T03:15:07.250Z"
NODE = NodeSettings(id="entrance", site="ward-12", name="Cửa chính", location="Tầng 1")
BASE = "edgecam/v1/ward-12/entrance"
META = MetaMessage(
    site="ward-12",
    node="entrance",
    name="Cửa chính",
    location="Tầng 1",
    timezone="Asia/Ho_Chi_Minh",
    agent_version="0.1.0",
    hardware=None,
    camera=CameraMeta(backend="fake", description="scene", codec="h264", width=1280, height=720, fps=15),
    zones=[],
    capabilities=["motion"],
    schema_version="1.0",
    limits=LimitsMeta(max_payload_bytes=65536, replay_days=14, replay_mb=256),
)


def ulid(number: int) -> str:
    return f"01JD9ZV6Q2M4S8T1C3{number:08d}"


class MovableClock(SystemClock):
    """The kernel's clocks, plus what a test adds, so that no back-off is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_ns = 0
        self._stopped_ns: int | None = None

    def boot_ns(self) -> int:
        return (super().boot_ns() if self._stopped_ns is None else self._stopped_ns) + self.ahead_ns

    def stop(self) -> None:
        """From now on only the test moves the boot clock, however slow the machine is."""
        self._stopped_ns = super().boot_ns()

    def wall_ns(self) -> int:
        return super().wall_ns() + self.ahead_ns

    def move(self, seconds: float) -> None:
        self.ahead_ns += round(seconds * NS_PER_S)


def waits_for_broker(link: Link) -> bool:
    """Whether the broker owes an answer: a clock that is moved on now would call it ill."""
    connections = [each for each in (link._connection, link._media._connection) if each is not None]
    return any(each.failure is None and (not each.ready or each._in_flight) for each in connections)


class MemoryOutbox:
    """The ledger's undelivered rows; fails: every call raises it, as a ledger does that is not there yet."""

    def __init__(self, clock: SystemClock) -> None:
        self.epoch = EPOCH
        self.rows: list[OutboxRow] = []
        self.owed: dict[int, OutboxRow] = {}
        self.fails: Exception | None = None
        self._clock = clock

    def add(self, kind: OutboxKind, body: str, blob: bytes | None = None, age_s: float = 0.0) -> OutboxRow:
        age_ns = round(age_s * NS_PER_S)
        row = OutboxRow(
            seq=len(self.rows) + 1,
            kind=kind,
            boot_id=self._clock.boot_id,
            t_ns=self._clock.boot_ns() - age_ns,
            wall_ns=self._clock.wall_ns() - age_ns,
            clock_synced=True,
            body=body,
            blob=blob,
        )
        self.rows.append(row)
        self.owed[row.seq] = row
        return row

    def event(self, number: int = 1, rev: int = 1, *, thumb: bytes | None = None, age_s: float = 0.0) -> OutboxRow:
        """One revision of event number; with thumb, its row stands behind it."""
        about = None
        if thumb is not None:
            digest = hashlib.sha256(thumb).hexdigest()
            about = ThumbRef(sha256=digest, bytes=len(thumb), width=320, height=240, time=TIME)
        body = EventBody(
            id=ulid(number),
            rev=rev,
            phase="start" if rev == 1 else "update",
            kind="motion",
            start=TIME,
            end=None,
            end_reason=None,
            score=0.8,
            boxes=[(0.1, 0.2, 0.3, 0.4)],
            zones=["quay-so-2"],
            peak_time=TIME,
            thumb=about,
            clip=None,
        )
        row = self.add(OutboxKind.EVENT, body.model_dump_json(), age_s=age_s)
        if about is not None:
            small = ThumbBody(event_id=ulid(number), rev=rev, sha256=about.sha256)
            self.add(OutboxKind.THUMB, small.model_dump_json(), thumb, age_s)
        return row

    def clip(self, number: int = 1) -> OutboxRow:
        body = ClipBody(
            id=ulid(number),
            event_ids=[ulid(number)],
            start=TIME,
            duration_s=14.2,
            bytes=1000,
            sha256="0" * 64,
            flags=[],
        )
        return self.add(OutboxKind.CLIP, body.model_dump_json())

    def loss(self, first: int, last: int) -> OutboxRow:
        return self.add(
            OutboxKind.LOSS,
            LossBody(from_seq=first, to_seq=last, kind="thumb", reason="outbox full").model_dump_json(),
        )

    def _check(self) -> None:
        if self.fails is not None:
            raise self.fails

    def due(self, after_seq: int, limit: int, kinds: Collection[OutboxKind] = tuple(OutboxKind)) -> list[OutboxRow]:
        self._check()
        return [row for seq, row in sorted(self.owed.items()) if seq > after_seq and row.kind in kinds][:limit]

    @property
    def head_seq(self) -> int:
        return len(self.rows)

    def sent(self, from_seq: int, to_seq: int, limit: int) -> list[OutboxRow]:
        return self.rows[from_seq - 1 : to_seq][:limit]

    def _newest(self, kind: OutboxKind) -> OutboxRow | None:
        self._check()
        return next((row for row in reversed(self.rows) if row.kind is kind), None)

    def newest_event(self) -> OutboxRow | None:
        return self._newest(OutboxKind.EVENT)

    def newest_thumb(self) -> OutboxRow | None:
        return self._newest(OutboxKind.THUMB)

    def is_erased(self, seq: int | None = None) -> bool:
        self._check()
        return False


class Desk:
    """A link and all it meets. Storage is played: what is acknowledged leaves the outbox (unless lazy)."""

    def __init__(
        self,
        port: int,
        *,
        will_delay_s: float = 0.0,
        lazy: bool = False,
        jitter: Callable[[], float] = lambda: 0.0,
        **settings: Any,
    ) -> None:
        self.clock = MovableClock()
        self.outbox = MemoryOutbox(self.clock)
        self.box = AckBox()
        self.statuses = StatusBoard()
        self.acks: list[Ack] = []
        self.is_lazy = lazy
        self._jitter = jitter
        # model_copy does not check: a keepalive of 1 s is below what an installer may set.
        self.settings = MqttSettings(host="127.0.0.1", port=port).model_copy(update=settings)
        self.link = self.new_link(will_delay_s)

    def open_outbox(self) -> Outbox:
        return self.outbox

    def new_link(self, will_delay_s: float = 0.0) -> Link:
        return Link(
            self.settings,
            NODE,
            self.open_outbox,
            self.box,
            self.statuses,
            self.clock,
            will_delay_s=will_delay_s,
            jitter=self._jitter,
        )

    def step(self, wait_s: float = 0.02) -> None:
        self.link.step(wait_s)
        for ack in self.box.take():
            self.acks.append(ack)
            if (ack.delivered and not self.is_lazy) or ack.poison:
                self.outbox.owed.pop(ack.seq, None)

    def step_until(self, condition: Callable[[], object], what: str = "") -> None:
        """Step until condition holds; a test that waits in vain fails after a generous deadline."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, (
                f"did not happen: {what or condition}; {self.link.status}; {self.acks[-5:]}"
            )
            self.step()

    def connect(self) -> None:
        self.step_until(lambda: self.link.status.connected, "connected")

    @property
    def is_waiting(self) -> bool:
        return waits_for_broker(self.link)

    def pass_time(self, seconds: float) -> None:
        """Move the clock on, unless the broker has to answer first: how soon it does is the test machine's affair."""
        if not self.is_waiting:
            self.clock.move(seconds)

    def let_pass(self, seconds: float) -> None:
        """Step until the broker has answered everything, then move the clock on."""
        self.step_until(lambda: not self.is_waiting, "the broker answers everything")
        self.clock.move(seconds)

    def drained(self) -> bool:
        return not self.outbox.owed

    @property
    def delivered(self) -> list[int]:
        return [ack.seq for ack in self.acks if ack.delivered]


def check_message(message: Received) -> None:
    """Every message a node sends fits its model."""
    where = split(message.topic, "edgecam")
    assert where is not None, message.topic
    assert where[:2] == ("ward-12", "entrance")
    feed = where[2]
    if feed == "motion":
        assert message.payload in (b"ON", b"OFF")
    elif feed == "echo":
        assert message.payload == b"answer" or is_ulid(message.payload.decode())
    elif feed in ("thumb", "thumb/last"):
        if message.properties:
            about = ThumbProperties.model_validate(message.properties)
            assert about.sha256 == hashlib.sha256(message.payload).hexdigest()
            assert message.content_type == "image/jpeg"
    else:
        JSON_PAYLOADS[feed].model_validate_json(message.payload, strict=True)
