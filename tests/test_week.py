"""A short simulated day of an office, and twenty lamps switched over somebody's head, against the camera's truth."""

from __future__ import annotations

import random

from week import day_of_an_office, watched

from agent.cameras.scene import Lamp, Scene, Walker


def test_a_day_of_lamps_infrared_clouds_a_fan_and_flicker_misses_nobody_and_makes_nobody_up() -> None:
    account = watched(day_of_an_office(3, 240), 240, seed=3)
    assert len(account.people) >= 10
    assert account.missed == []
    assert account.false == []
    assert account.light_changes >= 4


def test_somebody_at_a_lamp_switch_is_found_twenty_times_of_twenty() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        lamp = Lamp(
            at_s=7 + chance.random(),
            for_s=20,
            x=chance.random(),
            y=chance.uniform(0, 0.4),
            reach=chance.uniform(0.3, 1.0),
            brightness=chance.uniform(0.4, 4),
            ramp_s=chance.choice((0.02, 0.1, 0.5, 2)),
        )
        height = chance.uniform(0.12, 0.6)
        from_x, to_x = chance.choice(((-0.1, 1.1), (1.1, -0.1)))
        walker = Walker(
            at_s=lamp.at_s - chance.uniform(-0.4, 1.0),
            from_x=from_x,
            to_x=to_x,
            speed=chance.uniform(0.1, 0.35),
            height=height,
            feet_y=0.55 + 0.65 * height,
            look=chance.randrange(4),
        )
        scene = Scene("switch", "office", light=chance.uniform(0.05, 0.6), lamps=(lamp,), walkers=(walker,))
        account = watched(scene, walker.at_s + walker.for_s, seed=seed)
        assert len(account.people) == 1, f"seed {seed}"
        assert account.missed == [], f"seed {seed}"
        assert account.false == [], f"seed {seed}"
