"""Packets, events and a stepped storage for the storage tests: real H.264 from libx264, real disk, simulated time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from agent.clock import SimulatedClock
from agent.disk import Disk
from agent.handoffs import AckBox, Doorbell, EventBoard, PacketRing
from agent.ledger import LedgerReader
from agent.model import (
    NS_PER_S,
    Box,
    Codec,
    EndReason,
    Event,
    EventKind,
    Moment,
    Packet,
    Phase,
    Thumbnail,
)
from agent.settings import Settings, load_settings
from agent.storage import Storage
from agent.ulid import new_ulid
from agent.verification import verify_clip, verify_index

FPS = 10
FRAME_NS = NS_PER_S // FPS
WIDTH, HEIGHT = 64, 48


@cache
def _encoded(
    codec: Codec, frames: int, gop: int, b_frames: int, width: int
) -> tuple[tuple[int, int, bool, bytes], ...]:
    """(pts, dts, is_key, Annex B) of a picture that gets brighter with each frame, wrapping at 200."""
    context: Any = av.CodecContext.create("libx264" if codec == "h264" else "libx265", "w")
    context.width, context.height, context.pix_fmt = width, HEIGHT, "yuv420p"
    context.time_base = Fraction(1, FPS)
    context.framerate = Fraction(FPS, 1)
    context.gop_size = gop
    if codec == "h264":
        context.options = {
            "preset": "ultrafast",
            "bf": str(b_frames),
            "sc_threshold": "0",
            "x264-params": "scenecut=0",
        }
    else:
        context.options = {
            "preset": "ultrafast",
            "x265-params": f"log-level=none:keyint={gop}:min-keyint={gop}:bframes={b_frames}:open-gop=0",
        }
    packets = []
    for number in range(frames):
        picture = np.full((HEIGHT * 3 // 2, width), 128, np.uint8)
        picture[:HEIGHT] = 20 + number % 200
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = number
        packets += context.encode(frame)
    packets += context.encode(None)
    return tuple((p.pts, p.dts, bool(p.is_keyframe), bytes(p)) for p in packets)


def packets(
    frames: int,
    *,
    start_ns: int = 100 * NS_PER_S,
    seq: int = 0,
    codec: Codec = "h264",
    gop: int = 10,
    b_frames: int = 0,
    width: int = WIDTH,
) -> list[Packet]:
    """So many access units at FPS; the first decodes at start_ns."""
    coded = _encoded(codec, frames, gop, b_frames, width)
    first_dts = coded[0][1]
    return [
        Packet(
            seq=seq + index,
            t_ns=start_ns + (dts - first_dts) * FRAME_NS,
            duration_ns=FRAME_NS,
            is_key=is_key,
            data=data,
            codec=codec,
            cts_ns=(pts - dts) * FRAME_NS,
        )
        for index, (pts, dts, is_key, data) in enumerate(coded)
    ]


@cache
def jpeg(shade: int = 90) -> bytes:
    context: Any = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 32, 24, "yuvj420p", Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.full((36, 32), shade, np.uint8), format="yuvj420p")
    frame.pts = 0
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])


def event(
    start_ns: int,
    *,
    last_ns: int | None = None,
    end_ns: int | None = None,
    rev: int = 1,
    picture_ns: int | None = None,
    event_id: str = "",
    kind: EventKind = EventKind.MOTION,
    reason: EndReason = EndReason.QUIET,
) -> Event:
    """A state of an event; ended where end_ns is given. picture_ns: the thumbnail's moment, None for no picture."""
    last = Moment(end_ns or last_ns or start_ns, 0)
    phase = Phase.END if end_ns is not None else Phase.START if rev == 1 else Phase.UPDATE
    return Event(
        id=event_id or new_ulid(1_700_000_000_000 + start_ns // 1_000_000, start_ns),
        rev=rev,
        phase=phase,
        kind=kind,
        start=Moment(start_ns, 0),
        last=last,
        peak=Moment(picture_ns or start_ns, 0),
        score=0.5,
        boxes=(Box(0.1, 0.2, 0.3, 0.4),),
        end=last if end_ns is not None else None,
        end_reason=reason if end_ns is not None else None,
        thumbnail=None if picture_ns is None else Thumbnail(jpeg(), 32, 24, Moment(picture_ns, 0)),
    )


class CountingBell:
    def __init__(self) -> None:
        self.rings = 0

    def ring(self) -> None:
        self.rings += 1


@dataclass
class Rig:
    """A storage stepped by hand: feed packets and events, time follows the packets."""

    settings: Settings
    clock: SimulatedClock
    ring: PacketRing
    board: EventBoard
    acks: AckBox
    bell: CountingBell
    storage: Storage
    next_seq: int = 0

    @property
    def directory(self) -> Path:
        return self.settings.clips.directory

    @property
    def reader(self) -> LedgerReader:
        return LedgerReader(self.directory)

    @property
    def now_s(self) -> float:
        return self.clock.boot_ns() / NS_PER_S

    def film(self, seconds: float, **how: Any) -> list[Packet]:
        """The camera delivers so many seconds of video from now on; storage steps at each packet."""
        shot = packets(round(seconds * FPS), start_ns=self.clock.boot_ns(), seq=self.next_seq, **how)
        self.next_seq += len(shot)
        for packet in shot:
            self.clock.move_to(packet.t_ns + FRAME_NS)
            self.ring.put(packet)
            self.storage.step(0)
        return shot

    def happen(self, *states: Event) -> None:
        for state in states:
            self.board.put(state)
        self.storage.step(0)

    def event_of(self, seconds: float, post_s: float = 0.0) -> Event:
        """Film an event from now on, that ends after so many seconds, and post_s more."""
        begin = event(self.clock.boot_ns(), picture_ns=self.clock.boot_ns())
        self.happen(begin)
        self.film(seconds)
        last = replace(
            begin,
            rev=2,
            phase=Phase.END,
            last=Moment(self.clock.boot_ns() - FRAME_NS, 0),
            end=Moment(self.clock.boot_ns() - FRAME_NS, 0),
            end_reason=EndReason.QUIET,
        )
        self.happen(last)
        self.film(post_s)
        return last


def make_rig(directory: Path, *, disk: Disk | None = None, clock: SimulatedClock | None = None, **clips: Any) -> Rig:
    outbox = {"reserve_mb": 0, **clips.pop("outbox", {})}
    settings = load_settings(
        environ={},
        overrides={
            "clips": {"directory": directory, "pre_roll_s": 2, "post_roll_s": 2, "min_free_mb": 0, **clips},
            "outbox": outbox,
        },
    )
    clock = clock or SimulatedClock()
    doorbell = Doorbell()
    ring, board, acks, bell = (
        PacketRing(4_000_000, doorbell),
        EventBoard(doorbell=doorbell),
        AckBox(doorbell),
        CountingBell(),
    )
    storage = Storage(settings, clock, ring, board, acks, doorbell, bell, disk or Disk())
    return Rig(settings, clock, ring, board, acks, bell, storage)


def frames_of(clip: bytes) -> Iterator[tuple[float, int]]:
    """(presentation time in s, brightness) of each decoded frame."""
    with av.open(io.BytesIO(clip), "r") as container:
        for frame in container.decode(video=0):
            yield float(frame.time or 0), int(frame.to_ndarray(format="gray")[: HEIGHT // 2].mean())


def all_true(directory: Path) -> list[str]:
    """Where the ledger of a closed node and its clips disagree: nothing, if all is well. Decodes every clip."""
    reader = LedgerReader(directory)
    found = list(verify_index(directory, reader))
    for clip in reader.clips():
        found += verify_clip(directory / "clips" / clip.file, clip, decode_all=True)
    reader.close()
    return found
