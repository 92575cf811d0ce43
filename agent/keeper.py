"""Keeps the camera running: starts it, notices that it failed or fell silent, restarts it with back-off.

Stepped by main with the time in its hand; touches the camera only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from agent.camera import Camera, CameraSink, EasesOff
from agent.errors import CameraError, CameraStuckError
from agent.model import NS_PER_S, Frame, Packet, StreamInfo

log = logging.getLogger(__name__)

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class CameraState:
    """running: frames came since the last start, and still do. trouble: why not, in one line; empty at first.

    ended: a recording is over.
    """

    running: bool = False
    trouble: str = ""
    starts: int = 0
    ended: bool = False


class Arrivals:
    """A sink that remembers when the last frame and packet came, and passes them on."""

    def __init__(self, sink: CameraSink) -> None:
        self._sink = sink
        self.last_frame_ns: int | None = None
        self.last_packet_ns: int | None = None
        self.frames = 0

    def on_packet(self, packet: Packet) -> None:
        self.last_packet_ns = packet.t_ns
        self._sink.on_packet(packet)

    def on_frame(self, frame: Frame) -> None:
        self.last_frame_ns = frame.t_ns
        self.frames += 1
        self._sink.on_frame(frame)


class CameraKeeper:
    """One camera and its restarts. silence_s: without a frame or a packet for so long, it is restarted."""

    def __init__(self, camera: Camera, sink: CameraSink, silence_s: float) -> None:
        self._camera = camera
        self._arrivals = Arrivals(sink)
        self._silence_ns = round(silence_s * NS_PER_S)
        self._retry_s = FIRST_RETRY_S
        self._next_try_ns = 0
        self._is_started = False
        self._started_ns = 0
        self.info: StreamInfo | None = None
        self.state = CameraState()

    @property
    def frames(self) -> int:
        return self._arrivals.frames

    @property
    def last_frame_ns(self) -> int | None:
        return self._arrivals.last_frame_ns

    def step(self, now_ns: int) -> CameraState:
        """Look at the camera once and do what is due. now_ns: boot clock.

        CameraStuckError when only a new process can help.
        """
        if self.state.ended:
            return self.state
        if not self._is_started:
            if now_ns >= self._next_try_ns:
                self._start(now_ns)
        elif self._camera.ended():
            log.info("the recording has ended after %d frames", self._arrivals.frames)
            self.state = replace(self.state, running=False, trouble="", ended=True)
        elif (fault := self._camera.fault()) is not None:
            self._lose(str(fault), now_ns)
        elif (silent := self._silent_stream(now_ns)) is not None:
            self._lose(f"no {silent} for {self._silence_ns / NS_PER_S:g} s", now_ns)
        elif not self.state.running and self._arrivals.last_frame_ns is not None:
            self.state = replace(self.state, running=True, trouble="")
            self._retry_s = FIRST_RETRY_S
        return self.state

    def ease(self, frame_rate: float, bitrate: float, now_ns: int) -> None:
        """Let a camera that can do with less be started anew with these shares; others go on as they are."""
        if isinstance(self._camera, EasesOff):
            self._camera.ease(frame_rate, bitrate)
            if self._is_started:
                self._camera.stop()
                self._is_started = False
                self._start(now_ns)

    def stop(self) -> None:
        self._camera.stop()
        self._is_started = False
        self.state = replace(self.state, running=False)

    def _start(self, now_ns: int) -> None:
        self._arrivals.last_frame_ns = self._arrivals.last_packet_ns = None
        self.state = replace(self.state, starts=self.state.starts + 1)
        try:
            self.info = self._camera.start(self._arrivals)
        except CameraStuckError:
            raise
        except CameraError as error:
            if self.state.trouble != str(error):
                log.error("camera: %s; trying again", error)
            self.state = replace(self.state, running=False, trouble=str(error))
            self._back_off(now_ns)
            return
        self._is_started = True
        self._started_ns = now_ns
        log.info("camera started: %s", self.info.description)

    def _lose(self, why: str, now_ns: int) -> None:
        log.error("camera lost: %s; restarting it", why)
        self._camera.stop()
        self._is_started = False
        self.state = replace(self.state, running=False, trouble=why)
        self._back_off(now_ns)

    def _back_off(self, now_ns: int) -> None:
        self._next_try_ns = now_ns + round(self._retry_s * NS_PER_S)
        self._retry_s = min(self._retry_s * 2, LONGEST_RETRY_S)

    def _silent_stream(self, now_ns: int) -> str | None:
        """Which stream fell silent. Both are watched: an encoder can stall while frames flow."""
        for name, last_ns in (("frame", self._arrivals.last_frame_ns), ("packet", self._arrivals.last_packet_ns)):
            if now_ns - max(last_ns or 0, self._started_ns) > self._silence_ns:
                return name
        return None
