"""The storage stage as the node sees it: what happens when the disk, the clock or the broker misbehave."""

from __future__ import annotations

import errno
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_disk import FailingDisk
from storage_fixtures import FPS, FRAME_NS, Rig, all_true, event, make_rig, packets

from agent.disk import DirectoryRefusedError, OpenFile
from agent.errors import StorageError
from agent.model import NS_PER_S, Ack, EventKind, OutboxKind, Phase

pytest_plugins = ["closing"]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    found = make_rig(tmp_path / "node")
    found.storage.open()
    return found


def test_event_is_owed_to_the_broker_before_its_clip_is_written(rig: Rig) -> None:
    rig.film(3)
    rig.board.put(event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns()))
    rings = rig.bell.rings
    rig.storage.step(0)
    assert [row.kind for row in rig.reader.due(0, 10)] == [OutboxKind.EVENT, OutboxKind.THUMB]
    assert rig.bell.rings == rings + 1


def test_event_names_the_clip_that_shows_it(rig: Rig) -> None:
    rig.film(3)
    happened = rig.event_of(2, post_s=4)
    clip = rig.reader.clips()[0]
    stored = rig.reader.event(happened.id)
    assert clip.event_ids == (happened.id,)
    assert stored is not None
    assert stored.body.clip is not None
    assert stored.body.clip.id == clip.id
    assert not all_true(rig.directory)


def test_what_the_broker_took_is_no_longer_owed(rig: Rig) -> None:
    rig.film(1)
    rig.happen(event(rig.clock.boot_ns()))
    rig.acks.put(Ack(1, delivered=True))
    rig.film(1.5)
    assert rig.reader.due(0, 10) == []
    assert rig.storage.status.outbox_rows == 0


def test_refused_row_stays_owed(rig: Rig) -> None:
    rig.happen(event(rig.clock.boot_ns()))
    rig.acks.put(Ack(1, delivered=False, reason="not authorised"))
    rig.film(1.5)
    assert [row.seq for row in rig.reader.due(0, 10)] == [1]


def test_poisoned_row_leaves_the_queue_and_a_loss_record_names_it(rig: Rig) -> None:
    rig.happen(event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns()))
    rig.acks.put(Ack(2, delivered=False, reason="packet too large", poison=True))
    rig.film(1.5)
    due = rig.reader.due(0, 10)
    assert [(row.seq, row.kind) for row in due] == [(1, OutboxKind.EVENT), (3, OutboxKind.LOSS)]
    assert '"from_seq":2,"to_seq":2,"kind":"thumb"' in due[1].body
    assert rig.reader.newest_thumb() is None, "else it would be said again on each connection"
    assert not all_true(rig.directory)


def test_second_agent_on_the_same_directory_is_refused(rig: Rig) -> None:
    with pytest.raises(DirectoryRefusedError, match="another camera-agent"):
        make_rig(rig.directory).storage.open()
    rig.storage.close()
    again = make_rig(rig.directory)
    again.storage.open()
    again.storage.close()


def test_directory_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("not a directory")
    with pytest.raises(DirectoryRefusedError, match=r"clips\.directory"):
        make_rig(tmp_path / "node").storage.open()


def test_directory_that_may_not_be_looked_into_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "closed" / "node").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    is_root = os.geteuid() == 0
    for directory in tmp_path.parents[:3]:  # up to pytest's own, which is private
        directory.chmod(directory.stat().st_mode | 0o055)
    try:
        if is_root:
            os.seteuid(65534)
        with pytest.raises(DirectoryRefusedError, match=r"Permission denied .*owner and mode"):
            make_rig(tmp_path / "closed" / "node" / "deeper").storage.open()
    finally:
        if is_root:
            os.seteuid(0)
        (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EINTR])
def test_disk_that_fails_stops_recording_not_events_and_recording_goes_on_by_itself(
    number: int, tmp_path: Path
) -> None:
    disk = FailingDisk()
    rig = make_rig(tmp_path / "node", disk=disk)
    rig.storage.open()
    rig.film(3)
    first = event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns())
    rig.happen(first)
    rig.film(2)
    disk.fail_from_now(number)
    rig.film(3)
    assert "recording paused" in rig.storage.status.trouble
    assert os.strerror(number) in rig.storage.status.trouble
    assert not rig.storage.status.recording
    second = event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns())
    rig.happen(second)
    assert rig.reader.event(second.id) is not None
    rig.film(4)
    disk.heal()
    rig.film(8)
    assert rig.storage.status.trouble == ""
    assert rig.storage.status.recording
    now = rig.clock.boot_ns()
    rig.happen(*(replace(e, rev=2, phase=Phase.END, end=replace(e.last, t_ns=now)) for e in (first, second)))
    rig.film(4)
    rig.storage.close()
    clips = rig.reader.clips()
    assert clips[0].flags == ("recovered",)
    assert {i for clip in clips for i in clip.event_ids} == {first.id, second.id}
    assert not all_true(rig.directory)


def test_what_an_fsync_did_not_confirm_is_not_believed_and_recorded_again(tmp_path: Path) -> None:
    """After a failed fsync the kernel may read back bytes that never reached the disk (fsyncgate)."""

    class ThirdSyncFails(FailingDisk):
        syncs = 0

        def datasync(self, file: OpenFile) -> None:
            self.syncs += 1
            if self.syncs == 3:
                raise StorageError("fdatasync", file.path, OSError(errno.EIO, os.strerror(errno.EIO)))
            super().datasync(file)

    rig = make_rig(tmp_path / "node", disk=ThirdSyncFails())
    rig.storage.open()
    rig.event_of(12, post_s=3)
    first, second = rig.reader.clips()
    assert first.frames == 2 * FPS
    assert first.flags == ("recovered",)
    assert second.start_t_ns == first.end_t_ns  # the ring still had what the disk lost
    assert "continues" in second.flags
    assert not all_true(rig.directory)


def test_no_failure_of_one_disk_operation_raises_or_breaks_the_ledger(tmp_path: Path) -> None:
    """EIO at every operation of a short life, one life for each."""
    operations = 1
    at = 0
    while at < operations:
        disk = FailingDisk(at, errno.EIO, times=1)
        rig = make_rig(tmp_path / str(at), disk=disk)
        rig.storage.open()
        rig.film(2)
        happened = rig.event_of(1.5, post_s=9)
        rig.storage.close()
        operations = disk.operations
        at += 1
        stored = rig.reader.event(happened.id)
        assert stored is not None, disk.failed
        assert not stored.is_open, disk.failed
        again = make_rig(tmp_path / str(at - 1))
        again.storage.open()
        again.storage.close()
        assert not all_true(rig.directory), disk.failed
        if at < operations // 2:  # time enough to notice that the disk is well again
            assert rig.storage.status.trouble == "", disk.failed
    assert operations > 20


def test_ledger_that_cannot_be_written_keeps_the_newest_states_and_stores_them_later(rig: Rig) -> None:
    rig.film(1)
    blocker = sqlite3.connect(rig.directory / "ledger.db", isolation_level=None)
    # The ledger's page limit is what a full disk is to SQLite: SQLITE_FULL.
    database = rig.storage._ledger._database
    assert database is not None
    database.execute("pragma max_page_count = 1")
    happened = event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns())
    rows = 0
    while not rig.storage.status.trouble:
        rows += 1
        rig.happen(event(rig.clock.boot_ns() + rows, picture_ns=rig.clock.boot_ns() + rows))
        assert rows < 500
    assert "disk is full" in rig.storage.status.trouble
    rig.happen(happened)
    assert rig.reader.event(happened.id) is None
    blocker.close()
    rig.film(11)  # the second try opens the ledger anew, without the limit
    assert rig.storage.status.trouble == ""
    assert rig.reader.event(happened.id) is not None
    assert not all_true(rig.directory)


def test_ring_deletes_the_oldest_clips_beyond_their_age(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node", max_age_days=30 / 86400)
    rig.storage.open()
    for _ in range(5):
        rig.event_of(2, post_s=10)
    clips = rig.reader.clips()
    assert 0 < len(clips) < 5
    assert [clip.n for clip in clips] == sorted(clip.n for clip in clips)
    assert clips[-1].n == 5
    assert {path.name for path in (rig.directory / "clips").iterdir()} == {clip.file for clip in clips}
    assert not all_true(rig.directory)


def test_wall_clock_that_jumps_deletes_nothing(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node", max_age_days=1)
    rig.storage.open()
    rig.event_of(2, post_s=4)
    for days in (400, -900, 4000):
        rig.clock.step_wall(days * 86400)
        rig.film(6)
        rig.event_of(1, post_s=4)
    assert len(rig.reader.clips()) == 4
    assert not all_true(rig.directory)


def test_ring_keeps_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.storage.MB", 1000)  # budget_mb counts kB here: clips in tests are small
    rig = make_rig(tmp_path / "node", budget_mb=20)
    rig.storage.open()
    for _ in range(6):
        rig.event_of(2, post_s=4)
    status = rig.storage.status
    assert 0 < status.clip_bytes <= 20_000
    assert rig.reader.clips()[-1].n == 6
    assert not all_true(rig.directory)


def test_disk_filled_by_others_pauses_recording_in_plain_words(tmp_path: Path) -> None:
    class Full(FailingDisk):
        free = 0

        def free_bytes(self, path: Path) -> int:
            return self.free

    disk = Full()
    rig = make_rig(tmp_path / "node", disk=disk, min_free_mb=100)
    rig.storage.open()
    rig.film(6)
    happened = rig.event_of(1, post_s=4)
    assert "0 MB free, clips.min_free_mb is 100" in rig.storage.status.trouble
    assert rig.reader.event(happened.id) is not None
    assert rig.reader.clips() == []
    disk.free = 200_000_000
    rig.film(8)
    assert rig.storage.status.trouble == ""
    rig.event_of(1, post_s=4)
    # The ring of packets still had the first event, so it got its clip when there was space again.
    assert [len(clip.event_ids) for clip in rig.reader.clips()] == [1, 1]


def test_camera_that_falls_silent_ends_the_clip(rig: Rig) -> None:
    rig.film(2)
    rig.happen(event(rig.clock.boot_ns()))
    rig.film(2)
    for _ in range(8):
        rig.clock.move(1)
        rig.storage.step(0)
    assert [clip.flags for clip in rig.reader.clips()] == [("gap",)]
    assert not rig.storage.status.recording


def test_events_no_picture_can_show_make_no_clip(rig: Rig) -> None:
    rig.film(2)
    rig.happen(event(rig.clock.boot_ns(), kind=EventKind.CAMERA_LOST))
    rig.film(3)
    assert not rig.storage.status.recording
    row = rig.reader.newest_event()
    assert row is not None
    assert '"clip":null' in row.body


def test_recording_switched_off_keeps_events(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node", enabled=False)
    rig.storage.open()
    rig.event_of(2, post_s=4)
    assert rig.reader.clips() == []
    assert len(rig.reader.events()) == 1


def test_shutdown_ends_the_running_clip_and_writes_down_the_last_states(rig: Rig) -> None:
    rig.film(2)
    begun = event(rig.clock.boot_ns())
    rig.happen(begun)
    rig.film(1)
    now = rig.clock.boot_ns()
    rig.board.put(replace(begun, rev=2, phase=Phase.END, end=replace(begun.last, t_ns=now)))
    rig.storage.close()
    rig.storage.close()
    stored = rig.reader.event(begun.id)
    assert stored is not None
    assert not stored.is_open
    assert [clip.flags for clip in rig.reader.clips()] == [()]
    assert not all_true(rig.directory)


def test_slow_disk_loses_video_with_a_gap_not_memory(tmp_path: Path) -> None:
    """While storage stands still the ring stays within its bytes; the clip says that frames are missing."""
    rig = make_rig(tmp_path / "node")
    rig.storage.open()
    rig.film(2)
    rig.happen(event(rig.clock.boot_ns()))
    rig.film(1)
    small = rig.ring
    small._capacity_bytes = 3000
    shot = packets(8 * FPS, start_ns=rig.clock.boot_ns(), seq=rig.next_seq)
    rig.next_seq += len(shot)
    for packet in shot:  # storage does not step
        small.put(packet)
    assert small.bytes <= 3000
    rig.clock.move_to(shot[-1].t_ns + FRAME_NS)
    rig.storage.step(0)
    rig.storage.close()
    clip = rig.reader.clips()[0]
    assert clip.flags == ("gap",)
    assert rig.storage.status.clip_gaps == 1
    assert not all_true(rig.directory)


def test_a_day_of_thousands_of_events_keeps_the_ledger_small(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node", enabled=False, outbox={"replay_days": 0.01, "replay_mb": 1})
    rig.storage.open()
    sizes = []
    for number in range(2400):
        begin = event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns())
        rig.board.put(begin)
        rig.storage.step(0)
        rig.clock.move(5)
        rig.board.put(replace(begin, rev=2, phase=Phase.END, end=replace(begin.last, t_ns=rig.clock.boot_ns())))
        rig.storage.step(0)
        for seq in range(number * 3 + 1, number * 3 + 4):
            rig.acks.put(Ack(seq, delivered=True))
        rig.clock.move(31)
        rig.storage.step(0)
        if number % 400 == 399:
            sizes.append(sum(path.stat().st_size for path in rig.directory.glob("ledger.db*")))
    assert sizes[-1] <= sizes[0] * 1.2, sizes
    assert rig.storage.status.outbox_rows == 0
    assert rig.storage.status.head_seq == 7200
    assert len(rig.reader.events()) < 100
    assert rig.clock.boot_ns() > 86000 * NS_PER_S
    rig.storage.close()
