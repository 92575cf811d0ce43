"""systemd's watchdog is fed by progress only: each stage that stalls, one at a time, stops the feeding."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from stepped import SteppedNode

from agent.cameras.fake import FakeSource
from agent.cameras.scenes import BUILT_IN
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
