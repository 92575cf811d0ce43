"""The way to the broker: a name becomes a TCP or TLS socket, or one reason why not. Touches the network only."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl

from agent.errors import LinkError
from agent.settings import MqttSettings

CONNECT_TIMEOUT_S = 5.0


class Dial:
    """One attempt to reach the broker, stepped; nothing blocks but the name look-up in the constructor.

    (glibc's resolver has no asynchronous form without a thread; with dead name servers it gives up after
    about 10 s, or as `options timeout:` in resolv.conf says.) Raises LinkError from the constructor and step().
    """

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
        self.where = f"{settings.host}:{settings.port}"
        self._context = _tls_context(settings, self.where) if settings.tls else None
        self._sock: socket.socket | None = None
        self._connected = False
        self._failure: OSError = TimeoutError()
        self._addresses = self._look_up()
        self._next_address()

    def _look_up(self) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
        settings = self._settings
        try:
            found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise _dns_error(self.where, error) from error
        return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]

    def _next_address(self) -> None:
        """Begin with the next address of the name; LinkError with the last failure when there is none left."""
        while self._addresses:
            family, address = self._addresses.pop(0)
            try:
                self._sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:  # a kernel without IPv6
                self._failure = error
                continue
            self._sock.setblocking(False)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = self._sock.connect_ex(address)
            if code in (0, errno.EINPROGRESS):
                return
            self._failed(OSError(code, os.strerror(code)))
        raise _tcp_error(self.where, self._failure) from self._failure

    def _failed(self, failure: OSError) -> None:
        self._failure = failure
        self.close()

    def step(self, wait_s: float, *also: int) -> socket.socket | None:
        """The socket once it is ready (the caller owns it then), else None after at most wait_s.

        also: descriptors whose readability ends the wait early.
        """
        sock = self._sock
        assert sock is not None, "step() after close() or after the socket was handed over"
        if not self._connected:
            _, writable, _ = select.select(also, [sock], [], wait_s)
            if not writable:
                return None
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._failed(OSError(code, os.strerror(code)))
                self._next_address()
                return None
            self._connected = True
            if self._context is not None:
                self._sock = self._context.wrap_socket(
                    sock, server_hostname=self._settings.host, do_handshake_on_connect=False
                )
        if isinstance(self._sock, ssl.SSLSocket) and not self._handshake(self._sock, wait_s, also):
            return None
        ready, self._sock = self._sock, None
        return ready

    def _handshake(self, sock: ssl.SSLSocket, wait_s: float, also: tuple[int, ...]) -> bool:
        for again in (True, False):
            try:
                sock.do_handshake()
                return True
            except ssl.SSLWantReadError:
                to_read: list[ssl.SSLSocket] = [sock]
            except ssl.SSLWantWriteError:
                to_read = []
            except (OSError, ValueError) as error:  # ValueError: a certificate that cannot be parsed
                self.close()
                raise _tls_error(self.where, error) from error
            if again:
                wanted: list[int] = [each.fileno() for each in to_read]
                select.select([*wanted, *also], [] if wanted else [sock], [], wait_s)
        return False

    def skip(self) -> bool:
        """Leave an address that does not answer for the next one of the name; False when there is none."""
        if self._connected or not self._addresses:
            return False
        self._failed(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        self._next_address()
        return True

    def give_up(self) -> LinkError:
        """The reason to show when the time is over."""
        step = "TLS handshake" if self._connected else "TCP connection"
        self.close()
        return LinkError(
            "connect",
            self.where,
            f"no answer within {CONNECT_TIMEOUT_S:.0f} s ({step})",
            hint="is mqtt.host right, is the broker up, does a firewall drop it?",
        )

    def close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()


def _tls_context(settings: MqttSettings, where: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise LinkError(
            "read", f"mqtt.ca_file {settings.ca_file}", error, hint="a PEM file with the CA's certificate"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 is strict about RFC 5280 by default and so refuses most certificates that installers make by
    # hand (no authority key identifier); a node should reach the same brokers on Debian 12 and 13.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _dns_error(where: str, error: Exception) -> LinkError:
    code = error.errno if isinstance(error, socket.gaierror) else None
    if code == socket.EAI_AGAIN:
        return LinkError("connect", where, "no name server answers", hint="is the board's network up?")
    if code == socket.EAI_NONAME or code is None:
        return LinkError("connect", where, "there is no such host", hint="check mqtt.host")
    return LinkError("connect", where, error, hint="check mqtt.host and the board's name servers")


def _tcp_error(where: str, error: OSError) -> LinkError:
    hint = {
        errno.ECONNREFUSED: "nothing listens there: is the broker running, is mqtt.port right?",
        errno.ENETUNREACH: "the board has no network: cable, Wi-Fi, default route?",
        errno.EHOSTUNREACH: "no route to it: cable, Wi-Fi, is mqtt.host right?",
        errno.ETIMEDOUT: "is mqtt.host right, is the broker up, does a firewall drop it?",
    }.get(error.errno or 0, "check mqtt.host and mqtt.port")
    return LinkError("connect", where, error, hint=hint)


_CERTIFICATE_WORDS = {  # OpenSSL X509_V_ERR_*
    9: ("the broker's certificate is not valid yet", "is this board's clock right?"),
    10: ("the broker's certificate has expired", "renew it; if it is not so, this board's clock is wrong"),
    18: ("the broker's certificate is self-signed", "give it (or its CA) as mqtt.ca_file"),
    19: ("the broker's certificate comes from an unknown CA", "give that CA's certificate as mqtt.ca_file"),
    20: ("the broker's certificate comes from an unknown CA", "give that CA's certificate as mqtt.ca_file"),
    21: ("the broker's certificate comes from an unknown CA", "give that CA's certificate as mqtt.ca_file"),
    62: ("the broker's certificate is for another host", "mqtt.host must be a name that stands in it"),
    64: ("the broker's certificate is for another address", "mqtt.host must be a name that stands in it"),
}


def _tls_error(where: str, error: Exception) -> LinkError:
    if isinstance(error, ssl.SSLCertVerificationError):
        cause, hint = _CERTIFICATE_WORDS.get(
            error.verify_code, (f"the broker's certificate was not accepted: {error.verify_message}", "")
        )
        return LinkError("connect", where, cause, hint=hint)
    reason = getattr(error, "reason", None) or ""
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return LinkError(
            "connect", where, "the broker does not speak TLS on this port", hint="8883 is usual; or mqtt.tls = false"
        )
    if "PROTOCOL" in reason:
        return LinkError("connect", where, "the broker speaks no TLS 1.2 or newer", hint="update the broker")
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return LinkError(
            "connect", where, "it closed the connection in the TLS handshake", hint="is this a TLS port?"
        )
    return LinkError("connect", where, error, hint="TLS handshake failed")
