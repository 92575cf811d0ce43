"""What one connection carries: retained states, and the outbox rows of its kinds. Network only, by that connection.

Knows which answer was for what, what the broker denied and which row it may have died of. Nothing owed lives here:
what is unanswered when the connection ends is read from the outbox again. Used by the link's thread.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from paho.mqtt.properties import Properties

from agent.clock import Clock
from agent.connection import NO_SUBSCRIBER, TAKEN_OVER, Connection, PubAck
from agent.delivery import Delivery, Outbox
from agent.handoffs import AckBox, Status
from agent.lasts import Lasts
from agent.model import Ack, OutboxKind, OutboxRow
from agent.posting import row_packet
from agent.settings import MqttSettings, NodeSettings
from agent.suspicion import BLAMES_MESSAGE, Suspicion
from agent.topics import ECHO, Topics

log = logging.getLogger(__name__)

TOO_LARGE = 0x95

PROOF = b"answer"
"""Said on `echo` before a row that connections died on, until one more message is answered than connections died."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a message id stands for: an outbox row or a retained state (topic below the base)."""

    row: OutboxRow | None = None
    topic: str = ""
    state: Status | OutboxRow | None = None


class Lane:
    """states: topic below the base -> what shall stand there, to be sent. denied: topic -> the broker's words.

    epoch: of the ledger the rows are from. delivered, refused: rows since the start. lasts: is told what was sent.
    """

    def __init__(
        self,
        settings: MqttSettings,
        node: NodeSettings,
        clock: Clock,
        acks: AckBox,
        lasts: Lasts,
        delivery: Delivery,
    ) -> None:
        self.delivery = delivery
        self.states: dict[str, Status | OutboxRow] = {}
        self.denied: dict[str, str] = {}
        self.epoch = ""
        self.delivered = 0
        self.refused = 0
        self._settings = settings
        self._node = node
        self._topics = Topics(settings.root, node.site, node.id)
        self._clock = clock
        self._acks = acks
        self._lasts = lasts
        self._sent: dict[int, _Sent] = {}
        self._suspicion = Suspicion()
        self._answers = 0  # of this connection

    @property
    def in_flight(self) -> int:
        """Messages that were not answered yet."""
        return len(self._sent)

    @property
    def owes(self) -> bool:
        """Whether anything is to be sent or answered."""
        return bool(self._sent or self.states or self.delivery.has_more)

    @property
    def has_suspect(self) -> bool:
        return self._suspicion.must_go_alone

    def begin(self) -> None:
        """A new connection: all rows are owed again, from the oldest on."""
        self._sent.clear()
        self._answers = 0
        self.denied.clear()
        self.delivery.restart()

    def end(self, connection: Connection) -> bool:
        """The connection is over; whether it delivered any row. The states it did not take are to be sent again."""
        delivered_some = self.delivery.delivered_some
        in_flight = [sent.row for sent in self._sent.values() if sent.row is not None]
        if not in_flight:
            self._suspicion.clear()
        elif (connection.closed_by is not None or connection.closed_silently) and connection.closed_by != TAKEN_OVER:
            is_told = connection.closed_by in BLAMES_MESSAGE or connection.protocol == "3.1.1"
            given_up = self._suspicion.died(in_flight, had_answers=self._answers > 0, is_told=is_told)
            if given_up is not None:
                self._give_up(given_up.seq, "the broker ended one connection after the other on this message")
                self.states = {topic: state for topic, state in self.states.items() if state is not given_up}
        for sent in self._sent.values():
            if sent.state is not None:
                self.states.setdefault(sent.topic, sent.state)
        self._sent.clear()
        self.delivery.restart()
        return delivered_some

    def forget(self) -> None:
        """A new ledger: answers about rows of the old one mean nothing any more."""
        self.delivery.forget()
        self._sent = {mid: sent for mid, sent in self._sent.items() if sent.row is None}
        self._suspicion.clear()

    def note(self, mid: int, topic: str) -> None:
        """Another message that was sent over this connection; what the broker says against it is for `denied`."""
        self._sent[mid] = _Sent(topic=topic)

    def send_state(self, connection: Connection) -> bool:
        """Send the next state; False when there is none."""
        # A row that connections died on may stand here too.
        waits = self._suspicion.must_go_alone
        ready = (name for name, state in self.states.items() if not (waits and isinstance(state, OutboxRow)))
        topic = next(ready, None)
        if topic is None:
            return False
        state = self.states.pop(topic)
        if isinstance(state, OutboxRow):
            payload, properties = self.encode(state)
            qos = 1
        else:
            payload, properties, qos = state.payload, None, state.qos
        name = self._topics.at(topic)
        if _is_too_large(connection, name, payload, properties):
            self.denied[topic] = f"{len(payload)} bytes are too large for the broker"
            return True
        mid = connection.publish(name, payload, qos=qos, retain=True, properties=properties)
        if qos:
            self._sent[mid] = _Sent(topic=topic, state=state)
        return True

    def send_row(self, connection: Connection, outbox: Outbox) -> bool:
        """Send the next row; False when there is none now. StorageError: the outbox cannot be read."""
        if self._suspicion.must_go_alone:
            # A row that connections died on goes alone, and after ever more answers: a network that breaks by
            # itself ends such a connection sooner, again and again, than it finds just this row under way.
            if self._sent:
                return False
            if self._answers <= self._suspicion.deaths:
                self.note(connection.publish(self._topics.at(ECHO), PROOF), ECHO)
                return True
        row = self.delivery.next(outbox, self._clock.boot_ns())
        if row is None:
            return False
        # It may have been read before it was erased.
        if row.kind is OutboxKind.THUMB and outbox.is_erased(row.seq):
            self.delivery.settled(row.seq)
            return True
        payload, properties = self.encode(row)
        topic = self._topics.of(row.kind)
        if _is_too_large(connection, topic, payload, properties):
            limit = connection.max_packet_bytes
            self._give_up(row.seq, f"too large: {len(payload)} bytes, the broker takes messages of {limit}")
            return True
        self._sent[connection.publish(topic, payload, properties=properties)] = _Sent(row=row)
        self.states.update(self._lasts.sent(row))
        return True

    def encode(self, row: OutboxRow) -> tuple[bytes, Properties | None]:
        return row_packet(row, self._node, self.epoch, self._clock.wall_ns())

    def settle(self, ack: PubAck) -> bool:
        """Whether ack was for something of ours. Asked for each answer of the connection."""
        self._answers += 1
        sent = self._sent.pop(ack.mid, None)
        if sent is None:
            return False
        if sent.row is not None:
            self._settle_row(sent.row, ack)
        elif ack.code >= 0x80:
            self.denied[sent.topic] = ack.words.lower()
        else:
            self.denied.pop(sent.topic, None)
        return True

    def _settle_row(self, row: OutboxRow, ack: PubAck) -> None:
        self._suspicion.answered(row)
        nobody = ack.code == NO_SUBSCRIBER and self._settings.require_subscriber
        if ack.code < 0x80 and not nobody:
            self.delivery.settled(row.seq)
            self._acks.put(Ack(row.seq, delivered=True))
            self.delivered += 1
        elif ack.code == TOO_LARGE:
            self._give_up(row.seq, "too large for the broker")
        else:
            words = "nobody subscribes" if nobody else ack.words.lower()
            self.delivery.kept(row.seq, words, self._clock.boot_ns())
            self._acks.put(Ack(row.seq, delivered=False, reason=words))
            self.refused += 1

    def _give_up(self, seq: int, reason: str) -> None:
        self.delivery.settled(seq)
        self._acks.put(Ack(seq, delivered=False, reason=reason, poison=True))
        self.refused += 1
        log.warning("message %d set aside: %s", seq, reason)

    def troubles(self) -> list[str]:
        """What the broker does not take, in words."""
        kept = [
            f"{self._topics.of(kind)}: {words}, kept and tried again" for kind, words in self.delivery.refused.items()
        ]
        return kept + [f"{self._topics.at(topic)}: {words}" for topic, words in self.denied.items()]


def _is_too_large(connection: Connection, topic: str, payload: bytes, properties: Properties | None) -> bool:
    limit = connection.max_packet_bytes
    return limit is not None and connection.packet_bytes(topic, payload, properties) > limit
