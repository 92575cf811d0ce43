"""Fragmented MP4: times are true to a millisecond, every prefix plays, a torn tail is told from a whole one."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_fixtures import FRAME_NS, frames_of, packets

from agent.errors import StorageError
from agent.model import NS_PER_S, Codec, Packet
from agent.mp4 import FragmentMuxer, clip_facts, parameter_sets, scan, seal, whole_length

JITTER_NS = (0, 1_111_111, -2_222_222, 3_333_333, 0, -1_111_111)


def muxed(shot: list[Packet], *, sealed: bool = True) -> list[bytes]:
    """The units of a clip of shot."""
    muxer = FragmentMuxer(shot[0])
    units = [unit for unit in (*(muxer.mux(packet) for packet in shot), muxer.close()) if unit]
    return [unit + seal(unit) for unit in units] if sealed else units


def jittered(shot: list[Packet]) -> list[Packet]:
    return [replace(p, t_ns=p.t_ns + JITTER_NS[i % 6]) for i, p in enumerate(shot)]


@pytest.mark.parametrize(("codec", "b_frames"), [("h264", 0), ("h264", 2), ("hevc", 0), ("hevc", 2)])
def test_frame_times_are_those_of_the_packets(codec: Codec, b_frames: int, tmp_path: Path) -> None:
    shot = jittered(packets(35, codec=codec, b_frames=b_frames))
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"".join(muxed(shot)))
    with av.open(str(path), "r") as clip:
        video: Any = clip.streams.video[0]
        demuxed: list[Any] = [packet for packet in clip.demux(video) if packet.size]
        seen = [(p.dts * video.time_base, p.pts * video.time_base, p.is_keyframe) for p in demuxed]
    zero_ns = shot[0].t_ns
    assert len(seen) == 35
    for packet, (dts_s, pts_s, is_key) in zip(shot, seen, strict=True):
        assert abs(float(dts_s) - (packet.t_ns - zero_ns) / NS_PER_S) < 0.0001
        assert abs(float(pts_s) - (packet.pts_ns - zero_ns) / NS_PER_S) < 0.0001
        assert is_key == packet.is_key


def test_each_gop_is_one_fragment_and_comes_with_the_next_keyframe() -> None:
    shot = packets(35)
    muxer = FragmentMuxer(shot[0])
    at = [index for index, packet in enumerate(shot) if muxer.mux(packet)]
    assert at == [0, 10, 20, 30]
    assert muxer.close()


def test_every_sample_lasts_until_the_next_also_across_fragments() -> None:
    shot = jittered(packets(35))
    data = b"".join(muxed(shot, sealed=False))
    spans = [(start, start + sum(lengths)) for start, lengths in fragments_of(data)]
    assert [start for start, _ in spans] == [round((p.t_ns - shot[0].t_ns) * 9 / 100_000) for p in shot if p.is_key]
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert spans[-1][1] - spans[-1][0] == pytest.approx(45_000, abs=400)


def fragments_of(data: bytes) -> list[tuple[int, list[int]]]:
    """(decode time, sample durations) of each fragment, read from tfdt, tfhd and trun (ISO/IEC 14496-12)."""

    def number(at: int, size: int = 4) -> int:
        return int.from_bytes(data[at : at + size], "big")

    def boxes(at: int, end: int) -> dict[bytes, tuple[int, int]]:
        found = {}
        while at < end:
            found[data[at + 4 : at + 8]] = (at + 8, at + number(at))
            at += number(at)
        return found

    result, at = [], 0
    while at < len(data):
        if data[at + 4 : at + 8] == b"moof":
            track = boxes(*boxes(at + 8, at + number(at))[b"traf"])
            header, time, run = track[b"tfhd"][0], track[b"tfdt"][0], track[b"trun"][0]
            flags = number(header) & 0xFFFFFF
            default = number(header + 8 + (8 if flags & 1 else 0) + (4 if flags & 2 else 0)) if flags & 8 else 0
            start = number(time + 4, 8 if data[time] else 4)
            flags, count = number(run) & 0xFFFFFF, number(run + 4)
            cursor = run + 8 + (4 if flags & 1 else 0) + (4 if flags & 4 else 0)
            width = 4 * bin(flags & 0xF00).count("1")
            lengths = [number(cursor + i * width) if flags & 0x100 else default for i in range(count)]
            result.append((start, lengths))
        at += number(at)
    return result


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_every_prefix_of_whole_units_plays_from_its_first_frame(codec: Codec) -> None:
    units = muxed(packets(35, codec=codec))
    for count in range(2, len(units) + 1):
        data = b"".join(units[:count])
        facts = clip_facts(io.BytesIO(data), decode_all=True)
        assert facts.frames == min((count - 1) * 10, 35)
        assert facts.first_pts_ns == 0
        assert facts.duration_ns == pytest.approx(facts.frames * FRAME_NS, abs=1_000_000)


def test_pictures_come_out_as_they_went_in() -> None:
    data = b"".join(muxed(packets(35)))
    seen = list(frames_of(data))
    assert [round(time * 10) for time, _ in seen] == list(range(35))
    assert [shade for _, shade in seen] == sorted(shade for _, shade in seen)


def test_leading_pictures_of_an_open_gop_are_left_out() -> None:
    shot = packets(20)
    leading = replace(shot[1], cts_ns=-2 * FRAME_NS)
    muxer = FragmentMuxer(shot[0])
    data = muxer.mux(shot[0]) + muxer.mux(leading) + b"".join(muxer.mux(p) for p in shot[2:]) + muxer.close()
    assert clip_facts(io.BytesIO(data)).frames == 19


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whole_length_is_the_end_of_the_last_whole_unit(data: st.DataObject) -> None:
    units = muxed(packets(35))
    clip = b"".join(units)
    ends = [0]
    for unit in units:
        ends.append(ends[-1] + len(unit))
    cut = data.draw(st.integers(0, len(clip)))
    expected = max(end for end in ends if end <= cut)
    assert whole_length(io.BytesIO(clip[:cut])) == expected
    # What a file system may put behind the cut: zeros, or old bytes.
    assert whole_length(io.BytesIO(clip[:cut] + bytes(5000))) == expected
    # One flipped bit anywhere in a unit: that unit does not count, nor what follows.
    flipped = bytearray(clip)
    at = data.draw(st.integers(0, len(clip) - 1))
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    assert whole_length(io.BytesIO(bytes(flipped))) <= max(end for end in ends if end <= at)


def test_fragmented_mp4_of_another_program_is_measured_by_its_boxes() -> None:
    units = muxed(packets(35), sealed=False)
    clip = b"".join(units)
    found = scan(io.BytesIO(clip + b"\0\0\0\x30moof"))
    assert (found.whole, found.fragments, found.is_sealed) == (len(clip), 4, False)


@pytest.mark.parametrize("content", [b"", b"\0" * 4000, b"not a clip at all" * 100, b"\0\0\0\x10ftypisom"])
def test_what_is_no_clip_has_no_whole_unit_and_does_not_play(content: bytes) -> None:
    found = scan(io.BytesIO(content))
    assert found.fragments == 0
    with pytest.raises(StorageError, match="decode"):
        clip_facts(io.BytesIO(content))


def test_stream_without_parameter_sets_is_refused() -> None:
    key = packets(10)[0]
    with pytest.raises(StorageError):
        FragmentMuxer(replace(key, data=b"\0\0\0\1\x65" + bytes(30))).mux(key)


def test_changed_parameter_sets_are_noticed() -> None:
    small, again, large = packets(20), packets(20)[10], packets(10, width=96)[0]
    assert parameter_sets(small[0])
    assert parameter_sets(small[0]) == parameter_sets(again)
    assert parameter_sets(small[0]) != parameter_sets(large)
    assert parameter_sets(packets(10, codec="hevc")[0]).count(b"\0\0\1") == 2


def test_clip_plays_where_only_a_pipe_is_read() -> None:
    """A player that cannot seek (a broker's or browser's download) shows it too."""

    class Pipe(io.RawIOBase):
        def __init__(self, content: bytes) -> None:
            self._rest = io.BytesIO(content)

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return self._rest.read(size)

    with av.open(Pipe(b"".join(muxed(packets(35)))), "r", format="mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 35
