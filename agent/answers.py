"""What the link says for the commands: replies beside the events, transfers and live frames on a second connection.

Network only. The media connection is made when something is to be sent over it and ends with the control
connection; a transfer therefore never stands in a socket in front of an event. Used by the link's thread.
"""

from __future__ import annotations

import logging

from agent.backoff import Backoff
from agent.clock import Clock
from agent.connection import NO_SUBSCRIBER, Connection, Protocol, PubAck
from agent.errors import LinkError
from agent.mailboxes import Box, ChunkFate, MediaBox, Reply
from agent.model import NS_PER_S
from agent.posting import live_properties, reply_properties
from agent.settings import MqttSettings
from agent.topics import LIVE, Topics

log = logging.getLogger(__name__)

LIVE_EXPIRY_S = 2

LONGEST_WAIT_S = 0.5
"""So long a transfer gives way to events; then a piece is sent all the same, or it would never end on a busy line."""
MAX_INCOMING_BYTES = 131_072
"""Twice what a command may have: larger ones are refused by name, and what is larger still never reaches us."""


class Answers:
    """fill() and settle() for the control connection; step() for the media connection.

    replies, media: what the commands left for us. unsent: replies the broker did not take.
    """

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        topics: Topics,
        clock: Clock,
        replies: Box[Reply],
        media: MediaBox,
        backoff: Backoff,
    ) -> None:
        self._settings = settings
        self._client_id = f"{client_id}/media"
        self._topics = topics
        self._clock = clock
        self._replies = replies
        self._media = media
        self._backoff = backoff
        self._next_try_ns = 0
        self._protocol: Protocol | None = None
        self._connection: Connection | None = None
        self._reply_ids: set[int] = set()
        self._chunk_ids: dict[int, int] = {}
        self._sent_ns = 0
        self.unsent = 0

    # -- on the control connection

    def begin(self, connection: Connection) -> None:
        """The control connection is up: the media connection may be made, in the same version of MQTT."""
        self._protocol = connection.protocol
        self._reply_ids.clear()

    def fill(self, connection: Connection) -> None:
        """Send replies while there is room."""
        while connection.room > 0 and (reply := self._replies.take()) is not None:
            topic = self._topics.at(reply.topic)
            properties = reply_properties(reply.correlation)
            limit = connection.max_packet_bytes
            if limit is not None and connection.packet_bytes(topic, reply.payload, properties) > limit:
                log.warning("an answer of %d bytes is too large for the broker", len(reply.payload))
                self.unsent += 1
                continue
            self._reply_ids.add(connection.publish(topic, reply.payload, properties=properties))

    def settle(self, ack: PubAck) -> bool:
        """Whether ack was for a reply. One that nobody took is not kept: who asks again gets the stored answer."""
        if ack.mid not in self._reply_ids:
            return False
        self._reply_ids.discard(ack.mid)
        self.unsent += ack.code >= 0x80 or ack.code == NO_SUBSCRIBER
        return True

    def end(self) -> None:
        """The control connection is over."""
        self._protocol = None
        self._reply_ids.clear()
        self._lose("the connection to the broker ended")

    # -- the media connection

    def step(self, *, gives_way: bool = False) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """One round without waiting; what to wait for: descriptors to read, to write, True: do not wait.

        gives_way: events are on their way, and on a slow line they share it: nothing new is sent, or little.
        """
        if self._protocol is None:
            return (), (), False
        if self._connection is None:
            self._connect(self._protocol)
        connection = self._connection
        if connection is None:
            return (), (), False
        now_ns = self._clock.boot_ns()
        waits = gives_way and now_ns - self._sent_ns < LONGEST_WAIT_S * NS_PER_S
        if connection.ready and not waits and not self._media.is_empty:
            self._sent_ns = now_ns
            self._send(connection, 1 if gives_way else connection.room)
        happened = connection.step(0)
        for ack in connection.take_acks():
            self._settle_chunk(ack)
        if connection.failure is not None:
            failure = str(connection.failure)
            log.info("media connection: %s", failure)
            self._lose(failure)
            self._try_later()
            return (), (), False
        read, write, is_pressing = connection.waits_for()
        can_send = connection.ready and connection.room > 0 and not self._media.is_empty and not gives_way
        return read, write, is_pressing or happened or (can_send and not connection.is_backed_up)

    def _connect(self, protocol: Protocol) -> None:
        if self._media.is_empty:
            return
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
            self._try_later()

    def _try_later(self) -> None:
        self._next_try_ns = self._clock.boot_ns() + round(self._backoff.next_s() * NS_PER_S)

    def _send(self, connection: Connection, limit: int) -> None:
        # Bytes that already wait for the socket are enough: a live frame more would only be older.
        for _ in range(limit):
            if connection.room <= 0 or connection.is_backed_up:
                return
            live = self._media.take_live()
            if live is not None and not self._is_too_large(connection, LIVE, live):
                connection.publish(self._topics.at(LIVE), live, qos=0, properties=live_properties(LIVE_EXPIRY_S))
            chunk = self._media.take()
            if chunk is None:
                return
            if self._is_too_large(connection, chunk.topic, chunk.payload):
                self._media.settle(ChunkFate(chunk.ticket, "too large for the broker"))
                continue
            mid = connection.publish(
                self._topics.at(chunk.topic), chunk.payload, properties=reply_properties(chunk.correlation)
            )
            self._chunk_ids[mid] = chunk.ticket

    def _is_too_large(self, connection: Connection, topic: str, payload: bytes) -> bool:
        limit = connection.max_packet_bytes
        # 128: correlation data and properties; the broker's limit is far from 16 kB.
        return limit is not None and connection.packet_bytes(self._topics.at(topic), payload) + 128 > limit

    def _settle_chunk(self, ack: PubAck) -> None:
        ticket = self._chunk_ids.pop(ack.mid, None)
        if ticket is None:
            return
        self._backoff.reset()
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
            connection.close()
        tickets = list(self._chunk_ids.values())
        self._chunk_ids.clear()
        for ticket in tickets:
            self._media.settle(ChunkFate(ticket, words))
        self._refuse_waiting(words)
