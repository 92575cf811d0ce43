"""One connection to an MQTT broker around one paho client, from the dialling to its end. Touches the network only.

paho runs without its thread, by its external-loop API, inside step(). A connection is used once and thrown away:
what paho would keep and send again by itself dies with it, so the outbox is the only memory. Callbacks only note
what happened. Used by one thread.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.certificates import Certificate
from agent.clock import Clock
from agent.dial import CONNECT_TIMEOUT_S, Dial
from agent.errors import LinkError
from agent.model import NS_PER_S
from agent.settings import MqttSettings
from agent.tls import TlsSocket, tls_error

log = logging.getLogger(__name__)

Protocol = Literal["5", "3.1.1"]

WINDOW = 20
"""Messages in flight at most; fewer where the broker says so (Receive Maximum)."""

ACK_TIMEOUT_S = 30.0
"""A broker that answers pings but acknowledges nothing for so long is left."""

NO_SUBSCRIBER = 0x10
UNSUPPORTED_VERSION = 0x84
KEEPALIVE_TIMEOUT = 0x8D
TAKEN_OVER = 0x8E

# What paho lets through when a broker talks nonsense; older 2.x parse packets without a net of their own.
_NONSENSE = (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error, MQTTException)


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says for us when the connection breaks; delay_s: it waits so long (MQTT 5 only)."""

    topic: str
    payload: bytes
    delay_s: float


@dataclass(frozen=True, slots=True)
class PubAck:
    """A broker's answer to one publish. code: MQTT 5 reason code; below 0x80 is a success."""

    mid: int
    code: int
    words: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message of a subscription. properties: MQTT 5 user properties; the last two are of MQTT 5 too."""

    topic: str
    payload: bytes
    retained: bool
    properties: dict[str, str] = field(default_factory=dict)
    response_topic: str = ""
    correlation: bytes = b""


def new_properties(packet_type: int) -> Properties:
    """Empty MQTT 5 properties (paho's class has no types)."""
    return Properties(packet_type)  # type: ignore[no-untyped-call]


class _Client(paho.Client):
    """paho on a socket that we connected ourselves: without blocking, and with errors that say what failed.

    The overridden method is private; if a paho of the future names it otherwise, it would connect by itself.
    """

    prepared: socket.socket

    def _create_socket(self) -> Any:
        return self.prepared


class Connection:
    """Dial, CONNECT, publish and acknowledgements, until `failure` says why it is over.

    ready: the broker accepted us. window: messages in flight at most. max_packet_bytes: the broker's limit,
    None when it names none. The constructor raises LinkError (a name that does not resolve).
    """

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        clock: Clock,
        *,
        protocol: Protocol = "5",
        will: Will | None = None,
        is_probe: bool = False,
        max_incoming_bytes: int | None = None,
    ) -> None:
        """is_probe: a CONNECT so bare that a broker of MQTT 3.1.1 can read it up to the version, and say no.

        max_incoming_bytes: a broker of MQTT 5 keeps larger packets from us.
        """
        self.protocol: Protocol = protocol
        self.where = f"{settings.host}:{settings.port}"
        self.ready = False
        self.failure: LinkError | None = None
        self.refusal: int | None = None
        """Reason code of a CONNACK that refused, as of MQTT 5."""
        self.closed_by: int | None = None
        """Reason code of the broker's DISCONNECT."""
        self.closed_silently = False
        """The broker closed the socket without a word."""
        self.is_unanswered = False
        """It took our CONNECT and said nothing."""
        self.window = WINDOW
        self.max_packet_bytes: int | None = None
        self.can_retain = True
        self.certificates: tuple[Certificate, ...] = ()
        """Under TLS, those whose dates matter."""
        self.tls_warning = ""
        self._max_incoming_bytes = None if is_probe else max_incoming_bytes
        self._settings = settings
        self._clock = clock
        self._in_flight: set[int] = set()
        self._acks: list[PubAck] = []
        self._messages: list[Incoming] = []
        self._asked: dict[int, tuple[str, ...]] = {}
        self._denied_filters: list[tuple[str, str]] = []
        self._deadline_ns = clock.boot_ns() + round(CONNECT_TIMEOUT_S * NS_PER_S)
        self._progress_ns = clock.boot_ns()
        self._client = self._build_client(client_id, None if is_probe else will, with_user=not is_probe)
        self._dial: Dial | None = Dial(settings, clock)

    def _build_client(self, client_id: str, will: Will | None, *, with_user: bool) -> _Client:
        is_v5 = self.protocol == "5"
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
            clean_session=None if is_v5 else True,
            # Else paho dials again from inside a callback when 3.1.1 is refused.
            reconnect_on_failure=False,
        )
        # We count the window; paho's own count would only queue.
        client.max_inflight_messages_set(0)
        settings = self._settings
        if settings.username and with_user:
            client.username_pw_set(settings.username, settings.password.get_secret_value() or None)
        if will is not None:
            properties = None
            if is_v5 and will.delay_s:
                properties = new_properties(PacketTypes.WILLMESSAGE)
                properties.WillDelayInterval = round(will.delay_s)
            client.will_set(will.topic, will.payload, qos=1, retain=True, properties=properties)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        return client

    # -- what paho tells

    def _on_connect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.value >= 0x80:
            self.refusal = reason.value
            self._fail(_refusal(self.where, reason, properties))
            return
        self.window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
        self.max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        self.can_retain = getattr(properties, "RetainAvailable", 1) == 1
        if getattr(properties, "MaximumQoS", 2) == 0:
            self._fail(
                LinkError("connect", self.where, "this broker confirms nothing (QoS 0 only)", hint="use another")
            )
            return
        self.ready = True

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.closed_by = reason.value
            # paho before 2.2 does not read a reason that no properties follow, and calls it 0.
            self.closed_silently = reason.value == 0
            self._fail(_farewell(self.where, reason, properties))
        elif reason.value == KEEPALIVE_TIMEOUT:
            self._fail(LinkError("talk to", self.where, "it fell silent", hint="the network, or a broker that hangs"))

    def _on_publish(
        self, _client: paho.Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        if mid in self._in_flight:
            self._in_flight.discard(mid)
            self._progress_ns = self._clock.boot_ns()
            self._acks.append(PubAck(mid, reason.value, str(reason)))

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        about = message.properties
        self._messages.append(
            Incoming(
                message.topic,
                bytes(message.payload),
                message.retain,
                dict(getattr(about, "UserProperty", ())),
                str(getattr(about, "ResponseTopic", "")),
                bytes(getattr(about, "CorrelationData", b"")),
            )
        )

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        for topic, reason in zip(self._asked.pop(mid, ()), reasons, strict=False):
            if reason.value >= 0x80:
                self._denied_filters.append((topic, str(reason).lower()))

    # -- what the owner calls

    @property
    def room(self) -> int:
        """How many more messages may be sent now."""
        return self.window - len(self._in_flight) if self.ready and self.failure is None else 0

    def step(self, wait_s: float, *also: int, also_write: Sequence[int] = ()) -> bool:
        """One bounded piece of work, waiting at most wait_s for something to do; whether anything happened.

        also: descriptors whose readability ends the wait early, also_write: whose writability. Never raises; see
        `failure` afterwards.
        """
        if self.failure is not None:
            return False
        try:
            if self._dial is not None:
                return self._step_dial(self._dial, wait_s, also)
            return self._step_mqtt(wait_s, also, also_write)
        except LinkError as error:
            self._fail(error)
        return True

    def _step_dial(self, dial: Dial, wait_s: float, also: Sequence[int]) -> bool:
        sock = dial.step(wait_s, *also)
        if sock is None:
            if self._clock.boot_ns() >= self._deadline_ns:
                if not dial.skip():
                    raise dial.give_up()
                self._deadline_ns = self._clock.boot_ns() + round(CONNECT_TIMEOUT_S * NS_PER_S)
            return False
        self._dial = None
        self.certificates, self.tls_warning = dial.certificates, dial.warning
        self._client.prepared = sock
        self._deadline_ns = self._clock.boot_ns() + round(CONNECT_TIMEOUT_S * NS_PER_S)
        # paho notices a dead peer after twice its keepalive; three quarters make that 1.5 times ours.
        keepalive_s = max(1, self._settings.keepalive_s * 3 // 4)
        if self.protocol == "5":
            # No session expiry: 0 is what its absence means.
            properties = None
            if self._max_incoming_bytes is not None:
                properties = new_properties(PacketTypes.CONNECT)
                properties.MaximumPacketSize = self._max_incoming_bytes
            code = self._client.connect(
                self._settings.host, self._settings.port, keepalive_s, clean_start=True, properties=properties
            )
        else:
            code = self._client.connect(self._settings.host, self._settings.port, keepalive_s)
        self._check(code)
        return True

    def waits_for(self) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """Descriptors to read and to write, for an owner of several connections; True: do not wait."""
        sock = self._client.socket()
        if self._dial is not None or sock is None or self.failure is not None:
            return (), (), False
        fd = (sock.fileno(),)
        return fd, fd if self._client.want_write() else (), isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    @property
    def is_backed_up(self) -> bool:
        """Bytes wait for the socket: the network takes less than it is given."""
        return bool(self._client.want_write())

    def _step_mqtt(self, wait_s: float, also: Sequence[int], also_write: Sequence[int]) -> bool:
        client = self._client
        sock = client.socket()
        fd = sock.fileno() if sock is not None else -1
        if fd < 0:
            raise self._lost()
        to_write = [fd, *also_write] if client.want_write() else [*also_write]
        # Decrypted bytes that wait inside the TLS layer do not make the socket readable.
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        readable, writable, _ = select.select([fd, *also], to_write, [], 0.0 if pending else wait_s)
        can_read = pending or fd in readable
        try:
            if can_read:
                self._check(client.loop_read())
            if fd in writable:
                self._progress_ns = self._clock.boot_ns()
                self._check(client.loop_write())
            self._check(client.loop_misc())
        except _NONSENSE as error:
            raise LinkError(
                "talk to", self.where, f"not understood: {error}", hint="is this an MQTT broker?"
            ) from error
        if client.socket() is None:
            raise self._lost()
        self._check_patience()
        return can_read or bool(writable)

    def _check_patience(self) -> None:
        now_ns = self._clock.boot_ns()
        if not self.ready and now_ns >= self._deadline_ns:
            self.is_unanswered = True
            raise LinkError(
                "connect",
                self.where,
                f"it took the connection but did not answer within {CONNECT_TIMEOUT_S:.0f} s",
                hint="is this an MQTT broker? A TLS port needs mqtt.tls = true",
            )
        if self._in_flight and now_ns - self._progress_ns > ACK_TIMEOUT_S * NS_PER_S:
            raise LinkError(
                "publish to", self.where, f"nothing acknowledged for {ACK_TIMEOUT_S:.0f} s", hint="is the broker ill?"
            )

    def _check(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS and self.failure is None:
            raise self._lost(code)

    def _lost(self, code: MQTTErrorCode = MQTTErrorCode.MQTT_ERR_CONN_LOST) -> LinkError:
        if self.failure is not None:
            return self.failure
        sock = getattr(self._client, "prepared", None)
        if isinstance(sock, TlsSocket) and sock.refusal is not None:
            return tls_error(self.where, sock.refusal, self._clock)
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            return LinkError("talk to", self.where, "not understood", hint="is this an MQTT broker?")
        if not self.ready:
            self.closed_silently = self.is_unanswered = True
            if isinstance(sock, TlsSocket):
                return LinkError(
                    "connect",
                    self.where,
                    "it closed the connection after the TLS handshake",
                    hint="does it accept this node's certificate, or want one (mqtt.cert_file)? does it speak MQTT?",
                )
            return LinkError(
                "connect",
                self.where,
                "it closed the connection without an answer",
                hint="a TLS port needs mqtt.tls = true; is this an MQTT broker?",
            )
        self.closed_silently = True
        return LinkError("talk to", self.where, "the connection broke", hint="broker restarted, or the network")

    def _fail(self, failure: LinkError) -> None:
        if self.failure is None:
            self.failure = failure
        self.ready = False

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, properties: Properties | None = None
    ) -> int:
        """Hand one message to the broker's socket; its id, which take_acks() names when it is answered.

        Only while there is room (QoS 1). properties: ignored under MQTT 3.1.1.
        """
        if not self._in_flight:
            self._progress_ns = self._clock.boot_ns()
        try:
            info = self._client.publish(
                topic, payload, qos, retain and self.can_retain, properties if self.protocol == "5" else None
            )
        except _NONSENSE as error:
            self._fail(LinkError("publish", topic, error))
            return 0
        if qos:
            self._in_flight.add(info.mid)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._fail(self._lost(info.rc))
        return info.mid

    def packet_bytes(self, topic: str, payload: bytes, properties: Properties | None = None) -> int:
        """Size of the PUBLISH packet as max_packet_bytes counts it."""
        packed = len(properties.pack()) if properties is not None else 1  # type: ignore[no-untyped-call]
        rest = 2 + len(topic.encode()) + 2 + packed + len(payload)
        return 1 + (1 if rest < 128 else 2 if rest < 16_384 else 3 if rest < 2_097_152 else 4) + rest

    def subscribe(self, *filters: str, qos: int = 1, as_published: bool = False) -> None:
        """Ask for topics; messages come by take_messages(), filters the broker denies by take_denied().

        as_published: `retained` then says how a message was sent, also when it comes at once (MQTT 5 only).
        """
        if self.protocol == "5":
            options = SubscribeOptions(qos=qos, retainAsPublished=as_published)
            code, mid = self._client.subscribe([(each, options) for each in filters])
        else:
            code, mid = self._client.subscribe([(each, qos) for each in filters])
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            self._fail(self._lost(code))
        else:
            self._asked[mid] = filters

    def take_acks(self) -> list[PubAck]:
        acks, self._acks = self._acks, []
        return acks

    def take_messages(self) -> list[Incoming]:
        messages, self._messages = self._messages, []
        return messages

    def take_denied(self) -> list[tuple[str, str]]:
        """Filters that the broker refused to subscribe us to, with its words."""
        denied, self._denied_filters = self._denied_filters, []
        return denied

    def close(self, *, politely: bool = True) -> None:
        """End it; politely: with a DISCONNECT, so that the will is not sent."""
        if self._dial is not None:
            self._dial.close()
            self._dial = None
        self._client.on_disconnect = None
        sock = self._client.socket()
        if politely and self.ready and sock is not None:
            try:
                self._client.disconnect()
            except _NONSENSE as error:
                log.debug("DISCONNECT to %s: %s", self.where, error)
        self._fail(LinkError("talk to", self.where, "closed"))
        sock = self._client.socket()
        if sock is not None:
            # paho has no public way to drop a socket without a word; its own __del__ does only this.
            sock.close()


_REFUSALS = {  # MQTT 5 reason codes of CONNACK -> cause, hint
    0x84: ("it does not speak this version of MQTT", ""),
    0x85: ("it does not accept our client id", "the id is site/node of the settings"),
    0x86: ("wrong user name or password", "check mqtt.username and the credential camera-agent.mqtt-password"),
    0x87: (
        "not authorised",
        "wrong user name or password, or none given, or the broker's access list forbids this node",
    ),
    0x88: ("the broker says it is unavailable", "it may be starting; see its log"),
    0x89: ("the broker says it is busy", ""),
    0x8A: ("this node is banned there", "see the broker's ban list"),
    0x95: ("our CONNECT is too large for it", "raise the broker's maximum packet size"),
    0x97: ("the broker's quota is exceeded", ""),
    0x9A: ("it does not allow retained messages", "enable them: state and meta need it"),
    0x9B: ("it does not support QoS 1", "use another broker"),
    0x9C: ("it says: use another server", "change mqtt.host"),
    0x9D: ("it says: the server has moved", "change mqtt.host"),
    0x9F: ("we connect too often for it", ""),
}


def _refusal(where: str, reason: ReasonCode, properties: Properties | None) -> LinkError:
    cause, hint = _REFUSALS.get(reason.value, (str(reason).lower(), ""))
    said = getattr(properties, "ReasonString", "")
    words = f"refused: {cause} (code {reason.value}{f', {said}' if said else ''})"
    return LinkError("connect", where, words, hint=hint)


def _farewell(where: str, reason: ReasonCode, properties: Properties | None) -> LinkError:
    said = getattr(properties, "ReasonString", "")
    words = (
        f"the broker ended the connection: {str(reason).lower()} (code {reason.value}{f', {said}' if said else ''})"
    )
    hint = {
        TAKEN_OVER: "another client uses the same id: are two nodes configured alike?",
        0x95: "a message is above its maximum packet size",
        0x8B: "the broker is shutting down",
        0x87: "the broker's access list forbids something",
    }.get(reason.value, "")
    return LinkError("talk to", where, words, hint=hint)
