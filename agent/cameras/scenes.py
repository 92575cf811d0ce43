"""The built-in scenes by name. Touches nothing; docs/FAKE-CAMERA.md describes them for users."""

from __future__ import annotations

from pathlib import Path

from agent.cameras.scene import (
    Cloud,
    Cover,
    Daylight,
    Foliage,
    Freeze,
    Infrared,
    Lamp,
    Rain,
    Scene,
    Sitter,
    Turn,
    Walker,
    load_scene,
)
from agent.errors import ConfigError

_LEAVES = (
    Foliage(x=0.62, y=0.08, w=0.36, h=0.42, sway=0.010),
    Foliage(x=0.02, y=0.42, w=0.24, h=0.22, sway=0.006, period_s=1.7),
)

BUILT_IN: dict[str, Scene] = {
    scene.name: scene
    for scene in (
        Scene(
            "office",
            "office",
            "Two people cross an office: 5 to 9 s from the left, 15 to 20 s from the right with a stop.",
            period_s=40,
            walkers=(
                Walker(at_s=5, from_x=-0.10, to_x=1.10, speed=0.30, height=0.56, feet_y=0.93, look=0),
                Walker(
                    at_s=16,
                    from_x=1.10,
                    to_x=-0.10,
                    speed=0.34,
                    height=0.50,
                    feet_y=0.88,
                    pause_at=0.45,
                    pause_s=0.8,
                    look=1,
                ),
            ),
        ),
        Scene("empty", "office", "The office with nobody in it."),
        Scene(
            "counter",
            "counter",
            "A clerk sits at a counter and hardly moves; a customer comes by every minute.",
            period_s=60,
            sitters=(Sitter(x=0.55, seat_y=0.66, height=0.40, busy=0.3, look=3),),
            walkers=(
                Walker(
                    at_s=20,
                    from_x=-0.15,
                    to_x=0.30,
                    speed=0.2,
                    height=0.78,
                    feet_y=1.06,
                    pause_at=0.30,
                    back=True,
                    pause_s=4,
                    look=2,
                ),
            ),
        ),
        Scene(
            "lamp",
            "office",
            "A lamp is switched on and off in an empty room, then once more with somebody crossing.",
            period_s=60,
            light=0.35,
            lamps=(Lamp(at_s=8, for_s=10), Lamp(at_s=32, for_s=12)),
            walkers=(Walker(at_s=30.5, speed=0.25, height=0.52, feet_y=0.92, look=2),),
        ),
        Scene(
            "daylight",
            "office",
            "The light fades and returns within two minutes; clouds pass; somebody crosses at dusk.",
            period_s=120,
            daylight=(Daylight(5, 45, 1.0, 0.12), Daylight(65, 45, 0.12, 1.0)),
            clouds=(Cloud(at_s=20, for_s=10), Cloud(at_s=90, for_s=8, depth=0.55)),
            walkers=(Walker(at_s=55, speed=0.2, height=0.52, look=1),),
        ),
        Scene(
            "night-ir",
            "office",
            "A dark room; the camera switches to infrared at 10 s and back at 50 s; somebody crosses at 25 s.",
            period_s=60,
            light=0.02,
            infrared=(Infrared(at_s=10, for_s=40),),
            walkers=(Walker(at_s=25, speed=0.2, height=0.54, look=2),),
        ),
        Scene(
            "flicker",
            "office",
            "Mains flicker under a poor lamp: bands roll through the picture; somebody crosses at 10 s.",
            period_s=30,
            light=0.8,
            flicker=0.06,
            walkers=(Walker(at_s=10, speed=0.2, height=0.5, look=0),),
        ),
        Scene(
            "garden",
            "garden",
            "Leaves wave in the wind; somebody crosses the garden at 12 s.",
            period_s=45,
            light=2.5,
            foliage=_LEAVES,
            walkers=(Walker(at_s=12, speed=0.12, height=0.42, feet_y=0.86, look=1),),
        ),
        Scene(
            "rain",
            "garden",
            "Rain from 5 to 40 s over waving leaves; somebody hurries by at 20 s.",
            period_s=45,
            light=0.8,
            foliage=_LEAVES,
            rain=(Rain(at_s=5, for_s=35),),
            walkers=(Walker(at_s=20, speed=0.25, height=0.42, feet_y=0.86, look=2),),
        ),
        Scene(
            "tamper",
            "office",
            "A hand covers the lens at 8 s, the camera is turned aside at 24 s, the picture freezes at 40 s.",
            period_s=60,
            covers=(Cover(at_s=8, for_s=8),),
            turns=(Turn(at_s=24, for_s=8),),
            freezes=(Freeze(at_s=40, for_s=10),),
            walkers=(Walker(at_s=41, speed=0.2, height=0.5, look=0),),
        ),
    )
}


def find_scene(name: str) -> Scene:
    """A built-in scene by name, or a scene file by path (anything with a slash or .toml). ConfigError if neither."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name.endswith(".toml") or "/" in name:
        return load_scene(Path(name))
    known = ", ".join(BUILT_IN)
    raise ConfigError("read", f"camera.scene = {name!r}", "no such scene", hint=f"one of {known}, or a .toml file")
