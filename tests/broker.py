"""A real mosquitto on a free loopback port, and small fake brokers for what a real one does not do."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from contract import complaints
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.cli.local_broker import free_port as free_port  # also for the tests that import it from here

DEADLINE_S = 60.0
"""Generous: it is only ever waited out by a test that fails."""

AT_ONCE = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
"""For setsockopt: small packets do not wait until those before them are acknowledged, 40 ms each time."""

CAUGHT_UP = "edgecam/caught-up"

requires_mosquitto = pytest.mark.skipif(
    shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None,
    reason="mosquitto is not installed (apt install mosquitto)",
)


class Mosquitto:
    """start(), kill() (as kill -9), stop(), start() again on the same port. Ended by its pid, never by name."""

    def __init__(
        self,
        directory: Path,
        *,
        users: dict[str, str] | None = None,
        acl: Sequence[str] = (),
        extra: Sequence[str] = (),
        certificate: tuple[Path, Path] | None = None,
        port: int | None = None,
    ) -> None:
        """users: name -> password (none: anonymous). acl: lines of an acl_file. extra: lines of the configuration.

        certificate: (certificate, key) in PEM for a TLS listener.
        """
        self.port = port or free_port()
        self.pid = 0
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._binary = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        directory.mkdir(parents=True, exist_ok=True)
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'false' if users else 'true'}",
            f"user {os.environ.get('USER') or 'root'}" if os.geteuid() == 0 else "",
            # Persistence is what a restart of the broker would need; the node must not need it.
            "persistence false",
            # As docs/MQTT.md asks of a broker: else a second small answer is held back for up to 40 ms.
            "set_tcp_nodelay true",
            *extra,
        ]
        if users:
            passwords = directory / "passwords"
            passwords.write_text("".join(f"{name}:{word}\n" for name, word in users.items()))
            passwords.chmod(0o600)
            subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True, capture_output=True)
            lines.append(f"password_file {passwords}")
        if acl:
            (directory / "acl").write_text("\n".join(acl) + "\n")
            (directory / "acl").chmod(0o600)
            lines.append(f"acl_file {directory / 'acl'}")
        if certificate is not None:
            lines += [f"certfile {certificate[0]}", f"keyfile {certificate[1]}"]
        self._config = directory / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")

    def start(self) -> Mosquitto:
        with (self._directory / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "-c", str(self._config), "-v"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.pid = self._process.pid
        until(self._answers, f"mosquitto on port {self.port}: {self.log()}")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"mosquitto ended: {self.log()}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def kill(self) -> None:
        """As kill -9: nothing is written, nothing is said."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """It keeps its connections and answers nothing any more; kill() still ends it."""
        os.kill(self.pid, signal.SIGSTOP)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(DEADLINE_S)

    def log(self) -> str:
        return (self._directory / "mosquitto.log").read_text(errors="replace")


def until(condition: Callable[[], bool], what: str) -> None:
    """Try condition until it holds; fail after a generous deadline. Between tries the CPU is others'."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        time.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Received:
    topic: str
    payload: bytes
    retained: bool
    qos: int
    properties: dict[str, str]
    content_type: str
    at_s: float


class Subscriber:
    """A dashboard stand-in: everything below a filter, in order. Has paho's own thread."""

    def __init__(
        self,
        port: int,
        topic: str = "#",
        *,
        user: tuple[str, str] | None = None,
        session: str | None = None,
        qos: int = 1,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        checked: bool = True,
    ) -> None:
        """session: client id of a persistent session (it keeps messages while away).

        checked: each message is held against its published schema, and close() fails on what is not as it should be.
        """
        self.messages: list[Received] = []
        self.complaints: list[str] = []
        self._caught_up = b""
        self._is_checked = checked
        self._topic = topic
        self._qos = qos
        self._ready = threading.Event()
        self._news = threading.Condition()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=session or "", protocol=version)
        if user:
            self._client.username_pw_set(*user)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.on_socket_open = self._on_socket_open
        self._client.reconnect_delay_set(1, 1)
        if version == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 3600 if session else 0
            self._client.connect("127.0.0.1", port, clean_start=session is None, properties=properties)
        else:
            self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(DEADLINE_S), "the subscription was not answered"

    def _on_socket_open(self, _client: paho.Client, _data: object, sock: object) -> None:
        assert isinstance(sock, socket.socket)
        sock.setsockopt(*AT_ONCE)

    def _on_connect(self, client: paho.Client, *_: object) -> None:
        client.subscribe(self._topic, qos=self._qos)

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        received = Received(
            message.topic,
            bytes(message.payload),
            message.retain,
            message.qos,
            dict(getattr(message.properties, "UserProperty", ())),
            getattr(message.properties, "ContentType", ""),
            time.monotonic(),
        )
        with self._news:
            if message.topic == CAUGHT_UP:
                self._caught_up = received.payload
            else:
                self.messages.append(received)
            self._news.notify_all()
        if message.topic != CAUGHT_UP and self._is_checked:
            self._check(received)

    def _check(self, message: Received) -> None:
        try:
            self.complaints += complaints(message.topic, message.payload, message.properties, message.content_type)
        except ValueError as error:  # not JSON, or not as the model wants it
            self.complaints.append(f"{message.topic}: {error}")

    def of(self, ending: str, *, live: bool = False) -> list[Received]:
        """Messages whose topic ends in ending; live: without those that were retained before we came."""
        with self._news:
            return [m for m in self.messages if m.topic.endswith(ending) and not (live and m.retained)]

    def catch_up(self) -> None:
        """Until all is here that the broker acknowledged to anybody before; the filter must let CAUGHT_UP through."""
        word = secrets.token_bytes(8)

        def is_connected() -> bool:
            self.wait_a_moment()
            return self._client.is_connected()

        until(is_connected, "a subscriber is connected")
        self.say(CAUGHT_UP, word)

        def came() -> bool:
            self.wait_a_moment()
            return self._caught_up == word

        until(came, "a subscriber catches up")

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(DEADLINE_S)

    def take_all(self) -> list[Received]:
        """Everything that came since the last call, which is then forgotten."""
        with self._news:
            messages, self.messages = self.messages, []
            return messages

    def wait_a_moment(self) -> None:
        """Until something new came, at most 20 ms: for use in a loop with a condition."""
        with self._news:
            self._news.wait(0.02)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        assert not self.complaints, self.complaints[:3]


@contextlib.contextmanager
def fake_broker(serve: Callable[[socket.socket, int], None]) -> Iterator[int]:
    """A loopback listener; serve(connection, number of the connection from 0) talks, each in a thread. The port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def talk(connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(DEADLINE_S)
            serve(connection, number)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(*AT_ONCE)
                connections.append(connection)
                threads.append(threading.Thread(target=talk, args=(connection, len(threads)), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield port
    finally:
        # shutdown() wakes an accept() that waits; close() alone does not.
        for each in (listener, *connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (acceptor, *threads):
            thread.join(DEADLINE_S)


def read_packet(sock: socket.socket) -> bytes:
    """One whole MQTT packet; b"" when the other side closed."""
    head = sock.recv(1)
    length, shift = 0, 0
    while head:
        byte = sock.recv(1)
        if not byte:
            return b""
        head += byte
        length |= (byte[0] & 127) << shift
        shift += 7
        if not byte[0] & 128:
            break
    body = b""
    while len(body) < length:
        piece = sock.recv(length - len(body))
        if not piece:
            return b""
        body += piece
    return head + body


def packet_id(publish: bytes) -> bytes:
    """The packet id of a QoS 1 PUBLISH."""
    start = 2
    while publish[start - 1] & 0x80:
        start += 1
    topic_bytes = int.from_bytes(publish[start : start + 2], "big")
    return publish[start + 2 + topic_bytes : start + 4 + topic_bytes]
