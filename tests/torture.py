"""Every fault the storage must survive, again and again, and a table of what became of it. Run by scripts/torture."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import rig
import test_recovery
import test_time
from broker import DEADLINE_S, Mosquitto, Subscriber
from faulty_disk import Leaves, RecordingDisk
from program import Program, camera_agent, write_settings
from torture_node import picture

from agent.clock import Now, SimulatedClock, SystemClock, read
from agent.disk import Disk
from agent.handoffs import AckBox, StatusBoard
from agent.ledger import Ledger, Revision
from agent.ledger_reader import LedgerReader, holes
from agent.link import Link
from agent.model import EndReason, Event, EventKind, Moment, Phase, Thumbnail
from agent.settings import load_settings
from agent.ulid import new_ulid

BOUNDED_MINUTES = 3.0
PICTURE_BYTES = 20_000
PER_SECOND = 100


@dataclass(slots=True)
class Row:
    """One line of the table. lost: acknowledged and gone; corrupt: there and wrong; slowest_s: longest recovery."""

    faults: int = 0
    states: int = 0
    lost: int = 0
    corrupt: int = 0
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


Round = Callable[[Path, float, int], Row]


def power_cuts(noise: bool) -> Round:
    def run(directory: Path, seconds: float, seed: int) -> Row:
        row = Row()
        if words := rig.missing():
            row.note = f"left out: {words}"
            return row
        end = time.monotonic() + seconds
        for number in count():
            left_s = end - time.monotonic()
            if left_s < 4:
                break
            outcome = rig.cut(600, seed=seed + number, noise=noise, until_s=left_s)
            row.faults += outcome.states
            row.states += outcome.states
            row.slowest_s = max(row.slowest_s, outcome.slowest_s)
            row.judge(outcome.violations)
        return row

    return run


def disk_faults(directory: Path, seconds: float, seed: int) -> Row:
    row = Row()
    if words := rig.missing():
        row.note = f"left out: {words}"
        return row
    chance, end = random.Random(seed), time.monotonic() + seconds
    while not row.faults or time.monotonic() < end:
        for kind in ("enospc", "eio", "ro"):
            outcome = rig.fault(kind, after=12 if kind == "enospc" else chance.randrange(4, 30))
            row.faults += 1
            row.states += outcome.states
            row.slowest_s = max(row.slowest_s, outcome.slowest_s)
            row.judge(outcome.violations)
    row.note = "ENOSPC, EIO, read-only"
    return row


def model_cuts(directory: Path, seconds: float, seed: int) -> Row:
    """The crash model of tests/test_recovery.py, at random operations, half of them cut again in the recovery."""
    row, chance, end = Row(), random.Random(seed), time.monotonic() + seconds
    images = test_recovery.live_through(directory / "life")
    for number in count():
        if time.monotonic() > end:
            break
        image, leaves = chance.choice(images), chance.choice(list(Leaves))
        left = directory / f"cut{number}"
        image.restore(left, leaves)
        began = time.monotonic()
        disk = RecordingDisk(left)
        test_recovery.come_back(left, disk)
        row.slowest_s = max(row.slowest_s, time.monotonic() - began)
        if number % 2 and disk.images:
            again = directory / f"again{number}"
            chance.choice(disk.images).restore(again, chance.choice(list(Leaves)))
            test_recovery.come_back(again)
            left = again
        row.faults += 1
        row.states += 1
        row.judge(test_recovery.violations(left))
        row.judge(test_recovery.broken_promises(left, image, directory / "scratch"))
    return row


def account(row: Row, directory: Path, subscriber: Subscriber) -> None:
    """Every number the ledger gave, against what arrived."""
    reader = LedgerReader(directory)
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
    head = reader.head_seq
    missing = [n for first, last in holes(sorted(arrived), 1, head, losses) for n in range(first, last + 1)]
    kept = {r.seq for r in reader.sent(0, head, head + 1)}
    lost = [n for n in missing if n not in kept]
    reader.close()
    row.states += head
    row.lost += len(lost)
    row.words += [f"message {n} neither arrived nor is it in the ledger" for n in lost[:3]]
    if missing:
        row.words.append(f"{len(missing)} of {head} are the consumer's to ask for by replay")


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


def loss_matrix(directory: Path, seconds: float, seed: int) -> Row:
    """Broker killed and back, node killed twice, both: every number arrives or is explained."""
    row, end = Row(), time.monotonic() + seconds
    events = 1000 if seconds >= 120 else 300
    runs, repairs = 0, 0
    chance = random.Random(seed)
    while not runs or time.monotonic() < end:
        for kind in ("broker", "node", "both"):
            place = directory / f"{kind}{runs}"
            with broker_and_dashboard(place) as (broker, subscriber):
                node = start_node(place / "node", broker.port, events)
                for _ in range(2 if kind != "broker" else 1):
                    time.sleep(events / PER_SECOND * chance.uniform(0.2, 0.5) + 0.5)
                    if kind in ("broker", "both"):
                        broker.kill()
                        row.faults += 1
                    if kind in ("node", "both"):
                        node.kill()
                        node.wait()
                        row.faults += 1
                        node = start_node(place / "node", broker.port, events)
                    if kind in ("broker", "both"):
                        time.sleep(chance.uniform(0, 1))
                        broker.start()
                began = time.monotonic()
                if node.wait(330):
                    row.judge([f"{kind}: the node did not deliver everything"])
                row.slowest_s = max(row.slowest_s, time.monotonic() - began)
                settle(subscriber)
                before = len(row.words)
                account(row, place / "node", subscriber)
                repairs += len(row.words) > before
        runs += 1
    row.note = f"{runs} x 3 runs of {events} events with 20 kB at {PER_SECOND}/s; {repairs} needed replay"
    return row


def settle(subscriber: Subscriber) -> None:
    """Until nothing more comes for half a second."""
    before, since = -1, time.monotonic()
    while time.monotonic() - since < 0.5:
        subscriber.wait_a_moment()
        if len(subscriber.messages) != before:
            before, since = len(subscriber.messages), time.monotonic()


def kills(directory: Path, seconds: float, seed: int) -> Row:
    """The real program, killed at random moments under load and started again."""
    row, chance, end = Row(), random.Random(seed), time.monotonic() + seconds
    with broker_and_dashboard(directory) as (broker, subscriber):
        config = write_settings(directory, broker.port, outbox={"replay_mb": 10_000})
        while time.monotonic() < end:
            began = time.monotonic()
            with Program(directory, "run", "--config", config) as node:
                starts = node.log().count("camera started")
                while node.log().count("camera started") == starts and time.monotonic() - began < DEADLINE_S:
                    time.sleep(0.02)
                row.slowest_s = max(row.slowest_s, time.monotonic() - began)
                time.sleep(chance.uniform(0, 5))
                node.signal(signal.SIGKILL)
            row.faults += 1
        with Program(directory, "run", "--config", config) as node:
            time.sleep(4)
            node.signal(signal.SIGTERM)
        settle(subscriber)
        done = camera_agent("clips", "verify", "--directory", directory / "node")
        row.judge(done.stdout.splitlines() if done.returncode else [])
        account(row, directory / "node", subscriber)
        row.note = done.stdout.splitlines()[-1] if done.stdout else ""
    return row


def kills_under_load(directory: Path, seconds: float, seed: int) -> Row:
    """Storage and link at 100 events a second, killed at random moments of start, work and checkpoint."""
    row, chance, end = Row(), random.Random(seed), time.monotonic() + seconds
    with broker_and_dashboard(directory) as (broker, subscriber):
        while time.monotonic() < end:
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
        settle(subscriber)
        account(row, directory / "node", subscriber)
        done = camera_agent("clips", "verify", "--directory", directory / "node")
        row.judge(done.stdout.splitlines() if done.returncode else [])
        row.note = f"{made} events stored; the last start until all was delivered"
    return row


def clock_steps(directory: Path, seconds: float, seed: int) -> Row:
    row, end = Row(), time.monotonic() + seconds
    while not row.faults or time.monotonic() < end:
        steps = 100
        found = test_time.wander(directory / str(row.faults), steps=steps, seed=seed + row.faults)
        row.faults += steps
        row.states += steps
        row.judge(found)
    row.note = "steps of up to ten years, over restarts"
    return row


def absence(directory: Path, seconds: float, seed: int) -> Row:
    """72 h without a broker, time-scaled; then everything once, in order."""
    row = Row()
    events = 50_000 if seconds >= 700 else 1000
    clock = SimulatedClock()
    ledger = Ledger(Disk(), directory / "node", node="node")
    (directory / "node").mkdir(parents=True)
    now = read(clock)
    ledger.open(None, now)
    for first in range(0, events, 50):
        ledger.store_events([_revision(now, number) for number in range(first, first + 50)], now)
        clock.move(72 * 3600 / events * 50)
        now = read(clock)
    with broker_and_dashboard(directory) as (broker, subscriber):
        settings = load_settings(
            environ={},
            overrides={"node": {"id": "node", "site": "torture"}, "mqtt": {"host": "127.0.0.1", "port": broker.port}},
        )
        box = AckBox()
        # Simulated time scaled the absence; the drain is at the node's default pace, in real time.
        link = Link(
            *(settings.mqtt, settings.node, lambda: LedgerReader(directory / "node"), box, StatusBoard()),
            SystemClock(),
        )
        began = time.monotonic()
        taken = []
        while ledger.load.rows and time.monotonic() - began < max(seconds, 120):
            link.step(0.02)
            taken += box.take()
            if len(taken) >= 200 or (taken and len(taken) >= ledger.load.rows):
                ledger.mark(taken, read(clock))
                taken = []
        row.slowest_s = time.monotonic() - began
        settle(subscriber)
        seqs = [
            int(m.properties["seq"]) if m.topic.endswith("/thumb") else int(json.loads(m.payload)["seq"])
            for m in subscriber.messages
            if m.topic.endswith(("/event", "/thumb")) and not m.retained
        ]
        row.faults, row.states = 1, ledger.head_seq
        row.lost = ledger.head_seq - len(set(seqs))
        row.corrupt = len(seqs) - len(set(seqs)) + (seqs != sorted(seqs))
        link.close(1)
    ledger.close()
    row.note = f"{events} events of 72 h with 20 kB each drained at {events / row.slowest_s:.0f} events/s"
    return row


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


ROUNDS: dict[str, tuple[float, Round]] = {
    "power cut, real ext4": (0.15, power_cuts(noise=False)),
    "power cut, ext4 + other syncs": (0.15, power_cuts(noise=True)),
    "disk fails (real ext4)": (0.05, disk_faults),
    "power cut, crash model": (0.09, model_cuts),
    "broker and node killed": (0.18, loss_matrix),
    "node killed under load": (0.10, kills_under_load),
    "program killed (SIGKILL)": (0.10, kills),
    "clock steps": (0.08, clock_steps),
    "broker away for 72 h": (0.10, absence),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=BOUNDED_MINUTES, help="how long (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices (default: %(default)s)")
    parser.add_argument("--only", choices=list(ROUNDS), help="one kind of fault for the whole time")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    seconds = args.minutes * 60
    print(f"{'fault':<30} {'tried':>7} {'states':>8} {'lost':>5} {'corrupt':>7} {'slowest recovery':>16}")
    failed = False
    for name, (share, round_) in ROUNDS.items():
        if args.only is not None and name != args.only:
            continue
        with tempfile.TemporaryDirectory(prefix="torture.") as place:
            row = round_(Path(place), seconds if args.only else seconds * share, args.seed)
        failed |= bool(row.lost or row.corrupt)
        slowest = f"{row.slowest_s:.2f} s" if row.slowest_s else "-"
        print(f"{name:<30} {row.faults:>7} {row.states:>8} {row.lost:>5} {row.corrupt:>7} {slowest:>16}  {row.note}")
        for words in row.words[:5]:
            print(f"    {words}")
        sys.stdout.flush()
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{os.cpu_count()} cores, peak memory of this program {memory_mb:.0f} MB:"
        f" {'FAILED' if failed else 'all held'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
