"""The Raspberry Pi backend over pretended boards: strides, times, faults and controls, without picamera2."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_fixtures import Recorder, decode_packets, picture

from agent.cameras.open import open_camera, open_source, pi_options
from agent.cameras.overlay import Overlay
from agent.cameras.pi_controls import PictureSettings, controls_for
from agent.cameras.pi_stack import PiOptions
from agent.cameras.pi_stream import Layout, PacketMaker, StreamTimes, choose, explained, reading_of
from agent.cameras.picamera2 import FRUITLESS_STARTS, REFUSED_STARTS, PiCamera
from agent.cameras.planes import Planes, scaled
from agent.cameras.profiles import PROFILES, FaultName, PretendedBoard
from agent.cameras.scenes import BUILT_IN
from agent.clock import SimulatedClock
from agent.errors import CameraError, CameraStuckError, ConfigError
from agent.keeper import CameraKeeper
from agent.masks import main_mask
from agent.model import NS_PER_S, Frame, SensorReading
from agent.settings import Settings, ZoneSettings

OFFICE = BUILT_IN["office"]
# 200 is no multiple of 64 or 128, nor is half of it of 32.
SMALL = PiOptions("", 400, 304, 10, 200, 152, bitrate_kbps=300, gop_s=0.5)
WALL = ((0.5, 0.0), (1.0, 0.0), (1.0, 0.4), (0.5, 0.4))


class Rig:
    """A PiCamera on a pretended board and a simulated clock."""

    def __init__(self, profile: str = "pi4", options: PiOptions = SMALL, **more: float) -> None:
        self.clock = SimulatedClock()
        self.board = PretendedBoard(OFFICE, profile, self.clock)
        self.camera = PiCamera(options, self.clock, stack=self.board.stack, **more)
        self.fps = options.fps

    def run(self, frames: int) -> None:
        for _ in range(frames):
            self.clock.move(1 / self.fps)
            self.board.step()
            self.board.deliver_packets()

    def record(self, frames: int) -> Recorder:
        recorder = Recorder()
        self.camera.start(recorder)
        self.run(frames)
        self.camera.stop()
        return recorder


# --- planes ------------------------------------------------------------------------------------------------------


@given(
    format=st.sampled_from(["YUV420", "NV12"]),
    half_width=st.integers(1, 60),
    half_height=st.integers(1, 30),
    align=st.sampled_from([1, 2, 64, 128]),
)
def test_planes_come_out_of_padded_buffers_as_they_were_laid_in(
    format: str, half_width: int, half_height: int, align: int
) -> None:
    width, height = 2 * half_width, 2 * half_height
    stride = -(-width // align) * align
    layout = Layout(format, width, height, stride + stride % 2)
    flat = np.full(layout.stride * height * 3 // 2, 0xEE, np.uint8)
    rng = np.random.default_rng(1)
    y = rng.integers(0, 200, (height, width), dtype=np.uint8)
    u, v = (rng.integers(0, 200, (half_height, half_width), dtype=np.uint8) for _ in range(2))
    # Written as the documents of both formats say, byte by byte, not with the code under test.
    for row in range(height):
        flat[row * layout.stride : row * layout.stride + width] = y[row]
    at = height * layout.stride
    for row in range(half_height):
        if format == "NV12":
            flat[at + row * layout.stride : at + row * layout.stride + width] = np.stack([u[row], v[row]], -1).ravel()
        else:
            half = layout.stride // 2
            flat[at + row * half : at + row * half + half_width] = u[row]
            second = at + half_height * half
            flat[second + row * half : second + row * half + half_width] = v[row]
    for got, wanted in zip(layout.planes(flat), (y, u, v), strict=True):
        assert np.array_equal(got, wanted)
    with pytest.raises(ValueError, match="too few"):
        layout.planes(flat[:-1])


def test_a_format_it_cannot_read_is_refused_by_name() -> None:
    with pytest.raises(CameraError, match="format MJPEG: only YUV420 and NV12"):
        Layout.of({"format": "MJPEG", "size": (640, 480), "stride": 640})


@pytest.mark.parametrize("profile", PROFILES)
def test_each_boards_frames_and_packets_show_the_scene_without_its_padding(profile: str) -> None:
    rig = Rig(profile)
    got = rig.record(12)
    assert len(got.frames) == len(got.packets) == 12
    shown = decode_packets(got.packets)
    for number, (frame, main) in enumerate(zip(got.frames, shown, strict=True)):
        truth = scaled(rig.board.picture(number, (400, 304), 10)[0], 200, 152)
        assert all(np.array_equal(a, b) for a, b in zip((frame.y, frame.u, frame.v), truth, strict=True))
        small = scaled(main, 200, 152)
        assert np.abs(small.y.astype(int) - frame.y.astype(int)).mean() < 6
        assert (frame.sensor is None) == (profile == "virtual")


# --- times and packets -------------------------------------------------------------------------------------------


def test_a_sensor_on_another_clock_is_moved_to_the_boot_clock_once() -> None:
    times = StreamTimes()
    boot_ns, behind_ns = 500 * NS_PER_S, 90 * NS_PER_S
    assert times.frame(boot_ns - behind_ns, boot_ns) == boot_ns
    assert times.frame(boot_ns - behind_ns + 66_666_667, boot_ns + 70_000_000) == boot_ns + 66_666_000
    assert times.packet((boot_ns - behind_ns) // 1000, 66_666) == boot_ns + 66_666_000


def test_sensor_times_near_the_boot_clock_are_kept_as_they_are() -> None:
    times = StreamTimes()
    assert times.frame(500_123_456_789, 500_200_000_000) == 500_123_456_000
    assert times.frame(500_123_456_999, 500_200_000_000) is None, "the same microsecond"
    assert times.packet(500_123_456, 0) == 500_123_456_000
    assert times.packet(500_123_456, 0) == 500_123_457_000, "never the same time twice"


KEY = b"\0\0\0\1\x67sps\0\0\0\1\x68pps\0\0\0\1\x65idr"


def test_packets_begin_with_a_keyframe_and_each_keyframe_has_its_parameter_sets() -> None:
    maker = PacketMaker(1000)
    assert maker.packet(b"\0\0\0\1\x41p", 1, is_key=False) is None
    first = maker.packet(KEY, 2, is_key=True)
    assert first is not None
    assert (first.seq, first.data) == (0, KEY)
    bare = maker.packet(b"\0\0\0\1\x65idr", 3, is_key=True)
    assert bare is not None
    assert bare.data == KEY
    with pytest.raises(ValueError, match="without parameter sets"):
        PacketMaker(1000).packet(b"\0\0\0\1\x65idr", 3, is_key=True)


def test_packets_of_a_hardware_encoder_may_come_from_another_thread() -> None:
    rig, recorder = Rig("pi4"), Recorder()
    rig.camera.start(recorder)
    for _ in range(10):
        rig.clock.move(0.1)
        rig.board.step()
        thread = threading.Thread(target=rig.board.deliver_packets)
        thread.start()
        thread.join()
    rig.camera.stop()
    assert [packet.t_ns for packet in recorder.packets] == [frame.t_ns for frame in recorder.frames]


# --- masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_masks_are_in_both_streams_and_in_stills(profile: str) -> None:
    options = PiOptions("", 400, 304, 10, 200, 152, bitrate_kbps=300, gop_s=0.5, masks=(WALL,))
    rig, recorder = Rig(profile, options), Recorder()
    rig.camera.start(recorder)
    rig.run(6)
    stills: list[Frame] = []
    rig.camera.want_still(stills.append)
    rig.run(2)
    rig.camera.stop()
    (still,) = stills
    for x0, y0, x1, y1 in main_mask([WALL], 400, 304).rectangles:
        for shown in decode_packets(recorder.packets):
            assert np.all(np.abs(shown.y[y0:y1, x0:x1].astype(int) - 16) <= 4), "but for the encoder's own noise"
        assert all(np.all(frame.y[y0 // 2 : y1 // 2, x0 // 2 : x1 // 2] == 16) for frame in recorder.frames)
        assert np.all(still.y[y0:y1, x0:x1] == 16)
        assert np.all(still.u[y0 // 2 : y1 // 2, x0 // 2 : x1 // 2] == 128)
    assert recorder.frames[-1].y.max() > 60


def test_a_frame_that_cannot_be_masked_is_black_and_the_camera_is_restarted() -> None:
    rig, recorder = Rig("pi5", PiOptions("", 400, 304, 10, 200, 152, masks=(WALL,))), Recorder()
    rig.camera.start(recorder)
    rig.run(3)
    rig.board.faults.add("short-buffer")
    rig.run(1)
    assert "could not be masked" in str(rig.camera.fault())
    assert len(recorder.frames) == 3
    black = decode_packets(recorder.packets)[3:]
    assert all(np.abs(planes.y.astype(int) - 16).max() <= 3 for planes in black)
    rig.run(3)
    assert len(decode_packets(recorder.packets)) <= 4, "where not even that can be done nothing is delivered"
    rig.camera.stop()


# --- trouble -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("absent", "no camera is connected"),
        ("busy", "another program is using the camera"),
        ("no-memory", "out of contiguous memory"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing_open(fault: FaultName, words: str) -> None:
    rig = Rig()
    rig.board.faults.add(fault)
    for _ in range(2):
        with pytest.raises(CameraError, match=words):
            rig.camera.start(Recorder())
        assert not rig.board.opened
    rig.board.faults.clear()
    assert len(rig.record(5).frames) == 5


def test_with_little_contiguous_memory_fewer_buffers_are_taken_once() -> None:
    rig = Rig()
    rig.board.faults.add("little-memory")
    assert len(rig.record(5).frames) == 5
    assert [config["buffer_count"] for config in rig.board.configurations] == [4, 3]
    assert all(config["raw"] is None for config in rig.board.configurations)
    assert all(config["queue"] is False for config in rig.board.configurations)


def keep(rig: Rig) -> tuple[CameraKeeper, Recorder, Callable[[float], None]]:
    recorder = Recorder()
    keeper = CameraKeeper(rig.camera, recorder, 5)

    def run(seconds: float) -> None:
        for _ in range(round(seconds)):
            rig.run(round(rig.fps))
            keeper.step(rig.clock.boot_ns())

    keeper.step(rig.clock.boot_ns())
    return keeper, recorder, run


@pytest.mark.parametrize(
    ("fault", "words"),
    [("silence", "no frame"), ("no-packets", "no packet"), ("absent", "no frame"), ("stop-waits", "")],
)
def test_what_stalls_is_restarted_and_comes_back_within_15_s(fault: FaultName, words: str) -> None:
    rig = Rig()
    keeper, recorder, run = keep(rig)
    run(3)
    assert keeper.state.running
    rig.board.faults |= {fault, "silence"} if fault == "stop-waits" else {fault}
    run(6)
    assert words in keeper.state.trouble
    rig.board.faults.clear()
    recorder.frames.clear()
    run(9)
    assert keeper.state.running
    assert len(recorder.frames) > 10
    keeper.stop()


def test_what_raises_in_a_callback_ends_the_pretended_event_loop_as_it_does_the_real_one() -> None:
    rig, recorder = Rig(), Recorder()
    rig.camera.start(recorder)
    (opened,) = rig.board.opened
    callback, opened.pre_callback = opened.pre_callback, lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        rig.run(1)
    opened.pre_callback = callback
    rig.run(5)
    assert not recorder.frames
    rig.camera.stop()
    rig.camera.start(recorder)
    rig.run(5)
    assert len(recorder.frames) == 5
    rig.camera.stop()


def test_a_stop_that_hangs_is_given_up_and_asks_for_a_new_process() -> None:
    rig = Rig(stop_limit_s=0.05)
    rig.camera.start(Recorder())
    rig.run(3)
    rig.board.faults.add("stop-hangs")
    rig.camera.stop()
    for _ in range(2):
        with pytest.raises(CameraStuckError, match="the driver hangs"):
            rig.camera.start(Recorder())
    rig.board.release()


def test_a_camera_that_never_delivers_a_frame_asks_for_a_new_process_in_the_end() -> None:
    rig = Rig()
    rig.board.faults.add("silence")
    for _ in range(FRUITLESS_STARTS):
        rig.camera.start(Recorder())
        rig.camera.stop()
    with pytest.raises(CameraStuckError, match=f"no frame after {FRUITLESS_STARTS} starts"):
        rig.camera.start(Recorder())


def test_a_camera_that_worked_and_cannot_be_opened_again_asks_for_one_new_process() -> None:
    rig = Rig()
    rig.record(3)
    rig.board.faults.add("busy")
    for _ in range(REFUSED_STARTS - 1):
        with pytest.raises(CameraError, match="another program") as refused:
            rig.camera.start(Recorder())
        assert not isinstance(refused.value, CameraStuckError)
    with pytest.raises(CameraStuckError, match=r"8 starts failed, the last: another program.*new process"):
        rig.camera.start(Recorder())


def test_a_camera_that_was_never_there_is_waited_for_without_new_processes() -> None:
    rig = Rig()
    rig.board.faults.add("absent")
    for _ in range(3 * REFUSED_STARTS):
        with pytest.raises(CameraError, match="no camera is connected") as refused:
            rig.camera.start(Recorder())
        assert not isinstance(refused.value, CameraStuckError)
    rig.board.faults.clear()
    assert len(rig.record(5).frames) == 5


def test_a_stuck_camera_is_not_retried_by_the_keeper_but_ends_the_process() -> None:
    rig = Rig(stop_limit_s=0.05)
    _, _, run = keep(rig)
    run(2)
    rig.board.faults |= {"silence", "stop-hangs"}
    with pytest.raises(CameraStuckError):
        run(12)
    rig.board.release()


def test_frames_that_are_held_starve_the_camera_until_they_are_given_back() -> None:
    rig, recorder = Rig(), Recorder()
    rig.camera.start(recorder)
    rig.run(2)
    (opened,) = rig.board.opened
    assert opened.last is not None
    opened.held = [opened.last] * 4
    rig.run(5)
    assert len(recorder.frames) == 2
    opened.held.clear()
    rig.run(5)
    assert len(recorder.frames) == 7
    rig.camera.stop()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_still_is_the_next_picture_of_main_without_padding_and_comes_once(profile: str) -> None:
    rig, recorder = Rig(profile), Recorder()
    stills: list[Frame] = []
    rig.camera.want_still(stills.append)  # before the start: the first picture
    rig.camera.start(recorder)
    rig.run(2)
    assert [(still.seq, still.t_ns) for still in stills] == [(0, recorder.frames[0].t_ns)]
    rig.camera.want_still(stills.append)
    rig.run(3)
    rig.camera.stop()
    still = stills[1]
    assert (len(stills), still.seq, still.y.shape, still.u.shape) == (2, 2, (304, 400), (152, 200))
    small = scaled(Planes(still.y, still.u, still.v), 200, 152)
    shown = recorder.frames[2]
    assert all(np.array_equal(a, b) for a, b in zip(small, (shown.y, shown.u, shown.v), strict=True))
    assert not any(plane.flags.writeable for plane in (still.y, still.u, still.v))
    assert [packet.seq for packet in recorder.packets] == list(range(5)), "recording went on"


def test_a_still_that_was_wanted_from_a_stopped_camera_is_not_delivered() -> None:
    rig = Rig()
    stills: list[Frame] = []
    rig.camera.start(Recorder())
    rig.run(2)
    assert rig.camera._run is not None
    rig.camera._run.shut()
    rig.camera.want_still(stills.append)
    rig.run(2)
    assert not stills
    rig.camera.stop()


def test_a_hot_board_gets_fewer_frames_and_bits_with_the_next_start() -> None:
    rig = Rig()
    rig.camera.ease(0.5, 0.5)
    rig.camera.start(Recorder())
    assert rig.board.configurations[-1]["controls"]["FrameDurationLimits"] == (200_000, 200_000)
    rig.camera.ease(1, 1)
    rig.camera.start(Recorder())
    assert rig.board.configurations[-1]["controls"]["FrameDurationLimits"] == (100_000, 100_000)
    rig.camera.stop()


def test_easing_restarts_a_running_camera_and_it_counts_as_running_all_the_time() -> None:
    rig = Rig()
    keeper, recorder, run = keep(rig)
    run(3)
    keeper.ease(0.5, 1, rig.clock.boot_ns())
    assert keeper.state.running
    assert len(rig.board.configurations) == 2
    count = len(recorder.frames)
    rig.fps = 5
    run(3)
    assert keeper.state.running
    assert len(recorder.frames) == count + 15
    keeper.stop()


# --- which camera, which picture ---------------------------------------------------------------------------------

TWO = [{"Id": "/base/i2c@1/imx708@1a", "Model": "imx708"}, {"Id": "/base/i2c@0/imx219@10", "Model": "imx219"}]


def test_a_camera_is_chosen_by_id_or_model_never_by_number() -> None:
    assert choose(TWO, "/base/i2c@0/imx219@10") == choose(TWO, "imx219") == 1
    assert choose(TWO[:1], "") == 0
    for cameras, wanted, words in (
        (TWO, "", r"there are 2: .*imx708@1a \(imx708\)"),
        (TWO, "imx477", "imx477: no such camera"),
        ([*TWO, {"Id": "other", "Model": "imx219"}], "imx219", "imx219: several"),
        ([], "imx219", "no camera is connected"),
    ):
        with pytest.raises(CameraError, match=words):
            choose(cameras, wanted)


def test_settings_become_the_controls_of_libcamera() -> None:
    advertised = PROFILES["pi5"].controls
    wanted = PictureSettings(
        autofocus="manual",
        lens_position=0.5,
        exposure_us=8000,
        gain=2.0,
        brightness_ev=-0.5,
        white_balance="daylight",
        flicker_hz=50,
        hdr="night",
    )
    assert controls_for(wanted, advertised, "imx708") == {
        "AfMode": 0,
        "LensPosition": 0.5,
        "ExposureTime": 8000,
        "AnalogueGain": 2.0,
        "ExposureValue": -0.5,
        "AwbMode": 5,
        "AeFlickerMode": 1,
        "AeFlickerPeriod": 10_000,
        "HdrMode": 4,
    }
    assert controls_for(PictureSettings(), (), "any") == {}
    with pytest.raises(CameraError, match=r"camera\.autofocus = 'continuous': imx219 has no control AfMode"):
        controls_for(PictureSettings(autofocus="continuous"), PROFILES["pi4"].controls, "imx219")


@pytest.mark.parametrize(
    ("rotation", "mirror", "flip", "transform"),
    [
        (0, False, False, (False, False)),
        (180, False, False, (True, True)),
        (0, True, False, (True, False)),
        (180, True, False, (False, True)),
    ],
)
def test_a_camera_that_hangs_upside_down_is_turned(
    rotation: int, mirror: bool, flip: bool, transform: tuple[bool, bool]
) -> None:
    rig = Rig(options=PiOptions("", 400, 304, 10, 200, 152, rotation=rotation, mirror=mirror, flip=flip))
    rig.camera.start(Recorder())
    assert rig.board.configurations[-1]["transform"] == transform
    rig.camera.stop()


def test_the_overlay_is_burnt_into_main_only() -> None:
    settings = Settings()
    overlay = Overlay("door", settings.node.zone_info)
    options = PiOptions("", 400, 304, 10, 200, 152, overlay=overlay)
    plain, lined = (Rig("pi4", each).record(3) for each in (SMALL, options))
    assert np.array_equal(plain.frames[2].y, lined.frames[2].y)
    difference = decode_packets(lined.packets)[2].y.astype(int) - decode_packets(plain.packets)[2].y
    assert np.abs(difference[-24:]).max() > 60
    assert np.abs(difference[: 304 - 40]).mean() < 3


def test_the_sensors_own_numbers_travel_with_the_frame() -> None:
    metadata = {"ExposureTime": 9987, "AnalogueGain": 1.5, "ColourGains": (1.8, 1.4), "Lux": 312.5, "AeState": 2}
    assert reading_of(metadata) == SensorReading(9987.0, 1.5, (1.8, 1.4), 312.5)
    assert reading_of({"ExposureTime": 100}) == SensorReading(exposure_us=100.0)
    assert reading_of({"SensorTimestamp": 1}) is None


def test_errors_are_explained_by_what_they_mean() -> None:
    busy = RuntimeError("Camera __init__ sequence did not complete.")
    busy.__cause__ = RuntimeError("Failed to acquire camera: Device or resource busy")
    for error, words in (
        (busy, "another program is using the camera"),
        (OSError(12, "Cannot allocate memory"), "out of contiguous memory"),
        (RuntimeError("Failed to start camera: Cannot allocate memory"), "out of contiguous memory"),
        (RuntimeError('No camera number 9 found - use "rpicam-hello"'), "no such camera"),
        (FileNotFoundError(2, "No such file or directory", "/dev/video11"), "camera.encoder = 'software'"),
        (TimeoutError(), "timed out"),
        (RuntimeError("Camera has not been configured"), "has not been configured"),
    ):
        line = str(explained("start", "camera", error))
        assert words in line
        assert "\n" not in line


def test_settings_of_a_picamera2_node_reach_the_camera() -> None:
    zone = ZoneSettings(id="wall", kind="privacy", polygon=[(0, 0), (1, 0), (1, 1)])
    settings = Settings(
        node={"id": "door"},
        camera={
            "backend": "picamera2",
            "id": "imx708",
            "rotation": 180,
            "sensor_size": "1640x1232",
            "encoder": "software",
            "flicker_hz": 50,
            "overlay": True,
        },
        zones=[zone],
    )
    options = pi_options(settings)
    assert (options.id, options.rotation, options.sensor_size) == ("imx708", 180, (1640, 1232))
    assert options.software_encoder is True
    assert options.picture.flicker_hz == 50
    assert options.masks
    assert options.overlay is not None
    assert isinstance(open_camera(settings, SimulatedClock()), PiCamera)
    with pytest.raises(ConfigError, match=r"camera\.backend = 'picamera2'"):
        open_source(settings, SimulatedClock())


def test_without_picamera2_the_start_says_what_to_install() -> None:
    try:
        import picamera2  # noqa: F401
    except ImportError:
        with pytest.raises(CameraError, match="apt-get install python3-picamera2"):
            PiCamera(SMALL, SimulatedClock()).start(Recorder())
    else:
        pytest.skip("picamera2 is installed here")


def test_the_pretended_boards_buffer_really_has_garbage_in_its_padding() -> None:
    rig = Rig("pi5")
    rig.camera.start(Recorder())
    (opened,) = rig.board.opened
    layout = opened.layouts["lores"]
    assert (layout.width, layout.stride) == (200, 256)
    drawn = picture(0, 200, 152)
    flat = opened._laid_out("lores", Planes(*drawn), 3)
    padding = flat[: 152 * 256].reshape(152, 256)[:, 200:]
    assert len(np.unique(padding)) > 100
    rig.camera.stop()
