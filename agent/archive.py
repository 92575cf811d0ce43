"""What a node has to show: pages of events and clips, and a clip's bytes. Reads the ledger and the clips' files."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from agent import thumbnail
from agent.clock import Now, rfc3339
from agent.disk import Disk
from agent.errors import StorageError
from agent.jobs import Outcome, Transfer, failure
from agent.ledger_file import CLIPS_NAME
from agent.ledger_reader import ClipRow, LedgerReader
from agent.mailboxes import MediaBox
from agent.model import Frame
from agent.requests import ListArgs, wall_ns_of


class Archive:
    """The ledger's reader and the way to the clips' files. Methods raise StorageError."""

    def __init__(self, reader: LedgerReader, disk: Disk, directory: Path) -> None:
        self._reader = reader
        self._disk = disk
        self._clips = directory / CLIPS_NAME

    def clip(self, clip_id: str) -> ClipRow | None:
        """A clip that can be had: ids are looked up, never made into paths."""
        clip = self._reader.clip(clip_id)
        return clip if clip is not None and clip.state == "final" else None

    def open(self, clip: ClipRow) -> BinaryIO:
        return self._disk.open_to_read(self._clips / clip.file)

    def piece(self, file: BinaryIO, clip: ClipRow, offset: int, length: int) -> bytes:
        """Exactly length bytes from offset on."""
        path = self._clips / clip.file
        with self._disk.guard("read", path):
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise StorageError("read", path, f"it ends at byte {offset + len(data)}; {clip.bytes} are listed")
        return data


def no_clip() -> Outcome:
    return failure("not-found", "there is no clip of that id on this node (any more)", "/args/clip_id")


def clip_transfer(
    ticket: int, request_id: str, media: MediaBox, archive: Archive, clip_id: str, offset: int, length: int | None
) -> Transfer | Outcome:
    """A job that sends the bytes offset..offset+length of a clip (None: to its end), or why there is none."""
    clip = archive.clip(clip_id)
    if clip is None:
        return no_clip()
    if offset > clip.bytes:
        return failure("invalid", f"the clip has {clip.bytes} bytes", "/args/offset")
    end = clip.bytes if length is None else min(clip.bytes, offset + length)
    file = archive.open(clip)
    about: dict[str, object] = {"clip": {"id": clip.id, "bytes": clip.bytes, "sha256": clip.sha256}}
    return Transfer(
        ticket, request_id, media, lambda at, n: archive.piece(file, clip, at, n), offset, end, about, file.close
    )


def still_transfer(
    ticket: int, request_id: str, media: MediaBox, frame: Frame, width: int, stream: str, now: Now
) -> Transfer:
    """A job that sends frame as JPEG, at most so wide. stream: where it was taken from, for whoever asked."""
    picture = thumbnail.encode(frame, max_width=width)
    about: dict[str, object] = {
        "width": picture.width,
        "height": picture.height,
        "stream": stream,
        "time": rfc3339(now.wall(frame.t_ns)),
        "content_type": "image/jpeg",
    }
    jpeg = picture.jpeg
    return Transfer(ticket, request_id, media, lambda at, n: jpeg[at : at + n], 0, len(jpeg), about)


def list_events(reader: LedgerReader, args: ListArgs) -> Outcome:
    found = reader.events_page(*_page(args), args.limit)
    rows = [event.body.model_dump(mode="json") for _, event in found]
    return Outcome({"events": rows, "next": found[-1][0] if len(found) == args.limit else None})


def list_clips(reader: LedgerReader, args: ListArgs) -> Outcome:
    found = reader.clips_page(*_page(args), args.limit)
    rows = [clip_body(clip) for clip in found]
    return Outcome({"clips": rows, "next": found[-1].n if len(found) == args.limit else None})


def _page(args: ListArgs) -> tuple[int | None, int | None, int | None]:
    first = None if args.from_ is None else wall_ns_of(args.from_)
    return args.cursor, first, None if args.to is None else wall_ns_of(args.to)


def clip_body(clip: ClipRow) -> dict[str, object]:
    return {
        "id": clip.id,
        "event_ids": list(clip.event_ids),
        "start": rfc3339(clip.start_wall_ns),
        "clock_synced": clip.clock_synced,
        "duration_s": round(clip.duration_s, 3),
        "bytes": clip.bytes,
        "sha256": clip.sha256,
        "flags": list(clip.flags),
        "protected": clip.is_protected,
    }
