"""One node of scripts/fleet: link, outbox and answers to `replay` as they are; only the camera is played."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from link_fixtures import MemoryOutbox

from agent.admission import Command
from agent.arming import Arming
from agent.birth import meta_message
from agent.clock import SystemClock, read
from agent.commands import Commands
from agent.connection import Incoming
from agent.handoffs import AckBox, Doorbell, EventBoard, PacketRing, Status, StatusBoard
from agent.jobs import Replay
from agent.ledger_reader import LedgerReader
from agent.link import Link
from agent.mail import Mail
from agent.mailboxes import Reply
from agent.messages import to_bytes
from agent.model import NS_PER_S, EndReason, Event, EventKind, Moment, Phase, Thumbnail
from agent.operators import admission_of
from agent.requests import REPLAY_ROWS, ReplayArgs, Response
from agent.settings import Settings, load_settings
from agent.storage import Storage
from agent.topics import META
from agent.ulid import new_ulid

NAME = "fleet-broker"
"""Resolves to all endpoints, in turn, as a name of several addresses does."""

THUMB_BYTES = 20_000
QUIET_NS = 60 * NS_PER_S
"""A dispatcher is stepped for so long after it was asked something."""


def settings_of(number: int, directory: Path) -> Settings:
    return load_settings(
        environ={},
        overrides={
            "node": {"site": f"site-{number // 20 + 1}", "id": f"cam-{number % 20 + 1}"},
            "clips": {"enabled": False, "directory": directory / f"node-{number}", "min_free_mb": 0},
            "mqtt": {"host": NAME, "port": 1883},
        },
    )


class FleetNode:
    """One node: link and outbox, and a played camera that reports an event every period_s."""

    def __init__(self, number: int, directory: Path, clock: SystemClock, period_s: float, *, is_real: bool) -> None:
        settings = settings_of(number, directory)
        self.name = f"{settings.node.site}/{settings.node.id}"
        self._clock = clock
        self._board = EventBoard()
        self._acks = AckBox()
        self._period_ns = round(period_s * NS_PER_S)
        # Spread over the period: a real fleet is not in step either.
        self._next_ns = clock.boot_ns() + round((number * 0.618) % 1 * self._period_ns)
        self._number = number
        self._events = 0
        self._statuses = StatusBoard()
        self._memory: MemoryOutbox | None = None
        self._storage: Storage | None = None
        self._commands: Commands | None = None
        self._job: tuple[Command, Replay] | None = None
        self._settings = settings
        doorbell = Doorbell()
        self._mail = Mail.make(doorbell)
        self._asked_ns = -QUIET_NS
        if not is_real:
            self._memory = MemoryOutbox(clock)
            self._memory.epoch = new_ulid(clock.wall_ns() // 1_000_000)
        outbox = self._memory
        self.link = Link(
            settings.mqtt,
            settings.node,
            outbox=(lambda: outbox) if outbox is not None else (lambda: LedgerReader(settings.clips.directory)),
            acks=self._acks,
            statuses=self._statuses,
            clock=clock,
            listen={"cmd/+": self._hear},
            replies=self._mail.replies,
            media=self._mail.media,
        )
        self._mail.replies.wake(self.link.bell)
        self._mail.media.wake(self.link.bell)
        self._admission = admission_of(settings)
        if is_real:
            self._storage = Storage(
                *(settings, clock, PacketRing(1), self._board, self._acks, doorbell, self.link.bell),
                errands=self._mail.errands,
            )
            self._storage.open()
            self._commands = Commands(
                *(settings, clock, self._mail, self._admission),
                post_test=lambda: "",
                manual=_nothing_is_filmed,
                restart=_nothing_is_restarted,
                arming=Arming(settings.clips.directory, self._statuses),
            )
        self._statuses.put(META, Status(to_bytes(meta_message(settings, None, None))))
        self._statuses.put("motion", Status(b"OFF"))

    def step(self, *, is_producing: bool) -> None:
        now_ns = self._clock.boot_ns()
        if is_producing and now_ns >= self._next_ns:
            self._next_ns += self._period_ns
            self._happen(now_ns)
        if now_ns - self._asked_ns < QUIET_NS:
            self._answer(now_ns)
        if self._storage is not None:
            self._storage.step(0)
        elif self._memory is not None:
            for ack in self._acks.take():
                if ack.delivered:
                    self._memory.owed.pop(ack.seq, None)
        self.link.step(0)

    def _hear(self, message: Incoming) -> None:
        self._asked_ns = self._clock.boot_ns()
        self._mail.hear(message)

    def _answer(self, now_ns: int) -> None:
        """Only while somebody has asked: a thousand dispatchers that have nothing to do cost as well."""
        if self._commands is not None:
            self._commands.step(0)
            return
        if self._job is None:
            raw, _ = self._mail.commands.take()
            command = self._admission.command(raw, read(self._clock)) if raw is not None else None
            if isinstance(command, Command) and isinstance(command.args, ReplayArgs):
                self._job = command, self._replay(command, command.args)
        if self._job is not None:
            command, job = self._job
            for fate in self._mail.media.take_fates():
                job.fate(fate)
            outcome = job.step(now_ns)
            if outcome is not None:
                self._job = None
                answer = Response(id=command.id, ok=outcome.error is None, result=outcome.result, error=outcome.error)
                self._mail.replies.put(Reply(command.reply_topic, answer.model_dump_json(exclude_none=True).encode()))

    def _replay(self, command: Command, args: ReplayArgs) -> Replay:
        reader: Any = self._memory
        return Replay(
            *(1, command.id, command.reply_topic, b"", self._mail.media, reader, self._settings.node),
            (args.from_seq, args.to_seq),
            thumbs=args.thumbs,
            limit=REPLAY_ROWS,
            wall_ns=self._clock.wall_ns,
        )

    def _happen(self, now_ns: int) -> None:
        self._events += 1
        if self._memory is not None:
            self._memory.event(self._events)
            self.link.bell.ring()
            return
        at = Moment(now_ns, self._events)
        jpeg = b"\xff\xd8" + os.urandom(THUMB_BYTES - 4) + b"\xff\xd9"
        self._board.put(
            Event(
                new_ulid(self._clock.wall_ns() // 1_000_000),
                1,
                Phase.END,
                EventKind.TEST,
                at,
                at,
                at,
                score=1.0,
                end=at,
                end_reason=EndReason.QUIET,
                thumbnail=Thumbnail(jpeg, 480, 270, at),
            )
        )

    @property
    def head(self) -> int:
        return len(self._memory.rows) if self._memory is not None else self._storage.status.head_seq  # type: ignore[union-attr]

    @property
    def owed(self) -> int:
        if self._memory is not None:
            return len(self._memory.owed)
        assert self._storage is not None
        return self._storage.status.outbox_rows

    def close(self) -> None:
        if self._commands is not None:
            self._commands.close()
        if self._storage is not None:
            self._storage.close()
        self.link.close(1.0)


def _nothing_is_filmed(_: object) -> Event:
    raise AssertionError("this fleet has no cameras")


def _nothing_is_restarted(_: str) -> None:
    raise AssertionError("nobody asks for it")
