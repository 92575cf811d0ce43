"""Home Assistant's device discovery: what this node is, as the one retained message it wants. Touches nothing.

Templates run in Home Assistant. Nothing late or sent twice fires an automation: they look at `late`, epoch and seq.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from agent import __version__
from agent.messages import EventBody, MetaMessage
from agent.topics import ARMED, CONFIG_REPORTED, EVENT, HEALTH, MOTION, STATE, THUMB_LAST, UPDATE, Topics

EXPIRE_INTERVALS = 4
"""A figure of health that was not renewed for so many intervals is unknown."""

EVENT_KINDS: tuple[str, ...] = get_args(EventBody.model_fields["kind"].annotation)
ENDED = "ended"

# `this` is the event entity as it stands, with what the message before left in it. A row that is sent again has an
# older or equal seq. `recent`: events may overlap (the camera is lost while somebody walks), and a start may have
# been joined with an update before it was sent.
_FIRE = """
{%- set e = value_json -%}{%- set last = this.attributes -%}
{%- set again = last.get('epoch') == e.epoch and e.seq <= (last.get('seq') or 0) -%}
{%- if not e.late and not again -%}
{%- set recent = last.get('recent') or [] -%}
{%- set known = e.id in recent -%}
{%- set type = 'ended' if known and e.phase == 'end' else none if known else e.kind -%}
{%- if type -%}
{{ {'event_type': type, 'id': e.id, 'kind': e.kind, 'phase': e.phase, 'score': e.score, 'zones': e.zones,
    'start': e.start, 'end': e.end, 'clip': e.clip.id if e.clip else none, 'epoch': e.epoch, 'seq': e.seq,
    'recent': (recent if known else recent + [e.id])[-4:]} | tojson }}
{%- endif -%}{%- endif -%}
"""
FIRE = " ".join(_FIRE.split())


class Announced(BaseModel):
    """What Home Assistant was told, to be remembered. stale: topics announced once and no more -> starts since."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    topic: str = ""
    components: dict[str, str] = {}
    """Component -> platform, also of those that are gone: their absence has to be said."""
    stale: dict[str, int] = {}


STALE_STARTS = 5
"""An old topic is cleared at so many starts, then forgotten: the broker may have been away at the first."""


def discovery_topic(prefix: str, site: str, node: str) -> str:
    """As Topics.at() takes it."""
    return f"/{prefix}/device/{site}_{node}/config"


def birth_topic(prefix: str) -> str:
    """Where Home Assistant says `online` when it starts, as Topics.at() takes it."""
    return f"/{prefix}/status"


def plan(
    before: Announced,
    meta: MetaMessage,
    *,
    prefix: str,
    root: str,
    health_s: float,
    verbs: Collection[str] = (),
    update_id: str = "",
) -> tuple[dict[str, bytes], Announced]:
    """What to put (retained; empty payloads clear) and what to remember. An empty prefix: nothing is announced.

    health_s: how often health is published. verbs: commands that this node serves. update_id: of the next `update`
    command, empty where this node cannot be updated by one.
    """
    topic = discovery_topic(prefix, meta.site, meta.node) if prefix else ""
    stale = dict(before.stale)
    if before.topic and before.topic != topic:
        stale[before.topic] = 0
    stale.pop(topic, None)
    messages = dict.fromkeys(stale, b"")
    if not topic:
        return messages, Announced(stale=stale)
    topics = Topics(root, meta.site, meta.node)
    components = components_of(meta, topics, root, health_s, verbs, update_id)
    told = before.components if before.topic == topic else {}
    # A component that is gone has to be named with nothing but its platform.
    gone = {name: {"platform": platform} for name, platform in told.items() if name not in components}
    messages[topic] = device_message(meta, root, {**components, **gone})
    platforms = {name: str(about["platform"]) for name, about in {**components, **gone}.items()}
    return messages, Announced(topic=topic, components=platforms, stale=stale)


def a_start_later(announced: Announced) -> Announced:
    """The same after another start of the node: what was cleared often enough is forgotten."""
    stale = {topic: starts + 1 for topic, starts in announced.stale.items() if starts + 1 < STALE_STARTS}
    return announced.model_copy(update={"stale": stale})


def device_message(meta: MetaMessage, root: str, components: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The retained message: device, origin, availability and components."""
    base = Topics(root, meta.site, meta.node)
    message = {
        "device": {
            "identifiers": [device_id(meta, root)],
            # The area is shown beside it; a site's name in here would stand there twice.
            "name": meta.name,
            "manufacturer": "camera-agent",
            "model": meta.hardware or "camera node",
            "sw_version": meta.agent_version,
            **({"suggested_area": meta.location} if meta.location else {}),
        },
        "origin": {"name": "camera-agent", "sw_version": __version__},
        "availability": [
            {
                "topic": base.at(STATE),
                "value_template": "{{ 'online' if value_json.state in ('online', 'degraded') else 'offline' }}",
            }
        ],
        "qos": 1,
        "components": components,
    }
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def device_id(meta: MetaMessage, root: str) -> str:
    return f"{root}_{meta.site}_{meta.node}"


def components_of(
    meta: MetaMessage, topics: Topics, root: str, health_s: float, verbs: Collection[str], update_id: str = ""
) -> dict[str, dict[str, Any]]:
    """Component -> its part of the message."""
    made = {
        **_pictures_and_motion(topics),
        **_arming(topics, verbs),
        **_condition(topics, health_s),
        **_commands(topics, verbs),
        **_turned(topics, verbs),
        **_update(topics, verbs, update_id),
    }
    for name, about in made.items():
        about["unique_id"] = f"{device_id(meta, root)}_{name}"
    return made


def _pictures_and_motion(topics: Topics) -> dict[str, dict[str, Any]]:
    return {
        "motion": {
            "platform": "binary_sensor",
            "name": "Motion",
            "device_class": "motion",
            "state_topic": topics.at(MOTION),
        },
        "event": {
            "platform": "event",
            "name": "Event",
            "state_topic": topics.at(EVENT),
            "event_types": [*EVENT_KINDS, ENDED],
            "value_template": FIRE,
        },
        "picture": {
            "platform": "image",
            "name": "Last picture",
            "image_topic": topics.at(THUMB_LAST),
            "content_type": "image/jpeg",
        },
    }


def _arming(topics: Topics, verbs: Collection[str]) -> dict[str, dict[str, Any]]:
    """A switch where Home Assistant may turn it, else only to be seen. Two names: a thing keeps its platform."""
    about = {
        "name": "Armed",
        "icon": "mdi:shield-home",
        "state_topic": topics.at(ARMED),
        "value_template": "{{ 'ON' if value_json.armed else 'OFF' }}",
        "json_attributes_topic": topics.at(ARMED),
        "json_attributes_template": "{{ {'since': value_json.since, 'by': value_json.by} | tojson }}",
    }
    if not {"set", "arm", "disarm"} <= set(verbs):
        return {"armed": {"platform": "binary_sensor", **about}}
    return {
        "arming": {
            "platform": "switch",
            **about,
            "command_topic": topics.at("cmd/set"),
            "command_template": _command("{\"armed\": {{ 'true' if value == 'ON' else 'false' }}}"),
        }
    }


def _turned(topics: Topics, verbs: Collection[str]) -> dict[str, dict[str, Any]]:
    """Settings that a person turns."""
    if "set" not in verbs:
        return {}
    return {
        "sensitivity": {
            "platform": "number",
            "name": "Sensitivity",
            "icon": "mdi:tune",
            "entity_category": "config",
            "min": 0,
            "max": 100,
            "step": 1,
            "mode": "slider",
            "state_topic": topics.at(CONFIG_REPORTED),
            "value_template": "{{ value_json.config.detection.sensitivity }}",
            "command_topic": topics.at("cmd/set"),
            "command_template": _command('{"sensitivity": {{ value | int }}}'),
        }
    }


def _update(topics: Topics, verbs: Collection[str], update_id: str) -> dict[str, dict[str, Any]]:
    """What Home Assistant sends to install is fixed text, no template: so the id in it comes from the node."""
    # Its schema for update messages refuses them whole for a release_summary of null; an empty text is fine.
    if "update" not in verbs or not update_id:
        return {}
    state = {
        "installed_version": "value_json.installed",
        "latest_version": "value_json.latest",
        "release_summary": "value_json.notes",
        "in_progress": "value_json.phase != 'idle'",
        "update_percentage": "value_json.percent",
    }
    last = "{'phase': value_json.phase, 'last': value_json.last}"
    return {
        "update": {
            "platform": "update",
            "name": "Software",
            "title": "camera-agent",
            "device_class": "firmware",
            "entity_category": "config",
            "state_topic": topics.at(UPDATE),
            "value_template": "{{ {"
            + ", ".join(f"'{key}': {value}" for key, value in state.items())
            + "} | tojson }}",
            "json_attributes_topic": topics.at(UPDATE),
            "json_attributes_template": f"{{{{ {last} | tojson }}}}",
            "command_topic": topics.at("cmd/update"),
            "payload_install": json.dumps({"id": update_id, "client": "home-assistant", "args": {}}),
        }
    }


def _condition(topics: Topics, health_s: float) -> dict[str, dict[str, Any]]:
    """What the node says of itself."""
    figure = {
        "platform": "sensor",
        "state_topic": topics.at(HEALTH),
        "entity_category": "diagnostic",
        "state_class": "measurement",
        "expire_after": max(30, round(EXPIRE_INTERVALS * health_s)),
    }
    return {
        "problem": {
            "platform": "binary_sensor",
            "name": "Problem",
            "device_class": "problem",
            "entity_category": "diagnostic",
            "state_topic": topics.at(STATE),
            "value_template": "{{ 'ON' if value_json.state == 'degraded' else 'OFF' }}",
            "json_attributes_topic": topics.at(STATE),
            "json_attributes_template": "{{ {'reasons': value_json.reasons} | tojson }}",
        },
        "temperature": figure
        | {
            "name": "Temperature",
            "device_class": "temperature",
            "unit_of_measurement": "°C",
            "value_template": "{{ value_json.temperature_c }}",
        },
        "disk_free": figure
        | {
            "name": "Disk free",
            "device_class": "data_size",
            "unit_of_measurement": "MB",
            "value_template": "{{ value_json.disk_free_mb }}",
        },
        "outbox": figure
        | {
            "name": "Outbox",
            "icon": "mdi:tray-full",
            "unit_of_measurement": "messages",
            "value_template": "{{ value_json.outbox.depth }}",
        },
        "clock": {
            "platform": "binary_sensor",
            "name": "Clock",
            "device_class": "problem",
            "entity_category": "diagnostic",
            "state_topic": topics.at(HEALTH),
            "value_template": "{{ 'OFF' if value_json.clock.synced else 'ON' }}",
        },
    }


def _commands(topics: Topics, verbs: Collection[str]) -> dict[str, dict[str, Any]]:
    """Only what the node serves: a button that does nothing is worse than none."""
    made: dict[str, dict[str, Any]] = {}
    for verb, name, icon, args in (
        ("snapshot", "Snapshot", "mdi:camera", {}),
        ("live", "Live picture for a minute", "mdi:cctv", {"fps": 2, "width": 640, "ttl_s": 60}),
        ("restart", "Restart", "", {}),
    ):
        if verb in verbs:
            made[verb] = {
                "platform": "button",
                "name": name,
                "command_topic": topics.at(f"cmd/{verb}"),
                "command_template": _command(json.dumps(args)),
                **({"icon": icon} if icon else {"device_class": verb, "entity_category": "config"}),
            }
    if "live" in verbs:
        made["live_picture"] = {"platform": "camera", "name": "Live picture", "topic": topics.at("live")}
    return made


def _command(args: str) -> str:
    """A command with an id of its own at each press: the same id twice would be answered and not done.

    args: JSON, or a template of it.
    """
    identity = "ha-{{ (now().timestamp() * 1000000) | int }}"
    return f'{{"id":"{identity}","client":"home-assistant","args":{args}}}'
