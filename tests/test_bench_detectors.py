"""The bench that compares detectors counts as the manifest says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_detectors import DETECTORS, Score, main, run_in_turns, runs
from bench_programs import frames_saved
from bench_rivals import REFERENCE

CLIP = {"fps": 10, "events": [[10, 19], [40, 49]], "quiet": [[20, 39], [60, 99]], "latency": True}


def active(*spans: tuple[int, int]) -> list[bool]:
    return [any(first <= i <= last for first, last in spans) for i in range(100)]


def test_hits_latency_false_edges_and_quiet_on_are_counted() -> None:
    score = Score()
    score.add(active((12, 21), (70, 71), (80, 80), (97, 99)), CLIP)
    assert (score.events, score.hits) == (2, 1)
    assert score.latencies == [2, math.inf]
    assert score.false == 1  # edges closer than 2 s count once, from the one before
    assert score.quiet_on == pytest.approx(100 * (2 + 2 + 1 + 3) / 60)


def test_stretches_are_first_and_last_index() -> None:
    assert runs([True, True, False, True], True) == [[0, 1], [3, 3]]
    assert runs([], True) == []


def test_without_recordings_it_says_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bench"])
    monkeypatch.setattr("bench_detectors.FOOTAGE", tmp_path)
    assert main() == 0
    assert "--fake" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words", "named"),
    [
        (None, [], "manifest.json"),
        ("{", [], "manifest.json"),
        ("[]", [], "no list of clips"),
        ('{"clips": [{"name": "gió"}]}', [], "clip gió lacks events, file, fps"),
        ('{"clips": []}', ["room"], "no clip with room"),
        ('{"clips": []}', ["--runs", "0"], "--runs 0"),
        ('{"clips": []}', ["--fake"], "one of the two"),
    ],
)
def test_what_it_cannot_use_is_named_in_one_line(
    text: str | None,
    words: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = tmp_path / "manifest.json"
    if text is not None:
        manifest.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", "--manifest", str(manifest), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_which_frames_a_program_saved_is_told_by_the_pictures_themselves() -> None:
    noise = np.random.default_rng(2)
    frames = noise.integers(16, 235, (60, 24, 32)).astype(np.int16)

    def saved(
        *numbers: int, late_s: float = 0.0
    ) -> list[tuple[float, np.ndarray[tuple[int, ...], np.dtype[np.int16]]]]:
        jpeg = noise.integers(-1, 2, (len(numbers), 24, 32)).astype(np.int16)
        return [
            (number / 10 + late_s, frames[number % 60] + error) for number, error in zip(numbers, jpeg, strict=True)
        ]

    wanted = [i in (3, 4, 40, 59) for i in range(60)]
    assert frames_saved(saved(3, 4, 40, 59, late_s=1000.7), frames, 10) == wanted
    assert frames_saved(saved(3, 4, 40, 59, 60, 61), frames, 10) == wanted  # the file began again
    torn = (0.5, frames[5] + np.int16(40))
    with pytest.raises(ValueError, match="1 of its 2 pictures are none of the frames"):
        frames_saved([(0.3, frames[3]), torn], frames, 10)
    # Between two looks that follow each other it said nothing else, though it looked at every third frame only.
    thirds = [(i / 20, frames[i]) for i in range(20, 41, 3)]
    assert frames_saved(thirds, frames, 20) == [20 <= i <= 38 for i in range(60)]
    assert frames_saved([(0.5, frames[10]), (1.0, frames[20])], frames, 20) == [i in (10, 20) for i in range(60)]
    many = saved(*range(6, 57))
    assert frames_saved([*saved(3), torn, *many], frames, 10) == [i == 3 or 6 <= i < 57 for i in range(60)]


def test_every_detector_sees_every_frame_and_finds_who_crosses(tmp_path: Path) -> None:
    import av

    path = tmp_path / "crossing.mp4"
    noise = np.random.default_rng(1)
    wall = np.kron(noise.integers(90, 190, (24, 32)), np.ones((10, 10)))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(180):
            picture = np.full((360, 320), 128, np.uint8)
            picture[:240] = wall + noise.integers(-4, 4, (240, 320))
            if 150 <= i < 173:
                left = -40 + 16 * (i - 149)
                picture[60:240, max(left, 0) : max(left + 40, 0)] = 30
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))
    ran = run_in_turns(path, list(DETECTORS))
    for name in DETECTORS:
        assert len(ran.active[name]) == 180
        assert any(ran.active[name][152:173]), name
        assert not any(ran.active[name][140:150]), name
        assert ran.cpu_s[name] > 0
    assert not any(ran.active["camera-agent"][:150])
    assert 0 < ran.apply_s[REFERENCE] < ran.cpu_s[REFERENCE]
