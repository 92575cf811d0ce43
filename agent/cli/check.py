"""`camera-agent check`: the installer's tool: tries all a node needs, says pass or fail and what to do."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.access import COMMISSIONING
from agent.board import Board
from agent.cameras.open import open_camera
from agent.cli import add_config
from agent.cli.chosen import settings_in_force
from agent.clock import SystemClock
from agent.connection import Connection, PubAck
from agent.disk import Disk
from agent.errors import AgentError, LinkError
from agent.model import NS_PER_S, Frame, Packet
from agent.settings import Settings
from agent.topics import Topics
from agent.view import compare
from agent.viewing import baseline

HELP = "try settings, board, clock, disk, camera and broker; say pass or fail and what to do"

FRAMES_WANTED = 10
CAMERA_LIMIT_S = 20.0
BROKER_LIMIT_S = 15.0
SYNC_ROUNDS = 5
SLOW_SYNC_S = 1.0
REFUSED = 0x80
"""MQTT 5 reason codes from here on are failures."""
SILENT_DENIAL = (
    "on RabbitMQ the usual cause is a missing permission for that topic: see docs/FLEET.md; else the network broke: "
    "try again"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table. hint: what to do about a failure."""

    passed: bool
    words: str
    hint: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser, required=True)


def run(args: argparse.Namespace) -> int:
    settings, beside = settings_in_force(args.config)
    sink = FirstFrames()
    checks: dict[str, Callable[[Settings], Finding]] = {
        "settings": lambda given: check_settings(given, beside),
        "board": check_board,
        "clock": check_clock,
        "disk": check_disk,
        "camera": lambda given: check_camera(given, sink),
        "view": lambda given: check_view(given, sink.newest),
        "broker": check_broker,
    }
    failed = 0
    for name, check in checks.items():
        if sys.stderr.isatty():
            print(f"... {name}", end="\r", file=sys.stderr, flush=True)
        try:
            finding = check(settings)
        except AgentError as error:
            finding = Finding(False, f"{error.operation} {error.thing}: {error.cause}", error.hint)
        failed += not finding.passed
        print(f"{'pass' if finding.passed else 'FAIL'}  {name:<9} {finding.words}")
        if finding.hint and not finding.passed:
            print(f"      {'':<9} -> {finding.hint}")
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


def check_settings(settings: Settings, beside: str = "") -> Finding:
    """beside: what is not of the file, in words."""
    zones = f", {len(settings.zones)} zones" if settings.zones else ""
    words = f"node {settings.node.id} of site {settings.node.site}, camera {settings.camera.backend}{zones}"
    return Finding(True, f"{words}, {beside}" if beside else words)


def check_board(_: Settings) -> Finding:
    """What the machine is, and whether it is hot or short of power just now."""
    return board_finding(Board(Path("/")))


def board_finding(board: Board) -> Finding:
    throttle, temperature, strain = board.throttle(), board.temperature_c(), board.strain()
    parts = [
        board.hardware() or "unknown machine",
        *([f"serial {serial}"] if (serial := board.serial()) else []),
        *([f"{temperature:.0f} degrees C"] if temperature is not None else []),
        *([", ".join(throttle.in_words()) or "not throttled"] if throttle is not None else []),
        *([f"{free_mb:,.0f} MB of memory free"] if (free_mb := board.memory_free_mb()) is not None else []),
        *([f"{cma_mb:,.0f} MB of it contiguous (CMA)"] if (cma_mb := board.contiguous_free_mb()) is not None else []),
        *([f"Wi-Fi {wifi_dbm:.0f} dBm"] if (wifi_dbm := board.wifi_dbm()) is not None else []),
    ]
    hint = (
        "a stronger power supply and cable" if strain.under_voltage else "better cooling, or fewer and smaller frames"
    )
    return Finding(not strain.is_hard, ", ".join(parts), hint)


def check_clock(_: Settings) -> Finding:
    clock = SystemClock()
    if clock.synced():
        return Finding(True, "synchronised")
    return Finding(
        False,
        "not synchronised",
        "enable a time service (systemd-timesyncd or chrony); the node runs without, but says so",
    )


def check_disk(settings: Settings) -> Finding:
    """Writes and syncs a small file a few times where the clips will be."""
    disk, directory = Disk(), settings.clips.directory
    disk.make_directory(directory)
    free_mb = disk.free_bytes(directory) / 1e6
    path = directory / f"check-{os.getpid()}.tmp"
    slowest_s = 0.0
    try:
        file = disk.create(path)
        try:
            for _ in range(SYNC_ROUNDS):
                disk.append(file, bytes(250_000))
                started_s = time.monotonic()
                disk.datasync(file)
                slowest_s = max(slowest_s, time.monotonic() - started_s)
        finally:
            disk.close(file)
    finally:
        disk.remove(path)
    words = f"{directory}: {free_mb:,.0f} MB free, slowest of {SYNC_ROUNDS} syncs {slowest_s * 1000:.0f} ms"
    wanted_mb = settings.clips.budget_mb + settings.clips.min_free_mb
    if free_mb < settings.clips.min_free_mb:
        return Finding(
            False, words, f"less than clips.min_free_mb = {settings.clips.min_free_mb}: nothing would be recorded"
        )
    if free_mb < wanted_mb:
        words += f" (the full budget would need {wanted_mb:,} MB: older clips will go earlier)"
    return Finding(slowest_s < SLOW_SYNC_S, words, "a slow or failing card; a better one loses less at a power cut")


class FirstFrames:
    """A sink that counts frames and packets and notes when there were enough."""

    def __init__(self) -> None:
        self.enough = threading.Event()
        self.frames: list[int] = []
        self.packets = 0
        self.newest: Frame | None = None

    def on_packet(self, packet: Packet) -> None:
        self.packets += 1

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(frame.t_ns)
        self.newest = frame
        if len(self.frames) >= FRAMES_WANTED and self.packets:
            self.enough.set()


def check_camera(settings: Settings, sink: FirstFrames) -> Finding:
    camera = open_camera(settings, SystemClock())
    info = camera.start(sink)
    try:
        came = sink.enough.wait(CAMERA_LIMIT_S)
        fault = camera.fault()
    finally:
        camera.stop()
    if fault is not None:
        raise fault
    if not came and not camera.ended():
        return Finding(
            False,
            f"{info.description}: {len(sink.frames)} frames, {sink.packets} packets in {CAMERA_LIMIT_S:g} s",
            "it opened but hardly delivers; look at the cable, or for another program that uses it",
        )
    span_s = (sink.frames[-1] - sink.frames[0]) / NS_PER_S if len(sink.frames) > 1 else 0.0
    measured = f", {(len(sink.frames) - 1) / span_s:.1f} fps measured" if span_s else ""
    return Finding(True, f"{info.description}{measured}")


VIEW_HINTS = {
    "turned": "turn it back; or do the walk test again, if it shall look there: camera-agent aim",
    "other": "turn it back; or do the walk test again, if it shall look there: camera-agent aim",
    "covered": "take away what hangs or stands before it",
    "soft": "clean the lens, look for condensation, focus it",
}


def check_view(settings: Settings, frame: Frame | None) -> Finding:
    """Whether the camera shows what it showed at the walk test."""
    if frame is None:
        return Finding(False, "there is no picture to look at", "see camera, above")
    before = baseline(settings.clips.directory / COMMISSIONING, Disk())
    if before is None:
        return Finding(True, "no walk test to compare with yet: camera-agent aim")
    view = compare(before, frame.y, settings.zones)
    return Finding(not view.is_wrong, view.words, VIEW_HINTS.get(view.state, ""))


def check_broker(settings: Settings) -> Finding:
    """Connects (MQTT 5, else 3.1.1) and publishes once below the node's own topics, as the access list must allow."""
    try:
        return _try_broker(settings, Connection(settings.mqtt, client_id(settings), SystemClock()))
    except LinkError as error:
        try:
            older = Connection(settings.mqtt, client_id(settings), SystemClock(), protocol="3.1.1")
            finding = _try_broker(settings, older)
        except LinkError:
            raise error from None
        return Finding(finding.passed, f"{finding.words}; MQTT 3.1.1 only: the broker cannot say what it refuses")


def client_id(settings: Settings) -> str:
    """Not the node's own: a check beside a running node must not take its connection over."""
    return f"{settings.node.site}/{settings.node.id}/check"


def _try_broker(settings: Settings, connection: Connection) -> Finding:
    topics = Topics(settings.mqtt.root, settings.node.site, settings.node.id)
    acks: list[PubAck] = []

    def is_answered() -> bool:
        acks.extend(connection.take_acks())
        return bool(acks)

    try:
        _step_until(connection, lambda: connection.ready)
        connection.publish(topics.at("check"), b"camera-agent check")
        try:
            _step_until(connection, is_answered)
        except LinkError:
            if not connection.closed_silently:
                raise
            words = f"{connection.where} closed the connection when this node published to {topics.at('check')}"
            return Finding(False, words, SILENT_DENIAL)
    finally:
        connection.close()
    if acks[0].code >= REFUSED:
        hint = "the broker's access list must allow this node to write its own topics: see docs/MQTT.md"
        return Finding(False, f"{connection.where} refused {topics.at('check')}: {acks[0].words}", hint)
    return Finding(True, f"{connection.where}, MQTT {connection.protocol}, may publish to {topics.at('check')}")


def _step_until(connection: Connection, is_done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + BROKER_LIMIT_S
    while not is_done():
        connection.step(0.2)
        if connection.failure is not None:
            raise connection.failure
        if time.monotonic() > deadline_s:
            raise LinkError("talk to", connection.where, f"no answer within {BROKER_LIMIT_S:g} s")
