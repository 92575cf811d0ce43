"""What the link says for the commands on the connection of the events: replies. Network only, by that connection.

Used by the link's thread.
"""

from __future__ import annotations

import logging

from agent.connection import NO_SUBSCRIBER, Connection, PubAck
from agent.mailboxes import Box, Reply
from agent.posting import reply_properties
from agent.topics import Topics

log = logging.getLogger(__name__)


class Answers:
    """replies: what the commands left for us. unsent: those that the broker did not take."""

    def __init__(self, topics: Topics, replies: Box[Reply]) -> None:
        self._topics = topics
        self._replies = replies
        self._ids: set[int] = set()
        self.unsent = 0

    def begin(self) -> None:
        """A new connection: what was not answered on the last one is not kept; who asks again gets the answer."""
        self._ids.clear()

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
            self._ids.add(connection.publish(topic, reply.payload, properties=properties))

    def settle(self, ack: PubAck) -> None:
        """The broker's word about one of our messages."""
        if ack.mid in self._ids:
            self._ids.discard(ack.mid)
            self.unsent += ack.code >= 0x80 or ack.code == NO_SUBSCRIBER
