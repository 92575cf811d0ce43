"""The values that cross threads and rooms: frozen, whole, with their units. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.uint8]
Codec = Literal["h264", "hevc"]

NS_PER_S = 1_000_000_000


class Box(NamedTuple):
    """A rectangle in shares of the picture, 0..1; x and y are its top left corner."""

    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, slots=True)
class Moment:
    """One frame's place in the stream. t_ns: boot clock; frame: number of the frame, from 0."""

    t_ns: int
    frame: int


@dataclass(frozen=True, slots=True)
class SensorReading:
    """What the sensor says of its own settings for one frame; None where the camera does not tell."""

    exposure_us: float | None = None
    analogue_gain: float | None = None
    colour_gains: tuple[float, float] | None = None
    lux: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One lores picture, privacy masks already burned in.

    seq: counts frames from 0 since the camera was started, without holes unless the camera lost some.
    t_ns: boot clock, presentation time, strictly increasing.
    y: uint8 (h, w); u, v: uint8 (h/2, w/2), all limited range BT.601, C-contiguous, read-only, no stride
    padding. h and w are even.
    """

    seq: int
    t_ns: int
    y: Plane
    u: Plane
    v: Plane
    sensor: SensorReading | None = None

    @property
    def moment(self) -> Moment:
        return Moment(self.t_ns, self.seq)


@dataclass(frozen=True, slots=True)
class Packet:
    """One encoded access unit of the main stream, in decode order.

    data: Annex B (start codes); a keyframe carries its parameter sets (SPS/PPS, for HEVC also VPS) in front.
    t_ns: boot clock, decode time, strictly increasing. cts_ns: what to add for the presentation time (0
    unless the stream has B-frames). seq counts packets from 0 since the camera was started.
    """

    seq: int
    t_ns: int
    duration_ns: int
    is_key: bool
    data: bytes
    codec: Codec = "h264"
    cts_ns: int = 0

    @property
    def pts_ns(self) -> int:
        return self.t_ns + self.cts_ns


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a started camera delivers. max_gop_s: the longest time from one keyframe to the next."""

    codec: Codec
    width: int
    height: int
    fps: float
    lores_width: int
    lores_height: int
    max_gop_s: float
    description: str


@dataclass(frozen=True, slots=True)
class Motion:
    """What the detector says of one frame.

    score: 0..1, how sure it is that a thing moved in the zones; active: its own word, before events add
    quiet time and merging; boxes: of the moving things, largest first; zones: ids of the detection zones
    touched (empty when none are configured); learning: the background is not known yet, so active is False;
    light_changed: this frame differs from the last by the light of a large part of the picture; since: the first
    frame of the movement that made it active (before confirmation), None while it is not.
    """

    seq: int
    t_ns: int
    score: float
    active: bool
    boxes: tuple[Box, ...] = ()
    zones: tuple[str, ...] = ()
    learning: bool = False
    light_changed: bool = False
    since: Moment | None = None

    @property
    def moment(self) -> Moment:
        return Moment(self.t_ns, self.seq)


class Phase(StrEnum):
    START = "start"
    UPDATE = "update"
    END = "end"


class EventKind(StrEnum):
    MOTION = "motion"
    TAMPER = "tamper"
    CAMERA_LOST = "camera-lost"
    CAMERA_BACK = "camera-back"
    OUT_OF_HOURS = "out-of-hours"
    UNATTENDED = "unattended"
    MANUAL = "manual"
    TEST = "test"


class EndReason(StrEnum):
    QUIET = "quiet"
    MAX_LENGTH = "max_length"
    SHUTDOWN = "shutdown"
    CAMERA_LOST = "camera_lost"
    POWER_LOSS = "power_loss"
    DISARMED = "disarmed"


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A JPEG of the frame that scored, alone or between what was before and after. width, height in pixels."""

    jpeg: bytes = field(repr=False)
    width: int
    height: int
    moment: Moment


@dataclass(frozen=True, slots=True)
class Event:
    """The whole state of one event at one revision; never a change to an earlier one.

    start: the first frame that moved (before confirmation); last: the newest frame that moved; end: None
    while it goes on, then equal to last; peak: the frame of the thumbnail and of score and boxes. rate_per_min: of
    an event that gathers a storm of movements, how many began within its busiest minute so far; None otherwise.
    """

    id: str
    rev: int
    phase: Phase
    kind: EventKind
    start: Moment
    last: Moment
    peak: Moment
    score: float
    boxes: tuple[Box, ...] = ()
    zones: tuple[str, ...] = ()
    end: Moment | None = None
    end_reason: EndReason | None = None
    thumbnail: Thumbnail | None = field(default=None, repr=False)
    rate_per_min: int | None = None


class OutboxKind(StrEnum):
    EVENT = "event"
    THUMB = "thumb"
    CLIP = "clip"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One message owed to the broker, as the ledger keeps it; the link adds the envelope when it sends.

    seq: contiguous within the ledger's epoch. t_ns: boot clock of boot boot_id when it happened;
    wall_ns: UNIX time of the same moment, as good as clock_synced says. body: the JSON object that stands
    below the envelope (for a thumb: its user properties). blob: the JPEG of a thumb, else None.
    """

    seq: int
    kind: OutboxKind
    boot_id: str
    t_ns: int
    wall_ns: int
    clock_synced: bool
    body: str
    blob: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Ack:
    """What became of one outbox row at the broker: delivered (a PUBACK with a success code) or refused.

    poison: this broker will never take the row (too large for it), so it should leave the queue.
    """

    seq: int
    delivered: bool
    reason: str = ""
    poison: bool = False
