"""One message as the bytes and properties of its PUBLISH. Touches nothing."""

from __future__ import annotations

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.connection import new_properties
from agent.messages import message_bytes, thumb_properties
from agent.model import OutboxRow
from agent.settings import NodeSettings


def row_packet(row: OutboxRow, node: NodeSettings, epoch: str, now_wall_ns: int) -> tuple[bytes, Properties | None]:
    """An outbox row: JSON with its envelope, or a JPEG with its ids beside it."""
    if row.blob is None:
        return message_bytes(row, site=node.site, node=node.id, epoch=epoch, now_wall_ns=now_wall_ns), None
    properties = new_properties(PacketTypes.PUBLISH)
    properties.ContentType = "image/jpeg"
    properties.UserProperty = list(thumb_properties(row).model_dump().items())
    return row.blob, properties


def reply_properties(correlation: bytes) -> Properties | None:
    """Of an answer: the correlation data of its question, where it had some."""
    if not correlation:
        return None
    properties = new_properties(PacketTypes.PUBLISH)
    properties.CorrelationData = correlation
    return properties


def live_properties(expiry_s: int) -> Properties:
    """Of a live frame: brokers throw it away when it is old."""
    properties = new_properties(PacketTypes.PUBLISH)
    properties.ContentType = "image/jpeg"
    properties.MessageExpiryInterval = expiry_s
    return properties
