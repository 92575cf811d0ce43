"""The recorder: where clips begin and end, what they are called, and what their flags say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from storage_fixtures import FPS, FRAME_NS, Rig, event, frames_of, make_rig, packets

from agent.ledger import ClipRow
from agent.model import NS_PER_S, Event, Moment, Packet, Phase
from agent.ulid import is_ulid
from agent.verification import verify_clip

pytest_plugins = ["closing"]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    found = make_rig(tmp_path / "node", max_clip_s=10)
    found.storage.open()
    return found


def ended(state: Event, end_ns: int) -> Event:
    return replace(state, rev=state.rev + 1, phase=Phase.END, last=Moment(end_ns, 0), end=Moment(end_ns, 0))


def only(rig: Rig) -> ClipRow:
    (clip,) = rig.reader.clips()
    assert not list(verify_clip(rig.directory / "clips" / clip.file, clip, decode_all=True))
    return clip


def test_clip_starts_at_the_keyframe_before_the_pre_roll_and_ends_after_the_post_roll(rig: Rig) -> None:
    rig.film(5.5)  # the event starts half way into a GOP; the pre-roll is 2 s
    start_ns = rig.clock.boot_ns()
    happened = rig.event_of(3, post_s=4)
    clip = only(rig)
    assert happened.end is not None
    assert clip.start_t_ns == 103 * NS_PER_S
    assert clip.start_t_ns <= start_ns - 2 * NS_PER_S < clip.start_t_ns + NS_PER_S
    assert happened.end.t_ns + 2 * NS_PER_S <= clip.end_t_ns <= happened.end.t_ns + 2 * NS_PER_S + 2 * FRAME_NS
    assert clip.flags == ()


def test_clip_shows_the_event_at_the_time_the_ledger_says(tmp_path: Path) -> None:
    """Frame times of the file plus start_t_ns are the frames' own times: the picture's brightness counts frames."""
    rig = make_rig(tmp_path / "node")
    rig.storage.open()
    shot = packets(120, start_ns=rig.clock.boot_ns())
    begin = event(shot[50].t_ns)
    for index, packet in enumerate(shot):
        rig.clock.move_to(packet.t_ns + FRAME_NS)
        rig.ring.put(packet)
        if index == 52:
            rig.board.put(begin)
        if index == 80:
            rig.board.put(ended(begin, shot[78].t_ns))
        rig.storage.step(0)
    clip = only(rig)
    seen = list(frames_of((rig.directory / "clips" / clip.file).read_bytes()))
    first = round((clip.start_t_ns - shot[0].t_ns) / FRAME_NS)
    everything = [shade for _, shade in frames_of_packets(shot)]
    assert [shade for _, shade in seen] == everything[first : first + len(seen)]
    for index, (time, _) in enumerate(seen):
        assert clip.start_t_ns + time * NS_PER_S == pytest.approx(shot[first + index].pts_ns, abs=1_000_000)


def frames_of_packets(shot: list[Packet]) -> list[tuple[float, int]]:
    from agent.mp4 import FragmentMuxer

    muxer = FragmentMuxer(shot[0])
    return list(frames_of(b"".join([*(muxer.mux(packet) for packet in shot), muxer.close()])))


def test_clip_starts_with_the_oldest_kept_when_the_pre_roll_is_not_there_yet(rig: Rig) -> None:
    rig.film(0.5)
    rig.event_of(1, post_s=4)
    assert only(rig).start_t_ns == 100 * NS_PER_S


def test_second_event_during_the_post_roll_joins_the_clip(rig: Rig) -> None:
    rig.film(2)
    first = rig.event_of(1, post_s=1)
    second = rig.event_of(1, post_s=4)
    clip = only(rig)
    assert set(clip.event_ids) == {first.id, second.id}


def test_event_after_the_post_roll_gets_a_clip_of_its_own(rig: Rig) -> None:
    rig.film(2)
    rig.event_of(1, post_s=3)
    rig.event_of(1, post_s=3)
    assert [len(clip.event_ids) for clip in rig.reader.clips()] == [1, 1]


def test_long_event_goes_on_in_the_next_file_without_a_missing_frame(rig: Rig) -> None:
    rig.film(2)
    happened = rig.event_of(23, post_s=4)
    clips = rig.reader.clips()
    assert [clip.flags for clip in clips] == [("continued",), ("continued", "continues"), ("continues",)]
    assert all(clip.event_ids == (happened.id,) for clip in clips)
    assert all(clip.duration_s <= 10 for clip in clips)
    assert [a.end_t_ns for a in clips[:-1]] == [b.start_t_ns for b in clips[1:]]


def test_names_are_made_from_the_id_only_and_sort_by_time(rig: Rig) -> None:
    for _ in range(3):
        rig.film(2)
        rig.event_of(1, post_s=3)
    clips = rig.reader.clips()
    assert all(is_ulid(clip.id) and clip.file == f"{clip.id}.mp4" for clip in clips)
    assert sorted(clip.file for clip in clips) == [clip.file for clip in clips]


def test_clip_is_a_part_until_it_is_whole(rig: Rig) -> None:
    rig.film(3)
    rig.happen(event(rig.clock.boot_ns()))
    rig.film(2)
    (part,) = (rig.directory / "clips").iterdir()
    assert part.name.endswith(".mp4.part")
    assert rig.storage.status.recording
    assert list(frames_of(part.read_bytes()))


@pytest.mark.parametrize(("skip", "flags"), [(3, ("gap",)), (0, ())])
def test_packets_that_are_missing_make_a_gap_and_what_follows_decodes(
    rig: Rig, skip: int, flags: tuple[str, ...]
) -> None:
    rig.film(2)
    rig.happen(event(rig.clock.boot_ns()))
    begun = rig.clock.boot_ns()
    shot = packets(3 * FPS, start_ns=begun, seq=rig.next_seq)
    rig.next_seq += len(shot)
    for packet in shot[:15] + shot[15 + skip :]:
        rig.clock.move_to(packet.t_ns)
        rig.ring.put(packet)
        rig.storage.step(0)
    rig.storage.close()
    clip = only(rig)
    assert clip.flags == flags
    assert clip.frames == 20 + 30 - (5 if skip else 0)  # nothing until the next keyframe, 5 frames later


def test_pause_of_the_camera_is_a_gap_with_true_times_after_it(rig: Rig) -> None:
    rig.film(2)
    rig.happen(event(rig.clock.boot_ns()))
    rig.film(1)
    rig.clock.move(3)
    after_ns = rig.clock.boot_ns()
    rig.film(1)
    rig.storage.close()
    clip = only(rig)
    times = [time for time, _ in frames_of((rig.directory / "clips" / clip.file).read_bytes())]
    assert clip.flags == ("gap",)
    assert clip.start_t_ns + times[-10] * NS_PER_S == pytest.approx(after_ns, abs=1_000_000)


def test_camera_that_changes_its_format_begins_a_new_file(rig: Rig) -> None:
    rig.film(2)
    rig.happen(event(rig.clock.boot_ns()))
    rig.film(2)
    rig.film(2, width=96)
    rig.film(2, codec="hevc")
    rig.storage.close()
    clips = rig.reader.clips()
    assert [clip.frames for clip in clips] == [40, 20, 20]
    assert clips[0].flags == ("continued",)
    for clip in clips:
        assert not list(verify_clip(rig.directory / "clips" / clip.file, clip, decode_all=True))


def test_streams_with_b_frames_keep_their_times(rig: Rig) -> None:
    rig.film(2, b_frames=2)
    rig.happen(event(rig.clock.boot_ns()))
    rig.film(2, b_frames=2)
    rig.storage.close()
    clip = only(rig)
    assert clip.start_t_ns == 100 * NS_PER_S + 2 * FRAME_NS
    assert clip.frames == 40


def test_event_the_ring_no_longer_shows_makes_no_clip(rig: Rig) -> None:
    rig.film(2)
    begin = event(rig.clock.boot_ns())
    rig.ring._capacity_bytes = 2000
    rig.film(20)
    rig.happen(ended(begin, begin.start.t_ns + NS_PER_S))
    rig.film(2)
    assert rig.reader.clips() == []
    assert not rig.storage.status.recording


def test_one_gop_costs_one_append_and_one_sync(tmp_path: Path) -> None:
    from faulty_disk import FailingDisk

    disk = FailingDisk()
    rig = make_rig(tmp_path / "node", disk=disk)
    rig.storage.open()
    rig.film(4)
    rig.happen(event(rig.clock.boot_ns()))
    rig.film(1.1)
    before = disk.operations
    rig.film(4)
    housekeeping = 1
    assert disk.operations - before <= 4 * 2 + housekeeping
