"""systemd's watchdog is fed by progress only: each stage that stalls, one at a time, stops the feeding."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from stepped import SteppedNode

from agent.cameras.fake import FakeSource
from agent.cameras.scene import Walker
from agent.cameras.scenes import BUILT_IN
from agent.ledger_reader import LedgerReader
from agent.model import NS_PER_S
from agent.node import BEAT_LIMIT_S, Node, _Worker
from agent.settings import load_settings

pytest_plugins = ["closing"]


class Watched:
    """A stepped node whose stages are all watched, as in run(), and go on unless they are held."""

    def __init__(self, directory: Path) -> None:
        camera = {"backend": "fake", "width": 320, "height": 240, "fps": 5, "silence_s": 3}
        overrides = {
            "camera": camera,
            "clips": {"directory": directory, "min_free_mb": 0},
            "mqtt": {"host": "127.0.0.1", "port": 1},
        }
        self.stepped = SteppedNode(
            load_settings(environ={}, overrides=overrides),
            FakeSource(replace(BUILT_IN["empty"]), width=320, height=240, fps=5),
        )
        self.held: set[str] = set()
        idle = threading.Event()
        self.workers = {
            name: _Worker(name, threading.Thread(), idle, self.stepped.clock.boot_ns()) for name in BEAT_LIMIT_S
        }
        self.node._workers = list(self.workers.values())

    @property
    def node(self) -> Node:
        return self.stepped.node

    def live(self, seconds: int) -> str:
        """Let time pass; what the watchdog would say at the end."""
        for _ in range(seconds):
            self.stepped.run(1)
            for name, worker in self.workers.items():
                if name not in self.held:
                    worker.beat_ns = self.stepped.clock.boot_ns()
        return self.node.stuck(self.stepped.clock.boot_ns())


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    found = Watched(tmp_path)
    assert found.live(15) == ""
    return found


@pytest.mark.parametrize("stage", sorted(BEAT_LIMIT_S))
def test_a_stage_that_stalls_stops_the_feeding(watched: Watched, stage: str) -> None:
    watched.held = {stage}
    assert watched.live(int(BEAT_LIMIT_S[stage]) + 2).startswith(f"{stage} has not moved")
    watched.held = set()
    assert watched.live(1) == ""


def test_frames_that_are_not_analysed_stop_the_feeding(watched: Watched) -> None:
    last = watched.node.vision.status
    watched.live(40)
    watched.node.vision.status = last  # it turns round and round, and takes no frame
    assert "no frame has been analysed" in watched.node.stuck(watched.stepped.clock.boot_ns())


def test_a_camera_that_is_silent_and_not_restarted_stops_the_feeding(watched: Watched) -> None:
    now_ns = watched.stepped.clock.boot_ns()
    for worker in watched.workers.values():
        worker.beat_ns = now_ns + 40 * NS_PER_S
    assert "no frame has come" in watched.node.stuck(now_ns + 40 * NS_PER_S)


def test_a_disk_that_takes_nothing_stops_the_feeding_unless_its_trouble_is_told(watched: Watched) -> None:
    node, clock = watched.node, watched.stepped.clock
    watched.live(1)
    later_ns = clock.boot_ns() - 200 * NS_PER_S
    node.storage.status = replace(node.storage.status, last_durable_ns=later_ns, trouble="")
    assert "nothing has been written to the disk" in node.stuck(clock.boot_ns())
    node.storage.status = replace(node.storage.status, trouble="the disk is full")
    assert node.stuck(clock.boot_ns()) == ""


def test_a_disk_that_hangs_stops_no_motion_and_fills_no_memory(tmp_path: Path) -> None:
    """The storage stands in an fsync for two minutes; the room it leaves behind it is bounded, events wait."""
    scene = replace(BUILT_IN["empty"], period_s=15, walkers=(Walker(at_s=3, speed=0.8, height=0.6),))
    overrides = {
        "camera": {"backend": "fake", "width": 320, "height": 240, "fps": 5},
        "detection": {"quiet_s": 0.5},
        "clips": {"directory": tmp_path, "min_free_mb": 0, "pre_roll_s": 1},
        "mqtt": {"host": "127.0.0.1", "port": 1},
    }
    stepped = SteppedNode(
        load_settings(environ={}, overrides=overrides), FakeSource(scene, width=320, height=240, fps=5)
    )
    node = stepped.node
    stepped.run(20)
    before = len(LedgerReader(tmp_path).events())
    step, frames = node.storage.step, node.vision.status.frames
    node.storage.step = lambda wait_s: None  # type: ignore[method-assign]
    bytes_held = []
    for _ in range(12):
        stepped.run(10)
        bytes_held.append(node.ring._bytes)
    assert node.vision.status.frames - frames == 120 * 5
    assert node.vision.status.skipped == 0
    assert max(bytes_held[3:]) <= 1.1 * max(bytes_held[:3]), "what waits does not grow"
    node.storage.step = step  # type: ignore[method-assign]
    stepped.run(30)
    events = LedgerReader(tmp_path).events()
    assert len(events) - before >= 8, "what happened meanwhile was stored afterwards, one event each 15 s"
    assert node.board.lost == 0
    assert "gap" in {flag for clip in LedgerReader(tmp_path).clips() for flag in clip.flags}
    stepped.stop()
