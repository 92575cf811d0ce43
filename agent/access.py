"""Who may say and hear what at a broker: the access list of nodes and of those who watch them. Touches nothing.

A node's user name is `site/node`. What it may write and read follows from the channels in agent/schema.py, so a
stolen node can neither speak for another one nor command anything, itself included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from agent.discovery import birth_topic, discovery_topic
from agent.schema import CHANNELS
from agent.topics import ECHO, VERSION

RESERVED = ("zone/+", "day/+", "watch")
"""Topics of the contract that a later version speaks on: a broker need not be changed for it."""

COMMISSIONING = "commissioning"
"""Where `camera-agent aim` leaves the record of the day a node was hung."""


def writable() -> list[str]:
    """Topic filters below the base that a node says something on."""
    below = [channel.topic for channel in CHANNELS if not channel.to_node and not channel.topic.startswith("/")]
    return [*(re.sub(r"{[a-z]+}", "+", topic) for topic in below), *RESERVED]


def readable() -> list[str]:
    """Topic filters below the base that a node hears."""
    below = [channel.topic for channel in CHANNELS if channel.to_node and not channel.topic.startswith("/")]
    others = [topic for topic in below if not topic.startswith("cmd/")]
    return ["cmd/+", *others, ECHO]


def node_lines(site: str, node: str, *, root: str = "edgecam", prefix: str = "homeassistant") -> list[str]:
    """What one node may do, in full: mosquitto 2.1 refuses every `pattern` line to a user name with a slash in it
    (found by tests/test_access.py with 2.1.2; 2.0 takes them). prefix empty: nothing for Home Assistant.
    """
    base = f"{root}/v{VERSION}/{site}/{node}"
    lines = [
        f"user {site}/{node}",
        *(f"topic write {base}/{topic}" for topic in writable()),
        *(f"topic read {base}/{topic}" for topic in readable()),
    ]
    if prefix:
        lines += [
            f"topic write {discovery_topic(prefix, site, node)[1:]}",
            f"topic read {birth_topic(prefix)[1:]}",
        ]
    return lines


def watcher_lines(
    user: str, root: str = "edgecam", prefix: str = "homeassistant", *, site: str = "+", may_command: bool = False
) -> list[str]:
    """A dashboard or Home Assistant: hears everything of a site (default: all), and may command where it is told."""
    base = f"{root}/v{VERSION}/{site}"
    lines = [f"user {user}", f"topic read {base}/#"]
    if prefix:
        lines += [f"topic read {prefix}/device/+/config", f"topic readwrite {birth_topic(prefix)[1:]}"]
    if may_command:
        lines += [f"topic write {base}/+/cmd/+", f"topic write {base}/+/config/desired"]
    return lines


def mosquitto_acl(
    nodes: Iterable[tuple[str, str]],
    *,
    root: str = "edgecam",
    prefix: str = "homeassistant",
    watchers: Sequence[Sequence[str]] = (),
) -> str:
    """mosquitto's acl_file (2.0; the plugin of 2.1 reads the same). nodes: (site, node); watchers: their lines."""
    blocks = [
        ["# Made by camera-agent: a node's user name is site/node; each line is something that it may do."],
        *(node_lines(site, node, root=root, prefix=prefix) for site, node in nodes),
        *watchers,
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"
