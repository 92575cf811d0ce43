"""Rounds of scripts/torture between a node and its broker: kills of both, nobody listening, a consumer away, 72 h."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from broker import Mosquitto, Subscriber
from program import camera_agent
from torture_node import picture
from torture_table import (
    PER_SECOND,
    PICTURE_BYTES,
    Budget,
    Round,
    Row,
    account,
    broker_and_dashboard,
    start_node,
)

from agent.clock import Now, SimulatedClock, read
from agent.disk import Disk
from agent.ledger import Ledger, Revision
from agent.ledger_reader import LedgerReader
from agent.model import EndReason, Event, EventKind, Moment, Phase, Thumbnail
from agent.ulid import new_ulid

FULL_EVENTS, FEW_EVENTS = 1000, 300
"""At 100 a second: ten seconds of sending where there is time for it, three in a bounded round."""


def matrix(kind: str) -> Round:
    """One line of the loss matrix. kind: broker, node, both or nobody."""

    def run(directory: Path, budget: Budget) -> Row:
        row, chance = Row(), random.Random(budget.seed)
        events = FULL_EVENTS if budget.tries or budget.seconds >= 60 else FEW_EVENTS
        runs = 0
        while budget.allows(row):
            place = directory / str(runs)
            if kind == "nobody":
                _nobody(row, place, events, chance)
            else:
                _kills(row, place, events, kind, chance)
            runs += 1
        row.note = f"{runs} runs of {events} events with 20 kB at {PER_SECOND}/s"
        return row

    return run


def _kills(row: Row, place: Path, events: int, kind: str, chance: random.Random) -> None:
    """The broker once, the node twice, or both twice."""
    with broker_and_dashboard(place) as (broker, subscriber):
        node = start_node(place / "node", broker.port, events)
        for _ in range(2 if kind != "broker" else 1):
            time.sleep(events / PER_SECOND * chance.uniform(0.2, 0.5) + 0.5)
            if kind in ("broker", "both"):
                broker.kill()
            if kind in ("node", "both"):
                node.kill()
                node.wait()
                node = start_node(place / "node", broker.port, events)
            if kind in ("broker", "both"):
                time.sleep(chance.uniform(0, 3))
                broker.start()
        began = time.monotonic()
        if node.wait(330):
            row.judge([f"{kind}: the node did not deliver everything"])
        row.slowest_s = max(row.slowest_s, time.monotonic() - began)
        subscriber.catch_up()
        account(row, place / "node", subscriber)
    row.faults += 1


def _nobody(row: Row, place: Path, events: int, chance: random.Random) -> None:
    """Nobody subscribes while most of it is made: PUBACK 0x10."""
    broker = Mosquitto(place / "broker", extra=["max_queued_messages 0", "log_type none"]).start()
    node = start_node(place / "node", broker.port, events)
    time.sleep(events / PER_SECOND * chance.uniform(0.3, 0.8))
    subscriber = Subscriber(broker.port, "edgecam/#", session="dashboard", checked=False)
    began = time.monotonic()
    if node.wait(330):
        row.judge(["nobody: the node did not deliver everything"])
    row.slowest_s = max(row.slowest_s, time.monotonic() - began)
    subscriber.catch_up()
    account(row, place / "node", subscriber)
    subscriber.close()
    broker.kill()
    row.faults += 1


def kills_under_load(directory: Path, budget: Budget) -> Row:
    """Storage and link at 100 events a second, killed at random moments of start, work and checkpoint."""
    row, chance = Row(), random.Random(budget.seed)
    with broker_and_dashboard(directory) as (broker, subscriber):
        while budget.allows(row):
            node = start_node(directory / "node", broker.port, 1_000_000)
            time.sleep(chance.uniform(0.2, 2))
            node.kill()
            node.wait()
            row.faults += 1
        reader = LedgerReader(directory / "node")
        made = len(reader.events())
        reader.close()
        began = time.monotonic()
        node = start_node(directory / "node", broker.port, made + 1)
        if node.wait(330):
            row.judge(["the node did not deliver everything"])
        row.slowest_s = time.monotonic() - began
        subscriber.catch_up()
        account(row, directory / "node", subscriber)
        done = camera_agent("clips", "verify", "--directory", directory / "node")
        row.judge(done.stdout.splitlines() if done.returncode else [])
        row.note = f"{made} events stored; the last start until all was delivered"
    return row


def fill(directory: Path, events: int) -> Ledger:
    """A ledger that owes so many events with pictures, stored over 72 simulated hours."""
    clock = SimulatedClock()
    directory.mkdir(parents=True)
    ledger = Ledger(Disk(), directory, node="node")
    now = read(clock)
    ledger.open(None, now)
    for first in range(0, events, 50):
        ledger.store_events([_revision(now, number) for number in range(first, first + 50)], now)
        clock.move(72 * 3600 / events * 50)
        now = read(clock)
    return ledger


def judge_order(row: Row, subscriber: Subscriber, head: int) -> None:
    """Each of the numbers 1..head once; events and pictures, which have a connection each, in order, and no picture
    before its event, whose number is the one before.
    """
    events, pictures, came = [], [], set()
    for message in subscriber.messages:
        if message.retained:
            continue
        if message.topic.endswith("/event"):
            events.append(int(json.loads(message.payload)["seq"]))
            came.add(events[-1])
        elif message.topic.endswith("/thumb"):
            pictures.append(int(message.properties["seq"]))
            row.corrupt += pictures[-1] - 1 not in came
    row.faults, row.states = 1, head
    for seqs in (events, pictures):
        owed = [seq for seq in seqs if seq <= head]
        row.corrupt += len(owed) - len(set(owed)) + (owed != sorted(owed))
    row.lost += head - len({seq for seq in events + pictures if seq <= head})


def _revision(now: Now, number: int) -> Revision:
    at = Moment(now.t_ns, number)
    shown = Thumbnail(picture(PICTURE_BYTES, number), 320, 240, at)
    event = Event(
        *(new_ulid(1_700_000_000_000 + number, number), 1, Phase.END, EventKind.MOTION, at, at, at, 0.5),
        end=at,
        end_reason=EndReason.QUIET,
        thumbnail=shown,
    )
    return Revision(event, None, at.t_ns)
