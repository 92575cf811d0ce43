"""Health: what the node says of itself, made from the stages' own words and the board's. Touches the clock."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from agent.arming import Arming
from agent.board import Board
from agent.clock import Clock, rfc3339
from agent.handoffs import Status, StatusBoard, Verdict
from agent.keeper import CameraState
from agent.ladder import Ease, Ladder
from agent.messages import (
    ClockHealth,
    CommandsHealth,
    DiskHealth,
    HeadHealth,
    HealthMessage,
    LinkHealth,
    OutboxHealth,
    RingHealth,
    to_bytes,
)
from agent.model import NS_PER_S
from agent.settings import Settings
from agent.status import CommandsStatus, LinkStatus, StorageStatus, VisionStatus
from agent.topics import HEALTH

log = logging.getLogger(__name__)

RATE_AFTER_S = 3600.0
"""Writing per day is told from an hour on: the first minutes would exaggerate it."""

CLOCK_GRACE_S = 600.0
"""A time service needs some minutes after boot; an unsynchronised clock is trouble only after that."""
STRAIN_EVERY_NS = 5 * NS_PER_S


class Health:
    """Stepped by main once a second: puts the verdict at once when it changes, the whole message now and then."""

    def __init__(self, settings: Settings, clock: Clock, root: Path) -> None:
        self.adopt(settings)
        self._clock = clock
        self._board = Board(root)
        self._ladder = Ladder()
        self._strain_ns: int | None = None
        self._born_ns = clock.boot_ns()
        self._sent_ns: int | None = None
        self._verdict = Verdict()
        self._arming: str | None = None
        self._frames = 0
        self._cpu_s = 0.0
        self.summary = "starting"

    def adopt(self, settings: Settings) -> None:
        """Go by these from the next step on. Any thread."""
        self._interval_ns = round(settings.health.interval_s * NS_PER_S)
        self._endurance_tb = settings.clips.card_endurance_tb

    @property
    def board(self) -> Board:
        return self._board

    @property
    def ease(self) -> Ease:
        """What the board's heat and power leave the node to do, for main to pass on."""
        return self._ladder.ease

    def step(
        self,
        statuses: StatusBoard,
        *,
        camera: CameraState,
        vision: VisionStatus,
        storage: StorageStatus,
        link: LinkStatus,
        commands: CommandsStatus | None = None,
        arming: Arming | None = None,
        view: str = "",
        stuck: str = "",
    ) -> None:
        now_ns = self._clock.boot_ns()
        if self._strain_ns is None or now_ns - self._strain_ns >= STRAIN_EVERY_NS:
            self._strain_ns = now_ns
            self._ladder.step(self._board.strain(), now_ns)
        troubles = {
            "board": self._ladder.trouble,
            "camera": camera.trouble,
            "vision": vision.trouble,
            "view": view,
            "storage": storage.trouble,
            "broker": link.trouble,
            "commands": commands.trouble if commands is not None else "",
            "arming": arming.trouble if arming is not None else "",
            "clock": self._clock_trouble(now_ns),
            "watchdog": stuck,
        }
        verdict = verdict_of(troubles)
        words = arming.words if arming is not None else None
        changed = verdict != self._verdict or words != self._arming
        self._arming = words
        if verdict != self._verdict:
            self._log_change(verdict)
            self._verdict = verdict
            statuses.put_verdict(verdict)
        self.summary = "; ".join(verdict.reasons) or self._doing(storage, arming)
        if changed or self._sent_ns is None or now_ns - self._sent_ns >= self._interval_ns:
            message = self._message(now_ns, vision, storage, link, commands or CommandsStatus())
            self._sent_ns = now_ns
            statuses.put(HEALTH, Status(to_bytes(message), qos=0))

    def _message(
        self,
        now_ns: int,
        vision: VisionStatus,
        storage: StorageStatus,
        link: LinkStatus,
        commands: CommandsStatus,
    ) -> HealthMessage:
        elapsed_s = (now_ns - (self._born_ns if self._sent_ns is None else self._sent_ns)) / NS_PER_S
        frames, self._frames = vision.frames - self._frames, vision.frames
        times = os.times()
        cpu_s = times.user + times.system
        used_s, self._cpu_s = cpu_s - self._cpu_s, cpu_s
        wall_ns = self._clock.wall_ns()
        oldest = storage.outbox_oldest_wall_ns
        throttle = self._board.throttle()
        return HealthMessage(
            time=rfc3339(wall_ns),
            boot_id=self._clock.boot_id,
            verdict=self._verdict.state,
            reasons=list(self._verdict.reasons),
            uptime_s=round((now_ns - self._born_ns) / NS_PER_S, 1),
            boot_uptime_s=round(now_ns / NS_PER_S, 1),
            fps=round(frames / elapsed_s, 2) if elapsed_s > 0 else None,
            frames_skipped=vision.skipped,
            learning=vision.learning,
            light=vision.light,
            recording=storage.recording,
            arming=self._arming,
            clip_gaps=storage.clip_gaps,
            events_lost=storage.events_lost,
            cpu_percent=round(100 * used_s / elapsed_s, 1) if elapsed_s > 0 else None,
            load_1m=self._board.load_1m(),
            memory_mb=_rounded(self._board.rss_mb()),
            memory_free_mb=_rounded(self._board.memory_free_mb()),
            temperature_c=_rounded(self._board.temperature_c()),
            throttled=None if throttle is None else throttle.in_words(),
            wifi_dbm=self._board.wifi_dbm(),
            disk_free_mb=storage.free_mb,
            ring=RingHealth(
                clips=storage.clips,
                bytes=storage.clip_bytes,
                oldest=None if storage.oldest_clip_wall_ns is None else rfc3339(storage.oldest_clip_wall_ns),
            ),
            disk=self._disk(now_ns, storage),
            outbox=OutboxHealth(
                depth=storage.outbox_rows,
                bytes=storage.outbox_bytes,
                oldest_age_s=0.0 if oldest is None else max(0.0, round((wall_ns - oldest) / NS_PER_S, 1)),
                evicted=storage.outbox_evicted,
            ),
            head=HeadHealth(epoch=storage.epoch, seq=storage.head_seq),
            clock=ClockHealth(synced=self._clock.synced(), source=self._board.time_source() or "kernel"),
            link=LinkHealth(
                protocol=link.protocol or None,
                delivered=link.delivered,
                refused=link.refused,
                reconnects=link.reconnects,
                warning=link.warning or None,
            ),
            commands=CommandsHealth(
                accepted=commands.accepted,
                refused=commands.refused + commands.dropped,
                live_frames=commands.live_frames,
            ),
        )

    def _doing(self, storage: StorageStatus, arming: Arming | None) -> str:
        if storage.recording:
            return "recording"
        return arming.words if arming is not None and not arming.is_armed else "watching"

    def _disk(self, now_ns: int, storage: StorageStatus) -> DiskHealth:
        written_mb, elapsed_s = self._board.written_mb(), (now_ns - self._born_ns) / NS_PER_S
        per_day_mb = None
        if written_mb is not None and elapsed_s >= RATE_AFTER_S:
            per_day_mb = written_mb * 86400 / elapsed_s
        life_years = self._endurance_tb * 1e6 / (per_day_mb * 365) if per_day_mb and self._endurance_tb else None
        return DiskHealth(
            written_mb=_rounded(written_mb),
            written_mb_per_day=_rounded(per_day_mb),
            life_years=_rounded(life_years),
            slowest_sync_ms=_rounded(storage.slowest_sync_ms),
            sync_stalls=storage.sync_stalls,
            clips_untold=storage.clips_untold,
        )

    def _clock_trouble(self, now_ns: int) -> str:
        if now_ns < CLOCK_GRACE_S * NS_PER_S or self._clock.synced():
            return ""
        return "not synchronised: the times in messages may be wrong (is a time service running?)"

    def _log_change(self, verdict: Verdict) -> None:
        for reason in set(verdict.reasons) - set(self._verdict.reasons):
            log.warning("trouble: %s", reason)
        for reason in set(self._verdict.reasons) - set(verdict.reasons):
            log.info("well again: %s", reason)


def verdict_of(troubles: Mapping[str, str]) -> Verdict:
    """troubles: part of the node -> what is wrong with it in one line, empty for nothing."""
    reasons = tuple(f"{part}: {words}" for part, words in troubles.items() if words)
    return Verdict("degraded" if reasons else "online", reasons)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
