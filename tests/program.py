"""`camera-agent` as a child process, as an installer or systemd runs it; and scenes quick enough for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomlkit
from broker import DEADLINE_S

from agent.cameras.fake import FakeSource
from agent.cameras.scene import Walker
from agent.cameras.scenes import BUILT_IN
from agent.model import Frame, Packet
from agent.mp4 import FragmentMuxer

QUICK_SCENE = """
name = "quick"
place = "office"
period_s = 4

[[walkers]]
at_s = 1.8
speed = 1.2
height = 0.6
"""
"""Somebody hurries by from 1.8 to 2.8 s of every 4, as soon as a node may know the room: events come and end soon."""


def write_settings(directory: Path, port: int, **more: Any) -> Path:
    """agent.toml for a small quick node below directory; more: sections to add or change."""
    scene = directory / "quick.toml"
    scene.write_text(QUICK_SCENE)
    tree: dict[str, Any] = {
        "node": {"id": "door", "site": "ward-12", "name": "Cửa chính"},
        "camera": {"backend": "fake", "scene": str(scene), "width": 320, "height": 240, "fps": 10, "silence_s": 3},
        "detection": {"quiet_s": 0.5},
        "clips": {"directory": str(directory / "node"), "pre_roll_s": 1.0, "post_roll_s": 0.5, "min_free_mb": 0},
        "mqtt": {"host": "127.0.0.1", "port": port},
        "health": {"interval_s": 1.0},
    }
    for section, values in more.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    path = directory / "agent.toml"
    path.write_text(tomlkit.dumps(tree), encoding="utf-8")
    return path


class Program:
    """`camera-agent ARGS` with its standard error in a file; ended by its pid when the `with` block ends."""

    def __init__(self, directory: Path, *args: object, environ: dict[str, str] | None = None) -> None:
        self._log = directory / "program.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent", *map(str, args)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **(environ or {})},
            )
        self.pid = self._process.pid

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: signal.Signals) -> int:
        """Send it and wait for the end; the exit code."""
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(DEADLINE_S)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


def camera_agent(*args: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "agent", *map(str, args)], capture_output=True, text=True, timeout=DEADLINE_S * 2
    )


def write_recording(path: Path, seconds: float) -> Path:
    """A video file of the quick scene, made without running a node."""
    frames = Packets()
    source = FakeSource(
        replace(BUILT_IN["empty"], period_s=6, walkers=(Walker(at_s=3, speed=0.8, height=0.6),)),
        width=320,
        height=240,
        fps=10,
    )
    source.open(0)
    for _ in range(round(seconds * 10)):
        source.step(frames)
    source.close()
    muxer = FragmentMuxer(frames.packets[0])
    path.write_bytes(b"".join(map(muxer.mux, frames.packets)) + muxer.close())
    return path


class Packets:
    """A sink that keeps what is encoded."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []

    def on_packet(self, packet: Packet) -> None:
        self.packets.append(packet)

    def on_frame(self, frame: Frame) -> None:
        pass
