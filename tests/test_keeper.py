"""The camera keeper, stepped by hand: starts, notices failure and silence, restarts with back-off."""

from __future__ import annotations

import numpy as np

from agent.camera import CameraSink
from agent.errors import CameraError
from agent.keeper import CameraKeeper
from agent.model import NS_PER_S, Frame, Packet, StreamInfo

INFO = StreamInfo("h264", 64, 64, 10, 64, 64, 1.0, "a camera made by hand")


class HandCamera:
    """A camera that does what the test says: a fake of the protocol with every misbehaviour in reach."""

    def __init__(self) -> None:
        self.refuses = ""
        self.broken = ""
        self.is_over = False
        self.starts: list[int] = []
        self.stops = 0
        self.now_s = 0
        self.sink: CameraSink | None = None

    def start(self, sink: CameraSink) -> StreamInfo:
        self.starts.append(self.now_s)
        if self.refuses:
            raise CameraError("open", "hand camera", self.refuses)
        self.sink = sink
        return INFO

    def stop(self) -> None:
        self.stops += 1
        self.sink = None

    def fault(self) -> CameraError | None:
        return CameraError("read", "hand camera", self.broken) if self.broken else None

    def ended(self) -> bool:
        return self.is_over

    def deliver(self, *, frame: bool = True, packet: bool = True) -> None:
        assert self.sink is not None
        t_ns = self.now_s * NS_PER_S
        y, uv = np.zeros((4, 4), np.uint8), np.zeros((2, 2), np.uint8)
        if frame:
            self.sink.on_frame(Frame(0, t_ns, y, uv, uv))
        if packet:
            self.sink.on_packet(Packet(0, t_ns, 1, True, b"x"))


class Nowhere:
    """A sink that keeps nothing: what counts here is that something came, and when."""

    def on_packet(self, packet: Packet) -> None:
        pass

    def on_frame(self, frame: Frame) -> None:
        pass


class Bench:
    def __init__(self) -> None:
        self.camera = HandCamera()
        self.keeper = CameraKeeper(self.camera, Nowhere(), silence_s=5)

    def run(self, seconds: int, *, frame: bool = True, packet: bool = True) -> None:
        for _ in range(seconds):
            self.camera.now_s += 1
            if self.camera.sink is not None:
                self.camera.deliver(frame=frame, packet=packet)
            self.keeper.step(self.camera.now_s * NS_PER_S)


def test_a_camera_that_delivers_is_left_alone() -> None:
    bench = Bench()
    bench.run(60)
    assert bench.camera.starts == [1]
    assert bench.keeper.state.running
    assert bench.keeper.state.trouble == ""
    assert bench.keeper.info == INFO
    assert bench.keeper.frames == 59


def test_an_absent_camera_is_tried_again_with_growing_pauses_and_named() -> None:
    bench = Bench()
    bench.camera.refuses = "no such device"
    bench.run(140)
    pauses = np.diff(bench.camera.starts).tolist()
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert bench.keeper.state.trouble == "open hand camera: no such device"
    bench.camera.refuses = ""
    bench.run(40)
    assert bench.keeper.state.running


def test_a_fault_restarts_the_camera() -> None:
    bench = Bench()
    bench.run(3)
    bench.camera.broken = "USB disconnect"
    bench.run(1)
    assert (bench.camera.stops, bench.keeper.state.running) == (1, False)
    assert "USB disconnect" in bench.keeper.state.trouble
    bench.camera.broken = ""
    bench.run(2)
    assert bench.keeper.state.running


def test_silence_counts_as_lost_within_its_limit() -> None:
    bench = Bench()
    bench.run(10)
    bench.run(5, frame=False, packet=False)
    assert bench.keeper.state.running
    bench.run(1, frame=False, packet=False)
    assert not bench.keeper.state.running
    assert bench.keeper.state.trouble == "no frame for 5 s"


def test_an_encoder_that_stalls_while_frames_flow_is_noticed() -> None:
    bench = Bench()
    bench.run(10)
    bench.run(6, packet=False)
    assert bench.keeper.state.trouble == "no packet for 5 s"


def test_a_camera_that_never_says_anything_is_restarted_again_and_again() -> None:
    bench = Bench()
    bench.run(60, frame=False, packet=False)
    assert len(bench.camera.starts) > 3
    assert bench.camera.stops >= len(bench.camera.starts) - 1


def test_a_start_without_a_frame_is_not_yet_running() -> None:
    bench = Bench()
    bench.run(10)
    bench.run(7, frame=False, packet=False)
    assert len(bench.camera.starts) == 2
    bench.run(1, frame=False, packet=False)
    assert not bench.keeper.state.running
    assert bench.keeper.state.trouble == "no frame for 5 s", "what is wrong is said until frames come"
    bench.run(2)
    assert bench.keeper.state.running


def test_frames_reset_the_back_off() -> None:
    bench = Bench()
    bench.camera.refuses = "busy"
    bench.run(40)
    bench.camera.refuses = ""
    bench.run(40)
    bench.camera.starts.clear()
    bench.camera.broken = "again"
    lost_at = bench.camera.now_s + 1
    bench.run(1)
    bench.camera.broken = ""
    bench.run(3)
    assert bench.camera.starts == [lost_at + 1]


def test_a_recording_that_has_ended_is_not_restarted() -> None:
    bench = Bench()
    bench.run(3)
    bench.camera.is_over = True
    bench.run(30)
    assert bench.keeper.state.ended
    assert len(bench.camera.starts) == 1
