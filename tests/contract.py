"""Holds a message that a node published against the schema of its topic. Used by every test's subscriber."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from jsonschema import Draft7Validator, FormatChecker

from agent.messages import ThumbProperties
from agent.schema import CHANNELS, PAYLOADS, json_schema, json_schemas
from agent.topics import split


@cache
def validators() -> dict[str, Draft7Validator]:
    return {
        topic: Draft7Validator(schema, format_checker=FormatChecker()) for topic, schema in json_schemas().items()
    }


@cache
def headers() -> Draft7Validator:
    return Draft7Validator(json_schema(ThumbProperties))


def complaints(
    topic: str, payload: bytes, properties: dict[str, str], content_type: str, *, root: str = "edgecam"
) -> list[str]:
    """What is wrong with the message, in words; empty when it is as the contract says."""
    where = split(topic, root)
    if where is None:
        return [] if topic.startswith("homeassistant/") else [f"{topic}: no such topic"]
    feed = where[2]
    channel = next((each for each in CHANNELS if _matches(each.topic, feed)), None)
    if channel is None:
        return [f"{topic}: not in the contract"]
    if channel.payload == "text":
        return [] if not channel.words or payload.decode() in channel.words else [f"{topic}: {payload!r}"]
    if channel.payload == "jpeg":
        return _picture(topic, payload, properties, content_type)
    if channel.payload == "json":
        return _json(topic, channel.topic, payload)
    return []


def _matches(pattern: str, feed: str) -> bool:
    wanted, given = pattern.split("/"), feed.split("/")
    return len(wanted) == len(given) and all(
        part == word or part.startswith("{") for part, word in zip(wanted, given, strict=True)
    )


def _json(topic: str, key: str, payload: bytes) -> list[str]:
    message: Any = json.loads(payload)
    found = [f"{topic}{error.json_path[1:]}: {error.message}" for error in validators()[key].iter_errors(message)]
    # The schema lets unknown fields pass, as consumers should; the node itself sends none.
    PAYLOADS[key].model_validate_json(payload, strict=True)
    return found


def _picture(topic: str, payload: bytes, properties: dict[str, str], content_type: str) -> list[str]:
    if not properties:  # MQTT 3.1.1 carries none
        return []
    found = [f"{topic}: {error.message}" for error in headers().iter_errors(properties)]
    if properties.get("sha256") != hashlib.sha256(payload).hexdigest():
        found.append(f"{topic}: sha256 is of something else")
    return found + ([] if content_type == "image/jpeg" else [f"{topic}: content type {content_type!r}"])
