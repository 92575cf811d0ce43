"""`camera-agent replay`: the node's pipeline over a recording, without a broker. Reads the recording, prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agent.cameras.video import VideoOptions, VideoSource
from agent.cli import add_config, load_settings, refuse_streams
from agent.clock import SimulatedClock, SystemClock
from agent.errors import ConfigError, StorageError
from agent.handoffs import AckBox, Doorbell, EventBoard, FrameSlot, StatusBoard
from agent.model import NS_PER_S, EndReason, Event, Frame, Motion, Packet, Phase, StreamInfo, Thumbnail
from agent.settings import Settings
from agent.ulid import new_ulid
from agent.vision import Vision

HELP = "run the detector over a recording and print its events; no broker, no camera"

T0_NS = NS_PER_S
"""Boot-clock time given to the first frame: any fixed one, so that two runs are alike."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="a recording in any format that FFmpeg reads")
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per line: events, then a summary")
    parser.add_argument("--frames", action="store_true", help="with --json: also one line per analysed frame")
    parser.add_argument(
        "--clips", type=Path, metavar="DIR", help="record the events' clips, pictures and strips into DIR"
    )
    parser.add_argument("--annotate", type=Path, metavar="OUT.mp4", help="a video of what the detector sees")
    parser.add_argument("--sensitivity", type=int, metavar="0-100", help="instead of the settings' own")


def run(args: argparse.Namespace) -> int:
    if args.frames and not args.json:
        raise ConfigError("read", "--frames", "it prints JSON lines", hint="add --json")
    settings = _settings(args)
    report = _JsonLines(args.frames) if args.json else _Table()
    with contextlib.ExitStack() as stack:
        watch = None
        if args.annotate is not None:
            if args.annotate.suffix.lower() != ".mp4":
                raise ConfigError("write", str(args.annotate), "not an .mp4", hint="name it OUT.mp4")
            with contextlib.suppress(OSError):
                if args.annotate.samefile(args.video):
                    raise ConfigError(
                        "write", args.annotate, "it is the recording itself", hint="name another OUT.mp4"
                    )
            from agent.cli.annotated import AnnotatedVideo

            watch = stack.enter_context(AnnotatedVideo(args.annotate, settings.zones)).see
        replay = Replay(settings, report.event, report.frame, clips=args.clips, watch=watch)
        # A bar among JSON lines on one terminal would garble both.
        is_quiet = not sys.stderr.isatty() or (args.json and sys.stdout.isatty())
        name = Path(args.video).name
        bar = stack.enter_context(tqdm(desc=name, unit=" frames", disable=is_quiet, leave=False))
        replay.run(bar.update, bar.reset)
    report.summary(replay.summary())
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    overrides: dict[str, Any] = {"camera": {"backend": "video", "source": args.video, "loop": False}}
    if args.sensitivity is not None:
        overrides["detection"] = {"sensitivity": args.sensitivity}
    if args.clips is not None:
        overrides["clips"] = {"directory": args.clips, "enabled": True}
    refuse_streams(args.video, "replay")
    return load_settings(args.config, overrides=overrides)


class Replay:
    """The pipeline of one recording, stepped frame by frame as fast as the machine allows.

    on_event is told each event when it has ended, and the t_ns of the first frame; on_frame each analysed
    frame's motion. clips: a directory that gets the events' clips, ledger and pictures, or None.
    watch: called after each analysed frame.
    """

    def __init__(
        self,
        settings: Settings,
        on_event: Callable[[Event, int], None],
        on_frame: Callable[[Motion], None],
        clips: Path | None = None,
        watch: Callable[[Frame, Vision], None] | None = None,
    ) -> None:
        camera = settings.camera
        self._source = VideoSource(
            VideoOptions(
                source=camera.source,
                lores_width=camera.lores_width,
                lores_height=camera.lores_height,
                bitrate_kbps=camera.bitrate_kbps,
                gop_s=settings.clips.gop_s,
                masks=tuple(tuple(zone.polygon) for zone in settings.zones if zone.kind == "privacy"),
                want_packets=clips is not None,
            ),
            SystemClock(),
        )
        self._frames: list[Frame] = []
        self._slot = FrameSlot()
        self._ended: list[Event] = []
        self._board = _Board(self._ended)
        self._shelf = _Shelf(settings, clips, self._board) if clips is not None else None
        self._ids = 0
        on_strip = self._shelf.keep_strip if self._shelf is not None else None
        # Without clips nobody sees a picture, and each costs as much as ten frames.
        with_pictures = self._shelf is not None
        self._vision = Vision(
            settings, self._slot, self._board, StatusBoard(), self._new_id, on_strip, with_pictures=with_pictures
        )
        self._on_event = on_event
        self._on_frame = on_frame
        self._watch = watch
        self._events = 0
        self._seen = 0
        self._t0_ns = T0_NS
        self._info: StreamInfo | None = None
        self._wall_s = time.perf_counter()
        self._cpu_s = time.process_time()

    def run(self, progress: Callable[[int], object], expects: Callable[[int], object]) -> None:
        """The whole recording. expects: told once about how many frames. Raises CameraError if it cannot be read."""
        self._info = self._source.open(T0_NS)
        expects(self._source.packets)
        try:
            if self._shelf is not None:
                self._shelf.open()
            while self._source.step(self):
                progress(self._look())
            progress(self._look())
        finally:
            self._source.close()
        self._vision.close(EndReason.SHUTDOWN)
        self._report()
        if self._shelf is not None:
            self._shelf.close()

    def on_packet(self, packet: Packet) -> None:
        if self._shelf is not None:
            self._shelf.ring.put(packet)

    def on_frame(self, frame: Frame) -> None:
        """One step may deliver several frames (B-frames, the end); the slot would keep only the newest."""
        self._frames.append(frame)

    def _look(self) -> int:
        frames, self._frames = self._frames, []
        for frame in frames:
            if self._seen == 0:
                self._t0_ns = frame.t_ns  # with B-frames the first picture is shown later than T0_NS
            self._seen += 1
            self._slot.put(frame)
            if self._vision.step(0) and self._vision.motion is not None:
                self._on_frame(self._vision.motion)
                if self._watch is not None:
                    self._watch(frame, self._vision)
            self._report()
            if self._shelf is not None:
                self._shelf.step(frame.t_ns)
        return len(frames)

    def _report(self) -> None:
        for event in self._ended:
            self._events += 1
            self._on_event(event, self._t0_ns)
            if self._shelf is not None:
                self._shelf.keep_thumbnail(event)
        self._ended.clear()
        if self._shelf is None:
            self._board.take()

    def _new_id(self) -> str:
        self._ids += 1
        # Without a ledger nobody sees the ids; in a ledger they must not be those of an earlier replay.
        return new_ulid(0, self._ids) if self._shelf is None else new_ulid(time.time_ns() // 1_000_000)

    def summary(self) -> dict[str, Any]:
        info = self._info
        assert info is not None
        return {
            "type": "summary",
            "frames": self._seen,
            "fps": round(info.fps, 4),
            "width": info.width,
            "height": info.height,
            "events": self._events,
            "cpu_s": round(time.process_time() - self._cpu_s, 3),
            "wall_s": round(time.perf_counter() - self._wall_s, 3),
            # Linux counts ru_maxrss in KiB.
            "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


class _Board(EventBoard):
    """A board that also notes what has ended: storage takes all states from it, and would take these too."""

    def __init__(self, ended: list[Event]) -> None:
        super().__init__()
        self._ended = ended

    def put(self, event: Event) -> None:
        if event.phase is Phase.END:
            self._ended.append(event)
        super().put(event)


class _Shelf:
    """The node's storage on the recording's own time, which begins when the file was last written to."""

    def __init__(self, settings: Settings, directory: Path, board: EventBoard) -> None:
        # Late: with the node comes the link, and a replay without clips would load both for nothing.
        from agent.node import packet_ring
        from agent.storage import Storage

        self._directory = directory
        self._thumbnails = 0
        wall_ns = time.time_ns()
        with contextlib.suppress(OSError):
            wall_ns = Path(settings.camera.source).stat().st_mtime_ns
        self._clock = SimulatedClock(T0_NS, wall_ns)
        self.ring = packet_ring(settings)
        self._storage = Storage(settings, self._clock, self.ring, board, AckBox(), Doorbell(), Doorbell())

    def open(self) -> None:
        """Raises StorageError where nothing can be written."""
        self._storage.open()
        self._refuse_trouble()

    def step(self, t_ns: int) -> None:
        if t_ns > self._clock.boot_ns():
            self._clock.move_to(t_ns)
        self._storage.step(0)
        self._refuse_trouble()

    def close(self) -> None:
        self._storage.step(0)
        self._storage.close()

    def keep_thumbnail(self, event: Event) -> None:
        if event.thumbnail is None:
            return
        self._thumbnails += 1
        self._write(self._directory / f"event-{self._thumbnails:04}-frame-{event.peak.frame}.jpg", event.thumbnail)

    def keep_strip(self, event: Event, strip: Thumbnail) -> None:
        """Before, peak and after of an event, told before the event itself is."""
        self._write(self._directory / f"event-{self._thumbnails + 1:04}-strip.jpg", strip)

    def _write(self, path: Path, picture: Thumbnail) -> None:
        try:
            path.write_bytes(picture.jpeg)
        except OSError as error:
            raise StorageError("write", path, error) from error

    def _refuse_trouble(self) -> None:
        # A node degrades and goes on; who replays into a directory wants to know at once.
        if self._storage.status.trouble:
            raise StorageError("write", self._directory, self._storage.status.trouble)


class _JsonLines:
    """One JSON object per line on standard output."""

    def __init__(self, with_frames: bool) -> None:
        self._with_frames = with_frames

    def event(self, event: Event, t0_ns: int) -> None:
        _print_json(event_line(event, t0_ns))

    def frame(self, motion: Motion) -> None:
        if self._with_frames:
            boxes = [[round(side, 4) for side in box] for box in motion.boxes]
            line = {"type": "frame", "frame": motion.seq, "score": motion.score, "active": motion.active}
            _print_json({**line, "boxes": boxes})

    def summary(self, summary: dict[str, Any]) -> None:
        _print_json(summary)


class _Table:
    """For people: a line per event, and one of sums."""

    def __init__(self) -> None:
        self._has_head = False

    def event(self, event: Event, t0_ns: int) -> None:
        if not self._has_head:
            self._has_head = True
            tqdm.write(f"{'from':>9} {'to':>9} {'length':>8} {'score':>5} {'peak frame':>10}  zones")
        line = event_line(event, t0_ns)
        length_s = line["end_s"] - line["start_s"]
        tqdm.write(
            f"{_clock(line['start_s']):>9} {_clock(line['end_s']):>9} {length_s:>6.1f} s {line['score']:>5.2f} "
            f"{line['peak_frame']:>10}  {', '.join(line['zones'])}{_storm(event)}".rstrip()
        )

    def frame(self, motion: Motion) -> None:
        """Frames are for programs."""

    def summary(self, summary: dict[str, Any]) -> None:
        seconds = summary["frames"] / summary["fps"] if summary["fps"] else 0.0
        speed = seconds / summary["wall_s"] if summary["wall_s"] else 0.0
        tqdm.write(
            f"{summary['events']} events in {summary['frames']} frames ({_clock(seconds)}) of "
            f"{summary['width']}x{summary['height']}; {summary['cpu_s']:.1f} s of CPU, {speed:.0f} times real time, "
            f"{summary['max_rss_mb']:.0f} MB"
        )


def event_line(event: Event, t0_ns: int) -> dict[str, Any]:
    """What the contract wants said of an event that has ended."""
    end = event.end or event.last
    return {
        "type": "event",
        "start_frame": event.start.frame,
        "end_frame": end.frame,
        "start_s": round((event.start.t_ns - t0_ns) / NS_PER_S, 3),
        "end_s": round((end.t_ns - t0_ns) / NS_PER_S, 3),
        "peak_frame": event.peak.frame,
        "score": event.score,
        "zones": list(event.zones),
        "kind": event.kind.value,
    }


def _storm(event: Event) -> str:
    return f"  storm: {event.rate_per_min} movements a minute" if event.rate_per_min else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"


def _print_json(line: dict[str, Any]) -> None:
    print(json.dumps(line, separators=(",", ":")))
