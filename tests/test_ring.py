"""The ring: which clips go first, what never goes, what an erasure leaves, what a full or absent disk does."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
from faulty_disk import Image, Leaves, RecordingDisk
from storage_fixtures import Rig, all_true, event, make_rig

from agent.cli import clips as clips_cli
from agent.clock import read
from agent.disk import Disk
from agent.errors import StorageError
from agent.ledger import Ledger, LedgerReader
from agent.ledger_reader import ClipRow
from agent.model import Ack, OutboxKind
from agent.recovery import open_ledger
from agent.ring import erase, protect

pytest_plugins = ["closing"]


@pytest.fixture
def kilobytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """budget_mb counts kB: clips in tests are small."""
    monkeypatch.setattr("agent.storage.MB", 1000)


def clip_ids(rig: Rig) -> list[str]:
    return [clip.id for clip in rig.reader.clips()]


def told(rig: Rig) -> None:
    """The broker takes everything that is owed."""
    for row in rig.reader.due(0, 1000):
        rig.acks.put(Ack(row.seq, delivered=True))
    rig.film(1.5)


def command(rig: Rig, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    clips_cli.configure(parser)
    return clips_cli.run(parser.parse_args([*map(str, arguments), "--directory", str(rig.directory)]))


@pytest.mark.usefixtures("kilobytes")
def test_clips_the_broker_knows_of_go_before_older_ones_it_was_never_told_of(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node", budget_mb=20)
    rig.storage.open()
    rig.event_of(2, post_s=4)
    (untold,) = clip_ids(rig)
    untold_rows = {row.seq for row in rig.reader.due(0, 100)}
    for _ in range(4):
        rig.event_of(2, post_s=4)
        for row in rig.reader.due(0, 1000):
            if row.seq not in untold_rows:
                rig.acks.put(Ack(row.seq, delivered=True))
        rig.film(1.5)
    kept = clip_ids(rig)
    assert len(kept) < 5
    assert untold in kept
    assert rig.storage.status.clips_untold == 0
    assert not all_true(rig.directory)


@pytest.mark.usefixtures("kilobytes")
def test_a_clip_deleted_before_the_broker_knew_is_told_as_a_loss(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node", budget_mb=20)
    rig.storage.open()
    for _ in range(6):
        rig.event_of(2, post_s=4)
    gone = 6 - len(clip_ids(rig))
    assert gone > 0
    assert rig.storage.status.clips_untold == gone
    due = rig.reader.due(0, 1000)
    losses = [row.body for row in due if row.kind is OutboxKind.LOSS]
    assert len(losses) == gone
    assert all(
        '"kind":"clip","reason":"deleted for space before the broker was told of it"' in body for body in losses
    )
    assert len([row for row in due if row.kind is OutboxKind.CLIP]) == len(clip_ids(rig))
    assert not all_true(rig.directory)


@pytest.mark.usefixtures("kilobytes")
def test_protected_clips_are_never_deleted_and_a_ring_full_of_them_pauses_recording_only(tmp_path: Path) -> None:
    class Full(Disk):
        free = 10**9

        def free_bytes(self, path: Path) -> int:
            return self.free

    disk = Full()
    rig = make_rig(tmp_path / "node", budget_mb=20, min_free_mb=100, disk=disk)
    rig.storage.open()
    rig.event_of(2, post_s=4)
    first = clip_ids(rig)[0]
    assert command(rig, "protect", first[-6:]) == 0
    for _ in range(5):
        rig.event_of(2, post_s=4)
    assert first in clip_ids(rig)
    for clip_id in clip_ids(rig):
        assert command(rig, "protect", clip_id) == 0
    kept = clip_ids(rig)
    disk.free = 50_000
    rig.film(6)
    happened = rig.event_of(1, post_s=2)
    assert clip_ids(rig) == kept
    assert "nothing of the ring is left to delete" in rig.storage.status.trouble
    assert rig.reader.event(happened.id) is not None
    assert command(rig, "release", first) == 0
    rig.film(6)
    assert first not in clip_ids(rig)
    assert not all_true(rig.directory)


def test_a_protected_clip_is_not_erased(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node")
    rig.storage.open()
    rig.event_of(2, post_s=4)
    (clip_id,) = clip_ids(rig)
    assert command(rig, "protect", clip_id) == 0
    with pytest.raises(StorageError, match="it is protected"):
        command(rig, "erase", clip_id, "--yes")
    assert clip_ids(rig) == [clip_id]


def test_erase_takes_the_clip_and_its_pictures_beside_a_running_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = make_rig(tmp_path / "node")
    rig.storage.open()
    rig.event_of(2, post_s=4)
    told(rig)
    rig.event_of(2, post_s=4)
    first, second = rig.reader.clips()
    picture = rig.reader.thumb_of(second.event_ids[0])
    assert picture is not None
    assert picture.blob is not None
    assert command(rig, "erase", first.id, second.id) == 0
    assert "nothing was erased" in capsys.readouterr().out
    assert len(clip_ids(rig)) == 2
    assert command(rig, "erase", first.id, second.id, "--yes") == 0
    assert "2 clips" in (said := capsys.readouterr().out)
    assert "2 pictures erased" in said
    assert clip_ids(rig) == []
    assert list((rig.directory / "clips").iterdir()) == []
    assert rig.reader.newest_thumb() is None
    rig.event_of(2, post_s=4)  # the running node goes on
    assert len(clip_ids(rig)) == 1
    assert not all_true(rig.directory)
    rig.storage.close()
    stamp = picture.blob[picture.blob.index(b'{"node"') :][:60]
    for path in rig.directory.glob("ledger.db*"):
        assert stamp not in path.read_bytes(), f"the erased picture still stands in {path.name}"


def erase_with_cuts(directory: Path) -> tuple[list[Image], ClipRow]:
    rig = make_rig(directory)
    rig.storage.open()
    rig.event_of(2, post_s=4)
    rig.event_of(2, post_s=4)
    rig.storage.close()
    disk = RecordingDisk(directory)
    now = read(rig.clock)
    ledger = Ledger(disk, directory, node="cam-1")
    open_ledger(disk, directory, ledger, now)
    reader = LedgerReader(directory)
    clip = reader.clips()[0]
    protect(ledger, [reader.clips()[1].id], now)
    erase(disk, directory, ledger, [clip], now)
    disk.take_image("done")
    ledger.close()
    reader.close()
    return disk.images, clip


@pytest.mark.parametrize("leaves", Leaves)
def test_an_erasure_cut_by_the_power_is_finished_at_the_start_before_anything_is_read(
    leaves: Leaves, tmp_path: Path
) -> None:
    images, clip = erase_with_cuts(tmp_path / "node")
    assert [image.operation.split()[0] for image in images] == ["delete", "sync", "done"]
    for image in images:
        directory = tmp_path / f"{image.number}"
        image.restore(directory, leaves)
        again = make_rig(directory)
        again.storage.open()
        reader = LedgerReader(directory)
        kept = reader.clips()
        assert [(row.is_protected, row.id == clip.id) for row in kept] == [(True, False)]
        assert reader.thumb_of(clip.event_ids[0]) is None
        assert not (directory / "clips" / clip.file).exists()
        again.storage.close()
        reader.close()
        assert not all_true(directory)
        shutil.rmtree(directory)


def test_events_find_room_inside_the_ledger_when_others_have_filled_the_disk(tmp_path: Path) -> None:
    def stored(reserve_mb: int) -> int:
        rig = make_rig(tmp_path / f"node{reserve_mb}", enabled=False, outbox={"reserve_mb": reserve_mb})
        rig.storage.open()
        rig.film(1)
        database = rig.storage._ledger._database
        assert database is not None
        pages = database.execute("pragma page_count").fetchone()[0]
        database.execute(f"pragma max_page_count = {pages}")  # what a full disk is to SQLite
        count = 0
        while not rig.storage.status.trouble and count < 400:
            rig.happen(event(rig.clock.boot_ns() + count, picture_ns=rig.clock.boot_ns() + count))
            count += 1
        rig.storage.close()
        return count

    assert stored(0) < 20
    assert stored(2) == 400


def test_nothing_is_written_beneath_a_mount_point_where_nothing_is_mounted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rig = make_rig(data / "node", mount_point=data)
    rig.storage.open()
    assert f"nothing is mounted at {data}" in rig.storage.status.trouble
    rig.film(8)
    rig.happen(event(rig.clock.boot_ns()))
    assert list(data.iterdir()) == []
    assert f"nothing is mounted at {data}" in rig.storage.status.trouble


def test_mount_points_of_fstab_count(tmp_path: Path) -> None:
    table = tmp_path / "fstab"
    data = tmp_path / "my data"
    (data / "node").mkdir(parents=True)
    escaped = str(data).replace(" ", "\\040")
    table.write_text(f"# {tmp_path}\nproc /proc proc\nUUID=1 {escaped} ext4 noauto\n/dev/x none swap\n")
    assert Disk().missing_mount(data / "node", table=table) == data
    assert Disk().missing_mount(tmp_path / "elsewhere", table=table) is None
    assert Disk().missing_mount(data, table=tmp_path / "absent") is None


def test_a_disk_swapped_while_running_is_not_written_to(tmp_path: Path) -> None:
    """The disk is pulled: the bare directory beneath must stay empty, and the node goes on when it is back."""
    rig = make_rig(tmp_path / "node")
    rig.storage.open()
    rig.film(2)
    rig.event_of(2, post_s=4)
    rig.directory.rename(tmp_path / "pulled")
    rig.directory.mkdir()
    rig.storage._ledger.close()  # what EIO on the pulled disk comes to
    rig.happen(event(rig.clock.boot_ns()))
    for _ in range(15):
        rig.film(1)
    assert "it is no longer the directory" in rig.storage.status.trouble
    assert [path.name for path in rig.directory.iterdir()] in ([], ["lock"])
    shutil.rmtree(rig.directory)
    (tmp_path / "pulled").rename(rig.directory)
    for _ in range(30):
        rig.film(1)
    assert rig.storage.status.trouble == ""
    rig.storage.close()
    assert not all_true(rig.directory)
