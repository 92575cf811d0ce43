"""What events are cut from motion, whatever the detector says."""

from __future__ import annotations

from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.events import Events, quality
from agent.model import NS_PER_S, Box, EndReason, Event, Moment, Motion, Phase
from agent.settings import DetectionSettings

FRAME_NS = NS_PER_S // 10
SETTINGS = DetectionSettings(quiet_s=1, max_event_s=5, update_s=0.5)


def motion(
    frame: int, *, active: bool = True, size: float = 0.1, x: float = 0.3, zones: tuple[str, ...] = ()
) -> Motion:
    boxes = (Box(x, 0.3, size, size),) if active else ()
    since = Moment(max(frame - 2, 0) * FRAME_NS + 1, max(frame - 2, 0)) if active else None
    return Motion(frame, frame * FRAME_NS + 1, 0.9 if active else 0.0, active, boxes, zones, since=since)


def events(given_settings: DetectionSettings = SETTINGS) -> Events:
    ids = count(1)
    return Events(given_settings, lambda: f"E{next(ids)}")


def run(machine: Events, motions: list[Motion]) -> list[Event]:
    return [event for one in motions for event in machine.step(one)]


def test_an_event_starts_with_the_detectors_word_and_is_dated_back_to_the_first_moving_frame() -> None:
    told = run(events(), [motion(0, active=False), motion(5)])
    assert [event.phase for event in told] == [Phase.START]
    assert told[0].start.frame == 3
    assert told[0].last.frame == told[0].peak.frame == 5


def test_an_event_ends_after_the_quiet_time_at_its_last_moving_frame() -> None:
    told = run(events(), [motion(i, active=i <= 8) for i in range(5, 30)])
    end = told[-1]
    assert (end.phase, end.end_reason) == (Phase.END, EndReason.QUIET)
    assert end.end == end.last
    assert end.last.frame == 8


def test_a_pause_shorter_than_the_quiet_time_does_not_cut_an_event() -> None:
    told = run(events(), [motion(i, active=i % 9 == 0) for i in range(40)])
    assert [event.phase for event in told] == [Phase.START]


def test_a_long_event_is_cut_and_goes_on_as_a_new_one_without_overlap() -> None:
    told = run(events(), [motion(i) for i in range(120)])
    cut = next(event for event in told if event.phase is Phase.END)
    again = told[told.index(cut) + 1]
    assert cut.end_reason is EndReason.MAX_LENGTH
    assert again.phase is Phase.START
    assert again.id != cut.id
    assert again.start.t_ns > cut.last.t_ns


def test_the_peak_is_the_largest_whole_picture_and_not_the_first() -> None:
    told = run(events(), [motion(1, size=0.05), motion(2, size=0.3), motion(3, size=0.1), motion(20, active=False)])
    assert told[-1].peak.frame == 2
    assert told[-1].boxes[0].w == 0.3


def test_a_thing_cut_off_by_the_pictures_edge_is_a_worse_picture_than_a_whole_one() -> None:
    assert quality(motion(1, size=0.3, x=0.0)) < quality(motion(1, size=0.25))


def test_an_update_is_told_when_the_picture_got_clearly_better_and_not_more_often_than_asked() -> None:
    growing = [motion(i, size=0.05 * 1.3**i) for i in range(9)]
    told = run(events(), growing)
    assert [event.phase for event in told] == [Phase.START, Phase.UPDATE]
    steady = run(events(), [motion(i) for i in range(9)])
    assert [event.phase for event in steady] == [Phase.START]


def test_a_new_zone_is_told_and_zones_only_grow() -> None:
    told = run(events(), [motion(i, zones=("door",) if i < 6 else ("desk",)) for i in range(12)])
    assert [event.zones for event in told] == [("door",), ("door", "desk")]


def test_a_shutdown_or_a_lost_camera_ends_the_open_event() -> None:
    machine = events()
    run(machine, [motion(1)])
    assert [event.end_reason for event in machine.close(EndReason.CAMERA_LOST)] == [EndReason.CAMERA_LOST]
    assert machine.close(EndReason.SHUTDOWN) == []


MOTIONS = st.lists(
    st.tuples(
        st.integers(1, 40), st.booleans(), st.floats(0.01, 1), st.sampled_from([(), ("a",), ("b",), ("a", "b")])
    ),
    max_size=60,
)


@given(MOTIONS, st.sampled_from(list(EndReason)))
@settings(deadline=None)
def test_any_sequence_of_motions_gives_well_formed_events(
    steps: list[tuple[int, bool, float, tuple[str, ...]]], reason: EndReason
) -> None:
    machine, frame, motions = events(), 0, []
    for gap, active, size, zones in steps:
        frame += gap
        motions.append(motion(frame, active=active, size=size, zones=zones))
    told = run(machine, motions) + machine.close(reason)
    by_id: dict[str, list[Event]] = {}
    for event in told:
        by_id.setdefault(event.id, []).append(event)
    before_ns = -1
    for revisions in by_id.values():
        assert [event.rev for event in revisions] == list(range(1, len(revisions) + 1))
        phases = [event.phase for event in revisions]
        assert phases[0] is Phase.START
        assert phases[-1] is Phase.END
        assert set(phases[1:-1]) <= {Phase.UPDATE}
        for event in revisions:
            assert event.start == revisions[0].start
            assert event.start.t_ns <= event.peak.t_ns <= event.last.t_ns
            assert (event.end is None) == (event.phase is not Phase.END)
            assert (event.end_reason is None) == (event.phase is not Phase.END)
        assert revisions[0].start.t_ns > before_ns
        before_ns = revisions[-1].last.t_ns
