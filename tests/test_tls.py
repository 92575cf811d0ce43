"""TLS to the broker: good peers are reached, bad ones refused with the reason, and ends of certificates announced."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from broker import Mosquitto, fake_broker, read_packet, requires_mosquitto
from cryptography.hazmat.primitives.serialization import Encoding
from link_fixtures import Desk, MovableClock
from pki import CLIENT, Identity, Pki

from agent.certificates import Certificate, certificate, expiry_words

DAY_S = 86_400
CONNACK_5 = b"\x20\x03\x00\x00\x00"


@dataclass(frozen=True, slots=True)
class Site:
    """One CA for all tests: making keys takes time."""

    pki: Pki
    ca: Identity
    broker: Identity
    node: Identity


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    pki = Pki(tmp_path_factory.mktemp("pki"))
    ca = pki.ca()
    return Site(
        pki,
        ca,
        pki.issue("broker", issuer=ca),
        pki.issue("node", issuer=ca, names=(), common_name="ward-12/entrance", usage=(CLIENT,)),
    )


def serving(identity: Identity, **changes: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # What is too weak for Debian's OpenSSL to serve is what a node has to be shown.
    context.set_ciphers(changes.pop("ciphers", "ALL:@SECLEVEL=0"))
    for name, value in changes.items():
        setattr(context, name, value)
    context.load_cert_chain(identity.cert_file, identity.key_file)
    return context


@contextlib.contextmanager
def tls_broker(context: ssl.SSLContext) -> Iterator[tuple[int, list[bytes]]]:
    """A broker of MQTT 5 that would take anybody; its port, and the CONNECTs that came through."""
    heard: list[bytes] = []

    def serve(sock: socket.socket, _: int) -> None:
        with contextlib.suppress(ssl.SSLError), context.wrap_socket(sock, server_side=True) as wrapped:
            packet = read_packet(wrapped)
            if packet:
                heard.append(packet)
                wrapped.sendall(CONNACK_5)
                while read_packet(wrapped):
                    pass

    with fake_broker(serve) as port:
        yield port, heard


def refused(desk: Desk, *words: str) -> str:
    """Step until the trouble has the words; the line. Never connected."""
    desk.step_until(lambda: desk.link.status.trouble, "a reason")
    line = desk.link.status.trouble
    desk.link.close(0.1)
    assert not desk.link.status.connected
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


def chained(site: Site) -> Identity:
    middle = site.pki.ca("middle", issuer=site.ca)
    return site.pki.issue("below-middle", issuer=middle, chain=[middle])


GOOD: dict[str, Callable[[Site], Identity]] = {
    "p-256": lambda site: site.broker,
    "rsa-2048": lambda site: site.pki.issue("rsa", issuer=site.ca, rsa_bits=2048),
    "with an intermediate": chained,
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_broker_that_can_show_who_it_is_is_reached(site: Site, kind: str, host: str) -> None:
    with tls_broker(serving(GOOD[kind](site))) as (port, _):
        desk = Desk(port, tls=True, ca_file=site.ca.cert_file, host=host)
        desk.connect()
        assert desk.link.status.trouble == ""
        assert desk.link.status.warning == ""
        desk.link.close(0.1)


def test_a_brokers_own_certificate_may_stand_for_its_ca(site: Site) -> None:
    own = site.pki.issue("alone")
    with tls_broker(serving(own)) as (port, _):
        desk = Desk(port, tls=True, ca_file=own.cert_file)
        desk.connect()
        desk.link.close(0.1)


def other_ca(site: Site) -> Identity:
    """The same name, another key: what an impostor would make."""
    return Pki(site.pki.directory / "impostor").ca()


def missing_middle(site: Site) -> Identity:
    return site.pki.issue("orphan", issuer=site.pki.ca("absent-middle", issuer=site.ca))


def signed_by_a_node(site: Site) -> Identity:
    return site.pki.issue("posing", issuer=site.node, chain=[site.node])


def outside_its_name_constraints(site: Site) -> Identity:
    narrow = site.pki.ca("narrow", issuer=site.ca, may_sign_for="example.org")
    return site.pki.issue("beyond", issuer=narrow, chain=[narrow])


def under_an_expired_ca(site: Site) -> Identity:
    old = site.pki.ca("old-ca", issuer=site.ca, days=(-30, -1))
    return site.pki.issue("under-old", issuer=old, chain=[old])


def under_a_weak_ca(site: Site) -> Identity:
    weak = site.pki.ca("weak-ca", issuer=site.ca, rsa_bits=1024)
    return site.pki.issue("under-weak", issuer=weak, chain=[weak])


BAD_CERTIFICATES: dict[str, tuple[Callable[[Site], Identity], tuple[str, ...]]] = {
    "expired": (lambda site: site.pki.issue("old", issuer=site.ca, days=(-30, -1)), ("has expired",)),
    "not yet valid": (lambda site: site.pki.issue("new", issuer=site.ca, days=(2, 30)), ("not valid yet",)),
    "another host": (
        lambda site: site.pki.issue("else", issuer=site.ca, names=("broker.example",)),
        ("another host", "mqtt.host"),
    ),
    "another CA of the same name": (
        lambda site: site.pki.issue("false", issuer=other_ca(site)),
        ("CA", "mqtt.ca_file"),
    ),
    "self-signed": (lambda site: site.pki.issue("selfish"), ("self-signed",)),
    "for clients": (
        lambda site: site.pki.issue("client", issuer=site.ca, usage=(CLIENT,)),
        ("not for a server", "serverAuth"),
    ),
    "weak key": (
        lambda site: site.pki.issue("weak", issuer=site.ca, rsa_bits=1024),
        ("key is too weak", "2048"),
    ),
    "a CA with a weak key": (under_a_weak_ca, ("CA has a key that is too weak",)),
    "SHA-1": (lambda site: site.pki.with_sha1("sha1", site.ca), ("weak hash",)),
    "signed by a node": (signed_by_a_node, ("no CA",)),
    "missing intermediate": (missing_middle, ("unknown CA", "intermediate")),
    "outside its CA's name constraints": (outside_its_name_constraints, ("may not vouch",)),
    "under an expired CA": (under_an_expired_ca, ("has expired",)),
}


@pytest.mark.parametrize("kind", BAD_CERTIFICATES)
def test_a_bad_certificate_is_refused_with_the_reason(site: Site, kind: str) -> None:
    make, words = BAD_CERTIFICATES[kind]
    with tls_broker(serving(make(site))) as (port, heard):
        desk = Desk(port, tls=True, ca_file=site.ca.cert_file, host="localhost")
        line = refused(desk, f"localhost:{port}", *words)
        assert "verify failed" not in line, "our words, not OpenSSL's"
    assert heard == [], "no CONNECT, so no password, came through"


def closing(sock: socket.socket, _: int) -> None:
    sock.recv(1)


def plain_broker(sock: socket.socket, _: int) -> None:
    sock.recv(100)
    sock.sendall(CONNACK_5)


def web_server(sock: socket.socket, _: int) -> None:
    sock.recv(100)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (plain_broker, "does not speak TLS"),
        (web_server, "does not speak TLS"),
        (closing, "closed the connection in the TLS handshake"),
    ],
    ids=["plaintext", "web server", "hangs up"],
)
def test_what_speaks_no_tls_is_refused_with_the_reason(site: Site, serve: Any, words: str) -> None:
    with fake_broker(serve) as port:
        refused(Desk(port, tls=True, ca_file=site.ca.cert_file), words)


def test_a_peer_that_says_nothing_in_the_handshake_is_given_up_after_five_seconds(site: Site) -> None:
    def silent(sock: socket.socket, _: int) -> None:
        while sock.recv(4096):
            pass

    with fake_broker(silent) as port:
        desk = Desk(port, tls=True, ca_file=site.ca.cert_file)
        for _ in range(5):
            desk.step()
        desk.clock.move(5)
        refused(desk, "TLS handshake", "no answer within 5 s")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_tls_is_refused_with_the_reason(site: Site, version: str) -> None:
    old = getattr(ssl.TLSVersion, version)
    with tls_broker(serving(site.broker, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=old)) as (port, _):
        refused(Desk(port, tls=True, ca_file=site.ca.cert_file), "no TLS 1.2 or newer")


def test_ciphers_that_hide_nothing_are_refused_with_the_reason(site: Site) -> None:
    context = serving(site.broker, ciphers="NULL:@SECLEVEL=0", maximum_version=ssl.TLSVersion.TLSv1_2)
    with tls_broker(context) as (port, _):
        refused(Desk(port, tls=True, ca_file=site.ca.cert_file), "no cipher in common")


class UnsetClock(MovableClock):
    """No time service has set it."""

    def synced(self) -> bool:
        return False


@pytest.mark.parametrize(("days", "words"), [((2, 30), "not valid yet"), ((-30, -1), "has expired")])
def test_where_the_boards_clock_may_be_wrong_the_clock_is_named(
    site: Site, days: tuple[int, int], words: str
) -> None:
    identity = site.pki.issue("dated", issuer=site.ca, days=days)
    with tls_broker(serving(identity)) as (port, _):
        desk = Desk(port, tls=True, ca_file=site.ca.cert_file)
        desk.clock = UnsetClock()
        desk.link = desk.new_link(0)
        line = refused(desk, words, "this board's clock", "no time service has set", "is the clock wrong?")
        assert f"{dt.datetime.now(dt.UTC):%Y-%m-%d}" in line, "it says what the clock says"


# -- who we are


@pytest.fixture
def guarded(site: Site, tmp_path: Path) -> Iterator[Mosquitto]:
    """mosquitto that lets in nobody without a certificate of the site, and takes its name for the user's."""
    broker = Mosquitto(
        tmp_path / "broker",
        certificate=(site.broker.cert_file, site.broker.key_file),
        extra=[f"cafile {site.ca.cert_file}", "require_certificate true", "use_identity_as_username true"],
    ).start()
    yield broker
    broker.kill()


@requires_mosquitto
def test_a_node_shows_its_own_certificate(site: Site, guarded: Mosquitto) -> None:
    desk = Desk(
        guarded.port,
        tls=True,
        ca_file=site.ca.cert_file,
        cert_file=site.node.cert_file,
        key_file=site.node.key_file,
        require_subscriber=False,
    )
    desk.outbox.event(1, thumb=b"x" * 300_000)
    desk.step_until(desk.drained)
    assert "u'ward-12/entrance'" in guarded.log(), "the broker knows it by the name in its certificate"
    desk.link.close(1)


@requires_mosquitto
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda site: None, "mqtt.cert_file"),
        (lambda site: site.pki.issue("stranger", issuer=other_ca(site), usage=(CLIENT,)), "this node's certificate"),
        (lambda site: site.pki.issue("late", issuer=site.ca, usage=(CLIENT,), days=(-9, -1)), "has expired"),
        (lambda site: site.broker, "this node's certificate"),
    ],
    ids=["none", "another CA", "expired", "for servers"],
)
def test_a_broker_that_refuses_our_certificate_is_understood(
    site: Site, guarded: Mosquitto, make: Callable[[Site], Identity | None], words: str
) -> None:
    own = make(site)
    files: dict[str, Any] = {"cert_file": own.cert_file, "key_file": own.key_file} if own else {}
    desk = Desk(guarded.port, tls=True, ca_file=site.ca.cert_file, **files)
    refused(desk, words)


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        ("absent.pem", "node.key", "mqtt.cert_file"),
        ("node.pem", "absent.key", "mqtt.key_file"),
        ("node.pem", "broker.key", "does not belong"),
        ("node.key", "node.key", "not a certificate"),
        ("node.pem", "ca.pem", "not a certificate and its key"),
    ],
)
def test_files_that_do_not_fit_are_named(site: Site, cert: str, key: str, words: str) -> None:
    home = site.pki.directory
    desk = Desk(1, tls=True, ca_file=site.ca.cert_file, cert_file=home / cert, key_file=home / key)
    refused(desk, words)


def test_a_key_with_a_pass_phrase_is_refused_and_nobody_is_asked_for_it(site: Site, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat

    secret = site.node.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"canary"))
    (tmp_path / "locked.key").write_bytes(secret)
    files: dict[str, Any] = {"cert_file": site.node.cert_file, "key_file": tmp_path / "locked.key"}
    refused(Desk(1, tls=True, ca_file=site.ca.cert_file, **files), "unencrypted")


def test_a_key_that_everybody_can_read_is_a_warning(site: Site, tmp_path: Path) -> None:
    key_file = tmp_path / "open.key"
    key_file.write_bytes(site.node.key_file.read_bytes())
    key_file.chmod(0o644)
    with tls_broker(serving(site.broker)) as (port, _):
        desk = Desk(port, tls=True, ca_file=site.ca.cert_file, cert_file=site.node.cert_file, key_file=key_file)
        desk.connect()
        assert "can be read by everybody" in desk.link.status.warning
        desk.link.close(0.1)


# -- ends that come


def test_the_dates_of_a_certificate_are_read_from_its_bytes(site: Site) -> None:
    der = site.broker.certificate.public_bytes(Encoding.DER)
    found = certificate("it", der)
    assert found is not None
    assert found.not_after_s == site.broker.certificate.not_valid_after_utc.timestamp()
    assert found.not_before_s == site.broker.certificate.not_valid_before_utc.timestamp()
    assert certificate("it", der[:40]) is None
    assert certificate("it", b"") is None
    for cut in range(0, len(der), 7):
        certificate("it", der[:cut])


@pytest.mark.parametrize(
    ("days_left", "due"),
    [(31, None), (29.9, 30), (7.1, 30), (6.9, 7), (1.1, 7), (0.9, 1), (-1, 1)],
)
def test_an_end_is_announced_thirty_seven_and_one_day_before(days_left: float, due: int | None) -> None:
    year = Certificate("the broker's certificate", 0, 365 * DAY_S)
    now_s = (365 - days_left) * DAY_S
    words = expiry_words([year], now_s)
    assert list(words) == ([] if due is None else [due])
    if due is not None:
        assert "1971-01-01" in words[due]
        assert ("has expired" if days_left < 0 else "expires in") in words[due]


def test_what_is_renewed_every_few_days_is_not_complained_of_all_the_time() -> None:
    week = Certificate("the broker's certificate", 0, 7 * DAY_S)
    assert expiry_words([week], 4 * DAY_S) == {}
    assert 7 in expiry_words([week], 5 * DAY_S)


@pytest.mark.parametrize(
    ("days_left", "degraded"), [(20, False), (5, True), (0.5, True)], ids=["20 days", "5 days", "12 hours"]
)
def test_a_node_says_that_its_certificate_will_end(
    site: Site, days_left: float, degraded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    ending = site.pki.issue("ending", issuer=site.ca, usage=(CLIENT,), days=(-300, days_left))
    with tls_broker(serving(site.broker)) as (port, _):
        desk = Desk(port, tls=True, ca_file=site.ca.cert_file, cert_file=ending.cert_file, key_file=ending.key_file)
        desk.connect()
        status = desk.link.status
        line = status.trouble if degraded else status.warning
        assert "this node's certificate expires in" in line
        assert (status.trouble == "") is not degraded
        assert caplog.text.count("this node's certificate expires in") >= 1
        desk.link.close(0.1)


def test_the_brokers_certificate_and_the_cas_are_watched_too(site: Site) -> None:
    ca = site.pki.ca("ending-ca", days=(-300, 25))
    broker = site.pki.issue("ending-broker", issuer=ca, days=(-300, 3))
    with tls_broker(serving(broker)) as (port, _):
        desk = Desk(port, tls=True, ca_file=ca.cert_file)
        desk.connect()
        assert "the broker's certificate expires in 3 days" in desk.link.status.trouble
        assert "the CA's certificate expires in 25 days" in desk.link.status.warning
        desk.link.close(0.1)


def test_a_renewed_certificate_counts_from_the_next_connection(site: Site) -> None:
    identity = site.pki.issue("renewed", issuer=site.ca, usage=(CLIENT,), days=(-300, 5))
    with tls_broker(serving(site.broker)) as (port, _):
        files: dict[str, Any] = {"cert_file": identity.cert_file, "key_file": identity.key_file}
        desk = Desk(port, tls=True, ca_file=site.ca.cert_file, **files)
        desk.connect()
        assert "this node's certificate" in desk.link.status.trouble
        desk.link.close(0.1)
        site.pki.issue("renewed", issuer=site.ca, usage=(CLIENT,), days=(0, 365))
        desk.link = desk.new_link(0)
        desk.connect()
        assert desk.link.status.trouble == ""
        desk.link.close(0.1)
