"""A power cut at any disk operation keeps the ledger true; damaged and mixed-up directories are recognised."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mutants
import pytest
from faulty_disk import Image, Leaves, RecordingDisk
from storage_fixtures import Rig, event, make_rig

from agent.disk import DirectoryRefusedError, Disk, OpenFile
from agent.ledger import LedgerReader
from agent.model import EndReason, Phase
from agent.verification import verify_clip, verify_index

pytest_plugins = ["closing"]

RING: dict[str, Any] = {"max_age_days": 20 / 86400, "max_clip_s": 10}


def live_through(directory: Path, disk_of: Callable[[Path], RecordingDisk] = RecordingDisk) -> list[Image]:
    """Clips closed, deleted for their age, continued and still open: an image before every disk operation."""
    directory.mkdir()
    disk = disk_of(directory)
    rig = make_rig(directory, disk=disk, **RING)
    rig.storage.open()
    rig.film(3)
    rig.event_of(2, post_s=4)
    rig.event_of(2, post_s=16)
    rig.film(4)
    rig.happen(event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns()))
    rig.film(12)  # longer than max_clip_s: a clip is closed and continued in the next
    disk.take_image("nothing more")
    rig.storage.close()
    return disk.images


def come_back(directory: Path, disk: Disk | None = None) -> Rig:
    """Start on what the cut left, as the next boot does, until everything is in order."""
    rig = make_rig(directory, disk=disk, **RING)
    rig.clock.boot_id = "00000000-0000-4000-8000-000000000002"
    rig.storage.open()
    for _ in range(5):
        rig.storage.step(0)
    rig.storage.close()
    return rig


def violations(directory: Path) -> list[str]:
    """The invariants of docs/STORAGE.md."""
    reader = LedgerReader(directory)
    found = list(verify_index(directory, reader))
    for clip in reader.clips():
        if clip.state != "final":
            found.append(f"clip {clip.id} is {clip.state}")
        else:
            found += verify_clip(directory / "clips" / clip.file, clip, decode_all=True)
    found += [f"{path.name} was not made final" for path in (directory / "clips").glob("*.part")]
    found += [f"event {e.id} never ends" for e in reader.events() if e.is_open or e.body.phase != Phase.END.value]
    reader.close()
    return found


def clips_in_ledger(image: Image, scratch: Path) -> dict[str, str]:
    """Clip id -> state, as SQLite finds it in the image."""
    if "ledger.db" not in image.ledger:
        return {}
    scratch.mkdir()
    for name, content in image.ledger.items():
        (scratch / name).write_bytes(content)
    database = sqlite3.connect(scratch / "ledger.db")
    try:
        tables = {row[0] for row in database.execute("select name from sqlite_master")}
        return dict(database.execute("select id, state from clips").fetchall()) if "clips" in tables else {}
    finally:
        database.close()
        shutil.rmtree(scratch)


def broken_promises(directory: Path, image: Image, scratch: Path) -> list[str]:
    """What was final in the ledger, or synced under a synced name, and is shorter or gone after the start."""
    before = clips_in_ledger(image, scratch)
    promised = {clip_id: 1 for clip_id, state in before.items() if state == "final"}
    for path, file in image.durable.items():
        clip_id = path.name.split(".")[0]
        if path.parent.name == "clips" and file.synced and before.get(clip_id) != "deleting":
            promised[clip_id] = file.synced
    reader = LedgerReader(directory)
    after = {clip.id: clip.bytes for clip in reader.clips()}
    reader.close()
    return [f"clip {i}: {after.get(i)} of {size} bytes" for i, size in promised.items() if after.get(i, 0) < size]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    return live_through(tmp_path_factory.mktemp("life") / "node")


@pytest.fixture(scope="module")
def unplugged(life: list[Image]) -> Image:
    """The power went while a clip was being recorded."""
    return next(image for image in life if image.operation == "nothing more")


def test_the_story_has_every_kind_of_operation(life: list[Image]) -> None:
    kinds = {image.operation.rsplit(" ", 1)[0] for image in life}
    assert kinds >= {"create", "write", "fdatasync", "fsync", "rename", "sync directory", "delete"}
    assert len(life) > 60


@pytest.mark.parametrize("leaves", Leaves)
def test_power_cut_at_any_disk_operation_keeps_the_ledger_true(
    life: list[Image], leaves: Leaves, tmp_path: Path
) -> None:
    for image in life:
        directory = tmp_path / str(image.number)
        image.restore(directory, leaves)
        come_back(directory)
        found = violations(directory) + broken_promises(directory, image, tmp_path / "scratch")
        assert not found, f"cut before {image.number} ({image.operation}), {leaves}: {found}"
        shutil.rmtree(directory)


def test_row_is_never_there_before_its_file_is_durable(life: list[Image], tmp_path: Path) -> None:
    for image in life:
        for clip_id, state in clips_in_ledger(image, tmp_path / "scratch").items():
            file = image.durable.get(Path("clips") / f"{clip_id}.mp4")
            if state == "final":
                assert file is not None, f"before {image.operation}"
                assert file.synced == len(file.content)


def test_power_cut_during_recovery_is_recovered_from(life: list[Image], tmp_path: Path) -> None:
    cuts = 0
    for image in life[:: max(1, len(life) // 12)]:
        first = tmp_path / f"{image.number}"
        image.restore(first, Leaves.TORN)
        disk = RecordingDisk(first)
        come_back(first, disk)
        for second_image in disk.images:
            directory = tmp_path / f"{image.number}-{second_image.number}"
            second_image.restore(directory, Leaves.NOTHING)
            come_back(directory)
            found = violations(directory) + broken_promises(directory, image, tmp_path / "scratch")
            assert not found, f"cut before {image.operation}, then {second_image.operation}: {found}"
            shutil.rmtree(directory)
            cuts += 1
    assert cuts > 20


class _NoDataSync(RecordingDisk):
    def datasync(self, file: OpenFile) -> None:
        """Forgets to sync; what it claims is remembered as the promise."""

    def sync(self, file: OpenFile) -> None:
        """Likewise."""


class _NoDirectorySync(RecordingDisk):
    def sync_directory(self, path: Path) -> None:
        """Forgets to sync names."""


class _RowBeforeFile(RecordingDisk):
    def sync(self, file: OpenFile) -> None:
        """The closing fsync is left out: the clip's row comes before its last fragment is durable."""
        if file.path.suffix != ".part":
            super().sync(file)


@pytest.mark.parametrize("broken", [_NoDataSync, _NoDirectorySync, _RowBeforeFile])
def test_a_disk_door_that_forgets_to_sync_is_caught(broken: Callable[[Path], RecordingDisk], tmp_path: Path) -> None:
    """The check of the check: without these syncs the same cuts do break the ledger."""
    caught = []
    for image in live_through(tmp_path / "node", broken):
        directory = tmp_path / str(image.number)
        image.restore(directory, Leaves.NOTHING)
        try:
            come_back(directory)
            caught += violations(directory)
        except DirectoryRefusedError as error:
            caught.append(str(error))
    assert caught


def test_a_recovery_that_adopts_nothing_is_caught(life: list[Image], tmp_path: Path) -> None:
    caught = []
    for image in life:
        directory = tmp_path / str(image.number)
        image.restore(directory, Leaves.ALL)
        with mutants.applied("no-adoption"):
            come_back(directory)
        caught += violations(directory) + broken_promises(directory, image, tmp_path / "scratch")
        if caught:
            break
        shutil.rmtree(directory)
    assert caught


def test_event_left_open_by_a_power_cut_is_ended_and_owed_to_the_broker(unplugged: Image, tmp_path: Path) -> None:
    unplugged.restore(tmp_path / "node", Leaves.NOTHING)
    come_back(tmp_path / "node")
    reader = LedgerReader(tmp_path / "node")
    last = reader.events()[-1]
    assert last.body.end_reason == EndReason.POWER_LOSS.value
    assert last.body.rev == 2
    owed = [row for row in reader.due(0, 100) if row.body == last.body.model_dump_json()]
    assert len(owed) == 1
    assert owed[0].boot_id == "00000000-0000-4000-8000-000000000001"
    reader.close()


def test_clip_cut_by_a_power_loss_says_recovered_and_loses_at_most_one_gop(unplugged: Image, tmp_path: Path) -> None:
    unplugged.restore(tmp_path / "node", Leaves.NOTHING)
    part = next(path for path in (tmp_path / "node" / "clips").glob("*.part"))
    come_back(tmp_path / "node")
    reader = LedgerReader(tmp_path / "node")
    clip = reader.clip(part.name.split(".")[0])
    assert clip is not None
    assert clip.flags == ("continues", "recovered")
    assert len(clip.event_ids) == 1
    filmed_until_ns = 100_000_000_000 + round((3 + 2 + 4 + 2 + 16 + 4 + 12) * 1e9)
    assert filmed_until_ns - clip.end_t_ns <= 1.1e9
    reader.close()


def test_lost_or_emptied_index_is_rebuilt_from_the_clips(unplugged: Image, tmp_path: Path) -> None:
    for name, ledger in (("lost", {}), ("emptied", {"ledger.db": b""}), ("garbage", {"ledger.db": b"x" * 9000})):
        directory = tmp_path / name
        unplugged.restore(directory, Leaves.NOTHING)
        for old in directory.glob("ledger.db*"):
            old.unlink()
        for file, content in ledger.items():
            (directory / file).write_bytes(content)
        files = {path.name.split(".")[0] for path in (directory / "clips").iterdir()}
        come_back(directory)
        reader = LedgerReader(directory)
        assert {clip.id for clip in reader.clips()} == files
        assert all(clip.event_ids and clip.boot_id and clip.start_t_ns for clip in reader.clips())
        assert not violations(directory), name
        reader.close()


def test_damaged_index_is_set_aside_not_deleted(unplugged: Image, tmp_path: Path) -> None:
    directory = tmp_path / "node"
    unplugged.restore(directory, Leaves.NOTHING)
    (directory / "ledger.db-wal").unlink(missing_ok=True)
    (directory / "ledger.db").write_bytes(b"not a database" * 1000)
    come_back(directory)
    aside = list(directory.glob("ledger.db.damaged-*"))
    assert len(aside) == 1
    assert aside[0].read_bytes().startswith(b"not a database")


def test_another_nodes_index_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        rig = make_rig(tmp_path / name)
        rig.storage.open()
        rig.storage.close()
    shutil.copy(tmp_path / "two" / "ledger.db", tmp_path / "one" / "ledger.db")
    with pytest.raises(DirectoryRefusedError, match="belongs to"):
        make_rig(tmp_path / "one").storage.open()


def test_index_without_its_clips_and_id_is_refused(unplugged: Image, tmp_path: Path) -> None:
    """A data disk that is not mounted, with the index copied over: nothing may be written there."""
    directory = tmp_path / "node"
    unplugged.restore(directory, Leaves.NOTHING)
    (directory / "directory.id").unlink()
    shutil.rmtree(directory / "clips")
    (directory / "clips").mkdir()
    with pytest.raises(DirectoryRefusedError, match="neither its id nor one of the clips"):
        make_rig(directory).storage.open()


def test_lost_id_file_is_written_again_when_the_clips_are_there(unplugged: Image, tmp_path: Path) -> None:
    directory = tmp_path / "node"
    unplugged.restore(directory, Leaves.NOTHING)
    before = (directory / "directory.id").read_text()
    (directory / "directory.id").unlink()
    come_back(directory)
    assert (directory / "directory.id").read_text() == before


def test_foreign_files_are_left_alone(unplugged: Image, tmp_path: Path) -> None:
    directory = tmp_path / "node"
    unplugged.restore(directory, Leaves.NOTHING)
    strange = {"holiday.mp4": b"\0" * 50, "notes.txt": b"hello", "x.mp4.part": b"?", "..mp4": b"1"}
    for name, content in strange.items():
        (directory / "clips" / name).write_bytes(content)
    come_back(directory)
    for name, content in strange.items():
        assert (directory / "clips" / name).read_bytes() == content


def test_vanished_clip_is_marked_lost_and_comes_back_with_its_file(unplugged: Image, tmp_path: Path) -> None:
    directory = tmp_path / "node"
    unplugged.restore(directory, Leaves.NOTHING)
    come_back(directory)
    reader = LedgerReader(directory)
    clip = reader.clips()[0]
    path = directory / "clips" / clip.file
    content = path.read_bytes()
    path.unlink()
    come_back(directory)
    assert [c.state for c in reader.clips() if c.id == clip.id] == ["lost"]
    path.write_bytes(content)
    come_back(directory)
    assert [c.state for c in reader.clips() if c.id == clip.id] == ["final"]
    reader.close()


def test_clip_that_does_not_play_is_kept_and_marked_damaged(tmp_path: Path) -> None:
    rig = make_rig(tmp_path / "node")
    rig.storage.open()
    rig.storage.close()
    (tmp_path / "node" / "clips" / "01HF7YAYW8KD9RB4SCNN96K41Z.mp4").write_bytes(b"\0" * 5000)
    come_back(tmp_path / "node")
    reader = LedgerReader(tmp_path / "node")
    assert [clip.state for clip in reader.clips()] == ["damaged"]
    reader.close()


def test_ten_power_cuts_in_a_row_lose_nothing_and_no_start_takes_longer_for_it(tmp_path: Path) -> None:
    chance = random.Random(5)
    directory = tmp_path / "0"
    directory.mkdir()
    starts = []
    for number in range(1, 11):
        disk = RecordingDisk(directory)
        rig = make_rig(directory, disk=disk, **RING)
        rig.clock.boot_id = f"00000000-0000-4000-8000-{number:012d}"
        rig.storage.open()
        for _ in range(5):
            rig.storage.step(0)
        starts.append(len(disk.images))
        rig.film(3)
        rig.happen(event(rig.clock.boot_ns(), picture_ns=rig.clock.boot_ns()))
        rig.film(3)
        disk.take_image("nothing more")
        rig.storage.close()
        directory = tmp_path / str(number)
        chance.choice(disk.images).restore(directory, chance.choice(list(Leaves)))
    come_back(directory)
    assert not violations(directory)
    assert max(starts) <= 2 * starts[0], starts


class BadSector(Disk):
    """One file of it cannot be read."""

    def __init__(self, name: str) -> None:
        self._name = name

    @contextmanager
    def guard(self, operation: str, path: Path) -> Iterator[None]:
        with super().guard(operation, path):
            if operation == "read" and path.name == self._name:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            yield


def test_a_clip_that_cannot_be_read_fails_alone_when_the_index_is_rebuilt(tmp_path: Path) -> None:
    directory = tmp_path / "node"
    rig = make_rig(directory)
    rig.storage.open()
    for _ in range(3):
        rig.film(1)
        rig.event_of(2, post_s=4)
    before = rig.reader.clips()
    rig.storage.close()
    assert len(before) == 3
    (directory / "ledger.db").unlink()
    bad = before[0].file
    again = make_rig(directory, disk=BadSector(bad), clock=rig.clock)
    again.storage.open()
    again.film(3)
    states = {clip.file: clip.state for clip in again.reader.clips()}
    again.storage.close()
    assert {file: state for file, state in states.items() if file != bad} == {
        clip.file: "final" for clip in before[1:]
    }
    assert bad not in states
    mended = come_back(directory)
    assert {clip.file: clip.state for clip in mended.reader.clips()} == {clip.file: "final" for clip in before}
