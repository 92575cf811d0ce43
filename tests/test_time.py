"""Clocks that are wrong, jump or are set late: nothing deleted early, nothing named twice, times put right."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from storage_fixtures import Rig, event, make_rig

from agent.clock import SimulatedClock
from agent.ledger import LedgerReader
from agent.messages import ClipBody, EventBody
from agent.model import Ack, OutboxKind
from agent.ulid import new_ulid
from agent.verification import verify_index

pytest_plugins = ["closing"]
DAY_S = 86400
TRUE_WALL_S = 1_764_000_000


def unsynced_rig(directory: Path) -> Rig:
    """A board without a battery clock: it wakes up in 1970."""
    clock = SimulatedClock(wall_ns=3600 * 10**9)
    clock.is_synced = False
    rig = make_rig(directory, clock=clock)
    rig.storage.open()
    return rig


def synchronise(rig: Rig) -> None:
    rig.clock.step_wall(TRUE_WALL_S)
    rig.clock.is_synced = True
    for _ in range(6):
        rig.film(1)


def bodies(rig: Rig, kind: OutboxKind) -> list[str]:
    return [row.body for row in rig.reader.sent(0, 10**9, 10**6) if row.kind is kind]


def test_what_was_not_sent_before_the_clock_was_set_gets_its_true_time(tmp_path: Path) -> None:
    rig = unsynced_rig(tmp_path / "node")
    rig.event_of(2, post_s=4)
    before = rig.reader.clips()[0]
    synchronise(rig)
    clip = rig.reader.clips()[0]
    assert clip.start_wall_ns == before.start_wall_ns + TRUE_WALL_S * 10**9
    assert clip.clock_synced
    rows = rig.reader.due(0, 100)
    assert [row.kind for row in rows] == [OutboxKind.EVENT, OutboxKind.THUMB, OutboxKind.EVENT, OutboxKind.CLIP]
    assert all(row.clock_synced and row.wall_ns > TRUE_WALL_S * 10**9 for row in rows)
    starts = {EventBody.model_validate_json(body).start[:10] for body in bodies(rig, OutboxKind.EVENT)}
    assert starts == {"2025-11-24"}
    assert ClipBody.model_validate_json(bodies(rig, OutboxKind.CLIP)[0]).start[:10] == "2025-11-24"
    assert not list(verify_index(rig.directory, rig.reader))


def test_what_was_sent_before_the_clock_was_set_is_said_once_more(tmp_path: Path) -> None:
    rig = unsynced_rig(tmp_path / "node")
    happened = rig.event_of(2, post_s=4)
    for row in rig.reader.due(0, 100):
        rig.acks.put(Ack(row.seq, delivered=True))
    rig.film(2)
    assert rig.reader.due(0, 100) == []
    synchronise(rig)
    rows = rig.reader.due(0, 100)
    assert [row.kind for row in rows] == [OutboxKind.EVENT, OutboxKind.CLIP]
    again = EventBody.model_validate_json(rows[0].body)
    assert (again.id, again.rev, again.phase, again.start[:4]) == (happened.id, 3, "end", "2025")
    assert again.end is not None
    assert again.end[:4] == "2025"
    assert ClipBody.model_validate_json(rows[1].body).start[:4] == "2025"
    synchronise(rig)  # another step: nothing is said a second time
    assert [row.seq for row in rig.reader.due(0, 100)] == [row.seq for row in rows]
    assert not list(verify_index(rig.directory, rig.reader))


def test_an_event_that_goes_on_while_the_clock_is_set_keeps_its_revisions(tmp_path: Path) -> None:
    rig = unsynced_rig(tmp_path / "node")
    begin = event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns())
    rig.happen(begin)
    for row in rig.reader.due(0, 100):
        rig.acks.put(Ack(row.seq, delivered=True))
    synchronise(rig)
    rig.happen(event(begin.start.t_ns, end_ns=rig.clock.boot_ns(), rev=2, event_id=begin.id))
    last = EventBody.model_validate_json(bodies(rig, OutboxKind.EVENT)[-1])
    assert (last.rev, last.phase, last.start[:4]) == (2, "end", "2025")
    assert not list(verify_index(rig.directory, rig.reader))


@pytest.mark.parametrize("seed", range(2))
def test_clock_steps_at_random_moments_lose_and_confuse_nothing(seed: int, tmp_path: Path) -> None:
    assert wander(tmp_path / "node", steps=60, seed=seed) == []


def wander(directory: Path, *, steps: int, seed: int) -> list[str]:
    """Random steps of up to ten years, also while recording and over restarts: every broken promise in words."""
    chance = random.Random(seed)
    clock = SimulatedClock(wall_ns=chance.choice([0, TRUE_WALL_S * 10**9]))
    boots = 1
    rig = make_rig(directory, clock=clock, max_age_days=30, pre_roll_s=1, post_roll_s=1)
    rig.storage.open()
    for number in range(steps):
        if number % 20 == 19:
            rig.storage.close()
            boots += 1
            clock = SimulatedClock(boot_ns=10**10, wall_ns=clock.wall_ns())
            clock.boot_id = f"00000000-0000-4000-8000-{boots:012d}"
            rig = make_rig(directory, clock=clock, max_age_days=30, pre_roll_s=1, post_roll_s=1)
            rig.storage.open()
        clock.is_synced = chance.random() < 0.5
        event_id = new_ulid(1_600_000_000_000 + number, number)
        begin = event(clock.boot_ns(), picture_ns=clock.boot_ns(), event_id=event_id)
        rig.happen(begin)
        rig.film(0.5)
        # Never before 1970: the kernel's clock does not go there either.
        clock.step_wall(max(chance.uniform(-3650, 3650) * DAY_S, 1 - clock.wall_ns() / 1e9))
        rig.film(0.5)
        rig.happen(event(begin.start.t_ns, end_ns=clock.boot_ns(), rev=2, event_id=begin.id))
        rig.film(4)
    rig.storage.close()
    return _confusion(directory, steps)


def _confusion(directory: Path, steps: int) -> list[str]:
    reader = LedgerReader(directory)
    clips, rows = reader.clips(), reader.sent(0, 10**9, 10**6)
    found = list(verify_index(directory, reader))
    reader.close()
    if len({event_id for clip in clips for event_id in clip.event_ids}) != steps:
        found.append(f"{steps} events were recorded, clips show {len(clips)}")
    if len({clip.id for clip in clips}) != len(clips) or len({row.seq for row in rows}) != len(rows):
        found.append("an id or a number was given twice")
    for before, after in pairwise(clips):
        if before.boot_id == after.boot_id and before.end_t_ns > after.start_t_ns:
            found.append(f"clips {before.id} and {after.id} overlap or are out of order")
    boots = list(dict.fromkeys(row.boot_id for row in rows))
    if [row.boot_id for row in rows] != sorted((row.boot_id for row in rows), key=boots.index):
        found.append("messages of different boots are mixed")
    return found
