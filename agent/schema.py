"""The MQTT contract as documents: payload models become JSON Schemas and one AsyncAPI 3 document. Touches nothing.

Fields, units and examples come from the models in agent/messages.py and agent/requests.py; here stands only which
topic carries what.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, create_model

from agent import __version__
from agent.messages import JSON_PAYLOADS, ThumbProperties
from agent.records import Record
from agent.requests import VERBS, ConfigDesired, ConfigReported, Request, Response, UpdateReported

DRAFT = "http://json-schema.org/draft-07/schema#"
"""AsyncAPI's own schemas are draft 07 with additions; one draft for all documents."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One topic. topic: below the base, or whole when it begins with /. payload: "text" is one of `words`."""

    topic: str
    summary: str
    qos: Literal[0, 1] = 1
    retained: bool = False
    to_node: bool = False
    payload: Literal["json", "jpeg", "bytes", "text"] = "json"
    words: tuple[str, ...] = ()
    headers: type[BaseModel] | None = None


VERB_WORDS = {
    "ping": "Is it there?",
    "snapshot": "A picture of now, sent on `xfer`.",
    "live": "Pictures on `live` for a while, to be renewed; ttl_s 0 ends it.",
    "events.list": "Events in the ledger, newest first, by pages.",
    "clips.list": "Clips on the node's disk, newest first, by pages.",
    "clip.get": "Bytes of a clip, sent on `xfer`.",
    "clip.put": "The node sends a clip to a presigned URL.",
    "clip.protect": "The clip is kept whatever the ring needs.",
    "clip.release": "The clip is one of the ring again.",
    "clip.erase": "The clip is deleted.",
    "replay": "Messages of the event stream once more, on the response topic.",
    "arm": "What moves is told and recorded from now on.",
    "disarm": "What moves is neither told nor recorded until `arm`.",
    "set": "One thing that a person turns: at once, kept, without a restart.",
    "record": "An event of kind manual, and so a clip.",
    "test-event": "An event of kind test, to see the whole way to the screen.",
    "update.offer": "A newer version is to be had: it is shown, not installed.",
    "update": "The signed package is fetched, verified and tried; the version before returns if it is not well.",
    "restart": "The agent ends and systemd starts it again.",
}


def command_model(verb: str) -> type[BaseModel]:
    """Request with the args that verb takes."""
    args = VERBS[verb]
    name = "".join(word[:1].upper() + word[1:] for word in verb.replace("-", ".").split(".")) + "Command"
    about = "As the verb wants them."
    try:
        field: Any = Field(args.model_validate({}), description=about)
    except ValidationError:  # it cannot be left out
        field = Field(description=about)
    return create_model(name, __base__=Request, __doc__=f"`B/cmd/{verb}`", args=(args, field))


CHANNELS: tuple[Channel, ...] = (
    Channel("state", "Whether the node works; also the will.", retained=True),
    Channel("meta", "The birth document: what this node is.", retained=True),
    Channel("health", "Figures and verdict, each 30 s and when the verdict changes.", qos=0, retained=True),
    Channel("motion", "Whether something moves now.", retained=True, payload="text", words=("ON", "OFF")),
    Channel("armed", "Whether events are raised, since when and by whom.", retained=True),
    Channel("event", "One event, whole, at each revision."),
    Channel("event/last", "The newest event, for pages that open now.", retained=True),
    Channel("thumb", "The picture of an event.", payload="jpeg", headers=ThumbProperties),
    Channel("thumb/last", "The newest picture.", retained=True, payload="jpeg", headers=ThumbProperties),
    Channel("clip", "A clip became final."),
    Channel("loss", "Numbers that will not come, and why."),
    Channel("update", "Which version runs, which is to be had, what became of the last update.", retained=True),
    Channel(
        "echo",
        "A connection's id, retained and heard by the node itself: a clone shows there. `answer` before a suspect.",
        retained=True,
        payload="text",
    ),
    Channel("live", "Pictures under a lease; they expire after 2 s.", qos=0, payload="jpeg"),
    *(Channel(f"cmd/{verb}", VERB_WORDS.get(verb, "A command."), to_node=True) for verb in VERBS),
    Channel("rsp/{client}", "The answer to a command; correlation data of MQTT 5 comes back with it."),
    Channel("xfer/{request}/{offset}", "Bytes of a clip or still, at most 16 kB each.", payload="bytes"),
    Channel("config/desired", "Settings that shall differ from the node's own file.", retained=True, to_node=True),
    Channel("config/reported", "What became of them, and all that is in force.", retained=True),
    Channel("check", "One word of `camera-agent check`.", payload="text", words=("camera-agent check",)),
    Channel("commissioning", "What `camera-agent aim` measured when the node was hung.", retained=True),
    Channel(
        "/homeassistant/device/{site}_{node}/config",
        "Home Assistant device discovery, in Home Assistant's own format.",
        retained=True,
        payload="bytes",
    ),
    Channel(
        "/homeassistant/status",
        "Home Assistant's birth: discovery is sent again.",
        to_node=True,
        payload="text",
        words=("online", "offline"),
    ),
)


PAYLOADS: dict[str, type[BaseModel]] = {
    **JSON_PAYLOADS,
    **{f"cmd/{verb}": command_model(verb) for verb in VERBS},
    "rsp/{client}": Response,
    "config/desired": ConfigDesired,
    "config/reported": ConfigReported,
    "update": UpdateReported,
    "commissioning": Record,
}
"""Topic below the base, with its parameters in braces -> the JSON that stands there."""


def json_schema(model: type[BaseModel], *, to_node: bool = False) -> dict[str, Any]:
    """One model as a JSON Schema of draft 07. What a node sends may gain fields within a version: those schemas
    let unknown fields pass, as consumers should; what it reads is closed."""
    made = model.model_json_schema(mode="serialization", ref_template="#/definitions/{model}")
    definitions = made.pop("$defs", None)
    schema = {"$schema": DRAFT, **made, **({"definitions": definitions} if definitions else {})}
    drafted: dict[str, Any] = _as_draft_07(schema, is_open=not to_node)
    return drafted


def json_schemas() -> dict[str, dict[str, Any]]:
    """Topic below the base -> JSON Schema of its payload."""
    closed = {channel.topic for channel in CHANNELS if channel.to_node}
    return {topic: json_schema(model, to_node=topic in closed) for topic, model in PAYLOADS.items()}


PARAMETERS: dict[str, dict[str, Any]] = {
    "root": {"description": "First level, mqtt.root of the settings.", "default": "edgecam"},
    "site": {"description": "Id of the site, node.site.", "examples": ["ward-12"]},
    "node": {"description": "Id of the node, node.id.", "examples": ["entrance"]},
    "client": {"description": "`client` of the command.", "examples": ["dashboard-1"]},
    "request": {"description": "`id` of the command.", "examples": ["01JD9ZV6Q2M4S8T1C3R5W7Y9AB"]},
    "offset": {"description": "Of the first byte in the file.", "examples": ["16384"]},
}


def asyncapi() -> dict[str, Any]:
    """The whole contract as an AsyncAPI 3 document, from the node's side: it sends and receives."""
    schemas: dict[str, Any] = {}
    channels, operations, messages = {}, {}, {}
    for channel in CHANNELS:
        name = _name(channel.topic)
        messages[name] = _message(channel, schemas)
        channels[name] = {
            "address": channel.topic[1:]
            if channel.topic.startswith("/")
            else f"{{root}}/v1/{{site}}/{{node}}/{channel.topic}",
            "title": channel.topic.strip("/"),
            "summary": channel.summary,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        }
        names = [each for each in PARAMETERS if f"{{{each}}}" in str(channels[name]["address"])]
        if names:
            channels[name]["parameters"] = {each: {"$ref": f"#/components/parameters/{each}"} for each in names}
        operations[f"{'receive' if channel.to_node else 'send'}{name[:1].upper()}{name[1:]}"] = {
            "action": "receive" if channel.to_node else "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "summary": channel.summary,
            "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.retained, "bindingVersion": "0.2.0"}},
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "camera-agent",
            "version": __version__,
            "description": "What a camera node says and hears over MQTT. Made by `camera-agent schema --asyncapi`.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "localhost:1883",
                "protocol": "mqtt",
                "protocolVersion": "5.0",
                "description": "mqtt.host and mqtt.port of the settings; MQTT 3.1.1 where a broker refuses 5.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": schemas,
            "parameters": PARAMETERS,
        },
    }


def as_text(document: dict[str, Any]) -> str:
    """Readable JSON, names in any script kept as they are."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _message(channel: Channel, schemas: dict[str, Any]) -> dict[str, Any]:
    """The message of a channel; schemas it needs are added to schemas."""
    message: dict[str, Any] = {"name": channel.topic.strip("/"), "summary": channel.summary}
    if channel.payload == "json":
        model = PAYLOADS[channel.topic]
        message["contentType"] = "application/json"
        message["payload"] = _referred(model, schemas, is_open=not channel.to_node)
    elif channel.payload == "text":
        message["contentType"] = "text/plain"
        message["payload"] = {"type": "string", **({"enum": list(channel.words)} if channel.words else {})}
    else:
        message["contentType"] = "image/jpeg" if channel.payload == "jpeg" else "application/octet-stream"
        message["payload"] = {"type": "string", "format": "binary"}
    if channel.headers is not None:
        message["headers"] = _referred(channel.headers, schemas, is_open=True)
    return message


def _referred(model: type[BaseModel], schemas: dict[str, Any], *, is_open: bool) -> dict[str, Any]:
    made = model.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    for name, schema in made.pop("$defs", {}).items():
        schemas[name] = _as_draft_07(schema, is_open=is_open)
    schemas[model.__name__] = _as_draft_07(made, is_open=is_open)
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _as_draft_07(schema: Any, *, is_open: bool) -> Any:
    """schema with tuples as draft 07 writes them, and open to unknown fields where is_open."""
    if isinstance(schema, list):
        return [_as_draft_07(each, is_open=is_open) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _as_draft_07(value, is_open=is_open) for key, value in schema.items() if key != "prefixItems"}
    if "prefixItems" in schema:
        made["items"] = _as_draft_07(schema["prefixItems"], is_open=is_open)
    if is_open and made.get("additionalProperties") is False:
        del made["additionalProperties"]
    return made


def _name(topic: str) -> str:
    """A topic as an AsyncAPI key: event/last -> eventLast."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", topic) if word]
    return words[0] + "".join(word[:1].upper() + word[1:] for word in words[1:])
