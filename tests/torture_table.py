"""What the rounds of scripts/torture share: their limits, a line of the table, a broker, the account of numbers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from broker import Mosquitto, Subscriber
from tqdm import tqdm

from agent.ledger_reader import LedgerReader, holes

PICTURE_BYTES = 20_000
PER_SECOND = 100


@dataclass(slots=True)
class Row:
    """One line of the table. lost: acknowledged and gone; corrupt: there and wrong; slowest_s: longest recovery.

    replayed: messages a broker lost after it had taken them, which the node still has for who asks.
    """

    faults: int = 0
    states: int = 0
    lost: int = 0
    corrupt: int = 0
    replayed: int = 0
    slowest_s: float = 0.0
    note: str = ""
    words: list[str] = field(default_factory=list)

    def judge(self, found: list[str]) -> None:
        """Sort complaints into lost and corrupt."""
        for words in found:
            is_lost = any(word in words for word in ("lost", "missing", "gone", "left is", "bytes'"))
            self.lost += is_lost
            self.corrupt += not is_lost
        self.words += found

    def add(self, other: dict[str, Any]) -> None:
        """Take up what an earlier run of the same kind found."""
        for name in ("faults", "states", "lost", "corrupt", "replayed"):
            setattr(self, name, getattr(self, name) + other[name])
        self.slowest_s = max(self.slowest_s, other["slowest_s"])
        self.words = other["words"] + self.words

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self, name: str) -> str:
        slowest = f"{self.slowest_s:.2f} s" if self.slowest_s else "-"
        replayed = f"; {self.replayed} replayed" if self.replayed else ""
        figures = f"{self.faults:>6} {self.states:>8} {self.lost:>5} {self.corrupt:>7} {slowest:>16}"
        return f"{name:<34} {figures}  {self.note}{replayed}"


class Budget:
    """How long one kind of fault goes on: until seconds have passed, or so many faults were tried (0: no bound)."""

    def __init__(self, name: str, seconds: float, seed: int, tries: int = 0) -> None:
        self.seconds = seconds
        self.seed = seed
        self.tries = tries
        self._end_s = time.monotonic() + seconds
        self._bar = tqdm(desc=name, total=tries or None, unit=" faults", leave=False, disable=not sys.stderr.isatty())

    def allows(self, row: Row) -> bool:
        """Whether another fault fits; the first always does."""
        self._bar.update(row.faults - self._bar.n)
        if row.faults and self.tries and row.faults >= self.tries:
            return False
        return not row.faults or time.monotonic() < self._end_s

    @property
    def left_s(self) -> float:
        return self._end_s - time.monotonic()

    def close(self) -> None:
        self._bar.close()


Round = Callable[[Path, Budget], Row]


def missing_numbers(directory: Path, subscriber: Subscriber) -> tuple[int, list[int]]:
    """The newest number the ledger gave, and those that neither arrived nor are named by a loss that did."""
    arrived, losses = set(), []
    for message in subscriber.take_all():
        if message.retained or message.topic.endswith("/last"):
            continue
        if message.topic.endswith("/thumb"):
            arrived.add(int(message.properties["seq"]))
        elif message.topic.endswith(("/event", "/clip", "/loss")):
            body = json.loads(message.payload)
            arrived.add(int(body["seq"]))
            if message.topic.endswith("/loss"):
                losses.append((int(body["from_seq"]), int(body["to_seq"])))
    reader = LedgerReader(directory)
    head = reader.head_seq
    reader.close()
    runs = holes(sorted(arrived), 1, head, losses)
    return head, [n for first, last in runs for n in range(first, last + 1)]


def account(row: Row, directory: Path, subscriber: Subscriber) -> None:
    """Every number the ledger gave, against what arrived."""
    head, missing = missing_numbers(directory, subscriber)
    reader = LedgerReader(directory)
    kept = {r.seq for r in reader.sent(0, head, head + 1)} if missing else set()
    reader.close()
    lost = [n for n in missing if n not in kept]
    row.states += head
    row.lost += len(lost)
    row.replayed += len(missing) - len(lost)
    row.words += [f"message {n} neither arrived nor is it in the ledger" for n in lost[:3]]


@contextlib.contextmanager
def broker_and_dashboard(directory: Path) -> Iterator[tuple[Mosquitto, Subscriber]]:
    broker = Mosquitto(directory / "broker", extra=["max_queued_messages 0", "log_type none"]).start()
    subscriber = Subscriber(broker.port, "edgecam/#", session="dashboard", checked=False)
    try:
        yield broker, subscriber
    finally:
        subscriber.close()
        broker.kill()


def start_node(directory: Path, port: int, events: int, rate: int = PER_SECOND) -> subprocess.Popen[bytes]:
    arguments = (directory, port, events, rate, PICTURE_BYTES)
    script = Path(__file__).with_name("torture_node.py")
    return subprocess.Popen([sys.executable, str(script), *map(str, arguments)])


def newest_health(subscriber: Subscriber) -> dict[str, Any]:
    """The last health message after waiting for news a moment; empty before the first."""
    subscriber.wait_a_moment()
    found = subscriber.of("/health")
    return dict(json.loads(found[-1].payload)) if found else {}
