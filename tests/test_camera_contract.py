"""What every camera keeps to, whichever backend it is. A new backend is one more entry in BACKENDS."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from broker import DEADLINE_S
from video_fixtures import Recorder, RtspServer, decode_packets, picture, write_video

from agent.camera import CameraSink, Source
from agent.cameras.fake import FakeSource
from agent.cameras.paced import PacedCamera
from agent.cameras.pi_stack import PiOptions
from agent.cameras.picamera2 import PiCamera
from agent.cameras.profiles import PretendedBoard
from agent.cameras.scene import Fault, Scene, Sitter
from agent.cameras.scenes import BUILT_IN
from agent.cameras.video import VideoOptions, VideoSource
from agent.clock import SimulatedClock, SystemClock
from agent.errors import CameraError
from agent.handoffs import FrameSlot, PacketRing
from agent.masks import main_mask
from agent.model import Frame, Packet, StreamInfo

WALL = ((0.5, 0.0), (1.0, 0.0), (1.0, 0.4), (0.5, 0.4))


class Rig(Protocol):
    """A camera that a test can run for a while and stop."""

    def start(self, sink: CameraSink) -> StreamInfo: ...
    def run(self, recorder: Recorder, frames: int) -> None:
        """Until recorder has so many frames (or, stepped, so many steps were made)."""

    def stop(self) -> None: ...


class Stepped:
    """A source on a simulated clock, as replay and most tests drive it."""

    def __init__(self, source: Source, clock: SimulatedClock) -> None:
        self._source, self._clock = source, clock
        self._sink: CameraSink | None = None

    def start(self, sink: CameraSink) -> StreamInfo:
        self._sink = sink
        return self._source.open(self._clock.boot_ns())

    def run(self, recorder: Recorder, frames: int) -> None:
        assert self._sink is not None
        for _ in range(frames + 4):
            due_ns = self._source.next_t_ns()
            if due_ns is not None and due_ns > self._clock.boot_ns():
                self._clock.move_to(due_ns)
            if len(recorder.frames) >= frames or not self._source.step(self._sink):
                return

    def stop(self) -> None:
        self._source.close()
        self._sink = None


class Threaded:
    """The same in its own thread at its own pace, as the node drives it."""

    def __init__(self, source: Source) -> None:
        self.camera = PacedCamera(source, SystemClock())

    def start(self, sink: CameraSink) -> StreamInfo:
        return self.camera.start(sink)

    def run(self, recorder: Recorder, frames: int) -> None:
        assert recorder.wait_frames(frames), f"{len(recorder.frames)} frames came, fault: {self.camera.fault()}"

    def stop(self) -> None:
        self.camera.stop()


def fake(**more: object) -> FakeSource:
    options = {"width": 320, "height": 240, "fps": 30, "lores_width": 160, "lores_height": 160, "gop_s": 0.5} | more
    return FakeSource(BUILT_IN["office"], bitrate_kbps=400, **options)  # type: ignore[arg-type]


def file_source(
    path: Path, clock: SimulatedClock | SystemClock, *, b_frames: int = 0, fps: int = 30, **more: object
) -> VideoSource:
    write_video(path, frames=45, fps=fps, b_frames=b_frames, gop=15)
    options = {"lores_width": 160, "lores_height": 160, "gop_s": 0.5, "loop": True} | more
    return VideoSource(VideoOptions(str(path), **options), clock)  # type: ignore[arg-type]


def fake_stepped(tmp_path: Path) -> Iterator[Rig]:
    yield Stepped(fake(), SimulatedClock())


def fake_paced(tmp_path: Path) -> Iterator[Rig]:
    yield Threaded(fake(fps=100))


def file_stepped(tmp_path: Path) -> Iterator[Rig]:
    clock = SimulatedClock()
    yield Stepped(file_source(tmp_path / "a.mp4", clock), clock)


def file_with_b_frames(tmp_path: Path) -> Iterator[Rig]:
    clock = SimulatedClock()
    yield Stepped(file_source(tmp_path / "a.mp4", clock, b_frames=2), clock)


def file_masked(tmp_path: Path) -> Iterator[Rig]:
    clock = SimulatedClock()
    yield Stepped(file_source(tmp_path / "a.mp4", clock, b_frames=2, masks=(WALL,)), clock)


def file_paced(tmp_path: Path) -> Iterator[Rig]:
    yield Threaded(file_source(tmp_path / "a.mp4", SystemClock(), b_frames=2, fps=100))


@functools.cache
def packets_to_serve() -> tuple[Packet, ...]:
    source, recorder = fake(fps=100), Recorder()
    source.open(0)
    for _ in range(400):
        source.step(recorder)
    return tuple(recorder.packets)


def rtsp(tmp_path: Path) -> Iterator[Rig]:
    server = RtspServer(packets_to_serve(), fps=100)
    try:
        yield Threaded(VideoSource(VideoOptions(server.url, lores_width=160, lores_height=160), SystemClock()))
    finally:
        server.close()


class PretendedBoardRig:
    """A PiCamera on a pretended board that shows the fake camera's scene, on a simulated clock."""

    def __init__(self, profile: str) -> None:
        self._clock = SimulatedClock()
        self._board = PretendedBoard(BUILT_IN["office"], profile, self._clock)
        options = PiOptions("", 320, 240, 30, 160, 160, bitrate_kbps=400, gop_s=0.5)
        self._camera = PiCamera(options, self._clock, stack=self._board.stack)

    def start(self, sink: CameraSink) -> StreamInfo:
        return self._camera.start(sink)

    def run(self, recorder: Recorder, frames: int) -> None:
        for _ in range(frames):
            self._clock.move(1 / 30)
            self._board.step()
            self._board.deliver_packets()

    def stop(self) -> None:
        self._camera.stop()


def like_a_pi4(tmp_path: Path) -> Iterator[Rig]:
    yield PretendedBoardRig("pi4")


def like_a_pi5(tmp_path: Path) -> Iterator[Rig]:
    yield PretendedBoardRig("pi5")


def like_the_virtual_one(tmp_path: Path) -> Iterator[Rig]:
    yield PretendedBoardRig("virtual")


def picamera2_virtual(tmp_path: Path) -> Iterator[Rig]:
    """The real picamera2 on libcamera's virtual camera: in the test root of scripts/test-picamera2 only."""
    if "CAMERA_AGENT_RIG" not in os.environ:
        pytest.skip("needs picamera2 and libcamera: run scripts/test-picamera2 as root")
    from pi_rig import PiRig

    yield PiRig(PiOptions("lobby", 320, 240, 30, 160, 160, bitrate_kbps=400, gop_s=0.5))


BACKENDS: list[Callable[[Path], Iterator[Rig]]] = [
    fake_stepped,
    fake_paced,
    file_stepped,
    file_with_b_frames,
    file_masked,
    file_paced,
    rtsp,
    like_a_pi4,
    like_a_pi5,
    like_the_virtual_one,
    picamera2_virtual,
]


@pytest.fixture(params=BACKENDS, ids=lambda make: make.__name__)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    rigs = request.param(tmp_path)
    made: Rig = next(rigs)
    yield made
    made.stop()
    assert next(rigs, None) is None


FRAMES = 130
Observed = tuple[StreamInfo, Recorder]


def run(rig: Rig, frames: int) -> Observed:
    recorder = Recorder()
    info = rig.start(recorder)
    rig.run(recorder, frames)
    rig.stop()
    return info, recorder


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda make: make.__name__)
def observed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """One run of each backend, for the tests that only look at what came."""
    rigs = request.param(tmp_path_factory.mktemp("observed"))
    made: Rig = next(rigs)
    result = run(made, FRAMES)
    assert next(rigs, None) is None
    return result


def test_the_first_packet_is_a_keyframe_that_decodes_alone(observed: Observed) -> None:
    info, got = observed
    assert got.packets[0].is_key
    pictures = decode_packets(got.packets[:1], info.codec)
    assert len(pictures) == 1
    assert pictures[0].y.shape == (info.height, info.width)


def test_every_keyframe_starts_a_decoder(observed: Observed) -> None:
    info, got = observed
    keys = [packet for packet in got.packets if packet.is_key]
    assert len(keys) >= 3
    for key in keys:
        assert len(decode_packets([key], info.codec)) == 1


def test_all_packets_decode_into_all_frames(observed: Observed) -> None:
    info, got = observed
    assert abs(len(decode_packets(got.packets, info.codec)) - len(got.frames)) <= 4


def test_times_strictly_increase_and_are_never_before_the_start(observed: Observed) -> None:
    _, got = observed
    for things in (got.packets, got.frames):
        times = [thing.t_ns for thing in things]
        assert all(a < b for a, b in itertools.pairwise(times))
    assert all(packet.cts_ns >= 0 and packet.duration_ns > 0 for packet in got.packets)


def test_times_follow_the_stated_rate(observed: Observed) -> None:
    info, got = observed
    seconds = (got.frames[-1].t_ns - got.frames[0].t_ns) / 1e9
    rate = (len(got.frames) - 1) / seconds
    assert info.fps * 0.8 < rate < info.fps * 2.1


def test_frames_and_packets_of_one_picture_agree_in_time(observed: Observed) -> None:
    _, got = observed
    shown = sorted(packet.pts_ns for packet in got.packets)[: len(got.frames)]
    assert [frame.t_ns for frame in got.frames][: len(shown)] == shown


def test_seq_has_no_holes(observed: Observed) -> None:
    _, got = observed
    assert [packet.seq for packet in got.packets] == list(range(len(got.packets)))
    assert [frame.seq for frame in got.frames] == list(range(len(got.frames)))


def test_planes_are_as_stated_contiguous_read_only_and_without_padding(observed: Observed) -> None:
    info, got = observed
    width, height = info.lores_width, info.lores_height
    assert width % 2 == 0
    assert height % 2 == 0
    assert width <= 160
    assert height <= 160
    for frame in got.frames:
        assert frame.y.shape == (height, width)
        for chroma in (frame.u, frame.v):
            assert chroma.shape == (height // 2, width // 2)
        for plane in (frame.y, frame.u, frame.v):
            assert plane.dtype == np.uint8
            assert plane.flags.c_contiguous
            assert plane.strides == (plane.shape[1], 1)
            with pytest.raises(ValueError, match="read-only"):
                plane[0, 0] = 0


def test_frames_once_delivered_never_change(rig: Rig) -> None:
    sums: list[int] = []

    class Summing(Recorder):
        def on_frame(self, frame: Frame) -> None:
            sums.append(int(frame.y.sum()))
            super().on_frame(frame)

    recorder = Summing()
    rig.start(recorder)
    rig.run(recorder, 20)
    rig.stop()
    assert [int(frame.y.sum()) for frame in recorder.frames] == sums


def test_no_gop_is_longer_than_promised(observed: Observed) -> None:
    info, got = observed
    keys = [packet.t_ns for packet in got.packets if packet.is_key]
    assert max(b - a for a, b in itertools.pairwise(keys)) <= info.max_gop_s * 1e9 + 1e6
    assert (got.packets[-1].t_ns - keys[-1]) <= info.max_gop_s * 1e9 + 1e6


def test_a_sink_that_nobody_empties_does_not_stall_the_camera(rig: Rig) -> None:
    ring, slot, seen = PacketRing(40_000), FrameSlot(), Recorder()

    class NobodyTakes:
        def on_packet(self, packet: Packet) -> None:
            ring.put(packet)

        def on_frame(self, frame: Frame) -> None:
            slot.put(frame)
            seen.on_frame(frame)

    rig.start(NobodyTakes())
    rig.run(seen, 60)
    rig.stop()
    assert slot.skipped == len(seen.frames) - 1
    newest = slot.take(0)
    assert newest is seen.frames[-1]
    packets, _, _ = ring.read(0, 10_000)
    assert packets[0].is_key
    assert abs(packets[-1].pts_ns - seen.frames[-1].t_ns) < 0.25e9


def test_nothing_comes_after_stop_and_no_thread_stays(rig: Rig) -> None:
    before = threading.active_count()
    recorder = Recorder()
    rig.start(recorder)
    rig.run(recorder, 5)
    rig.stop()
    count = len(recorder.packets), len(recorder.frames)
    rig.stop()
    assert not recorder.wait_frames(count[1] + 1, 0.1)
    assert (len(recorder.packets), len(recorder.frames)) == count
    assert threading.active_count() <= before + 2, "only the test's own server may have more threads"


def test_stop_then_start_begins_anew_with_a_keyframe_and_later_times(rig: Rig) -> None:
    _, first = run(rig, 8)
    _, second = run(rig, 8)
    assert second.packets[0].is_key
    assert second.packets[0].seq == 0
    assert second.frames[0].seq == 0
    assert second.frames[0].t_ns > first.frames[0].t_ns
    assert len(second.frames) >= 8


def test_starting_and_stopping_leaves_nothing_open(rig: Rig) -> None:
    run(rig, 3)
    before = open_files()
    for _ in range(3):
        run(rig, 3)
    assert open_files() <= before + 3, "each client of the test's own RTSP server keeps one"


# --- starts that fail -----------------------------------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def failing_sources(tmp_path: Path) -> dict[str, tuple[Source, str]]:
    clock = SystemClock()
    video = write_video(tmp_path / "good.mp4").read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    (tmp_path / "cut.mp4").write_bytes(video[: len(video) // 3])
    (tmp_path / "zeros.mp4").write_bytes(bytes(5000))
    closed = RtspServer([])
    url = closed.url.replace("rtsp://", "rtsp://user:secret@")
    closed.close()

    def video_source(name: str) -> VideoSource:
        return VideoSource(
            VideoOptions(name if "://" in name or name.startswith("/") else str(tmp_path / name)), clock
        )

    absent = Scene("absent", faults=(Fault("absent", times=9),))
    busy = Scene("busy", faults=(Fault("busy", times=9),))
    return {
        "missing file": (video_source("missing.mp4"), "is the path right?"),
        "empty file": (video_source("empty.mp4"), "empty, cut short or not a video"),
        "text file": (video_source("text.mp4"), "empty, cut short or not a video"),
        "cut file": (video_source("cut.mp4"), "empty, cut short or not a video"),
        "zeros": (video_source("zeros.mp4"), "empty, cut short or not a video"),
        "directory": (video_source(str(tmp_path)), "name a file in it"),
        "missing device": (video_source("/dev/video97"), "no such device"),
        "missing device by its lasting name": (video_source("/dev/v4l/by-id/usb-none"), "no such device"),
        "refused connection": (video_source(url), "is the camera on"),
        "fake absent": (FakeSource(absent, width=64, height=64), "no such camera"),
        "fake busy": (FakeSource(busy, width=64, height=64), "another program"),
    }


def test_a_failing_start_says_why_in_one_line_and_leaves_nothing_open(tmp_path: Path) -> None:
    for case, (source, words) in failing_sources(tmp_path).items():
        camera = PacedCamera(source, SystemClock())
        before, threads = open_files(), threading.active_count()
        for _ in range(2):
            with pytest.raises(CameraError) as caught:
                camera.start(Recorder())
            line = str(caught.value)
            assert words in line, case
            assert "secret" not in line + repr(caught.value.args), case
            assert "\n" not in line, case
            del caught
        assert open_files() == before, case
        assert threading.active_count() == threads, case


def test_an_rtsp_server_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    server = RtspServer([], mute=True)
    try:
        before = open_files()
        source = VideoSource(VideoOptions(server.url, open_s=0.3), SystemClock())
        with pytest.raises(CameraError, match="no answer within"):
            source.open(0)
        assert open_files() <= before + 1, "the server's own end"
    finally:
        server.close()


def test_a_wrong_rtsp_password_is_named_but_not_shown() -> None:
    source, recorder = fake(), Recorder()
    source.open(0)
    source.step(recorder)
    server = RtspServer(recorder.packets, password="right")
    try:
        url = server.url.replace("right", "wr0ng")
        with pytest.raises(CameraError, match="wrong or missing user name") as caught:
            VideoSource(VideoOptions(url), SystemClock()).open(0)
        assert "wr0ng" not in str(caught.value)
    finally:
        server.close()


# --- the pacing wrapper ----------------------------------------------------------------------------------------


class Scripted:
    """A source that does what a test tells it, at 100 frames a second."""

    is_live = False

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.hang_at = -1
        self.fail_at = -1
        self.end_at = -1
        self.closed = 0
        self.frame_ns = 10_000_000
        self._n = 0
        self._t0 = 0

    def open(self, t0_ns: int) -> StreamInfo:
        self._t0, self._n = t0_ns, 0
        return StreamInfo("h264", 64, 64, 100, 64, 64, 1, "scripted")

    def step(self, sink: CameraSink) -> bool:
        if self._n == self.hang_at:
            self.entered.set()
            self.gate.wait(DEADLINE_S)
        if self._n == self.fail_at:
            raise CameraError("read", "scripted", "broke")
        if self._n == self.end_at:
            return False
        plane = np.zeros((2, 2), np.uint8)
        t_ns = self._t0 + self._n * self.frame_ns
        sink.on_packet(Packet(self._n, t_ns, 10_000_000, True, b"x"))
        sink.on_frame(Frame(self._n, t_ns, plane, plane, plane))
        self._n += 1
        return True

    def next_t_ns(self) -> int | None:
        return self._t0 + self._n * self.frame_ns

    def close(self) -> None:
        self.closed += 1


def end_of_thread(source: Scripted) -> None:
    """Let a source that hangs go on, and wait for the end of the camera's thread."""
    thread = next(t for t in threading.enumerate() if t.name == "camera")
    source.gate.set()
    thread.join(DEADLINE_S)


def test_a_broken_stream_is_a_fault_of_the_camera_and_closes_it() -> None:
    source = Scripted()
    source.hang_at = source.fail_at = 3
    camera, recorder = PacedCamera(source, SystemClock()), Recorder()
    camera.start(recorder)
    assert source.entered.wait(DEADLINE_S)
    assert camera.fault() is None
    end_of_thread(source)
    assert "broke" in str(camera.fault())
    assert not camera.ended()
    assert source.closed == 1
    source.hang_at = source.fail_at = -1
    camera.start(recorder)
    assert camera.fault() is None
    camera.stop()


def test_the_end_of_a_recording_is_told_after_everything_was_delivered() -> None:
    source = Scripted()
    source.hang_at = source.end_at = 4
    camera, recorder = PacedCamera(source, SystemClock()), Recorder()
    camera.start(recorder)
    assert source.entered.wait(DEADLINE_S)
    end_of_thread(source)
    assert camera.ended()
    assert camera.fault() is None
    assert len(recorder.frames) == 4
    camera.stop()
    assert camera.ended()


def test_a_driver_that_hangs_neither_holds_up_stop_nor_delivers_after_it() -> None:
    source = Scripted()
    source.hang_at = 3
    camera, recorder = PacedCamera(source, SystemClock(), stop_s=0.05), Recorder()
    camera.start(recorder)
    assert source.entered.wait(DEADLINE_S)
    camera.stop()
    with pytest.raises(CameraError, match="still hangs"):
        camera.start(recorder)
    end_of_thread(source)
    assert len(recorder.frames) == 3
    assert len(recorder.packets) == 3
    source.hang_at = -1
    camera.start(recorder)
    camera.stop()


def test_a_camera_that_fell_behind_goes_on_from_now_without_a_burst() -> None:
    source, clock = Scripted(), SimulatedClock()
    camera, recorder = PacedCamera(source, clock), Recorder()
    source.hang_at = 1
    camera.start(recorder)
    clock.move(0.01)
    assert source.entered.wait(DEADLINE_S)
    clock.move(3600)  # a suspend of an hour in the middle of frame 1
    source.end_at = 3
    source.gate.set()
    assert recorder.wait_frames(3)
    camera.stop()
    times = [frame.t_ns for frame in recorder.frames]
    assert all(a < b for a, b in itertools.pairwise(times))
    assert abs(times[2] - clock.boot_ns()) < 20_000_000
    assert [packet.t_ns for packet in recorder.packets] == times


def test_waiting_for_the_next_frame_can_be_interrupted() -> None:
    source = Scripted()
    source.frame_ns = 3600 * 1_000_000_000
    camera, recorder = PacedCamera(source, SystemClock()), Recorder()
    camera.start(recorder)
    assert recorder.wait_frames(1)
    thread = next(t for t in threading.enumerate() if t.name == "camera")
    camera.stop()
    assert not thread.is_alive()
    assert len(recorder.frames) == 1
    assert source.closed == 1


def test_nothing_is_delivered_before_the_clock_says_so() -> None:
    source, clock = Scripted(), SimulatedClock()
    camera, recorder = PacedCamera(source, clock), Recorder()
    camera.start(recorder)
    assert recorder.wait_frames(1)
    assert not recorder.wait_frames(2, 0.05)
    clock.move(0.015)
    assert recorder.wait_frames(2)
    camera.stop()
    assert len(recorder.frames) == 2


# --- privacy -----------------------------------------------------------------------------------------------------

SECRET = ((0.30, 0.30), (0.62, 0.33), (0.55, 0.71))


def run_fake(look: int, masks: tuple[tuple[tuple[float, float], ...], ...]) -> Recorder:
    """A scene in which only somebody inside SECRET differs."""
    scene = Scene("secret", sitters=(Sitter(x=0.48, seat_y=0.48, height=0.12, look=look, busy=0),))
    source = FakeSource(scene, width=480, height=272, fps=10, lores_width=200, lores_height=200, masks=masks)
    recorder = Recorder()
    source.open(0)
    for _ in range(12):
        source.step(recorder)
    return recorder


def same(a: Recorder, b: Recorder) -> bool:
    packets = [p.data for p in a.packets] == [p.data for p in b.packets]
    planes = all(
        np.array_equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a.frames, b.frames, strict=True)
        for name in "yuv"
    )
    return packets and planes


def test_scenes_that_differ_only_under_the_mask_give_identical_packets_and_frames() -> None:
    assert same(run_fake(0, (SECRET,)), run_fake(3, (SECRET,)))


@pytest.mark.parametrize("backend", ["fake", "file"])
def test_lores_is_black_wherever_the_mask_touches_it(tmp_path: Path, backend: str) -> None:
    got = run_fake(3, (SECRET,)) if backend == "fake" else run_file(secret_file(tmp_path / "a.mp4", 200), (SECRET,))
    main = main_mask([SECRET], 480, 272)
    height, width = got.frames[0].y.shape
    for x0, y0, x1, y1 in main.rectangles:
        columns = slice(x0 * width // 480, -(-x1 * width // 480))
        rows = slice(y0 * height // 272, -(-y1 * height // 272))
        assert all(np.all(frame.y[rows, columns] == 16) for frame in got.frames)
    assert all(frame.y.max() > 60 for frame in got.frames)


def test_without_the_mask_these_scenes_differ() -> None:
    without = run_fake(0, ()), run_fake(3, ())
    assert not same(*without)
    assert [p.data for p in without[0].packets] != [p.data for p in without[1].packets]
    assert any(not np.array_equal(x.y, y.y) for x, y in zip(without[0].frames, without[1].frames, strict=True))


def secret_file(path: Path, shade: int) -> Path:
    made = []
    for number in range(12):
        planes = picture(number, 480, 272)
        planes.y[100:120, 220:236] = shade + 3 * number
        planes.u[50:60, 110:118] = 255 - shade
        made.append(planes)
    # Lossless: a lossy encoder would spread the difference beyond the mask before our node ever sees it.
    return write_video(path, frames=12, width=480, height=272, pictures=made, options={"qp": "0"})


def run_file(path: Path, masks: tuple[tuple[tuple[float, float], ...], ...]) -> Recorder:
    options = VideoOptions(str(path), lores_width=200, lores_height=200, masks=masks)
    source, recorder = VideoSource(options, SimulatedClock()), Recorder()
    source.open(0)
    while source.step(recorder):
        pass
    return recorder


def test_files_that_differ_only_under_the_mask_give_identical_packets_and_frames(tmp_path: Path) -> None:
    a, b = secret_file(tmp_path / "a.mp4", 20), secret_file(tmp_path / "b.mp4", 200)
    assert same(run_file(a, (SECRET,)), run_file(b, (SECRET,)))
    assert not same(run_file(a, ()), run_file(b, ()))
