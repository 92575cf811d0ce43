"""What each stage says of itself, for health to read: frozen snapshots, replaced whole. Touches nothing.

A stage builds a new one when something changed and stores it in its attribute `status`; replacing a reference
needs no lock. `beat_ns` is the boot-clock time of the stage's last completed step; the watchdog reads it.
`trouble` is one line in plain words with what to do, or empty.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VisionStatus:
    frames: int = 0
    skipped: int = 0
    last_frame_ns: int | None = None
    learning: bool = True
    light: str = "steady"
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class StorageStatus:
    """recording: a clip is open. last_durable_ns: boot-clock time of the last fsync or commit that succeeded.

    clips_untold: deleted before the broker took their message. sync_stalls: syncs and commits that took above 1 s.
    """

    recording: bool = False
    last_durable_ns: int | None = None
    clips: int = 0
    clip_bytes: int = 0
    oldest_clip_wall_ns: int | None = None
    clip_gaps: int = 0
    free_mb: int | None = None
    outbox_rows: int = 0
    outbox_bytes: int = 0
    outbox_oldest_wall_ns: int | None = None
    outbox_evicted: int = 0
    epoch: str = ""
    head_seq: int = 0
    events_lost: int = 0
    clips_untold: int = 0
    slowest_sync_ms: float = 0.0
    sync_stalls: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class CommandsStatus:
    """accepted, refused: commands since the start; dropped: not even answered, because too many came at once.

    unlisted: refusals that are counted but not in the audit table, for the same reason.
    """

    accepted: int = 0
    refused: int = 0
    dropped: int = 0
    unlisted: int = 0
    live_frames: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """connected: the broker accepted us. protocol: "5" or "3.1.1", empty before the first connection.

    warning: what is as it is and works, but should be known (MQTT 3.1.1); no reason to be degraded.
    """

    connected: bool = False
    protocol: str = ""
    session: str = ""
    delivered: int = 0
    refused: int = 0
    reconnects: int = 0
    trouble: str = ""
    warning: str = ""
