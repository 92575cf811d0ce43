"""A whole node stepped by hand on simulated time: the same rooms and wiring as `run`, no threads, no waiting."""

from __future__ import annotations

from agent.camera import CameraSink, Source
from agent.clock import SimulatedClock
from agent.errors import CameraError
from agent.model import NS_PER_S, EndReason, StreamInfo
from agent.node import LINK_FAREWELL_S, Node
from agent.settings import Settings


class SteppedCamera:
    """A Camera whose frames come when the test steps it; what the pacing wrapper is to `run`."""

    def __init__(self, source: Source, clock: SimulatedClock) -> None:
        self._source = source
        self._clock = clock
        self._sink: CameraSink | None = None
        self._fault: CameraError | None = None
        self._ended = False

    def start(self, sink: CameraSink) -> StreamInfo:
        info = self._source.open(self._clock.boot_ns())
        self._sink, self._fault, self._ended = sink, None, False
        return info

    def stop(self) -> None:
        if self._sink is not None:
            self._sink = None
            self._source.close()

    def fault(self) -> CameraError | None:
        return self._fault

    def ended(self) -> bool:
        return self._ended

    def next_t_ns(self) -> int | None:
        """When the next frame is due; None while there is none to come."""
        if self._sink is None or self._fault is not None or self._ended:
            return None
        return self._source.next_t_ns()

    def step(self) -> None:
        assert self._sink is not None
        try:
            self._ended = not self._source.step(self._sink)
        except CameraError as error:
            self._fault = error


class SteppedNode:
    """Advances a node frame by frame and second by second; `clock` is its only time."""

    def __init__(self, settings: Settings, source: Source, clock: SimulatedClock | None = None) -> None:
        self.clock = clock or SimulatedClock()
        self.camera = SteppedCamera(source, self.clock)
        self.node = Node(settings, self.clock, self.camera)
        self.node.storage.open()
        self._next_tick_ns = self.clock.boot_ns()

    def run(self, seconds: float) -> None:
        """Let so much simulated time pass, or less when a recording ends."""
        until_ns = self.clock.boot_ns() + round(seconds * NS_PER_S)
        while self.clock.boot_ns() < until_ns and not self.node.keeper.state.ended:
            frame_ns = self.camera.next_t_ns()
            now_ns = self._next_tick_ns if frame_ns is None else min(frame_ns, self._next_tick_ns)
            self.clock.move_to(max(now_ns, self.clock.boot_ns()))
            if frame_ns is not None and frame_ns <= now_ns:
                self.camera.step()
                self.node.vision.step(0)
            if now_ns >= self._next_tick_ns:
                self._next_tick_ns += NS_PER_S
                self.node.tick()
                self.node.link.step(0)
            self.node.commands.step(0)
            self.node.storage.step(0)

    def stop(self) -> None:
        """The same order as Node.run: upstream first."""
        self.node.keeper.stop()
        self.node.vision.close(EndReason.SHUTDOWN)
        self.node.commands.close()
        self.node.storage.close()
        self.node.link.close(LINK_FAREWELL_S)
