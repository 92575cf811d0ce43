"""What a line that breaks again and again, and a cloned card, do to a node: share of time connected, alarms.

    PYTHONPATH=tests .venv/bin/python tests/measure_flaps.py

A real mosquitto on loopback, simulated time: half an hour of each, with an event each 10 s and without. A break is
the end of the connection without a word, as after a router's restart; the line itself is back at once.
"""

from __future__ import annotations

import logging
import random
import socket
import tempfile
from pathlib import Path

from broker import Mosquitto
from link_fixtures import Desk

MINUTES = 30
TICK_S = 0.25
EVENT_EACH_S = 10
BREAKS_PER_MIN = (1, 2, 6, 12)


def settle(*desks: Desk) -> None:
    """What goes on over the network, in no simulated time."""
    for _ in range(3):
        for desk in desks:
            desk.step(0.001)
    for desk in desks:
        while desk.link._connection is not None and not desk.link.status.connected:
            desk.step(0.001)


def cut(desk: Desk) -> None:
    connection = desk.link._connection
    sock = connection._client.socket() if connection is not None else None
    if isinstance(sock, socket.socket):
        sock.shutdown(socket.SHUT_RDWR)


def line(name: str, desks: list[Desk], cut_each_s: float | None, *, has_events: bool) -> None:
    chance = random.Random(1)
    ticks = round(MINUTES * 60 / TICK_S)
    connected = [0] * len(desks)
    alarms, was_alarm = [0] * len(desks), [False] * len(desks)
    first_alarm_s = None
    next_cut_s = cut_each_s
    for tick in range(ticks):
        if has_events and tick % round(EVENT_EACH_S / TICK_S) == 0:
            for desk in desks:
                desk.outbox.event(tick)
                desk.link.bell.ring()
        settle(*desks)
        for number, desk in enumerate(desks):
            is_alarm = "duplicate-id" in desk.link.status.trouble
            alarms[number] += is_alarm and not was_alarm[number]
            was_alarm[number] = is_alarm
            connected[number] += desk.link.status.connected
            if is_alarm and first_alarm_s is None:
                first_alarm_s = tick * TICK_S
            desk.clock.move(TICK_S)
        if next_cut_s is not None and cut_each_s is not None and tick * TICK_S >= next_cut_s:
            next_cut_s += cut_each_s * chance.uniform(0.5, 1.5)
            cut(desks[0])
    shares = " and ".join(f"{100 * each / ticks:.0f} %" for each in connected)
    first = f", the first after {first_alarm_s:.0f} s" if first_alarm_s is not None else ""
    print(
        f"{name}: connected {shares} of the time; duplicate-id {' and '.join(map(str, alarms))} times{first}",
        flush=True,
    )


def new_desk(port: int, seed: int) -> Desk:
    return Desk(port, jitter=random.Random(seed).random, require_subscriber=False)


def main() -> None:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="flaps-") as place:
        broker = Mosquitto(Path(place)).start()
        try:
            for has_events in (True, False):
                print("an event each 10 s" if has_events else "no events", flush=True)
                for rate in BREAKS_PER_MIN:
                    desk = new_desk(broker.port, 2)
                    line(f"{rate} breaks a minute", [desk], 60 / rate, has_events=has_events)
                    desk.link.close(0.1)
                twins = [new_desk(broker.port, seed) for seed in (3, 4)]
                line("a cloned card", twins, None, has_events=has_events)
                for desk in twins:
                    desk.link.close(0.1)
        finally:
            broker.kill()


if __name__ == "__main__":
    main()
