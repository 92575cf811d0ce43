"""The ladder: what a hot or underfed board gives up, in which order, and when it takes it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import SimulatedClock
from agent.handoffs import EventBoard, FrameSlot, StatusBoard
from agent.health import Health
from agent.keeper import CameraState
from agent.ladder import CLIMB_S, DESCEND_S, RUNGS, Ease, Ladder, Strain
from agent.messages import DiskHealth, HealthMessage
from agent.model import NS_PER_S, Frame
from agent.settings import Settings, load_settings
from agent.status import LinkStatus, StorageStatus, VisionStatus
from agent.vision import Vision

COOL, WARM, HOT = Strain(55.0), Strain(74.0), Strain(81.0)
SHORT_OF_POWER = Strain(45.0, under_voltage=True)


def run(ladder: Ladder, strain: Strain, seconds: float, start_s: float = 0) -> Ease:
    """One look each second."""
    ease = ladder.ease
    for second in range(int(seconds) + 1):
        ease = ladder.step(strain, round((start_s + second) * NS_PER_S))
    return ease


def test_a_cool_board_gives_nothing_up() -> None:
    ladder = Ladder()
    assert run(ladder, COOL, 3600) == Ease()
    assert ladder.trouble == ""


def test_heat_costs_analysis_first_then_frames_then_bitrate() -> None:
    ladder = Ladder()
    seen = [Ease()]
    for second in range(200):
        ease = ladder.step(HOT, second * NS_PER_S)
        if ease != seen[-1]:
            seen.append(ease)
    assert [(e.analysis, e.frame_rate, e.bitrate) for e in seen] == [
        (1, 1, 1),
        (0.5, 1, 1),
        (0.5, 0.5, 1),
        (0.5, 0.5, 0.5),
    ]
    assert ladder.trouble == "81 degrees C: half the frame rate and bitrate"


def test_it_steps_in_before_the_firmware_slows_the_processor_down() -> None:
    assert run(Ladder(), Strain(79.0), CLIMB_S).analysis == 0.5


def test_a_short_peak_changes_nothing() -> None:
    ladder = Ladder()
    run(ladder, HOT, CLIMB_S - 1)
    assert run(ladder, WARM, 5, CLIMB_S) == Ease()
    assert run(ladder, HOT, CLIMB_S - 1, CLIMB_S + 6) == Ease()


def test_between_the_limits_it_stays_where_it_is() -> None:
    ladder = Ladder()
    eased = run(ladder, HOT, CLIMB_S)
    assert eased != Ease()
    assert run(ladder, WARM, 10 * DESCEND_S, CLIMB_S + 1) == eased


def test_each_step_back_takes_its_own_calm() -> None:
    ladder = Ladder()
    run(ladder, HOT, 3 * CLIMB_S + 3)
    assert ladder.ease == RUNGS[3]
    start_s = 1000.0
    for rung in (2, 1, 0):
        assert run(ladder, COOL, DESCEND_S - 1, start_s) == RUNGS[rung + 1]
        start_s += DESCEND_S
        assert run(ladder, COOL, 0, start_s) == RUNGS[rung]
    assert ladder.trouble == ""


def test_under_voltage_and_the_firmwares_own_word_count_like_heat() -> None:
    for strain in (SHORT_OF_POWER, Strain(None, too_hot=True), Strain(58.0, too_hot=True)):
        assert run(Ladder(), strain, CLIMB_S).analysis == 0.5
    ladder = Ladder()
    run(ladder, SHORT_OF_POWER, CLIMB_S)
    assert ladder.trouble == "under-voltage: a stronger power supply is needed: half the frames are analysed"


def test_what_it_says_does_not_flicker_with_the_temperature() -> None:
    ladder = Ladder()
    run(ladder, HOT, CLIMB_S)
    said = {ladder.trouble}
    for second in range(15):
        ladder.step(Strain(78.0 + second / 10), round((CLIMB_S + 1 + second) * NS_PER_S))
        said.add(ladder.trouble)
    assert len(said) == 1


@given(
    looks=st.lists(
        st.tuples(
            st.floats(0.5, 60),
            st.builds(Strain, st.none() | st.floats(-20, 110), st.booleans(), st.booleans()),
        ),
        max_size=200,
    )
)
def test_it_moves_one_rung_at_a_time_and_never_faster_than_promised(looks: list[tuple[float, Strain]]) -> None:
    ladder, t_s, moved_s = Ladder(), 0.0, -1e9
    rung = 0
    for passed_s, strain in looks:
        t_s += passed_s
        now = RUNGS.index(ladder.step(strain, round(t_s * NS_PER_S)))
        assert abs(now - rung) <= 1
        if now != rung:
            assert t_s - moved_s >= (CLIMB_S if now > rung else DESCEND_S) - 1e-6
            assert strain.is_hard if now > rung else strain.is_gone
            moved_s, rung = t_s, now


# --- in the node -------------------------------------------------------------------------------------------------


def test_a_hot_board_is_degraded_with_the_reason_and_well_again_later(tmp_path: Path) -> None:
    throttled = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    heat = tmp_path / "sys/class/thermal/thermal_zone0/temp"
    for path, text in ((throttled, "0"), (heat, "56000")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    clock, statuses = SimulatedClock(), StatusBoard()
    health = Health(Settings(), clock, tmp_path)

    def run(seconds: int) -> None:
        for _ in range(seconds):
            clock.move(1)
            health.step(
                statuses,
                camera=CameraState(running=True),
                vision=VisionStatus(),
                storage=StorageStatus(),
                link=LinkStatus(),
            )

    run(10)
    assert statuses.verdict().state == "online"
    heat.write_text("79500")
    throttled.write_text("80008")
    run(30)
    assert health.ease == RUNGS[1]
    assert statuses.verdict().reasons == ("board: 80 degrees C: half the frames are analysed",)
    told = HealthMessage.model_validate_json(statuses.all()["health"].payload)
    assert told.throttled == ["temperature limit", "temperature limit earlier"]
    assert told.temperature_c == 79.5
    heat.write_text("60000")
    throttled.write_text("80000")
    run(310)
    assert health.ease == Ease()
    assert statuses.verdict().state == "online"


def test_an_eased_node_analyses_every_other_frame() -> None:
    slot = FrameSlot()
    vision = Vision(Settings(), slot, EventBoard(), StatusBoard(), lambda: "0" * 26)
    plane, half = np.full((48, 64), 90, np.uint8), np.full((24, 32), 128, np.uint8)

    def analysed(first: int, share: float) -> int:
        vision.ease(share)
        count = 0
        for seq in range(first, first + 30):
            slot.put(Frame(seq, seq * NS_PER_S // 15, plane, half, half))
            count += vision.step(0)
        return count

    assert analysed(0, 1) == 30
    assert 15 <= analysed(30, 0.5) <= 16
    assert analysed(60, 1) == 30


def test_health_forecasts_the_life_of_the_card_from_an_hour_on(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    clock, statuses = SimulatedClock(), StatusBoard()
    health = Health(load_settings(environ={}, overrides={"clips": {"card_endurance_tb": 73}}), clock, tmp_path)

    def told(written_mb: int) -> DiskHealth:
        (tmp_path / "proc/self/io").write_text(f"rchar: 7\nwrite_bytes: {written_mb}000000\n")
        health.step(statuses, camera=CameraState(), vision=VisionStatus(), storage=StorageStatus(), link=LinkStatus())
        return HealthMessage.model_validate_json(statuses.all()["health"].payload).disk

    clock.move(3500)
    assert (told(90).written_mb_per_day, told(90).life_years) == (None, None)
    clock.move(3700)
    disk = told(200)
    assert disk.written_mb == 200
    assert disk.written_mb_per_day == 2400, "200 MB in two hours"
    assert disk.life_years == 83.3, "73 TB at 2.4 GB a day"
