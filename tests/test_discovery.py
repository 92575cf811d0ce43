"""Home Assistant finds the node by itself, is told when something is gone, and fires nothing late or twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from broker import Mosquitto, Subscriber, requires_mosquitto, until
from link_fixtures import EPOCH, ulid
from stepped import SteppedNode

from agent.announcer import FILE_NAME, Announcer
from agent.birth import meta_message
from agent.cameras.fake import FakeSource
from agent.cameras.scenes import BUILT_IN
from agent.connection import Incoming
from agent.desired import reported_settings
from agent.discovery import STALE_STARTS, Announced, components_of, plan
from agent.handoffs import StatusBoard
from agent.messages import JSON_PAYLOADS, MetaMessage
from agent.requests import VERBS, Request, SetArgs, UpdateArgs, UpdateReported
from agent.settings import Settings, load_settings
from agent.topics import Topics

TOPIC = "homeassistant/device/ward-12_entrance/config"


def settings(directory: Path, **more: Any) -> Settings:
    tree: dict[str, Any] = {
        "node": {"id": "entrance", "site": "ward-12", "name": "Cửa chính", "location": "Tầng 1"},
        "camera": {"width": 320, "height": 240, "fps": 10},
        "clips": {"directory": directory, "min_free_mb": 0},
    }
    for section, values in more.items():
        tree[section] = {**tree.get(section, {}), **values}
    return load_settings(environ={}, overrides=tree)


def meta(given: Settings) -> MetaMessage:
    return meta_message(given, None, "Raspberry Pi 4 Model B")


def announced(directory: Path, given: Settings, verbs: tuple[str, ...] | None = ()) -> dict[str, Any]:
    """Topic -> message (None: cleared) after a start of the node with these settings."""
    board = StatusBoard()
    Announcer(given, board, verbs=verbs).announce(meta(given))
    return {topic[1:]: json.loads(status.payload or b"null") for topic, status in board.take().items()}


def templates(message: dict[str, Any]) -> dict[str, dict[str, Any]]:
    components: dict[str, dict[str, Any]] = message["components"]
    return components


def test_one_message_describes_the_device_and_all_it_has(tmp_path: Path) -> None:
    message = announced(tmp_path, settings(tmp_path))[TOPIC]
    assert message["device"]["name"] == "Cửa chính"
    assert message["device"]["suggested_area"] == "Tầng 1"
    assert message["device"]["identifiers"] == ["edgecam_ward-12_entrance"]
    platforms = {name: about["platform"] for name, about in templates(message).items()}
    assert platforms == {
        "motion": "binary_sensor",
        "event": "event",
        "picture": "image",
        "problem": "binary_sensor",
        "temperature": "sensor",
        "disk_free": "sensor",
        "outbox": "sensor",
        "armed": "binary_sensor",
        "clock": "binary_sensor",
    }
    ids = [about["unique_id"] for about in templates(message).values()]
    assert len(set(ids)) == len(ids)
    assert message["availability"][0]["topic"] == "edgecam/v1/ward-12/entrance/state"


def test_buttons_and_the_live_picture_are_there_only_when_their_commands_are(tmp_path: Path) -> None:
    message = announced(tmp_path, settings(tmp_path), verbs=("snapshot", "live", "restart"))[TOPIC]
    made = templates(message)
    assert made["live_picture"]["topic"] == "edgecam/v1/ward-12/entrance/live"
    assert made["restart"]["device_class"] == "restart"
    environment = jinja2.Environment()
    presses = []
    for moment in (1.5, 2.5):
        text = environment.from_string(made["live"]["command_template"]).render(
            now=lambda moment=moment: type("Now", (), {"timestamp": staticmethod(lambda: moment)})
        )
        presses.append(json.loads(text))
    assert presses[0]["id"] != presses[1]["id"], "two presses are two commands"
    assert presses[0]["args"]["ttl_s"] == 60


def test_commands_are_offered_only_where_home_assistant_may_give_them(tmp_path: Path) -> None:
    def buttons(**commands: Any) -> set[str]:
        message = announced(tmp_path, settings(tmp_path, commands=commands), None)
        return {name for name, about in templates(message[TOPIC]).items() if "command_topic" in about}

    assert buttons() == {"snapshot", "live", "restart", "arming", "sensitivity"}
    assert buttons(allow=["snapshot", "clip.*"]) == {"snapshot"}
    assert buttons(enabled=False) == set()
    assert buttons(operator_keys=["desk:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="]) == set()


def test_switch_and_slider_make_commands_that_the_node_takes(tmp_path: Path) -> None:
    made = templates(announced(tmp_path, settings(tmp_path), verbs=tuple(VERBS))[TOPIC])
    environment = jinja2.Environment()
    wanted: tuple[tuple[str, object, dict[str, object]], ...] = (
        ("arming", "ON", {"armed": True}),
        ("arming", "OFF", {"armed": False}),
        ("sensitivity", 73.0, {"sensitivity": 73}),
    )
    for name, value, args in wanted:
        now = type("Now", (), {"timestamp": staticmethod(lambda: 1.5)})
        text = environment.from_string(made[name]["command_template"]).render(now=lambda now=now: now, value=value)
        request = Request.model_validate_json(text)
        assert made[name]["command_topic"].endswith("/cmd/set")
        assert SetArgs.model_validate(request.args).model_dump(exclude_none=True) == args
    state = environment.from_string(made["arming"]["value_template"])
    assert [state.render(value_json={"armed": armed}) for armed in (True, False)] == ["ON", "OFF"]
    state = environment.from_string(made["sensitivity"]["value_template"])
    assert state.render(value_json={"config": reported_settings(settings(tmp_path))}) == "50"


def update_entity(update_id: str, verbs: tuple[str, ...] = tuple(VERBS)) -> dict[str, Any]:
    topics = Topics("edgecam", "ward-12", "entrance")
    return components_of(meta(Settings()), topics, "edgecam", 30, verbs, update_id).get("update", {})


def test_home_assistant_shows_an_update_and_its_install_is_a_command_the_node_takes() -> None:
    made = update_entity("ha-update-1.4.0-2")
    assert made["command_topic"].endswith("/cmd/update")
    request = Request.model_validate_json(made["payload_install"])
    assert (request.id, request.client) == ("ha-update-1.4.0-2", "home-assistant")
    UpdateArgs.model_validate(request.args)
    said = UpdateReported(
        installed="1.3.2",
        latest="1.4.0",
        notes="Sửa lỗi",
        possible=True,
        phase="fetching",
        percent=40,
        tries=2,
        time="2026-11-22T03:15:07.000Z",
    )
    shown = jinja2.Environment().from_string(made["value_template"]).render(value_json=said.model_dump())
    assert json.loads(shown) == {
        "installed_version": "1.3.2",
        "latest_version": "1.4.0",
        "release_summary": "Sửa lỗi",
        "in_progress": True,
        "update_percentage": 40,
    }


def test_a_node_that_cannot_be_updated_offers_no_update() -> None:
    assert update_entity("") == {}
    assert update_entity("ha-update-1.4.0-2", verbs=("restart",)) == {}


def test_where_home_assistant_may_not_arm_it_only_sees(tmp_path: Path) -> None:
    for verbs in ((), ("set",), ("arm", "disarm")):
        made = templates(announced(tmp_path, settings(tmp_path), verbs=verbs)[TOPIC])
        assert "command_topic" not in made["armed"]
        assert "platform" in made["armed"]
        assert set(made.get("arming", {})) <= {"platform"}


def test_a_renamed_node_leaves_nothing_behind(tmp_path: Path) -> None:
    announced(tmp_path, settings(tmp_path))
    renamed = settings(tmp_path, node={"id": "back-door"})
    messages = announced(tmp_path, renamed)
    assert messages[TOPIC] is None, "an empty retained message removes the device"
    assert messages["homeassistant/device/ward-12_back-door/config"]["device"]["identifiers"] == [
        "edgecam_ward-12_back-door"
    ]
    starts = 1
    while TOPIC in announced(tmp_path, renamed):
        starts += 1
    assert starts == STALE_STARTS, "cleared at some more starts, should the broker have been away"


def test_a_component_that_is_gone_is_named_with_its_platform_alone(tmp_path: Path) -> None:
    announced(tmp_path, settings(tmp_path), verbs=("restart",))
    message = announced(tmp_path, settings(tmp_path))[TOPIC]
    assert templates(message)["restart"] == {"platform": "button"}


def test_discovery_that_was_turned_off_clears_what_was_announced(tmp_path: Path) -> None:
    announced(tmp_path, settings(tmp_path))
    assert announced(tmp_path, settings(tmp_path, mqtt={"discovery": False})) == {TOPIC: None}
    assert Announcer(settings(tmp_path, mqtt={"discovery": False}), StatusBoard()).listens_to is None


@pytest.mark.parametrize("damage", [b"", b"{", b'{"topic": 7}', b"\xff\xfe"])
def test_a_damaged_memory_costs_nothing_but_the_memory(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(damage)
    assert set(announced(tmp_path, settings(tmp_path))) == {TOPIC}


def test_planning_twice_changes_nothing(tmp_path: Path) -> None:
    about = meta(settings(tmp_path))
    first, remembered = plan(Announced(), about, prefix="homeassistant", root="edgecam", health_s=30)
    again, still = plan(remembered, about, prefix="homeassistant", root="edgecam", health_s=30)
    assert (first, remembered) == (again, still)


class Card:
    """An event entity as Home Assistant keeps it: the attributes are what the last accepted message said."""

    def __init__(self) -> None:
        topics = Topics("edgecam", "ward-12", "entrance")
        made = components_of(meta(Settings()), topics, "edgecam", 30, ())["event"]
        self._types = made["event_types"]
        self._template = jinja2.Environment().from_string(made["value_template"])
        self.attributes: dict[str, Any] = {}
        self.fired: list[str] = []

    def take(
        self, seq: int, number: int, phase: str, *, rev: int = 1, kind: str = "motion", late: bool = False
    ) -> None:
        message = {
            "epoch": EPOCH,
            "seq": seq,
            "late": late,
            "id": ulid(number),
            "rev": rev,
            "phase": phase,
            "kind": kind,
            "score": 0.8,
            "zones": [],
            "start": "2026-11-22T03:15:07.250Z",
            "end": None,
            "clip": None,
        }
        text = self._template.render(value_json=message, this=self).strip()
        if not text:  # as Home Assistant: an empty payload is ignored
            return
        self.attributes = json.loads(text)
        assert self.attributes["event_type"] in self._types
        self.fired.append(self.attributes["event_type"])


def test_an_event_fires_once_at_its_start_and_once_at_its_end() -> None:
    card = Card()
    card.take(1, 1, "start")
    card.take(3, 1, "update", rev=2)
    card.take(5, 1, "end", rev=3)
    assert card.fired == ["motion", "ended"]


def test_late_and_repeated_messages_fire_nothing() -> None:
    card = Card()
    card.take(1, 1, "start", late=True)
    card.take(2, 1, "end", rev=2, late=True)
    assert card.fired == []
    card.take(3, 2, "start")
    card.take(4, 2, "end", rev=2)
    card.take(3, 2, "start")
    card.take(4, 2, "end", rev=2)
    card.take(1, 1, "start")
    assert card.fired == ["motion", "ended"], "at least once, in order: what comes again is older"


def test_events_that_overlap_do_not_fire_each_other_again() -> None:
    card = Card()
    card.take(1, 1, "start")
    card.take(2, 2, "end", kind="camera-lost")
    card.take(3, 1, "end", rev=2)
    assert card.fired == ["motion", "camera-lost", "ended"]


def test_an_event_whose_start_was_joined_with_its_update_still_fires() -> None:
    card = Card()
    card.take(1, 1, "update", rev=2)
    card.take(2, 1, "update", rev=3)
    assert card.fired == ["motion"]


def test_every_template_reads_fields_that_messages_have(tmp_path: Path) -> None:
    given = settings(tmp_path)
    health = JSON_PAYLOADS["health"].model_json_schema()["properties"]
    for name, about in templates(announced(tmp_path, given)[TOPIC]).items():
        if about.get("state_topic", "").endswith("/health"):
            field = about["value_template"].split("value_json.")[1].split()[0].split(".")[0]
            assert field in health, name


@requires_mosquitto
def test_a_node_announces_itself_and_again_when_home_assistant_starts(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker").start()
    subscriber = Subscriber(broker.port)
    given = settings(tmp_path / "node", mqtt={"host": "127.0.0.1", "port": broker.port})
    stepped = SteppedNode(given, FakeSource(BUILT_IN["empty"], width=320, height=240, fps=10))
    try:
        stepped.run(1)

        def came(times: int) -> bool:
            stepped.node.link.step(0.01)
            subscriber.wait_a_moment()
            return len(subscriber.of(TOPIC)) >= times

        until(lambda: came(1), "the announcement")
        before = len(subscriber.of(TOPIC))
        birth = Subscriber(broker.port, "nothing")
        birth.say("homeassistant/status", b"online")
        until(lambda: came(before + 1), "the announcement again")
        birth.say("homeassistant/status", b"offline")
        birth.close()
        assert len(subscriber.of(TOPIC)[-1].payload) < 8000
        stepped.stop()
        subscriber.close()
    finally:
        broker.kill()


def test_a_birth_before_anything_was_announced_is_harmless(tmp_path: Path) -> None:
    Announcer(settings(tmp_path), StatusBoard()).hear(Incoming("homeassistant/status", b"online", False))
