"""Simulated days of an office on the fake camera, seen by the detector and held against the camera's own truth.

Run by scripts/week for days and, for a part of one, by tests/test_week.py. A day's happenings are pressed into some
minutes, each at its true speed: lamps, the infrared filter twice, dawn and dusk, clouds, a plant in a fan's wind,
flicker, people, some of them while a lamp is switched, and a clerk who sits.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass, field

from agent.cameras.fake import FakeSource
from agent.cameras.scene import Cloud, Daylight, Foliage, Infrared, Lamp, Scene, Sitter, Walker
from agent.model import NS_PER_S, Frame, Packet
from agent.motion import Detector

TALL = 0.08
"""Nobody who is taller than this share of the picture may be missed."""
AFTER_S = 1.5
"""Motion so long after somebody left is still his: a door, the light on what he uncovered."""
SAME_EDGE_S = 2.0
LEARN_S = 6.0


def day_of_an_office(seed: int, length_s: float) -> Scene:
    """One day in length_s seconds (240 or more). Night, dawn, work, dusk, night."""
    chance = random.Random(seed)
    unit = length_s / 1200

    def at(second: float) -> float:
        return second * unit

    lamps = [Lamp(at(at_s) + chance.uniform(0, 5), at(for_s)) for at_s, for_s in ((330, 60), (450, 90), (830, 60))]
    walkers = [_walker(chance, at(100))]
    # Somebody is on his way in when the lamp is switched, and when it goes off again.
    for lamp in lamps:
        walkers.append(_walker(chance, lamp.at_s - chance.uniform(0.2, 1.5), least=0.3))
        walkers.append(_walker(chance, lamp.at_s + lamp.for_s - chance.uniform(0.2, 1.5), least=0.3))
    walkers += [_walker(chance, at(at_s) + chance.uniform(0, 6)) for at_s in (290, 420, 590, 780, 940, 1060)]
    cloud_starts = [at(at_s) + chance.uniform(0, 8) for at_s in (270, 400, 560, 620, 800, 870)]
    return Scene(
        name=f"day {seed}",
        place="office",
        light=0.02,
        flicker=0.03,
        daylight=(Daylight(at(200), at(80), 0.02, 1.0), Daylight(at(900), at(90), 1.0, 0.02)),
        infrared=(Infrared(0, at(240)), Infrared(at(960), at(240))),
        lamps=tuple(lamps),
        clouds=tuple(Cloud(start, chance.uniform(5, 20), chance.uniform(0.25, 0.6)) for start in cloud_starts),
        foliage=(Foliage(x=0.80, y=0.50, w=0.14, h=0.22, sway=0.006, period_s=0.8),),
        walkers=tuple(walkers),
        sitters=(Sitter(at_s=at(660), for_s=at(100), busy=0.5, x=0.45),),
    )


def _walker(chance: random.Random, at_s: float, least: float = 0.09) -> Walker:
    height = round(chance.choice((least, 0.5 * (least + 0.6), 0.6)), 3)
    from_x, to_x = chance.choice(((-0.1, 1.1), (1.1, -0.1)))
    # The smaller, the farther away, the nearer to the back of the room.
    return Walker(
        at_s=at_s,
        from_x=from_x,
        to_x=to_x,
        feet_y=round(0.55 + 0.65 * height, 3),
        height=height,
        speed=round(chance.uniform(0.10, 0.30), 3),
        look=chance.randrange(4),
    )


class _Sink:
    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def on_packet(self, packet: Packet) -> None:
        """Frames are enough."""

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(frame)


@dataclass(slots=True)
class Account:
    """What was seen of one scene. people, missed: the s at which each came; false: the s of rising edges.

    late_s: how long each one found was in view before he was found. clerk_share: of the time that only a clerk sits
    there, how much was active. quiet_share: of the empty frames, how many were active.
    """

    people: list[float] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    false: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    clerk_share: float = 0.0
    quiet_share: float = 0.0
    frames: int = 0
    light_changes: int = 0


def watched(
    scene: Scene,
    length_s: float,
    *,
    seed: int = 0,
    width: int = 320,
    height: int = 240,
    fps: float = 10.0,
    with_sensor: bool = True,
) -> Account:
    """The detector over length_s seconds of the scene, against its truth."""
    source = FakeSource(
        scene, width=width, height=height, fps=fps, seed=seed, want_packets=False, with_sensor=with_sensor
    )
    sink, detector, account = _Sink(), Detector(width, height), Account()
    source.open(NS_PER_S)
    active: list[bool] = []
    anybody: list[bool] = []
    only_clerk: list[bool] = []
    was_light = False
    for number in range(round(length_s * fps)):
        truth = source.truth(number)
        walking = [person for person in truth.people if person.kind != "sitter"]
        anybody.append(bool(truth.people))
        only_clerk.append(bool(truth.people) and not walking)
        source.step(sink)
        motion = detector.step(sink.frames.pop())
        active.append(motion.active)
        account.light_changes += motion.light_changed and not was_light
        was_light = motion.light_changed
    account.frames = len(active)
    _judge_people(account, scene, active, fps)
    _judge_quiet(account, active, anybody, fps)
    clerk = [said for said, only in zip(active, only_clerk, strict=True) if only]
    account.clerk_share = sum(clerk) / len(clerk) if clerk else 0.0
    return account


def _judge_people(account: Account, scene: Scene, active: list[bool], fps: float) -> None:
    for walker in scene.walkers:
        if walker.height < TALL:
            continue
        times = [i for i in range(len(active)) if _is_in_view(walker, i / fps)]
        if len(times) < fps or times[0] < LEARN_S * fps:
            continue
        account.people.append(round(times[0] / fps, 1))
        seen = [i for i in times if active[i]]
        if seen:
            account.late_s.append((seen[0] - times[0]) / fps)
        else:
            account.missed.append(f"{walker.height:.2f} tall at {walker.at_s:.1f} s")


def _is_in_view(walker: Walker, t_s: float) -> bool:
    place = walker.place(t_s)
    return place is not None and 0.0 <= place[0] <= 1.0


def _judge_quiet(account: Account, active: list[bool], anybody: list[bool], fps: float) -> None:
    after, before = round(AFTER_S * fps), round(0.3 * fps)
    quiet = [
        i for i in range(round(LEARN_S * fps), len(active)) if not any(anybody[max(i - after, 0) : i + before + 1])
    ]
    account.quiet_share = sum(active[i] for i in quiet) / len(quiet) if quiet else 0.0
    last = -1e9
    for i in quiet:
        if active[i] and not active[i - 1]:
            if i - last >= SAME_EDGE_S * fps:
                account.false.append(round(i / fps, 1))
            last = i


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="length of one day (its happenings, not its hours)"
    )
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--no-sensor", action="store_true", help="frames without the sensor's readings")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    begin, missed, false, people = time.monotonic(), 0, 0, 0
    for day in range(args.days):
        length_s = 60 * args.minutes
        seed = args.seed + day
        account = watched(
            day_of_an_office(seed, length_s), length_s, seed=seed, fps=args.fps, with_sensor=not args.no_sensor
        )
        late = sorted(account.late_s)
        print(
            f"day {day + 1}: {len(account.people)} people, missed {len(account.missed)} {account.missed}, "
            f"false {len(account.false)} {account.false}, "
            f"quiet-on {100 * account.quiet_share:.2f} %, found after {late[len(late) // 2] if late else 0:.1f} s "
            f"(worst {late[-1] if late else 0:.1f}), clerk {100 * account.clerk_share:.0f} %, "
            f"light {account.light_changes}, {time.monotonic() - begin:.0f} s",
            flush=True,
        )
        missed, false, people = missed + len(account.missed), false + len(account.false), people + len(account.people)
    print(f"{args.days} days: missed {missed} of {people}, false {false} ({false / max(args.days, 1):.1f} a day)")
    return 1 if missed or false > args.days else 0


if __name__ == "__main__":
    sys.exit(main())
