"""The birth document: what this node is, from its settings and what the camera answered. Touches nothing."""

from __future__ import annotations

from agent import __version__
from agent.messages import CameraMeta, LimitsMeta, MetaMessage, ZoneMeta
from agent.model import StreamInfo
from agent.settings import Settings, redacted

SCHEMA_VERSION = "1.0"
CAPABILITIES = ["motion", "events", "thumbnails", "clips", "health"]
ASKED = ["commands", "arming", "live", "transfers", "replay"]
"""What a node does that listens to commands."""

MAX_PAYLOAD_BYTES = 65536


def meta_message(settings: Settings, info: StreamInfo | None, hardware: str | None) -> MetaMessage:
    """info: None while no camera has answered yet."""
    node, camera = settings.node, settings.camera
    return MetaMessage(
        site=node.site,
        node=node.id,
        name=node.name or node.id,
        location=node.location,
        timezone=node.timezone,
        agent_version=__version__,
        hardware=hardware,
        camera=CameraMeta(
            backend=camera.backend,
            description=info.description if info else redacted(camera.source),
            codec=info.codec if info else "",
            width=info.width if info else 0,
            height=info.height if info else 0,
            fps=info.fps if info else 0,
        ),
        zones=[
            ZoneMeta(id=zone.id, name=zone.name or zone.id, kind=zone.kind, polygon=zone.polygon)
            for zone in settings.zones
        ],
        capabilities=[*CAPABILITIES, *(ASKED if settings.commands.enabled else ())],
        schema_version=SCHEMA_VERSION,
        limits=LimitsMeta(
            max_payload_bytes=MAX_PAYLOAD_BYTES,
            replay_days=settings.outbox.replay_days,
            replay_mb=settings.outbox.replay_mb,
        ),
    )
