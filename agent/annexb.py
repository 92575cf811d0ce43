"""The byte forms of H.264 and HEVC: length-prefixed (MP4) and Annex B (start codes). Pure; touches nothing.

Words after ITU-T H.264 and H.265, annex B, and ISO/IEC 14496-15 (avcC, hvcC).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.model import Codec

START_CODE = b"\x00\x00\x00\x01"

# nal_unit_type of H.264: 7 SPS, 8 PPS; of HEVC: 32 VPS, 33 SPS, 34 PPS. An access unit delimiter stays first.
_PARAMETER_TYPES: dict[Codec, tuple[int, ...]] = {"h264": (7, 8), "hevc": (32, 33, 34)}
_DELIMITER: dict[Codec, int] = {"h264": 9, "hevc": 35}
_VCL_TYPES: dict[Codec, range] = {"h264": range(1, 6), "hevc": range(32)}


@dataclass(frozen=True, slots=True)
class Extradata:
    """What a container says of a stream once. length_size: bytes before each NAL unit, None for Annex B."""

    parameter_sets: tuple[bytes, ...]
    length_size: int | None


def nal_type(codec: Codec, nal: bytes) -> int:
    return nal[0] & 0x1F if codec == "h264" else (nal[0] >> 1) & 0x3F


def split_annexb(data: bytes) -> list[bytes]:
    """The NAL units of an Annex B byte stream, without start codes and without the zero bytes that may follow."""
    nals: list[bytes] = []
    start = data.find(b"\x00\x00\x01")
    if start < 0 and data.strip(b"\x00"):
        raise ValueError("not Annex B: there is no start code")
    while start >= 0:
        begin = start + 3
        start = data.find(b"\x00\x00\x01", begin)
        nal = (data[begin:] if start < 0 else data[begin:start]).rstrip(b"\x00")
        if nal:
            nals.append(nal)
    return nals


def split_length_prefixed(data: bytes, length_size: int = 4) -> list[bytes]:
    """The NAL units of an MP4 sample. ValueError when a length points beyond the end."""
    nals: list[bytes] = []
    at = 0
    while at < len(data):
        begin = at + length_size
        at = begin + int.from_bytes(data[at:begin], "big")
        if begin > len(data) or at > len(data):
            raise ValueError(f"a NAL unit of {at - begin} bytes begins at {begin}, but the sample has {len(data)}")
        if at > begin:
            nals.append(data[begin:at])
    return nals


def join_annexb(nals: Iterable[bytes]) -> bytes:
    return b"".join(part for nal in nals for part in (START_CODE, nal))


def join_length_prefixed(nals: Iterable[bytes], length_size: int = 4) -> bytes:
    """ValueError when a NAL unit is too long for length_size bytes."""
    parts: list[bytes] = []
    for nal in nals:
        if len(nal) >> (8 * length_size):
            raise ValueError(f"a NAL unit of {len(nal)} bytes does not fit a {length_size}-byte length")
        parts += (len(nal).to_bytes(length_size, "big"), nal)
    return b"".join(parts)


def to_annexb(data: bytes, length_size: int | None) -> bytes:
    """A sample as Annex B; length_size None says that it is already."""
    return data if length_size is None else join_annexb(split_length_prefixed(data, length_size))


def to_length_prefixed(data: bytes, length_size: int = 4) -> bytes:
    return join_length_prefixed(split_annexb(data), length_size)


def parse_extradata(codec: Codec, extradata: bytes) -> Extradata:
    """Read avcC, hvcC or Annex B extradata; empty means Annex B with the parameter sets in the stream.

    ValueError when it is cut short.
    """
    if not extradata or extradata.startswith((b"\x00\x00\x01", START_CODE)):
        return Extradata(parameter_sets(codec, extradata), None)
    try:
        return _parse_avcc(extradata) if codec == "h264" else _parse_hvcc(extradata)
    except IndexError:
        raise ValueError(f"{codec} extradata of {len(extradata)} bytes is cut short") from None


def parameter_sets(codec: Codec, data: bytes) -> tuple[bytes, ...]:
    """The parameter sets of an Annex B access unit or extradata, in their order, each once."""
    wanted = _PARAMETER_TYPES[codec]
    return tuple(dict.fromkeys(nal for nal in split_annexb(data) if nal_type(codec, nal) in wanted))


def with_parameter_sets(codec: Codec, data: bytes, known: Sequence[bytes]) -> bytes:
    """data (Annex B, a keyframe) with every kind of parameter set in front of its first slice.

    Kinds that it lacks are taken from known; what is there already is not touched. ValueError when a kind is
    neither in data nor known.
    """
    nals = split_annexb(data)
    present: set[int] = set()
    for nal in nals:
        kind = nal_type(codec, nal)
        if kind in _VCL_TYPES[codec]:
            break
        present.add(kind)
    missing = [kind for kind in _PARAMETER_TYPES[codec] if kind not in present]
    if not missing:
        return data
    added = [nal for nal in known if nal_type(codec, nal) in missing]
    unknown = set(missing) - {nal_type(codec, nal) for nal in added}
    if unknown:
        raise ValueError(f"a {codec} keyframe without parameter sets of type {sorted(unknown)}, and none are known")
    first = 1 if nals and nal_type(codec, nals[0]) == _DELIMITER[codec] else 0
    if not present & set(_PARAMETER_TYPES[codec]):
        return join_annexb([*nals[:first], *added, *nals[first:]])
    # One kind is there: keep the order VPS, SPS, PPS, which decoders need.
    own = [nal for nal in nals if nal_type(codec, nal) in _PARAMETER_TYPES[codec]]
    rest = [nal for nal in nals[first:] if nal_type(codec, nal) not in _PARAMETER_TYPES[codec]]
    ordered = sorted([*added, *own], key=lambda nal: nal_type(codec, nal))
    return join_annexb([*nals[:first], *ordered, *rest])


def _parse_avcc(data: bytes) -> Extradata:
    length_size = (data[4] & 3) + 1
    sets: list[bytes] = []
    at = _read_sets(data, 6, data[5] & 0x1F, sets)
    _read_sets(data, at + 1, data[at], sets)
    return Extradata(tuple(sets), length_size)


def _parse_hvcc(data: bytes) -> Extradata:
    length_size = (data[21] & 3) + 1
    sets: list[bytes] = []
    at = 23
    for _ in range(data[22]):
        kind = data[at] & 0x3F
        found: list[bytes] = []
        at = _read_sets(data, at + 3, int.from_bytes(data[at + 1 : at + 3], "big"), found)
        if kind in _PARAMETER_TYPES["hevc"]:
            sets += found
    return Extradata(tuple(sets), length_size)


def _read_sets(data: bytes, at: int, count: int, into: list[bytes]) -> int:
    """Append count NAL units, each after a 16-bit length, to into; the position after them."""
    for _ in range(count):
        begin = at + 2
        at = begin + int.from_bytes(data[begin - 2 : begin], "big")
        if begin > len(data) or at > len(data):
            raise IndexError
        into.append(data[begin:at])
    return at
