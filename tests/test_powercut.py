"""The node's storage on a real ext4 that is cut, filled or broken under it; needs root and FUSE (tests/powercut)."""

from __future__ import annotations

from pathlib import Path

import pytest
import rig
from storage_fixtures import make_rig

from agent.board import Board
from agent.clock import SimulatedClock, read
from agent.disk import Disk
from agent.ledger import Ledger

pytest_plugins = ["closing"]
needs_rig = pytest.mark.skipif(bool(rig.missing()), reason=f"the recorded disk {rig.missing()}")


@needs_rig
@pytest.mark.parametrize("noise", [False, True], ids=["alone", "beside a program that syncs"])
def test_no_cut_of_a_real_file_system_loses_what_was_durable(noise: bool) -> None:
    outcome = rig.cut(24, seed=4, noise=noise)
    assert outcome.violations == []
    assert outcome.states >= 15
    assert outcome.tokens > 50


@needs_rig
def test_a_ledger_that_syncs_less_is_caught() -> None:
    assert rig.cut(45, seed=1, mutant="synchronous-normal").violations


@needs_rig
@pytest.mark.parametrize("kind", ["enospc", "eio", "ro"])
def test_a_disk_that_fails_under_the_node_loses_nothing_that_was_durable(kind: str) -> None:
    """With ENOSPC events go on being stored in the ledger's own room, and recording goes on within 30 s of space."""
    assert rig.fault(kind).violations == []


@needs_rig
def test_what_health_says_was_written_is_what_the_device_took() -> None:
    """Beside it the device takes the file system's own journal."""
    disk = rig.Disk(96)
    try:
        disk.up()
        node = make_rig(disk.mount / "node")
        node.storage.open()
        node.film(2)
        rig.sh("sync", "-f", str(disk.mount))
        told_mb, device_mb = Board(Path("/")).written_mb(), disk.written_mb()
        for _ in range(20):
            node.event_of(2, post_s=4)
        rig.sh("sync", "-f", str(disk.mount))
        told_mb, device_mb = (Board(Path("/")).written_mb() or 0) - (told_mb or 0), disk.written_mb() - device_mb
        node.storage.close()
    finally:
        disk.down()
        disk.remove()
    assert told_mb > 1
    assert 0.6 < told_mb / device_mb < 1.1


def test_every_commit_of_the_ledger_is_synced(tmp_path: Path) -> None:
    ledger = Ledger(Disk(), tmp_path, node="cam-1")
    ledger.open(None, read(SimulatedClock()))
    assert ledger._database is not None
    assert ledger._database.execute("pragma synchronous").fetchone() == (2,)
    assert ledger._database.execute("pragma journal_mode").fetchone() == ("wal",)
    ledger.close()
