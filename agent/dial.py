"""The way to the broker: a name becomes a TCP or TLS socket, or one reason why not. Touches the network only."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl

from agent.certificates import Certificate
from agent.clock import Clock
from agent.errors import LinkError
from agent.settings import MqttSettings
from agent.tls import TlsIdentity, TlsSocket, tls_error

CONNECT_TIMEOUT_S = 5.0


class Dial:
    """One attempt to reach the broker, stepped; nothing blocks but the name look-up in the constructor.

    (glibc's resolver has no asynchronous form without a thread; with dead name servers it gives up after
    about 10 s, or as `options timeout:` in resolv.conf says.) Raises LinkError from the constructor and step().
    """

    def __init__(self, settings: MqttSettings, clock: Clock | None = None) -> None:
        """clock: for the words about a certificate whose dates do not fit."""
        self._settings = settings
        self._clock = clock
        self.where = f"{settings.host}:{settings.port}"
        self._tls = TlsIdentity(settings) if settings.tls else None
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
            if self._tls is not None:
                self._sock = self._tls.wrap(sock, self._settings.host)
        if isinstance(self._sock, TlsSocket) and not self._handshake(self._sock, wait_s, also):
            return None
        ready, self._sock = self._sock, None
        return ready

    def _handshake(self, sock: TlsSocket, wait_s: float, also: tuple[int, ...]) -> bool:
        for again in (True, False):
            try:
                sock.do_handshake()
                assert self._tls is not None
                self._tls.note_peer(sock)
                sock.read_verdict(wait_s)
                return True
            except ssl.SSLWantReadError:
                to_read: list[TlsSocket] = [sock]
            except ssl.SSLWantWriteError:
                to_read = []
            except (OSError, ValueError) as error:  # ValueError: a certificate that cannot be parsed
                self.close()
                raise tls_error(self.where, error, self._clock) from error
            if again:
                wanted: list[int] = [each.fileno() for each in to_read]
                select.select([*wanted, *also], [] if wanted else [sock], [], wait_s)
        return False

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """Whose dates matter: the CA's, our own, and the broker's once the handshake is done."""
        return self._tls.certificates if self._tls is not None else ()

    @property
    def warning(self) -> str:
        """What is wrong with the files of TLS but hinders nothing; empty for nothing."""
        return self._tls.warning if self._tls is not None else ""

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
