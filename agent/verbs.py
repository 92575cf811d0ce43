"""What each verb does: an outcome at once, a longer job, or an errand for the disk. Reads the ledger and clips.

Pictures apart: those wait for a frame. Commands thread only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol, TypeVar

from agent.admission import Command
from agent.archive import Archive, clip_transfer, list_clips, list_events, no_clip
from agent.arming import ARMING_NAME, Arming
from agent.audit import AuditRow
from agent.backoff import Backoff
from agent.clock import Clock, read, rfc3339
from agent.disk import Disk
from agent.errands import Action, Done
from agent.jobs import Job, Outcome, Recording, Replay, failure
from agent.ledger_reader import LedgerReader
from agent.mailboxes import MediaBox
from agent.messages import ArmedMessage, to_bytes
from agent.model import Event
from agent.requests import (
    REPLAY_ROWS,
    ClipArgs,
    ClipGetArgs,
    ClipPutArgs,
    ListArgs,
    OfferArgs,
    RecordArgs,
    ReplayArgs,
    SetArgs,
    UpdateArgs,
)
from agent.settings import Settings
from agent.updates import Updates
from agent.uploads import Upload, allowed

A = TypeVar("A")


class Desk(Protocol):
    """The dispatcher, as a verb sees it: who answers, keeps jobs and has errands done."""

    def ticket(self) -> int: ...
    def start(self, ticket: int, command: Command, job: Job) -> Outcome | None: ...
    def finish(self, command: Command, outcome: Outcome) -> None: ...
    def ask(
        self,
        command: Command,
        then: Callable[[Done], None],
        *,
        row: AuditRow | None = None,
        file: tuple[str, bytes] | None = None,
        action: Action = "",
        clip_id: str = "",
    ) -> bool: ...


class Verbs:
    """table: verb -> what does it; None instead of an outcome: it is answered later. It may raise StorageError."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        desk: Desk,
        media: MediaBox,
        reader: LedgerReader,
        disk: Disk,
        arming: Arming,
        *,
        post_test: Callable[[], str],
        manual: Callable[[Event | None], Event],
        restart: Callable[[str], None],
        turn: Callable[[Command, dict[str, dict[str, object]]], Outcome | None],
    ) -> None:
        """turn: changes settings, a merge patch, as a command asks."""
        self.table: dict[str, Callable[[Command], Outcome | None]] = {
            "ping": self._ping,
            "events.list": self._list_events,
            "clips.list": self._list_clips,
            "clip.get": self._get_clip,
            "clip.put": self._put_clip,
            "clip.protect": self._pin,
            "clip.release": self._pin,
            "clip.erase": self._pin,
            "replay": self._replay,
            "record": self._record,
            "arm": lambda command: self._turn_arming(command, True),
            "disarm": lambda command: self._turn_arming(command, False),
            "set": self._set,
            "test-event": self._test_event,
            "update.offer": self._offer_update,
            "update": self._update,
            "restart": self._restart_node,
        }
        self._node = settings.node
        self._upload_hosts = list(settings.commands.upload_hosts)
        self._clock = clock
        self._desk = desk
        self._media = media
        self._reader = reader
        self._archive = Archive(reader, disk, settings.clips.directory)
        self._post_test = post_test
        self._manual = manual
        self._restart = restart
        self._turn = turn
        self._arming = arming
        self._turning = 0
        self.updates: Updates | None = None

    def _ping(self, _: Command) -> Outcome:
        now = read(self._clock)
        result = {"time": rfc3339(now.wall_ns), "boot_id": now.boot_id, "clock_synced": now.clock_synced}
        return Outcome({**result, "t_ns": now.t_ns})

    def _test_event(self, _: Command) -> Outcome:
        return Outcome({"event_id": self._post_test()})

    def _offer_update(self, command: Command) -> Outcome | None:
        if self.updates is None:
            return failure("unavailable", "this program is not updated so")
        self.updates.offer(args_of(command, OfferArgs), lambda outcome: self._desk.finish(command, outcome))
        return None

    def _update(self, command: Command) -> Outcome | None:
        if self.updates is None:
            return failure("unavailable", "this program is not updated so")

        def start(job: Job) -> None:
            refused = self._desk.start(self._desk.ticket(), command, job)
            if refused is not None:
                self._desk.finish(command, refused)

        args = args_of(command, UpdateArgs)
        self.updates.begin(args, start, lambda outcome: self._desk.finish(command, outcome))
        return None

    def _record(self, command: Command) -> Outcome | None:
        job = Recording(self._manual, args_of(command, RecordArgs).duration_s)
        return self._desk.start(self._desk.ticket(), command, job)

    def _set(self, command: Command) -> Outcome | None:
        args = args_of(command, SetArgs)
        if args.armed is not None:
            return self._turn_arming(command, args.armed)
        return self._turn(command, {"detection": {"sensitivity": args.sensitivity}})

    def _turn_arming(self, command: Command, armed: bool) -> Outcome | None:
        """In force when it is on the disk: after a power cut the node is as it said that it was."""
        if armed == self._arming.is_armed and not self._turning:
            return Outcome(self._arming.state.model_dump())
        now = read(self._clock)
        state = ArmedMessage(
            armed=armed, since=rfc3339(now.wall_ns), by=command.client, clock_synced=now.clock_synced
        )

        def tell(done: Done) -> None:
            self._turning -= 1
            if done.code == "ok":
                self._arming.become(state)
                self._desk.finish(command, Outcome(state.model_dump()))
            else:
                self._desk.finish(command, failure("unavailable", f"it could not be written down: {done.words}"))

        self._turning += self._desk.ask(command, tell, file=(ARMING_NAME, to_bytes(state)))
        return None

    def _restart_node(self, command: Command) -> Outcome:
        self._restart(f"command {command.id} of {command.client}")
        return Outcome({})

    def _list_events(self, command: Command) -> Outcome:
        return list_events(self._reader, args_of(command, ListArgs))

    def _list_clips(self, command: Command) -> Outcome:
        return list_clips(self._reader, args_of(command, ListArgs))

    def _get_clip(self, command: Command) -> Outcome | None:
        args = args_of(command, ClipGetArgs)
        ticket = self._desk.ticket()
        job = clip_transfer(ticket, command.id, self._media, self._archive, args.clip_id, args.offset, args.length)
        return self._desk.start(ticket, command, job) if not isinstance(job, Outcome) else job

    def _put_clip(self, command: Command) -> Outcome | None:
        args = args_of(command, ClipPutArgs)
        refusal = allowed(args.url, self._upload_hosts)
        if refusal:
            return failure("forbidden", refusal, "/args/url")
        clip = self._archive.clip(args.clip_id)
        if clip is None:
            return no_clip()
        if args.offset >= clip.bytes:
            return failure("invalid", f"the clip has {clip.bytes} bytes", "/args/offset")
        end = clip.bytes if args.length is None else min(clip.bytes, args.offset + args.length)
        file = self._archive.open(clip)
        job = Upload(
            args.url,
            args.content_type,
            clip,
            file,
            lambda opened, offset, length: self._archive.piece(opened, clip, offset, length),
            Backoff(random.random),
            (args.offset, end),
        )
        return self._desk.start(self._desk.ticket(), command, job)

    def _pin(self, command: Command) -> None:
        """Protect, release or erase: the storage thread does it."""
        clip_id = args_of(command, ClipArgs).clip_id
        actions: dict[str, Action] = {"clip.protect": "protect", "clip.release": "release", "clip.erase": "erase"}

        def tell(done: Done) -> None:
            if done.code == "ok":
                self._desk.finish(command, Outcome({"clip_id": clip_id}))
            elif done.code == "not-found":
                self._desk.finish(command, no_clip())
            elif done.code == "protected":
                self._desk.finish(command, failure("protected", "the clip is protected; release it first"))
            else:
                self._desk.finish(command, failure("unavailable", done.words))

        self._desk.ask(command, tell, action=actions[command.verb], clip_id=clip_id)

    def _replay(self, command: Command) -> Outcome | None:
        args = args_of(command, ReplayArgs)
        if args.to_seq < args.from_seq:
            return failure("invalid", "should not be below from_seq", "/args/to_seq")
        ticket = self._desk.ticket()
        job = Replay(
            ticket,
            command.id,
            command.reply_topic,
            command.correlation,
            self._media,
            self._reader,
            self._node,
            (args.from_seq, args.to_seq),
            thumbs=args.thumbs,
            limit=REPLAY_ROWS,
            wall_ns=self._clock.wall_ns,
        )
        return self._desk.start(ticket, command, job)


def args_of(command: Command, kind: type[A]) -> A:
    """Its args as the verb's model."""
    assert isinstance(command.args, kind)
    return command.args
