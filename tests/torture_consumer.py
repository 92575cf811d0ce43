"""Rounds of scripts/torture with real programs: `camera-agent watch` repairs, a camera runs while a node drains."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from broker import DEADLINE_S, Mosquitto, Subscriber, until
from program import Program, write_settings
from torture_broker import fill, judge_order
from torture_table import Budget, Row, newest_health

from agent.ledger_reader import LedgerReader

EVENTS = 150
"""While the consumer stands still: more than a broker keeps for it (20 in flight, 30 queued)."""


class Watch:
    """`camera-agent watch --json`, with its lines in a file."""

    def __init__(self, directory: Path, port: int) -> None:
        self._out = directory / "watch.jsonl"
        with self._out.open("wb") as out, (directory / "watch.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent", "watch", "--host", "127.0.0.1", "--port", str(port), "--json"],
                stdout=out,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def seqs(self) -> set[int]:
        """Numbers of the event stream it has shown, or that the node explained."""
        found: set[int] = set()
        for line in self._out.read_text().splitlines():
            try:
                told: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # the line is just being written
            message = told.get("message") or {}
            if told["type"] in ("event", "clip", "loss", "thumb") and not told["retained"]:
                found.add(int(message["seq"]))
            if told["type"] == "loss":
                found |= set(range(message["from_seq"], message["to_seq"] + 1))
        return found

    def close(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGTERM)  # a background shell has its children ignore SIGINT
        self._process.wait(DEADLINE_S)


def consumer_away(directory: Path, budget: Budget) -> Row:
    """The consumer stands still while the broker's queue for it overflows, or while the broker dies with it."""
    row = Row()
    while budget.allows(row):
        for kind in ("out of memory", "killed"):
            place = directory / f"{row.faults}"
            place.mkdir()
            _away(row, place, kind)
            row.faults += 1
    row.note = "watch stood still: broker out of memory for its queue, broker killed"
    return row


def _away(row: Row, place: Path, kind: str) -> None:
    extra = ["max_queued_messages 30", "log_type none", "persistence true", f"persistence_location {place}/"]
    broker = Mosquitto(place / "broker", extra=extra).start()
    config = write_settings(place, broker.port, commands={"enabled": True}, outbox={"reserve_mb": 0})
    operator = Subscriber(broker.port, "edgecam/+/+/+/rsp/+", checked=False)
    with Program(place, "run", "--config", config):
        until(lambda: "camera started" in (place / "program.log").read_text(), "the node runs")
        watch = Watch(place, broker.port)
        _make_events(operator, place / "node", 3, 0)
        until(lambda: bool(watch.seqs()), "watch shows what comes")
        watch.signal(signal.SIGSTOP)
        _make_events(operator, place / "node", EVENTS, 1000)
        _wait_delivered(place / "node")
        before = watch.seqs()
        if kind == "killed":
            operator.close()
            broker.kill()
            broker.start()
            operator = Subscriber(broker.port, "edgecam/+/+/+/rsp/+", checked=False)
        watch.signal(signal.SIGCONT)
        began = time.monotonic()
        wanted = set(range(min(before), _head(place / "node") + 1))
        while wanted - watch.seqs() and time.monotonic() - began < 3 * DEADLINE_S:
            time.sleep(0.1)
        left = wanted - watch.seqs()
        row.slowest_s = max(row.slowest_s, time.monotonic() - began)
        row.states += len(wanted)
        row.judge([f"{kind}: {len(left)} of {len(wanted)} are missing: {sorted(left)[:5]}"] if left else [])
        watch.close()
        row.replayed += sum(json.loads(m.payload).get("part") is not None for m in operator.of(""))
    operator.close()
    broker.kill()


def _make_events(operator: Subscriber, directory: Path, events: int, first: int) -> None:
    """So many test events of the node, asked for one after the other."""
    wanted = _events(directory) + events
    end, number = time.monotonic() + 2 * DEADLINE_S, first
    while _events(directory) < wanted:
        assert time.monotonic() < end, "the node makes no events"
        number += 1
        body = {"id": f"torture-{number}", "client": "torture", "args": {}}
        operator.say("edgecam/v1/ward-12/door/cmd/test-event", json.dumps(body).encode())


def _events(directory: Path) -> int:
    reader = LedgerReader(directory)
    count = len(reader.events())
    reader.close()
    return count


def _head(directory: Path) -> int:
    reader = LedgerReader(directory)
    head = reader.head_seq
    reader.close()
    return head


def _wait_delivered(directory: Path) -> None:
    reader = LedgerReader(directory)

    def is_delivered() -> bool:
        time.sleep(0.1)
        return not reader.due(0, 1)

    until(is_delivered, "the broker took everything")
    reader.close()


def drain(directory: Path, budget: Budget) -> Row:
    """72 h of backlog, drained by the whole program with a camera: each once, in order, no frame skipped."""
    row = Row()
    events = 50_000 if budget.seconds >= 700 else 1000
    ledger = fill(directory / "node", events)
    head = ledger.head_seq
    ledger.close()
    broker = Mosquitto(directory / "broker", extra=["max_queued_messages 0", "log_type none"])
    config = write_settings(
        directory,
        broker.port,
        node={"id": "node", "site": "torture"},
        camera={"scene": "empty", "width": 640, "height": 480, "fps": 15},
        detection={"quiet_s": 2.0},
        outbox={"max_rows": 1_000_000, "max_mb": 10_000, "replay_mb": 10_000},
    )
    with Program(directory, "run", "--config", config) as node:
        until(lambda: "camera started" in node.log(), "the camera runs")
        time.sleep(5)
        broker.start()
        subscriber = Subscriber(broker.port, "edgecam/#", session="dashboard", checked=False)
        until(lambda: bool(newest_health(subscriber)), "health is told")
        first, began = newest_health(subscriber), time.monotonic()
        while time.monotonic() - began < max(budget.seconds, 120):
            time.sleep(0.25)
            last = newest_health(subscriber)
            if last["outbox"]["depth"] == 0:
                break
        row.slowest_s = time.monotonic() - began
        subscriber.catch_up()
        last = newest_health(subscriber)
        judge_order(row, subscriber, head)
        skipped = last["frames_skipped"] - first["frames_skipped"]
        frames_per_s = last["fps"]
        node.signal(signal.SIGTERM)
    subscriber.close()
    broker.kill()
    # One now and then is a machine's that does something else; a drain that holds up vision skips many.
    allowed = max(1.0, frames_per_s * row.slowest_s / 100)
    row.judge([f"{skipped} frames were skipped meanwhile"] if skipped > allowed else [])
    row.judge([f"the camera brought {frames_per_s} frames/s of 15"] if frames_per_s < 10 else [])
    row.note = (
        f"{events} events with 20 kB at {events / row.slowest_s:.0f} events/s while a camera ran at {frames_per_s}"
        f" frames/s: {skipped} frames skipped"
    )
    return row
