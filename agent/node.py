"""The node: builds the rooms, gives each stage its thread, and watches over them. Threads are born here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from agent.announcer import Announcer
from agent.arming import Arming
from agent.birth import meta_message
from agent.camera import Camera, TakesStills
from agent.clock import Clock
from agent.commands import Commands
from agent.configuration import Problem, State
from agent.connection import Incoming
from agent.desired import Configuring
from agent.errors import StorageError
from agent.handoffs import AckBox, Doorbell, EventBoard, FrameSlot, PacketRing, Status, StatusBoard
from agent.health import Health
from agent.keeper import CameraKeeper, CameraState
from agent.ladder import Ease
from agent.ledger_reader import LedgerReader
from agent.link import Link
from agent.mail import Mail
from agent.mailboxes import FrameTap
from agent.messages import to_bytes
from agent.model import NS_PER_S, EndReason, Event, EventKind, Frame, Moment, Packet, Phase, StreamInfo
from agent.operators import admission_of
from agent.sdnotify import Notifier, StatusLine
from agent.settings import Settings
from agent.storage import Storage
from agent.topics import CMD, CONFIG_DESIRED, META
from agent.ulid import new_ulid
from agent.updates import Updates
from agent.viewing import Viewing
from agent.vision import Vision

log = logging.getLogger(__name__)

STEP_S = 0.2
STALL_BUDGET_S = 10.0
"""How long storage may stand still (a slow card) before a running clip loses packets."""

RING_HEADROOM = 4.0
RING_LEAST_BYTES = 32_000_000
"""A camera of others (RTSP) keeps to its own bitrate, not to the setting."""

BEAT_LIMIT_S = {"vision": 10.0, "storage": 60.0, "link": 60.0, "commands": 60.0}
"""A stage whose last step is older is stuck. Storage and link wait for cards and networks: seconds are usual."""

FRAME_LIMIT_S = 30.0
"""The camera keeper restarts a silent camera well before this; after it, the keeper itself has failed."""

DURABLE_LIMIT_S = 180.0
"""The storage writes at least once a minute, and a card may stall."""

STOP_BUDGET_S = {"vision": 3.0, "commands": 3.0, "storage": 8.0, "link": 5.0}
"""Together below the unit's TimeoutStopSec of 20 s."""

LINK_FAREWELL_S = 2.0

RECOVERY_US = 300_000_000
"""What systemd is asked to allow for opening a large ledger after a power cut, on top of TimeoutStartSec."""


class Stage(Protocol):
    def step(self, wait_s: float) -> object: ...


class RingAndSlot:
    """The camera's sink: packets into the ring, the newest frame into the slot (and the tap of live).

    newest: for who looks now and then, as the view check.
    """

    def __init__(self, ring: PacketRing, slot: FrameSlot, tap: FrameTap) -> None:
        self._ring = ring
        self._slot = slot
        self._tap = tap
        self.newest: Frame | None = None

    def on_packet(self, packet: Packet) -> None:
        self._ring.put(packet)

    def on_frame(self, frame: Frame) -> None:
        self._slot.put(frame)
        self._tap.put(frame)
        self.newest = frame


@dataclass(frozen=True, slots=True)
class Configuration:
    """What came over MQTT before the start; what is wrong with a config on top of the node's file; what it makes."""

    state: State
    check: Callable[[dict[str, Any]], list[Problem]]
    load: Callable[[dict[str, Any]], Settings]


@dataclass(slots=True)
class _Worker:
    """One stage's thread and its signs of life. beat_ns: boot clock at the end of its last step."""

    name: str
    thread: threading.Thread
    stop: threading.Event
    beat_ns: int
    bug: BaseException | None = None


class Node:
    """All rooms of one node, wired. run() is the program; tests step the rooms themselves instead."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        camera: Camera,
        notifier: Notifier | None = None,
        configuration: Configuration | None = None,
    ) -> None:
        """configuration: None where settings cannot be changed by messages."""
        self.settings = settings
        self.clock = clock
        self._notifier = notifier or Notifier()
        self._stop = threading.Event()
        self._workers: list[_Worker] = []
        self._announced: StreamInfo | None = None
        self._has_announced = False
        self._announced_settings = settings
        self._announced_update = ""
        self._camera_was_lost = False
        self._eased = Ease()

        storage_bell = Doorbell()
        self.slot = FrameSlot()
        self.ring = packet_ring(settings, storage_bell)
        self.board = EventBoard(doorbell=storage_bell)
        self.acks = AckBox(storage_bell)
        self.statuses = StatusBoard()
        self.mail = Mail.make(storage_bell)
        self.sink = RingAndSlot(self.ring, self.slot, self.mail.tap)
        self.keeper = CameraKeeper(camera, self.sink, settings.camera.silence_s)
        self.arming = Arming(settings.clips.directory, self.statuses)
        self.vision = Vision(
            settings,
            self.slot,
            self.board,
            self.statuses,
            self.new_id,
            is_armed=lambda: self.arming.is_armed,
        )
        self.announcer = Announcer(settings, self.statuses)
        self.link = Link(
            settings.mqtt,
            settings.node,
            outbox=lambda: LedgerReader(settings.clips.directory),
            acks=self.acks,
            statuses=self.statuses,
            clock=clock,
            listen=self._listens(),
            replies=self.mail.replies,
            media=self.mail.media,
        )
        self.mail.replies.wake(self.link.bell)
        self.mail.media.wake(self.link.bell)
        self.storage = Storage(
            settings,
            clock,
            self.ring,
            self.board,
            self.acks,
            doorbell=storage_bell,
            link_bell=self.link.bell,
            errands=self.mail.errands,
        )
        self.commands = Commands(
            settings,
            clock,
            self.mail,
            admission_of(settings),
            post_test=self._post_test,
            manual=self._manual_event,
            restart=self.restart,
            want_still=camera.want_still if isinstance(camera, TakesStills) else None,
            arming=self.arming,
        )
        self._updates = Updates(settings, self.statuses, clock, post=self.commands.errand)
        self.commands.serve_updates(self._updates)
        if configuration is not None:
            self.commands.configuring = Configuring(
                configuration.state,
                settings,
                self.statuses,
                check=configuration.check,
                load=configuration.load,
                adopt=self.adopt,
                is_connected=lambda: self.link.status.connected,
                troubles=self._troubled_parts,
                restart=self.restart,
                write=self.commands.write,
            )
        self.viewing = Viewing(settings)
        self.health = Health(settings, clock, Path("/"))

    def new_id(self) -> str:
        return new_ulid(self.clock.wall_ns() // 1_000_000)

    def _listens(self) -> dict[str, Callable[[Incoming], None]]:
        listens: dict[str, Callable[[Incoming], None]] = {}
        if self.announcer.listens_to:
            listens[self.announcer.listens_to] = self.announcer.hear
        if self.settings.commands.enabled:
            listens[f"{CMD}/+"] = self.mail.hear
            listens[CONFIG_DESIRED] = self.mail.hear_desired
        return listens

    def _troubled_parts(self) -> tuple[str, ...]:
        return tuple(reason.split(":")[0] for reason in self.statuses.verdict().reasons)

    def _post_test(self) -> str:
        """An event of kind test, as `test-event` asks for; its id."""
        at = Moment(self.clock.boot_ns(), self.keeper.frames)
        event = Event(self.new_id(), 1, Phase.END, EventKind.TEST, at, at, at, score=1.0, end=at)
        self.board.put(event)
        return event.id

    def _manual_event(self, begun: Event | None) -> Event:
        """Begin an event of kind manual, as `record` asks for, or end the one given."""
        at = Moment(self.clock.boot_ns(), self.keeper.frames)
        event = Event(self.new_id(), 1, Phase.START, EventKind.MANUAL, at, at, at, score=1.0)
        if begun is not None:
            event = replace(
                begun, rev=begun.rev + 1, phase=Phase.END, last=at, end=at, end_reason=EndReason.MAX_LENGTH
            )
        self.board.put(event)
        return event

    def adopt(self, settings: Settings) -> None:
        """Go by other settings, of which none needs a restart; from any thread."""
        self.settings = settings
        for room in (self.vision, self.storage, self.health, self.announcer, self.viewing):
            room.adopt(settings)
        logging.getLogger().setLevel(settings.log.level.upper())

    def restart(self, why: str) -> None:
        """Ask run() to end in order, so that whoever started the program starts it again; from any thread."""
        log.info("ending to be started again: %s", why)
        self._stop.set()

    def stop(self) -> None:
        """Ask run() to end; callable from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """The node until stop(), or until a recording has ended. A stage's bug is raised here, after the shutdown."""
        self._notifier.send("STATUS=opening the ledger and recovering clips", f"EXTEND_TIMEOUT_USEC={RECOVERY_US}")
        self.storage.open()
        self._spawn("link", self.link, lambda: self.link.close(LINK_FAREWELL_S))
        self._spawn("storage", self.storage, self.storage.close)
        self._spawn("commands", self.commands, self.commands.close)
        self._spawn("vision", self.vision, lambda: self.vision.close(EndReason.SHUTDOWN))
        self._notifier.send("READY=1")
        try:
            while not self._stop.is_set() and not self.keeper.state.ended:
                self.tick()
                self._stop.wait(1.0)
        finally:
            self._shut_down()
        for worker in self._workers:
            if worker.bug is not None:
                raise worker.bug

    def tick(self) -> None:
        """Main's once a second: the camera, health, the watchdog."""
        now_ns = self.clock.boot_ns()
        was_running = self.keeper.state.running
        camera = self.keeper.step(now_ns)
        settings = self.settings
        if (
            self.keeper.info is not self._announced
            or settings is not self._announced_settings
            or self._updates.next_id != self._announced_update
            or not self._has_announced
        ):
            self._announced_settings = settings
            self._announce(self.keeper.info)
        if camera.running != was_running and not camera.ended:
            self._tell_camera(camera, now_ns)
        stuck = self.stuck(now_ns)
        is_quiet = camera.running and not self.vision.is_on and not self.vision.status.learning
        self.viewing.step(now_ns, self.sink.newest, is_quiet=is_quiet)
        self.health.step(
            self.statuses,
            camera=camera,
            vision=self.vision.status,
            storage=self.storage.status,
            link=self.link.status,
            commands=self.commands.status,
            arming=self.arming,
            view=self.viewing.trouble,
            stuck=stuck,
        )
        self._ease(self.health.ease, now_ns)
        status = StatusLine(self.health.summary, self.keeper.frames, self.link.status.connected)
        self._notifier.send(*(() if stuck else ("WATCHDOG=1",)), f"STATUS={status}")

    def _ease(self, ease: Ease, now_ns: int) -> None:
        """Pass on what the board's heat and power leave to do, when that has changed."""
        before, self._eased = self._eased, ease
        if ease == before:
            return
        log.warning("the board: %s", ease.words or "well again, everything as the settings say")
        self.vision.ease(ease.analysis)
        if (ease.frame_rate, ease.bitrate) != (before.frame_rate, before.bitrate):
            self.keeper.ease(ease.frame_rate, ease.bitrate, now_ns)

    def _announce(self, info: StreamInfo | None) -> None:
        self._has_announced, self._announced = True, info
        meta = meta_message(self.settings, info, self.health.board.hardware())
        self.statuses.put(META, Status(to_bytes(meta)))
        self._announced_update = self._updates.next_id
        self.announcer.announce(meta, self._announced_update)

    def _tell_camera(self, camera: CameraState, now_ns: int) -> None:
        """An event for a camera that was lost, and one for its return (but not for its very first start)."""
        if camera.running and not self._camera_was_lost:
            return
        self._camera_was_lost = not camera.running
        if self._camera_was_lost:
            self.slot.interrupt()
        kind = EventKind.CAMERA_BACK if camera.running else EventKind.CAMERA_LOST
        at = Moment(now_ns, self.keeper.frames)
        self.board.put(Event(self.new_id(), 1, Phase.END, kind, at, at, at, score=1.0, end=at))

    def stuck(self, now_ns: int) -> str:
        """Which part makes no progress, in words; empty when all do. A camera known to be broken is waived."""
        for worker in self._workers:
            age_s = (now_ns - worker.beat_ns) / NS_PER_S
            if age_s > BEAT_LIMIT_S[worker.name]:
                return f"{worker.name} has not moved for {age_s:.0f} s"
        for what, last_ns, limit_s in self._progress():
            if last_ns is not None and now_ns - last_ns > limit_s * NS_PER_S:
                return f"{what} for {(now_ns - last_ns) / NS_PER_S:.0f} s"
        return ""

    def _progress(self) -> Iterator[tuple[str, int | None, float]]:
        """What should go on happening: (what is missing, when it last was, seconds it may take).

        Trouble that is known and told is waived: starting again would not help against a broken camera or card.
        """
        if self.keeper.state.running:
            silence_s = self.settings.camera.silence_s
            yield "no frame has come", self.keeper.last_frame_ns, silence_s + FRAME_LIMIT_S
            yield "no frame has been analysed", self.vision.status.last_frame_ns, silence_s + FRAME_LIMIT_S
        if not self.storage.status.trouble:
            yield "nothing has been written to the disk", self.storage.status.last_durable_ns, DURABLE_LIMIT_S

    def _spawn(self, name: str, stage: Stage, close: Callable[[], None]) -> None:
        stop = threading.Event()

        def work() -> None:
            try:
                while not stop.is_set():
                    stage.step(STEP_S)
                    worker.beat_ns = self.clock.boot_ns()
                close()
            except BaseException as bug:  # noqa: BLE001 - the one place: any bug of a stage ends the process
                worker.bug = bug
                self._stop.set()

        thread = threading.Thread(target=work, name=name, daemon=True)
        worker = _Worker(name, thread, stop, self.clock.boot_ns())
        self._workers.append(worker)
        thread.start()

    def _shut_down(self) -> None:
        """Upstream first; each stage is joined before the next is told."""
        self._notifier.send("STOPPING=1", "STATUS=shutting down")
        self.keeper.stop()
        for worker in reversed(self._workers):
            worker.stop.set()
            worker.thread.join(STOP_BUDGET_S[worker.name])
            if worker.thread.is_alive() and worker.bug is None:
                worker.bug = StorageError(
                    "stop", worker.name, f"still busy after {STOP_BUDGET_S[worker.name]:g} s", hint="a slow disk?"
                )


def packet_ring(settings: Settings, doorbell: Doorbell | None = None) -> PacketRing:
    """Pre-roll and a stall fit, whatever the stream's bitrate; the bytes only bound a stream gone wild."""
    keep_s = settings.clips.pre_roll_s + STALL_BUDGET_S
    nominal = settings.camera.bitrate_kbps * 1000 / 8 * (keep_s + settings.clips.gop_s)
    return PacketRing(max(RING_LEAST_BYTES, round(RING_HEADROOM * nominal)), doorbell, keep_s)
