"""The detectors beside each other: hits, false events, quiet-on, latency, CPU and memory over recordings with truth.

Run by scripts/bench --detectors. The manifest has the format of ../shared/footage/manifest.json; --fake makes one of
the fake camera's scenes. In one run every detector sees every frame, in turns, so that none always finds it in the
cache. Whole programs (replay, Debian's motion, DVR-Scan) run over the same files afterwards.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from agent.cameras.fake import FakeSource
from agent.cameras.scenes import BUILT_IN
from agent.cameras.video import VideoOptions, VideoSource
from agent.clock import SystemClock
from agent.model import NS_PER_S, Frame, Packet
from agent.motion import Detector

ROOT = Path(__file__).resolve().parent.parent
FOOTAGE = Path(os.environ.get("CAMERA_AGENT_FOOTAGE", ROOT.parent / "shared/footage"))
SAME_EDGE_S = 2.0
SIZE = (320, 240)
Look = Callable[[Frame], bool]


# --- the detectors ---------------------------------------------------------------------------------------------


def ours(frame: Frame) -> Look:
    detector = Detector(frame.y.shape[1], frame.y.shape[0])
    return lambda frame: detector.step(frame).active


def subtractor(make: Callable[[], Any], share: float, frames: int) -> Callable[[Frame], Look]:
    """OpenCV's background models at 320x240 as tutorials have them: opened mask without shadows, the largest blob."""

    def made(_: Frame) -> Look:
        model, kernel, running = make(), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)), 0

        def look(frame: Frame) -> bool:
            nonlocal running
            mask = model.apply(cv2.resize(frame.y, SIZE, interpolation=cv2.INTER_LINEAR))
            _, mask = cv2.threshold(mask, 200, 255, cv2.THRESH_BINARY)
            mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel)
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
            largest = int(stats[1:, cv2.CC_STAT_AREA].max()) if len(stats) > 1 else 0
            running = running + 1 if largest >= share * SIZE[0] * SIZE[1] else 0
            return running >= frames

        return look

    return made


def running_mean(first: Frame) -> Look:
    """Like Frigate's first detector: 100 rows, a running mean, what differs now and did lately, contours, no more."""
    height, width = first.y.shape
    size = (round(100 * width / height), 100)
    mean: npt.NDArray[np.float32] = np.zeros((size[1], size[0]), np.float32)
    delta_mean: npt.NDArray[np.float32] = np.zeros_like(mean)
    seen = 0

    def look(frame: Frame) -> bool:
        nonlocal seen
        small: Any = cv2.resize(frame.y, size, interpolation=cv2.INTER_LINEAR)
        small = cv2.GaussianBlur(small, (3, 3), 1)
        seen += 1
        if seen == 1:
            mean[:] = small
        delta = cv2.absdiff(small, cv2.convertScaleAbs(mean))
        cv2.accumulateWeighted(delta, delta_mean, 0.2)
        now = cv2.threshold(delta, 30, 255, cv2.THRESH_BINARY)[1]
        over = cv2.threshold(cv2.convertScaleAbs(delta_mean), 30, 255, cv2.THRESH_BINARY)[1]
        thick = cv2.dilate(cv2.bitwise_and(now, over), np.ones((3, 3), np.uint8))
        contours, _ = cv2.findContours(thick, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.accumulateWeighted(small, mean, 0.2 if seen < 10 else 0.01)
        return seen >= 30 and any(cv2.contourArea(contour) > 10 for contour in contours)

    return look


def mog2() -> Any:
    return cv2.createBackgroundSubtractorMOG2()


def knn() -> Any:
    return cv2.createBackgroundSubtractorKNN()


REFERENCE = "MOG2, blob 0.2 %"
DETECTORS: dict[str, Callable[[Frame], Look]] = {
    "camera-agent": ours,
    REFERENCE: subtractor(mog2, 0.002, 1),
    "MOG2, blob 0.05 % for 3": subtractor(mog2, 0.0005, 3),
    "KNN, blob 0.05 % for 3": subtractor(knn, 0.0005, 3),
    "running mean, contours": running_mean,
}


# --- the score -------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """Sums over recordings. latencies in frames, only where the truth is exact enough (manifest: latency)."""

    events: int = 0
    hits: int = 0
    false: int = 0
    quiet: int = 0
    on: int = 0
    frames: int = 0
    cpu_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    rss_mb: float = math.nan
    whole_s: float = math.nan

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


def run_in_turns(path: Path, names: Sequence[str]) -> tuple[dict[str, list[bool]], dict[str, float]]:
    """Each detector's word for each frame, and the CPU seconds it took."""
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
    return active, cpu_s


# --- whole programs --------------------------------------------------------------------------------------------


WAITING = """
import os, signal, subprocess, sys, time
child = subprocess.Popen(sys.argv[3:], stdout=sys.stderr)
if sys.argv[2]:
    time.sleep(float(sys.argv[2]))
    child.send_signal(signal.SIGTERM)
usage = os.wait4(child.pid, 0)[2]
open(sys.argv[1], "w").write(f"{usage.ru_utime + usage.ru_stime} {usage.ru_maxrss / 1024}")
"""
"""A small parent: a child's peak memory counts from the fork on, so that of this process would be its least."""


def spend(command: Sequence[str], *, end_s: float | None = None) -> tuple[float, float, str]:
    """CPU seconds, peak memory in MB and output of a program; after end_s it is asked to end."""
    with tempfile.TemporaryDirectory() as directory:
        told = Path(directory, "usage")
        end = "" if end_s is None else str(end_s)
        done = subprocess.run(
            [sys.executable, "-S", "-c", WAITING, str(told), end, *command],
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=True,
        )
        cpu_s, rss_mb = (float(word) for word in told.read_text().split())
        return cpu_s, rss_mb, done.stderr.decode(errors="replace")


MOTION_CONF = """daemon off
log_level 6
target_dir {directory}
netcam_url file://{path}
width {width}
height {height}
framerate {fps}
movie_output off
webcontrol_port 0
stream_port 0
"""
EACH_FRAME = """emulate_motion on
picture_output on
picture_quality 3
picture_filename %s-%q-%D
"""
MOTION_OPENS_S = 0.3
"""From its start to its first frame, about; it saves none of the first seconds. So its latency is not told."""
THRESHOLD = 1500
"""motion's default `threshold`: changed pixels."""


def run_motion(path: Path, clip: dict[str, Any], *, each_frame: bool) -> tuple[float, float, list[bool]]:
    """Debian's motion at its defaults on a file, at the file's own pace: CPU seconds, MB, active per frame.

    each_frame: it saves a picture of every frame, whose name tells second, number within it and changed pixels; that
    costs CPU, so it is not done where CPU is measured.
    """
    duration_s = clip["frames"] / clip["fps"]
    with tempfile.TemporaryDirectory() as directory:
        conf = Path(directory, "motion.conf")
        text = MOTION_CONF.format(directory=directory, path=path.resolve(), fps=math.ceil(clip["fps"]), **_size(path))
        conf.write_text(text + (EACH_FRAME if each_frame else "picture_output off\n"))
        began = time.time() + MOTION_OPENS_S
        cpu_s, rss_mb, said = spend(["motion", "-n", "-c", str(conf)], end_s=duration_s + 0.7)
    active = [False] * clip["frames"]
    shots = [tuple(map(int, found)) for found in re.findall(r"/(\d+)-(\d+)-(\d+)\.jpg", said)]
    rate = max(2, math.ceil(clip["fps"]))
    for second, number, pixels in shots:
        index = round((second + number / rate - began) * clip["fps"])
        if 0 <= index < len(active):
            active[index] |= pixels > THRESHOLD
    return cpu_s, rss_mb, active


def _size(path: Path) -> dict[str, int]:
    with av.open(str(path)) as container:
        return {"width": container.streams.video[0].width, "height": container.streams.video[0].height}


def run_dvr_scan(program: str, path: Path, clip: dict[str, Any]) -> tuple[float, float, list[bool]]:
    """DVR-Scan's MOG2 at its defaults, without the time it adds around events."""
    command = [program, "--ignore-user-config", "-i", str(path), "-so", "-l", "2", "-tb", "0", "-tp", "0", "-q"]
    cpu_s, rss_mb, said = spend(command)
    marks = [
        round((3600 * int(h) + 60 * int(m) + float(s)) * clip["fps"])
        for h, m, s in re.findall(r"(\d\d):(\d\d):(\d\d\.\d+)", said.splitlines()[-1] if said else "")
    ]
    active = [False] * clip["frames"]
    for first, last in zip(marks[::2], marks[1::2], strict=False):
        active[first : last + 1] = [True] * len(active[first : last + 1])
    return cpu_s, rss_mb, active


# --- a manifest from the fake camera ---------------------------------------------------------------------------

FAKE_S = 40.0


def fake_manifest(directory: Path, scenes: Sequence[str]) -> Path:
    """Recordings of the fake camera with exact truth: when somebody of 8 % or more moves, and when nobody is seen."""
    clips = []
    for name in scenes:
        source, waiting = FakeSource(BUILT_IN[name], width=640, height=480, fps=10, want_packets=False), _Waiting()
        source.open(NS_PER_S)
        path, moving = directory / f"fake_{name}.mp4", []
        empty: list[bool] = []
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
            stream.options = {"crf": "18", "preset": "veryfast"}
            for number in range(round(FAKE_S * 10)):
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
                "events": runs(moving, True),
                "quiet": [[max(a + 12, 50), b - 3] for a, b in runs(empty, True) if b - a > 20 and b > 55],
            }
        )
    manifest = directory / "manifest.json"
    manifest.write_text(json.dumps({"clips": clips}))
    return manifest


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


def show(scores: dict[str, Score], whole_of: float) -> None:
    reference = scores[REFERENCE].cpu_s if REFERENCE in scores else math.nan
    print(
        f"\n{'detector':26} {'hits':>7} {'false':>5} {'quiet-on':>8} {'latency p50 / p95':>17} "
        f"{'us/frame':>8} {'of MOG2':>7} {'MB':>5} {'program, of replay':>18}"
    )
    for name, score in scores.items():
        us = 1e6 * score.cpu_s / score.frames if score.cpu_s else math.nan
        latency = f"{score.latency(0.5):g} / {score.latency(0.95):g}"
        whole = f"{score.whole_s:.1f} s, {score.whole_s / whole_of:.2f}" if score.whole_s == score.whole_s else "-"
        print(
            f"{name:26} {f'{score.hits}/{score.events}':>7} {score.false:>5} {score.quiet_on:>7.2f}% {latency:>17} "
            f"{_figure(us, '.0f'):>8} {_figure(score.cpu_s / reference if score.cpu_s else math.nan, '.3f'):>7} "
            f"{_figure(score.rss_mb, '.0f'):>5} {whole:>18}",
            flush=True,
        )


def _figure(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def plot(path: Path, scores: dict[str, Score]) -> None:
    """Bars: the shorter the better."""
    # By name: it is no dependency, so that its types are not there to be checked.
    importlib.import_module("matplotlib").use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    panels: tuple[tuple[str, str, Callable[[Score], float]], ...] = (
        ("missed events", "g", lambda score: score.events - score.hits),
        ("false events", "g", lambda score: score.false),
        ("quiet frames active, %", ".1f", lambda score: score.quiet_on),
        ("CPU, us per frame", ".0f", lambda score: 1e6 * score.cpu_s / score.frames if score.cpu_s else math.nan),
    )
    names = list(scores)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(13, 0.9 + 0.42 * len(names)), sharey=True, layout="constrained"
    )
    for axis, (title, form, value) in zip(axes, panels, strict=True):
        values = [value(score) for score in scores.values()]
        colours = ["#d9541e" if name == "camera-agent" else "#8c99a4" for name in names]
        axis.barh(names, [0 if math.isnan(v) else v for v in values], color=colours, height=0.62)
        for row, v in enumerate(values):
            words = "own process" if math.isnan(v) else format(v, form)
            axis.annotate(
                words, (0 if math.isnan(v) else v, row), xytext=(4, 0), textcoords="offset points", va="center"
            )
        axis.set_title(title, loc="left", fontsize=11)
        axis.margins(x=0.22)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_xticks([])
        axis.tick_params(left=False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench --detectors", description=__doc__)
    parser.add_argument("clips", nargs="*", metavar="CLIP", help="only clips whose name contains this")
    parser.add_argument("--manifest", type=Path, help="default: ../shared/footage/manifest.json")
    parser.add_argument("--fake", action="store_true", help="record the fake camera's scenes and use those")
    parser.add_argument(
        "--plot", type=Path, default=Path("detectors.png"), help="where the plot goes (needs matplotlib)"
    )
    parser.add_argument(
        "--programs", action="store_true", help="also whole programs; motion takes the recordings' time"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.memory_of:
        run_in_turns(args.manifest, [args.memory_of])
        return 0
    with tempfile.TemporaryDirectory() as directory:
        manifest = args.manifest or FOOTAGE / "manifest.json"
        if args.fake:
            manifest = fake_manifest(Path(directory), ["office", "lamp", "garden", "rain"])
        if not manifest.exists():
            print(
                f"skipped: {manifest} is not here; give --manifest FILE, or --fake for the fake camera's recordings"
            )
            return 0
        clips = [
            clip
            for clip in json.loads(manifest.read_text())["clips"]
            if not args.clips or any(part in clip["name"] for part in args.clips)
        ]
        compare(manifest.parent, clips, args)
    return 0


def compare(folder: Path, clips: list[dict[str, Any]], args: argparse.Namespace) -> None:
    scores = {name: Score() for name in DETECTORS}
    for clip in tqdm(clips, disable=not sys.stderr.isatty(), leave=False):
        active, cpu_s = run_in_turns(folder / clip["file"], list(DETECTORS))
        for name, score in scores.items():
            score.add(active[name], clip)
            score.cpu_s += cpu_s[name]
    first = folder / clips[0]["file"]
    for name, score in scores.items():
        command = [sys.executable, __file__, "--memory-of", name, "--manifest", str(first)]
        score.rss_mb = spend(command)[1]
    whole_s = math.nan
    if args.programs:
        whole_s = run_programs(folder, clips, scores)
    show(scores, whole_s)
    try:
        plot(args.plot, scores)
    except ImportError:
        print("no plot: matplotlib is not installed here")


def run_programs(folder: Path, clips: list[dict[str, Any]], scores: dict[str, Score]) -> float:
    """Adds Debian's motion and DVR-Scan where they are; returns the CPU seconds of replay over all clips."""
    replay = [
        spend([sys.executable, "-m", "agent", "replay", "--json", str(folder / clip["file"])])[:2] for clip in clips
    ]
    scores["camera-agent"].whole_s = sum(cpu_s for cpu_s, _ in replay)
    scores["camera-agent"].rss_mb = max(rss_mb for _, rss_mb in replay)
    if shutil.which("motion"):
        score = scores["motion (Debian), default"] = Score(whole_s=0.0, rss_mb=0.0)
        for clip in tqdm(clips, desc="motion", disable=not sys.stderr.isatty(), leave=False):
            path = folder / clip["file"]
            score.add(run_motion(path, clip, each_frame=True)[2], {**clip, "latency": False})
            cpu_s, rss_mb, _ = run_motion(path, clip, each_frame=False)
            score.whole_s, score.rss_mb = score.whole_s + cpu_s, max(score.rss_mb, rss_mb)
    else:
        print("motion is not installed here (apt-get install motion)")
    program = os.environ.get("DVR_SCAN") or shutil.which(
        "dvr-scan", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if program:
        score = scores["DVR-Scan, default"] = Score(whole_s=0.0, rss_mb=0.0)
        for clip in clips:
            cpu_s, rss_mb, active = run_dvr_scan(program, folder / clip["file"], clip)
            score.add(active, {**clip, "latency": False})  # its list says events, after its own merging
            score.whole_s, score.rss_mb = score.whole_s + cpu_s, max(score.rss_mb, rss_mb)
    else:
        print("DVR-Scan is not installed here (pip install dvr-scan; or DVR_SCAN=its path)")
    return scores["camera-agent"].whole_s


if __name__ == "__main__":
    sys.exit(main())
