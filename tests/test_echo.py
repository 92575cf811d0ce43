"""The self-test under MQTT 3.1.1: nothing is believed of a broker that cannot say no until an echo came back."""

from __future__ import annotations

from pathlib import Path

from broker import Mosquitto, Subscriber, requires_mosquitto
from link_fixtures import BASE, Desk
from paho.mqtt.enums import MQTTProtocolVersion
from pydantic import SecretStr

from agent.access import node_lines, watcher_lines
from agent.echo import AGAIN_S, PATIENCE_S, Echo
from agent.model import NS_PER_S

USER = "ward-12/entrance"


def in_3_1_1(desk: Desk) -> Desk:
    """As if the broker had refused version 5 (mosquitto speaks both)."""
    desk.link._reconnect.attempt = "3.1.1"
    return desk


@requires_mosquitto
def test_a_denied_message_under_3_1_1_is_noticed_and_nothing_is_lost(tmp_path: Path) -> None:
    # The list forgets `event`: mosquitto answers such a publish with a PUBACK, and drops it.
    rules = [f"user {USER}", f"topic read {BASE}/echo", f"topic write {BASE}/state"]
    broker = Mosquitto(tmp_path, users={USER: "x"}, acl=rules).start()
    try:
        desk = in_3_1_1(Desk(broker.port, username=USER, password=SecretStr("x")))
        desk.outbox.event(1)
        desk.step_until(lambda: desk.link.status.connected)
        desk.clock.move(PATIENCE_S)
        desk.step_until(lambda: "self-test failed" in desk.link.status.trouble)
        assert f"{BASE}/echo" in desk.link.status.trouble
        assert not desk.acks, "the row is not taken for delivered"
        desk.link.close(0.1)
    finally:
        broker.kill()


@requires_mosquitto
def test_with_an_access_list_that_is_right_events_flow_under_3_1_1(tmp_path: Path) -> None:
    rules = [*node_lines(*USER.split("/")), *watcher_lines("desk")]
    broker = Mosquitto(tmp_path, users={USER: "x", "desk": "y"}, acl=rules).start()
    subscriber = Subscriber(broker.port, user=("desk", "y"), version=MQTTProtocolVersion.MQTTv311)
    try:
        desk = in_3_1_1(Desk(broker.port, username=USER, password=SecretStr("x")))
        desk.outbox.event(1)
        desk.step_until(desk.drained)
        assert desk.link.status.protocol == "3.1.1"
        assert desk.link.status.trouble == ""
        while not subscriber.of("/event"):
            subscriber.wait_a_moment()
        desk.link.close(1)
    finally:
        subscriber.close()
        broker.kill()


def test_an_echo_that_did_not_come_is_asked_for_again_after_a_minute() -> None:
    echo = Echo("b/echo", "session-1", is_needed=True)
    assert echo.wants_to_speak(0)
    assert not echo.wants_to_speak(1)
    assert not echo.wants_to_speak(round(PATIENCE_S * NS_PER_S))
    assert echo.trouble
    assert echo.wants_to_speak(round(AGAIN_S * NS_PER_S))
    assert echo.hear("b/echo", b"another session")
    assert not echo.is_heard, "what an earlier connection said does not count"
    assert not echo.hear("b/cmd/ping", b"session-1")
    assert echo.hear("b/echo", b"session-1")
    assert echo.is_heard
    assert echo.trouble == ""


def test_under_version_5_it_is_said_once_and_nothing_waits_for_it() -> None:
    echo = Echo("b/echo", "s", is_needed=False)
    assert echo.is_heard
    assert [echo.wants_to_speak(each * NS_PER_S) for each in (0, 1, 600)] == [True, False, False]
    assert echo.trouble == ""
