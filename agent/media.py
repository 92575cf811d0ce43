"""The second connection: pictures of events, transfers, live frames, so that none of them stands before an event.

Network only. It is made when something is to be sent over it and ends with the connection of the events. Used by the
link's thread.
"""

from __future__ import annotations

import logging

from agent.backoff import Backoff
from agent.clock import Clock
from agent.connection import NO_SUBSCRIBER, Connection, Protocol, PubAck
from agent.delivery import Outbox
from agent.errors import LinkError
from agent.lane import Lane
from agent.mailboxes import ChunkFate, MediaBox
from agent.model import NS_PER_S
from agent.posting import live_properties, reply_properties
from agent.settings import MqttSettings
from agent.topics import LIVE, Topics

log = logging.getLogger(__name__)

LIVE_EXPIRY_S = 2
LONGEST_WAIT_S = 0.5
"""So long all this gives way to events; then a piece is sent all the same, or it would never end on a busy line."""

PICTURES = 4
"""Pictures that wait for their answer: more would fill a router's queue in front of the events."""

MAX_INCOMING_BYTES = 131_072
"""Twice what a command may have: larger ones are refused by name, and what is larger still never reaches us."""


class Media:
    """lane: pictures owed, and the newest one as a retained state. trouble: why it failed, until it is back."""

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        topics: Topics,
        clock: Clock,
        media: MediaBox,
        lane: Lane,
        backoff: Backoff,
    ) -> None:
        self.trouble = ""
        self._settings = settings
        self._client_id = f"{client_id}/media"
        self._topics = topics
        self._clock = clock
        self._media = media
        self._lane = lane
        self._backoff = backoff
        self._next_try_ns = 0
        self._protocol: Protocol | None = None
        self._connection: Connection | None = None
        self._is_begun = False
        self._chunk_ids: dict[int, int] = {}
        self._sent_ns = 0

    def begin(self, protocol: Protocol) -> None:
        """The connection of the events is up: this one may be made, in the same version of MQTT."""
        self._protocol = protocol
        self._lane.states.clear()

    def end(self) -> None:
        """The connection of the events is over."""
        self._protocol = None
        self.trouble = ""
        self._lose("the connection to the broker ended")

    def step(self, outbox: Outbox | None, *, gives_way: bool) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """One round without waiting; what to wait for: descriptors to read, to write, True: do not wait.

        outbox: None while no pictures may be sent; StorageError where it cannot be read. gives_way: events are on
        their way, and on a slow line they share it: nothing new is sent, or little.
        """
        nothing: tuple[tuple[int, ...], tuple[int, ...], bool] = ((), (), False)
        if self._protocol is None:
            return nothing
        if self._connection is None and self._has_work(outbox):
            self._connect(self._protocol)
        connection = self._connection
        if connection is None:
            return nothing
        if connection.ready and not self._is_begun:
            self._is_begun = True
            self.trouble = ""
            self._lane.begin()
        sent = self._send(connection, outbox, gives_way) if connection.ready else False
        happened = connection.step(0)
        for ack in connection.take_acks():
            self._backoff.reset()
            if not self._lane.settle(ack):
                self._settle_chunk(ack)
        if connection.failure is not None:
            self._failed(connection.failure)
            return nothing
        read, write, is_pressing = connection.waits_for()
        return read, write, is_pressing or happened or (sent and not gives_way and not connection.is_backed_up)

    def _has_work(self, outbox: Outbox | None) -> bool:
        # Also to see whether it works again: else health would go on about it until the next picture.
        if not self._media.is_empty or self._lane.states or self.trouble:
            return True
        return outbox is not None and self._lane.delivery.is_due(outbox, self._clock.boot_ns())

    # -- connecting

    def _connect(self, protocol: Protocol) -> None:
        if self._clock.boot_ns() < self._next_try_ns:
            self._refuse_waiting("the media connection failed; it is tried again soon")
            return
        try:
            self._connection = Connection(
                self._settings,
                self._client_id,
                self._clock,
                protocol=protocol,
                max_incoming_bytes=MAX_INCOMING_BYTES,
            )
        except LinkError as error:
            self._refuse_waiting(str(error))
            self._try_later(error)

    def _failed(self, failure: LinkError) -> None:
        self._lose(str(failure))
        self._try_later(failure)

    def _try_later(self, failure: LinkError) -> None:
        self.trouble = f"media connection: {failure}"
        log.debug("%s", self.trouble)
        self._next_try_ns = self._clock.boot_ns() + round(self._backoff.next_s() * NS_PER_S)

    # -- sending

    def _send(self, connection: Connection, outbox: Outbox | None, gives_way: bool) -> bool:
        """Pictures and pieces in turn while there is room; whether anything was sent."""
        now_ns = self._clock.boot_ns()
        if gives_way and now_ns - self._sent_ns < LONGEST_WAIT_S * NS_PER_S:
            return False
        sent = False
        # Bytes that already wait for the socket are enough: a live frame more would only be older.
        while connection.room > 0 and not connection.is_backed_up:
            self._send_live(connection)
            some = self._send_picture(connection, outbox)
            if not (some and gives_way):
                some |= self._send_chunk(connection)
            sent |= some
            if not some or gives_way:
                break
        if sent:
            self._sent_ns = now_ns
        return sent

    def _send_live(self, connection: Connection) -> None:
        live = self._media.take_live()
        if live is not None and not self._is_too_large(connection, LIVE, live):
            connection.publish(self._topics.at(LIVE), live, qos=0, properties=live_properties(LIVE_EXPIRY_S))

    def _send_picture(self, connection: Connection, outbox: Outbox | None) -> bool:
        if self._lane.in_flight >= PICTURES or connection.room <= 0:
            return False
        return self._lane.send_state(connection) or (outbox is not None and self._lane.send_row(connection, outbox))

    def _send_chunk(self, connection: Connection) -> bool:
        chunk = self._media.take() if connection.room > 0 else None
        if chunk is None:
            return False
        if self._is_too_large(connection, chunk.topic, chunk.payload):
            self._media.settle(ChunkFate(chunk.ticket, "too large for the broker"))
            return True
        mid = connection.publish(
            self._topics.at(chunk.topic), chunk.payload, properties=reply_properties(chunk.correlation)
        )
        self._chunk_ids[mid] = chunk.ticket
        return True

    def _is_too_large(self, connection: Connection, topic: str, payload: bytes) -> bool:
        limit = connection.max_packet_bytes
        # 128: correlation data and properties; the broker's limit is far from 16 kB.
        return limit is not None and connection.packet_bytes(self._topics.at(topic), payload) + 128 > limit

    def _settle_chunk(self, ack: PubAck) -> None:
        ticket = self._chunk_ids.pop(ack.mid, None)
        if ticket is None:
            return
        words = ""
        if ack.code == NO_SUBSCRIBER:
            words = "nobody subscribes to the transfer"
        elif ack.code >= 0x80:
            words = ack.words.lower()
        self._media.settle(ChunkFate(ticket, words))

    def _refuse_waiting(self, words: str) -> None:
        while (chunk := self._media.take()) is not None:
            self._media.settle(ChunkFate(chunk.ticket, words))
        self._media.take_live()

    def _lose(self, words: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._is_begun:
                self._lane.end(connection)
            connection.close()
        self._is_begun = False
        tickets = list(self._chunk_ids.values())
        self._chunk_ids.clear()
        for ticket in tickets:
            self._media.settle(ChunkFate(ticket, words))
        self._refuse_waiting(words)
