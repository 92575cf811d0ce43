"""A bounded round of what scripts/torture does for longer: kills of broker and node, and too few file descriptors."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torture_table
from broker import DEADLINE_S, Subscriber, requires_mosquitto, until
from program import write_settings

pytestmark = [pytest.mark.broker, requires_mosquitto]
pytest_plugins = ["closing"]


def test_broker_and_node_killed_in_mid_flight_lose_no_message(tmp_path: Path) -> None:
    row = torture_table.Row()
    with torture_table.broker_and_dashboard(tmp_path) as (broker, subscriber):
        node = torture_table.start_node(tmp_path / "node", broker.port, 150)
        until(lambda: _took(subscriber, 60), "messages flow")
        broker.kill()
        node.kill()
        node.wait()
        node = torture_table.start_node(tmp_path / "node", broker.port, 150)
        broker.start()
        assert node.wait(5 * DEADLINE_S) == 0
        subscriber.catch_up()
        torture_table.account(row, tmp_path / "node", subscriber)
    assert row.states >= 300
    assert row.lost == 0, row.words


def _took(subscriber: Subscriber, number: int) -> bool:
    subscriber.wait_a_moment()
    return len(subscriber.messages) >= number


def test_a_program_with_64_file_descriptors_runs(tmp_path: Path) -> None:
    config = write_settings(tmp_path, 1)
    with (tmp_path / "log").open("wb") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "--config", str(config)],
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
        )
    try:
        until(lambda: _says(tmp_path / "log", "learning the background"), "the node runs")
        node.terminate()
        assert node.wait(DEADLINE_S) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        node.kill()
        node.wait()


# numpy first: its OpenBLAS has words of its own for a shortage.
RUN_WITH_LIMIT = """
import resource, sys
import numpy
from agent.cli import main
kind, limit = sys.argv[1], int(sys.argv[2])
if kind == "RLIMIT_AS":
    limit += int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(getattr(resource, kind), (limit, limit))
raise SystemExit(main(["run", "--config", sys.argv[3]]))
"""


@pytest.mark.parametrize(
    ("kind", "limit", "raises"),
    [("RLIMIT_NOFILE", 8, "LimitNOFILE"), ("RLIMIT_AS", 30 << 20, "MemoryMax")],
    ids=["descriptors", "memory"],
)
def test_a_program_that_cannot_live_within_its_limits_says_which_in_one_line(
    kind: str, limit: int, raises: str, tmp_path: Path
) -> None:
    config = write_settings(tmp_path, 1)
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITH_LIMIT, kind, str(limit), str(config)],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert raises in done.stderr.splitlines()[-1]


def _says(log: Path, words: str) -> bool:
    time.sleep(0.02)
    return words in log.read_text()
