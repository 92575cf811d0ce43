"""Scenario stories on simulated time: a whole node on the fake camera, judged by its ledger, clips and states."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from stepped import SteppedNode

from agent.cameras.fake import FakeSource
from agent.cameras.scene import Fault, Scene, Walker
from agent.cameras.scenes import BUILT_IN
from agent.cameras.strip import read_frame_number
from agent.ledger_reader import LedgerReader
from agent.model import NS_PER_S, Box
from agent.settings import Settings, load_settings

pytest_plugins = ["closing"]

FPS = 10
FRAME_NS = NS_PER_S // FPS
PRE_S, POST_S, GOP_S = 2.0, 1.5, 1.0
PORT_NOBODY_HAS = 1


def settings(directory: Path, **more: dict[str, Any]) -> Settings:
    tree: dict[str, Any] = {
        "camera": {"backend": "fake", "width": 320, "height": 240, "fps": FPS, "silence_s": 3},
        "detection": {"quiet_s": 1.5},
        "clips": {
            "directory": str(directory),
            "pre_roll_s": PRE_S,
            "post_roll_s": POST_S,
            "gop_s": GOP_S,
            "min_free_mb": 0,
        },
        "mqtt": {"host": "127.0.0.1", "port": PORT_NOBODY_HAS},
    }
    for section, values in more.items():
        tree[section] = {**tree.get(section, {}), **values}
    return load_settings(environ={}, overrides=tree)


def source(scene: Scene, given: Settings) -> FakeSource:
    camera = given.camera
    return FakeSource(scene, width=camera.width, height=camera.height, fps=camera.fps, gop_s=given.clips.gop_s)


def frame_numbers(path: Path) -> list[int | None]:
    with av.open(str(path), "r") as container:
        return [
            read_frame_number(np.asarray(frame.to_ndarray(format="gray"), np.uint8))
            for frame in container.decode(container.streams.video[0])
        ]


def overlap(first: Box, second: Box) -> float:
    """Share of first that lies in second."""
    w = min(first.x + first.w, second.x + second.w) - max(first.x, second.x)
    h = min(first.y + first.h, second.y + second.h) - max(first.y, second.y)
    return max(w, 0) * max(h, 0) / (first.w * first.h)


PASSERS_BY = replace(
    BUILT_IN["empty"],
    name="passers-by",
    walkers=(
        Walker(at_s=6, speed=0.35, height=0.55),
        Walker(at_s=18, speed=0.35, height=0.5, look=1),
    ),
)


def test_two_people_make_two_events_each_with_its_clip_and_picture(tmp_path: Path) -> None:
    given = settings(tmp_path)
    camera = source(PASSERS_BY, given)
    stepped = SteppedNode(given, camera)
    t0_ns = stepped.clock.boot_ns()
    stepped.run(32)
    stepped.stop()

    reader = LedgerReader(tmp_path)
    events = reader.events()
    clips = {clip.id: clip for clip in reader.clips()}
    assert len(events) == len(clips) == 2
    for row, walker in zip(sorted(events, key=lambda e: e.start_t_ns), PASSERS_BY.walkers, strict=True):
        body = row.body
        seen = [
            n
            for n in range(round(walker.at_s * FPS), round((walker.at_s + walker.for_s) * FPS))
            if camera.truth(n).boxes
        ]
        start_frame = round((row.start_t_ns - t0_ns) / FRAME_NS)
        assert seen[0] <= start_frame <= seen[0] + 10, "the event starts when somebody comes into view"
        assert body.end_reason == "quiet"

        clip = clips[body.clip.id]  # type: ignore[union-attr]
        numbers = frame_numbers(tmp_path / "clips" / clip.file)
        first, last = numbers[0], numbers[-1]
        assert first is not None
        assert last is not None
        assert numbers == list(range(first, last + 1)), "no frame is missing, none is twice"
        wanted_first = start_frame - round(PRE_S * FPS)
        assert wanted_first - round(GOP_S * FPS) < first <= wanted_first, "the keyframe at or before the pre-roll"
        end_frame = round((row.last_t_ns - t0_ns) / FRAME_NS)
        assert end_frame + POST_S * FPS <= last + 1 <= end_frame + POST_S * FPS + 2, "ends after the post-roll"
        assert clip.start_t_ns == pytest.approx(t0_ns + first * FRAME_NS, abs=1000), "clip and event share one clock"
        data = (tmp_path / "clips" / clip.file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (clip.bytes, clip.sha256)

        thumb = reader.thumb_of(row.id)
        assert thumb is not None
        assert thumb.blob is not None
        assert body.thumb is not None
        assert hashlib.sha256(thumb.blob).hexdigest() == body.thumb.sha256
        with av.open(io.BytesIO(thumb.blob), "r", format="mjpeg") as picture:
            assert next(picture.decode(video=0)).width == body.thumb.width
        peak_frame = round((thumb.t_ns - t0_ns) / FRAME_NS)
        truth = camera.truth(peak_frame).boxes
        assert truth, "somebody is in the picture that was chosen"
        assert max(overlap(Box(*body.boxes[0]), box) for box in truth) > 0.5, "the box is around the person"
    reader.close()


def test_a_person_who_comes_back_during_the_post_roll_joins_the_clip(tmp_path: Path) -> None:
    scene = replace(
        PASSERS_BY, walkers=(Walker(at_s=6, speed=0.6, height=0.55), Walker(at_s=10.2, speed=0.6, height=0.55))
    )
    given = settings(tmp_path, clips={"post_roll_s": 5.0})
    stepped = SteppedNode(given, source(scene, given))
    stepped.run(25)
    stepped.stop()
    reader = LedgerReader(tmp_path)
    assert len(reader.events()) == 2
    (clip,) = reader.clips()
    detailed = reader.clip(clip.id)
    assert detailed is not None
    assert sorted(detailed.event_ids) == sorted(event.id for event in reader.events())
    reader.close()


def test_a_camera_that_dies_ends_the_event_says_so_and_comes_back(tmp_path: Path) -> None:
    scene = replace(PASSERS_BY, faults=(Fault(kind="die", at_s=7.5),))
    given = settings(tmp_path)
    stepped = SteppedNode(given, source(scene, given))
    stepped.run(30)
    stepped.stop()
    reader = LedgerReader(tmp_path)
    told = [(event.body.kind, event.body.end_reason) for event in sorted(reader.events(), key=lambda e: e.start_t_ns)]
    assert ("motion", "camera_lost") in told
    assert [kind for kind, _ in told if kind.startswith("camera")] == ["camera-lost", "camera-back"]
    assert stepped.node.keeper.state.starts == 2
    reader.close()


def test_a_silent_camera_is_noticed_and_restarted(tmp_path: Path) -> None:
    scene = replace(PASSERS_BY, walkers=(), faults=(Fault(kind="silent", at_s=5),))
    given = settings(tmp_path)
    stepped = SteppedNode(given, source(scene, given))
    stepped.run(7)
    assert stepped.node.keeper.state.running
    stepped.run(1)
    assert stepped.node.health.summary.startswith("camera: no frame for 3 s")
    stepped.run(10)
    assert stepped.node.keeper.state.running
    assert "camera" not in stepped.node.health.summary
    stepped.stop()


def test_an_absent_camera_is_no_reason_to_stop(tmp_path: Path) -> None:
    scene = replace(PASSERS_BY, walkers=(), faults=(Fault(kind="absent", times=2),))
    given = settings(tmp_path)
    stepped = SteppedNode(given, source(scene, given))
    stepped.run(2)
    assert stepped.node.health.summary.startswith("camera:")
    stepped.run(10)
    assert stepped.node.keeper.state.running
    stepped.stop()


def test_every_message_owed_is_numbered_without_holes(tmp_path: Path) -> None:
    given = settings(tmp_path)
    stepped = SteppedNode(given, source(replace(PASSERS_BY, period_s=24), given))
    stepped.run(80)
    stepped.stop()
    reader = LedgerReader(tmp_path)
    seqs = [row.seq for row in reader.due(0, 1000)]
    assert seqs == list(range(1, reader.head_seq + 1))
    assert len(seqs) > 12
    reader.close()


def test_two_runs_of_the_same_scene_are_told_alike(tmp_path: Path) -> None:
    told = []
    for name in ("first", "second"):
        given = settings(tmp_path / name)
        stepped = SteppedNode(given, source(PASSERS_BY, given))
        stepped.run(20)
        stepped.stop()
        reader = LedgerReader(tmp_path / name)
        told.append([(e.start_t_ns, e.last_t_ns, e.body.score, e.body.boxes) for e in reader.events()])
        told[-1].append([(c.start_t_ns, c.frames, c.bytes) for c in reader.clips()])  # type: ignore[arg-type]
        reader.close()
    assert told[0] == told[1]
