"""Rounds of scripts/torture on the whole program, `camera-agent run` with the simulated camera: kill -9 and again."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from broker import DEADLINE_S
from program import Program, camera_agent, write_settings
from torture_table import Budget, Row, account, broker_and_dashboard, settle


def kills(directory: Path, budget: Budget) -> Row:
    """The real program, killed at random moments under load and started again."""
    row, chance = Row(), random.Random(budget.seed)
    with broker_and_dashboard(directory) as (broker, subscriber):
        config = write_settings(directory, broker.port, outbox={"replay_mb": 10_000})
        while budget.allows(row):
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
