"""What can be known of a video before it is decoded: opening it, its trouble in words, and a file's GOPs and
timestamps from a pass over its packets. Touches files, sockets and devices through PyAV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from agent.cameras.video_options import is_device
from agent.errors import CameraError
from agent.settings import redacted

SCAN_PACKETS = 200_000
SCAN_BYTES = 512 * 1024 * 1024
"""A scan ends here (about half an hour at 2 Mbit/s); what lies beyond is taken to be alike, and watched."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Of one file, without decoding. times_are_usable: every packet has a decode and a presentation time, the
    former strictly increasing in microseconds, the latter never before it. max_gop_s, max_step_s: longest time
    between keyframes (to the end of the file) and between packets. packets counts from the first keyframe on.
    lead: decode times, in ticks, for the first packets where the container has none (Matroska with B-frames).
    """

    packets: int
    keyframes: int
    times_are_usable: bool
    max_gop_s: float
    max_step_s: float
    mean_fps: float
    lead: tuple[int, ...] = ()


def open_container(
    source: str, *, live_options: Mapping[str, str] | None = None, open_s: float = 8.0, read_s: float = 1.0
) -> InputContainer:
    """Open source for reading; live_options tells that it is live: then opening takes at most about open_s, and
    each read at most read_s. CameraError names the source without its password."""
    kind: str | None = None
    timeout: tuple[float, float] | None = None
    if live_options is not None:
        timeout = (open_s, read_s)
        kind = "v4l2" if source.startswith("/dev/") else None
    try:
        container = av.open(source, "r", format=kind, options=dict(live_options or {}), timeout=timeout)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        # Not "from error": its text carries the URL with the password.
        raise CameraError("open", redacted(source), words_of(error), hint=hint_for(source, error)) from None
    return container


def video_stream(container: InputContainer, source: str) -> VideoStream:
    if not container.streams.video:
        raise CameraError(
            "open", redacted(source), "no video stream in it", hint="a file that ffplay shows moving pictures of"
        )
    return container.streams.video[0]


def scan_file(source: str) -> Scan:
    """Read the packets of a file once, bounded by SCAN_PACKETS and SCAN_BYTES. CameraError as on opening."""
    container = open_container(source)
    try:
        stream = video_stream(container, source)
        return _scan(container, stream)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise CameraError("read", redacted(source), words_of(error), hint=hint_for(source, error)) from None
    finally:
        container.close()


def _scan(container: InputContainer, stream: VideoStream) -> Scan:
    base = Fraction(stream.time_base or 1)
    packets = keyframes = size = 0
    usable = True
    untimed: list[tuple[int | None, bool]] = []
    lead: tuple[int, ...] = ()
    times = _Times()
    for packet in container.demux(stream):
        if not packet.size or not (keyframes or packet.is_keyframe):
            continue
        packets += 1
        size += packet.size
        keyframes += bool(packet.is_keyframe)
        is_key = bool(packet.is_keyframe)
        if packet.dts is None and packets == len(untimed) + 1 <= _LONGEST_LEAD:
            untimed.append((packet.pts, is_key))
        elif packet.dts is None or packet.pts is None:
            usable = False
        else:
            if packets == len(untimed) + 1:
                step = packet.duration or 1
                lead = tuple(packet.dts - step * (len(untimed) - i) for i in range(len(untimed)))
                for ticks, (pts, was_key) in zip(lead, untimed, strict=True):
                    usable &= pts is not None and pts >= ticks
                    times.add(ticks_to_us(ticks, base), was_key, 0)
            usable &= packet.pts >= packet.dts
            times.add(ticks_to_us(packet.dts, base), is_key, ticks_to_us(packet.duration or 0, base))
        if packets >= SCAN_PACKETS or size >= SCAN_BYTES:
            break
    usable &= times.count == packets > 0 and times.increase
    span_us = times.last_us - times.first_us
    return Scan(
        packets=packets,
        keyframes=keyframes,
        times_are_usable=usable,
        max_gop_s=max(times.max_gop_us, times.end_us - times.key_us) / 1e6,
        max_step_s=times.max_step_us / 1e6,
        mean_fps=(packets - 1) / span_us * 1e6 if usable and span_us > 0 else 0.0,
        lead=lead,
    )


_LONGEST_LEAD = 16  # H.264 and HEVC reorder at most 16 pictures


@dataclass(slots=True)
class _Times:
    """What a scan keeps of decode times, all in microseconds."""

    count: int = 0
    first_us: int = 0
    last_us: int = 0
    key_us: int = 0
    end_us: int = 0
    max_gop_us: int = 0
    max_step_us: int = 0
    increase: bool = True

    def add(self, now_us: int, is_key: bool, duration_us: int) -> None:
        if self.count == 0:
            self.first_us = self.key_us = now_us
        elif now_us <= self.last_us:
            self.increase = False
        else:
            self.max_step_us = max(self.max_step_us, now_us - self.last_us)
        if is_key:
            self.max_gop_us = max(self.max_gop_us, now_us - self.key_us)
            self.key_us = now_us
        self.count += 1
        self.last_us = now_us
        self.end_us = now_us + duration_us


def ticks_to_us(ticks: int, base: Fraction) -> int:
    return ticks * base.numerator * 1_000_000 // base.denominator


def words_of(error: BaseException) -> str:
    """What went wrong, never with the URL in it."""
    strerror: Any = getattr(error, "strerror", None)
    if isinstance(error, av.error.ExitError):
        return "no answer in time"
    return str(strerror) if strerror else type(error).__name__


def hint_for(source: str, error: BaseException) -> str:
    """What an operator can do about it."""
    if is_device(source):
        return {
            "FileNotFoundError": "no such device; v4l2-ctl --list-devices shows what there is",
            "PermissionError": "the user needs the group video",
            "OSError": "is another program using it? fuser -v names it",
        }.get(type(error).__name__, "v4l2-ctl --list-formats-ext shows what the device can do")
    if "://" in source:
        if isinstance(error, av.error.HTTPUnauthorizedError):
            return "wrong or missing user name and password"
        return "is the camera on, and are host, port and path right?"
    if isinstance(error, FileNotFoundError):
        return "is the path right?"
    if isinstance(error, PermissionError):
        return "the agent's user may not read it"
    if isinstance(error, IsADirectoryError):
        return "name a file in it"
    return "it is empty, cut short or not a video; does ffplay show it?"
