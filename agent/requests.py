"""What may be asked of a node over MQTT and how it answers, as pydantic models. Touches nothing.

Every field's description, unit and bounds stand here; schemas are generated from these classes.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from agent.messages import Sha256, Time, Ulid
from agent.strict_json import MAX_INTEGER
from agent.topics import VERSION

RequestId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Chosen by the client, new for each command; the same id twice gives the same answer.",
        examples=["01JD9ZV6Q2M4S8T1C3R5W7Y9AB"],
    ),
]
ClientId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Who asks; the answer comes on `B/rsp/{client}`.",
        examples=["dashboard-1"],
    ),
]
Seq = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
PAGE_ROWS = 100
REPLAY_ROWS = 1000


def _moment(text: str) -> str:
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("should end in Z or an offset such as +07:00")
    return text


Moment = Annotated[
    str,
    Field(max_length=40, description="RFC 3339 with Z or an offset.", examples=["2026-11-22T03:15:07Z"]),
    AfterValidator(_moment),
]


def wall_ns_of(moment: str) -> int:
    """UNIX ns of a Moment; of one that 64 bits do not hold (before 1678, after 2261), the nearest that they do."""
    wall_ns = round(dt.datetime.fromisoformat(moment).timestamp() * 1e9)
    return max(-MAX_INTEGER, min(MAX_INTEGER, wall_ns))


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Request(_Request):
    """`B/cmd/{verb}`: a command."""

    id: RequestId
    client: ClientId
    args: dict[str, Any] = Field({}, description="As the verb wants them.", examples=[{}])
    expires: Moment | None = Field(None, description="Not executed after this time; null: no limit.")


class SignedText(Request):
    """What stands, as JSON text, in `command` of a signed command."""

    verb: str = Field(max_length=64, description="The verb; must be the topic's.", examples=["clip.get"])
    node: str = Field(max_length=128, description="site/node it is meant for.", examples=["ward-12/entrance"])
    counter: int = Field(ge=1, le=MAX_INTEGER, description="Higher with each command of one key.", examples=[42])


class SignedDesired(_Request):
    """What stands, as JSON text, in `command` of a signed `config/desired`; its rev is its counter."""

    rev: int = Field(ge=1, le=MAX_INTEGER, description="Higher with each change.")
    config: dict[str, Any] = Field(description="As in ConfigDesired.")
    verb: Literal["config/desired"]
    node: str = Field(max_length=128, description="site/node it is meant for.")


class Signed(_Request):
    """A signed command: the exact text that was signed, so that nobody has to agree on a canonical form."""

    command: str = Field(description="JSON text of a SignedText.")
    signature: str = Field(max_length=100, description="Ed25519 over the UTF-8 of `command`, Base64.")


class NoArgs(_Request):
    """The verb takes none."""


class SnapshotArgs(_Request):
    width: int = Field(640, ge=32, le=4096, description="Pixels; never more than the stream has.")


class LiveArgs(_Request):
    fps: float = Field(2, gt=0, le=60, description="Frames per second; capped by the node.")
    width: int = Field(640, ge=32, le=4096, description="Pixels; capped by the node.")
    ttl_s: float = Field(15, ge=0, le=3600, description="Seconds until the lease ends; capped; 0 ends it now.")


class ListArgs(_Request):
    from_: Moment | None = Field(None, alias="from", description="Not older than this.")
    to: Moment | None = Field(None, description="Older than this.")
    limit: int = Field(50, ge=1, le=PAGE_ROWS, description="Rows of one page, newest first.")
    cursor: int | None = Field(None, ge=1, le=MAX_INTEGER, description="`next` of the page before.")


class ClipArgs(_Request):
    clip_id: Ulid


class ClipGetArgs(_Request):
    clip_id: Ulid
    offset: int = Field(0, ge=0, le=MAX_INTEGER, description="First byte wanted.")
    length: int | None = Field(None, ge=1, le=MAX_INTEGER, description="Bytes wanted; null: to the end.")


class ClipPutArgs(_Request):
    clip_id: Ulid
    url: str = Field(
        min_length=8,
        max_length=4096,
        description="Presigned URL for an HTTP PUT.",
        examples=["https://s3.example.org/clips/a.mp4?X-Amz-Signature=0a1b"],
    )
    content_type: str = Field(
        "", pattern=r"^[A-Za-z0-9!#$&^_.+/-]{0,100}$", description="Where the URL was signed with one."
    )
    offset: int = Field(0, ge=0, le=MAX_INTEGER, description="First byte sent: of one part of a multipart upload.")
    length: int | None = Field(None, ge=1, le=MAX_INTEGER, description="Bytes sent; null: to the end.")


Version = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,5})(\.(0|[1-9][0-9]{0,5})){2}$", examples=["1.4.0"])]
PackageUrl = Annotated[
    str, Field(min_length=8, max_length=4096, examples=["https://packages.example.org/camera-agent-1.4.0.package"])
]


class OfferArgs(_Request):
    version: Version = Field(description="Shown as the latest version until another is offered.")
    url: PackageUrl = Field(description="Where its package is, on a host of commands.package_hosts.")
    notes: str = Field("", max_length=255, description="What is new, in a line, for people.")


class UpdateArgs(_Request):
    version: Version | None = Field(None, description="To be installed; null: the one that was offered.")
    url: PackageUrl | None = Field(None, description="Where its package is; null: as it was offered.")
    percent: float = Field(
        100, gt=0, le=100, description="Only if this node is among so many percent of all, drawn by version and id."
    )


class RecordArgs(_Request):
    duration_s: float = Field(30, ge=1, le=300, description="Seconds to record, beside pre-roll and post-roll.")


class ReplayArgs(_Request):
    from_seq: Seq = Field(description="First number wanted, of the current epoch.", examples=[4700])
    to_seq: Seq = Field(description="Last number wanted.", examples=[4711])
    thumbs: bool = Field(False, description="Pictures too, in Base64.")


class SetArgs(_Request):
    """One thing that a person turns, at once and without a restart; kept, but a new `config/desired` is above it."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    sensitivity: int | None = Field(
        None, ge=0, le=100, description="detection.sensitivity. 0: only large strong motion; 100: the faintest."
    )
    armed: bool | None = Field(
        None, description="As `arm` and `disarm`, for clients that know one topic only; needs their right too."
    )

    @model_validator(mode="after")
    def _is_one(self) -> SetArgs:
        if (self.sensitivity is None) == (self.armed is None):
            raise ValueError("should name one of sensitivity, armed")
        return self


VERBS: dict[str, type[BaseModel]] = {
    "ping": NoArgs,
    "snapshot": SnapshotArgs,
    "live": LiveArgs,
    "events.list": ListArgs,
    "clips.list": ListArgs,
    "clip.get": ClipGetArgs,
    "clip.put": ClipPutArgs,
    "clip.protect": ClipArgs,
    "clip.release": ClipArgs,
    "clip.erase": ClipArgs,
    "replay": ReplayArgs,
    "record": RecordArgs,
    "arm": NoArgs,
    "disarm": NoArgs,
    "set": SetArgs,
    "test-event": NoArgs,
    "update.offer": OfferArgs,
    "update": UpdateArgs,
    "restart": NoArgs,
}
"""Verb -> the model of its args."""

ACTING = frozenset(
    {
        "clip.put",
        "clip.protect",
        "clip.release",
        "clip.erase",
        "record",
        "arm",
        "disarm",
        "set",
        "test-event",
        "update.offer",
        "update",
        "restart",
    }
)
"""Verbs that change something: written down before they are done, so that no power cut does them twice."""


def needs(verb: str, args: BaseModel) -> tuple[str, ...]:
    """The verbs whose right a command needs."""
    if isinstance(args, SetArgs) and args.armed is not None:
        return verb, "arm" if args.armed else "disarm"
    return (verb,)


Code = Literal[
    "too-large",
    "malformed",
    "invalid",
    "unknown-verb",
    "retained",
    "expired",
    "forbidden",
    "unsigned",
    "bad-signature",
    "foreign",
    "replayed",
    "busy",
    "not-found",
    "protected",
    "unavailable",
    "interrupted",
    "refused",
    "failed",
]


class ErrorBody(BaseModel):
    """Why a command was refused or failed."""

    code: Code = Field(description="One word for programs.")
    detail: str = Field(description="In plain words, for people.", examples=["there is no clip of that id"])
    pointer: str = Field("", description="JSON pointer of the place in the command.", examples=["/args/width"])


class PartBody(BaseModel):
    """One replayed message, before the result."""

    topic: str = Field(description="Below B, where it was sent first.", examples=["event"])
    seq: int = Field(ge=1, description="Its number.", examples=[4711])
    message: dict[str, Any] = Field(
        description="The JSON message, or the user properties of a picture.", examples=[{}]
    )
    jpeg: str | None = Field(None, description="A picture, Base64.")


class Response(BaseModel):
    """`B/rsp/{client}`: an answer. ok with part: more follows; ok with result: done; else error."""

    v: int = Field(VERSION, description="Version of the payload.")
    id: str = Field(
        description="Of the command; empty where it could not be read.", examples=["01JD9ZV6Q2M4S8T1C3R5W7Y9AB"]
    )
    ok: bool = Field(description="Whether it was done.")
    result: dict[str, Any] | None = Field(None, description="As the verb gives it.")
    part: PartBody | None = Field(None, description="One of several messages before the result.")
    error: ErrorBody | None = Field(None, description="Why not.")


class ConfigDesired(_Request):
    """`B/config/desired`, retained: what shall differ from the node's own file, whole (not a change to the last)."""

    rev: int = Field(ge=1, le=MAX_INTEGER, description="Higher with each change.", examples=[7])
    config: dict[str, Any] = Field(
        description="Partial settings, a JSON merge patch (RFC 7396): null means the default.",
        examples=[{"detection": {"sensitivity": 60}}],
    )


class ConfigError(BaseModel):
    """One thing wrong with a desired configuration."""

    pointer: str = Field(description="JSON pointer into `B/config/desired`.", examples=["/config/mqtt/port"])
    message: str = Field(description="What would be right.", examples=["should be at most 65535"])


class ConfigReported(BaseModel):
    """`B/config/reported`, retained: what became of the desired configuration, and what is in force."""

    v: int = Field(VERSION, description="Version of the payload.")
    rev: int = Field(ge=0, description="Of the desired configuration this is about; 0: none came yet.", examples=[7])
    status: Literal["applied", "rejected", "rolled-back", "pending-restart"] = Field(
        description="rolled-back: it left the node unconnected or unwell, so the settings before are in force."
    )
    errors: list[ConfigError] = Field([], description="What is wrong with it.")
    config: dict[str, Any] = Field(
        description="All settings in force, secrets as ***.", examples=[{"detection": {"sensitivity": 60}}]
    )
    hash: Sha256 = Field(description="Of `config`, so that equal nodes are seen at a glance.")
    time: Time = Field(description="When it was said.")


class TrialBody(BaseModel):
    """How the last update ended."""

    version: str = Field(description="Of the package; empty where it could not be read.", examples=["1.4.0"])
    verdict: Literal["accepted", "failed", "interrupted", "refused"] = Field(
        description="failed: it was not healthy, the version before is back. refused: it was never unpacked."
    )
    why: str = Field(description="What was wrong, for people.", examples=["it never said READY"])
    time: Time = Field(description="When it ended.")


class UpdateReported(BaseModel):
    """`B/update`, retained: the agent's version, what it was offered, and what became of the last update."""

    v: int = Field(VERSION, description="Version of the payload.")
    installed: str = Field(description="Version that runs.", examples=["1.3.2"])
    latest: str = Field(description="The newest version that it knows of.", examples=["1.4.0"])
    notes: str = Field("", description="What is new in it, for people.")
    possible: bool = Field(description="Whether this node can be updated so: it was installed by scripts/install.")
    phase: Literal["idle", "fetching", "handed-over", "on-trial"] = Field(
        description="handed-over: root verifies and unpacks it. on-trial: it runs, and is kept only if it is well."
    )
    percent: int | None = Field(None, ge=0, le=100, description="Of the package fetched; null unless fetching.")
    tries: int = Field(ge=0, description="Updates begun on this node, ever.", examples=[3])
    last: TrialBody | None = Field(None, description="The last update; null: none yet.")
    time: Time = Field(description="When it was said.")
