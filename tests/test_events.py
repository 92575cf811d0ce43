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


def sign(frame: int, score: float) -> Motion:
    """A frame of which the detector is not sure enough for its word."""
    return Motion(frame, frame * FRAME_NS + 1, score, False)


def test_half_a_movement_keeps_an_event_open_but_opens_none_and_does_not_move_its_end() -> None:
    assert run(events(), [sign(i, 0.4) for i in range(40)]) == []
    told = run(events(), [motion(5), *(sign(i, 0.4) for i in range(6, 25)), *(sign(i, 0.0) for i in range(25, 45))])
    assert [event.phase for event in told] == [Phase.START, Phase.END]
    assert told[-1].end == told[-1].last == motion(5).moment
    machine = events()
    assert [event.phase for event in run(machine, [motion(5), *(sign(i, 0.1) for i in range(6, 17))])][1:] == [
        Phase.END
    ]


def stand(machine: Events, frames: range) -> list[Event]:
    return [event for i in frames for event in machine.step(sign(i, 0.0), is_there=True)]


def test_somebody_who_stands_still_for_a_while_stays_in_one_event() -> None:
    machine = events(SETTINGS.model_copy(update={"still_s": 10, "max_event_s": 60}))
    told = [*run(machine, [motion(5)]), *stand(machine, range(6, 90)), *run(machine, [motion(i) for i in (90, 91)])]
    assert [event.phase for event in told if event.phase is not Phase.UPDATE] == [Phase.START]
    assert machine.close(EndReason.SHUTDOWN)[0].last.frame == 91


def test_what_stays_ends_its_event_at_the_moment_it_stopped() -> None:
    machine = events(SETTINGS.model_copy(update={"still_s": 10, "max_event_s": 60}))
    told = [*run(machine, [motion(5)]), *stand(machine, range(6, 300))]
    assert [(event.phase, event.last.frame) for event in told] == [(Phase.START, 5), (Phase.END, 5)]
    assert told[-1].end_reason is EndReason.QUIET
    without = events(SETTINGS.model_copy(update={"still_s": 0}))
    assert len([*run(without, [motion(5)]), *stand(without, range(6, 20))]) == 2


def test_who_stirs_where_he_sat_down_stays_in_one_event_beyond_the_time_for_standing_still() -> None:
    machine = events(SETTINGS.model_copy(update={"still_s": 10, "max_event_s": 60}))
    told = run(machine, [motion(5)])
    for i in range(6, 400):
        told += machine.step(sign(i, 0.0), is_there=True, stirs=i % 80 == 0)
    assert [event.phase for event in told] == [Phase.START]
    told += stand(machine, range(400, 500))
    assert (told[-1].phase, told[-1].last.frame) == (Phase.END, 320)


def gusts(first: int, number: int, every: int = 40) -> list[Motion]:
    """So many short movements, a second long, one every `every` tenths of a second."""
    return [
        motion(first + i * every + tick, active=tick < 10, size=0.1 + 0.001 * i)
        for i in range(number)
        for tick in range(every)
    ]


STORMY = SETTINGS.model_copy(update={"max_event_s": 120, "storm_per_min": 6})


def test_a_storm_of_short_movements_becomes_one_event_that_tells_its_rate() -> None:
    machine = events(STORMY)
    told = [*run(machine, gusts(5, 25)), *run(machine, [sign(i, 0.0) for i in range(1005, 1320)])]
    starts = [event for event in told if event.phase is Phase.START]
    assert [event.rate_per_min for event in starts] == [None] * 5 + [6]
    end = told[-1]
    assert (end.phase, end.id, end.end_reason) == (Phase.END, starts[-1].id, EndReason.QUIET)
    assert end.rate_per_min == 15
    assert end.last.frame == 5 + 24 * 40 + 9  # nothing of the storm is left out
    assert end.peak.frame >= 5 + 24 * 40  # nor its best picture


def test_after_a_storm_events_are_single_again() -> None:
    machine = events(STORMY)
    run(machine, [*gusts(5, 25), *(sign(i, 0.0) for i in range(1005, 2000))])
    told = run(machine, [motion(2000), *(sign(i, 0.0) for i in range(2001, 2020))])
    assert [(event.phase, event.rate_per_min) for event in told] == [(Phase.START, None), (Phase.END, None)]


def test_a_long_storm_is_cut_at_the_longest_length_and_goes_on_as_a_storm() -> None:
    told = run(events(STORMY), gusts(5, 80))
    starts = [event.rate_per_min for event in told if event.phase is Phase.START]
    assert len(starts) < 12
    assert all(starts[5:])


def test_storms_are_not_gathered_where_that_was_not_asked_for() -> None:
    told = run(events(STORMY.model_copy(update={"storm_per_min": 0})), gusts(5, 25))
    assert len([event for event in told if event.phase is Phase.START]) == 25


def test_a_sharp_picture_beats_a_blurred_one_that_is_a_little_larger() -> None:
    machine = events()
    machine.step(motion(1, size=0.3), 0.8)
    assert machine.may_be_peak(motion(2, size=0.35))
    machine.step(motion(2, size=0.35), 0.1)
    assert machine.peak == motion(1).moment
    assert not machine.may_be_peak(motion(3, size=0.2))  # then nobody need measure


MOTIONS = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.booleans(),
        st.floats(0.01, 1),
        st.sampled_from([(), ("a",), ("b",), ("a", "b")]),
        st.booleans(),
    ),
    max_size=60,
)


@given(MOTIONS, st.sampled_from(list(EndReason)), st.sampled_from([0, 1, 3]))
@settings(deadline=None)
def test_any_sequence_of_motions_gives_well_formed_events(
    steps: list[tuple[int, bool, float, tuple[str, ...], bool]], reason: EndReason, storm_per_min: int
) -> None:
    machine, frame, told = events(SETTINGS.model_copy(update={"storm_per_min": storm_per_min})), 0, []
    for gap, active, size, zones, is_there in steps:
        frame += gap
        told += machine.step(motion(frame, active=active, size=size, zones=zones), size, is_there)
    told += machine.close(reason)
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
