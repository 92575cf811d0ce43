"""Hand-offs: what is full replaces or discards and counts it; nothing waits; nothing is lost by coalescing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.handoffs import AckBox, Doorbell, EventBoard, FrameSlot, PacketRing, Status, StatusBoard
from agent.model import Ack, Event, EventKind, Frame, Moment, Packet, Phase


def frame(seq: int) -> Frame:
    y = np.zeros((4, 4), np.uint8)
    uv = np.zeros((2, 2), np.uint8)
    return Frame(seq, seq * 10, y, uv, uv)


def packet(seq: int, size: int = 10, *, key: bool = False) -> Packet:
    return Packet(seq, seq * 100, 100, key, bytes(size))


def event(event_id: str, rev: int = 1, phase: Phase = Phase.START) -> Event:
    moment = Moment(0, 0)
    return Event(event_id, rev, phase, EventKind.MOTION, moment, moment, moment, 0.5)


def test_the_newest_frame_wins_and_the_others_are_counted() -> None:
    slot = FrameSlot()
    for seq in range(3):
        slot.put(frame(seq))
    taken = slot.take(0)
    assert taken is not None
    assert taken.seq == 2
    assert slot.skipped == 2
    assert slot.take(0) is None


def test_a_bell_rung_before_the_wait_counts() -> None:
    bell = Doorbell()
    bell.ring()
    bell.wait(3600)  # would hang if the ring were forgotten


def test_packets_before_the_first_keyframe_are_of_no_use() -> None:
    ring = PacketRing(1000)
    ring.put(packet(0))
    ring.put(packet(1, key=True))
    assert ring.read(0, 10)[0] == [packet(1, key=True)]
    assert ring.dropped_packets == 1


def test_a_position_is_the_keyframe_at_or_before_the_time() -> None:
    ring = PacketRing(10_000)
    for seq in range(20):
        ring.put(packet(seq, key=seq % 5 == 0))
    assert ring.position_before(1240) == 10
    assert ring.position_before(1000) == 10
    assert ring.position_before(999) == 5
    assert ring.position_before(-5) == 0  # older than all: the oldest there is


def test_b_frames_are_judged_by_when_they_are_shown() -> None:
    ring = PacketRing(10_000)
    ring.put(Packet(0, 0, 100, True, b"k", cts_ns=200))
    ring.put(Packet(1, 500, 100, True, b"k", cts_ns=200))
    assert ring.position_before(650) == 0
    assert ring.position_before(700) == 1


def test_a_reader_that_lost_its_place_is_told() -> None:
    ring = PacketRing(100)
    for seq in range(10):
        ring.put(packet(seq, 10, key=seq % 5 == 0))
    packets, position, gap = ring.read(0, 3)
    assert ([p.seq for p in packets], position, gap) == ([0, 1, 2], 3, False)
    for seq in range(10, 15):
        ring.put(packet(seq, 10, key=seq % 5 == 0))
    packets, position, gap = ring.read(position, 3)
    assert ([p.seq for p in packets], position, gap) == ([5, 6, 7], 8, True)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=80),
    capacity=st.integers(1, 200),
)
def test_the_ring_stays_within_its_bytes_and_begins_with_a_keyframe(
    sizes: list[tuple[int, bool]], capacity: int
) -> None:
    ring = PacketRing(capacity)
    position = 0
    seen: list[int] = []
    for seq, (size, key) in enumerate(sizes):
        ring.put(packet(seq, size, key=key))
        assert ring.bytes <= capacity
        kept = ring.read(0, 1000)[0]
        assert ring.bytes == sum(len(p.data) for p in kept)
        assert not kept or kept[0].is_key
        packets, position, _gap = ring.read(position, 1000)
        seen += [p.seq for p in packets]
    assert seen == sorted(set(seen))
    assert position == ring.end


@given(
    gaps=st.lists(st.tuples(st.integers(1, 3_000), st.booleans()), min_size=1, max_size=80),
    keep_ms=st.integers(0, 5_000),
)
def test_a_ring_keeps_the_time_it_was_asked_for_and_hardly_more(gaps: list[tuple[int, bool]], keep_ms: int) -> None:
    ring = PacketRing(1_000_000, keep_s=keep_ms / 1000)
    t_ms = 0
    born_ms: int | None = None
    for seq, (step_ms, key) in enumerate(gaps):
        t_ms += step_ms
        ring.put(Packet(seq, t_ms * 1_000_000, 1, key, b"x"))
        kept = ring.read(0, 1000)[0]
        if not kept:
            continue
        born_ms = t_ms if born_ms is None else born_ms
        oldest_ms = kept[0].t_ns // 1_000_000
        assert oldest_ms <= max(t_ms - keep_ms, born_ms), "what was asked for is there"
        later_keys = [p.t_ns // 1_000_000 for p in kept[1:] if p.is_key]
        assert all(t_ms - key_ms < keep_ms for key_ms in later_keys), "and no GOP more than that needs"


def test_an_empty_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        PacketRing(0)


def test_a_newer_state_of_an_event_replaces_the_older() -> None:
    board = EventBoard()
    board.put(event("a"))
    board.put(event("b"))
    board.put(event("a", 2, Phase.END))
    assert [(e.id, e.rev) for e in board.take()] == [("a", 2), ("b", 1)]
    assert board.take() == []


def test_states_given_back_come_first_and_never_replace_newer_ones() -> None:
    board = EventBoard()
    board.put(event("a"))
    taken = board.take()
    board.put(event("b"))
    board.put(event("a", 2))
    board.give_back(taken)
    assert [(e.id, e.rev) for e in board.take()] == [("a", 2), ("b", 1)]


def test_a_full_board_lets_the_oldest_ended_event_go_and_counts_it() -> None:
    board = EventBoard(capacity=2)
    board.put(event("open"))
    board.put(event("ended", phase=Phase.END))
    board.put(event("new"))
    assert [e.id for e in board.take()] == ["open", "new"]
    assert board.lost == 1


def test_acks_wait_until_taken_and_ring() -> None:
    bell = Doorbell()
    box = AckBox(bell)
    box.put(Ack(1, True))
    bell.wait(3600)
    assert box.take() == [Ack(1, True)]
    assert box.take() == []


def test_the_status_board_keeps_the_newest_of_each_topic_and_says_what_changed() -> None:
    board = StatusBoard()
    board.put("motion", Status(b"ON"))
    board.put("motion", Status(b"OFF"))
    board.put("health", Status(b"{}", qos=0))
    assert board.take() == {"motion": Status(b"OFF"), "health": Status(b"{}", qos=0)}
    assert board.take() == {}
    assert set(board.all()) == {"motion", "health"}
