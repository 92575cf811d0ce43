"""TLS towards the broker: who we trust, who we are, and each refusal in words. Reads the files of the settings."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import stat
from pathlib import Path

from agent.certificates import Certificate, certificate, utc_words
from agent.clock import Clock
from agent.errors import LinkError
from agent.settings import MqttSettings

VERDICT_WAIT_S = 0.2


class TlsSocket(ssl.SSLSocket):
    """An SSLSocket that remembers why a read failed: paho only says that the connection is gone."""

    refusal: ssl.SSLError | None = None

    def read_verdict(self, wait_s: float) -> None:
        """Under TLS 1.3 a broker judges our certificate after the handshake: wait a moment for what it says.

        Most brokers send something at once, session tickets or a refusal; if we spoke first, the refusal would be
        lost in the reset of a closed connection. Raises what a handshake raises. wait_s: at most.
        """
        if self.version() != "TLSv1.3":
            return
        if select.select([self], [], [], min(wait_s, VERDICT_WAIT_S))[0]:
            with contextlib.suppress(ssl.SSLWantReadError):
                if self.recv(1) == b"":
                    raise ssl.SSLEOFError("closed")

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.refusal = error
            raise


class TlsIdentity:
    """The CA, and our certificate and key where there are some; read anew for each connection, so renewals count.

    certificates: those whose dates matter. warning: one line, or empty. Raises LinkError.
    """

    def __init__(self, settings: MqttSettings) -> None:
        self.warning = ""
        self._context = _context(settings)
        found = []
        if settings.ca_file is not None:
            found += [
                certificate("the CA's certificate", der) for der in self._context.get_ca_certs(binary_form=True)
            ]
        if settings.cert_file is not None:
            found.append(certificate("this node's certificate", _der(settings.cert_file)))
            key_file = settings.key_file or settings.cert_file
            if key_file.stat().st_mode & stat.S_IROTH:
                self.warning = f"mqtt.key_file {key_file} can be read by everybody on this board: chmod 600"
        self._own = [each for each in found if each is not None]
        self._peer: list[Certificate] = []

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        return (*self._own, *self._peer)

    def wrap(self, sock: socket.socket, host: str) -> TlsSocket:
        """The socket before its handshake. The name in the broker's certificate must be host."""
        wrapped = self._context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        assert isinstance(wrapped, TlsSocket)
        return wrapped

    def note_peer(self, sock: TlsSocket) -> None:
        """After the handshake: the broker's dates."""
        der = sock.getpeercert(binary_form=True)
        found = certificate("the broker's certificate", der) if der else None
        self._peer = [found] if found else []


def _context(settings: MqttSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise LinkError(
            "read", f"mqtt.ca_file {settings.ca_file}", error, hint="a PEM file with the CA's certificate"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 is strict about RFC 5280 by default and so refuses most certificates that installers make by
    # hand (no authority key identifier); and it takes a broker's own certificate or an intermediate as ca_file,
    # which 3.11 does not. A node should reach the same brokers on Debian 12 and 13.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.sslsocket_class = TlsSocket
    if settings.cert_file is not None:
        _load_identity(context, settings.cert_file, settings.key_file)
    return context


def _load_identity(context: ssl.SSLContext, cert_file: Path, key_file: Path | None) -> None:
    for name, path in (("cert_file", cert_file), ("key_file", key_file)):
        if path is not None:
            try:
                path.read_bytes()
            except OSError as error:
                raise LinkError(
                    "read", f"mqtt.{name} {path}", error, hint="a PEM file, for the agent's user"
                ) from error
    try:
        # The password is asked for on the terminal otherwise.
        context.load_cert_chain(cert_file, key_file, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            cause, hint = "the key does not belong to the certificate", "mqtt.key_file is the key of another one"
        else:
            cause, hint = "not a certificate and its key", "PEM files; the key unencrypted (systemd can encrypt it)"
        raise LinkError("read", f"mqtt.cert_file {cert_file}", cause, hint=hint) from error


def _der(cert_file: Path) -> bytes:
    """The first certificate of a PEM file that load_cert_chain took."""
    text = cert_file.read_text(encoding="ascii", errors="replace")
    head, foot = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(f"{head}{text.partition(head)[2].partition(foot)[0]}{foot}\n")


_NOT_YET_VALID, _EXPIRED = 9, 10

_CERTIFICATE_WORDS = {  # OpenSSL X509_V_ERR_*
    7: ("the broker's certificate bears a signature that is not its CA's", "give the right CA as mqtt.ca_file"),
    18: ("the broker's certificate is self-signed", "give it (or its CA) as mqtt.ca_file"),
    19: ("the broker's certificate comes from an unknown CA", "give that CA's certificate as mqtt.ca_file"),
    20: (
        "the broker's certificate comes from an unknown CA",
        "give that CA's certificate as mqtt.ca_file; or the broker does not send its intermediate certificate",
    ),
    21: ("the broker's certificate comes from an unknown CA", "give that CA's certificate as mqtt.ca_file"),
    23: ("the broker's certificate was revoked", "give the broker a new one"),
    24: ("the broker's certificate was signed by one that is no CA", "somebody may pose as the broker"),
    25: ("the broker's certificate was signed by a CA that may not sign others", "somebody may pose as the broker"),
    26: ("the broker's certificate is not for a server", "it needs the extended key usage serverAuth"),
    32: ("the broker's certificate was signed by one that may not sign", "somebody may pose as the broker"),
    47: ("the broker's CA may not vouch for this host", "its name constraints exclude mqtt.host"),
    48: ("the broker's CA may not vouch for this host", "its name constraints exclude mqtt.host"),
    62: ("the broker's certificate is for another host", "mqtt.host must be a name that stands in it"),
    64: ("the broker's certificate is for another address", "mqtt.host must be a name that stands in it"),
    66: ("the broker's key is too weak", "RSA from 2048 bits, or P-256"),
    67: ("the broker's CA has a key that is too weak", "RSA from 2048 bits, or P-256"),
    68: ("the broker's certificate is signed with a weak hash", "SHA-256 or better"),
    79: ("the broker's certificate was signed by one that is no CA", "somebody may pose as the broker"),
}

# What is in the reason of an SSLError, longest first where one contains another -> cause, hint.
_HANDSHAKE_WORDS = (
    (
        (
            "WRONG_VERSION_NUMBER",
            "HTTP_REQUEST",
            "RECORD_LAYER_FAILURE",
            "PACKET_LENGTH_TOO_LONG",
            "UNEXPECTED_MESSAGE",
        ),
        "the broker does not speak TLS on this port",
        "8883 is usual; or mqtt.tls = false",
    ),
    (("PROTOCOL",), "the broker speaks no TLS 1.2 or newer", "update the broker"),
    (("DH_KEY_TOO_SMALL",), "the broker's key exchange is too weak", "update the broker's TLS settings"),
    (
        ("CERTIFICATE_REQUIRED",),
        "the broker wants a certificate of this node",
        "set mqtt.cert_file and mqtt.key_file",
    ),
    (
        ("ALERT_UNKNOWN_CA",),
        "the broker does not know the CA of this node's certificate",
        "mqtt.cert_file is of another CA",
    ),
    (("ALERT_CERTIFICATE_EXPIRED",), "the broker says: this node's certificate has expired", "renew mqtt.cert_file"),
    (("ALERT_CERTIFICATE_REVOKED",), "the broker says: this node's certificate was revoked", "renew mqtt.cert_file"),
    (
        ("BAD_CERTIFICATE", "UNSUPPORTED_CERTIFICATE", "CERTIFICATE_UNKNOWN", "ACCESS_DENIED", "DECRYPT_ERROR"),
        "the broker does not accept this node's certificate",
        "is mqtt.cert_file the one made for this node?",
    ),
    (
        ("HANDSHAKE_FAILURE", "NO_SHARED_CIPHER", "INSUFFICIENT_SECURITY", "WRONG_CIPHER_RETURNED", "UNKNOWN_CIPHER"),
        "broker and node have no cipher in common, or it wants a certificate of this node",
        "update the broker's TLS settings; or set mqtt.cert_file and mqtt.key_file",
    ),
)


def tls_error(where: str, error: Exception, clock: Clock | None = None) -> LinkError:
    """Why TLS with the broker failed, as one LinkError."""
    if isinstance(error, ssl.SSLCertVerificationError):
        cause, hint = _certificate_words(error, clock)
        return LinkError("connect", where, cause, hint=hint)
    reason = getattr(error, "reason", None) or ""
    for parts, cause, hint in _HANDSHAKE_WORDS:
        if any(part in reason for part in parts):
            return LinkError("connect", where, cause, hint=hint)
    if isinstance(error, ssl.SSLEOFError | ConnectionError) or "UNEXPECTED_EOF" in reason:
        return LinkError(
            "connect", where, "it closed the connection in the TLS handshake", hint="is this a TLS port?"
        )
    return LinkError("connect", where, error, hint="TLS handshake failed")


def _certificate_words(error: ssl.SSLCertVerificationError, clock: Clock | None) -> tuple[str, str]:
    code = error.verify_code
    if code in (_NOT_YET_VALID, _EXPIRED):
        cause = f"the broker's certificate {'is not valid yet' if code == _NOT_YET_VALID else 'has expired'}"
        if clock is None or clock.synced():
            return cause, "the broker needs another one" if code == _EXPIRED else "see from when on it is valid"
        now = utc_words(clock.wall_ns() / 1e9)
        return (
            f"{cause} by this board's clock, {now}, which no time service has set: is the clock wrong?",
            "connect the board to a time service; if its time is right, the broker needs another certificate",
        )
    return _CERTIFICATE_WORDS.get(code, (f"the broker's certificate was not accepted: {error.verify_message}", ""))
