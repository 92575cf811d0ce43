"""The video backend on files of many kinds and on a live stream that misbehaves."""

from __future__ import annotations

import itertools
import json
import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_fixtures import Recorder, RtspServer, decode_packets, write_video

from agent.annexb import split_annexb, split_length_prefixed
from agent.cameras.fake import FakeSource
from agent.cameras.open import open_camera, open_source
from agent.cameras.paced import PacedCamera
from agent.cameras.planes import Planes, lores_size
from agent.cameras.scenes import BUILT_IN
from agent.cameras.strip import read_frame_number
from agent.cameras.video import VideoOptions, VideoSource
from agent.clock import SimulatedClock, SystemClock
from agent.errors import CameraError, ConfigError
from agent.masks import Polygon
from agent.model import NS_PER_S, StreamInfo
from agent.settings import load_settings

T0 = 5 * NS_PER_S
FULL: dict[str, Any] = {"lores_width": 1920, "lores_height": 1080}
"""Lores as large as main, so that the frame number can be read from it."""


def play(path: Path, **options: Any) -> tuple[StreamInfo, Recorder]:
    wanted = FULL | options
    source, got = VideoSource(VideoOptions(str(path), **wanted), SimulatedClock()), Recorder()
    info = source.open(T0)
    while source.step(got):
        pass
    assert source.step(got) is False
    source.close()
    return info, got


def frame_numbers(got: Recorder) -> list[int | None]:
    return [read_frame_number(frame.y) for frame in got.frames]


def step_often(source: VideoSource, got: Recorder) -> None:
    for _ in range(300):
        source.step(got)


# --- original packets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_original_packets_are_kept_and_pictures_agree_with_them(
    tmp_path: Path, suffix: str, b_frames: int, codec: str
) -> None:
    path = write_video(tmp_path / f"a.{suffix}", b_frames=b_frames, codec=codec)
    info, got = play(path)
    assert info.codec == ("h264" if codec == "libx264" else "hevc")
    assert "original packets" in info.description
    assert info.fps == pytest.approx(10, rel=0.01)
    assert info.max_gop_s == pytest.approx(1.0, abs=0.02)
    assert frame_numbers(got) == list(range(30))
    assert [packet.seq for packet in got.packets] == list(range(30))
    assert any(packet.cts_ns for packet in got.packets) == bool(b_frames)
    assert got.packets[0].t_ns == T0
    assert [frame.t_ns for frame in got.frames] == sorted(packet.pts_ns for packet in got.packets)
    steps = {b.t_ns - a.t_ns for a, b in itertools.pairwise(got.frames)}
    assert all(abs(step - 100_000_000) <= 1_000_000 for step in steps)
    assert len(decode_packets(got.packets, info.codec)) == 30


def test_nal_units_are_not_touched(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", b_frames=2)
    with av.open(str(path)) as container:
        originals = [split_length_prefixed(bytes(p)) for p in container.demux(container.streams.video[0]) if p.size]
    _, got = play(path)
    for packet, original in zip(got.packets, originals, strict=True):
        nals = split_annexb(packet.data)
        if packet.is_key:
            assert [nal[0] & 0x1F for nal in nals[:2]] == [7, 8], "parameter sets in front of each keyframe"
        kept = [nal for nal in nals if nal[0] & 0x1F not in (7, 8)]
        assert kept == [nal for nal in original if nal[0] & 0x1F not in (7, 8)]


def test_what_is_skipped_before_the_first_keyframe_is_not_counted(tmp_path: Path) -> None:
    whole, cut = write_video(tmp_path / "whole.mkv"), tmp_path / "cut.ts"
    with av.open(str(cut), "w", format="mpegts") as into:
        out: Any = into.add_stream("libx264", rate=10)
        out.width, out.height, out.pix_fmt = 320, 240, "yuv420p"
        _, packets = play(whole)
        for packet in packets.packets[4:]:  # begins in the middle of the first GOP
            coded = av.Packet(packet.data)
            coded.pts = coded.dts = packet.t_ns // 1000
            coded.time_base = Fraction(1, 1_000_000)
            coded.stream = out
            into.mux(coded)
    _, got = play(cut)
    assert got.packets[0].is_key
    assert frame_numbers(got) == list(range(10, 30))
    assert [frame.seq for frame in got.frames] == list(range(20))
    assert got.frames[0].t_ns == T0


def test_frames_are_the_same_whether_packets_are_wanted_or_not(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", b_frames=2)
    _, a = play(path)
    _, b = play(path, want_packets=False)
    assert not b.packets
    assert [(f.seq, f.t_ns, f.y.tobytes()) for f in a.frames] == [(f.seq, f.t_ns, f.y.tobytes()) for f in b.frames]


# --- encoded again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("avi", "mjpeg", "yuvj420p"),
        ("mkv", "mjpeg", "yuvj444p"),
        ("avi", "mpeg4", "yuv420p"),
        ("mkv", "ffv1", "gray"),
    ],
)
def test_other_codecs_are_encoded_again(tmp_path: Path, suffix: str, codec: str, pix_fmt: str) -> None:
    info, got = play(write_video(tmp_path / f"a.{suffix}", codec=codec, pix_fmt=pix_fmt))
    assert info.codec == "h264"
    assert "encoded again" in info.description
    assert len(got.packets) == len(got.frames) == 30
    assert [read_frame_number(p.y) for p in decode_packets(got.packets)] == list(range(30))
    keys = [packet.t_ns for packet in got.packets if packet.is_key]
    assert all(b - a <= info.max_gop_s * 1e9 + 1e6 for a, b in itertools.pairwise(keys))
    assert [packet.t_ns for packet in got.packets] == [frame.t_ns for frame in got.frames]


def test_full_range_becomes_limited_range(tmp_path: Path) -> None:
    def ramp(path: Path, pix_fmt: str) -> Planes:
        y = np.tile(np.linspace(16, 235, 320).astype(np.uint8), (240, 1))
        c = np.full((120, 160), 128, np.uint8)
        options = {"q:v": "1", "qmin": "1", "qmax": "1"}
        pictures = [Planes(y, c, c)] * 3
        _, got = play(write_video(path, frames=3, codec="mjpeg", pix_fmt=pix_fmt, pictures=pictures, options=options))
        frame = got.frames[0]
        return Planes(frame.y, frame.u, frame.v)

    y = ramp(tmp_path / "a.mkv", "yuvj420p").y.astype(int).mean(axis=0)
    # The writer stretched 16..235 to full range; reading has to take that back.
    assert abs(y[2] - 17) <= 4
    assert abs(y[-3] - 234) <= 4
    assert abs(y[160] - 126) <= 4


def test_a_stream_without_times_is_encoded_again_at_its_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264", b_frames=2, fps=25)
    info, got = play(path)
    assert "encoded again" in info.description
    assert frame_numbers(got) == list(range(30))
    assert got.frames[0].t_ns == T0
    assert all(b.t_ns > a.t_ns for a, b in itertools.pairwise(got.frames))
    assert (got.frames[-1].t_ns - T0) / 1e9 == pytest.approx(29 / info.fps, rel=0.05)


@pytest.mark.parametrize("masks", [(), (((0.5, 0.5), (1.0, 0.5), (1.0, 1.0)),)])
def test_odd_sizes_give_even_lores(tmp_path: Path, masks: object) -> None:
    path = write_video(tmp_path / "a.mkv", width=322, height=242, codec="libx264")
    info, got = play(path, lores_width=201 // 2 * 2, lores_height=200, masks=masks)
    assert info.lores_width % 2 == 0
    assert info.lores_height % 2 == 0
    assert got.frames[0].y.shape == (info.lores_height, info.lores_width)


# --- lores ----------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 2048).map(lambda n: 2 * n),
    st.integers(1, 1152).map(lambda n: 2 * n),
    st.integers(32, 960).map(lambda n: 2 * n),
    st.integers(32, 540).map(lambda n: 2 * n),
)
def test_lores_is_even_within_limits_never_larger_and_keeps_its_shape(
    width: int, height: int, max_width: int, max_height: int
) -> None:
    w, h = lores_size(width, height, max_width, max_height)
    assert w % 2 == h % 2 == 0
    assert 2 <= w <= min(width, max_width)
    assert 2 <= h <= min(height, max_height)
    assert abs(w - h * width / height) <= 2 + width / height or h == 2 or w == 2


def test_lores_is_the_mean_of_what_it_covers(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=3)
    _, full = play(path)
    info, small = play(path, lores_width=160, lores_height=160)
    assert (info.lores_width, info.lores_height) == (160, 120)
    mean = full.frames[0].y.reshape(120, 2, 160, 2).mean(axis=(1, 3))
    assert np.abs(small.frames[0].y - mean).max() <= 1


# --- looping --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv", "h264"])
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("masks", [(), (((0.9, 0.9), (1.0, 0.9), (1.0, 1.0)),)], ids=["original", "masked"])
def test_a_looped_file_goes_on_without_a_hole_or_a_step_back(
    tmp_path: Path, suffix: str, b_frames: int, masks: Any
) -> None:
    path = write_video(tmp_path / f"a.{suffix}", frames=12, gop=6, b_frames=b_frames)
    options = VideoOptions(str(path), loop=True, masks=masks, **FULL)
    source, got = VideoSource(options, SimulatedClock()), Recorder()
    info = source.open(T0)
    while len(got.frames) < 40:
        assert source.step(got)
    source.close()
    assert [frame.seq for frame in got.frames] == list(range(len(got.frames)))
    assert [packet.seq for packet in got.packets] == list(range(len(got.packets)))
    assert frame_numbers(got)[:36] == [*range(12)] * 3
    for times in ([f.t_ns for f in got.frames], [p.t_ns for p in got.packets]):
        assert all(b > a for a, b in itertools.pairwise(times))
    steps = [b.t_ns - a.t_ns for a, b in itertools.pairwise(got.frames)]
    assert max(steps) <= 1.02e9 / info.fps
    keys = [packet.t_ns for packet in got.packets if packet.is_key]
    assert max(b - a for a, b in itertools.pairwise(keys)) <= info.max_gop_s * 1e9 + 1e6


def test_looping_leaves_nothing_open(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=3)
    source, got = VideoSource(VideoOptions(str(path), loop=True), SimulatedClock()), Recorder()
    source.open(T0)
    while len(got.frames) < 6:
        source.step(got)
    before = len(os.listdir("/proc/self/fd"))
    while len(got.frames) < 60:
        source.step(got)
    assert len(os.listdir("/proc/self/fd")) == before
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


# --- broken files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["ts", "mp4"])
def test_damage_in_the_middle_is_left_out_and_the_rest_is_played(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"a.{suffix}", frames=60)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(range(256)) * 11 + bytes(184)
    path.write_bytes(data)
    _, got = play(path)
    numbers = frame_numbers(got)
    assert numbers[0] == 0
    assert numbers[-1] == 59
    assert len(numbers) >= 40
    assert got.packets[-1].seq >= len(got.packets) - 1
    assert all(b.t_ns > a.t_ns for a, b in itertools.pairwise(got.frames))
    assert all(b.t_ns > a.t_ns for a, b in itertools.pairwise(got.packets))


@pytest.mark.parametrize("suffix", ["ts", "mkv", "h264"])
def test_a_file_that_is_cut_short_plays_to_the_cut(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"a.{suffix}", frames=40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    _, got = play(path)
    assert 15 < len(got.frames) < 40
    assert frame_numbers(got)[:15] == list(range(15))


def test_a_file_without_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(CameraError, match="no video stream"):
        play(path)


def test_pictures_that_none_can_be_decoded_are_a_fault_even_when_looped(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", frames=6, gop=1)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                # All but length and kind: of a slice whose header is whole a decoder may make up a picture.
                at = data.find(bytes(packet)[5:])
                data[at : at + packet.size - 5] = b"\xff" * (packet.size - 5)
    path.write_bytes(data)
    source = VideoSource(VideoOptions(str(path), loop=True), SimulatedClock())
    source.open(T0)
    with pytest.raises(CameraError, match="none of its pictures"):
        step_often(source, Recorder())
    source.close()


# --- pacing ---------------------------------------------------------------------------------------------------


def test_a_file_is_due_when_its_times_say(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=10, b_frames=2)
    source, got = VideoSource(VideoOptions(str(path)), SimulatedClock()), Recorder()
    source.open(T0)
    assert source.next_t_ns() == T0
    while True:
        due = source.next_t_ns()
        count = len(got.packets)
        if not source.step(got):
            break
        if len(got.packets) > count:
            assert got.packets[-1].t_ns == due
    source.close()


def test_a_paced_recording_ends_and_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=10, fps=50)
    camera, got = PacedCamera(VideoSource(VideoOptions(str(path)), SystemClock()), SystemClock()), Recorder()
    camera.start(got)
    assert got.wait_frames(10)
    camera.stop()
    assert len(got.packets) == 10


# --- live -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Recorder:
    source = FakeSource(BUILT_IN["office"], width=320, height=240, fps=100, bitrate_kbps=400, gop_s=0.3)
    got = Recorder()
    source.open(0)
    for _ in range(200):
        source.step(got)
    return got


def test_a_stream_that_falls_silent_returns_from_step_and_goes_on_later(served: Recorder) -> None:
    server = RtspServer(served.packets, fps=100)
    try:
        source = VideoSource(VideoOptions(server.url, read_s=0.2, **FULL), SystemClock())
        got = Recorder()
        source.open(0)
        while len(got.frames) < 10:
            assert source.step(got)
        server.hold.set()
        count = -1
        while count != len(got.frames):  # until a whole read_s brought nothing
            count = len(got.frames)
            assert source.step(got)
        assert source.step(got)
        assert len(got.frames) == count
        server.hold.clear()
        while len(got.frames) < count + 20:
            assert source.step(got)
        numbers = frame_numbers(got)
        assert numbers == list(range(numbers[0] or 0, (numbers[0] or 0) + len(numbers))), "nothing was lost"
        source.close()
    finally:
        server.close()


def test_a_stream_whose_server_hangs_up_is_a_fault_that_names_it(served: Recorder) -> None:
    server = RtspServer(served.packets, fps=100, password="geheim")
    try:
        source, got = VideoSource(VideoOptions(server.url), SystemClock()), Recorder()
        source.open(0)
        while len(got.frames) < 5:
            source.step(got)
        server.hang_up()
        with pytest.raises(CameraError) as caught:
            step_often(source, got)
        assert "rtsp://***@127.0.0.1" in str(caught.value)
        assert "geheim" not in str(caught.value)
        source.close()
    finally:
        server.close()


def test_live_times_follow_the_boot_clock_and_are_anchored_anew_when_off(served: Recorder) -> None:
    clock = SimulatedClock()
    server = RtspServer(served.packets, fps=100)
    try:
        source, got = VideoSource(VideoOptions(server.url), clock), Recorder()
        source.open(0)
        while len(got.frames) < 20:
            source.step(got)
        assert abs(got.frames[10].t_ns - clock.boot_ns()) < 0.5e9
        clock.move(60)
        while len(got.frames) < 40:
            source.step(got)
        assert abs(got.frames[-1].t_ns - clock.boot_ns()) < 1.1e9
        for times in ([f.t_ns for f in got.frames], [p.t_ns for p in got.packets]):
            assert all(b > a for a, b in itertools.pairwise(times))
        source.close()
    finally:
        server.close()


@pytest.mark.parametrize("masks", [(), (((0.0, 0.0), (0.2, 0.0), (0.2, 0.2)),)])
def test_what_came_while_a_live_stream_was_opened_keeps_its_pace(
    served: Recorder, masks: tuple[Polygon, ...]
) -> None:
    """FFmpeg looks at a second or so of the stream before it lets go of the first packet."""
    server, clock = RtspServer(served.packets, fps=100), SystemClock()
    try:
        source, got = VideoSource(VideoOptions(server.url, masks=masks), clock), Recorder()
        began_ns = clock.boot_ns()
        source.open(began_ns)
        while len(got.frames) < 150:
            source.step(got)
            assert not got.frames or got.frames[-1].t_ns < clock.boot_ns() + 50_000_000, "a picture of the future"
        assert got.frames[0].t_ns >= began_ns
        for times in ([f.t_ns for f in got.frames], [p.t_ns for p in got.packets]):
            gaps_ms = [round((b - a) / 1e6) for a, b in itertools.pairwise(times[1:])]
            assert set(gaps_ms) <= {9, 10, 11}, gaps_ms
        source.close()
    finally:
        server.close()


def test_a_live_gop_longer_than_assumed_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    source, got = FakeSource(BUILT_IN["empty"], width=64, height=64, fps=5, gop_s=100), Recorder()
    source.open(0)
    for _ in range(120):
        source.step(got)
    server = RtspServer(got.packets, fps=1000)
    clock = SimulatedClock()
    try:
        live, seen = VideoSource(VideoOptions(server.url), clock), Recorder()
        live.open(0)
        with caplog.at_level(logging.WARNING):
            while len(seen.frames) < 100:
                live.step(seen)
                clock.move(0.2)
        assert sum("no keyframe for" in record.getMessage() for record in caplog.records) == 1
        live.close()
    finally:
        server.close()


# --- settings -------------------------------------------------------------------------------------------------


def test_settings_open_the_backend_they_name(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=3)
    zones = [
        {"id": "door", "kind": "detect", "polygon": [[0, 0], [1, 0], [1, 1]]},
        {"id": "desk", "kind": "privacy", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]},
    ]
    settings = load_settings(overrides={"camera": {"backend": "video", "source": str(path)}, "zones": zones})
    source, got = open_source(settings, SimulatedClock()), Recorder()
    info = source.open(0)
    while source.step(got):
        pass
    assert "encoded again" in info.description
    assert all(np.all(frame.y == 16) and np.all(frame.u == 128) for frame in got.frames)
    assert all(np.all(np.abs(p.y.astype(int) - 16) <= 1) for p in decode_packets(got.packets))
    fake = load_settings(overrides={"camera": {"scene": "empty", "width": 128, "height": 96}})
    camera = open_camera(fake, SystemClock())
    recorder = Recorder()
    assert "scene empty" in camera.start(recorder).description
    assert recorder.wait_frames(2)
    camera.stop()


def test_an_unknown_scene_is_refused_before_anything_is_opened() -> None:
    settings = load_settings(overrides={"camera": {"scene": "offcie"}})
    with pytest.raises(ConfigError, match=r"camera\.scene = 'offcie'"):
        open_camera(settings, SystemClock())


# --- real recordings ------------------------------------------------------------------------------------------

FOOTAGE = Path(os.environ.get("CAMERA_AGENT_FOOTAGE", Path(__file__).parent.parent.parent / "shared" / "footage"))


@pytest.mark.footage
@pytest.mark.skipif(not (FOOTAGE / "manifest.json").is_file(), reason=f"no recordings in {FOOTAGE}")
def test_every_frame_of_real_recordings_is_delivered_once_twice_alike() -> None:
    clips = {clip["name"]: clip for clip in json.loads((FOOTAGE / "manifest.json").read_text())["clips"]}
    for name in ("real_road", "real_cars_ae"):
        _, got = play(FOOTAGE / clips[name]["file"])
        _, again = play(FOOTAGE / clips[name]["file"], want_packets=False)
        assert len(got.frames) == len(got.packets) == clips[name]["frames"]
        assert [frame.t_ns for frame in got.frames] == sorted(packet.pts_ns for packet in got.packets)
        pairs = zip(got.frames, again.frames, strict=True)
        assert all(a.t_ns == b.t_ns and np.array_equal(a.y, b.y) for a, b in pairs)
