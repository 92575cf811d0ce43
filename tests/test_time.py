"""Clocks that are wrong, jump or are set late: nothing deleted early, nothing named twice, times put right."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from storage_fixtures import Rig, event, make_rig

from agent.clock import Now, SimulatedClock, read
from agent.ledger import ClipRow, LedgerReader
from agent.messages import ClipBody, EventBody, message_bytes
from agent.model import Ack, OutboxKind
from agent.recorder import notes_of
from agent.retime import retime
from agent.ulid import new_ulid
from agent.verification import verify_index

pytest_plugins = ["closing"]
DAY_S = 86400
TRUE_WALL_S = 1_764_000_000
LAST_WALL_S = 8_267_000_000
LAST_SETTABLE_S = (2**63 - 1) // 10**9 - 30 * 365 * DAY_S
"""The kernel's own limit (TIME_SETTOD_SEC_MAX): 64 bits of nanoseconds, less 30 years to run on."""


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


def test_putting_many_times_right_reads_each_message_a_few_times_only(tmp_path: Path) -> None:
    """Weeks without a time service, then one: what one step does must not grow with all that there is, squared."""

    def work_of(clips: int) -> int:
        rig = unsynced_rig(tmp_path / str(clips))
        ledger = rig.storage._ledger
        now = read(rig.clock)
        for number in range(clips):
            ledger.store_clip(clip_row(number, now), now)
        rows = rig.reader.due(0, 10 * clips)
        ledger.mark([Ack(row.seq, delivered=True) for row in rows], now)
        rig.clock.step_wall(TRUE_WALL_S)
        rig.clock.is_synced = True
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        assert ledger._database is not None
        ledger._database.set_progress_handler(count, 100)
        assert retime(ledger, read(rig.clock)) == clips
        assert len(rig.reader.due(0, 10 * clips)) == clips
        return steps

    assert work_of(160) < 6 * work_of(40)


def clip_row(number: int, now: Now) -> ClipRow:
    start_ns = now.t_ns + number
    return ClipRow(
        n=0,
        id=new_ulid(number),
        file=f"{new_ulid(number)}.mp4",
        state="final",
        is_protected=False,
        boot_id=now.boot_id,
        start_t_ns=start_ns,
        end_t_ns=start_ns + 10**9,
        start_wall_ns=now.wall(start_ns),
        clock_synced=False,
        running_ns=0,
        frames=10,
        bytes=1000,
        sha256="0" * 64,
        flags=(),
        event_ids=(),
    )


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


class Retention:
    """Watches the ring: a clip that is older than its limit by the node's running time may go, no other."""

    LIMIT_S = 90.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.past_s = 0.0
        self.began_s = 0.0
        self.stored_s: dict[str, float] = {}
        self.deleted: set[str] = set()
        self.found: list[str] = []

    def boot(self, clock: SimulatedClock) -> None:
        self.began_s = clock.boot_ns() / 1e9

    def power_off(self, clock: SimulatedClock) -> None:
        self.past_s += clock.boot_ns() / 1e9 - self.began_s

    def look(self, rig: Rig) -> None:
        now_s = self.past_s + rig.now_s - self.began_s
        reader = rig.reader
        there = {clip.id for clip in reader.clips()}
        reader.close()
        for clip_id in there - self.stored_s.keys():
            self.stored_s[clip_id] = now_s
        for clip_id in self.stored_s.keys() - there - self.deleted:
            self.deleted.add(clip_id)
            # Seen and stored may lie a moment apart: the ring is looked at twice a second.
            if now_s - self.stored_s[clip_id] < self.LIMIT_S - 1:
                self.found.append(f"clip {clip_id} was deleted after {now_s - self.stored_s[clip_id]:.0f} s")


def wander(directory: Path, *, steps: int, seed: int) -> list[str]:
    """Random steps of up to ten years, idle, while recording, in the post-roll, over restarts, while clips grow old.

    Every broken promise in words.
    """
    chance = random.Random(seed)
    clock = SimulatedClock(wall_ns=chance.choice([0, TRUE_WALL_S * 10**9]))
    ring: dict[str, Any] = {"max_age_days": Retention.LIMIT_S / DAY_S, "pre_roll_s": 1, "post_roll_s": 1}
    boots, retention = 1, Retention(directory)
    retention.boot(clock)
    rig = make_rig(directory, clock=clock, **ring)
    rig.storage.open()

    def film(seconds: float) -> None:
        for _ in range(round(seconds / 0.5)):
            rig.film(0.5)
            retention.look(rig)

    def step() -> None:
        by_s = chance.uniform(-3650, 3650) * DAY_S
        if chance.random() < 0.1:  # a hostile time server
            rig.clock.is_synced = True
            by_s = 3652 * DAY_S
        # The kernel lets nobody set its clock before 1970 or after 2232.
        wall_s = rig.clock.wall_ns() / 1e9
        rig.clock.step_wall(min(max(by_s, 1 - wall_s), LAST_WALL_S - wall_s))

    for number in range(steps):
        if number % 20 == 19:
            rig.storage.close()
            retention.power_off(rig.clock)
            boots += 1
            clock = SimulatedClock(boot_ns=10**10, wall_ns=rig.clock.wall_ns())
            clock.boot_id = f"00000000-0000-4000-8000-{boots:012d}"
            retention.boot(clock)
            rig = make_rig(directory, clock=clock, **ring)
            rig.storage.open()
        rig.clock.is_synced = chance.random() < 0.5
        moment = chance.choice(["idle", "recording", "post-roll"])
        if moment == "idle":
            step()
        event_id = new_ulid(1_600_000_000_000 + number, number)
        begin = event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns(), event_id=event_id)
        rig.happen(begin)
        film(chance.choice([0.5, 1]))
        if moment == "recording":
            step()
        film(0.5)
        rig.happen(event(begin.start.t_ns, end_ns=rig.clock.boot_ns(), rev=2, event_id=begin.id))
        if moment == "post-roll":
            rig.film(chance.uniform(0.1, 0.9))
            step()
        film(4)
    rig.storage.close()
    return retention.found + _confusion(directory, steps, retention)


def _confusion(directory: Path, steps: int, retention: Retention) -> list[str]:
    reader = LedgerReader(directory)
    clips, rows = reader.clips(), reader.sent(0, 10**9, 10**6)
    found = list(verify_index(directory, reader))
    reader.close()
    if len(clips) + len(retention.deleted) != steps:
        found.append(f"{steps} events were recorded, {len(clips)} clips are left, {len(retention.deleted)} were old")
    if steps > 40 and not retention.deleted:
        found.append("no clip ever grew old: the retention was not tried")
    if len({clip.id for clip in clips}) != len(clips) or len({row.seq for row in rows}) != len(rows):
        found.append("an id or a number was given twice")
    for before, after in pairwise(clips):
        if before.boot_id == after.boot_id and before.end_t_ns > after.start_t_ns:
            found.append(f"clips {before.id} and {after.id} overlap or are out of order")
    boots = list(dict.fromkeys(row.boot_id for row in rows))
    if [row.boot_id for row in rows] != sorted((row.boot_id for row in rows), key=boots.index):
        found.append("messages of different boots are mixed")
    return found


@pytest.mark.parametrize(
    "wall_s", [LAST_SETTABLE_S, LAST_SETTABLE_S + 29 * 365 * DAY_S], ids=["the last that can be set", "29 years on"]
)
def test_a_clock_at_the_end_of_what_the_kernel_allows_is_survived(wall_s: int, tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node", clock=SimulatedClock(wall_ns=wall_s * 10**9))
    rig.storage.open()
    rig.event_of(2, post_s=4)
    (clip,) = rig.reader.clips()
    assert clip.start_wall_ns // 10**9 in range(wall_s, wall_s + 60)
    for row in rig.reader.due(0, 100):
        if row.blob is None:
            message = message_bytes(row, site="s", node="n", epoch=rig.reader.epoch, now_wall_ns=rig.clock.wall_ns())
            assert json.loads(message)["time"][:3] in ("223", "226")
    rig.storage.close()
    (rig.directory / "ledger.db").unlink()
    again = make_rig(rig.directory, clock=rig.clock)
    again.storage.open()
    again.film(3)
    assert [found.start_wall_ns for found in again.reader.clips()][:1] == [clip.start_wall_ns]
    assert not list(verify_index(again.directory, again.reader))
    again.storage.close()


def test_a_clip_whose_name_says_an_impossible_time_is_listed_all_the_same(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node")
    rig.storage.open()
    rig.event_of(2, post_s=4)
    (clip,) = rig.reader.clips()
    rig.storage.close()
    (rig.directory / "ledger.db").unlink()
    path = next(rig.directory.rglob(f"*{clip.id}*"))
    beyond = "7" + "Z" * 25  # the year 10889
    path.write_bytes(path.read_bytes().replace(b"OpeningNote", b"ForeignNote"))
    path.rename(path.with_name(beyond + path.suffix))
    again = make_rig(rig.directory, clock=rig.clock)
    again.storage.open()
    again.film(3)
    (found,) = again.reader.clips()
    assert (found.id, found.start_wall_ns) == (beyond, 0)
    again.storage.close()


@pytest.mark.parametrize("name", ["start_wall_ns", "start_t_ns"])
@pytest.mark.parametrize("strange", ["1e400", "9" * 30, "-" + "9" * 30, "-1", str(2**63 - 1), '"soon"'])
def test_a_note_with_a_time_that_cannot_be_is_not_believed(name: str, strange: str) -> None:
    note = (
        '{"note":"OpeningNote","boot_id":"b","start_t_ns":1,"start_wall_ns":1,"clock_synced":true,"events":[],'
        '"continues":false}'
    )
    assert notes_of((note.encode(),))[0] is not None
    assert notes_of((note.replace(f'"{name}":1', f'"{name}":{strange}').encode(),)) == (None, None)
