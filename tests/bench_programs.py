"""Whole programs on the same recordings: camera-agent replay, Debian's motion, DVR-Scan; CPU, memory, what they see.

Part of scripts/bench --detectors --programs. motion reads a file no faster than it was recorded, so replay runs while
motion looks at the same file: both meet the same load of the machine. All recordings at once starve it.

motion reads and looks in two threads, each at a pace of its own: a frame may be looked at twice or not at all, which
also decides when its background takes something in. What it sees differs from run to run, also on an idle machine, so
that it runs several times, and the run in the middle counts.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Luma = npt.NDArray[np.int16]
ROOT = Path(__file__).resolve().parent.parent

PARENT = """
import os, signal, subprocess, sys, time
child = subprocess.Popen(sys.argv[3:], stdout=sys.stderr)
if sys.argv[2]:
    time.sleep(float(sys.argv[2]))
    child.send_signal(signal.SIGTERM)
status, usage = os.wait4(child.pid, 0)[1:]
open(sys.argv[1], "w").write(f"{usage.ru_utime + usage.ru_stime} {usage.ru_maxrss / 1024} {status}")
"""
"""A small parent: a child's peak memory counts from the fork on, so that of this process would be its least."""


@dataclass(frozen=True)
class Spent:
    """What a program took with all its threads: user and system CPU, peak memory, and what it said."""

    cpu_s: float
    rss_mb: float
    said: str


class Running:
    """A program that was started; after end_s it is asked to end."""

    def __init__(self, command: Sequence[str], end_s: float | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._told, self._said = (Path(self._directory.name, name) for name in ("usage", "said"))
        self._command = command
        with self._said.open("wb") as said:
            self._child = subprocess.Popen(
                [sys.executable, "-S", "-c", PARENT, str(self._told), "" if end_s is None else str(end_s), *command],
                stderr=said,
                cwd=ROOT,
            )

    def wait(self) -> Spent:
        self._child.wait()
        said = self._said.read_text(encoding="utf-8", errors="replace")
        cpu_s, rss_mb, status = (float(word) for word in self._told.read_text().split())
        self._directory.cleanup()
        if status:
            raise SystemExit(f"{' '.join(self._command)} failed: {said[-500:]}")
        return Spent(cpu_s, rss_mb, said)


def spend(command: Sequence[str]) -> Spent:
    return Running(command).wait()


# --- motion ----------------------------------------------------------------------------------------------------

# What decides about motion is as in Debian's /etc/motion/motion.conf: without its despeckle_filter, no default of the
# program itself, motion is cheaper and sees leaves and ghosts. Left alone it reads a frame a second too fast.
MOTION_CONF = """threshold 1500
despeckle_filter EedDl
minimum_motion_frames 1
daemon off
log_level 4
target_dir {directory}
netcam_url file://{path}
netcam_params capture_rate={fps}
width {width}
height {height}
movie_output off
webcontrol_port 0
stream_port 0
"""
SAVES_NOTHING = "picture_output off\nframerate {fps}\n"
"""For its CPU: it shall look at every frame, as replay does."""
SAVES_WHAT_MOVES = "picture_output on\npicture_filename %s-%q-%v\ntext_right\n"
"""At its defaults (no frames before or after) motion saves just the frames in which it says that something moves."""
SAVING_RUNS = 3
SILENT_RUNS = 1
"""Its CPU hardly differs from run to run, since it does nothing at once."""

ALIKE = 3.0
"""Mean difference in levels up to which a saved picture is the frame; JPEG costs about 0.5."""
EVERY = 4
"""So many pixels on and rows down is the next that is compared."""
LOOSE_S = 3.0
"""A picture may be written so much later than it was read."""
LOOKS_S = 2.5 / 15
"""At its default of 15 looks a second: frames between pictures that are no further apart count as moving too."""
OPENS_S = 0.3
"""From its start to its first frame, about; after the last one it begins the file again."""


class Motion:
    """Debian's motion on a file, but for what it writes at its defaults, at the file's own pace."""

    def __init__(self, path: Path, clip: dict[str, Any], writes: str) -> None:
        self._directory = tempfile.TemporaryDirectory()
        conf = Path(self._directory.name, "motion.conf")
        with av.open(str(path)) as container:
            width, height = container.streams.video[0].width, container.streams.video[0].height
        text = (MOTION_CONF + writes).format(
            directory=self._directory.name,
            path=path.resolve(),
            width=width,
            height=height,
            fps=math.ceil(clip["fps"]),
        )
        conf.write_text(text)
        self._running = Running(["motion", "-n", "-c", str(conf)], end_s=clip["frames"] / clip["fps"] + OPENS_S)

    def wait(self, size: tuple[int, int] = (640, 480)) -> tuple[Spent, list[tuple[float, Luma]]]:
        """What it took, and the saved pictures: about when, and few pixels of their luma once brought to size."""
        spent = self._running.wait()
        # By when they were written: a name may have the number of one second and the time of the next.
        files = [(file.stat().st_mtime_ns / 1e9, file) for file in Path(self._directory.name).rglob("*.jpg")]
        pictures = []
        for at_s, file in sorted(files):
            with av.open(str(file)) as container:
                luma = next(container.decode(video=0)).reformat(*size, format="gray").to_ndarray()
            pictures.append((at_s, few_of(luma)))
        self._directory.cleanup()
        return spent, pictures


def few_of(luma: npt.NDArray[Any]) -> Luma:
    return luma[::EVERY, ::EVERY].astype(np.int16)


def frames_saved(pictures: Sequence[tuple[float, Luma]], frames: Luma, fps: float) -> list[bool]:
    """Which of the frames the pictures are, told by the pictures themselves, up to where the file begins again.

    ValueError where more than one in fifty is no frame that comes after the one before.
    """
    active = [False] * len(frames)
    loose = round(LOOSE_S * fps)
    last, last_s, strange = 0, math.nan, 0
    for at_s, picture in pictures:
        end = len(frames) if math.isnan(last_s) else round(last + (at_s - last_s) * fps) + loose
        found = _like(picture, frames[last:end])
        if found is not None:
            first = last + 1 if at_s - last_s <= LOOKS_S else last + found
            last, last_s = last + found, at_s
            active[first : last + 1] = [True] * (last + 1 - first)
            active[last] = True
        elif end <= len(frames):
            strange += 1
    if strange > len(pictures) / 50:
        raise ValueError(f"{strange} of its {len(pictures)} pictures are none of the frames")
    return active


def _like(picture: Luma, frames: Luma) -> int | None:
    if not len(frames):
        return None
    unlike = np.abs(frames - picture).mean(axis=(1, 2))
    return int(unlike.argmin()) if unlike.min() <= ALIKE else None


# --- DVR-Scan --------------------------------------------------------------------------------------------------


def dvr_scan_here() -> str | None:
    return os.environ.get("DVR_SCAN") or shutil.which(
        "dvr-scan", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )


def run_dvr_scan(program: str, path: Path, clip: dict[str, Any]) -> tuple[Spent, list[bool]]:
    """DVR-Scan's MOG2 at its defaults, without the time it adds around events."""
    command = [program, "--ignore-user-config", "-i", str(path), "-so", "-l", "2", "-tb", "0", "-tp", "0", "-q"]
    spent = spend(command)
    marks = [
        round((3600 * int(h) + 60 * int(m) + float(s)) * clip["fps"])
        for h, m, s in re.findall(r"(\d\d):(\d\d):(\d\d\.\d+)", spent.said.splitlines()[-1] if spent.said else "")
    ]
    active = [False] * clip["frames"]
    for first, last in zip(marks[::2], marks[1::2], strict=False):
        active[first : last + 1] = [True] * len(active[first : last + 1])
    return spent, active


# --- beside each other -----------------------------------------------------------------------------------------


@dataclass
class Whole:
    """One program over all recordings. cpu_s: by recording, the median of its runs; active: per frame."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    rss_mb: float = 0.0
    active: dict[str, list[bool]] = field(default_factory=dict)

    def add(self, name: str, runs: Sequence[Spent]) -> None:
        self.cpu_s[name] = statistics.median(spent.cpu_s for spent in runs)
        self.rss_mb = max(self.rss_mb, *(spent.rss_mb for spent in runs))


REPLAY, MOTION, DVR_SCAN = "camera-agent replay", "motion 4, as Debian's", "DVR-Scan, default"


def run_programs(
    folder: Path,
    clips: Sequence[dict[str, Any]],
    follow: Callable[[Sequence[dict[str, Any]]], Iterable[dict[str, Any]]],
    luma_of: Callable[[Path], tuple[tuple[int, int], Luma]],
    runs: int,
    tell: Callable[[str], object],
) -> dict[str, Whole]:
    """Each program that is installed over each clip, replay runs times. follow: the same clips, for a bar.

    luma_of: size, and few pixels of each frame.
    """
    wholes = {REPLAY: Whole()}
    has_motion = shutil.which("motion") is not None
    program = dvr_scan_here()
    if has_motion:
        wholes[MOTION] = Whole()
    else:
        tell("motion is not installed here (apt-get install motion)")
    if program:
        wholes[DVR_SCAN] = Whole()
    else:
        tell("DVR-Scan is not installed here (pip install dvr-scan; or DVR_SCAN=its path)")
    for clip in follow(clips):
        name, path = clip["name"], folder / clip["file"]
        silent = [Motion(path, clip, SAVES_NOTHING) for _ in range(SILENT_RUNS if has_motion else 0)]
        saving = [Motion(path, clip, SAVES_WHAT_MOVES) for _ in range(SAVING_RUNS if has_motion else 0)]
        replays = [spend([sys.executable, "-m", "agent", "replay", "--json", str(path)]) for _ in range(runs)]
        wholes[REPLAY].add(name, replays)
        if program:
            spent, wholes[DVR_SCAN].active[name] = run_dvr_scan(program, path, clip)
            wholes[DVR_SCAN].add(name, [spent])
        if has_motion:
            wholes[MOTION].add(name, [motion.wait()[0] for motion in silent])
            size, frames = luma_of(path)
            ranked = []
            for motion in saving:
                try:
                    active = frames_saved(motion.wait(size)[1], frames, clip["fps"])
                    ranked.append((share_of_quiet(active, clip), active))
                except ValueError as error:
                    tell(f"{name}: what motion saw cannot be told: {error}")
            if ranked:
                ranked.sort()
                wholes[MOTION].active[name] = ranked[len(ranked) // 2][1]
                shares = ", ".join(f"{100 * share:.1f}" for share, _ in ranked)
                tell(f"{name}: quiet-on of motion's runs: {shares} %")
    return wholes


def share_of_quiet(active: Sequence[bool], clip: dict[str, Any]) -> float:
    quiet = [active[i] for first, last in clip["quiet"] for i in range(first, min(last + 1, len(active)))]
    return sum(quiet) / len(quiet) if quiet else 0.0


def show_programs(wholes: dict[str, Whole], clips: Sequence[dict[str, Any]]) -> None:
    """CPU of replay and its ratio to each other program, recording by recording."""
    others = [name for name in wholes if name != REPLAY]
    print(f"\n{'CPU of the whole process':26} {'replay':>8} " + " ".join(f"{name:>34}" for name in others))
    rows = [(clip["name"], [clip["name"]]) for clip in clips] + [("all", [clip["name"] for clip in clips])]
    for title, names in rows:
        own = sum(wholes[REPLAY].cpu_s[name] for name in names)
        words = []
        for other in others:
            theirs = sum(wholes[other].cpu_s[name] for name in names)
            words.append(f"{theirs:.2f} s; replay takes {own / theirs:.2f} of it")
        print(f"{title:26} {own:>6.2f} s " + " ".join(f"{word:>34}" for word in words))
    print("peak memory: " + ", ".join(f"{name} {whole.rss_mb:.0f} MB" for name, whole in wholes.items()))
