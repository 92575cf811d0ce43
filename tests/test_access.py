"""The generated access list at a real mosquitto: no node speaks for another, none commands, each refusal is seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Mosquitto, Subscriber, requires_mosquitto, until
from pydantic import SecretStr

from agent.access import mosquitto_acl, node_lines, readable, watcher_lines, writable
from agent.clock import SystemClock
from agent.connection import Connection, PubAck
from agent.schema import CHANNELS
from agent.settings import MqttSettings

NOT_AUTHORISED = 0x87
NODES = [(f"ward-{number // 5 + 1}", f"cam-{number % 5 + 1}") for number in range(20)]
FEEDS = ("state", "health", "event", "thumb", "clip", "discovery")
PLUGINS = sorted(Path(os.environ.get("CAMERA_AGENT_MOSQUITTO_PLUGINS", "/usr/lib")).glob("**/mosquitto_acl_file.so"))


def topic_of(node: tuple[str, str], feed: str) -> str:
    site, name = node
    return f"homeassistant/device/{site}_{name}/config" if feed == "discovery" else f"edgecam/v1/{site}/{name}/{feed}"


class Client:
    """A connection of one user, stepped by hand."""

    def __init__(self, port: int, user: str) -> None:
        settings = MqttSettings(host="127.0.0.1", port=port, username=user, password=SecretStr("word"))
        self._connection = Connection(settings, user, SystemClock())
        self._acks: dict[int, PubAck] = {}
        until(lambda: self._step() and self._connection.ready, f"{user} is let in")

    def _step(self) -> bool:
        self._connection.step(0.02)
        assert self._connection.failure is None, self._connection.failure
        self._acks.update((ack.mid, ack) for ack in self._connection.take_acks())
        return True

    def publish(self, *topics: str) -> list[int]:
        """The broker's answer to a message on each topic: reason codes."""
        numbers = []
        for topic in topics:
            until(lambda: self._connection.room > 0 or not self._step(), "room")
            numbers.append(self._connection.publish(topic, b"from an access test"))
        until(lambda: self._step() and set(numbers) <= set(self._acks), "answers")
        return [self._acks[number].code for number in numbers]

    def subscribe(self, *filters: str) -> None:
        self._connection.subscribe(*filters)
        self.publish(self._own)

    _own = "nobody/may"

    def hears(self) -> list[str]:
        self.publish(self._own)  # what was sent before has come once this is answered
        return [message.topic for message in self._connection.take_messages()]

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module", params=["acl_file", "plugin"])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """mosquitto with the generated list, in the form of 2.0 and in that of 2.1."""
    home = tmp_path_factory.mktemp("broker")
    text = mosquitto_acl(NODES, watchers=[watcher_lines("desk", may_command=True), watcher_lines("screen")])
    users = {f"{site}/{node}": "word" for site, node in NODES} | {
        "desk": "word",
        "screen": "word",
        "ward-1/+": "word",
    }
    if request.param == "acl_file":
        made = Mosquitto(home, users=users, acl=text.splitlines())
    else:
        if not PLUGINS:
            pytest.skip("this mosquitto has no acl-file plugin (it came with 2.1)")
        (home / "list").write_text(text)
        made = Mosquitto(
            home, users=users, extra=[f"global_plugin {PLUGINS[0]}", f"plugin_opt_acl_file {home / 'list'}"]
        )
    made.start()
    yield made
    made.kill()


pytestmark = requires_mosquitto


def test_twenty_nodes_times_six_topics_and_nobody_speaks_for_another(broker: Mosquitto) -> None:
    listener = Subscriber(broker.port, user=("desk", "word"), checked=False)
    foreign = accepted = seen = 0
    for node in NODES:
        client = Client(broker.port, "/".join(node))
        own = client.publish(*(topic_of(node, feed) for feed in FEEDS))
        assert all(code < 0x80 for code in own), f"{node} may not say what it should: {own}"
        others = [other for other in NODES if other != node]
        codes = client.publish(*(topic_of(other, feed) for other in others for feed in FEEDS))
        foreign += len(codes)
        accepted += sum(code < 0x80 for code in codes)
        seen += codes.count(NOT_AUTHORISED)
        client.close()
    assert foreign == 20 * 19 * 6
    assert accepted == 0
    assert seen == foreign, "each refusal is seen"

    def all_came() -> bool:
        listener.wait_a_moment()
        return len(listener.messages) >= len(NODES) * len(FEEDS)

    until(all_came, "what was allowed")
    assert len(listener.messages) == len(NODES) * len(FEEDS), "and nothing else"
    listener.close()


def test_a_node_commands_nobody_not_even_itself(broker: Mosquitto) -> None:
    client = Client(broker.port, "ward-1/cam-1")
    forbidden = [
        "edgecam/v1/ward-1/cam-1/cmd/restart",
        "edgecam/v1/ward-1/cam-1/config/desired",
        "edgecam/v1/ward-1/cam-2/cmd/restart",
        "homeassistant/status",
        "homeassistant/switch/lamp/set",
        "edgecam/v1/ward-1/cam-1",
        "edgecam/v1/ward-1/cam-1/new",
        "anything",
    ]
    assert client.publish(*forbidden) == [NOT_AUTHORISED] * len(forbidden)
    client.close()


def test_a_node_hears_its_own_commands_and_nothing_else(broker: Mosquitto) -> None:
    node, desk = Client(broker.port, "ward-1/cam-1"), Client(broker.port, "desk")
    node.subscribe("#")
    base = "edgecam/v1/ward-1"
    own = [f"{base}/cam-1/cmd/ping", f"{base}/cam-1/cmd/clip.get", f"{base}/cam-1/config/desired"]
    foreign = [f"{base}/cam-2/cmd/ping", f"{base}/cam-2/config/desired"]
    assert all(code < 0x80 for code in desk.publish(*own, *foreign, "homeassistant/status"))
    assert Client(broker.port, "ward-1/cam-2").publish(f"{base}/cam-2/event")[0] < 0x80
    assert node.hears() == [*own, "homeassistant/status"]
    node.close()
    desk.close()


def test_a_node_named_with_a_wildcard_gets_nothing(broker: Mosquitto) -> None:
    client = Client(broker.port, "ward-1/+")
    assert client.publish("edgecam/v1/ward-1/cam-1/event") == [NOT_AUTHORISED]
    client.close()


def test_who_only_watches_commands_nobody(broker: Mosquitto) -> None:
    screen = Client(broker.port, "screen")
    assert (
        screen.publish("edgecam/v1/ward-1/cam-1/cmd/restart", "edgecam/v1/ward-1/cam-1/event") == [NOT_AUTHORISED] * 2
    )
    screen.close()


def test_the_list_follows_the_contract() -> None:
    said = {channel.topic for channel in CHANNELS if not channel.to_node and not channel.topic.startswith("/")}
    assert len(writable()) >= len(said)
    assert not [topic for topic in writable() if topic.startswith(("cmd", "config/desired")) or topic == "#"]
    assert readable() == ["cmd/+", "config/desired", "echo"]
    assert node_lines("s", "n", root="cameras")[:2] == ["user s/n", "topic write cameras/v1/s/n/state"]
    assert "homeassistant" not in mosquitto_acl(NODES, prefix="")
