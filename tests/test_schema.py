"""The contract as documents: complete, generated, read by the AsyncAPI project's own parser, and kept by the node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broker import DEADLINE_S, Mosquitto, Subscriber, requires_mosquitto, until
from contract import complaints, headers
from jsonschema import Draft7Validator
from program import camera_agent
from stepped import SteppedNode

from agent.cameras.fake import FakeSource
from agent.cameras.scene import Fault, Walker
from agent.cameras.scenes import BUILT_IN
from agent.schema import CHANNELS, PAYLOADS, asyncapi, json_schemas
from agent.settings import load_settings

TESTS = Path(__file__).resolve().parent
PARSER_HOME = Path(os.environ.get("CAMERA_AGENT_NPM") or Path.home() / ".cache" / "camera-agent" / "asyncapi-parser")
"""Where scripts/check-asyncapi installs @asyncapi/parser."""

BROKEN_KINDS = (b'{"v":1}', b'{"v":1,"v":2', b"[]", b"null", b'"online"', b"")


def properties(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of every object in a schema, with its path."""
    if isinstance(schema, dict):
        for name, value in schema.get("properties", {}).items():
            yield f"{path}/{name}", value
        for key, value in schema.items():
            yield from properties(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from properties(value, f"{path}/{index}")


def test_every_json_payload_has_a_topic_and_every_topic_its_payload() -> None:
    assert {c.topic for c in CHANNELS if c.payload == "json"} == set(PAYLOADS), "give it a line in agent/schema.py"


def test_every_field_has_a_description_and_an_example() -> None:
    bare = []
    for topic, schema in json_schemas().items():
        for path, about in properties(schema):
            if "description" not in about and "$ref" not in about:
                bare.append(f"{topic}{path}: no description")
            tells = {"examples", "enum", "$ref", "const", "default", "anyOf", "allOf"} & set(about)
            if not tells and about.get("type") != "boolean":
                listed = about.get("items", {})
                if not (isinstance(listed, dict) and {"$ref", "enum"} & set(listed)):
                    bare.append(f"{topic}{path}: no example")
    assert not bare


def test_every_example_fits_its_schema() -> None:
    for topic, schema in json_schemas().items():
        Draft7Validator.check_schema(schema)
        for path, about in properties(schema):
            for example in about.get("examples", ()):
                found = list(
                    Draft7Validator({**about, "definitions": schema.get("definitions", {})}).iter_errors(example)
                )
                assert not found, f"{topic}{path}: {example!r}: {found[0].message}"


def test_the_command_prints_what_the_documents_hold() -> None:
    printed = camera_agent("schema")
    assert json.loads(printed.stdout) == json_schemas()
    assert json.loads(camera_agent("schema", "--asyncapi").stdout) == asyncapi()
    assert json.loads(camera_agent("schema", "health").stdout) == json_schemas()["health"]
    wrong = camera_agent("schema", "nonsense")
    assert wrong.returncode == 2
    assert "nonsense" in wrong.stderr


def parse(document: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", str(TESTS / "asyncapi_check.mjs"), str(PARSER_HOME)],
        input=document,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(
    not (PARSER_HOME / "node_modules" / "@asyncapi" / "parser").is_dir(),
    reason="the AsyncAPI parser is not installed: run scripts/check-asyncapi once",
)
def test_the_asyncapi_projects_own_parser_finds_no_error() -> None:
    done = parse(json.dumps(asyncapi()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CHANNELS)} channels, {len(CHANNELS)} operations, 0 errors" in done.stdout
    wrong = json.dumps(asyncapi()).replace('"action": "send"', '"action": "shout"', 1)
    assert parse(wrong).returncode == 1, "the parser would have noticed"


def test_every_capture_in_the_document_is_what_the_node_sends_now() -> None:
    shown = []
    for line in (TESTS.parent / "docs" / "MQTT.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("edgecam/v1/ward-12/entrance/"):
            continue
        topic, _, rest = line.partition(" ")
        shown.append(topic.split("/", 4)[4])
        if rest.startswith("r0 "):  # a picture, by what is said of it
            about = dict(word.split(":", 1) for word in rest.split() if ":" in word)
            assert not list(headers().iter_errors(about)), line
            continue
        assert not complaints(topic, rest.encode(), {}, ""), "take it anew: scripts/test-browser --document"
    assert set(shown) == {"state", "meta", "health", "event", "thumb", "clip", "loss", "rsp/me"}


SCENARIOS = {
    "passers-by": replace(
        BUILT_IN["empty"],
        walkers=(Walker(at_s=4, speed=0.6, height=0.55), Walker(at_s=14, speed=0.6, height=0.5, look=1)),
    ),
    "office": BUILT_IN["office"],
    "camera-lost": replace(
        BUILT_IN["empty"],
        walkers=(Walker(at_s=4, speed=0.2, height=0.55),),
        faults=(Fault("die", at_s=7, for_s=5),),
    ),
}


@requires_mosquitto
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_message_of_a_scenario_is_as_its_schema_says(name: str, tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker").start()
    subscriber = Subscriber(broker.port)
    settings = load_settings(
        environ={},
        overrides={
            "node": {"id": "cua-chinh", "site": "ward-12", "name": "Cửa chính"},
            "camera": {"width": 320, "height": 240, "fps": 10, "silence_s": 3},
            "detection": {"quiet_s": 1},
            "clips": {"directory": tmp_path / "node", "pre_roll_s": 1, "post_roll_s": 1, "min_free_mb": 0},
            "mqtt": {"host": "127.0.0.1", "port": broker.port},
            "health": {"interval_s": 5},
        },
    )
    try:
        stepped = SteppedNode(settings, FakeSource(SCENARIOS[name], width=320, height=240, fps=10))

        def is_connected() -> bool:
            stepped.node.link.step(0.02)
            return stepped.node.link.status.connected

        until(is_connected, "connected")
        stepped.run(26)

        def is_told() -> bool:
            """Real time for the broker's answers, before a farewell whose time is short."""
            stepped.node.link.step(0.02)
            stepped.run(0.2)
            return not stepped.node.storage.status.outbox_rows

        until(is_told, "everything is delivered")
        stepped.stop()

        def has_said_goodbye() -> bool:
            subscriber.wait_a_moment()
            return any(b'"stopped"' in message.payload for message in subscriber.of("/state"))

        until(has_said_goodbye, "the farewell")
        came = {
            message.topic.split("/", 4)[4] for message in subscriber.messages if message.topic.startswith("edgecam")
        }
        assert {"state", "meta", "health", "motion", "event", "event/last", "thumb", "thumb/last", "clip"} <= came
        subscriber.close()
    finally:
        broker.kill()


@pytest.mark.parametrize("topic", sorted(PAYLOADS))
def test_the_check_of_messages_finds_what_is_wrong(topic: str) -> None:
    for payload in BROKEN_KINDS:
        try:
            found = complaints(f"edgecam/v1/ward-12/entrance/{topic}", payload, {}, "")
        except ValueError:
            continue
        assert found, payload
