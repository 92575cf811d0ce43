"""A long stretch of simulated time through a whole node and a real broker, in minutes of real time.

Run by scripts/soak and, for an hour, by tests/test_soak.py. Holds at the end: memory flat, no thread or file
descriptor leaked, the ring within its budget, every message accounted for by its number, the ledger true.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from broker import DEADLINE_S, Mosquitto, Subscriber
from stepped import SteppedNode
from tqdm import tqdm

from agent.cameras.fake import FakeSource
from agent.cameras.scene import Fault, Lamp, Scene, Walker
from agent.cameras.scenes import BUILT_IN
from agent.ledger_reader import LedgerReader
from agent.settings import load_settings

FPS = 2
BUDGET_MB = 64
WARM_UP_SHARE = 0.25
"""Memory is compared from here to the end: caches, the packet ring and SQLite's pages have filled by then."""

MEMORY_GROWTH_MB = 8.0
STEP_S = 60.0

SOAK_SCENE: Scene = replace(
    BUILT_IN["empty"],
    name="soak",
    period_s=300,
    walkers=(
        Walker(at_s=30, speed=0.12, height=0.6),
        Walker(at_s=150, speed=0.10, height=0.5, look=1, from_x=1.12, to_x=-0.12),
    ),
    lamps=(Lamp(at_s=90, for_s=150),),
    faults=(
        Fault(kind="die", at_s=3000, times=200, every_s=7200),
        Fault(kind="silent", at_s=5000, times=200, every_s=10800),
    ),
)
"""Every five minutes two people and a lamp; every two or three hours the camera dies or falls silent."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a soak came to. rss_mb: at a quarter of the time and at the end."""

    hours: float
    wall_s: float
    frames: int
    events: int
    messages: int
    missing: int
    twice: int
    rss_mb: tuple[float, float]
    threads: tuple[int, int]
    descriptors: tuple[int, int]
    clips: int
    clip_mb: float
    camera_starts: int
    skipped: int

    def failures(self) -> list[str]:
        """What does not hold, in words; empty when all does."""
        checks = {
            f"{self.missing} of {self.messages} messages never came": self.missing == 0,
            f"memory grew from {self.rss_mb[0]:.1f} to {self.rss_mb[1]:.1f} MB": (
                self.rss_mb[1] - self.rss_mb[0] <= MEMORY_GROWTH_MB
            ),
            f"threads went from {self.threads[0]} to {self.threads[1]}": self.threads[1] <= self.threads[0],
            f"descriptors went from {self.descriptors[0]} to {self.descriptors[1]}": (
                self.descriptors[1] <= self.descriptors[0]
            ),
            f"the ring holds {self.clip_mb:.1f} MB of {BUDGET_MB}": self.clip_mb <= BUDGET_MB,
            "nothing happened": self.events > self.hours * 12,
            f"{self.skipped} frames were skipped": self.skipped == 0,
        }
        return [words for words, holds in checks.items() if not holds]


@contextmanager
def broker_and_dashboard(directory: Path) -> Iterator[tuple[Mosquitto, Subscriber]]:
    mosquitto = Mosquitto(directory / "broker", extra=["max_queued_messages 0"]).start()
    subscriber = Subscriber(mosquitto.port, session="soak")
    try:
        yield mosquitto, subscriber
    finally:
        subscriber.close()
        mosquitto.stop()


def soak(hours: float, directory: Path, *, show_progress: bool = False) -> Account:
    """Run it. directory must be empty."""
    started_s = time.monotonic()
    with broker_and_dashboard(directory) as (mosquitto, dashboard):
        settings = load_settings(
            environ={},
            overrides={
                "camera": {"backend": "fake", "width": 320, "height": 240, "fps": FPS, "bitrate_kbps": 300},
                "detection": {"quiet_s": 2.0},
                "clips": {"directory": str(directory / "node"), "budget_mb": BUDGET_MB, "min_free_mb": 0},
                "outbox": {"replay_days": 0.25, "replay_mb": 8},
                "mqtt": {"host": "127.0.0.1", "port": mosquitto.port},
            },
        )
        source = FakeSource(
            SOAK_SCENE, width=320, height=240, fps=FPS, lores_width=160, lores_height=120, bitrate_kbps=300
        )
        stepped = SteppedNode(settings, source)
        account = _Numbers()
        warm: tuple[float, int, int] | None = None
        steps = max(1, round(hours * 3600 / STEP_S))
        for step in tqdm(range(steps), unit="min", disable=not show_progress, file=sys.stderr):
            stepped.run(STEP_S)
            account.take(dashboard)
            if warm is None and step + 1 >= steps * WARM_UP_SHARE:
                _drain(stepped)
                warm = _footprint()
        _drain(stepped)
        cool = _footprint()
        stepped.stop()
        dashboard.catch_up()
        account.take(dashboard)
        reader = LedgerReader(directory / "node")
        head = reader.head_seq
        totals = reader.clip_totals()
        reader.close()
    assert warm is not None
    return Account(
        hours=hours,
        wall_s=time.monotonic() - started_s,
        frames=stepped.node.vision.status.frames,
        events=account.events,
        messages=head,
        missing=head - account.count,
        twice=account.twice,
        rss_mb=(warm[0], cool[0]),
        threads=(warm[1], cool[1]),
        descriptors=(warm[2], cool[2]),
        clips=totals.clips,
        clip_mb=totals.bytes / 1e6,
        camera_starts=stepped.node.keeper.state.starts,
        skipped=stepped.node.vision.status.skipped,
    )


class _Numbers:
    """Which message numbers came, kept as a high mark and the few beyond a hole, so that it does not grow itself."""

    def __init__(self) -> None:
        self._up_to = 0
        self._beyond: set[int] = set()
        self.twice = 0
        self.events = 0

    @property
    def count(self) -> int:
        return self._up_to + len(self._beyond)

    def take(self, dashboard: Subscriber) -> None:
        for message in dashboard.take_all():
            if message.retained or message.topic.endswith("/last"):
                continue
            if message.topic.endswith("/thumb"):
                self._number(int(message.properties["seq"]))
            elif message.topic.endswith(("/event", "/clip", "/loss")):
                body = json.loads(message.payload)
                self._number(body["seq"])
                if message.topic.endswith("/loss"):
                    for lost in range(body["from_seq"], body["to_seq"] + 1):
                        self._number(lost)
                self.events += message.topic.endswith("/event") and body["phase"] == "end"

    def _number(self, seq: int) -> None:
        if seq <= self._up_to or seq in self._beyond:
            self.twice += 1
            return
        self._beyond.add(seq)
        while self._up_to + 1 in self._beyond:
            self._up_to += 1
            self._beyond.remove(self._up_to)


def _footprint() -> tuple[float, int, int]:
    """Resident memory in MB, threads, descriptors of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6, threading.active_count(), len(os.listdir("/proc/self/fd"))


def _drain(stepped: SteppedNode) -> None:
    """Real time for what is still under way to the broker, until all is delivered over connections that stand."""
    link = stepped.node.link

    def is_done() -> bool:
        both = (link._connection, link._media._connection)
        stand = all(each is not None and each.ready and not each._in_flight for each in both)
        return stand and not stepped.node.storage.status.outbox_rows

    deadline_s = time.monotonic() + DEADLINE_S
    while not is_done() and time.monotonic() < deadline_s:
        link.step(0.01)
        stepped.run(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--hours", type=float, default=24, help="simulated hours (default: 24)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="camera-agent-soak-") as directory:
        account = soak(args.hours, Path(directory), show_progress=sys.stderr.isatty())
    print(
        f"{account.hours:g} h simulated in {account.wall_s:.0f} s: {account.frames} frames, {account.events} events, "
        f"{account.messages} messages ({account.missing} missing, {account.twice} twice), "
        f"{account.camera_starts} camera starts"
    )
    print(
        f"memory {account.rss_mb[0]:.1f} -> {account.rss_mb[1]:.1f} MB, threads {account.threads[0]} -> "
        f"{account.threads[1]}, descriptors {account.descriptors[0]} -> {account.descriptors[1]}, "
        f"{account.clips} clips of {account.clip_mb:.1f} MB (budget {BUDGET_MB} MB)"
    )
    failures = account.failures()
    for failure in failures:
        print(f"FAIL: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
