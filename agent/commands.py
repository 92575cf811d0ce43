"""The dispatcher: a command is admitted, looked up, written down, executed, answered. Reads the ledger and clips.

A stage with a thread of its own, because it may wait for a slow card or an upload, which must delay neither
events (link) nor recording (storage) nor the watchdog (main). It writes nothing itself: what has to reach the
disk is an errand for the storage thread.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from agent.admission import Admission, Command, Refused
from agent.archive import still_transfer
from agent.arming import Arming
from agent.audit import BEGUN, AuditRow
from agent.clock import Clock, Now, read
from agent.desired import Configuring
from agent.disk import Disk
from agent.errands import Action, Done, Errand
from agent.errors import StorageError
from agent.jobs import Job, Outcome, failure
from agent.ledger_file import LEDGER_NAME
from agent.ledger_reader import LedgerReader
from agent.mail import Mail
from agent.mailboxes import RawCommand, Reply
from agent.model import NS_PER_S, Event
from agent.operators import COUNTERS_NAME
from agent.pictures import Pictures, Still, WantStill
from agent.requests import (
    ACTING,
    ErrorBody,
    LiveArgs,
    Response,
    SnapshotArgs,
)
from agent.settings import Settings
from agent.status import CommandsStatus
from agent.updates import Updates
from agent.verbs import Verbs, args_of

log = logging.getLogger(__name__)

JOBS = 4
"""Transfers, replays and uploads at once; more are answered `busy`."""

REMEMBERED = 64
STORED_ANSWER_BYTES = 4096
"""A longer answer (a list) is remembered for a while, but not written down: asked again it is asked anew."""

LISTED_PER_S = 20.0
LISTED_BURST = 64.0
"""Refusals written to the audit table; beyond that a flood is only counted, for the card's sake."""


class Commands:
    """step() from one thread; `status` for anybody. restart(why) asks the program to end and be started again."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        mail: Mail,
        admission: Admission,
        *,
        post_test: Callable[[], str],
        manual: Callable[[Event | None], Event],
        restart: Callable[[str], None],
        arming: Arming,
        want_still: WantStill | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.status = CommandsStatus()
        if admission.is_signed and admission.counters is None:
            self.status = CommandsStatus(trouble=f"{COUNTERS_NAME} cannot be read: no signed command is executed")
        self.beat_ns = clock.boot_ns()
        self._clock = clock
        self._mail = mail
        self._admission = admission
        self._directory = settings.clips.directory
        self._reader = LedgerReader(self._directory)
        self._verbs = Verbs(
            settings,
            clock,
            self,
            mail.media,
            self._reader,
            disk or Disk(),
            arming,
            post_test=post_test,
            manual=manual,
            restart=restart,
            turn=self._turn,
        )
        self._pictures = Pictures(settings.commands, mail.tap, mail.main_tap, mail.media, want_still)
        self._last_ticket = 0
        self._waiting: dict[int, Callable[[Done], None]] = {}
        self._jobs: dict[int, tuple[Command, Job]] = {}
        self._in_progress: set[tuple[str, str]] = set()
        self._recent: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self.configuring: Configuring | None = None
        self._updates: Updates | None = None
        self._desired: RawCommand | None = None
        self._listing = LISTED_BURST
        self._listed_ns = self.beat_ns

    def step(self, wait_s: float) -> None:
        """One bounded piece of work of each kind; waits at most wait_s for news. Never raises for bad input."""
        self._mail.bell.wait(self._bounded(wait_s))
        now = read(self._clock)
        for done in self._mail.errands.to_commands.take_all():
            waiting = self._waiting.pop(done.ticket, None)
            if waiting is not None:
                waiting(done)
        self._take_command(now)
        self._run_jobs(now)
        self._show_pictures(now)
        self._configure(now)
        if self._updates is not None:
            self._updates.step(now)
        self.status = replace(
            self.status, dropped=self._mail.commands.dropped, live_frames=self._pictures.live_frames
        )
        self.beat_ns = self._clock.boot_ns()

    def close(self) -> None:
        """Give up what is under way: clients see the node stop and ask again."""
        self._pictures.close()
        for _, job in self._jobs.values():
            job.close()
        self._jobs.clear()
        self._reader.close()

    def _bounded(self, wait_s: float) -> float:
        now_ns = self._clock.boot_ns()
        for _, job in self._jobs.values():
            wait_s = min(wait_s, max(0.0, (job.wake_ns(now_ns) - now_ns) / NS_PER_S))
        return wait_s

    # -- configuration

    def _configure(self, now: Now) -> None:
        """What config/desired says, and the trial that may be under way."""
        if self.configuring is None:
            return
        raw = self._mail.commands.take_desired() or self._desired
        self._desired = None
        if raw is not None and raw.size:  # an empty one was cleared
            wanted = self._admission.desired(raw)
            if not self.configuring.hear(wanted, now):
                self._desired = raw
            elif isinstance(wanted, ErrorBody):
                self._refuse(Refused(wanted, raw.verb), now)
        self.configuring.step(now)

    def _turn(self, command: Command, patch: dict[str, dict[str, object]]) -> Outcome | None:
        """Settings changed by a command, without a restart."""
        if self.configuring is None:
            return failure("unavailable", "the settings of this node cannot be changed by messages")

        def tell(outcome: Outcome) -> None:
            self.finish(command, outcome)

        return self.configuring.turn(patch, read(self._clock), tell)

    def write(self, file: tuple[str, bytes], then: Callable[[Done], None]) -> bool:
        """A file of the node's directory, written by the storage thread; then(done) in a later step."""
        row = AuditRow("", "", "config/desired", "written", is_refusal=True)
        return self.errand(Errand(0, row, file), then)

    def errand(self, errand: Errand, then: Callable[[Done], None]) -> bool:
        """For the storage thread; then(done) in a later step. False when it has too much to do."""
        ticket = self.ticket()
        self._waiting[ticket] = then
        if self._mail.errands.to_storage.put(replace(errand, ticket=ticket)):
            return True
        del self._waiting[ticket]
        return False

    def serve_updates(self, updates: Updates) -> None:
        """Before the first step. Without, `update` is answered `unavailable`."""
        self._updates = self._verbs.updates = updates

    # -- admission

    def _take_command(self, now: Now) -> None:
        raw, is_busy = self._mail.commands.take()
        if raw is None:
            return
        self._mail.bell.ring()  # there may be more of them
        if self._mail.replies.is_full:
            is_busy = True
        admitted = self._admission.command(raw, now)
        if isinstance(admitted, Refused):
            self._refuse(admitted, now)
        elif is_busy:
            self._refuse_known(admitted, ErrorBody(code="busy", detail="too many commands at once; try again"), now)
        else:
            self._begin(admitted, now)

    def _refuse(self, refused: Refused, now: Now) -> None:
        self.status = replace(self.status, refused=self.status.refused + 1)
        error = refused.error
        log.info("command %s of %s refused: %s", refused.verb, refused.client or "?", error.code)
        if refused.reply_topic:
            answer = Response(id=refused.id, ok=False, error=error)
            self._send(refused.reply_topic, _json(answer), refused.correlation)
        earned = LISTED_PER_S * (now.t_ns - self._listed_ns) / NS_PER_S
        self._listing, self._listed_ns = min(LISTED_BURST, self._listing + earned), now.t_ns
        row = AuditRow(refused.client, refused.id, refused.verb, error.code, error.detail, is_refusal=True)
        if self._listing >= 1 and self._mail.errands.to_storage.put(Errand(0, row)):
            self._listing -= 1
        else:
            self.status = replace(self.status, unlisted=self.status.unlisted + 1)

    def _refuse_known(self, command: Command, error: ErrorBody, now: Now) -> None:
        self._refuse(
            Refused(error, command.verb, command.id, command.client, command.reply_topic, command.correlation), now
        )

    def _begin(self, command: Command, now: Now) -> None:
        name = (command.client, command.id)
        if name in self._in_progress:
            return  # its answer is on the way
        stored = self._recent.get(name)
        try:
            stored = stored or self._stored_answer(name)
        except StorageError as error:
            if command.verb in ACTING or command.counter:
                self._refuse_known(command, ErrorBody(code="unavailable", detail=str(error)), now)
                return
        if stored is not None:
            self._send(command.reply_topic, stored, command.correlation)
            return
        self.status = replace(self.status, accepted=self.status.accepted + 1)
        self._in_progress.add(name)
        if command.verb not in ACTING and not command.counter:
            self._execute(command)
            return
        row = AuditRow(command.client, command.id, command.verb, BEGUN, key=command.key, counter=command.counter)
        counters = json.dumps(self._admission.counters).encode()
        file = (COUNTERS_NAME, counters) if command.counter else None

        def go_on(done: Done) -> None:
            if done.code == "ok":
                self._execute(command)
            else:
                self.finish(command, failure("unavailable", f"it could not be written down: {done.words}"))

        self.ask(command, go_on, row=row, file=file)

    def _stored_answer(self, name: tuple[str, str]) -> bytes | None:
        try:
            row = self._reader.command(*name)
        except StorageError:
            if not (self._directory / LEDGER_NAME).exists():
                return None
            raise
        if row is None:
            return None
        if row.answer is not None:
            return row.answer.encode()
        if row.code != BEGUN:
            return None
        detail = "it was begun; the node restarted before it was written down whether it was done"
        return _json(Response(id=name[1], ok=False, error=ErrorBody(code="interrupted", detail=detail)))

    def ask(
        self,
        command: Command,
        then: Callable[[Done], None],
        *,
        row: AuditRow | None = None,
        file: tuple[str, bytes] | None = None,
        action: Action = "",
        clip_id: str = "",
    ) -> bool:
        """An errand for the storage thread; then(done) is called in a later step. False: no room, it is answered."""
        ticket = self.ticket()
        self._waiting[ticket] = then
        if not self._mail.errands.to_storage.put(Errand(ticket, row, file, action, clip_id)):
            del self._waiting[ticket]
            self.finish(command, failure("busy", "the disk has too much to do; try again"), is_stored=False)
            return False
        return True

    def ticket(self) -> int:
        self._last_ticket += 1
        return self._last_ticket

    # -- answers

    def finish(self, command: Command, outcome: Outcome, *, is_stored: bool = True) -> None:
        """Write the answer down, then send it; an acting command's answer only when it is durable."""
        name = (command.client, command.id)
        answer = _json(Response(id=command.id, ok=outcome.error is None, result=outcome.result, error=outcome.error))
        code = "ok" if outcome.error is None else outcome.error.code
        log.info("command %s of %s: %s", command.verb, command.client, code)

        def tell(_: Done) -> None:
            self._in_progress.discard(name)
            self._recent[name] = answer
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
            self._send(command.reply_topic, answer, command.correlation)

        stored = answer.decode() if len(answer) <= STORED_ANSWER_BYTES else None
        about = str(getattr(command.args, "clip_id", ""))
        detail = " ".join(filter(None, (about, outcome.error.detail if outcome.error is not None else "")))
        row = AuditRow(
            command.client,
            command.id,
            command.verb,
            code,
            detail,
            key=command.key,
            counter=command.counter,
            answer=stored,
        )
        ticket = self.ticket() if command.verb in ACTING else 0
        is_asked = is_stored and self._mail.errands.to_storage.put(Errand(ticket, row))
        if ticket and is_asked:
            self._waiting[ticket] = tell
        else:
            if not is_asked:
                self.status = replace(self.status, unlisted=self.status.unlisted + 1)
            tell(Done(0))

    def _send(self, topic: str, answer: bytes, correlation: bytes) -> None:
        if not self._mail.replies.put(Reply(topic, answer, correlation)):
            log.warning("an answer was dropped: too many at once")

    # -- the verbs

    def _execute(self, command: Command) -> None:
        pictures: dict[str, Callable[[Command], Outcome | None]] = {
            "snapshot": self._take_still,
            "live": self._grant_live,
        }
        try:
            outcome = (pictures | self._verbs.table)[command.verb](command)
        except StorageError as error:
            outcome = failure("unavailable", str(error))
        if outcome is not None:
            self.finish(command, outcome)

    def start(self, ticket: int, command: Command, job: Job) -> Outcome | None:
        """Let job answer command from now on; an Outcome where there are too many."""
        if len(self._jobs) >= JOBS:
            job.close()
            return failure("busy", f"{JOBS} transfers are under way; try again")
        self._jobs[ticket] = (command, job)
        self._mail.bell.ring()
        return None

    # -- jobs and pictures

    def _run_jobs(self, now: Now) -> None:
        for fate in self._mail.media.take_fates():
            if fate.ticket in self._jobs:
                self._jobs[fate.ticket][1].fate(fate)
        for ticket, (command, job) in list(self._jobs.items()):
            outcome = job.step(now.t_ns)
            if self._mail.media.newest_ticket == ticket:
                # To the end of the queue: else the first takes each place that comes free, and the others starve.
                self._jobs[ticket] = self._jobs.pop(ticket)
            if outcome is not None:
                del self._jobs[ticket]
                job.close()
                self.finish(command, outcome)

    def _take_still(self, command: Command) -> Outcome | None:
        return self._pictures.ask_still(command, args_of(command, SnapshotArgs), self._clock.boot_ns())

    def _grant_live(self, command: Command) -> Outcome:
        return self._pictures.grant_live(command.client, args_of(command, LiveArgs), read(self._clock))

    def _show_pictures(self, now: Now) -> None:
        stills, late = self._pictures.step(now.t_ns)
        for still in stills:
            self._send_still(still, now)
        for command, refusal in late:
            self.finish(command, refusal)

    def _send_still(self, still: Still, now: Now) -> None:
        ticket, command, width = self.ticket(), still.command, still.args.width
        job = still_transfer(ticket, command.id, self._mail.media, still.frame, width, still.stream, now)
        outcome = self.start(ticket, command, job)
        if outcome is not None:
            self.finish(command, outcome)


def _json(answer: Response) -> bytes:
    return answer.model_dump_json(exclude_none=True).encode()
