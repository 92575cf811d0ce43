"""The names of MQTT topics: one place that spells them. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import OutboxKind

VERSION = 1
"""Version of topics and payloads; stands in the topic and in every payload as `v`."""


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of one node below `{root}/v1/{site}/{node}`."""

    root: str
    site: str
    node: str

    @property
    def base(self) -> str:
        return f"{self.root}/v{VERSION}/{self.site}/{self.node}"

    def at(self, suffix: str) -> str:
        """suffix below the base; one that begins with / is a whole topic elsewhere: /homeassistant/status."""
        return suffix[1:] if suffix.startswith("/") else f"{self.base}/{suffix}"

    def of(self, kind: OutboxKind) -> str:
        return self.at(kind.value)


STATE = "state"
META = "meta"
HEALTH = "health"
MOTION = "motion"
ARMED = "armed"
EVENT_LAST = "event/last"
THUMB_LAST = "thumb/last"
CLIP = "clip"
LOSS = "loss"
EVENT = "event"
THUMB = "thumb"
CMD = "cmd"
RSP = "rsp"
XFER = "xfer"
LIVE = "live"
CONFIG_DESIRED = "config/desired"
CONFIG_REPORTED = "config/reported"
UPDATE = "update"
ECHO = "echo"
"""Said and heard by the node itself, once per connection: who else speaks there has our name."""


def split(topic: str, root: str) -> tuple[str, str, str] | None:
    """(site, node, rest) of a topic below root, for subscribers; None for a topic that is not ours."""
    parts = topic.split("/", 4)
    if len(parts) != 5 or parts[0] != root or parts[1] != f"v{VERSION}" or not all(parts):
        return None
    return parts[2], parts[3], parts[4]
