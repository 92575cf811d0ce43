"""`camera-agent demo`: a broker, a node and a watcher on this machine, nothing configured. Writes below --out."""

from __future__ import annotations

import argparse
import datetime as dt
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomlkit

from agent.cameras.open import open_source
from agent.cli import load_settings, number
from agent.cli.chosen import read_state
from agent.cli.local_broker import LocalBroker
from agent.cli.watch import FEEDS, Watcher, watch
from agent.clock import SystemClock
from agent.configuration import STATE_NAME
from agent.errors import ConfigError
from agent.topics import Topics

HELP = "the whole thing on this machine: a broker, a node on the fake camera or VIDEO, and what it sends"

NODE = {"id": "demo", "site": "demo", "name": "Cửa chính"}
STOP_LIMIT_S = 20.0
LAST_WORDS_S = 1.0
"""After the node has gone its last messages are still on their way through the broker."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", nargs="?", metavar="VIDEO", help="a video file instead of the fake camera")
    parser.add_argument("--seconds", type=number(1), metavar="N", help="end after so long (default: at Ctrl-C)")
    parser.add_argument("--scene", default="office", help="scene of the fake camera (default: office)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), metavar="DIR", help="where things go (default: demo-output)"
    )


def run(args: argparse.Namespace) -> int:
    directory = _make_directory(args.out)
    settings = _settings(args, directory)
    _look_at_camera(settings)
    with LocalBroker(directory) as broker:
        settings["mqtt"] = {"host": "127.0.0.1", "port": broker.port}
        config = directory / "agent.toml"
        config.write_text(tomlkit.dumps(settings), encoding="utf-8")
        print(f"broker    {broker.name} on 127.0.0.1:{broker.port}; for a look of your own:")
        print(f"          mosquitto_sub -h 127.0.0.1 -p {broker.port} -t 'edgecam/#' -v")
        print(f"node      {args.video or f'fake camera, scene {args.scene}'}; its log: {directory / 'node.log'}")
        print(f"pictures  {directory / 'pictures'}")
        print(f"clips     {directory / 'node' / 'clips'}")
        print("Ctrl-C ends it." if args.seconds is None else f"It ends after {args.seconds:g} s.", flush=True)
        return _watch(lambda: _start(config), args.seconds, directory)


def _start(config: Path) -> subprocess.Popen[bytes]:
    with (config.parent / "node.log").open("ab") as node_log:
        # A session of its own: Ctrl-C reaches this process only, which then stops the node in order.
        return subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stderr=node_log,
            start_new_session=True,
        )


def _watch(start: Callable[[], subprocess.Popen[bytes]], seconds: float | None, directory: Path) -> int:
    settings = load_settings(directory / "agent.toml", environ={})
    topics = Topics(settings.mqtt.root, settings.node.site, settings.node.id)
    watcher = Watcher(
        lambda line: print(line, flush=True),
        root=settings.mqtt.root,
        save=directory / "pictures",
        clips=settings.clips.directory / "clips",
    )
    state = settings.clips.directory / STATE_NAME
    lifetime = Lifetime(start, lambda: read_state(state).verdict.status == "pending-restart", seconds)
    earlier = {number: signal.signal(number, lifetime.ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        watch(settings.mqtt, [topics.at(feed) for feed in FEEDS], watcher, lifetime.is_over)
    finally:
        lifetime.end()
        for number, handler in earlier.items():
            signal.signal(number, handler)
    told = watcher.told
    print(f"\n{told['event']} events, {told['thumb']} pictures, {told['clip']} clips in {directory}")
    print(f"look at them: camera-agent clips list --directory {settings.clips.directory}")
    if lifetime.returncode != 0:
        log = directory / "node.log"
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        print(
            f"camera-agent: the node ended with code {lifetime.returncode}: {' '.join(last)} (see {log})",
            file=sys.stderr,
        )
        return 1
    return 0


class Lifetime:
    """When the demo is over: its time is up or somebody said so, the node has shut down, and its last words came.

    start: starts the node. waits_for_start: whether it ended for settings that only a start applies, and somebody has
    to be what systemd is elsewhere.
    """

    def __init__(
        self,
        start: Callable[[], subprocess.Popen[bytes]],
        waits_for_start: Callable[[], bool],
        seconds: float | None,
    ) -> None:
        self._start = start
        self._waits_for_start = waits_for_start
        self._node = start()
        self._end_s = None if seconds is None else time.monotonic() + seconds
        self._asked_s: float | None = None
        self._gone_s: float | None = None

    @property
    def returncode(self) -> int | None:
        return self._node.returncode

    def ask_to_stop(self, *_: object) -> None:
        """A signal: end in order; the second one does not wait."""
        if self._asked_s is not None:
            self._node.kill()
        self._end_s = time.monotonic()

    def is_over(self) -> bool:
        now_s = time.monotonic()
        if self._gone_s is not None:
            return now_s - self._gone_s > LAST_WORDS_S
        if self._node.poll() is not None:
            if self._node.returncode == 0 and self._asked_s is None and self._waits_for_start():
                self._node = self._start()
                return False
            self._gone_s = now_s
        elif self._asked_s is not None:
            if now_s - self._asked_s > STOP_LIMIT_S:
                self._node.kill()
        elif self._end_s is not None and now_s >= self._end_s:
            self._asked_s = now_s
            self._node.terminate()
        return False

    def end(self) -> None:
        """Whatever happened, leave no node behind."""
        if self._node.poll() is None:
            self._node.terminate()
            try:
                self._node.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._node.kill()
                self._node.wait()


def _make_directory(out: Path) -> Path:
    directory = (out / f"{dt.datetime.now():%Y%m%d-%H%M%S}").absolute()
    try:
        (directory / "pictures").mkdir(parents=True)
    except OSError as error:
        raise ConfigError("create", directory, error, hint="--out takes a directory that may be written") from error
    return directory


def _settings(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    camera = (
        {"backend": "video", "source": str(Path(args.video).absolute())}
        if args.video
        else {"backend": "fake", "scene": args.scene, "width": 960, "height": 540}
    )
    return {
        "node": NODE,
        "camera": camera,
        "detection": {"quiet_s": 2.0},
        "clips": {"directory": str(directory / "node"), "pre_roll_s": 3.0, "post_roll_s": 2.0, "min_free_mb": 100},
        "health": {"interval_s": 5.0},
    }


def _look_at_camera(settings: dict[str, Any]) -> None:
    """A node waits for a camera that is absent; a demo of a video that cannot be read says so at once."""
    source = open_source(load_settings(overrides=settings, environ={}), SystemClock())
    try:
        source.open(0)
    finally:
        source.close()
