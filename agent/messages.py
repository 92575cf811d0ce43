"""The payloads of MQTT as pydantic models, and how they are made from the model's values. Touches nothing.

Every field's description, unit and example stand here; schemas are generated from these classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.clock import rfc3339
from agent.model import Event, OutboxRow
from agent.topics import VERSION

Time = Annotated[
    str,
    Field(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        description="UTC, RFC 3339 with milliseconds.",
        examples=["2026-11-22T03:15:07.250Z"],
    ),
]
Ulid = Annotated[
    str,
    Field(pattern=r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$", description="A ULID.", examples=["01JD9ZV6Q2M4S8T1C3R5W7Y9AB"]),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the bytes, hexadecimal.")]
Share = Annotated[float, Field(ge=0, le=1)]
LATE_AFTER_S = 30.0


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Envelope(_Message):
    """What stands at the top of every JSON message of the event stream; a consumer's key is (node, epoch, seq)."""

    v: int = Field(VERSION, description="Version of the payload.")
    site: str = Field(description="Id of the site.", examples=["ward-12"])
    node: str = Field(description="Id of the node.", examples=["entrance"])
    boot_id: str = Field(description="Id of the boot that t_ns belongs to.")
    epoch: Ulid = Field(description="The ledger's birth; seq starts anew with each epoch.")
    seq: int = Field(ge=1, description="Number of the message, contiguous within the epoch.", examples=[4711])
    time: Time = Field(description="When it happened, as good as clock_synced says.")
    t_ns: int = Field(description="When it happened: CLOCK_BOOTTIME of boot_id, ns.")
    clock_synced: bool = Field(description="Whether a time service disciplined the clock when `time` was written.")
    late: bool = Field(description="Sent more than 30 s after it happened; automations should ignore it.")


class ThumbRef(_Message):
    """The picture of an event, sent on `thumb`."""

    sha256: Sha256
    bytes: int = Field(ge=1, description="Size of the JPEG.")
    width: int = Field(ge=1, description="Pixels.")
    height: int = Field(ge=1, description="Pixels.")
    time: Time = Field(description="The frame it was cut from.")


class ClipRef(_Message):
    """The clip that shows an event."""

    id: Ulid


class EventBody(_Message):
    """One event, whole, at one revision."""

    id: Ulid = Field(description="The same for all revisions of one event.")
    rev: int = Field(ge=1, description="1 for the start, then rising; the highest is the truth.")
    phase: Literal["start", "update", "end"]
    kind: Literal["motion", "tamper", "camera-lost", "camera-back", "out-of-hours", "unattended", "manual", "test"]
    start: Time = Field(description="The first frame that moved.")
    end: Time | None = Field(description="The last frame that moved; null while it goes on.")
    end_reason: Literal["quiet", "max_length", "shutdown", "camera_lost", "power_loss"] | None
    score: Share = Field(description="How sure the detector was at its best, 0..1.")
    boxes: list[tuple[Share, Share, Share, Share]] = Field(
        description="What moved at peak_time: [x, y, width, height] in shares of the picture, largest first."
    )
    zones: list[str] = Field(description="Ids of the detection zones touched so far.")
    peak_time: Time = Field(description="The frame of score, boxes and thumbnail.")
    thumb: ThumbRef | None
    clip: ClipRef | None = Field(description="The clip being recorded; null where none is.")


class ThumbBody(_Message):
    """What stands beside a JPEG on `thumb`: its MQTT 5 user properties."""

    event_id: Ulid
    rev: int = Field(ge=1)
    sha256: Sha256


class ClipBody(_Message):
    """A clip became final."""

    id: Ulid
    event_ids: list[Ulid] = Field(description="The events it shows.")
    start: Time = Field(description="The first frame of the clip.")
    duration_s: float = Field(ge=0, description="Seconds.", examples=[14.2])
    bytes: int = Field(ge=0, description="Size of the file.")
    sha256: Sha256
    flags: list[Literal["gap", "recovered", "continues", "continued"]] = Field(
        description="gap: frames are missing; recovered: cut by a power loss; continues, continued: one of several."
    )


class LossBody(_Message):
    """An explained gap: these sequence numbers will not be sent."""

    from_seq: int = Field(ge=1)
    to_seq: int = Field(ge=1)
    kind: str = Field(description="What was lost: event, thumb, clip or mixed.")
    reason: str = Field(description="Why, in words.", examples=["outbox full"])


class EventMessage(Envelope, EventBody):
    """`B/event` and `B/event/last`."""


class ClipMessage(Envelope, ClipBody):
    """`B/clip`."""


class LossMessage(Envelope, LossBody):
    """`B/loss`."""


class ThumbProperties(_Message):
    """The MQTT 5 user properties of `B/thumb` and `B/thumb/last`, all strings; also in the JPEG's comment."""

    event_id: Ulid
    rev: str
    seq: str
    time: Time
    sha256: Sha256


def event_body(
    event: Event, *, wall: Callable[[int], int], thumb_sha256: str | None, clip_id: str | None
) -> EventBody:
    """The payload of one revision. wall: boot-clock ns to UNIX ns."""
    thumb = event.thumbnail
    return EventBody(
        id=event.id,
        rev=event.rev,
        phase=event.phase.value,
        kind=event.kind.value,
        start=rfc3339(wall(event.start.t_ns)),
        end=None if event.end is None else rfc3339(wall(event.end.t_ns)),
        end_reason=None if event.end_reason is None else event.end_reason.value,
        score=round(event.score, 3),
        boxes=[(round(b.x, 4), round(b.y, 4), round(b.w, 4), round(b.h, 4)) for b in event.boxes],
        zones=list(event.zones),
        peak_time=rfc3339(wall(event.peak.t_ns)),
        thumb=None
        if thumb is None or thumb_sha256 is None
        else ThumbRef(
            sha256=thumb_sha256,
            bytes=len(thumb.jpeg),
            width=thumb.width,
            height=thumb.height,
            time=rfc3339(wall(thumb.moment.t_ns)),
        ),
        clip=None if clip_id is None else ClipRef(id=clip_id),
    )


def envelope(row: OutboxRow, *, site: str, node: str, epoch: str, now_wall_ns: int) -> Envelope:
    """The envelope of row as it is sent at now_wall_ns."""
    return Envelope(
        site=site,
        node=node,
        boot_id=row.boot_id,
        epoch=epoch,
        seq=row.seq,
        time=rfc3339(row.wall_ns),
        t_ns=row.t_ns,
        clock_synced=row.clock_synced,
        late=now_wall_ns - row.wall_ns > LATE_AFTER_S * 1e9,
    )


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
