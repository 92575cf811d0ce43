"""The link: keeps one connection to the broker and moves the outbox and the retained states through it. Network only.

A stage: no thread of its own, one step(). Nothing owed to the broker lives here; what is not acknowledged when a
connection ends is read from the outbox again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from paho.mqtt.client import topic_matches_sub
from paho.mqtt.properties import Properties

from agent.answers import MAX_INCOMING_BYTES, Answers
from agent.backoff import Backoff, Pace
from agent.clock import Clock, rfc3339
from agent.connection import (
    NO_SUBSCRIBER,
    TAKEN_OVER,
    Connection,
    Incoming,
    PubAck,
    Will,
)
from agent.delivery import Delivery, Outbox
from agent.echo import Echo
from agent.errors import LinkError, StorageError
from agent.handoffs import AckBox, SelectableDoorbell, Status, StatusBoard
from agent.lasts import Lasts
from agent.mailboxes import Box, MediaBox, Reply
from agent.messages import StateMessage, to_bytes
from agent.model import NS_PER_S, Ack, OutboxKind, OutboxRow
from agent.notices import Notices
from agent.posting import row_packet
from agent.reconnect import Reconnect
from agent.settings import MqttSettings, NodeSettings
from agent.status import LinkStatus
from agent.suspicion import BLAMES_MESSAGE, Suspicion
from agent.topics import ECHO, META, STATE, Topics
from agent.ulid import new_ulid

log = logging.getLogger(__name__)

WILL_DELAY_S = 10.0
LOOK_S = 1.0
"""The outbox is looked at so often even when no bell rang."""

TOO_LARGE = 0x95


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a message id stands for: an outbox row or a retained state (topic below the base)."""

    row: OutboxRow | None = None
    topic: str = ""
    state: Status | OutboxRow | None = None


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
        self._delivery = Delivery(Backoff(jitter), Pace(settings.drain_per_s))
        self._client_id = f"{node.site}/{node.id}"
        self._reconnect = Reconnect(self._client_id, jitter, self.beat_ns)
        self._answers = Answers(
            settings, self._client_id, self._topics, clock, replies or Box(1), media or MediaBox(), Backoff(jitter)
        )

        self._connection: Connection | None = None
        self._connections = 0
        self._session = ""
        self._is_born = False
        self._echo = Echo(self._topics.at(ECHO), "", is_needed=False)
        self._notices = Notices()
        self._next_look_ns = 0
        self._sent: dict[int, _Sent] = {}
        self._states: dict[str, Status | OutboxRow] = {}
        self._denied: dict[str, str] = {}
        self._told: tuple[str, tuple[str, ...]] | None = None
        self._lasts = Lasts()
        self._epoch_is_checked = False
        self._suspicion = Suspicion()
        self._has_answers = False  # of this connection
        statuses.wake(self.bell)

    def step(self, wait_s: float) -> None:
        """One bounded piece of work; waits at most wait_s (and for a name server, when it connects). Never raises."""
        rang = self.bell.clear()
        now_ns = self._clock.boot_ns()
        if rang or now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + round(LOOK_S * NS_PER_S)
            self._delivery.look()
            self._epoch_is_checked = False
        if self._connection is None and now_ns >= self._reconnect.next_try_ns:
            self._connect(now_ns)
        if self._connection is None:
            self.bell.wait(min(wait_s, max(0.0, (self._reconnect.next_try_ns - now_ns) / NS_PER_S)))
            self._delivery.look()
        else:
            self._serve(self._connection, wait_s)
        self.beat_ns = self._clock.boot_ns()

    def close(self, budget_s: float) -> None:
        """Send what can be sent, say `stopped`, disconnect; at most about budget_s. Nothing may be called after."""
        connection = self._connection
        if connection is not None and self._is_born:
            end_ns = self._clock.boot_ns() + round(budget_s * NS_PER_S)
            # A fifth of the time stays for the farewell itself.
            self._delivery.look()
            self._work_until(lambda: not self._owes(), end_ns - round(budget_s / 5 * NS_PER_S), budget_s)
            connection = self._connection
        if connection is not None and self._is_born:
            self._states = {STATE: self._state("stopped", ("shutdown",))}
            self._told = ("stopped", ())
            self._work_until(lambda: not self._states and not self._sent, end_ns, budget_s, only_states=True)
            connection = self._connection
        if connection is not None:
            self._answers.end()
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
        return bool(self._sent or self._states or self._delivery.has_more)

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
        read, write, is_pressing = self._answers.step(gives_way=bool(self._sent))
        happened = connection.step(0.0 if is_pressing else wait_s, self.bell.fileno(), *read, also_write=write)
        for ack in connection.take_acks():
            self._settle(ack)
        for message in connection.take_messages():
            self._hear(message)
        for topic, words in connection.take_denied():
            self._denied[f"/{topic}"] = words
        if connection.failure is not None:
            self._end(connection, connection.failure)
        self._update_status()
        return happened

    def _bounded_wait(self, connection: Connection, wait_s: float) -> float:
        if connection.room > 0 and self._delivery.has_more and self._outbox is not None and self._echo.is_heard:
            return min(wait_s, self._delivery.pause_ns(self._clock.boot_ns()) / NS_PER_S)
        wake_ns = [each for each in (self._delivery.wake_ns(), self._echo.wake_ns()) if each is not None]
        if not wake_ns:
            return wait_s
        return min(wait_s, max(0.0, (min(wake_ns) - self._clock.boot_ns()) / NS_PER_S))

    def _begin(self, connection: Connection) -> None:
        """Birth: everything retained is said anew, then the outbox from its oldest row."""
        self._is_born = True
        self._notices.begin()
        self._reconnect.born(self._clock.boot_ns())
        self._connections += 1
        self._sent.clear()
        self._has_answers = False
        self._denied.clear()
        self._delivery.restart()
        self._answers.begin(connection)
        self._lasts.begin()
        self._told = None
        waiting = self._statuses.all()
        self._tell_verdict()
        if META in waiting:
            self._states[META] = waiting.pop(META)
        self._states.update(waiting)
        self._echo = Echo(self._topics.at(ECHO), self._session, is_needed=connection.protocol != "5")
        filters = [*self._listen, *(() if self._echo.is_heard else (self._echo.topic,))]
        if filters:
            connection.subscribe(*filters, as_published=True)
        if not connection.can_retain:
            self._denied["retained messages"] = "this broker keeps none"
        log.info("connected to %s, MQTT %s, session %s", connection.where, connection.protocol, self._session)

    def _end(self, connection: Connection, failure: LinkError) -> None:
        """The connection is over: note why, decide when and how the next one is tried."""
        was_born, self._is_born = self._is_born, False
        connection.close(politely=False)
        self._connection = None
        self._states.clear()
        self._answers.end()
        delivered_some = was_born and self._note_death(connection)
        self._sent.clear()
        self._delivery.restart()
        self._reconnect.ended(
            connection,
            failure,
            self._clock.boot_ns(),
            delivered_some=delivered_some,
            has_suspect=self._suspicion.deaths > 0,
        )

    def _note_death(self, connection: Connection) -> bool:
        """Suspect an unanswered row when connections keep ending on it; whether this one delivered any."""
        delivered_some = self._delivery.delivered_some
        in_flight = [sent.row for sent in self._sent.values() if sent.row is not None]
        if not in_flight:
            self._suspicion.clear()
        elif (connection.closed_by is not None or connection.closed_silently) and connection.closed_by != TAKEN_OVER:
            is_told = connection.closed_by in BLAMES_MESSAGE or connection.protocol == "3.1.1"
            given_up = self._suspicion.died(in_flight, had_answers=self._has_answers, is_told=is_told)
            if given_up is not None:
                self._give_up(given_up.seq, "the broker ended one connection after the other on this message")
        return delivered_some

    # -- sending

    def _fill(self, connection: Connection, only_states: bool) -> None:
        """Send while there is room: retained states first, then rows."""
        if not only_states:
            self._tell_verdict()
            self._states.update(self._statuses.take())
            self._open_outbox()
            self._answers.fill(connection)
        if connection.room > 0 and self._echo.wants_to_speak(self._clock.boot_ns()):
            self._sent[connection.publish(self._echo.topic, self._echo.payload)] = _Sent(topic=ECHO)
        while connection.room > 0:
            if self._states:
                topic = next(iter(self._states))
                self._send_state(connection, topic, self._states.pop(topic))
            elif only_states or not self._send_row(connection):
                return

    def _tell_verdict(self) -> None:
        verdict = self._statuses.verdict()
        if self._told != (verdict.state, verdict.reasons):
            self._told = (verdict.state, verdict.reasons)
            self._states[STATE] = self._state(verdict.state, verdict.reasons)

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

    def _send_state(self, connection: Connection, topic: str, state: Status | OutboxRow) -> None:
        if isinstance(state, OutboxRow):
            payload, properties = self._encode(state)
            qos = 1
        else:
            payload, properties, qos = state.payload, None, state.qos
        name = self._topics.at(topic)
        if self._is_too_large(connection, name, payload, properties):
            self._denied[topic] = f"{len(payload)} bytes are too large for the broker"
            return
        mid = connection.publish(name, payload, qos=qos, retain=True, properties=properties)
        if qos:
            self._sent[mid] = _Sent(topic=topic, state=state)

    def _send_row(self, connection: Connection) -> bool:
        """Send the next row; False when there is none now."""
        # A row that connections died on goes alone, so that the blame is certain.
        if self._outbox is None or not self._echo.is_heard or (self._suspicion.must_go_alone and self._sent):
            return False
        try:
            row = self._delivery.next(self._outbox, self._clock.boot_ns())
            # It may have been read before it was erased.
            is_erased = row is not None and row.kind is OutboxKind.THUMB and self._outbox.is_erased(row.seq)
        except StorageError as error:
            log.debug("outbox: %s", error)
            self._drop_outbox()
            return False
        if row is None:
            return False
        if is_erased:
            self._delivery.settled(row.seq)
            return True
        payload, properties = self._encode(row)
        topic = self._topics.of(row.kind)
        if self._is_too_large(connection, topic, payload, properties):
            limit = connection.max_packet_bytes
            self._give_up(row.seq, f"too large: {len(payload)} bytes, the broker takes messages of {limit}")
            return True
        self._sent[connection.publish(topic, payload, properties=properties)] = _Sent(row=row)
        self._states.update(self._lasts.sent(row))
        return True

    def _is_too_large(
        self, connection: Connection, topic: str, payload: bytes, properties: Properties | None
    ) -> bool:
        limit = connection.max_packet_bytes
        return limit is not None and connection.packet_bytes(topic, payload, properties) > limit

    def _encode(self, row: OutboxRow) -> tuple[bytes, Properties | None]:
        return row_packet(row, self._node, self._epoch, self._clock.wall_ns())

    def _hear(self, message: Incoming) -> None:
        if self._echo.hear(message.topic, message.payload):
            self._delivery.look()
            return
        told = self._listen.get(message.topic)
        if told is None:  # a filter with wildcards
            told = next(
                (each for wanted, each in self._listen.items() if topic_matches_sub(wanted, message.topic)), None
            )
        if told is not None:
            told(message)

    # -- what came of it

    def _settle(self, ack: PubAck) -> None:
        self._has_answers = True
        sent = self._sent.pop(ack.mid, None)
        if sent is None:
            self._answers.settle(ack)
            return
        if sent.row is None:
            if ack.code >= 0x80:
                self._denied[sent.topic] = ack.words.lower()
            else:
                self._denied.pop(sent.topic, None)
            return
        self._suspicion.answered(sent.row)
        seq = sent.row.seq
        nobody = ack.code == NO_SUBSCRIBER and self._settings.require_subscriber
        if ack.code < 0x80 and not nobody:
            self._delivery.settled(seq)
            self._acks.put(Ack(seq, delivered=True))
            self.status = replace(self.status, delivered=self.status.delivered + 1)
        elif ack.code == TOO_LARGE:
            self._give_up(seq, "too large for the broker")
        else:
            words = "nobody subscribes" if nobody else ack.words.lower()
            self._delivery.kept(seq, words, self._clock.boot_ns())
            self._acks.put(Ack(seq, delivered=False, reason=words))
            self.status = replace(self.status, refused=self.status.refused + 1)

    def _give_up(self, seq: int, reason: str) -> None:
        self._delivery.settled(seq)
        self._acks.put(Ack(seq, delivered=False, reason=reason, poison=True))
        self.status = replace(self.status, refused=self.status.refused + 1)
        log.warning("message %d set aside: %s", seq, reason)

    # -- the outbox

    def _open_outbox(self) -> None:
        """Have a reader, and the newest event and picture stand at the broker."""
        try:
            if self._outbox is None:
                self._outbox = self._make_outbox()
                self._epoch_is_checked = False
            if not self._epoch_is_checked:
                self._enter_epoch(self._outbox.epoch)
            self._states.update(self._lasts.look(self._outbox, self._clock.boot_ns()))
        except StorageError as error:
            log.debug("outbox: %s", error)
            self._drop_outbox()

    def _enter_epoch(self, epoch: str) -> None:
        """A ledger that was born anew numbers other messages: answers to the old ones mean nothing any more."""
        if self._epoch not in ("", epoch):
            log.warning("the ledger is a new one: epoch %s after %s", epoch, self._epoch)
            self._delivery.forget()
            self._sent = {mid: sent for mid, sent in self._sent.items() if sent.row is None}
            self._suspicion.clear()
            self._lasts.forget()
        self._epoch = epoch
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
        parts = [
            f"{self._topics.of(kind)}: {words}, kept and tried again"
            for kind, words in self._delivery.refused.items()
        ]
        parts += [f"{self._topics.at(topic)}: {words}" for topic, words in self._denied.items()]
        parts += [words for words in (self._echo.trouble, self._notices.trouble) if words]
        return "; ".join(parts)
