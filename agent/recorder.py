"""The clip recorder: packets from the ring become one fragmented MP4 at a time. Touches the disk and the muxer only.

No thread, no clock: it is stepped by the storage and handed the time. One GOP is one fragment, one append and
one fdatasync. A clip is NAME.mp4.part while it grows and NAME.mp4 once it is whole and durable; its row in the
ledger comes after that, for a file without a row is adopted at start-up, a row without a file is a lie.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from agent.clock import Now, is_wall
from agent.disk import Disk, OpenFile
from agent.handoffs import PacketRing
from agent.ledger_reader import ClipRow
from agent.model import NS_PER_S, Event, EventKind, Packet
from agent.mp4 import FragmentMuxer, parameter_sets, seal
from agent.settings import ClipSettings
from agent.ulid import new_ulid

FINAL_SUFFIX = ".mp4"
PART_SUFFIX = ".mp4.part"
UNSEEN_KINDS = (EventKind.CAMERA_LOST, EventKind.CAMERA_BACK)
"""Events that no picture can show: they make no clip."""
MAX_PAUSE_NS = NS_PER_S
"""Two packets further apart than this and the first one's duration: frames are missing between."""
MAX_BOOT_NS = 1 << 62
"""146 years without a restart: what says more is no boot clock."""
MAX_COVERED = 64
"""Events one clip or plan remembers; beyond that the oldest ended is left to its own row."""


@dataclass(slots=True)
class _Covered:
    """What of one event a clip should show."""

    event_id: str
    start_ns: int
    end_ns: int | None


@dataclass(slots=True)
class _Writing:
    """The open file of a clip."""

    file: OpenFile
    muxer: FragmentMuxer
    parameters: bytes
    first: Packet
    last: Packet
    first_pts_ns: int
    end_ns: int
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    frames: int = 0
    synced_length: int = 0
    synced_end_ns: int = 0
    fragments: int = 0
    last_key_ns: int = 0
    gop_ns: int = 0
    needs_key: bool = False


@dataclass(slots=True)
class _Clip:
    """A clip planned (its id is known, nothing written) or being written."""

    id: str
    from_ns: int
    covered: dict[str, _Covered]
    flags: set[str]
    position: int | None = None
    writing: _Writing | None = None


@dataclass(frozen=True, slots=True)
class OpeningNote:
    """What a clip's header says of it, so that the ledger can be rebuilt from the clips alone."""

    boot_id: str
    start_t_ns: int
    start_wall_ns: int
    clock_synced: bool
    events: tuple[str, ...]
    continues: bool


@dataclass(frozen=True, slots=True)
class ClosingNote:
    """What the last seal of a whole clip says."""

    events: tuple[str, ...]
    flags: tuple[str, ...]


class Recorder:
    """At most one clip at a time. Methods raise StorageError; then abandon() leaves the file to recovery.

    closed: clips that are final on disk and want their row; the caller takes them out.
    units: fragments made durable so far; gaps: clips in which frames are missing.
    """

    def __init__(self, disk: Disk, directory: Path, settings: ClipSettings, *, silence_s: float) -> None:
        self._disk = disk
        self._directory = directory
        self.adopt(settings)
        self._silence_ns = round(silence_s * NS_PER_S)
        self._clip: _Clip | None = None
        self._recorded: dict[str, int] = {}  # event -> boot time up to which clips show it already
        self.closed: list[ClipRow] = []
        self.abandoned: dict[str, int] = {}
        self.units = 0
        self.gaps = 0

    def adopt(self, settings: ClipSettings) -> None:
        """Go by these from the next clip on, and for the end of the one that is open."""
        self._pre_roll_ns = round(settings.pre_roll_s * NS_PER_S)
        self._post_roll_ns = round(settings.post_roll_s * NS_PER_S)
        self._max_clip_ns = round(settings.max_clip_s * NS_PER_S)

    @property
    def is_recording(self) -> bool:
        return self._clip is not None and self._clip.writing is not None

    @property
    def part_name(self) -> str | None:
        """Name of the file being written."""
        clip = self._clip
        return clip.id + PART_SUFFIX if clip is not None and clip.writing is not None else None

    @property
    def part_bytes(self) -> int:
        clip = self._clip
        return clip.writing.file.length if clip is not None and clip.writing is not None else 0

    def clip_of(self, event_id: str) -> str | None:
        """Id of the clip that is being recorded for an event."""
        clip = self._clip
        return clip.id if clip is not None and event_id in clip.covered else None

    def consider(self, event: Event, now: Now) -> None:
        """Take notice of an event's newest state: plan a clip, join the one that runs, or learn the end."""
        if event.kind in UNSEEN_KINDS:
            return
        end_ns = event.end.t_ns if event.end is not None else None
        shown_until_ns = self._recorded.get(event.id)
        if shown_until_ns is not None and end_ns is not None and end_ns + self._post_roll_ns <= shown_until_ns:
            return
        covered = _Covered(event.id, event.start.t_ns, end_ns)
        if self._clip is not None:
            self._clip.covered[event.id] = covered
            self._forget_beyond_bound(self._clip)
        else:
            from_ns = max(event.start.t_ns - self._pre_roll_ns, shown_until_ns or 0)
            self._clip = _Clip(_new_id(now), from_ns, {event.id: covered}, set())

    def _forget_beyond_bound(self, clip: _Clip) -> None:
        if len(clip.covered) > MAX_COVERED:
            ended = next((i for i, c in clip.covered.items() if c.end_ns is not None), None)
            del clip.covered[ended if ended is not None else next(iter(clip.covered))]

    def step(self, ring: PacketRing, now: Now, limit: int) -> bool:
        """Write up to limit packets of what the ring has. Returns whether there is more to write at once."""
        clip = self._clip
        if clip is None:
            return False
        if clip.position is None:
            clip.position = ring.position_before(clip.from_ns)
        packets, after, lost = ring.read(clip.position, limit)
        if lost:
            self._gap(clip)
        for index, packet in enumerate(packets):
            clip = self._clip
            if clip is None:
                return False
            clip.position = after - len(packets) + index + 1
            self._take(packet, now)
        clip = self._clip
        if clip is not None and clip.writing is not None and not packets:
            self._close_if_silent(clip, clip.writing, now)
        return len(packets) == limit and self._clip is not None

    def finish(self, ring: PacketRing, now: Now) -> None:
        """The node stops: write what the ring still has for the clip and close it."""
        for _ in range(1000):  # a ring holds some thousand packets; a camera that still runs must not keep us
            if not self.step(ring, now, 256):
                break
        clip = self._clip
        if clip is not None and clip.writing is not None:
            self._close(clip, clip.writing, now)
        self._clip = None

    def close_early(self, now: Now) -> None:
        """Make the running clip final as it is (the disk is about to be full)."""
        clip = self._clip
        if clip is not None and clip.writing is not None:
            self._gap(clip)
            self._close(clip, clip.writing, now)
        self._clip = None

    def abandon(self, now: Now) -> None:
        """After a StorageError: let go of the file, to be adopted by recovery, and plan anew what it lacks.

        What an fsync has not confirmed is not believed any more, however it reads (abandoned: name -> length).
        """
        clip, self._clip = self._clip, None
        if clip is None:
            return
        from_ns = clip.from_ns
        if clip.writing is not None:
            self._disk.close(clip.writing.file)
            clip.writing.muxer.discard()
            self.abandoned[clip.id + PART_SUFFIX] = clip.writing.synced_length
            from_ns = max(from_ns, clip.writing.synced_end_ns)
        self._plan_rest(clip, from_ns, now)

    def _plan_rest(self, clip: _Clip, from_ns: int, now: Now) -> None:
        """Plan a clip for those of clip's events that go on after from_ns."""
        rest = {i: c for i, c in clip.covered.items() if c.end_ns is None or c.end_ns + self._post_roll_ns > from_ns}
        if rest:
            self._clip = _Clip(_new_id(now), from_ns, rest, {"continues"} if clip.writing is not None else set())

    def _close_at_ns(self, clip: _Clip) -> int | None:
        """When the clip may end; None while an event goes on."""
        ends = [covered.end_ns for covered in clip.covered.values()]
        known = [end_ns for end_ns in ends if end_ns is not None]
        return max(known) + self._post_roll_ns if len(known) == len(ends) and known else None

    def _take(self, packet: Packet, now: Now) -> None:
        clip = self._clip
        if clip is None:
            return
        if clip.writing is None:
            if packet.is_key:
                self._begin(clip, packet, now)
            return
        writing = clip.writing
        last = writing.last
        if packet.seq != last.seq + 1 or not 0 < packet.t_ns - last.t_ns <= MAX_PAUSE_NS + last.duration_ns:
            self._gap(clip)
            # Pictures that refer to what is missing would smear: go on with the next keyframe.
            writing.needs_key = True
        if packet.is_key:
            writing.needs_key = False
            writing.gop_ns = packet.t_ns - writing.last_key_ns
            too_long = packet.t_ns - writing.first.t_ns + writing.gop_ns > self._max_clip_ns
            other = packet.codec != last.codec or parameter_sets(packet) != writing.parameters
            if too_long or other or packet.t_ns <= last.t_ns:
                self._go_on_in_next(clip, writing, packet, now)
                return
            writing.last_key_ns = packet.t_ns
        if not writing.needs_key:
            self._write(clip, writing, packet, now)

    def _begin(self, clip: _Clip, packet: Packet, now: Now) -> None:
        close_at_ns = self._close_at_ns(clip)
        if close_at_ns is not None and packet.t_ns >= close_at_ns:
            self._clip = None  # the ring no longer has, or the camera never gave, what the clip was for
            return
        muxer = FragmentMuxer(packet)
        file = self._disk.create(self._directory / (clip.id + PART_SUFFIX))
        clip.writing = _Writing(
            file,
            muxer,
            parameter_sets(packet),
            packet,
            packet,
            packet.pts_ns,
            packet.pts_ns,
            synced_end_ns=packet.pts_ns,
            last_key_ns=packet.t_ns,
        )
        self._disk.sync_directory(self._directory)
        self._write(clip, clip.writing, packet, now)

    def _write(self, clip: _Clip, writing: _Writing, packet: Packet, now: Now) -> None:
        unit = writing.muxer.mux(packet)
        if unit and writing.frames == 0:
            note = OpeningNote(
                now.boot_id,
                writing.first_pts_ns,
                now.wall(writing.first_pts_ns),
                now.clock_synced,
                tuple(clip.covered),
                "continues" in clip.flags,
            )
            # Not synced yet: without its first fragment a header is worth nothing.
            self._append(writing, unit, _json(note))
        elif unit:
            self._append(writing, unit, b"")
            self._disk.datasync(writing.file)
            self._confirmed(writing, packet.t_ns)
        if packet.pts_ns >= writing.first_pts_ns:
            writing.frames += 1
            writing.end_ns = max(writing.end_ns, packet.pts_ns + packet.duration_ns)
        writing.last = packet
        close_at_ns = self._close_at_ns(clip)
        if close_at_ns is not None and packet.t_ns >= close_at_ns:
            self._close(clip, writing, now)

    def _append(self, writing: _Writing, unit: bytes, note: bytes) -> None:
        whole = unit + seal(unit, note)
        self._disk.append(writing.file, whole)
        writing.sha256.update(whole)

    def _confirmed(self, writing: _Writing, until_ns: int) -> None:
        writing.synced_length = writing.file.length
        writing.synced_end_ns = until_ns
        self.units += 1

    def _go_on_in_next(self, clip: _Clip, writing: _Writing, packet: Packet, now: Now) -> None:
        """Close the clip before packet (a keyframe) and begin the next one with it."""
        position = clip.position
        clip.flags.add("continued")
        self._close(clip, writing, now)
        if packet.t_ns > writing.last.t_ns:
            self._plan_rest(clip, packet.t_ns, now)
        if self._clip is not None:
            self._clip.position = position
            self._begin(self._clip, packet, now)

    def _close_if_silent(self, clip: _Clip, writing: _Writing, now: Now) -> None:
        """The camera fell silent: what there is becomes final; an event that goes on gets a new clip later."""
        if now.t_ns - writing.last.t_ns > self._silence_ns:
            position = clip.position
            self._gap(clip)
            self._close(clip, writing, now)
            self._plan_rest(clip, writing.end_ns, now)
            if self._clip is not None:
                self._clip.position = position

    def _close(self, clip: _Clip, writing: _Writing, now: Now) -> None:
        """Flush, fsync, rename, fsync of the directory; then the clip may have its row."""
        flags = tuple(sorted(clip.flags))
        unit = writing.muxer.close()
        self._append(writing, unit, _json(ClosingNote(tuple(clip.covered), flags)))
        self._disk.sync(writing.file)
        self._confirmed(writing, writing.end_ns)
        self._disk.close(writing.file)
        name = clip.id + FINAL_SUFFIX
        self._disk.rename(writing.file.path, self._directory / name)
        self._disk.sync_directory(self._directory)
        self._clip = None
        self.closed.append(
            ClipRow(
                n=0,
                id=clip.id,
                file=name,
                state="final",
                is_protected=False,
                boot_id=now.boot_id,
                start_t_ns=writing.first_pts_ns,
                end_t_ns=writing.end_ns,
                start_wall_ns=now.wall(writing.first_pts_ns),
                clock_synced=now.clock_synced,
                running_ns=0,
                frames=writing.frames,
                bytes=writing.file.length,
                sha256=writing.sha256.hexdigest(),
                flags=flags,
                event_ids=tuple(clip.covered),
            )
        )
        for event_id in clip.covered:
            self._recorded.pop(event_id, None)
            self._recorded[event_id] = writing.end_ns
        for event_id in list(self._recorded)[:-MAX_COVERED]:
            del self._recorded[event_id]

    def _gap(self, clip: _Clip) -> None:
        if "gap" not in clip.flags:
            clip.flags.add("gap")
            self.gaps += 1


def _new_id(now: Now) -> str:
    return new_ulid(now.wall_ns // 1_000_000)


def _json(note: OpeningNote | ClosingNote) -> bytes:
    fields = {name: getattr(note, name) for name in note.__slots__}
    return json.dumps({"v": 1, "note": type(note).__name__, **fields}, separators=(",", ":")).encode()


def notes_of(texts: tuple[bytes, ...]) -> tuple[OpeningNote | None, ClosingNote | None]:
    """The opening and closing note among a clip's seals; None for those that are missing or not ours.

    A note with a time that the ledger cannot hold is not ours.
    """
    opening: OpeningNote | None = None
    closing: ClosingNote | None = None
    for text in texts:
        try:
            fields = json.loads(text)
            if fields["note"] == "OpeningNote":
                start_t_ns, start_wall_ns = int(fields["start_t_ns"]), int(fields["start_wall_ns"])
                if not (0 <= start_t_ns < MAX_BOOT_NS and is_wall(start_wall_ns)):
                    continue
                opening = OpeningNote(
                    str(fields["boot_id"]),
                    start_t_ns,
                    start_wall_ns,
                    bool(fields["clock_synced"]),
                    tuple(map(str, fields["events"])),
                    bool(fields["continues"]),
                )
            elif fields["note"] == "ClosingNote":
                closing = ClosingNote(tuple(map(str, fields["events"])), tuple(map(str, fields["flags"])))
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return opening, closing
