"""A message that a broker hangs up on blocks nothing after three connections; a broken network costs nothing."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from broker import DEADLINE_S, fake_broker, packet_id, read_packet
from link_fixtures import BASE, Desk

from agent.delivery import BEHIND_S
from agent.model import OutboxKind, OutboxRow
from agent.reconnect import Attempt
from agent.suspicion import ENOUGH_DEATHS, GIVE_UP_DEATHS, Suspicion

CONNACKS: dict[Attempt, bytes] = {"5": b"\x20\x03\x00\x00\x00", "3.1.1": b"\x20\x02\x00\x00"}
PACKET_TOO_LARGE = b"\xe0\x02\x95\x00"


class Touchy:
    """A broker that hangs up on certain packets. deaths: connections that ended so, since they were last counted."""

    def __init__(self, is_poison: Callable[[bytes], bool], farewell: bytes = b"", attempt: Attempt = "5") -> None:
        self.is_poison = is_poison
        self.deaths = 0
        self._farewell = farewell
        self._attempt = attempt

    def __call__(self, sock: socket.socket, _: int) -> None:
        read_packet(sock)
        sock.sendall(CONNACKS[self._attempt])
        while packet := read_packet(sock):
            if packet[0] & 0xF0 == 0x30:
                if self.is_poison(packet):
                    self.deaths += 1
                    sock.sendall(self._farewell)
                    sock.shutdown(socket.SHUT_WR)
                    while read_packet(sock):
                        pass
                    return
                sock.sendall(b"\x40\x02" + packet_id(packet))
                if f"{BASE}/echo".encode() in packet:
                    sock.sendall(packet)
            elif packet[0] == 0x82:
                sock.sendall(
                    b"\x90"
                    + (
                        b"\x04" + packet[2:4] + b"\x00\x01"
                        if self._attempt == "5"
                        else b"\x03" + packet[2:4] + b"\x01"
                    )
                )


def steps(desk: Desk, is_done: Callable[[], object], attempt: Attempt = "5") -> None:
    """Step, and let time go by while there is no connection, until is_done."""
    end_s = time.monotonic() + DEADLINE_S
    while not is_done():
        assert time.monotonic() < end_s, (desk.link.status, desk.outbox.owed)
        if desk.link._connection is None:
            desk.link._reconnect.attempt = attempt
        desk.step()
        if not desk.link.status.connected or desk.link._media.trouble:
            desk.pass_time(1)


def try_until_given_up(desk: Desk, broker: Touchy, attempt: Attempt = "5") -> None:
    """Let time go by until nothing is owed any more."""
    tries = 0
    while desk.outbox.owed:
        before, tries = broker.deaths, tries + 1
        desk.let_pass(BEHIND_S * 2**tries)
        desk.link.bell.ring()
        steps(desk, lambda before=before: broker.deaths > before or not desk.outbox.owed, attempt)  # type: ignore[misc]
        steps(desk, lambda: desk.link.status.connected and not desk.link._media.trouble, attempt)


def poisoned(desk: Desk) -> list[int]:
    return [ack.seq for ack in desk.acks if ack.poison]


@pytest.mark.parametrize("attempt", ["5", "3.1.1"])
@pytest.mark.parametrize("where", ["event", "thumb"])
def test_after_three_silent_hang_ups_a_message_stands_before_no_other(where: str, attempt: Attempt) -> None:
    broker = Touchy(lambda packet: b"poison" in packet and b"/last" not in packet, attempt=attempt)
    with fake_broker(broker) as port:
        desk = Desk(port)
        for number, name in enumerate(("good", "poison", "good", "good"), 1):
            if where == "thumb":
                desk.outbox.event(number, thumb=name.encode())
            else:
                body = desk.outbox.event(number).body
                row = desk.outbox.rows[-1]
                changed = OutboxRow(
                    row.seq, row.kind, row.boot_id, row.t_ns, row.wall_ns, True, body.replace("quay-so-2", name)
                )
                desk.outbox.rows[-1] = desk.outbox.owed[row.seq] = changed
        poison = 4 if where == "thumb" else 2
        steps(desk, lambda: set(desk.outbox.owed) == {poison}, attempt)
        assert broker.deaths <= 3
        assert not poisoned(desk), "a network may have done it: it is not given up"
        steps(desk, lambda: f"hangs up on message {poison}" in desk.link.status.trouble, attempt)
        desk.outbox.event(9, thumb=b"good")
        desk.link.bell.ring()
        steps(desk, lambda: set(desk.outbox.owed) == {poison}, attempt)
        assert broker.deaths <= 3

        try_until_given_up(desk, broker, attempt)
        assert poisoned(desk) == [poison]
        assert broker.deaths <= 1 + GIVE_UP_DEATHS
        assert "hangs up" not in desk.link.status.trouble
        desk.link.close(0.1)


def test_a_message_the_broker_blames_is_given_up_after_three_connections() -> None:
    broker = Touchy(lambda packet: b"poison" in packet and b"/last" not in packet, PACKET_TOO_LARGE)
    with fake_broker(broker) as port:
        desk = Desk(port)
        for number, thumb in enumerate((b"good", b"poison", b"good", b"good"), 1):
            desk.outbox.event(number, thumb=thumb)
        steps(desk, lambda: not desk.outbox.owed)
        assert poisoned(desk) == [4]
        assert "ended" in next(ack.reason for ack in desk.acks if ack.poison)
        assert broker.deaths <= 3
        assert sorted(desk.delivered) == [1, 2, 3, 5, 6, 7, 8]
        desk.link.close(0.1)


def test_a_message_that_went_behind_for_nothing_is_delivered_when_it_is_tried_again() -> None:
    broker = Touchy(lambda packet: b"poison" in packet)
    with fake_broker(broker) as port:
        desk = Desk(port)
        for number, thumb in enumerate((b"good", b"poison", b"good"), 1):
            desk.outbox.event(number, thumb=thumb)
        steps(desk, lambda: set(desk.outbox.owed) == {4} and "hangs up on message 4" in desk.link.status.trouble)
        broker.is_poison = lambda _: False
        desk.let_pass(BEHIND_S)
        desk.link.bell.ring()
        steps(desk, desk.drained)
        assert not poisoned(desk)
        assert sorted(desk.delivered) == [1, 2, 3, 4, 5, 6]
        steps(desk, lambda: desk.link.status.trouble == "")
        desk.link.close(0.1)


@pytest.mark.parametrize("farewell", [b"", PACKET_TOO_LARGE], ids=["without a word", "too large"])
def test_a_poison_picture_that_is_the_newest_does_not_end_the_second_connection_for_ever(farewell: bytes) -> None:
    broker = Touchy(lambda packet: b"poison" in packet, farewell)
    with fake_broker(broker) as port:
        desk = Desk(port)
        desk.outbox.event(1, thumb=b"good")
        desk.outbox.event(2, thumb=b"poison")
        steps(desk, lambda: not desk.outbox.owed or "hangs up on message 4" in desk.link.status.trouble)
        try_until_given_up(desk, broker)
        assert poisoned(desk) == [4]
        before = broker.deaths
        for number in range(3, 6):  # new connections, on which the newest picture is said anew
            connection = desk.link._connection
            assert connection is not None
            sock = connection._client.socket()
            assert isinstance(sock, socket.socket)
            sock.shutdown(socket.SHUT_RDWR)
            steps(desk, lambda: not desk.link.status.connected)
            desk.outbox.event(number)
            steps(desk, lambda: not desk.outbox.owed)
            steps(desk, lambda: not desk.link._pictures.owes)
        assert broker.deaths == before
        desk.link.close(0.1)


def test_a_retained_copy_that_a_broker_hangs_up_on_is_left_out_and_the_message_goes() -> None:
    broker = Touchy(lambda packet: f"{BASE}/event/last".encode() in packet)
    with fake_broker(broker) as port:
        desk = Desk(port)
        desk.outbox.event(1)
        steps(desk, desk.drained)
        steps(desk, lambda: desk.link.status.connected and not desk.link._events.owes)
        assert broker.deaths <= 4
        assert not poisoned(desk)
        assert desk.delivered == [1]
        desk.link.close(0.1)


LIVES = {
    "few packets": (0, 1, 2, 5, 9),
    "some packets": (3, 8, 20, 40),
    "one length": (14,),
}


def flap(seed: int, flaps: int, lives: Sequence[int], attempt: Attempt = "5") -> list[float]:
    """A network that ends so many connections after so many packets each, whatever they carry: nothing is given up
    and nothing lost. The seconds between tries.
    """
    chance = random.Random(seed)
    served = 0

    def serve(sock: socket.socket, number: int) -> None:
        """Ends after so many packets, or before its CONNACK; from number flaps on it behaves."""
        nonlocal served
        served = max(served, number)
        left = chance.choice(lives) if number < flaps else 10**6
        read_packet(sock)
        if not left:
            return
        sock.sendall(CONNACKS[attempt])
        for _ in range(left):
            packet = read_packet(sock)
            if not packet:
                return
            if packet[0] & 0xF0 == 0x30:
                if chance.random() < 0.9 or number >= flaps:
                    sock.sendall(b"\x40\x02" + packet_id(packet))
                if f"{BASE}/echo".encode() in packet:
                    sock.sendall(packet)

    with fake_broker(serve) as port:
        desk = Desk(port)
        desk.clock.stop()
        desk.link._reconnect._jitter = desk.link._reconnect._backoff._random = chance.random
        for number in range(1, 61):
            desk.outbox.event(number, thumb=b"jpeg")
        tries_ns: list[int] = []
        end_s = time.monotonic() + 3 * DEADLINE_S
        before = None
        while desk.outbox.owed or served < flaps:
            assert time.monotonic() < end_s, (served, desk.link.status, len(desk.outbox.owed))
            if not desk.outbox.owed:  # an idle connection would live
                desk.outbox.event(len(desk.outbox.rows), thumb=b"jpeg")
                desk.link.bell.ring()
            if desk.link._connection is None:
                desk.link._reconnect.attempt = attempt
            desk.step(0.001)
            connection = desk.link._connection
            if connection is not None and connection is not before:
                tries_ns.append(desk.clock.boot_ns())
            before = connection
            pause_s = (desk.link._reconnect.next_try_ns - desk.clock.boot_ns()) / 1e9
            desk.clock.move(max(0.05, pause_s / 2) if connection is None else 0.2)
        assert not poisoned(desk)
        assert sorted(set(desk.delivered)) == list(range(1, len(desk.outbox.rows) + 1))
        assert "duplicate-id" not in desk.link.status.trouble
        desk.link.close(0.1)
        return [(after - first) / 1e9 for first, after in pairwise(tries_ns)]


def test_five_hundred_broken_connections_lose_nothing_and_are_no_busy_loop() -> None:
    waits = flap(1, 500, LIVES["few packets"])
    assert min(waits) >= 0.99, "at most one try a second"
    assert max(waits) > 20, "and ever rarer while nothing is delivered"


@pytest.mark.parametrize("seed", range(12))
def test_a_network_that_breaks_again_and_again_has_no_good_message_set_aside(seed: int) -> None:
    flap(seed, 60, list(LIVES.values())[seed % 3], "3.1.1" if seed % 2 else "5")


def row(seq: int) -> OutboxRow:
    return OutboxRow(seq, OutboxKind.EVENT, "boot", 0, 0, True, "{}")


def test_only_a_message_that_was_alone_after_an_answer_is_to_blame() -> None:
    suspicion = Suspicion()
    for _ in range(20):
        assert suspicion.died([row(1), row(2)], had_answers=True, is_told=True) is None
        assert suspicion.died([row(1)], had_answers=False, is_told=True) is None


def test_an_answer_clears_a_message_and_each_death_asks_for_one_proof_more() -> None:
    suspicion = Suspicion()
    assert not suspicion.must_go_alone
    for number in range(1, ENOUGH_DEATHS):
        assert suspicion.died([row(1)], had_answers=True, is_told=False) is None
        assert suspicion.proofs() == number + 1
    suspicion.answered(row(1))
    assert not suspicion.must_go_alone
    assert suspicion.died([row(1)], had_answers=True, is_told=False) is None
