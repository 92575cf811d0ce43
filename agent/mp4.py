"""Fragmented MP4: packets become bytes to append, and bytes tell what they are worth. Pure: no disk.

A clip is a row of *units*: the header (ftyp + moov), then one fragment (moof + mdat) per GOP. Behind each
unit stands its *seal*, a `free` box that players skip: "SEAL", CRC-32 of the unit and the note, a note (JSON or
nothing). A unit counts only with a true seal, so a torn, reordered or zero-filled tail is told from a whole one.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.container
import av.logging

from agent.errors import StorageError
from agent.model import NS_PER_S, Codec, Packet

# What matters comes as an exception; FFmpeg's own remarks (through PyAV 10 to 13 on standard error) are noise.
av.logging.set_level(av.logging.PANIC)

TIMESCALE = 90_000
_SEAL_TAG = b"SEAL"
_BOXES = {b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"styp", b"sidx", b"mfra", b"uuid"}
_OPTIONS = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof+skip_trailer",
    "flush_packets": "1",
    "video_track_timescale": str(TIMESCALE),
}


class _Collector:
    """A file object that only collects what FFmpeg writes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, part: bytes) -> int:
        self._parts.append(bytes(part))
        return len(part)

    def take(self) -> bytes:
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole


class FragmentMuxer:
    """Turns the packets of one clip into the bytes of one fragmented MP4.

    Time 0 of the file is the decode time of the first packet, so a stream without B-frames starts at 0 and one
    with them at the first packet's cts_ns (a constant shift, no edit list: the header is written before the
    shift is known). A frame lasts until the next one, also across a gap. Timescale 90,000: times are true to
    11 us. Raises StorageError when FFmpeg refuses the stream (no parameter sets in front of the first keyframe).
    """

    _output: Any = None

    def __init__(self, first_key: Packet) -> None:
        if not first_key.is_key:
            raise ValueError("a clip starts with a keyframe")
        self._zero_ns = first_key.t_ns
        self._first_pts_ns = first_key.pts_ns
        self._last_dts = -1
        self._collector = _Collector()
        try:
            # options go to the muxer; opened by content, so that a wrong codec name is found here
            with av.open(io.BytesIO(first_key.data), "r", format=first_key.codec) as source:
                output: Any = av.open(self._collector, "w", format="mp4", options=_OPTIONS)
                self._output = output
                template = source.streams.video[0]
                if hasattr(output, "add_stream_from_template"):
                    self._stream = output.add_stream_from_template(template)
                else:  # PyAV < 14
                    self._stream = output.add_stream(template=template)
        except (av.FFmpegError, IndexError) as error:
            raise StorageError("mux", f"{first_key.codec} stream", _words(error)) from error
        if first_key.codec == "hevc":
            self._stream.codec_context.codec_tag = "hvc1"  # what Apple's players insist on

    def mux(self, packet: Packet) -> bytes:
        """Bytes to append: the header at the first call, a whole fragment at each keyframe after it, else none."""
        if packet.pts_ns < self._first_pts_ns:
            return b""  # a leading picture of an open GOP: it refers to frames before the clip
        self._write(packet)
        return self._collector.take()

    def close(self) -> bytes:
        """The last fragment. The muxer is of no use afterwards."""
        output, self._output = self._output, None
        try:
            output.close()
        except av.FFmpegError as error:
            raise StorageError("mux", "end of clip", _words(error)) from error
        return self._collector.take()

    def discard(self) -> None:
        """Let go of the muxer without its last bytes; nothing after close()."""
        output, self._output = self._output, None
        if output is not None:
            with contextlib.suppress(av.FFmpegError):
                output.close()

    # PyAV 10 crashes the process when the garbage collector finds a muxer that was begun and not closed.
    __del__ = discard

    def _write(self, packet: Packet) -> None:
        """FFmpeg makes each sample last until the next one, also across fragments; the last one as packet says."""
        dts = max(_ticks(packet.t_ns - self._zero_ns), self._last_dts + 1)
        self._last_dts = dts
        try:
            sample = _sample(packet)
            sample.stream = self._stream
            sample.time_base = Fraction(1, TIMESCALE)
            sample.dts = dts
            sample.pts = max(_ticks(packet.pts_ns - self._zero_ns), dts)
            self._output.mux(sample)
        except av.FFmpegError as error:
            raise StorageError("mux", f"packet {packet.seq}", _words(error)) from error


def _sample(packet: Packet) -> Any:
    sample: Any = av.Packet(packet.data)
    try:
        sample.duration = max(_ticks(packet.duration_ns), 1)
        sample.is_keyframe = packet.is_key
    except AttributeError:
        # PyAV 10 can write neither: FFmpeg's parser has to find the keyframe, and FFmpeg takes the length of a
        # clip's very last frame from the one before.
        if packet.is_key:
            with av.open(io.BytesIO(packet.data), "r", format=packet.codec) as source:
                sample = next(found for found in source.demux(video=0) if found.is_keyframe)
    return sample


def _ticks(ns: int) -> int:
    return (ns * TIMESCALE + NS_PER_S // 2) // NS_PER_S


def _words(error: Exception) -> str:
    return f"FFmpeg: {error}"


def seal(unit: bytes, note: bytes = b"") -> bytes:
    """The box to append behind unit: 16 bytes and the note (at most 1 MB)."""
    return struct.pack(">I4s4sI", 16 + len(note), b"free", _SEAL_TAG, zlib.crc32(note, zlib.crc32(unit))) + note


@dataclass(frozen=True, slots=True)
class Scan:
    """What a file holds from its start on.

    whole: offset behind the last whole unit; size: of the file; fragments: whole ones; notes: of the seals that
    had one; is_sealed: False for a fragmented MP4 that another program wrote (then only box lengths are checked).
    """

    whole: int
    size: int
    fragments: int
    notes: tuple[bytes, ...]
    is_sealed: bool


def scan(reader: BinaryIO, limit: int | None = None) -> Scan:
    """Walk the boxes of reader and check the seals. Reads all of it, 1 MB at a time. Raises OSError.

    limit: what lies behind this offset is not believed (an fsync of it failed).
    """
    size = reader.seek(0, io.SEEK_END)
    end = size if limit is None else min(size, limit)
    position = whole = loose_whole = fragments = loose_fragments = pending = crc = 0
    notes: list[bytes] = []
    is_sealed = False
    while True:
        reader.seek(position)
        head = reader.read(16)
        if len(head) < 8:
            break
        length, kind = struct.unpack_from(">I4s", head)
        if length == 1 and len(head) == 16:
            length = struct.unpack_from(">Q", head, 8)[0]
        if length < 8 or kind not in _BOXES or position + length > end:
            break
        if kind == b"free" and length >= 16 and head[8:12] == _SEAL_TAG:
            note = reader.read(length - 16)
            is_sealed = True
            if zlib.crc32(note, crc) != struct.unpack_from(">I", head, 12)[0]:
                break
            whole, fragments, crc = position + length, fragments + pending, 0
            pending = 0
            if note:
                notes.append(note)
        else:
            crc = _crc_of(reader, position, length, crc)
            if kind == b"mdat":
                pending += 1
                loose_fragments += 1
            if kind in (b"mdat", b"moov"):
                loose_whole = position + length
        position += length
    if not is_sealed and loose_fragments:
        whole, fragments = loose_whole, loose_fragments
    return Scan(whole, size, fragments, tuple(notes), is_sealed)


def whole_length(reader: BinaryIO) -> int:
    """Offset behind the last whole unit of a fragmented MP4; 0 if not even the header is whole."""
    return scan(reader).whole


def _crc_of(reader: BinaryIO, position: int, length: int, crc: int) -> int:
    reader.seek(position)
    while length > 0:
        part = reader.read(min(length, 1 << 20))
        if not part:
            break
        crc = zlib.crc32(part, crc)
        length -= len(part)
    return crc


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What a player sees. Times in ns from the file's time 0; end_ns includes the last frame's duration."""

    frames: int
    first_pts_ns: int
    end_ns: int
    width: int
    height: int
    codec: str

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.first_pts_ns


def clip_facts(reader: BinaryIO, *, decode_all: bool = False) -> ClipFacts:
    """Facts of a clip after decoding its first frame (or all of them: slow, for verify).

    Raises StorageError where it does not decode from its first frame on.
    """
    reader.seek(0)
    name = str(getattr(reader, "name", "clip"))
    try:
        with av.open(reader, "r", format="mp4") as container:
            stream = container.streams.video[0]
            if stream.time_base is None:
                raise StorageError("decode", name, "it has no time base")
            frames = decoded = 0
            first = end = 0
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None:
                    first = packet.pts if frames == 0 else min(first, packet.pts)
                    end = max(end, packet.pts + (packet.duration or 0))
                    frames += 1
                if decode_all or not decoded:
                    decoded += len(packet.decode())
            if not decoded or (decode_all and decoded != frames):
                raise StorageError("decode", name, f"{decoded} of {frames} frames decode")
            ns = Fraction(stream.time_base) * NS_PER_S
            context = stream.codec_context
            return ClipFacts(frames, int(first * ns), int(end * ns), context.width, context.height, context.name)
    except (av.FFmpegError, IndexError) as error:
        raise StorageError("decode", name, _words(error)) from error


def parameter_sets(packet: Packet) -> bytes:
    """The parameter sets in front of a keyframe (SPS and PPS, for HEVC also VPS), to notice when they change."""
    found: list[bytes] = []
    for unit in packet.data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]:
        if not unit:
            continue
        if _is_parameter_set(unit[0], packet.codec):
            found.append(unit.rstrip(b"\0"))
        elif _is_picture(unit[0], packet.codec):
            break
    return b"\0\0\1".join(found)


def _is_parameter_set(first_byte: int, codec: Codec) -> bool:
    return first_byte & 31 in (7, 8) if codec == "h264" else (first_byte >> 1) & 63 in (32, 33, 34)


def _is_picture(first_byte: int, codec: Codec) -> bool:
    return 1 <= first_byte & 31 <= 5 if codec == "h264" else (first_byte >> 1) & 63 < 32
