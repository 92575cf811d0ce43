"""The detectors beside each other: hits, false events, quiet-on, latency, CPU and memory over recordings with truth.

Run by scripts/bench --detectors. The manifest has the format of ../shared/footage/manifest.json; --fake makes one of
the fake camera's scenes. In one run every detector sees every frame, in turns, so that none always finds it in the
cache. Whole programs (replay, Debian's motion, DVR-Scan) run over the same files afterwards: bench_programs.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import bench_programs
import cv2
import numpy as np
from bench_rivals import REFERENCE, RIVALS, SIZE, Look, Subtractor
from tqdm import tqdm

from agent.cameras.fake import FakeSource
from agent.cameras.scenes import BUILT_IN
from agent.cameras.video import VideoOptions, VideoSource
from agent.clock import SystemClock
from agent.errors import CameraError
from agent.model import NS_PER_S, Frame, Packet
from agent.motion import Detector

ROOT = Path(__file__).resolve().parent.parent
FOOTAGE = Path(os.environ.get("CAMERA_AGENT_FOOTAGE", ROOT.parent / "shared/footage"))
SAME_EDGE_S = 2.0


# --- the detectors ---------------------------------------------------------------------------------------------


def ours(frame: Frame) -> Look:
    detector = Detector(frame.y.shape[1], frame.y.shape[0])
    return lambda frame: detector.step(frame).active


DETECTORS: dict[str, Callable[[Frame], Look]] = {"camera-agent": ours, **RIVALS}


# --- the score -------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """Sums over recordings. latencies in frames, only where the truth is exact enough (manifest: latency).

    cpu_s: of the detector alone; apply_s: of a background model without its blobs; program_us: of a whole program,
    decoding included, per frame.
    """

    events: int = 0
    hits: int = 0
    false: int = 0
    quiet: int = 0
    on: int = 0
    frames: int = 0
    cpu_s: float = 0.0
    apply_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    rss_mb: float = math.nan
    program_us: float = math.nan

    def add(self, active: Sequence[bool], clip: dict[str, Any]) -> None:
        self.frames += len(active)
        for first, last in clip["events"]:
            seen = [i for i in range(first, min(last + 1, len(active))) if active[i]]
            self.events += 1
            self.hits += bool(seen)
            if clip.get("latency"):
                self.latencies.append(seen[0] - first if seen else math.inf)
        quiet = {i for first, last in clip["quiet"] for i in range(first, min(last + 1, len(active)))}
        self.quiet += len(quiet)
        self.on += sum(active[i] for i in quiet)
        before = -math.inf
        for i in range(1, len(active)):
            if active[i] and not active[i - 1] and i in quiet:
                self.false += (i - before) / clip["fps"] >= SAME_EDGE_S
                before = i

    @property
    def quiet_on(self) -> float:
        return 100 * self.on / self.quiet if self.quiet else math.nan

    def latency(self, share: float) -> float:
        ranked = sorted(self.latencies)
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else math.nan


class _Waiting:
    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def on_packet(self, packet: Packet) -> None:
        pass

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(frame)


def frames_of(path: Path) -> Iterator[Frame]:
    source, waiting = VideoSource(VideoOptions(str(path), want_packets=False), SystemClock()), _Waiting()
    source.open(NS_PER_S)
    more = True
    while more:
        more = source.step(waiting)
        yield from waiting.frames
        waiting.frames.clear()


@dataclass(frozen=True)
class Turns:
    """Each detector's word for each frame, and the CPU seconds it took. apply_s: of background models alone."""

    active: dict[str, list[bool]]
    cpu_s: dict[str, float]
    apply_s: dict[str, float]


def run_in_turns(path: Path, names: Sequence[str], progress: Callable[[], object] = lambda: None) -> Turns:
    looks: dict[str, Look] = {}
    active: dict[str, list[bool]] = {name: [] for name in names}
    cpu_s = dict.fromkeys(names, 0.0)
    for number, frame in enumerate(frames_of(path)):
        if not looks:
            looks = {name: DETECTORS[name](frame) for name in names}
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            begin = time.thread_time()
            word = looks[name](frame)
            cpu_s[name] += time.thread_time() - begin
            active[name].append(word)
        progress()
    return Turns(active, cpu_s, {name: look.apply_s for name, look in looks.items() if isinstance(look, Subtractor)})


# --- a manifest from the fake camera ---------------------------------------------------------------------------

FAKE_S = 60.0
WITHOUT_TRUTH = ("empty", "counter", "tamper")
"""Scenes in which nobody comes, or in which it is no question of motion whether somebody is there."""


def fake_manifest(directory: Path, scenes: Sequence[str]) -> Path:
    """Recordings of the fake camera with exact truth: when somebody of 8 % or more moves, and when nobody is seen."""
    clips = []
    for name in tqdm(scenes, desc="recording", disable=not sys.stderr.isatty(), leave=False):
        source, waiting = FakeSource(BUILT_IN[name], width=640, height=480, fps=10, want_packets=False), _Waiting()
        source.open(NS_PER_S)
        path, moving = directory / f"fake_{name}.mp4", []
        empty: list[bool] = []
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
            stream.options = {"crf": "18", "preset": "veryfast"}
            for number in range(round(min(FAKE_S, BUILT_IN[name].period_s) * 10)):
                source.step(waiting)
                frame = waiting.frames.pop()
                truth = source.truth(number)
                moving.append(any(box.h > 0.08 for box in truth.moving_boxes))
                empty.append(not truth.boxes)
                planes = np.concatenate([plane.ravel() for plane in (frame.y, frame.u, frame.v)])
                picture = av.VideoFrame.from_ndarray(planes.reshape(720, 640), format="yuv420p")
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        clips.append(
            {
                "name": f"fake {name}",
                "file": path.name,
                "fps": 10,
                "frames": len(moving),
                "latency": True,
                "events": joined(runs(moving, True)),
                "quiet": [[max(a + 12, 50), b - 3] for a, b in runs(empty, True) if b - a > 20 and b > 55],
            }
        )
    manifest = directory / "manifest.json"
    manifest.write_text(json.dumps({"clips": clips}))
    return manifest


def joined(stretches: Sequence[list[int]]) -> list[list[int]]:
    """Stretches less than a second apart made one: at the picture's edge a leg more or less is no event."""
    made: list[list[int]] = []
    for first, last in stretches:
        if made and first - made[-1][1] <= 10:
            made[-1][1] = last
        else:
            made.append([first, last])
    return made


def runs(values: Sequence[bool], wanted: bool) -> list[list[int]]:
    """First and last index of each stretch of wanted."""
    found: list[list[int]] = []
    for i, value in enumerate(values):
        if value is not wanted:
            continue
        if found and found[-1][1] == i - 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    return found


# --- what is shown ---------------------------------------------------------------------------------------------


def show(scores: dict[str, Score]) -> None:
    """The table. CPU beside the reference's: with its blobs, and of resizing and the model alone."""
    reference = scores[REFERENCE]
    print(
        f"\n{'detector':26} {'hits':>7} {'false':>5} {'quiet-on':>8} {'latency p50 / p95':>17} "
        f"{'us/frame':>8} {'of MOG2':>7} {'its apply':>9} {'MB':>5}"
    )
    for name, score in scores.items():
        cpu_s = score.cpu_s or math.nan
        latency = " / ".join(_frames(score.latency(share)) for share in (0.5, 0.95)) if score.latencies else "-"
        print(
            f"{name:26} {f'{score.hits}/{score.events}':>7} {score.false:>5} {score.quiet_on:>7.2f}% {latency:>17} "
            f"{_figure(1e6 * cpu_s / score.frames, '.0f'):>8} {_figure(cpu_s / reference.cpu_s, '.3f'):>7} "
            f"{_figure(cpu_s / reference.apply_s, '.3f'):>9} {_figure(score.rss_mb, '.0f'):>5}",
            flush=True,
        )


def _frames(latency: float) -> str:
    return "missed" if math.isinf(latency) else f"{latency:g}"


def _figure(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def plot(path: Path, scores: dict[str, Score]) -> None:
    """Bars: the shorter the better."""
    # By name: it is no dependency, so that its types are not there to be checked.
    importlib.import_module("matplotlib").use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    panels: list[tuple[str, str, Callable[[Score], float]]] = [
        ("missed events", "g", lambda score: score.events - score.hits),
        ("false events", "g", lambda score: score.false),
        ("quiet frames active, %", ".1f", lambda score: score.quiet_on),
        ("latency p95, frames", "g", lambda score: score.latency(0.95)),
        (
            "detector, us per frame",
            ".0f",
            lambda score: 1e6 * score.cpu_s / score.frames if score.cpu_s else math.nan,
        ),
    ]
    if any(score.program_us == score.program_us for score in scores.values()):
        panels.append(("program, us per frame", ".0f", lambda score: score.program_us))
    names = list(scores)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(2.6 + 2.1 * len(panels), 0.9 + 0.42 * len(names)), sharey=True, layout="constrained"
    )
    for axis, (title, form, value) in zip(axes, panels, strict=True):
        values = [value(score) for score in scores.values()]
        longest = max((v for v in values if math.isfinite(v)), default=0.0) or 1.0
        lengths = [min(v, 1.1 * longest) if v == v else 0.0 for v in values]  # never found: a little longer than all
        colours = ["#d9541e" if name == "camera-agent" else "#8c99a4" for name in names]
        axis.barh(names, lengths, color=colours, height=0.62)
        for row, (v, length) in enumerate(zip(values, lengths, strict=True)):
            words = "missed" if math.isinf(v) else _figure(v, form)
            axis.annotate(words, (length, row), xytext=(4, 0), textcoords="offset points", va="center")
        axis.set_xlim(0, 1.4 * longest)
        axis.set_title(title, loc="left", fontsize=11)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_xticks([])
        axis.tick_params(left=False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench --detectors",
        description=__doc__,
        epilog="Exit code: 0, also without recordings; 1 if one cannot be read; 2 if it is called wrongly.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("clips", nargs="*", metavar="CLIP", help="only clips whose name contains this")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="default: ../shared/footage/manifest.json")
    parser.add_argument("--fake", action="store_true", help="record the fake camera's scenes and use those")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        default=Path("build/detectors.png"),
        help="where the plot goes, any format of matplotlib (default build/detectors.png)",
    )
    parser.add_argument(
        "--programs", action="store_true", help="also whole programs; motion takes the recordings' time"
    )
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="with --programs: runs of replay (default 5)"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.memory_of:
        run_in_turns(args.manifest, [args.memory_of])
        return 0
    if args.runs < 1:
        parser.error(f"--runs {args.runs}: at least 1")
    if args.fake and args.manifest:
        parser.error("--fake makes its own manifest: give one of the two")
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        manifest = args.manifest or FOOTAGE / "manifest.json"
        if args.fake:
            scenes = [name for name in BUILT_IN if name not in WITHOUT_TRUTH]
            wanted = [name for name in scenes if _is_wanted(f"fake {name}", args.clips)]
            manifest = fake_manifest(Path(directory), wanted)
        elif not args.manifest and not manifest.exists():
            print(f"skipped: {manifest} is not here; give --manifest FILE, or --fake for the fake camera's")
            return 0
        try:
            clips = [clip for clip in clips_of(manifest) if _is_wanted(clip["name"], args.clips)]
            if not clips:
                raise ValueError(f"no clip with {' or '.join(args.clips) or 'a name'} in it")
        except (OSError, ValueError) as error:
            parser.error(f"{manifest}: {getattr(error, 'strerror', None) or error}")
        try:
            compare(manifest.parent, clips, args)
        except CameraError as error:
            print(f"scripts/bench: {error}", file=sys.stderr)
            return 1
    return 0


def clips_of(manifest: Path) -> list[dict[str, Any]]:
    """Raises OSError, ValueError."""
    whole = json.loads(manifest.read_text(encoding="utf-8"))
    clips = whole.get("clips") if isinstance(whole, dict) else None
    if not isinstance(clips, list) or not all(isinstance(clip, dict) for clip in clips):
        raise ValueError("it has no list of clips")
    for clip in clips:
        if lacking := {"name", "file", "fps", "frames", "events", "quiet"} - clip.keys():
            raise ValueError(f"clip {clip.get('name', clip)} lacks {', '.join(sorted(lacking))}")
    return clips


def _is_wanted(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in name for part in parts)


def compare(folder: Path, clips: list[dict[str, Any]], args: argparse.Namespace) -> None:
    scores = {name: Score() for name in DETECTORS}
    wholes: dict[str, bench_programs.Whole] = {}
    quiet = not sys.stderr.isatty()
    with tqdm(total=sum(clip["frames"] for clip in clips), unit=" frames", disable=quiet, leave=False) as bar:
        for clip in clips:
            bar.set_description(clip["name"])
            ran = run_in_turns(folder / clip["file"], list(DETECTORS), bar.update)
            for name, score in scores.items():
                score.add(ran.active[name], clip)
                score.cpu_s += ran.cpu_s[name]
                score.apply_s += ran.apply_s.get(name, 0.0)
    first = folder / clips[0]["file"]
    for name, score in tqdm(scores.items(), desc="memory", disable=quiet, leave=False):
        command = [sys.executable, __file__, "--memory-of", name, "--manifest", str(first)]
        score.rss_mb = bench_programs.spend(command).rss_mb
    if args.programs:

        def follow(clips: Sequence[dict[str, Any]]) -> tqdm[dict[str, Any]]:
            return tqdm(clips, desc="programs", disable=quiet, leave=False)

        wholes = bench_programs.run_programs(folder, clips, follow, luma_of, args.runs, tqdm.write)
    for name, whole in wholes.items():
        if len(whole.active) == len(clips):
            scores[name] = Score(rss_mb=whole.rss_mb)
            for clip in clips:
                # DVR-Scan's list says events after its own merging, so that its latency cannot be told.
                can_tell = clip.get("latency") and name != bench_programs.DVR_SCAN
                scores[name].add(whole.active[clip["name"]], {**clip, "latency": can_tell})
    frames = sum(clip["frames"] for clip in clips)
    for name, whole in wholes.items():
        row = "camera-agent" if name == bench_programs.REPLAY else name
        if row in scores:
            scores[row].program_us = 1e6 * sum(whole.cpu_s.values()) / frames
    show(scores)
    if wholes:
        bench_programs.show_programs(wholes, clips)
    try:
        plot(args.plot, scores)
    except ImportError:
        print("no plot: matplotlib is not installed here")


def luma_of(path: Path) -> tuple[tuple[int, int], bench_programs.Luma]:
    """Width and height of a recording's analysis picture, and few pixels of each."""
    size, lumas = SIZE, []
    for frame in frames_of(path):
        size = (frame.y.shape[1], frame.y.shape[0])
        lumas.append(bench_programs.few_of(frame.y))
    return size, np.stack(lumas)


if __name__ == "__main__":
    sys.exit(main())
