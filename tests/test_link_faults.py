"""What goes wrong between a node and its broker: each has a plain reason, none loses a message, none needs a hand."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from broker import (
    DEADLINE_S,
    Mosquitto,
    Subscriber,
    fake_broker,
    free_port,
    packet_id,
    read_packet,
    requires_mosquitto,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from link_fixtures import BASE, Desk
from paho.mqtt.enums import MQTTProtocolVersion
from pydantic import SecretStr

from agent.backoff import Backoff
from agent.dial import Dial
from agent.handoffs import Status
from agent.settings import MqttSettings

CONNACK_5 = b"\x20\x03\x00\x00\x00"
"""Accepted, no properties."""


Start = Callable[..., Mosquitto]


def version_of(connect: bytes) -> int:
    """The protocol level of a CONNECT packet, whose length takes one or two bytes."""
    return connect[connect.index(b"\x00\x04MQTT") + 6]


def trouble(desk: Desk, *words: str) -> str:
    """Step until status.trouble has all the words; the whole line."""
    desk.step_until(lambda: all(word in desk.link.status.trouble for word in words), f"trouble with {words}")
    line = desk.link.status.trouble
    assert "\n" not in line
    return line


# -- it cannot be reached


def test_an_absent_broker_is_named_with_its_address_and_what_to_do() -> None:
    desk = Desk(port := free_port())
    line = trouble(desk, f"127.0.0.1:{port}")
    assert "refused" in line
    assert "is the broker running" in line
    desk.link.close(0.1)


def test_a_host_that_does_not_exist_is_said() -> None:
    desk = Desk(1883, host="no-such-broker.invalid")
    assert "check mqtt.host" in trouble(desk, "no-such-broker.invalid:1883") or "network" in desk.link.status.trouble
    desk.link.close(0.1)


def test_a_broker_that_never_answers_is_given_up_after_five_seconds() -> None:
    with fake_broker(lambda sock, _: read_until_closed(sock)) as port:
        desk = Desk(port)
        desk.step()
        desk.step()
        desk.step()
        desk.clock.move(5)
        trouble(desk, "did not answer within 5 s", "mqtt.tls")
        desk.link.close(0.1)


def read_until_closed(sock: socket.socket) -> None:
    while read_packet(sock):
        pass


def test_tries_are_spaced_at_least_a_second_and_ever_wider() -> None:
    desk = Desk(free_port())
    desk.clock.stop()
    desk.step_until(lambda: desk.link.status.trouble)
    waits = []
    for _ in range(9):
        before_ns = desk.clock.boot_ns()
        next_ns = desk.link._reconnect.next_try_ns
        waits.append((next_ns - before_ns) / 1e9)
        desk.clock.move(waits[-1] + 0.001)
        desk.step_until(lambda next_ns=next_ns: desk.link._reconnect.next_try_ns != next_ns)  # type: ignore[misc]
    assert all(0.99 < wait <= 60 for wait in waits)
    assert waits == sorted(waits, key=lambda wait: round(wait))
    assert waits[-1] > 29
    desk.link.close(0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_back_off_stays_between_one_second_and_a_minute(draws: list[float]) -> None:
    values = iter(draws)
    backoff = Backoff(lambda: next(values))
    delays = [backoff.next_s() for _ in draws]
    assert all(1 <= delay <= 60 for delay in delays)
    backoff.reset()
    assert Backoff(lambda: 1.0).next_s() == 2.0


def test_a_step_waits_no_longer_than_it_was_told_while_nobody_answers() -> None:
    # A listener whose backlog is full takes no connection: the SYN stays unanswered, as behind a firewall.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        desk = Desk(port)
        before_s = time.monotonic()
        for _ in range(10):
            desk.step(0.01)
        # The kernel would try for minutes.
        assert time.monotonic() - before_s < DEADLINE_S / 2, "ten steps of 10 ms each do not wait for a connection"
        desk.clock.move(6)
        trouble(desk, "no answer within 5 s", "firewall")
        desk.link.close(0.1)
        for filler in fillers:
            filler.close()


def test_an_address_that_does_not_answer_gives_way_to_the_next_one_of_the_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(dead.getsockname())
        dial = Dial(MqttSettings(host="127.0.0.1", port=dead.getsockname()[1]))
        dial._addresses.append((socket.AF_INET, listener.getsockname()))  # as a name with two addresses gives
        assert dial.step(0.01) is None
        assert dial.skip()
        sock = dial.step(5)
        assert sock is not None
        assert sock.getpeername() == listener.getsockname()
        assert not dial.skip()
        for each in (sock, *fillers):
            each.close()


# -- it refuses us


@requires_mosquitto
def test_a_wrong_password_is_said_and_appears_nowhere(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    broker = start(users={"ward-12/entrance": "richtig"})
    desk = Desk(broker.port, username="ward-12/entrance", password=SecretStr("canary-falsch"))
    line = trouble(desk, "refused", "password")
    assert "canary" not in line + caplog.text + repr(desk.link.status)
    desk.link.close(0.1)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x86, "wrong user name or password"),
        (0x85, "client id"),
        (0x89, "busy"),
        (0x8A, "banned"),
        (0x9A, "retained"),
    ],
)
def test_each_refusal_is_put_in_words(code: int, words: str) -> None:
    def refuse(sock: socket.socket, _: int) -> None:
        read_packet(sock)
        sock.sendall(bytes([0x20, 0x03, 0x00, code, 0x00]))

    with fake_broker(refuse) as port:
        desk = Desk(port)
        assert f"code {code}" in trouble(desk, words)
        desk.link.close(0.1)


# -- older brokers


@pytest.mark.parametrize(
    "refusal", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", b""], ids=["0x01", "0x84", "hang-up"]
)
def test_a_broker_that_refuses_version_5_is_spoken_to_in_3_1_1(refusal: bytes) -> None:
    versions: list[int] = []
    published: list[bytes] = []

    def serve(sock: socket.socket, _: int) -> None:
        versions.append(version_of(read_packet(sock)))
        if versions[-1] == 5:
            sock.sendall(refusal)
            return
        sock.sendall(b"\x20\x02\x00\x00")
        while packet := read_packet(sock):
            if packet[0] & 0xF0 == 0x30:
                published.append(packet)
                sock.sendall(b"\x40\x02" + packet_id(packet))
                if f"{BASE}/echo".encode() in packet:
                    sock.sendall(packet)
            elif packet[0] == 0x82:
                sock.sendall(b"\x90\x03" + packet[2:4] + b"\x01")

    with fake_broker(serve) as port:
        desk = Desk(port)
        desk.outbox.event(1, thumb=b"jpeg")
        while desk.outbox.owed:
            desk.step()
            desk.pass_time(0.5)
        assert desk.link.status.protocol == "3.1.1"
        assert "3.1.1" in desk.link.status.warning
        assert desk.link.status.trouble == ""
        assert versions[-1] == 4
        assert versions.count(5) <= 4
        assert any(packet.endswith(b"jpeg") for packet in published)
        desk.link.close(0.5)


def test_version_5_is_tried_again_after_a_connection_in_3_1_1() -> None:
    versions: list[int] = []

    def serve(sock: socket.socket, number: int) -> None:
        versions.append(version_of(read_packet(sock)))
        if number == 0:
            sock.sendall(b"\x20\x02\x00\x01")
        else:
            sock.sendall(b"\x20\x02\x00\x00" if versions[-1] == 4 else CONNACK_5)
            read_packet(sock)

    with fake_broker(serve) as port:
        desk = Desk(port)
        while len(versions) < 3:
            desk.step()
            desk.pass_time(0.5)
        assert versions[:3] == [5, 4, 5]
        desk.link.close(0.1)


def test_amqtt_is_spoken_to_in_3_1_1() -> None:
    pytest.importorskip("amqtt", reason="the embedded broker is an extra")
    port = free_port()
    broker = subprocess.Popen(
        [sys.executable, "-m", "agent.cli.embedded_broker", str(port)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        desk = Desk(port)
        end_s = time.monotonic() + DEADLINE_S
        while not desk.link.status.connected:
            assert time.monotonic() < end_s, desk.link.status
            desk.step()
            # To MQTT 5 it says nothing, for as long as one waits.
            if desk.link._reconnect.attempt != "3.1.1" or not desk.is_waiting:
                desk.clock.move(0.1)
        subscriber = Subscriber(port, version=MQTTProtocolVersion.MQTTv311)
        desk.outbox.event(1, thumb=b"\xff\xd8 picture")
        desk.statuses.put("motion", Status(b"ON"))
        desk.step_until(desk.drained)
        desk.step_until(lambda: subscriber.of("/thumb") and subscriber.of("/motion"))
        assert subscriber.of("/thumb")[0].payload == b"\xff\xd8 picture"
        assert desk.link.status.protocol == "3.1.1"
        subscriber.close()
        desk.link.close(0.5)
    finally:
        broker.send_signal(signal.SIGTERM)
        broker.wait(DEADLINE_S)


# -- it misbehaves


def test_no_more_is_in_flight_than_the_broker_allows() -> None:
    most = 0

    def serve(sock: socket.socket, _: int) -> None:
        nonlocal most
        read_packet(sock)
        sock.sendall(b"\x20\x06\x00\x00\x03\x21" + struct.pack("!H", 3))  # Receive Maximum 3
        waiting: list[bytes] = []
        while True:
            if select.select([sock], [], [], 0.02)[0]:
                packet = read_packet(sock)
                if not packet:
                    return
                if packet[0] & 0xF6 == 0x32:
                    waiting.append(packet_id(packet))
                    most = max(most, len(waiting))
            else:
                for each in waiting:
                    sock.sendall(b"\x40\x02" + each)
                waiting.clear()

    with fake_broker(serve) as port:
        desk = Desk(port)
        for number in range(1, 21):
            desk.outbox.event(number)
        desk.step_until(desk.drained)
        assert most == 3
        desk.link.close(0.1)


def test_a_broker_that_acknowledges_nothing_is_left() -> None:
    def serve(sock: socket.socket, _: int) -> None:
        read_packet(sock)
        sock.sendall(CONNACK_5)
        read_until_closed(sock)

    with fake_broker(serve) as port:
        desk = Desk(port)
        desk.connect()
        desk.clock.move(31)
        trouble(desk, "nothing acknowledged for 30 s")
        desk.link.close(0.1)


@pytest.mark.parametrize(("code", "words"), [(0x97, "quota exceeded"), (0x80, "unspecified error")])
def test_what_a_broker_refuses_for_now_is_kept_said_and_taken_later(code: int, words: str) -> None:
    refuses = True

    def serve(sock: socket.socket, _: int) -> None:
        read_packet(sock)
        sock.sendall(CONNACK_5)
        while packet := read_packet(sock):
            if packet[0] & 0xF6 == 0x32:
                bad = refuses and f"{BASE}/event".encode() in packet and b"/last" not in packet
                sock.sendall(b"\x40\x03" + packet_id(packet) + bytes([code if bad else 0]))

    with fake_broker(serve) as port:
        desk = Desk(port)
        desk.outbox.event(1)
        desk.outbox.event(2)
        trouble(desk, f"{BASE}/event: {words}, kept and tried again")
        for _ in range(5):
            desk.let_pass(10)
            desk.step()
        assert set(desk.outbox.owed) == {1, 2}
        assert not [ack for ack in desk.acks if ack.poison]
        refuses = False
        desk.let_pass(60)
        desk.step_until(desk.drained)
        assert desk.delivered == [1, 2]
        assert desk.link.status.trouble == ""
        desk.link.close(0.1)


@requires_mosquitto
def test_a_half_open_connection_is_noticed_within_one_and_a_half_keepalives(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start()
    desk = Desk(broker.port, keepalive_s=8)
    monkeypatch.setattr("paho.mqtt.client.time_func", lambda: desk.clock.boot_ns() / 1e9)
    desk.connect()
    desk.let_pass(0)
    desk.clock.stop()
    before_ns = desk.clock.boot_ns()
    broker.freeze()
    while desk.link.status.connected:
        desk.clock.move(0.1)
        desk.step(0.001)
    assert "fell silent" in desk.link.status.trouble
    assert 8 <= (desk.clock.boot_ns() - before_ns) / 1e9 <= 8 * 1.5 + 0.2
    desk.link.close(0.1)


def test_two_nodes_with_one_id_do_not_fight_for_ever() -> None:
    connects = 0

    def take_over(sock: socket.socket, _: int) -> None:
        nonlocal connects
        read_packet(sock)
        connects += 1
        sock.sendall(CONNACK_5)
        sock.sendall(b"\x40\x02" + packet_id(read_packet(sock)))
        sock.sendall(b"\xe0\x02\x8e\x00")  # DISCONNECT: session taken over
        read_until_closed(sock)

    with fake_broker(take_over) as port:
        desk = Desk(port)
        while "duplicate-id" not in desk.link.status.trouble:
            desk.step()
            if not desk.link.status.connected:
                desk.pass_time(0.1)
            assert connects < 5
        assert "ward-12/entrance" in desk.link.status.trouble
        assert connects == 3
        assert (desk.link._reconnect.next_try_ns - desk.clock.boot_ns()) / 1e9 > 60
        desk.link.close(0.1)


@requires_mosquitto
def test_mosquitto_shows_two_nodes_with_one_id(start: Start) -> None:
    broker = start()
    ours, theirs = Desk(broker.port), Desk(broker.port)
    end_s = time.monotonic() + DEADLINE_S
    while not any("duplicate-id" in desk.link.status.trouble for desk in (ours, theirs)):
        for desk in (ours, theirs):
            desk.step(0.005)
            if not desk.link.status.connected:
                desk.pass_time(0.5)
        assert time.monotonic() < end_s, (ours.link.status, theirs.link.status)
    ours.link.close(0.1)
    theirs.link.close(0.1)


def test_no_picture_leaves_before_the_broker_has_taken_its_event() -> None:
    unanswered: list[tuple[socket.socket, bytes]] = []
    pictures: list[bytes] = []

    def serve(sock: socket.socket, _: int) -> None:
        read_packet(sock)
        sock.sendall(CONNACK_5)
        while packet := read_packet(sock):
            if f"{BASE}/event".encode() in packet and b"/last" not in packet:
                unanswered.append((sock, packet_id(packet)))
                continue
            pictures.extend([packet] if f"{BASE}/thumb".encode() in packet and b"/last" not in packet else [])
            sock.sendall(b"\x40\x02" + packet_id(packet))

    with fake_broker(serve) as port:
        desk = Desk(port)
        desk.outbox.event(1, thumb=b"jpeg")
        desk.step_until(lambda: unanswered, "the event")
        for _ in range(10):  # longer than anything gives way
            desk.clock.move(1)
            desk.step(0.005)
        assert not pictures
        sock, mid = unanswered[0]
        sock.sendall(b"\x40\x02" + mid)
        desk.step_until(lambda: not desk.outbox.owed, "both")
        assert len(pictures) == 1
        desk.link.close(0.1)


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=60, deadline=None)
def test_nonsense_from_a_broker_ends_the_connection_and_nothing_else(noise: bytes) -> None:
    def serve(sock: socket.socket, _: int) -> None:
        read_packet(sock)
        sock.sendall(CONNACK_5 + noise)

    with fake_broker(serve) as port:
        desk = Desk(port)
        desk.outbox.event(1)
        desk.step_until(lambda: desk.link.status.trouble)
        assert desk.outbox.owed or desk.delivered
        desk.link.close(0.1)


def test_the_bell_may_be_rung_after_the_link_is_closed() -> None:
    desk = Desk(free_port())
    desk.link.close(0.1)
    fd = os.open(os.devnull, os.O_RDONLY)  # likely gets the number the bell had
    desk.link.bell.ring()
    desk.statuses.put("motion", Status(b"ON"))
    os.close(fd)


@requires_mosquitto
def test_closing_keeps_to_its_budget_when_the_broker_hangs(start: Start) -> None:
    broker = start()
    desk = Desk(broker.port)
    desk.connect()
    broker.freeze()
    desk.outbox.event(1)
    before_s = time.monotonic()
    desk.link.close(0.5)
    assert time.monotonic() - before_s < DEADLINE_S / 4, "a broker that answers nothing is left only after 30 s"
    assert desk.outbox.owed


# -- TLS


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and NAME.pem / NAME.key for good (127.0.0.1, localhost), other (another host), old (expired)."""
    home = tmp_path_factory.mktemp("certificates")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        "req",
        "-x509",
        *curve,
        "-keyout",
        f"{home}/ca.key",
        "-out",
        f"{home}/ca.pem",
        "-days",
        "30",
        "-subj",
        "/CN=ca",
    )
    for name, names, days in (
        ("good", "IP:127.0.0.1,DNS:localhost", "30"),
        ("other", "DNS:broker.example", "30"),
        ("old", "IP:127.0.0.1", "-1"),
    ):
        (home / "ext").write_text(f"subjectAltName={names}\n")
        openssl("req", *curve, "-keyout", f"{home}/{name}.key", "-out", f"{home}/{name}.csr", "-subj", f"/CN={name}")
        sign = ("-CA", f"{home}/ca.pem", "-CAkey", f"{home}/ca.key", "-CAcreateserial", "-extfile", f"{home}/ext")
        openssl("x509", "-req", "-in", f"{home}/{name}.csr", *sign, "-out", f"{home}/{name}.pem", "-days", days)
    return home


@requires_mosquitto
def test_tls_with_a_known_ca_works(start: Start, certificates: Path) -> None:
    broker = start(certificate=(certificates / "good.pem", certificates / "good.key"))
    desk = Desk(broker.port, tls=True, ca_file=certificates / "ca.pem", require_subscriber=False)
    desk.outbox.event(1, thumb=b"x" * 300_000)
    desk.step_until(desk.drained)
    desk.link.close(1)


@requires_mosquitto
@pytest.mark.parametrize(
    ("certificate", "ca", "words"),
    [
        ("good", None, "unknown CA"),
        ("other", "ca.pem", "another address"),
        ("old", "ca.pem", "expired"),
        ("good", "good.key", "mqtt.ca_file"),
        ("good", "absent.pem", "mqtt.ca_file"),
    ],
)
def test_a_broker_with_the_wrong_certificate_is_refused_with_the_reason(
    start: Start, certificates: Path, certificate: str, ca: str | None, words: str
) -> None:
    broker = start(certificate=(certificates / f"{certificate}.pem", certificates / f"{certificate}.key"))
    desk = Desk(broker.port, tls=True, ca_file=certificates / ca if ca else None)
    trouble(desk, words)
    assert not desk.link.status.connected
    desk.link.close(0.1)


@requires_mosquitto
def test_tls_against_a_plain_port_and_plain_against_a_tls_port_are_told_apart(
    start: Start, certificates: Path
) -> None:
    plain = start()
    secret = start(certificate=(certificates / "good.pem", certificates / "good.key"))
    desk = Desk(plain.port, tls=True, ca_file=certificates / "ca.pem")
    trouble(desk, "TLS")
    desk.link.close(0.1)
    desk = Desk(secret.port)
    trouble(desk, "mqtt.tls = true")
    desk.link.close(0.1)


@requires_mosquitto
def test_status_topics_that_are_denied_are_said_and_hold_up_nothing(start: Start, tmp_path: Path) -> None:
    broker = start(
        users={"ward-12/entrance": "x"},
        acl=["user ward-12/entrance", f"topic write {BASE}/event", f"topic write {BASE}/state"],
    )
    desk = Desk(broker.port, username="ward-12/entrance", password=SecretStr("x"), require_subscriber=False)
    desk.statuses.put("motion", Status(b"ON"))
    desk.outbox.event(1)
    desk.step_until(desk.drained)
    trouble(desk, f"{BASE}/motion: not authorized")
    desk.link.close(0.5)
