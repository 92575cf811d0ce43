"""`camera-agent clips`: lists, shows, exports, verifies, protects and erases a node's clips, also while it runs.

Reads the node's directory. protect, release and erase also write its ledger, as a second short writer: SQLite lets
one at a time through, and the node copes with rows that change under it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from tqdm import tqdm

from agent.cli import add_config, count, load_settings
from agent.clock import Now, SystemClock, read, rfc3339
from agent.disk import Disk
from agent.errors import ConfigError, StorageError
from agent.ledger import ClipRow, Ledger, LedgerReader
from agent.ledger_file import CLIPS_NAME, LEDGER_NAME
from agent.model import NS_PER_S
from agent.ring import erase, protect
from agent.verification import verify_clip, verify_index

HELP = "list, show, export, verify, protect or erase the clips of a node"

MB = 1_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(
        dest="what", metavar="list|show|export|verify|protect|release|erase|commands", required=True
    )

    listing = commands.add_parser("list", help="a table of all clips, oldest first")
    _add_place(listing)
    listing.add_argument("--json", action="store_true", help="one JSON object per line")
    listing.set_defaults(act=_list)

    show = commands.add_parser("show", help="everything known of one clip and its events")
    show.add_argument("id", metavar="ID", help="the clip's id or the beginning of it")
    _add_place(show)
    show.set_defaults(act=_show)

    export = commands.add_parser("export", help="copy clips and their events' pictures to a directory")
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("id", metavar="ID", nargs="?", help="the clip's id or the beginning of it")
    which.add_argument("--all", action="store_true", help="all clips (of the time given)")
    export.add_argument("--out", type=Path, metavar="DIR", required=True, help="where to; made if missing")
    export.add_argument("--from", dest="since", metavar="TIME", help="only clips that end after: 2026-11-22[THH:MM]")
    export.add_argument("--to", dest="until", metavar="TIME", help="only clips that start before")
    _add_place(export)
    export.set_defaults(act=_export)

    verify = commands.add_parser("verify", help="hold the ledger against the files: existence, size, hash, playing")
    _add_place(verify)
    verify.add_argument("--quick", action="store_true", help="decode only the first frame of each clip")
    verify.set_defaults(act=_verify)

    audit = commands.add_parser(
        "commands", help="what was asked of this node over MQTT, done or refused, oldest first"
    )
    audit.add_argument("--limit", type=count(1), default=50, metavar="N", help="the newest N (default: 50)")
    _add_place(audit)
    audit.set_defaults(act=_commands)

    for name, what, act in (
        ("protect", "keep clips whatever the ring's bounds say", _protect),
        ("release", "give protected clips back to the ring", _release),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("id", metavar="ID", nargs="+", help="a clip's id or the beginning of it")
        _add_place(command)
        command.set_defaults(act=act)

    erase_command = commands.add_parser("erase", help="delete clips and their events' pictures for good")
    erase_command.add_argument("id", metavar="ID", nargs="+", help="a clip's id or the beginning of it")
    erase_command.add_argument("--yes", action="store_true", help="do it; without this it only says what it would do")
    _add_place(erase_command)
    erase_command.set_defaults(act=_erase)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--directory", type=Path, metavar="DIR", help="the node's clips.directory")
    add_config(parser)


class _Place:
    """Where the clips are, and the site's time zone for what people read."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.zone: dt.tzinfo | None = None  # the machine's own
        self.node = ""
        if args.config is not None:
            settings = load_settings(args.config)
            self.node = settings.node.id
            self.directory: Path = args.directory or settings.clips.directory
            if settings.node.timezone != "UTC":
                self.zone = ZoneInfo(settings.node.timezone)
        else:
            self.directory = args.directory or load_settings().clips.directory
        if not (self.directory / LEDGER_NAME).exists():
            raise StorageError(
                "open",
                self.directory,
                "there is no ledger.db in it",
                hint="give the node's directory: --directory DIR or --config FILE",
            )
        self.ledger = LedgerReader(self.directory)

    def file(self, clip: ClipRow) -> Path:
        return self.directory / CLIPS_NAME / clip.file

    @contextlib.contextmanager
    def writing(self) -> Iterator[tuple[Ledger, Now]]:
        """The ledger to write to, beside a running node or without one."""
        now = read(SystemClock())
        ledger = Ledger(Disk(), self.directory, node=self.node)
        try:
            ledger.open(None, now)
            yield ledger, now
        finally:
            ledger.close()

    def local(self, wall_ns: int) -> dt.datetime:
        seconds = min(max(wall_ns // NS_PER_S, 0), 253_402_200_000)
        return dt.datetime.fromtimestamp(seconds, dt.UTC).astimezone(self.zone)

    def moment(self, text: str | None) -> int | None:
        """UNIX ns of a date or time that a person typed, in the site's zone unless it names one."""
        if text is None:
            return None
        try:
            moment = dt.datetime.fromisoformat(text)
        except ValueError as error:
            raise ConfigError(
                "read", f"time {text!r}", "not a date or time", hint="2026-11-22 or 2026-11-22T08:30"
            ) from error
        if not 1970 < moment.year < 9999:  # the clock's own bounds; at datetime's a time zone leads beyond
            raise ConfigError("read", f"time {text!r}", "no year of this program's", hint="1971 to 9998")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=self.zone) if self.zone is not None else moment.astimezone()
        return round(moment.timestamp()) * NS_PER_S

    def one(self, beginning: str) -> ClipRow:
        """The clip whose id starts (or ends) so; several or none are an error."""
        wanted = beginning.upper()
        found = [clip for clip in self.ledger.clips() if clip.id.startswith(wanted) or clip.id.endswith(wanted)]
        if len(found) != 1:
            raise StorageError(
                "find",
                f"clip {beginning!r}",
                f"{len(found)} clips have such an id" if found else "there is no such clip",
                hint="camera-agent clips list shows the ids",
            )
        return found[0]


def run(args: argparse.Namespace) -> int:
    place = _Place(args)
    try:
        return int(args.act(place, args))
    finally:
        place.ledger.close()


def _list(place: _Place, args: argparse.Namespace) -> int:
    clips = place.ledger.clips()
    if args.json:
        for clip in clips:
            print(json.dumps(_facts(place, clip), ensure_ascii=False))
        return 0
    if not clips:
        print(f"no clips in {place.directory}")
        return 0
    print(f"{'id':<26}  {'start':<19}  {'length':>8}  {'size':>9}  events  flags")
    for clip in clips:
        print(
            f"{clip.id}  {place.local(clip.start_wall_ns):%Y-%m-%d %H:%M:%S}  {clip.duration_s:6.1f} s"
            f"  {clip.bytes / MB:6.2f} MB  {len(clip.event_ids):>6}  {' '.join(_marks(clip))}".rstrip()
        )
    there = [clip for clip in clips if clip.state in ("final", "damaged")]
    seconds = sum(clip.duration_s for clip in there)
    print(f"{len(there)} clips, {seconds / 60:.1f} min, {sum(clip.bytes for clip in there) / MB:.1f} MB")
    return 0


def _marks(clip: ClipRow) -> list[str]:
    """Flags, and what else is not as usual, in words."""
    extra = [clip.state] if clip.state != "final" else []
    extra += ["protected"] if clip.is_protected else []
    extra += [] if clip.clock_synced else ["clock-unsynced"]
    return [*clip.flags, *extra]


def _facts(place: _Place, clip: ClipRow) -> dict[str, Any]:
    facts = asdict(clip)
    del facts["n"], facts["running_ns"]
    return {
        **facts,
        "path": str(place.file(clip)),
        "start": rfc3339(clip.start_wall_ns),
        "local_start": place.local(clip.start_wall_ns).isoformat(),
        "duration_s": round(clip.duration_s, 3),
    }


def _show(place: _Place, args: argparse.Namespace) -> int:
    clip = place.one(args.id)
    for name, value in _facts(place, clip).items():
        if name not in ("event_ids", "flags"):
            print(f"{name:<14} {value}")
    print(f"{'flags':<14} {' '.join(_marks(clip)) or '-'}")
    for event_id in clip.event_ids:
        event = place.ledger.event(event_id)
        if event is None:
            print(f"event {event_id}: no longer in the ledger")
            continue
        body = event.body
        print(
            f"event {event_id}: {body.kind}, rev {body.rev}, {body.start} to {body.end or 'now'}"
            f" ({body.end_reason or 'going on'}), score {body.score}, zones {', '.join(body.zones) or '-'}"
        )
    return 0


def _commands(place: _Place, args: argparse.Namespace) -> int:
    for row in place.ledger.commands(args.limit):
        who = row.client or "?"
        words = f"{place.local(row.wall_ns):%Y-%m-%d %H:%M:%S}  {row.code:<14} {row.verb} of {who}  {row.detail}"
        print("".join(char if char.isprintable() else "?" for char in words).rstrip())
    return 0


def _export(place: _Place, args: argparse.Namespace) -> int:
    since, until = place.moment(args.since), place.moment(args.until)
    chosen = [
        clip
        for clip in ([place.one(args.id)] if args.id is not None else place.ledger.clips())
        if clip.state == "final"
        and (since is None or clip.start_wall_ns + clip.end_t_ns - clip.start_t_ns > since)
        and (until is None or clip.start_wall_ns < until)
    ]
    disk = Disk()
    try:
        disk.make_directory(args.out)
    except StorageError as error:
        raise ConfigError("use", f"--out {args.out}", error.cause, hint="a directory that may be written") from error
    pictures = 0
    for clip in _progress(chosen, "clip"):
        stem = f"{place.local(clip.start_wall_ns):%Y-%m-%d_%H-%M-%S}_{clip.id[-6:]}"
        _copy(disk, place.file(clip), args.out / f"{stem}.mp4")
        for number, event_id in enumerate(clip.event_ids, 1):
            thumb = place.ledger.thumb_of(event_id)
            if thumb is not None and thumb.blob is not None:
                suffix = f"_{number}" if len(clip.event_ids) > 1 else ""
                disk.write_whole(args.out / f"{stem}{suffix}.jpg", thumb.blob)
                pictures += 1
    print(f"{len(chosen)} clips and {pictures} pictures in {args.out}")
    return 0


def _copy(disk: Disk, source: Path, target: Path) -> None:
    beside = target.with_name(target.name + ".new")
    disk.remove(beside)
    with disk.open_to_read(source) as reader:
        file = disk.create(beside)
        try:
            while True:
                with disk.guard("read", source):
                    part = reader.read(1 << 20)
                if not part:
                    break
                disk.append(file, part)
            disk.sync(file)
        finally:
            disk.close(file)
    disk.rename(beside, target)


def _verify(place: _Place, args: argparse.Namespace) -> int:
    violations = 0
    clips = place.ledger.clips()
    for words in verify_index(place.directory, place.ledger):
        violations += 1
        print(words)
    checked = [clip for clip in clips if clip.state == "final"]
    for clip in _progress(checked, "clip"):
        # A running node may have deleted the clip since the list was read: ask again before calling it a fault.
        for words in verify_clip(place.file(clip), clip, decode_all=not args.quick):
            if place.ledger.clip(clip.id) == clip:
                violations += 1
                tqdm.write(words)
    megabytes = sum(clip.bytes for clip in checked) / MB
    verdict = "all true" if not violations else f"{violations} violations"
    print(f"{len(checked)} clips, {megabytes:.1f} MB, {place.ledger.head_seq} messages: {verdict}")
    return 1 if violations else 0


def _protect(place: _Place, args: argparse.Namespace) -> int:
    return _set_protected(place, args.id, True)


def _release(place: _Place, args: argparse.Namespace) -> int:
    return _set_protected(place, args.id, False)


def _set_protected(place: _Place, beginnings: list[str], is_protected: bool) -> int:
    chosen = [place.one(beginning) for beginning in beginnings]
    with place.writing() as (ledger, now):
        protect(ledger, [clip.id for clip in chosen], now, is_protected=is_protected)
    for clip in chosen:
        print(f"clip {clip.id}: {'protected' if is_protected else 'released'}")
    return 0


def _erase(place: _Place, args: argparse.Namespace) -> int:
    chosen = list({clip.id: clip for clip in map(place.one, args.id)}.values())
    if not args.yes:
        for clip in chosen:
            print(
                f"would erase clip {clip.id}: {place.local(clip.start_wall_ns):%Y-%m-%d %H:%M:%S}, {clip.bytes} bytes"
            )
        print("nothing was erased; say --yes to do it")
        return 0
    with place.writing() as (ledger, now):
        erased = erase(Disk(), place.directory, ledger, chosen, now)
    for clip in chosen:
        print(f"clip {clip.id}: erased")
    print(
        f"{erased.clips} clips ({erased.bytes / MB:.2f} MB) and {erased.pictures} pictures erased from this node;"
        " what the broker or other programs were sent is not touched"
    )
    return 0


def _progress(clips: list[ClipRow], unit: str) -> Iterator[ClipRow]:
    shown: Iterable[ClipRow] = tqdm(clips, unit=unit, disable=not sys.stderr.isatty(), leave=False)
    yield from shown
