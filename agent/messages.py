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
Sha256 = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the bytes, hexadecimal.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    ),
]
Share = Annotated[float, Field(ge=0, le=1)]
LATE_AFTER_S = 30.0


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Envelope(_Message):
    """What stands at the top of every JSON message of the event stream; a consumer's key is (node, epoch, seq)."""

    v: int = Field(VERSION, description="Version of the payload.")
    site: str = Field(description="Id of the site.", examples=["ward-12"])
    node: str = Field(description="Id of the node.", examples=["entrance"])
    boot_id: str = Field(
        description="Id of the boot that t_ns belongs to.", examples=["3c1f7a52-6a0e-4b0b-9d57-5f7d6e2a9c11"]
    )
    epoch: Ulid = Field(description="The ledger's birth; seq starts anew with each epoch.")
    seq: int = Field(ge=1, description="Number of the message, contiguous within the epoch.", examples=[4711])
    time: Time = Field(description="When it happened, as good as clock_synced says.")
    t_ns: int = Field(
        description="When it happened: CLOCK_BOOTTIME of boot_id, nanoseconds.", examples=[86_400_123_456_789]
    )
    clock_synced: bool = Field(
        description="Whether a time service disciplined the clock when `time` was written.", examples=[True]
    )
    late: bool = Field(
        description="Sent more than 30 s after it happened; automations should ignore it.", examples=[False]
    )


class ThumbRef(_Message):
    """The picture of an event, sent on `thumb`."""

    sha256: Sha256
    bytes: int = Field(ge=1, description="Size of the JPEG.", examples=[20_480])
    width: int = Field(ge=1, description="Pixels.", examples=[480])
    height: int = Field(ge=1, description="Pixels.", examples=[270])
    time: Time = Field(description="The frame it was cut from.")


class ClipRef(_Message):
    """The clip that shows an event."""

    id: Ulid = Field(description="Id of the clip, as `clip` announces it when it is final.")


class EventBody(_Message):
    """One event, whole, at one revision."""

    id: Ulid = Field(description="The same for all revisions of one event.")
    rev: int = Field(ge=1, description="1 for the start, then rising; the highest is the truth.", examples=[2])
    phase: Literal["start", "update", "end"] = Field(description="Where the event stands.")
    kind: Literal[
        "motion", "tamper", "camera-lost", "camera-back", "out-of-hours", "unattended", "manual", "test"
    ] = Field(description="What it is about.")
    start: Time = Field(description="The first frame that moved.")
    end: Time | None = Field(description="The last frame that moved; null while it goes on.")
    end_reason: Literal["quiet", "max_length", "shutdown", "camera_lost", "power_loss", "disarmed"] | None = Field(
        description="Why it ended; null while it goes on."
    )
    score: Share = Field(description="How sure the detector was at its best, 0..1.", examples=[0.82])
    boxes: list[tuple[Share, Share, Share, Share]] = Field(
        description="What moved at peak_time: [x, y, width, height] in shares of the picture, largest first.",
        examples=[[[0.41, 0.22, 0.13, 0.47]]],
    )
    zones: list[str] = Field(description="Ids of the detection zones touched so far.", examples=[["counter-2"]])
    peak_time: Time = Field(description="The frame of score, boxes and thumbnail.")
    thumb: ThumbRef | None = Field(description="The picture, sent on `thumb`; null where there is none.")
    clip: ClipRef | None = Field(description="The clip being recorded; null where none is.")
    rate_per_min: int | None = Field(
        None,
        ge=1,
        description="Of an event that gathers a storm of movements (trees in a gale): how many began within its "
        "busiest minute; null otherwise.",
        examples=[7],
    )


class ThumbBody(_Message):
    """What stands beside a JPEG on `thumb`: its MQTT 5 user properties."""

    event_id: Ulid = Field(description="The event it shows.")
    rev: int = Field(ge=1, description="The revision of the event that brought it.", examples=[2])
    sha256: Sha256


class ClipBody(_Message):
    """A clip became final."""

    id: Ulid
    event_ids: list[Ulid] = Field(description="The events it shows.", examples=[["01JD9ZV6Q2M4S8T1C3R5W7Y9AB"]])
    start: Time = Field(description="The first frame of the clip.")
    duration_s: float = Field(ge=0, description="Seconds.", examples=[14.2])
    bytes: int = Field(ge=0, description="Size of the file.", examples=[3_612_448])
    sha256: Sha256
    flags: list[Literal["gap", "recovered", "continues", "continued"]] = Field(
        description="gap: frames are missing; recovered: cut by a power loss; continues, continued: one of several.",
        examples=[[]],
    )


class LossBody(_Message):
    """An explained gap: these sequence numbers will not be sent."""

    from_seq: int = Field(ge=1, description="The first number of the gap.", examples=[4712])
    to_seq: int = Field(ge=1, description="The last number of the gap.", examples=[4790])
    kind: str = Field(description="What was lost: event, thumb, clip or mixed.", examples=["thumb"])
    reason: str = Field(description="Why, in words.", examples=["outbox full"])


class EventMessage(Envelope, EventBody):
    """`B/event` and `B/event/last`."""


class ClipMessage(Envelope, ClipBody):
    """`B/clip`."""


class LossMessage(Envelope, LossBody):
    """`B/loss`."""


class StateMessage(_Message):
    """`B/state`, retained; as the connection's will with state `lost`."""

    v: int = Field(VERSION, description="Version of the payload.")
    state: Literal["online", "degraded", "stopped", "lost"] = Field(
        description="degraded: it works with trouble; stopped: shut down in order; lost: the connection broke."
    )
    session: Ulid = Field(description="Id of the connection: a `lost` of another session than the last is late.")
    time: Time = Field(description="When it was said; for `lost`: when the connection was made.")
    reasons: list[str] = Field(
        description="Why it is not simply online, in plain words.", examples=[["disk: 480 MB free, 500 MB wanted"]]
    )


class ArmedMessage(_Message):
    """`B/armed`, retained: whether the node raises events of what moves."""

    v: int = Field(VERSION, description="Version of the payload.")
    armed: bool = Field(description="false: what moves is neither told nor recorded.", examples=[True])
    since: Time | None = Field(None, description="When that was asked for; null: it never was, the node came armed.")
    by: str | None = Field(None, description="The client that asked for it.", examples=["home-assistant"])
    clock_synced: bool | None = Field(
        None, description="Whether a time service disciplined the clock at `since`.", examples=[True]
    )


class ZoneMeta(_Message):
    """A zone as it is configured."""

    id: str = Field(description="Id, as events name it.", examples=["counter-2"])
    name: str = Field(description="For people, any script.", examples=["Quầy số 2"])
    kind: str = Field(description="detect, ignore, privacy (later also presence).", examples=["detect"])
    polygon: list[tuple[Share, Share]] = Field(
        description="Corners in shares of the picture, (0, 0) top left.", examples=[[[0, 0], [1, 0], [1, 0.5]]]
    )


class LineMeta(_Message):
    """A counting line as it is configured."""

    id: str = Field(description="Id.", examples=["door"])
    name: str = Field(description="For people, any script.", examples=["Cửa vào"])
    points: list[tuple[Share, Share]] = Field(
        description="From, to, in shares of the picture; who crosses it from left to right goes in.",
        examples=[[[0.1, 0.8], [0.9, 0.8]]],
    )


class CameraMeta(_Message):
    """The camera and what it delivers."""

    backend: str = Field(description="fake, video, picamera2.", examples=["picamera2"])
    description: str = Field(description="As the camera names itself.", examples=["imx708 /base/soc/i2c0mux"])
    codec: str = Field(description="Of the main stream and the clips.", examples=["h264"])
    width: int = Field(ge=0, description="Main stream, pixels; 0 while no camera answered.", examples=[1280])
    height: int = Field(ge=0, description="Main stream, pixels; 0 while no camera answered.", examples=[720])
    fps: float = Field(ge=0, description="Main stream, frames per second.", examples=[15.0])


class LimitsMeta(_Message):
    """What may be asked of the node."""

    max_payload_bytes: int = Field(ge=0, description="Largest message to the node, bytes.", examples=[65536])
    replay_days: float = Field(ge=0, description="Delivered messages stay so long, days.", examples=[14.0])
    replay_mb: int = Field(ge=0, description="Delivered thumbnails kept, MB.", examples=[256])


class MetaMessage(_Message):
    """`B/meta`, retained: the birth document, what this node is."""

    v: int = Field(VERSION, description="Version of the payload.")
    site: str = Field(description="Id of the site.", examples=["ward-12"])
    node: str = Field(description="Id of the node.", examples=["entrance"])
    name: str = Field(description="For people, any script; the id where none was given.", examples=["Cửa chính"])
    location: str = Field(description="Where it hangs, for people.", examples=["Tầng 1, sảnh"])
    timezone: str = Field(description="IANA time zone of the site.", examples=["Asia/Ho_Chi_Minh"])
    agent_version: str = Field(description="Version of the agent.", examples=["0.1.0"])
    hardware: str | None = Field(None, description="The board.", examples=["Raspberry Pi 4 Model B Rev 1.4"])
    camera: CameraMeta = Field(description="The camera and what it delivers.")
    zones: list[ZoneMeta] = Field(description="Detection zones and masks.", examples=[[]])
    lines: list[LineMeta] = Field([], description="Counting lines.", examples=[[]])
    capabilities: list[str] = Field(
        description="What this node does, for pages to know what to offer.", examples=[["motion", "clips"]]
    )
    schema_version: str = Field(description="Version of the payloads' schemas.", examples=["1.0"])
    limits: LimitsMeta = Field(description="What may be asked of the node.")


class RingHealth(_Message):
    """The clips on the node's disk."""

    clips: int | None = Field(None, ge=0, description="Number of clips.", examples=[412])
    bytes: int | None = Field(None, ge=0, description="All clips together.", examples=[7_812_340_992])
    oldest: Time | None = Field(None, description="Start of the oldest clip.")


class DiskHealth(_Message):
    """What the node asks of its disk, and how it answers."""

    written_mb: float | None = Field(
        None, ge=0, description="Written by this process since its start, MB.", examples=[812.4]
    )
    written_mb_per_day: float | None = Field(
        None, ge=0, description="The same per day, after the first hour.", examples=[2410.0]
    )
    life_years: float | None = Field(
        None, ge=0, description="How long a new card of clips.card_endurance_tb would last so.", examples=[11.4]
    )
    slowest_sync_ms: float | None = Field(
        None, ge=0, description="The slowest sync or commit since the start.", examples=[184.0]
    )
    sync_stalls: int | None = Field(None, ge=0, description="Syncs and commits that took above 1 s.", examples=[0])
    clips_untold: int | None = Field(
        None, ge=0, description="Clips deleted before the broker was told of them.", examples=[0]
    )


class OutboxHealth(_Message):
    """Messages owed to the broker."""

    depth: int | None = Field(None, ge=0, description="Messages not yet delivered.", examples=[0])
    bytes: int | None = Field(None, ge=0, description="Their size.", examples=[0])
    oldest_age_s: float | None = Field(None, ge=0, description="Age of the oldest, seconds.", examples=[0.0])
    evicted: int | None = Field(None, ge=0, description="Given up since the start because it was full.", examples=[0])


class HeadHealth(_Message):
    """The newest message of the event stream: a consumer that has less has a gap at the tail."""

    epoch: str = Field(
        description="ULID of the ledger's birth; empty while there is no ledger.",
        examples=["01JD9ZV6Q2M4S8T1C3R5W7Y9AB"],
    )
    seq: int = Field(ge=0, description="Highest number given; 0 while there is none.", examples=[4711])


class ClockHealth(_Message):
    """Whether `time` can be believed."""

    synced: bool | None = Field(None, description="A time service disciplines the clock.", examples=[True])
    source: str | None = Field(None, description="Where the time comes from.", examples=["kernel"])


class LinkHealth(_Message):
    """The connection to the broker."""

    protocol: str | None = Field(None, description="MQTT version in use.", examples=["5"])
    delivered: int | None = Field(None, ge=0, description="Messages the broker took since the start.", examples=[88])
    refused: int | None = Field(None, ge=0, description="Messages it refused since the start.", examples=[0])
    reconnects: int | None = Field(None, ge=0, description="Connections made after the first one.", examples=[2])
    warning: str | None = Field(
        None,
        description="What should be known of the connection but is no trouble.",
        examples=["MQTT 3.1.1: this broker cannot say what it refuses"],
    )


class CommandsHealth(_Message):
    """What was asked of the node since its start."""

    accepted: int | None = Field(None, ge=0, description="Commands executed.", examples=[12])
    refused: int | None = Field(None, ge=0, description="Commands refused, for whatever reason.", examples=[0])
    live_frames: int | None = Field(None, ge=0, description="Live pictures made under leases.", examples=[0])


class HealthMessage(_Message):
    """`B/health`, retained: each 30 s and on each change of the verdict; null where the board does not tell."""

    v: int = Field(VERSION, description="Version of the payload.")
    time: Time = Field(description="When it was measured.")
    boot_id: str = Field(description="Id of this boot.", examples=["3c1f7a52-6a0e-4b0b-9d57-5f7d6e2a9c11"])
    verdict: Literal["online", "degraded"] = Field(description="As in `state`.")
    reasons: list[str] = Field(description="Why degraded, in plain words.", examples=[[]])
    uptime_s: float = Field(ge=0, description="Of the agent, seconds.", examples=[86400.0])
    boot_uptime_s: float | None = Field(None, ge=0, description="Of the board, seconds.", examples=[90000.0])
    fps: float | None = Field(None, ge=0, description="Frames analysed per second.", examples=[15.0])
    frames_skipped: int | None = Field(
        None, ge=0, description="Overwritten before analysis, since the start.", examples=[0]
    )
    learning: bool | None = Field(
        None, description="The detector does not know its background yet.", examples=[False]
    )
    light: str | None = Field(None, description="The detector's word about the light.", examples=["steady"])
    recording: bool | None = Field(None, description="A clip is being written.", examples=[False])
    arming: str | None = Field(
        None,
        description="Whether events are raised, in words; for programs it stands in `armed`.",
        examples=["disarmed since 2026-11-22T03:15:07.250Z by home-assistant"],
    )
    clip_gaps: int | None = Field(None, ge=0, description="Gaps in clips since the start.", examples=[0])
    events_lost: int | None = Field(None, ge=0, description="Events lost inside the node; 0 for ever.", examples=[0])
    cpu_percent: float | None = Field(
        None, ge=0, description="The agent's, of one core, since the last message.", examples=[23.5]
    )
    load_1m: float | None = Field(None, ge=0, description="Load average of one minute.", examples=[0.7])
    memory_mb: float | None = Field(None, ge=0, description="Resident memory of the agent, MB.", examples=[104.0])
    memory_free_mb: float | None = Field(None, ge=0, description="Available on the board, MB.", examples=[512.0])
    temperature_c: float | None = Field(None, description="Of the processor, degrees Celsius.", examples=[56.4])
    throttled: list[str] | None = Field(
        None, description="Raspberry Pi throttle flags in words.", examples=[["under-voltage"]]
    )
    wifi_dbm: float | None = Field(None, description="Signal of the wireless network, dBm.", examples=[-58.0])
    disk_free_mb: float | None = Field(None, ge=0, description="Of the clips' file system, MB.", examples=[48211.0])
    ring: RingHealth = Field(RingHealth(), description="The clips on the node's disk.")
    disk: DiskHealth = Field(DiskHealth(), description="What is asked of the disk, and how it answers.")
    outbox: OutboxHealth = Field(OutboxHealth(), description="Messages owed to the broker.")
    head: HeadHealth = Field(HeadHealth(epoch="", seq=0), description="The newest message of the event stream.")
    clock: ClockHealth = Field(ClockHealth(), description="Whether times can be believed.")
    commands: CommandsHealth = Field(CommandsHealth(), description="What was asked of the node.")
    link: LinkHealth = Field(LinkHealth(), description="The connection to the broker.")


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
        rate_per_min=event.rate_per_min,
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


def message_bytes(row: OutboxRow, *, site: str, node: str, epoch: str, now_wall_ns: int) -> bytes:
    """The whole JSON message of an event, clip or loss row: envelope and body in one object, compact UTF-8.

    row.body is taken as it was validated when it was written; it is not parsed again (each row is sent more
    than once on a bad line).
    """
    head = envelope(row, site=site, node=node, epoch=epoch, now_wall_ns=now_wall_ns).model_dump_json()
    body = row.body.strip()
    return (head if body == "{}" else f"{head[:-1]},{body[1:]}").encode()


def thumb_properties(row: OutboxRow) -> ThumbProperties:
    """What goes beside the JPEG of a thumb row."""
    body = ThumbBody.model_validate_json(row.body)
    return ThumbProperties(
        event_id=body.event_id, rev=str(body.rev), seq=str(row.seq), time=rfc3339(row.wall_ns), sha256=body.sha256
    )


def to_bytes(message: BaseModel) -> bytes:
    """Compact JSON in UTF-8, names in any script kept as they are."""
    return message.model_dump_json().encode()


JSON_PAYLOADS: dict[str, type[BaseModel]] = {
    "state": StateMessage,
    "meta": MetaMessage,
    "health": HealthMessage,
    "armed": ArmedMessage,
    "event": EventMessage,
    "event/last": EventMessage,
    "clip": ClipMessage,
    "loss": LossMessage,
}
"""Topic below the node's base -> what stands there. `motion` is the bare word ON or OFF; thumbs are JPEGs."""


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
