"""Rounds of scripts/torture on the whole program, `camera-agent run` with the simulated camera: kill -9 and again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from broker import Subscriber, until
from program import Program, camera_agent, write_settings
from torture_table import Budget, Row, account, broker_and_dashboard

from agent.ledger_reader import LedgerReader
from agent.mp4 import scan

GOP_S = 0.5
LIMIT_S = 10.0
"""From the start until the first fragment is on the disk, the fragment's own time included."""
FRESH = 20
"""Every so manyth start is a program of its own, with Python's start; the others are forked from a loaded one."""
BASE = "edgecam/v1/ward-12/door"


class Starter:
    """camera-agent run: forked, or as a new program."""

    def __init__(self, directory: Path, config: Path) -> None:
        self._directory, self._config = directory, config
        self._zygote = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("torture_zygote.py")), config, directory / "program.log"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._fresh: Program | None = None
        self._pid = 0

    def _ask(self, word: str) -> int:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(f"{word}\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())

    def start(self, *, fresh: bool) -> None:
        if fresh:
            self._fresh = Program(self._directory, "run", "--config", self._config)
        else:
            self._pid = self._ask("run")

    def end(self, number: signal.Signals) -> None:
        if self._fresh is not None:
            self._fresh.signal(number)
            self._fresh = None
        else:
            os.kill(self._pid, number)
            self._ask("reap")

    def close(self) -> None:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.close()
        self._zygote.stdout.close()
        self._zygote.wait()


@dataclass(frozen=True, slots=True)
class _Cut:
    """A clip that was being recorded when the node was killed, at t_ns of the boot clock."""

    clip_id: str
    t_ns: int


class _Operator:
    """Asks for recordings and test events, so that there is load and always a clip open."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._count = 0

    def ask(self, verb: str, **args: object) -> None:
        self._count += 1
        body = {"id": f"torture-{self._count}", "client": "torture", "args": args}
        self._subscriber.say(f"{BASE}/cmd/{verb}", json.dumps(body).encode())


def kills(directory: Path, budget: Budget) -> Row:
    """The real program killed at any moment: in its start, its recovery, while it records; 10 s to record again."""
    row, chance = Row(), random.Random(budget.seed)
    clips = directory / "node" / "clips"
    slowest_s = {True: 0.0, False: 0.0}
    cuts: list[_Cut] = []
    with broker_and_dashboard(directory) as (broker, subscriber):
        config = write_settings(
            directory,
            broker.port,
            outbox={"replay_mb": 10_000, "reserve_mb": 0},
            clips={"directory": str(directory / "node"), "pre_roll_s": 1.0, "gop_s": GOP_S, "min_free_mb": 0},
            commands={"enabled": True},
        )
        starter, operator = Starter(directory, config), _Operator(subscriber)
        while budget.allows(row):
            fresh = row.faults % FRESH == FRESH - 1
            known = {path.name for path in clips.glob("*.part")} if clips.exists() else set()
            began = time.monotonic()
            starter.start(fresh=fresh)
            if chance.random() < 0.3:
                time.sleep(chance.uniform(0, 1.0 if fresh else 0.5))
                open_clip = ""
            else:
                open_clip = _record(clips, known, operator, began)
                took_s = time.monotonic() - began
                slowest_s[fresh] = max(slowest_s[fresh], took_s)
                if not open_clip:
                    row.judge([f"start {row.faults}: not recording after {took_s:.1f} s"])
                time.sleep(chance.uniform(0, 2 * GOP_S))
            if open_clip:
                cuts.append(_Cut(open_clip, time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
            starter.end(signal.SIGKILL)
            row.faults += 1
        log = directory / "program.log"
        starts = log.read_text().count("camera started")
        starter.start(fresh=True)
        until(lambda: log.read_text().count("camera started") > starts, "the last start")
        _wait_delivered(row, directory / "node")
        starter.end(signal.SIGTERM)
        starter.close()
        subscriber.catch_up()
        done = camera_agent("clips", "verify", "--directory", directory / "node")
        row.judge(done.stdout.splitlines() if done.returncode else [])
        account(row, directory / "node", subscriber)
        cost_s = _cost_of(row, directory / "node", cuts)
        row.slowest_s = max(slowest_s.values())
        row.note = (
            f"recording again after {slowest_s[False]:.1f} s at most (forked), {slowest_s[True]:.1f} s (new program);"
            f" {len(cuts)} open clips lost {max(cost_s, default=0):.2f} s at most (GOP {GOP_S} s);"
            f" {done.stdout.splitlines()[-1] if done.stdout else ''}"
        )
    return row


def _record(clips: Path, known: set[str], operator: _Operator, began: float) -> str:
    """Until a fragment of a new clip is on the disk; the clip's id, or "" when that took too long."""
    asked = 0.0
    while time.monotonic() - began < LIMIT_S:
        if time.monotonic() - asked > 0.3:
            asked = time.monotonic()
            operator.ask("record", duration_s=60)
            operator.ask("test-event")
        for path in clips.glob("*.part") if clips.exists() else ():
            try:
                with path.open("rb") as part:
                    if path.name not in known and scan(part).fragments:
                        return path.name.split(".")[0]
            except FileNotFoundError:
                continue  # the recovery gave it its final name
        time.sleep(0.01)
    return ""


def _wait_delivered(row: Row, directory: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        time.sleep(0.5)
        reader = LedgerReader(directory)
        owed = reader.due(0, 1)
        reader.close()
        if not owed:
            return
    row.judge(["the last start did not deliver everything"])


def _cost_of(row: Row, directory: Path, cuts: list[_Cut]) -> list[float]:
    """What each open clip lost, seconds before the kill."""
    reader = LedgerReader(directory)
    ends = {clip.id: clip.end_t_ns for clip in reader.clips()}
    reader.close()
    row.judge([f"clip {cut.clip_id} was recorded and is lost" for cut in cuts if cut.clip_id not in ends])
    return [(cut.t_ns - ends[cut.clip_id]) / 1e9 for cut in cuts if cut.clip_id in ends]
