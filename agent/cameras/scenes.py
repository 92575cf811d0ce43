"""The built-in scenes by name. Touches nothing; docs/FAKE-CAMERA.md describes them for users."""

from __future__ import annotations

from pathlib import Path

from agent.cameras.nuisances import Fan, Headlights, Hunt, Insects, Shake, Snow, Thing
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
            "snow",
            "garden",
            "Snow from 5 to 40 s; somebody walks through it at 20 s.",
            period_s=45,
            light=0.9,
            snow=(Snow(at_s=5, for_s=35),),
            walkers=(Walker(at_s=20, speed=0.15, height=0.42, feet_y=0.86, look=2),),
        ),
        Scene(
            "insects",
            "counter",
            "Insects before an infrared camera at night from 5 to 40 s; somebody walks among them at 20 s.",
            period_s=45,
            light=0.02,
            infrared=(Infrared(at_s=0, for_s=45, brightness=0.1),),
            insects=(Insects(at_s=5, for_s=35, per_s=1.0),),
            walkers=(Walker(at_s=20, speed=0.15, height=0.5, feet_y=0.94, look=2),),
        ),
        Scene(
            "storm",
            "garden",
            "A gale: trees toss all the time, gust after gust; somebody crosses at 25 s.",
            period_s=60,
            light=1.2,
            foliage=(
                Foliage(x=0.60, y=0.06, w=0.39, h=0.46, sway=0.03, period_s=1.3),
                Foliage(x=0.0, y=0.44, w=0.28, h=0.22, sway=0.02, period_s=1.1),
            ),
            walkers=(Walker(at_s=25, speed=0.15, height=0.45, feet_y=0.9, look=1),),
        ),
        Scene(
            "shadows",
            "garden",
            "Shadows of clouds with hard edges (8 s) and soft ones (20 s) pass; somebody walks in one (32 s).",
            period_s=50,
            light=2.5,
            clouds=(
                Cloud(at_s=8, for_s=8, depth=0.5, size=0.5, edge=0.02),
                Cloud(at_s=20, for_s=9, depth=0.5, size=0.7),
                Cloud(at_s=33, for_s=8, depth=0.45, size=0.4, edge=0.03),
            ),
            walkers=(Walker(at_s=32, speed=0.18, height=0.45, feet_y=0.9, look=0),),
        ),
        Scene(
            "shake",
            "office",
            "The camera shakes from 6 to 18 s, and from 24 to 40 s while somebody crosses (28 s).",
            period_s=45,
            shakes=(Shake(at_s=6, for_s=12), Shake(at_s=24, for_s=16, sway=0.005, hz=2.1)),
            walkers=(Walker(at_s=28, speed=0.2, height=0.5, look=2),),
        ),
        Scene(
            "hunting",
            "office",
            "The exposure swings about the right one from 6 to 16 s, and from 22 to 36 s with somebody there (26 s).",
            period_s=40,
            hunts=(Hunt(at_s=6, for_s=10), Hunt(at_s=22, for_s=14, stops=0.35, period_s=0.9)),
            walkers=(Walker(at_s=26, speed=0.2, height=0.5, look=1),),
        ),
        Scene(
            "headlights",
            "office",
            "The light of passing cars travels over a dark room at 7 and 15 s, and at 31 s with somebody in it.",
            period_s=45,
            light=0.15,
            headlights=(
                Headlights(at_s=7),
                Headlights(at_s=15, from_x=1.4, to_x=-0.4, for_s=1.6),
                Headlights(at_s=31),
            ),
            walkers=(Walker(at_s=30, speed=0.25, height=0.52, look=2),),
        ),
        Scene(
            "fan",
            "office",
            "A fan turns all day; somebody crosses at 15 s.",
            period_s=35,
            fans=(Fan(x=0.72, y=0.22, radius=0.12),),
            walkers=(Walker(at_s=15, speed=0.2, height=0.5, look=0),),
        ),
        Scene(
            "night",
            "office",
            "Hardly any light and no infrared: all gain and noise; somebody crosses at 12 s.",
            period_s=35,
            light=0.012,
            walkers=(Walker(at_s=12, speed=0.18, height=0.52, look=1),),
        ),
        Scene(
            "faint",
            "office",
            "Somebody dressed like the wall crosses at 8 s, and somebody slow at 22 s.",
            period_s=50,
            light=0.5,
            walkers=(
                Walker(at_s=8, speed=0.2, height=0.5, contrast=0.2),
                Walker(at_s=22, speed=0.05, height=0.4, contrast=0.3, feet_y=0.85, look=1),
            ),
        ),
        Scene(
            "far",
            "garden",
            "People far away: 10 % of the picture's height at 8 s, 8 % at 30 s, slowly.",
            period_s=70,
            light=1.5,
            walkers=(
                Walker(at_s=8, speed=0.08, height=0.10, feet_y=0.66, look=1),
                Walker(at_s=30, from_x=1.05, to_x=-0.05, speed=0.035, height=0.08, feet_y=0.64, look=2),
            ),
        ),
        Scene(
            "parked",
            "garden",
            "A car comes at 8 s, parks, and drives off at 40 s; somebody walks by it at 25 s.",
            period_s=60,
            light=1.8,
            things=(Thing(look="car", x=-0.35, to_x=0.35, away_x=1.4, moves_at_s=8, leaves_at_s=40, height=0.2),),
            walkers=(Walker(at_s=25, speed=0.2, height=0.45, feet_y=0.97, look=0),),
        ),
        Scene(
            "chair",
            "office",
            "Somebody comes at 8 s, moves a chair to the left (12 s) and goes; the chair stays there.",
            period_s=60,
            things=(Thing(x=0.36, to_x=0.16, moves_at_s=12, speed=0.1, feet_y=0.92, height=0.3),),
            walkers=(
                Walker(at_s=8, from_x=1.12, to_x=0.38, speed=0.185, height=0.5, feet_y=0.93, look=2),
                Walker(at_s=12, from_x=0.38, to_x=0.18, speed=0.1, height=0.5, feet_y=0.93, look=2),
                Walker(at_s=14, from_x=0.18, to_x=-0.12, speed=0.2, height=0.5, feet_y=0.93, look=2),
            ),
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
