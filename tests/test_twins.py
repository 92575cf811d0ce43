"""A cloned card is told from a network that breaks again and again: by what stands on `echo`, not by how often."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Mosquitto, Subscriber, requires_mosquitto
from link_fixtures import BASE, Desk, ulid

from agent.lane import PROOF
from agent.model import NS_PER_S
from agent.reconnect import Attempt
from agent.twins import WINDOW_S, Twins

TICK_S = 0.5


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    mosquitto = Mosquitto(tmp_path / "broker").start()
    yield mosquitto
    mosquitto.kill()


def settle(desk: Desk, attempt: Attempt) -> None:
    """What goes on over the network, in no simulated time."""
    if desk.link._connection is None:
        desk.link._reconnect.attempt = attempt
    desk.step(0.0005)
    desk.step_until(
        lambda: (
            desk.link._connection is None
            or (desk.link.status.connected and not desk.link._events.in_flight and desk.link._twins._was_heard)
        )
    )


def cut(desk: Desk) -> None:
    """As a router's restart does: the end without a word, for the node and for the broker."""
    connection = desk.link._connection
    sock = connection._client.socket() if connection is not None else None
    if isinstance(sock, socket.socket):
        sock.shutdown(socket.SHUT_RDWR)


def says_duplicate(desk: Desk) -> bool:
    return "duplicate-id" in desk.link.status.trouble


@requires_mosquitto
@pytest.mark.parametrize("attempt", ["5", "3.1.1"])
def test_of_a_cloned_card_both_say_so_and_one_works_at_a_time(broker: Mosquitto, attempt: Attempt) -> None:
    desks = [Desk(broker.port, jitter=random.Random(seed).random, require_subscriber=False) for seed in (3, 4)]
    for desk in desks:
        desk.clock.stop()
    told, connected, ticks = [0, 0], [0, 0], round(15 * 60 / TICK_S)
    first_s = None
    for tick in range(ticks):
        for number, desk in enumerate(desks):
            settle(desk, attempt)
            told[number] += says_duplicate(desk)
            connected[number] += desk.link.status.connected
            if says_duplicate(desk) and first_s is None:
                first_s = tick * TICK_S
            desk.clock.move(TICK_S)
    assert first_s is not None
    assert first_s < 60
    assert min(told) > ticks / 2
    assert min(connected) > ticks / 10
    assert sum(connected) > 0.8 * ticks
    for desk in desks:
        desk.link.close(0.1)


@requires_mosquitto
@pytest.mark.parametrize("attempt", ["5", "3.1.1"])
@pytest.mark.parametrize("breaks_per_min", [6, 12])
def test_a_network_that_breaks_again_and_again_is_no_cloned_card(
    broker: Mosquitto, attempt: Attempt, breaks_per_min: int
) -> None:
    chance = random.Random(breaks_per_min)
    desk = Desk(broker.port, jitter=chance.random, require_subscriber=False)
    desk.clock.stop()
    ticks, connected, next_cut_s = round(5 * 60 / TICK_S), 0, 1.0
    for tick in range(ticks):
        if tick % 20 == 0:
            desk.outbox.event(tick)
            desk.link.bell.ring()
        settle(desk, attempt)
        assert not says_duplicate(desk)
        connected += desk.link.status.connected
        desk.clock.move(TICK_S)
        if tick * TICK_S >= next_cut_s:
            next_cut_s += 60 / breaks_per_min * chance.uniform(0.5, 1.5)
            cut(desk)
    assert desk.link.status.reconnects > 2 * breaks_per_min
    assert connected > ticks / 2
    while not desk.drained():
        settle(desk, attempt)
        desk.clock.move(TICK_S)
    desk.link.close(0.1)


@requires_mosquitto
def test_a_clone_shows_in_what_the_node_says_when_it_is_back(broker: Mosquitto) -> None:
    desk = Desk(broker.port, require_subscriber=False)
    other = Subscriber(broker.port, f"{BASE}/echo")
    for number in range(3):
        desk.connect()
        desk.step_until(lambda: desk.link._twins._was_heard and not desk.link._events.in_flight)
        other.say(f"{BASE}/echo", ulid(number).encode(), retain=True)
        cut(desk)
        desk.step_until(lambda: not desk.link.status.connected)
        desk.let_pass(3)
    desk.connect()
    desk.step_until(lambda: says_duplicate(desk))
    assert "ward-12/entrance" in desk.link.status.trouble
    desk.let_pass(WINDOW_S)
    desk.step_until(lambda: not desk.link.status.trouble)
    other.close()
    desk.link.close(0.1)


def life(twins: Twins, session: int, stood_there: bytes | None, now_s: float) -> None:
    """One connection: what stood on the topic, and then our own word."""
    twins.begin(ulid(session))
    if stood_there is not None:
        twins.heard(stood_there, round(now_s * NS_PER_S))
    twins.heard(ulid(session).encode(), round(now_s * NS_PER_S))
    twins.ended(is_named=False, now_ns=round(now_s * NS_PER_S))


def test_what_an_earlier_life_of_the_node_said_is_no_other_client() -> None:
    twins = Twins()
    life(twins, 1, ulid(900).encode(), 0)
    assert not twins._seen


def test_a_broker_that_brings_back_one_old_word_again_and_again_is_no_other_client() -> None:
    twins = Twins()
    for number in range(20):
        life(twins, number, ulid(900).encode(), number)
        assert not twins.are_certain(number * NS_PER_S)


def test_others_are_forgotten_when_nobody_spoke_meanwhile() -> None:
    twins = Twins()
    for number in range(5):
        life(twins, number, ulid(900 + number).encode(), number)
    assert twins.are_certain(5 * NS_PER_S)
    assert not twins.are_certain(round((WINDOW_S + 5) * NS_PER_S))
    life(twins, 5, ulid(4).encode(), 5)
    assert not twins.are_certain(5 * NS_PER_S)


@pytest.mark.parametrize("words", [PROOF, b"", b"\xff\xfe", b"x" * 1000])
def test_what_is_no_session_is_no_other_client(words: bytes) -> None:
    twins = Twins()
    for number in range(5):
        life(twins, number, words, number)
    assert not twins.are_certain(5 * NS_PER_S)


def test_one_connection_counts_once_however_much_is_said_in_it() -> None:
    twins = Twins()
    life(twins, 1, None, 0)
    twins.begin(ulid(2))
    for number in range(900, 910):
        twins.heard(ulid(number).encode(), 0)
    twins.ended(is_named=True, now_ns=0)
    assert not twins.are_certain(0)
