"""paho's traps, each shown on the library itself, and that the link does not fall into it."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from broker import DEADLINE_S, Mosquitto, Subscriber, fake_broker, packet_id, read_packet, requires_mosquitto, until
from link_fixtures import BASE, NODE, Desk
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.handoffs import AckBox
from agent.link import Link
from agent.model import Ack

pytestmark = pytest.mark.broker
RECEIVE_MAXIMUM = 3
CONNACK_WITH_MAXIMUM = b"\x20\x06\x00\x00\x03\x21" + struct.pack("!H", RECEIVE_MAXIMUM)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    mosquitto = Mosquitto(tmp_path / "broker").start()
    yield mosquitto
    mosquitto.kill()


@pytest.fixture
def client() -> Iterator[paho.Client]:
    """A paho client as programs usually run it: with its own thread."""
    found = paho.Client(CallbackAPIVersion.VERSION2, client_id="usual", protocol=MQTTProtocolVersion.MQTTv5)
    found.reconnect_delay_set(1, 1)
    yield found
    found.loop_stop()


def run(client: paho.Client, port: int) -> None:
    client.connect("127.0.0.1", port)
    client.loop_start()
    until(client.is_connected, "paho connects")


@requires_mosquitto
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_in_a_callback_of_paho_ends_its_thread_and_it_still_looks_connected(
    broker: Mosquitto, client: paho.Client
) -> None:
    def stumble(*_: object) -> None:
        raise ValueError("a bug")

    client.on_publish = stumble
    run(client, broker.port)
    thread = client._thread
    assert thread is not None
    client.publish("somewhere", b"1", qos=1)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert client.is_connected()
    assert client.publish("somewhere", b"2", qos=1).rc == paho.MQTT_ERR_SUCCESS


@requires_mosquitto
def test_a_bug_in_what_the_link_calls_comes_out_of_its_step_and_there_is_no_thread_of_paho(broker: Mosquitto) -> None:
    def stumble(_: object) -> None:
        raise ValueError("a bug")

    desk = Desk(broker.port)
    desk.link.close(0)
    desk.link = Link(
        *(desk.settings, NODE, desk.open_outbox, desk.box, desk.statuses, desk.clock),
        listen={"cmd/+": stumble},
        will_delay_s=0,
    )
    operator = Subscriber(broker.port, "nothing")
    desk.connect()
    threads = {thread.name for thread in threading.enumerate()}
    assert sum("paho" in name for name in threads) == 1, "the operator's"

    def told() -> bool:
        operator.say(f"{BASE}/cmd/ping", b"{}")
        desk.step()
        return False

    with pytest.raises(ValueError, match="a bug"):
        until(told, "the command comes")
    desk.link.close(0)
    operator.close()


def is_free(mutex: Any) -> bool:
    """Whether another thread could take mutex now."""
    found: list[bool] = []

    def attempt() -> None:
        found.append(mutex.acquire(blocking=False))
        if found[0]:
            mutex.release()

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join(DEADLINE_S)
    return found[0]


@requires_mosquitto
def test_paho_calls_on_publish_while_it_holds_the_mutex_that_publish_needs(
    broker: Mosquitto, client: paho.Client
) -> None:
    free: list[bool] = []
    client.on_publish = lambda *_: free.append(is_free(client._out_message_mutex))
    run(client, broker.port)
    client.publish("somewhere", b"1", qos=1)
    until(lambda: bool(free), "it was published")
    assert free == [False]


@requires_mosquitto
def test_the_link_tells_nobody_while_paho_holds_a_mutex(broker: Mosquitto) -> None:
    free: list[bool] = []

    class Watched(AckBox):
        def put(self, ack: Ack) -> None:
            connection = desk.link._connection
            assert connection is not None
            free.append(is_free(connection._client._out_message_mutex))
            super().put(ack)

    desk = Desk(broker.port)
    desk.box = Watched()
    desk.link.close(0)
    desk.link = desk.new_link()
    subscriber = Subscriber(broker.port)
    desk.outbox.event(1, thumb=b"jpeg")
    desk.step_until(desk.drained)
    assert free == [True, True]
    desk.link.close(0)
    subscriber.close()


class Greedy:
    """A broker with a Receive Maximum. most: unanswered at once, on each connection.

    Its first connections, mute of them, it ends without an answer, when enough came and nothing more does.
    """

    def __init__(self, mute: int, enough: int) -> None:
        self.most: list[int] = []
        self._mute = mute
        self._enough = enough

    def __call__(self, sock: socket.socket, number: int) -> None:
        read_packet(sock)
        sock.sendall(CONNACK_WITH_MAXIMUM)
        self.most.append(0)
        waiting: list[bytes] = []
        while True:
            if select.select([sock], [], [], 0.1)[0]:
                packet = read_packet(sock)
                if not packet:
                    return
                if packet[0] & 0xF6 == 0x32:
                    waiting.append(packet_id(packet))
                    self.most[-1] = max(self.most[-1], len(waiting))
            elif number >= self._mute:
                for each in waiting:
                    sock.sendall(b"\x40\x02" + each)
                waiting.clear()
            elif len(waiting) >= self._enough:
                return


def test_paho_ignores_the_receive_maximum_and_most_of_all_when_it_connects_again(client: paho.Client) -> None:
    greedy = Greedy(mute=2, enough=15)
    with fake_broker(greedy) as port:
        for number in range(15):
            client.publish("somewhere", bytes([number]), qos=1)
        run(client, port)
        until(lambda: len(greedy.most) >= 3, "it connects again")
        client.disconnect()
    assert greedy.most[1] == 15
    assert RECEIVE_MAXIMUM < 15


def test_the_link_keeps_to_the_receive_maximum_on_each_connection() -> None:
    greedy = Greedy(mute=2, enough=1)
    with fake_broker(greedy) as port:
        desk = Desk(port)
        for number in range(1, 16):
            desk.outbox.event(number)

        def drained() -> bool:
            desk.pass_time(0.5)
            return desk.drained()

        desk.step_until(drained)
        desk.link.close(0)
    assert len(greedy.most) >= 3
    assert max(greedy.most) <= RECEIVE_MAXIMUM


@requires_mosquitto
def test_what_paho_queues_dies_with_the_program_and_what_the_outbox_holds_does_not(broker: Mosquitto) -> None:
    subscriber = Subscriber(broker.port, checked=False)
    before, after = (
        paho.Client(CallbackAPIVersion.VERSION2, client_id="usual", protocol=MQTTProtocolVersion.MQTTv5)
        for _ in range(2)
    )
    assert before.publish("usual/1", b"owed", qos=1).rc == paho.MQTT_ERR_NO_CONN, "queued, says its documentation"
    del before  # the program is killed
    run(after, broker.port)
    after.publish("usual/2", b"new", qos=1).wait_for_publish(DEADLINE_S)
    until(lambda: bool(subscriber.of("usual/2")), "the new one comes")
    assert not subscriber.of("usual/1")
    after.disconnect()
    after.loop_stop()

    desk = Desk(broker.port)
    desk.outbox.event(1)
    desk.link.close(0)
    desk.link = desk.new_link()
    desk.step_until(desk.drained)
    desk.step_until(lambda: subscriber.of("/event"))
    desk.link.close(0)
    subscriber.close()
