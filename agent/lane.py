"""What one connection carries: retained states, and the outbox rows of its kinds. Network only, by that connection.

Knows which answer was for what, what the broker denied and which row it may have died of. Nothing owed lives here:
what is unanswered when the connection ends is read from the outbox again. Used by the link's thread.
"""

from __future__ import annotations

import logging
from collections import deque
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
from agent.suspicion import BLAMES_MESSAGE, Blame, Suspicion
from agent.topics import ECHO, Topics

log = logging.getLogger(__name__)

TOO_LARGE = 0x95

PROOF = b"answer"
"""Said on `echo` before a row that connections died on, until one more message is answered than connections died."""

REMEMBERED = 64
"""Rows given up or blamed as a retained state, until the ledger shows them as given up too."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a message id stands for: an outbox row or a retained state (topic below the base)."""

    row: OutboxRow | None = None
    topic: str = ""
    state: Status | OutboxRow | None = None

    @property
    def carries(self) -> OutboxRow | None:
        """The row whose payload it is."""
        return self.row or (self.state if isinstance(self.state, OutboxRow) else None)


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
        self._is_up = False
        self._tried: int | None = None  # the number of a row behind the others that is under way
        self._blamed: deque[int] = deque(maxlen=REMEMBERED)

    @property
    def in_flight(self) -> int:
        """Messages that were not answered yet."""
        return len(self._sent)

    @property
    def owes(self) -> bool:
        """Whether anything is to be sent or answered."""
        return bool(self._sent or self.states or self.delivery.has_more)

    def wake_ns(self) -> int | None:
        """Boot-clock time when something that waits is to be sent; None: nothing is, or an answer comes first."""
        wakes = (self.delivery.wake_ns(), self.delivery.behind_ns() if self._is_up and not self._sent else None)
        return min((each for each in wakes if each is not None), default=None)

    def begin(self) -> None:
        """A new connection: all rows are owed again, from the oldest on."""
        self._sent.clear()
        self._answers = 0
        self._is_up = True
        self.denied.clear()
        self.delivery.restart()

    def end(self, connection: Connection) -> bool:
        """The connection is over; whether it delivered any row. The states it did not take are to be sent again."""
        delivered_some = self.delivery.delivered_some
        carried = {row.seq: row for sent in self._sent.values() if (row := sent.carries) is not None}
        if not carried:
            self._suspicion.clear()
        elif (connection.closed_by is not None or connection.closed_silently) and connection.closed_by != TAKEN_OVER:
            blame = self._suspicion.died(
                list(carried.values()),
                had_answers=self._answers > 0,
                is_told=connection.closed_by in BLAMES_MESSAGE,
            )
            if blame is not None:
                self._blame(blame)
        for sent in self._sent.values():
            if sent.state is not None:
                self.states.setdefault(sent.topic, sent.state)
        self._sent.clear()
        self._tried, self._is_up = None, False
        self.delivery.restart()
        return delivered_some

    def _blame(self, blame: Blame) -> None:
        row = blame.row
        if not any(sent.row is not None and sent.row.seq == row.seq for sent in self._sent.values()):
            self._blamed.append(row.seq)  # as a retained state: the message itself is another matter
        elif blame.is_final:
            self._give_up(row.seq, "the broker ended one connection after the other on this message")
        else:
            if row.seq not in self.delivery.behind:
                log.warning("message %d goes behind the others: one connection after the other ended on it", row.seq)
            self.delivery.put_behind(row, self._clock.boot_ns())

    def forget(self) -> None:
        """A new ledger: answers about rows of the old one mean nothing any more."""
        self.delivery.forget()
        self._sent = {mid: sent for mid, sent in self._sent.items() if sent.row is None}
        self._suspicion.forget_all()
        self._blamed.clear()
        self._tried = None

    def note(self, mid: int, topic: str) -> None:
        """Another message that was sent over this connection; what the broker says against it is for `denied`."""
        self._sent[mid] = _Sent(topic=topic)

    def send_state(self, connection: Connection) -> bool:
        """Send the next state; False when there is none."""
        # A row that connections died on may stand here too: then its turn comes after the rows.
        waits = self._suspicion.must_go_alone
        ready = (name for name, state in self.states.items() if not (waits and isinstance(state, OutboxRow)))
        topic = next(ready, None)
        if topic is None:
            return False
        self._send_state(connection, topic)
        return True

    def _send_state(self, connection: Connection, topic: str) -> None:
        state = self.states.pop(topic)
        if isinstance(state, OutboxRow):
            if state.seq in self._blamed or state.seq in self.delivery.behind:
                return
            payload, properties = self.encode(state)
            qos = 1
        else:
            payload, properties, qos = state.payload, None, state.qos
        name = self._topics.at(topic)
        if _is_too_large(connection, name, payload, properties):
            self.denied[topic] = f"{len(payload)} bytes are too large for the broker"
            return
        mid = connection.publish(name, payload, qos=qos, retain=True, properties=properties)
        if qos:
            self._sent[mid] = _Sent(topic=topic, state=state)

    def send_row(self, connection: Connection, outbox: Outbox) -> bool:
        """Send the next row; False when there is none now. StorageError: the outbox cannot be read."""
        goes_alone = self._suspicion.must_go_alone
        if (goes_alone or self._tried is not None) and self._sent:
            return False
        if goes_alone and self._prove(connection, self._suspicion.proofs()):
            return True
        now_ns = self._clock.boot_ns()
        row = self.delivery.next(outbox, now_ns)
        if row is not None:
            self._send_row(connection, outbox, row)
            return True
        if self._sent:
            return False
        if goes_alone:
            if self.states:
                self._send_state(connection, next(iter(self.states)))
                return True
            if self.delivery.is_drained:
                self._suspicion.clear()  # a suspect may have been evicted, or have stood in a state that is no more
        seq = self.delivery.due_behind(now_ns)
        if seq is None:
            return False
        if not self._prove(connection, self._suspicion.proofs(seq)):
            row = self.delivery.next_behind(outbox, seq, now_ns)
            if row is not None:
                self._send_row(connection, outbox, row)
        return True

    def _prove(self, connection: Connection, proofs: int) -> bool:
        """Have the broker answer so often on this connection first; whether it is asked to."""
        if self._answers < proofs:
            self.note(connection.publish(self._topics.at(ECHO), PROOF), ECHO)
            return True
        return False

    def _send_row(self, connection: Connection, outbox: Outbox, row: OutboxRow) -> None:
        # It may have been read before it was erased.
        if row.kind is OutboxKind.THUMB and outbox.is_erased(row.seq):
            self.delivery.settled(row.seq)
            return
        payload, properties = self.encode(row)
        topic = self._topics.of(row.kind)
        if _is_too_large(connection, topic, payload, properties):
            limit = connection.max_packet_bytes
            self._give_up(row.seq, f"too large: {len(payload)} bytes, the broker takes messages of {limit}")
            return
        self._sent[connection.publish(topic, payload, properties=properties)] = _Sent(row=row)
        if row.seq in self.delivery.behind:
            self._tried = row.seq
        else:
            self.states.update(self._lasts.sent(row))

    def encode(self, row: OutboxRow) -> tuple[bytes, Properties | None]:
        return row_packet(row, self._node, self.epoch, self._clock.wall_ns())

    def settle(self, ack: PubAck) -> bool:
        """Whether ack was for something of ours. Asked for each answer of the connection."""
        self._answers += 1
        sent = self._sent.pop(ack.mid, None)
        if sent is None:
            return False
        carried = sent.carries
        if carried is not None:
            self._suspicion.answered(carried)
        if sent.row is not None:
            self._settle_row(sent.row, ack)
        elif ack.code >= 0x80:
            self.denied[sent.topic] = ack.words.lower()
        else:
            self.denied.pop(sent.topic, None)
        return True

    def _settle_row(self, row: OutboxRow, ack: PubAck) -> None:
        if row.seq == self._tried:
            self._tried = None
            log.info("message %d, which connections ended on, was answered", row.seq)
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
        self._blamed.append(seq)
        self._acks.put(Ack(seq, delivered=False, reason=reason, poison=True))
        self.refused += 1
        log.warning("message %d set aside: %s", seq, reason)

    def troubles(self) -> list[str]:
        """What the broker does not take, in words."""
        kept = [
            f"{self._topics.of(kind)}: {words}, kept and tried again" for kind, words in self.delivery.refused.items()
        ]
        if self.delivery.behind:
            seq, first = min(self.delivery.behind.items())
            more = f" and {len(self.delivery.behind) - 1} more" if len(self.delivery.behind) > 1 else ""
            kept.append(
                f"{self._topics.of(first.kind)}: the broker hangs up on message {seq}{more}, which waits behind the"
                " others (too large for it? or its access list denies the topic and it does not say so)"
            )
        return kept + [f"{self._topics.at(topic)}: {words}" for topic, words in self.denied.items()]


def _is_too_large(connection: Connection, topic: str, payload: bytes, properties: Properties | None) -> bool:
    limit = connection.max_packet_bytes
    return limit is not None and connection.packet_bytes(topic, payload, properties) > limit
