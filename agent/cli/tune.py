"""`camera-agent tune`: tries settings on recordings, counts what they change. Writes the files that it is told to."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.exceptions import TOMLKitError
from tqdm import tqdm

from agent.cameras.video import VideoOptions, VideoSource
from agent.cli import add_config, load_settings, refuse_streams
from agent.cli.sheet import Card, Group, write_sheet
from agent.clock import SystemClock
from agent.errors import ConfigError, StorageError
from agent.handoffs import EventBoard, FrameSlot, StatusBoard
from agent.model import NS_PER_S, Box, EndReason, Event, Frame, Packet, Phase, Thumbnail
from agent.settings import DetectionSettings, Settings
from agent.thumbnail import encode
from agent.ulid import new_ulid
from agent.vision import Vision

HELP = "try settings over recordings, count the events they gain and lose, write the chosen ones to the settings file"

NEAR_S = 1.0
"""Two events are the same where they overlap, give or take this."""

STEPS: dict[str, tuple[float, ...]] = {
    "sensitivity": (20, 35, 50, 65, 80),
    "confirm_frames": (2, 3, 5, 8),
    "quiet_s": (3, 10, 20),
}
"""What is tried when nothing is asked for: one setting at a time, the others as they are."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="recordings of this camera, of typical days")
    add_config(parser)
    parser.add_argument(
        "--try",
        dest="tries",
        action="append",
        default=[],
        metavar="NAME=V[,V...]",
        help="values to try of a [detection] setting; several times: every combination. zones=ID leaves a zone out",
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FILE",
        help="a manifest of what there is to find; else compare with the settings",
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="a table, and pictures of the events that differ (.html or .png)"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the best (by --truth), or the only one tried, into this file"
    )


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args.config)
    for video in args.videos:
        refuse_streams(video, "tune")
    if args.sheet is not None and args.sheet.suffix not in (".html", ".png"):
        raise ConfigError("write", args.sheet, "neither .html nor .png", hint="name it SHEET.html")
    for path in (args.sheet, args.write):
        if path is not None and not path.parent.is_dir():
            raise StorageError("write", path, "no such directory", hint="does its directory exist?")
    choices = list(choices_of(args.tries, settings))
    if args.write is not None and args.truth is None and len(choices) != 1:
        raise ConfigError(
            "write",
            args.write,
            f"{len(choices)} settings were to be tried, and nothing says which is right",
            hint="give --truth, or look at the table and --try the one you want",
        )
    truth = Truth(_truth(args.truth, args.videos)) if args.truth is not None else None
    trials = [Trial(Choice(), settings), *(Trial(choice, settings) for choice in choices)]
    seconds = 0.0
    for number, video in enumerate(args.videos):
        seconds += _watch(video, number, trials if truth is None else [*trials, truth], settings)
    expected = trials[0].found if truth is None else truth.found
    rows = [compare(trial, expected) for trial in trials]
    best = best_of(rows, len(expected)) if truth is not None else rows[-1]
    words = ("missed", "false") if truth is not None else ("lost", "new")
    print_table(rows, words)
    if len(args.videos) > 1:
        for number, video in enumerate(args.videos, 1):
            tqdm.write(f"{number}: {Path(video).name}")
    if args.sheet is not None:
        groups = [group_of(row, words, is_best=truth is not None and row is best) for row in rows]
        write_sheet(args.sheet, groups, [Path(video).name for video in args.videos], words)
        tqdm.write(f"pictures of the events that differ: {args.sheet}")
    if truth is not None:
        tqdm.write(f"best: {best.trial.choice}")
        if few := caution(len(expected), seconds):
            tqdm.write(few)
    if args.write is not None:
        write_settings(args.write, best.trial.choice)
        tqdm.write(f"{args.write}: {best.trial.choice}")
    return 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings that differ from the present ones. without: zones left out."""

    detection: tuple[tuple[str, float], ...] = ()
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [f"{name}={value:g}" for name, value in self.detection] + [
            f"without zone {zone}" for zone in self.without
        ]
        return ", ".join(words) or "as it is"

    def distance(self) -> float:
        """How far from the defaults, which were measured on more than these recordings; a zone left out counts 1."""
        far = float(len(self.without))
        for name, value in self.detection:
            usual = float(DetectionSettings.model_fields[name].default)
            far += abs(value - usual) / max(value, usual, 1)
        return far

    def applied_to(self, settings: Settings) -> Settings:
        """Raises ConfigError for values out of bounds."""
        try:
            detection = DetectionSettings.model_validate({**settings.detection.model_dump(), **dict(self.detection)})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise ConfigError("try", f"detection.{problem['loc'][0]}={problem['input']:g}", problem["msg"]) from None
        zones = [zone for zone in settings.zones if zone.id not in self.without]
        return settings.model_copy(update={"detection": detection, "zones": zones})


def choices_of(tries: Sequence[str], settings: Settings) -> Iterator[Choice]:
    """What to try: every combination of what was asked for; or one step at a time, and each zone left out."""
    present = {name: value for name, value in settings.detection if not isinstance(value, bool)}
    if not tries:
        for name, values in STEPS.items():
            yield from (Choice(((name, value),)) for value in values if value != present[name])
        yield from (Choice(without=(zone.id,)) for zone in settings.zones if zone.kind != "privacy")
        return
    axes: list[list[Choice]] = []
    for words in tries:
        name, _, listed = words.partition("=")
        if name == "zones":
            known = [zone.id for zone in settings.zones if zone.kind != "privacy"]
            if unknown := [zone for zone in listed.split(",") if zone not in known]:
                hint = f"one of {', '.join(known)}" if known else "no zone is configured"
                raise ConfigError("try", words, f"there is no zone {unknown[0]!r} to leave out", hint=hint)
            axes.append([Choice(without=(zone,)) for zone in listed.split(",")])
            continue
        if name not in present:
            raise ConfigError(
                "try", words, f"no setting {name!r} in [detection]", hint=f"one of {', '.join(present)}"
            )
        try:
            axes.append([Choice(((name, float(value)),)) for value in listed.split(",")])
        except ValueError:
            raise ConfigError("try", words, "not numbers", hint=f"such as {name}=3,5,8") from None
    for parts in itertools.product(*axes):
        detection = tuple(pair for part in parts for pair in part.detection)
        yield Choice(detection, tuple(zone for part in parts for zone in part.without))


@dataclass(frozen=True, slots=True)
class Found:
    """One event of one recording, seconds from its first frame."""

    video: int
    start_s: float
    end_s: float
    picture: Thumbnail | None = field(default=None, repr=False)
    boxes: tuple[Box, ...] = ()

    def is_like(self, other: Found) -> bool:
        return (
            self.video == other.video
            and self.start_s <= other.end_s + NEAR_S
            and other.start_s <= self.end_s + NEAR_S
        )


class Trial:
    """The vision stage with one choice of settings."""

    def __init__(self, choice: Choice, settings: Settings) -> None:
        self.choice = choice
        self.found: list[Found] = []
        self._settings = choice.applied_to(settings)
        self._ids = itertools.count(1)

    def begin(self, video: int) -> None:
        self._video = video
        self._slot, self._board = FrameSlot(), EventBoard()
        self._vision = Vision(
            self._settings, self._slot, self._board, StatusBoard(), lambda: new_ulid(0, next(self._ids))
        )
        self._t0_ns: int | None = None

    def see(self, frame: Frame) -> None:
        if self._t0_ns is None:
            self._t0_ns = frame.t_ns
        self._slot.put(frame)
        self._vision.step(0)
        self._take()

    def end(self) -> None:
        self._vision.close(EndReason.SHUTDOWN)
        self._take()

    def _take(self) -> None:
        for event in self._board.take():
            if event.phase is Phase.END:
                self.found.append(self._of(event))

    def _of(self, event: Event) -> Found:
        start_ns, end_ns = (moment.t_ns - (self._t0_ns or 0) for moment in (event.start, event.end or event.last))
        return Found(self._video, start_ns / NS_PER_S, end_ns / NS_PER_S, event.thumbnail, event.boxes)


class Truth:
    """What there is to find, and a picture of the middle of each. Looks at the frames as a Trial does."""

    def __init__(self, found: list[Found]) -> None:
        self.found = found

    def begin(self, video: int) -> None:
        self._video = video
        self._t0_ns: int | None = None

    def see(self, frame: Frame) -> None:
        if self._t0_ns is None:
            self._t0_ns = frame.t_ns
        now_s = (frame.t_ns - self._t0_ns) / NS_PER_S
        for i, one in enumerate(self.found):
            if one.video == self._video and one.picture is None and now_s >= (one.start_s + one.end_s) / 2:
                self.found[i] = replace(one, picture=encode(frame))

    def end(self) -> None:
        """Nothing is left to tell."""


class _Frames:
    """What a step of the source delivered."""

    def __init__(self) -> None:
        self.waiting: list[Frame] = []

    def on_packet(self, packet: Packet) -> None:
        """Nothing is recorded here."""

    def on_frame(self, frame: Frame) -> None:
        self.waiting.append(frame)


def _watch(video: str, number: int, trials: Sequence[Trial | Truth], settings: Settings) -> float:
    """Decode once, look with all; how long it is, seconds. Raises CameraError where it cannot be read."""
    camera = settings.camera
    masks = tuple(tuple(zone.polygon) for zone in settings.zones if zone.kind == "privacy")
    options = VideoOptions(
        source=video,
        lores_width=camera.lores_width,
        lores_height=camera.lores_height,
        masks=masks,
        want_packets=False,
    )
    source, frames = VideoSource(options, SystemClock()), _Frames()
    source.open(NS_PER_S)
    for trial in trials:
        trial.begin(number)
    last_ns = NS_PER_S
    try:
        with tqdm(
            desc=Path(video).name,
            total=source.packets or None,
            unit=" frames",
            disable=not sys.stderr.isatty(),
            leave=False,
        ) as bar:
            more = True
            while more:
                more = source.step(frames)
                for frame in frames.waiting:
                    last_ns = frame.t_ns
                    for trial in trials:
                        trial.see(frame)
                bar.update(len(frames.waiting))
                frames.waiting.clear()
    finally:
        source.close()
    for trial in trials:
        trial.end()
    return (last_ns - NS_PER_S) / NS_PER_S


def _truth(path: Path, videos: Sequence[str]) -> list[Found]:
    """The events of the manifest, for the recordings at hand. Raises ConfigError."""
    try:
        clips = {_composed(clip["file"]): clip for clip in json.loads(path.read_text(encoding="utf-8"))["clips"]}
        found = []
        for number, video in enumerate(videos):
            clip = clips[_composed(Path(video).name)]
            found += [Found(number, first / clip["fps"], last / clip["fps"]) for first, last in clip["events"]]
        return found
    except KeyError as error:
        raise ConfigError("read", path, f"nothing about {error}", hint="clips need file, fps and events") from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("read", path, error, hint="a manifest is JSON: clips with file, fps, events") from error


def _composed(name: str) -> str:
    """Some systems write the accents of a file's name as letters of their own, some editors do not."""
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True, slots=True)
class Row:
    """One choice beside what was expected. lost: expected and not found; new: found and not expected."""

    trial: Trial
    lost: list[Found]
    new: list[Found]

    @property
    def minutes(self) -> float:
        """All its events together."""
        return sum(event.end_s - event.start_s for event in self.trial.found) / 60


def compare(trial: Trial, expected: Sequence[Found]) -> Row:
    lost = [one for one in expected if not any(one.is_like(event) for event in trial.found)]
    return Row(trial, lost, [event for event in trial.found if not any(event.is_like(one) for one in expected)])


def best_of(rows: Sequence[Row], expected: int) -> Row:
    """Fewest missed, then fewest false; then the present one, which is the first, or else what is nearest to the
    defaults. Before this last step: one event each rather than pieces or heaps, where their number is far off.
    """
    far = max(5, expected // 2)

    def order(row: Row) -> tuple[float, ...]:
        pieces = abs(len(row.trial.found) - expected) // far
        return len(row.lost), len(row.new), pieces, row is not rows[0], row.trial.choice.distance()

    return min(rows, key=order)


FEW_EVENTS = 30


def caution(expected: int, seconds: float) -> str:
    """Words for a choice that rests on too little; empty where it does not."""
    if not expected:
        return "caution: nothing is to be found in these recordings, so the blindest setting is as good as any"
    if expected >= FEW_EVENTS:
        return ""
    # What is missed at most, 19 times of 20, by a setting that missed none of so many.
    share = 1 - 0.05 ** (1 / expected)
    return (
        f"caution: {expected} events in {seconds / 60:.0f} minutes are few: a setting that misses none of them may "
        f"still miss {100 * share:.0f} % of others; try recordings of more days"
    )


def print_table(rows: Sequence[Row], words: tuple[str, str]) -> None:
    width = max(len(str(row.trial.choice)) for row in rows)
    lost, new = words
    tqdm.write(f"{'settings':{width}} {'events':>6} {'instead of':>10} {lost:>6} {new:>5} {'minutes':>7}  {lost} at")
    for row in rows:
        places = ", ".join(_place(event) for event in row.lost[:4]) + (" ..." if len(row.lost) > 4 else "")
        tqdm.write(
            f"{row.trial.choice!s:{width}} {len(row.trial.found):>6} {len(rows[0].trial.found):>10} "
            f"{len(row.lost):>6} {len(row.new):>5} {row.minutes:>7.1f}  {places}".rstrip()
        )


def group_of(row: Row, words: tuple[str, str], *, is_best: bool) -> Group:
    lost, new = words
    cards = [_card(lost, event, is_lost=True) for event in row.lost]
    cards += [_card(new, event, is_lost=False) for event in row.new]
    counts = (len(row.trial.found), len(row.lost), len(row.new))
    return Group(str(row.trial.choice), counts, row.minutes, tuple(cards), is_best)


def _card(word: str, event: Found, *, is_lost: bool) -> Card:
    return Card(f"{word}: {_place(event)}, {event.end_s - event.start_s:.1f} s", event.picture, event.boxes, is_lost)


def _place(event: Found) -> str:
    minutes, seconds = divmod(event.start_s, 60)
    return f"{event.video + 1}@{int(minutes)}:{seconds:04.1f}"


def _what_follows(section: Any) -> list[Any]:
    """Take the blank lines and comments below a section's last setting out of it: they belong to what comes next."""
    body = section.value.body if hasattr(section.value, "body") else []
    last = max((i for i, (key, _) in enumerate(body) if key is not None), default=-1)
    below = body[last + 1 :] if last >= 0 else []
    del body[len(body) - len(below) :]
    return list(below)


def write_settings(path: Path, choice: Choice) -> None:
    """Put choice into the settings file at path, or a new one; all else there, comments too, stays as it is."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        document: Any = tomlkit.parse(text)
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise ConfigError("read", path, error) from error
    if choice.detection:
        section = document.setdefault("detection", tomlkit.table())
        below = _what_follows(section)
        for name, value in choice.detection:
            section[name] = int(value) if value == int(value) else value
        section.value.body.extend(below)
    if choice.without:
        zones = document.get("zones", [])
        for index in reversed(range(len(zones))):
            if zones[index].get("id") in choice.without:
                del zones[index]
    whole = tomlkit.dumps(document)
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        load_settings(beside)  # refuses what the node would refuse, before the old file is gone
        if path.exists():
            beside.chmod(path.stat().st_mode & 0o777)
        os.replace(beside, path)
    except OSError as error:
        raise StorageError("write", path, error) from error
    finally:
        beside.unlink(missing_ok=True)
