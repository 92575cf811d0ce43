"""`camera-agent aim`: what the camera sees while it is hung, the walk test, and the commissioning record."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import threading
import time
from pathlib import Path

from agent import __version__, thumbnail
from agent import commissioning as record
from agent.access import COMMISSIONING
from agent.cameras.open import open_camera
from agent.cli import add_config, count, number
from agent.cli.check import check_broker, check_clock, check_disk, client_id
from agent.cli.chosen import settings_in_force
from agent.clock import SystemClock, rfc3339
from agent.connection import Connection
from agent.disk import Disk
from agent.errors import AgentError, CameraError, LinkError
from agent.handoffs import EventBoard, FrameSlot, StatusBoard
from agent.model import NS_PER_S, Frame, Packet
from agent.records import Check, Record
from agent.settings import Settings
from agent.topics import Topics
from agent.ulid import new_ulid
from agent.vision import Vision

HELP = "see what the camera sees, walk before it, and leave a commissioning record"

BAR = 40
SHOW_EACH_S = 0.25
ANSWER_LIMIT_S = 15.0


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser, required=True)
    parser.add_argument(
        "--walk", type=count(1), default=0, metavar="N", help="count N walks; each must become one event"
    )
    parser.add_argument(
        "--seconds",
        type=number(1),
        default=15,
        metavar="S",
        help="look for S seconds, default 15; walks: at most 60 s each",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: commissioning/ beside the clips")
    parser.add_argument("--no-publish", action="store_true", help="keep the record here only")


class Newest:
    """A sink: the newest frame for the eye, and a copy of it for the picture."""

    def __init__(self) -> None:
        self.slot = FrameSlot()
        self.last: Frame | None = None
        self.came = threading.Event()

    def on_packet(self, packet: Packet) -> None:
        pass

    def on_frame(self, frame: Frame) -> None:
        self.last = frame
        self.slot.put(frame)
        self.came.set()


class Look:
    """What was seen while looking. times_ns, ages_ms: of each analysed frame."""

    def __init__(self) -> None:
        self.times_ns: list[int] = []
        self.ages_ms: list[float] = []
        self.walks = 0

    def fps(self) -> float:
        if len(self.times_ns) < 2:
            return 0.0
        return (len(self.times_ns) - 1) * NS_PER_S / (self.times_ns[-1] - self.times_ns[0])

    def age_ms(self) -> tuple[float, float]:
        ages = sorted(self.ages_ms) or [0.0]
        return round(ages[len(ages) // 2], 1), round(ages[math.ceil(0.95 * len(ages)) - 1], 1)


def run(args: argparse.Namespace) -> int:
    settings, beside = settings_in_force(args.config)
    if beside:
        print(f"settings: {args.config}, {beside}", flush=True)
    out = args.out or settings.clips.directory / COMMISSIONING
    sink, clock = Newest(), SystemClock()
    camera = open_camera(settings, clock)
    info = camera.start(sink)
    try:
        look = watch(settings, sink, clock, args)
        fault = camera.fault()
    finally:
        camera.stop()
    if fault is not None:
        raise fault
    if sink.last is None:
        raise CameraError("look at", info.description, "no frame came", hint="camera-agent check says more")
    light = record.light_of(sink.last.y, settings.zones)
    wanted_fps = settings.detection.fps or (0.0 if settings.camera.backend == "video" else settings.camera.fps)
    checks = [
        record.light_check(light),
        record.fps_check(look.fps(), wanted_fps),
        record.age_check(look.age_ms()),
        *([record.walk_check(look.walks, args.walk)] if args.walk else []),
        *(tried(name, settings) for name in ("clock", "disk", "broker")),
    ]
    plain = thumbnail.encode(sink.last)
    made = Record(
        site=settings.node.site,
        node=settings.node.id,
        name=settings.node.name,
        location=settings.node.location,
        time=rfc3339(clock.wall_ns()),
        clock_synced=clock.synced(),
        version=__version__,
        passed=all(check.passed for check in checks),
        checks=checks,
        camera=info.description,
        fps=round(look.fps(), 2),
        age_ms=look.age_ms(),
        light=(round(light[0], 1), round(light[1], 3), round(light[2], 3)),
        signal_dbm=record.signal_dbm(_wireless()),
        walks_wanted=args.walk,
        walks_seen=look.walks,
        picture_sha256=hashlib.sha256(plain.jpeg).hexdigest(),
    )
    keep(out, made, plain.jpeg, _jpeg(record.with_zones(sink.last, settings.zones)))
    for check in checks:
        print(f"{'pass' if check.passed else 'FAIL'}  {check.what:<9} {check.words}")
        if check.hint and not check.passed:
            print(f"      {'':<9} -> {check.hint}")
    print(f"picture with zones: {out / 'view-zones.jpg'}")
    if not args.no_publish:
        print(publish(settings, made))
    print(f"{'passed' if made.passed else 'NOT passed'}: {out / 'record.json'}")
    return 0 if made.passed else 1


def watch(settings: Settings, sink: Newest, clock: SystemClock, args: argparse.Namespace) -> Look:
    """Look for the time given, or until the walks are done; the score as a bar where a terminal shows it."""
    look, board = Look(), EventBoard()
    vision = Vision(settings, sink.slot, board, StatusBoard(), lambda: new_ulid(clock.wall_ns() // 1_000_000))
    live = sys.stderr.isatty()
    limit_s = args.walk * 60.0 if args.walk else args.seconds
    if args.walk:
        print(f"walk {args.walk} times, standing still in between until it says so", flush=True)
    begin_s = shown_s = time.monotonic()
    was_on = False
    while time.monotonic() - begin_s < limit_s and not (args.walk and look.walks >= args.walk and not vision.is_on):
        if vision.step(SHOW_EACH_S) and vision.motion is not None:
            look.times_ns.append(vision.motion.t_ns)
            look.ages_ms.append((clock.boot_ns() - vision.motion.t_ns) / 1e6)
        if vision.is_on and not was_on:
            look.walks += 1
            if args.walk:
                print(f"seen: {look.walks} of {args.walk}", flush=True)
        elif was_on and not vision.is_on and args.walk:
            print("still again", flush=True)
        was_on = vision.is_on
        if live and time.monotonic() - shown_s >= SHOW_EACH_S:
            shown_s = time.monotonic()
            score = vision.motion.score if vision.motion is not None else 0.0
            word = "MOVES" if vision.is_on else "learning" if vision.status.learning else "still"
            print(f"\r{'#' * round(BAR * score):<{BAR}} {score:.2f} {word:<9}", end="", file=sys.stderr, flush=True)
    if live:
        print(f"\r{'':<{BAR + 16}}\r", end="", file=sys.stderr)
    return look


def tried(name: str, settings: Settings) -> Check:
    checks = {"clock": check_clock, "disk": check_disk, "broker": check_broker}
    try:
        finding = checks[name](settings)
    except AgentError as error:
        return Check(
            what=name, passed=False, words=f"{error.operation} {error.thing}: {error.cause}", hint=error.hint
        )
    return Check(what=name, passed=finding.passed, words=finding.words, hint=finding.hint)


def keep(out: Path, made: Record, plain: bytes, drawn: bytes) -> None:
    """The record last: with it there, its pictures are too."""
    disk = Disk()
    disk.make_directory(out)
    disk.write_whole(out / "view.jpg", plain)
    disk.write_whole(out / "view-zones.jpg", drawn)
    disk.write_whole(out / "record.json", made.model_dump_json(indent=2).encode() + b"\n")


def publish(settings: Settings, made: Record) -> str:
    """In words what became of it; an absent broker is no reason to walk again."""
    topic = Topics(settings.mqtt.root, settings.node.site, settings.node.id).at(COMMISSIONING)
    connection = Connection(settings.mqtt, client_id(settings), SystemClock())
    deadline_s = time.monotonic() + ANSWER_LIMIT_S
    try:
        while not connection.ready:
            _step(connection, deadline_s)
        connection.publish(topic, made.model_dump_json().encode(), retain=True)
        while not (acks := list(connection.take_acks())):
            _step(connection, deadline_s)
    except LinkError as error:
        return f"not published: {error}"
    finally:
        connection.close()
    refused = acks[0].code >= 0x80
    return f"not published: {acks[0].words}" if refused else f"published on {topic}"


def _step(connection: Connection, deadline_s: float) -> None:
    connection.step(0.2)
    if connection.failure is not None:
        raise connection.failure
    if time.monotonic() > deadline_s:
        raise LinkError("talk to", connection.where, f"no answer within {ANSWER_LIMIT_S:g} s")


def _wireless() -> str:
    try:
        return Path("/proc/net/wireless").read_text()
    except OSError:
        return ""


def _jpeg(picture: object) -> bytes:
    import cv2

    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, thumbnail.QUALITY])  # type: ignore[call-overload]
    content: bytes = jpeg.tobytes()
    return content
