"""Annex B and length-prefixed forms say the same, and every keyframe can start a decoder."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.annexb import (
    START_CODE,
    join_annexb,
    join_length_prefixed,
    parameter_sets,
    parse_extradata,
    split_annexb,
    split_length_prefixed,
    to_annexb,
    to_length_prefixed,
    with_parameter_sets,
)
from agent.model import Codec

SPS, PPS, IDR, SLICE, AUD, SEI = b"\x67sps", b"\x68pps", b"\x65idr", b"\x41slice", b"\x09\xf0", b"\x06sei"
HEVC_VPS, HEVC_SPS, HEVC_PPS, HEVC_IDR = b"\x40\x01v", b"\x42\x01s", b"\x44\x01p", b"\x26\x01i"


def escaped(raw: bytes) -> bytes:
    """As an encoder writes a NAL unit: no start code inside, no zero byte at the end."""
    out = bytearray()
    for byte in raw:
        if len(out) >= 2 and out[-1] == 0 and out[-2] == 0 and byte <= 3:
            out.append(3)
        out.append(byte)
    return bytes(out) + (b"\x80" if out[-1] == 0 else b"")


nal_units = st.lists(st.binary(min_size=1, max_size=80).map(escaped), max_size=8)


@given(nals=nal_units, length_size=st.sampled_from([2, 3, 4]))
def test_nal_units_come_through_both_forms_unchanged(nals: list[bytes], length_size: int) -> None:
    prefixed = join_length_prefixed(nals, length_size)
    stream = to_annexb(prefixed, length_size)
    assert split_annexb(stream) == nals
    assert to_length_prefixed(stream, length_size) == prefixed
    assert split_length_prefixed(prefixed, length_size) == nals


@given(
    nals=nal_units, codes=st.lists(st.sampled_from([b"\0\0\1", b"\0\0\0\1", b"\0\0\0\0\0\1"]), min_size=8, max_size=8)
)
def test_start_codes_may_be_short_long_or_padded(nals: list[bytes], codes: list[bytes]) -> None:
    stream = b"".join(code + nal for code, nal in zip(codes, nals, strict=False))
    assert split_annexb(stream) == nals


@given(st.binary(max_size=60))
def test_any_bytes_are_split_or_refused_with_a_value_error(data: bytes) -> None:
    for read in (split_annexb, split_length_prefixed):
        with contextlib.suppress(ValueError):
            read(data)


@given(st.binary(max_size=80), st.sampled_from(["h264", "hevc"]))
def test_any_extradata_is_read_or_refused_with_a_value_error(data: bytes, codec: Codec) -> None:
    with contextlib.suppress(ValueError):
        parse_extradata(codec, data)


def test_a_sample_that_is_cut_short_is_refused() -> None:
    sample = join_length_prefixed([IDR, SLICE])
    with pytest.raises(ValueError, match="NAL unit of"):
        to_annexb(sample[:-1], 4)
    with pytest.raises(ValueError, match="NAL unit of"):
        to_annexb(sample + b"\0", 4)


def avcc(sps: bytes, pps: bytes, length_size: int = 4) -> bytes:
    sets = b"\xe1" + len(sps).to_bytes(2, "big") + sps + b"\x01" + len(pps).to_bytes(2, "big") + pps
    return b"\x01\x64\x00\x1e" + bytes([0xFC | (length_size - 1)]) + sets


def hvcc(*sets: bytes) -> bytes:
    arrays = b"".join(
        bytes([0x80 | (nal[0] >> 1) & 0x3F]) + b"\0\1" + len(nal).to_bytes(2, "big") + nal for nal in sets
    )
    return b"\x01" + bytes(20) + b"\xff" + bytes([len(sets)]) + arrays


def test_avcc_gives_parameter_sets_and_length_size() -> None:
    found = parse_extradata("h264", avcc(SPS, PPS, 2))
    assert found.parameter_sets == (SPS, PPS)
    assert found.length_size == 2


def test_hvcc_gives_parameter_sets_but_not_sei() -> None:
    found = parse_extradata("hevc", hvcc(HEVC_VPS, HEVC_SPS, HEVC_PPS, b"\x4e\x01x"))
    assert found.parameter_sets == (HEVC_VPS, HEVC_SPS, HEVC_PPS)
    assert found.length_size == 4


def test_annexb_extradata_and_none_mean_a_stream_in_annexb() -> None:
    assert parse_extradata("h264", join_annexb([SPS, PPS])).length_size is None
    assert parse_extradata("h264", join_annexb([SPS, PPS])).parameter_sets == (SPS, PPS)
    assert parse_extradata("hevc", b"").parameter_sets == ()


@pytest.mark.parametrize("cut", range(5, len(avcc(SPS, PPS))))
def test_extradata_that_is_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="cut short"):
        parse_extradata("h264", avcc(SPS, PPS)[:cut])


def test_a_keyframe_gets_its_parameter_sets_in_front_behind_the_delimiter() -> None:
    plain = with_parameter_sets("h264", join_annexb([AUD, SEI, IDR]), [SPS, PPS])
    assert split_annexb(plain) == [AUD, SPS, PPS, SEI, IDR]
    hevc = with_parameter_sets("hevc", join_annexb([HEVC_IDR]), [HEVC_VPS, HEVC_SPS, HEVC_PPS])
    assert split_annexb(hevc) == [HEVC_VPS, HEVC_SPS, HEVC_PPS, HEVC_IDR]


def test_parameter_sets_that_are_there_are_not_touched() -> None:
    own = b"\0\0\1" + SPS + START_CODE + PPS + b"\0\0\1" + IDR
    assert with_parameter_sets("h264", own, [b"\x67other", b"\x68other"]) is own


def test_only_the_missing_kind_is_added_and_the_order_kept() -> None:
    made = with_parameter_sets("h264", join_annexb([AUD, PPS, IDR]), [SPS, b"\x68other"])
    assert split_annexb(made) == [AUD, SPS, PPS, IDR]


def test_parameter_sets_behind_the_picture_do_not_count() -> None:
    made = with_parameter_sets("h264", join_annexb([IDR, SPS, PPS]), [SPS, PPS])
    assert split_annexb(made)[:3] == [SPS, PPS, IDR]


def test_a_keyframe_without_known_parameter_sets_is_refused() -> None:
    with pytest.raises(ValueError, match="none are known"):
        with_parameter_sets("h264", join_annexb([IDR]), [SPS])


def test_parameter_sets_are_listed_once_each() -> None:
    assert parameter_sets("h264", join_annexb([AUD, SPS, PPS, SPS, IDR])) == (SPS, PPS)
