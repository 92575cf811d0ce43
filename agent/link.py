"""The link: keeps the connections to the broker and moves outbox and retained states through them. Network only.

A stage: no thread of its own, one step(). Nothing owed to the broker lives here; what is not acknowledged when a
connection ends is read from the outbox again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from paho.mqtt.client import topic_matches_sub

from agent.answers import Answers
from agent.backoff import Backoff, Pace
from agent.clock import Clock, rfc3339
from agent.connection import TAKEN_OVER, Connection, Incoming, Will
from agent.delivery import Delivery, Outbox
from agent.echo import Echo
from agent.errors import LinkError, StorageError
from agent.handoffs import AckBox, SelectableDoorbell, Status, StatusBoard
from agent.lane import Lane
from agent.lasts import Lasts
from agent.mailboxes import Box, MediaBox, Reply
from agent.media import MAX_INCOMING_BYTES, Media
from agent.messages import StateMessage, to_bytes
from agent.model import NS_PER_S, OutboxKind
from agent.notices import Notices
from agent.reconnect import DUPLICATE, Reconnect
from agent.settings import MqttSettings, NodeSettings
from agent.status import LinkStatus
from agent.topics import ECHO, META, STATE, THUMB_LAST, Topics
from agent.twins import Twins
from agent.ulid import new_ulid

log = logging.getLogger(__name__)

WILL_DELAY_S = 10.0
LOOK_S = 1.0
"""The outbox is looked at so often even when no bell rang."""

WORDS = tuple(kind for kind in OutboxKind if kind is not OutboxKind.THUMB)
"""What goes over the first connection; pictures go over the second."""


class Link:
    """step() from one thread, close() from the same one; `bell` may be rung by anybody; `status` is for health.

    outbox: makes the reader, called in the link's thread; it and the reader may raise StorageError while there
    is no ledger yet. listen: topic as Topics.at() takes it -> who is told, in the link's thread, of a message
    there. replies, media: what the commands have to say. will_delay_s: how long a broker waits before it says
    that we are lost. jitter: 0..1.
    """

    def __init__(
        self,
        settings: MqttSettings,
        node: NodeSettings,
        outbox: Callable[[], Outbox],
        acks: AckBox,
        statuses: StatusBoard,
        clock: Clock,
        *,
        listen: Mapping[str, Callable[[Incoming], None]] | None = None,
        replies: Box[Reply] | None = None,
        media: MediaBox | None = None,
        will_delay_s: float = WILL_DELAY_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.bell = SelectableDoorbell()
        self.status = LinkStatus()
        self.beat_ns = clock.boot_ns()
        self._settings = settings
        self._node = node
        self._topics = Topics(settings.root, node.site, node.id)
        self._make_outbox = outbox
        self._outbox: Outbox | None = None
        self._epoch = ""
        self._acks = acks
        self._statuses = statuses
        self._clock = clock
        self._listen = {self._topics.at(topic): told for topic, told in (listen or {}).items()}
        self._will_delay_s = will_delay_s
        self._client_id = f"{node.site}/{node.id}"
        self._reconnect = Reconnect(self._client_id, jitter, self.beat_ns)
        self._twins = Twins()
        self._lasts = Lasts()
        pace = Pace(settings.drain_per_s)
        self._events, self._pictures = (
            Lane(settings, node, clock, acks, self._lasts, Delivery(Backoff(jitter), pace, kinds))
            for kinds in (WORDS, (OutboxKind.THUMB,))
        )
        self._answers = Answers(self._topics, replies or Box(1))
        self._media = Media(
            settings, self._client_id, self._topics, clock, media or MediaBox(), self._pictures, Backoff(jitter)
        )

        self._connection: Connection | None = None
        self._connections = 0
        self._session = ""
        self._is_born = False
        self._echo = Echo(self._topics.at(ECHO), "", is_needed=False)
        self._notices = Notices()
        self._next_look_ns = 0
        self._told: tuple[str, tuple[str, ...]] | None = None
        self._epoch_is_checked = False
        statuses.wake(self.bell)

    def step(self, wait_s: float) -> None:
        """One bounded piece of work; waits at most wait_s (and for a name server, when it connects). Never raises."""
        rang = self.bell.clear()
        now_ns = self._clock.boot_ns()
        if rang or now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + round(LOOK_S * NS_PER_S)
            self._look()
            self._epoch_is_checked = False
        if self._connection is None and now_ns >= self._reconnect.next_try_ns:
            self._connect(now_ns)
        if self._connection is None:
            self.bell.wait(min(wait_s, max(0.0, (self._reconnect.next_try_ns - now_ns) / NS_PER_S)))
            self._look()
        else:
            self._serve(self._connection, wait_s)
        self.beat_ns = self._clock.boot_ns()

    def close(self, budget_s: float) -> None:
        """Send what can be sent, say `stopped`, disconnect; at most about budget_s. Nothing may be called after."""
        connection = self._connection
        if connection is not None and self._is_born:
            end_ns = self._clock.boot_ns() + round(budget_s * NS_PER_S)
            # A fifth of the time stays for the farewell itself.
            self._look()
            self._work_until(lambda: not self._owes(), end_ns - round(budget_s / 5 * NS_PER_S), budget_s)
            connection = self._connection
        if connection is not None and self._is_born:
            events = self._events
            events.states = {STATE: self._state("stopped", ("shutdown",))}
            self._told = ("stopped", ())
            self._work_until(lambda: not events.states and not events.in_flight, end_ns, budget_s, only_states=True)
            connection = self._connection
        if connection is not None:
            self._media.end()
            connection.close()
            self._connection = None
            log.info("disconnected from %s", connection.where)
        self.status = replace(self.status, connected=False)
        self._drop_outbox()
        self.bell.close()

    def _work_until(
        self, done: Callable[[], bool], end_ns: int, limit_s: float, *, only_states: bool = False
    ) -> None:
        idle_s = 0.0  # counted too, so that a clock that stands still cannot hold up a shutdown
        while self._connection is not None and not done() and self._clock.boot_ns() < end_ns and idle_s < limit_s:
            if not self._serve(self._connection, 0.05, only_states=only_states):
                idle_s += 0.05

    def _owes(self) -> bool:
        return self._events.owes or self._pictures.owes

    def _look(self) -> None:
        """There may be new rows."""
        self._events.delivery.look()
        self._pictures.delivery.look()

    # -- connecting

    def _connect(self, now_ns: int) -> None:
        self._session = new_ulid(self._clock.wall_ns() // 1_000_000)
        will = Will(self._topics.at(STATE), self._state("lost", ("connection broke",)).payload, self._will_delay_s)
        attempt = self._reconnect.attempt
        self._reconnect.begun(now_ns)
        self._is_born = False
        try:
            self._connection = Connection(
                self._settings,
                self._client_id,
                self._clock,
                protocol="3.1.1" if attempt == "3.1.1" else "5",
                will=will,
                is_probe=attempt == "probe",
                max_incoming_bytes=MAX_INCOMING_BYTES,
            )
        except LinkError as error:
            self._reconnect.not_reached(error, now_ns)
            self._update_status()

    def _serve(self, connection: Connection, wait_s: float, *, only_states: bool = False) -> bool:
        """One round with the connection there is; whether anything happened."""
        if connection.ready and not self._is_born:
            if self._reconnect.attempt == "probe":
                self._reconnect.probed()
                connection.close()
                self._connection = None
                return True
            self._begin(connection)
        if self._is_born:
            self._fill(connection, only_states)
            wait_s = self._bounded_wait(connection, wait_s)
        read, write, is_pressing = self._step_media(only_states)
        happened = connection.step(0.0 if is_pressing else wait_s, self.bell.fileno(), *read, also_write=write)
        for ack in connection.take_acks():
            if not self._events.settle(ack):
                self._answers.settle(ack)
        for message in connection.take_messages():
            self._hear(message)
        for topic, words in connection.take_denied():
            self._events.denied[f"/{topic}"] = words
        if connection.failure is not None:
            self._end(connection, connection.failure)
        self._update_status()
        return happened

    def _bounded_wait(self, connection: Connection, wait_s: float) -> float:
        now_ns = self._clock.boot_ns()
        events, pictures = self._events.delivery, self._pictures.delivery
        if connection.room > 0 and events.has_more and self._outbox is not None and self._echo.is_heard:
            return min(wait_s, events.pause_ns(now_ns) / NS_PER_S)
        if pictures.has_more and pictures.pause_ns(now_ns):
            wait_s = min(wait_s, pictures.pause_ns(now_ns) / NS_PER_S)
        wakes = [self._echo.wake_ns()]
        if self._outbox is not None and self._echo.is_heard:
            wakes += [self._events.wake_ns(), self._pictures.wake_ns()]
        wake_ns = [each for each in wakes if each is not None]
        if not wake_ns:
            return wait_s
        return min(wait_s, max(0.0, (min(wake_ns) - now_ns) / NS_PER_S))

    def _step_media(self, only_states: bool) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """A round of the second connection: no picture before its event, and little of anything while events wait."""
        self._pictures.delivery.before = self._events.delivery.frontier
        outbox = self._outbox if self._echo.is_heard and not only_states else None
        try:
            return self._media.step(outbox, gives_way=self._events.in_flight > 0)
        except StorageError as error:
            log.debug("outbox: %s", error)
            self._drop_outbox()
            return (), (), False

    def _begin(self, connection: Connection) -> None:
        """Birth: everything retained is said anew, then the outbox from its oldest row."""
        self._is_born = True
        self._notices.begin()
        self._reconnect.born(self._clock.boot_ns())
        self._connections += 1
        self._events.begin()
        self._events.states.clear()
        self._answers.begin()
        self._media.begin(connection.protocol)
        self._lasts.begin()
        self._told = None
        waiting = self._statuses.all()
        self._tell_verdict()
        if META in waiting:
            self._events.states[META] = waiting.pop(META)
        self._events.states.update(waiting)
        self._echo = Echo(self._topics.at(ECHO), self._session, is_needed=connection.protocol != "5")
        self._twins.begin(self._session)
        connection.subscribe(self._echo.topic, *self._listen, as_published=True)
        if not connection.can_retain:
            self._events.denied["retained messages"] = "this broker keeps none"
        log.info("connected to %s, MQTT %s, session %s", connection.where, connection.protocol, self._session)

    def _end(self, connection: Connection, failure: LinkError) -> None:
        """The connection is over: note why, decide when and how the next one is tried."""
        was_born, self._is_born = self._is_born, False
        connection.close(politely=False)
        self._connection = None
        delivered_some = was_born and self._events.end(connection)
        delivered_some |= self._pictures.delivery.delivered_some
        self._media.end()
        now_ns = self._clock.boot_ns()
        self._twins.ended(is_named=connection.closed_by == TAKEN_OVER, now_ns=now_ns)
        self._reconnect.ended(
            connection,
            failure,
            now_ns,
            delivered_some=delivered_some,
            has_twin=was_born and self._twins.are_certain(now_ns),
        )

    # -- sending

    def _fill(self, connection: Connection, only_states: bool) -> None:
        """Send while there is room: retained states first, then rows."""
        if not only_states:
            self._tell_verdict()
            self._events.states.update(self._statuses.take())
            self._open_outbox()
            self._answers.fill(connection)
        if connection.room > 0 and self._echo.wants_to_speak(self._clock.boot_ns()):
            self._events.note(connection.publish(self._echo.topic, self._echo.payload, retain=True), ECHO)
        while connection.room > 0:
            if not self._events.send_state(connection) and (only_states or not self._send_row(connection)):
                return

    def _send_row(self, connection: Connection) -> bool:
        if self._outbox is None or not self._echo.is_heard:
            return False
        try:
            return self._events.send_row(connection, self._outbox)
        except StorageError as error:
            log.debug("outbox: %s", error)
            self._drop_outbox()
            return False

    def _tell_verdict(self) -> None:
        verdict = self._statuses.verdict()
        if self._told != (verdict.state, verdict.reasons):
            self._told = (verdict.state, verdict.reasons)
            self._events.states[STATE] = self._state(verdict.state, verdict.reasons)

    def _state(self, state: str, reasons: tuple[str, ...]) -> Status:
        message = StateMessage.model_validate(
            {
                "state": state,
                "session": self._session,
                "time": rfc3339(self._clock.wall_ns()),
                "reasons": list(reasons),
            }
        )
        return Status(to_bytes(message))

    def _hear(self, message: Incoming) -> None:
        if self._echo.hear(message.topic, message.payload):
            self._twins.heard(message.payload, self._clock.boot_ns())
            self._look()
            return
        told = self._listen.get(message.topic)
        if told is None:  # a filter with wildcards
            told = next(
                (each for wanted, each in self._listen.items() if topic_matches_sub(wanted, message.topic)), None
            )
        if told is not None:
            told(message)

    # -- the outbox

    def _open_outbox(self) -> None:
        """Have a reader, and the newest event and picture stand at the broker."""
        try:
            if self._outbox is None:
                self._outbox = self._make_outbox()
                self._epoch_is_checked = False
            if not self._epoch_is_checked:
                self._enter_epoch(self._outbox.epoch)
            for topic, last in self._lasts.look(self._outbox, self._clock.boot_ns()).items():
                (self._pictures if topic == THUMB_LAST else self._events).states[topic] = last
        except StorageError as error:
            log.debug("outbox: %s", error)
            self._drop_outbox()

    def _enter_epoch(self, epoch: str) -> None:
        """A ledger that was born anew numbers other messages: answers to the old ones mean nothing any more."""
        if self._epoch not in ("", epoch):
            log.warning("the ledger is a new one: epoch %s after %s", epoch, self._epoch)
            self._events.forget()
            self._pictures.forget()
            self._lasts.forget()
        self._epoch = self._events.epoch = self._pictures.epoch = epoch
        self._epoch_is_checked = True

    def _drop_outbox(self) -> None:
        outbox, self._outbox = self._outbox, None
        close = getattr(outbox, "close", None)
        if close is not None:
            close()

    # -- for health

    def _update_status(self) -> None:
        connected = self._connection is not None and self._is_born
        protocol = self.status.protocol
        if connected and self._connection is not None:
            protocol = self._connection.protocol
            self._notices.look(self._connection, self._clock.wall_ns() / NS_PER_S)
        status = replace(
            self.status,
            connected=connected,
            delivered=self._events.delivered + self._pictures.delivered,
            refused=self._events.refused + self._pictures.refused,
            protocol=protocol,
            session=self._session if connected else "",
            reconnects=max(0, self._connections - 1),
            trouble=self._trouble(connected),
            warning=self._notices.warning if connected else self.status.warning,
        )
        if status != self.status:
            if connected and status.trouble and status.trouble != self.status.trouble:
                log.warning("%s", status.trouble)
            elif connected and self.status.connected and self.status.trouble and not status.trouble:
                log.info("the broker takes everything again")
            self.status = status

    def _trouble(self, connected: bool) -> str:
        if not connected:
            return self._reconnect.failure
        parts = self._events.troubles() + self._pictures.troubles()
        if self._twins.are_certain(self._clock.boot_ns()):
            parts.insert(0, f"{DUPLICATE} ({self._reconnect.duplicate_hint})")
        parts += [words for words in (self._media.trouble, self._echo.trouble, self._notices.trouble) if words]
        return "; ".join(parts)
