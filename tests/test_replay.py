"""`camera-agent replay`: what it prints, and that it prints the same twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from agent.cli import main

FOOTAGE = Path(os.environ.get("CAMERA_AGENT_FOOTAGE", Path(__file__).resolve().parents[2] / "shared/footage"))
FPS = 10


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s; somebody crosses from frame 40 to frame 62."""
    path = tmp_path_factory.mktemp("replay") / "crossing.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"g": "10", "bf": "2"}
        for i in range(12 * FPS):
            picture = np.full((360, 320), 128, np.uint8)
            picture[:240] = 140
            if 40 <= i < 63:
                left = -40 + 16 * (i - 39)
                picture[60:240, max(left, 0) : max(left + 40, 0)] = 50
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def replay(capsys: pytest.CaptureFixture[str], *args: object) -> list[dict[str, Any]]:
    assert main(["replay", "--json", *(str(arg) for arg in args)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_prints_each_event_and_last_a_summary(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    event, summary = replay(capsys, recording)
    assert set(event) == {
        "type", "start_frame", "end_frame", "start_s", "end_s", "peak_frame", "score", "zones", "kind",
    }  # fmt: skip
    assert (event["type"], event["kind"], event["zones"]) == ("event", "motion", [])
    assert 39 <= event["start_frame"] <= 41
    # While something is active the detector looks four times a second: the end may be told so much late.
    assert 60 <= event["end_frame"] <= 63 + 3
    assert event["start_s"] == pytest.approx(event["start_frame"] / FPS, abs=0.001)
    assert event["end_s"] == pytest.approx(event["end_frame"] / FPS, abs=0.001)
    assert event["start_frame"] <= event["peak_frame"] <= event["end_frame"]
    assert 0.5 <= event["score"] <= 1
    assert set(summary) == {
        "type", "frames", "fps", "width", "height", "events", "cpu_s", "wall_s", "max_rss_mb",
    }  # fmt: skip
    assert (summary["frames"], summary["fps"], summary["events"]) == (120, 10, 1)
    assert (summary["width"], summary["height"]) == (320, 240)


def test_frames_adds_a_line_for_each_analysed_frame(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in replay(capsys, "--frames", recording) if line["type"] == "frame"]
    assert [line["frame"] for line in lines] == list(range(120))
    assert all(set(line) == {"type", "frame", "score", "active", "boxes"} for line in lines)
    assert {line["frame"] for line in lines if line["active"]} <= set(range(40, 64 + 3))
    assert all(line["boxes"] for line in lines if line["active"])


def test_two_runs_print_the_same(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (replay(capsys, "--frames", recording) for _ in range(2))
    assert first[:-1] == second[:-1]


def test_clips_and_thumbnails_come_to_the_directory_asked_for(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    event, _ = replay(capsys, recording, "--clips", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("event-0001-frame-*.jpg"))) == 1
    (clip,) = (tmp_path / "out/clips").glob("*.mp4")
    with av.open(str(clip)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    # It begins at the keyframe before the pre-roll of 5 s: the whole recording up to the post-roll of 5 s.
    assert frames >= event["end_frame"] + 5 * FPS - 1


def test_annotate_writes_a_video_of_what_was_seen_at_the_recordings_own_times(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seen.mp4"
    replay(capsys, recording, "--annotate", out)
    with av.open(str(out)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 120
    assert frames[50].time == pytest.approx(5.0, abs=0.01)
    calm, moving = (
        frame.to_ndarray(format="bgr24")[34:500, 12:640].astype(int) for frame in (frames[30], frames[50])
    )

    def orange(picture: Any) -> int:
        blue, green, red = (picture[:, :, channel] for channel in range(3))
        return int(((red > 180) & (blue < 130) & (green > 100) & (green < 200)).sum())

    assert orange(calm) == 0
    assert orange(moving) > 300  # the box around who crosses


@pytest.mark.parametrize("name", ["seen.avi", "absent/seen.mp4"])
def test_where_the_video_cannot_be_written_it_says_so(
    name: str, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(recording), "--annotate", str(tmp_path / name)]) in (1, 78)
    assert name in capsys.readouterr().err


def test_the_recording_itself_is_never_written_over(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link.mp4"
    link.symlink_to(recording)
    before = recording.read_bytes()
    assert main(["replay", str(recording), "--annotate", str(link)]) == 78
    assert "the recording itself" in capsys.readouterr().err
    assert recording.read_bytes() == before


def test_a_strip_of_before_peak_and_after_is_written_beside_each_clip(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay(capsys, recording, "--clips", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("event-0001-strip.jpg"))) == 1


def test_a_replay_loads_nothing_that_only_a_node_needs() -> None:
    code = "import sys, agent.cli.replay; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "agent.vision" in loaded
    assert not {"pydantic_settings", "asyncio", "sqlite3", "paho", "cv2", "agent.node"} & set(loaded)


def test_sensitivity_can_be_tried_out(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(capsys, recording, "--sensitivity", 0)[-1]["events"] <= 1
    assert main(["replay", str(recording), "--sensitivity", "101"]) == 78
    assert "sensitivity" in capsys.readouterr().err


def test_for_people_it_prints_a_table_and_a_line_of_sums(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recording)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "1 events in 120 frames" in lines[-1]


@pytest.mark.parametrize("name", ["absent.mp4", "empty.mp4", "words.mp4"])
def test_a_missing_or_broken_recording_gets_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.mp4").write_text("not a video")
    assert main(["replay", str(tmp_path / name)]) == 1
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert name in captured.err
    assert captured.out == ""


def test_streams_and_devices_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "rtsp://user:secret@127.0.0.1/x"]) == 78
    error = capsys.readouterr().err
    assert "not a recording" in error
    assert "secret" not in error


@pytest.mark.footage
@pytest.mark.skipif(not (FOOTAGE / "manifest.json").exists(), reason="the shared recordings are not here")
@pytest.mark.parametrize("name", ["real_room", "real_road", "real_cars_ae"])
def test_every_event_of_the_real_recordings_is_found_and_none_in_quiet_time(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = json.loads((FOOTAGE / "manifest.json").read_text())["clips"]
    clip = next(clip for clip in clips if clip["name"] == name)
    lines = replay(capsys, "--frames", FOOTAGE / clip["file"])
    active = {line["frame"] for line in lines if line["type"] == "frame" and line["active"]}
    events = [(line["start_frame"], line["end_frame"]) for line in lines if line["type"] == "event"]
    for first, last in clip["events"]:
        assert active & set(range(first, last + 1)), f"nothing active in {first}..{last}"
        assert [event for event in events if event[0] <= last and first <= event[1]]
    for first, last in clip["quiet"]:
        assert not active & set(range(first, last + 1)), f"active in the quiet {first}..{last}"
        assert not [event for event in events if first <= event[0] and event[1] <= last]
