"""Pictures on demand: stills for those who ask, live under leases. Takes from the taps, touches nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent import thumbnail
from agent.admission import Command
from agent.clock import Now, rfc3339
from agent.jobs import Outcome, failure
from agent.live import QUALITY, Live
from agent.mailboxes import FrameTap, MediaBox
from agent.model import NS_PER_S, Frame
from agent.requests import LiveArgs, SnapshotArgs
from agent.settings import CommandSettings

PATIENCE_S = 5.0
"""A still that has no picture by then is refused."""

MAIN_PATIENCE_S = 2.0
"""After this a still is made from the analysis stream, where the main one has brought nothing."""

STILLS = 4
"""So many may be waited for."""

WantStill = Callable[[Callable[[Frame], None]], None]
"""What a camera offers that can hand out its main picture: camera.py's TakesStills."""


@dataclass(frozen=True, slots=True)
class Still:
    """A picture for a command, and the stream that it comes from."""

    command: Command
    args: SnapshotArgs
    frame: Frame
    stream: str


@dataclass(frozen=True, slots=True)
class _Wish:
    command: Command
    args: SnapshotArgs
    since_ns: int


class Pictures:
    """Stepped by the dispatcher's thread. want_still: None where the camera has only its analysis stream to show."""

    def __init__(
        self,
        settings: CommandSettings,
        tap: FrameTap,
        main_tap: FrameTap,
        media: MediaBox,
        want_still: WantStill | None,
    ) -> None:
        self._tap = tap
        self._main_tap = main_tap
        self._media = media
        self._want_still = want_still
        self._live = Live(settings)
        self._wishes: list[_Wish] = []

    @property
    def live_frames(self) -> int:
        return self._live.frames

    @property
    def is_waiting(self) -> bool:
        """Whether a still is waited for."""
        return bool(self._wishes)

    def ask_still(self, command: Command, args: SnapshotArgs, now_ns: int) -> Outcome | None:
        """None: it comes out of step(). Else why not."""
        if len(self._wishes) >= STILLS:
            return failure("busy", "too many stills are waited for; try again")
        self._wishes.append(_Wish(command, args, now_ns))
        self._tap.want(True)
        if self._want_still is not None:
            self._main_tap.want(True)
            self._want_still(self._main_tap.put)
        return None

    def grant_live(self, client: str, args: LiveArgs, now: Now) -> Outcome:
        lease = self._live.grant(client, args, now.t_ns)
        if lease is None:
            return failure("busy", "too many others watch live")
        self._tap.want(self._live.is_on(now.t_ns) or self.is_waiting)
        until = rfc3339(now.wall(lease.until_ns))
        return Outcome({"topic": "live", "fps": lease.fps, "width": lease.width, "until": until})

    def step(self, now_ns: int) -> tuple[list[Still], list[tuple[Command, Outcome]]]:
        """Send what live is due; the stills that have a picture now, and the refusals of those that never got one."""
        if not self.is_waiting and not self._live.is_on(now_ns):
            self.close()
            return [], []
        frame, main = self._tap.take(), self._main_tap.take()
        width = self._live.width_now(now_ns) if frame is not None else None
        if frame is not None and width is not None:
            jpeg = thumbnail.encode(frame, QUALITY, width).jpeg
            self._media.put_live(jpeg)
            self._live.sent(len(jpeg), now_ns)
        made: list[Still] = []
        late: list[tuple[Command, Outcome]] = []
        wishes, self._wishes = self._wishes, []
        for wish in wishes:
            waited_s = (now_ns - wish.since_ns) / NS_PER_S
            if main is not None:
                made.append(Still(wish.command, wish.args, main, "main"))
            elif frame is not None and (self._want_still is None or waited_s > MAIN_PATIENCE_S):
                made.append(Still(wish.command, wish.args, frame, "lores"))
            elif waited_s > PATIENCE_S:
                refusal = failure("unavailable", f"no picture within {PATIENCE_S:.0f} s: see health")
                late.append((wish.command, refusal))
            else:
                self._wishes.append(wish)
        return made, late

    def close(self) -> None:
        """Nobody wants pictures any more."""
        self._tap.want(False)
        self._main_tap.want(False)
