"""What the node costs: each stage per frame, resident memory, and the way of an event to a subscriber.

Run by scripts/bench. Prints a table; speed is never asserted, since machines are noisy. Figures of a run on a named
machine stand in docs/PERFORMANCE.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker import Mosquitto, Subscriber
from link_fixtures import Desk
from program import Program, write_settings

from agent import thumbnail
from agent.cameras.encode import H264Encoder
from agent.cameras.fake import FakeSource
from agent.cameras.paced import PacedCamera
from agent.cameras.scene import Scene, Walker
from agent.cameras.scenes import BUILT_IN
from agent.cameras.video import VideoOptions, VideoSource
from agent.clock import SystemClock
from agent.clock import read as read_clock
from agent.disk import Disk
from agent.handoffs import EventBoard, FrameSlot, PacketRing, StatusBoard
from agent.ledger import Ledger, Revision
from agent.model import NS_PER_S, Event, EventKind, Frame, Packet, Phase
from agent.motion import Detector
from agent.mp4 import FragmentMuxer
from agent.node import Node
from agent.settings import load_settings
from agent.ulid import new_ulid
from agent.vision import Vision

WIDTH, HEIGHT, FPS = 640, 480, 15
FRAMES = 300
ROUNDS = 5
COMMITS = 200
MESSAGES = 1000

QUICK: Scene = replace(
    BUILT_IN["empty"],
    name="bench",
    period_s=4,
    walkers=(Walker(at_s=1, speed=0.8, height=0.6),),
)
"""Somebody hurries by every four seconds."""


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.packets: list[Packet] = []

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(frame)

    def on_packet(self, packet: Packet) -> None:
        self.packets.append(packet)


class Ignored:
    """A sink that keeps nothing."""

    def on_frame(self, frame: Frame) -> None:
        pass

    def on_packet(self, packet: Packet) -> None:
        pass


def record(scene: Scene, width: int, height: int, frames: int, bitrate_kbps: int) -> Kept:
    source = FakeSource(scene, width=width, height=height, fps=FPS, bitrate_kbps=bitrate_kbps)
    kept = Kept()
    source.open(0)
    for _ in range(frames):
        source.step(kept)
    source.close()
    return kept


def write_video(path: Path, packets: Sequence[Packet]) -> Path:
    muxer = FragmentMuxer(packets[0])
    path.write_bytes(b"".join(map(muxer.mux, packets)) + muxer.close())
    return path


def cost(name: str, make: Callable[[], Callable[[Any], object]], items: Iterable[Any]) -> tuple[str, float, float]:
    """(name, median over rounds of CPU microseconds per item, MB that one item allocates at its peak)."""
    things = list(items)
    rounds = []
    for _ in range(ROUNDS):
        work = make()
        started_ns = time.thread_time_ns()
        for thing in things:
            work(thing)
        rounds.append((time.thread_time_ns() - started_ns) / 1000 / len(things))
    work = make()
    for thing in things[:20]:
        work(thing)
    tracemalloc.start()
    peaks = []
    for thing in things[20:60]:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        work(thing)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    return name, statistics.median(rounds), statistics.median(peaks) / 1e6 if peaks else 0.0


def stage_costs(directory: Path) -> list[tuple[str, float, float]]:
    kept = record(QUICK, WIDTH, HEIGHT, FRAMES, 1000)
    quiet = record(BUILT_IN["empty"], WIDTH, HEIGHT, FRAMES, 1000)
    video = write_video(directory / "bench.mp4", kept.packets)

    def capture() -> Callable[[Any], object]:
        source = FakeSource(QUICK, width=WIDTH, height=HEIGHT, fps=FPS, want_packets=False)
        source.open(0)
        return lambda _: source.step(Ignored())

    def decode() -> Callable[[Any], object]:
        source = VideoSource(VideoOptions(source=str(video), loop=True, want_packets=False), SystemClock())
        source.open(0)
        return lambda _: source.step(Ignored())

    def encode() -> Callable[[Any], object]:
        encoder = H264Encoder(WIDTH, HEIGHT, FPS, 1000, 1.0)
        return lambda frame: encoder.encode(frame.y, frame.u, frame.v, frame.t_ns, frame.seq)

    def mux() -> Callable[[Any], object]:
        return FragmentMuxer(kept.packets[0]).mux

    def spine(frames: Sequence[Frame]) -> Callable[[], Callable[[Any], object]]:
        settings = load_settings(environ={})

        def make() -> Callable[[Any], object]:
            ring, slot, board = PacketRing(4_000_000), FrameSlot(), EventBoard()
            vision = Vision(settings, slot, board, StatusBoard(), lambda: new_ulid(0))
            packets = iter(kept.packets)

            def one(frame: Frame) -> None:
                ring.put(next(packets))
                slot.put(frame)
                vision.step(0)

            return one

        return make

    return [
        cost("capture (fake camera, drawing)", capture, range(FRAMES)),
        cost("decode (H.264 file) and lores", decode, range(FRAMES)),
        cost("motion, nobody there", lambda: Detector(WIDTH, HEIGHT).step, quiet.frames),
        cost("motion, somebody passes", lambda: Detector(WIDTH, HEIGHT).step, kept.frames),
        cost("thumbnail (per event revision)", lambda: thumbnail.encode, kept.frames[:100]),
        cost("encode (libx264)", encode, kept.frames),
        cost("mux", mux, kept.packets),
        cost("ring + slot + vision, nobody there", spine(quiet.frames), quiet.frames),
        cost("ring + slot + vision, somebody passes", spine(kept.frames), kept.frames),
    ]


def commit_cost(directory: Path) -> tuple[float, float]:
    """Median and p99 of milliseconds for one event revision with a new thumbnail, on this disk."""
    kept = record(QUICK, WIDTH, HEIGHT, 40, 1000)
    picture = thumbnail.encode(kept.frames[-1])
    clock = SystemClock()
    directory.mkdir()
    ledger = Ledger(Disk(), directory, node="bench")
    ledger.open(None, read_clock(clock))
    took = []
    for number in range(COMMITS):
        moment = replace(kept.frames[-1].moment, t_ns=clock.boot_ns())
        event = Event(
            new_ulid(number), 1, Phase.START, EventKind.MOTION, moment, moment, moment, 0.9,
            thumbnail=replace(picture, moment=moment),
        )  # fmt: skip
        started_ns = time.monotonic_ns()
        ledger.store_events([Revision(event, None, moment.t_ns)], read_clock(clock))
        took.append((time.monotonic_ns() - started_ns) / 1e6)
    ledger.close()
    return statistics.median(took), percentile(took, 99)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]


def resident_mb(directory: Path, port: int, seconds: float) -> dict[str, float]:
    """Peak resident memory of a whole `camera-agent run` at 1080p15, 2 Mbit/s and 10 s of pre-roll, by source."""
    kept = record(replace(QUICK, period_s=20), 1920, 1080, 20 * FPS, 2000)
    video = write_video(directory / "full-hd.mp4", kept.packets)
    del kept
    figures = {}
    clips = {"pre_roll_s": 10.0, "post_roll_s": 2.0}
    cameras: dict[str, dict[str, Any]] = {
        "1080p video, packets kept": {"backend": "video", "source": str(video), "loop": True},
        "1080p fake camera, software encoder": {"width": 1920, "height": 1080, "fps": FPS, "bitrate_kbps": 2000},
    }
    for name, camera in cameras.items():
        place = directory / name.split(",")[0].replace(" ", "-")
        place.mkdir()
        config = write_settings(place, port, camera={**camera, "bitrate_kbps": 2000}, clips=clips)
        with Program(place, "run", "--config", config) as node:
            threading.Event().wait(seconds)
            status = Path(f"/proc/{node.pid}/status").read_text()
            figures[name] = next(
                int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")
            )
            node.signal(signal.SIGTERM)
    return figures


class Remembering:
    """A source that remembers when each frame was captured, for the bench to compare with what arrives."""

    is_live = False

    def __init__(self, source: FakeSource) -> None:
        self._source = source
        self.captured_ns: list[int] = []
        self.open, self.close, self.next_t_ns = source.open, source.close, source.next_t_ns

    def step(self, sink: Any) -> bool:
        kept = Kept()
        more = self._source.step(kept)
        for frame in kept.frames:
            self.captured_ns.append(frame.t_ns)
        for packet in kept.packets:
            sink.on_packet(packet)
        for frame in kept.frames:
            sink.on_frame(frame)
        return more


def latencies(directory: Path, port: int, events: int) -> tuple[list[float], list[float]]:
    """Milliseconds to a subscriber in another process from the confirming frame, and from the first that moved."""
    listener = subprocess.Popen(
        [sys.executable, __file__, "--listen", str(port), "--events", str(events)], stdout=subprocess.PIPE, text=True
    )
    assert listener.stdout is not None
    assert listener.stdout.readline() == "ready\n"
    clock = SystemClock()
    source = FakeSource(QUICK, width=WIDTH, height=HEIGHT, fps=FPS, bitrate_kbps=1000)
    remembering = Remembering(source)
    settings = load_settings(
        environ={},
        overrides={
            # Each passer-by is an event of its own here, however many come.
            "detection": {"quiet_s": 0.5, "still_s": 0, "storm_per_min": 0},
            "clips": {
                "directory": str(directory / "latency"),
                "post_roll_s": 0.5,
                "pre_roll_s": 1.0,
                "min_free_mb": 0,
            },
            "mqtt": {"host": "127.0.0.1", "port": port},
        },
    )
    node = Node(settings, clock, PacedCamera(remembering, clock))
    worker = threading.Thread(target=node.run)
    worker.start()
    lines = [json.loads(line) for line in listener.stdout]
    node.stop()
    worker.join()
    listener.wait()
    moving = [source.truth(number).boxes != () for number in range(len(remembering.captured_ns))]
    confirmed, first = [], []
    for line in lines:
        number = remembering.captured_ns.index(line["t_ns"])
        confirmed.append((line["at_ns"] - line["t_ns"]) / 1e6)
        while number > 0 and moving[number - 1]:
            number -= 1
        first.append((line["at_ns"] - remembering.captured_ns[number]) / 1e6)
    return confirmed, first


def listen(port: int, events: int) -> int:
    """The other process: prints when each event's first revision arrived."""
    clock = SystemClock()
    subscriber = Subscriber(port, "edgecam/#")
    print("ready", flush=True)
    came = 0
    while came < events:
        subscriber.wait_a_moment()
        at_ns = clock.boot_ns()
        for message in subscriber.take_all():
            body = json.loads(message.payload) if message.topic.endswith("/event") else {}
            if body.get("phase") == "start":
                came += 1
                late_ns = round((time.monotonic() - message.at_s) * NS_PER_S)
                print(json.dumps({"t_ns": body["t_ns"], "at_ns": at_ns - late_ns}), flush=True)
    subscriber.close()
    return 0


def publish_cost(directory: Path, port: int) -> tuple[float, float]:
    """(CPU microseconds per message in this process, messages per second) for rows of 20 kB over a real broker."""
    desk = Desk(port, drain_per_s=1_000_000)  # the pace is for brokers that come back, not for a bench
    for number in range(MESSAGES // 2):
        desk.outbox.event(number + 1, thumb=os.urandom(20_000))
    subscriber = Subscriber(port)
    desk.connect()
    cpu_ns, started_s = time.thread_time_ns(), time.monotonic()
    desk.step_until(desk.drained)
    spent_us = (time.thread_time_ns() - cpu_ns) / 1000 / MESSAGES
    rate = MESSAGES / (time.monotonic() - started_s)
    desk.link.close(2)
    subscriber.close()
    return spent_us, rate


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--events", type=int, default=60, metavar="N", help="events for the latency figures (default: 60)"
    )
    parser.add_argument("--listen", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.events < 1:
        parser.error(f"--events {args.events}: at least 1")
    if args.listen:
        return listen(args.listen, args.events)
    print(f"machine: {machine()}")
    with tempfile.TemporaryDirectory(prefix="camera-agent-bench-") as name:
        directory = Path(name)
        print(f"\n{'stage, 640x480 lores':<40}{'us CPU/frame':>14}{'MB/frame':>10}")
        for stage, us, mb in stage_costs(directory):
            print(f"{stage:<40}{us:>14.0f}{mb:>10.2f}", flush=True)
        median_ms, p99_ms = commit_cost(directory / "ledger")
        print(f"{'ledger commit (per event revision)':<40}{median_ms * 1000:>14.0f}   wall time; p99 {p99_ms:.1f} ms")
        broker = Mosquitto(directory / "broker").start()
        try:
            us, rate = publish_cost(directory, broker.port)
            print(f"{'publish (per message, half of 20 kB)':<40}{us:>14.0f}   {rate:.0f} messages/s", flush=True)
            for source, mb in resident_mb(directory, broker.port, 25).items():
                print(f"resident memory, {source}: {mb:.0f} MiB at most", flush=True)
            confirmed, first = latencies(directory, broker.port, args.events)
        finally:
            broker.stop()
        for what, values in (("the confirming frame", confirmed), ("the first frame that moved", first)):
            print(
                f"capture of {what} -> event at a subscriber: median {statistics.median(values):.1f} ms, "
                f"p99 {percentile(values, 99):.1f} ms, {len(values)} events at {FPS} fps"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
