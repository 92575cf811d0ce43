"""The disk door: what it makes durable, and that trouble names the operation, the path and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from faulty_disk import FailingDisk, Leaves, RecordingDisk

from agent.disk import DirectoryRefusedError, Disk, storage_error
from agent.errors import StorageError


def test_file_grows_by_appending_and_gets_its_name_at_last(tmp_path: Path) -> None:
    disk = Disk()
    file = disk.create(tmp_path / "clip.part")
    disk.append(file, b"one")
    disk.datasync(file)
    disk.append(file, b"two")
    disk.sync(file)
    disk.close(file)
    disk.close(file)
    disk.rename(tmp_path / "clip.part", tmp_path / "clip")
    disk.sync_directory(tmp_path)
    assert disk.sizes(tmp_path) == {"clip": 6}
    assert disk.read(tmp_path / "clip") == b"onetwo"
    assert file.length == 6
    disk.truncate(tmp_path / "clip", 3)
    assert disk.read(tmp_path / "clip") == b"one"
    disk.remove(tmp_path / "clip")
    disk.remove(tmp_path / "clip")
    assert disk.size(tmp_path / "clip") is None


def test_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(b"evidence")
    with pytest.raises(StorageError, match=r"create .*File exists"):
        Disk().create(tmp_path / "clip")
    assert (tmp_path / "clip").read_bytes() == b"evidence"


def test_files_are_not_for_everybody(tmp_path: Path) -> None:
    disk = Disk()
    disk.make_directory(tmp_path / "a" / "b")
    disk.close(disk.create(tmp_path / "a" / "b" / "clip"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o007 == 0
    assert (tmp_path / "a" / "b" / "clip").stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "replace the card"),
        (errno.EACCES, "owner and mode"),
    ],
)
def test_trouble_names_operation_path_cause_and_what_to_do(number: int, words: str, tmp_path: Path) -> None:
    disk = FailingDisk(0, number)
    with pytest.raises(StorageError) as caught:
        disk.create(tmp_path / "clip")
    line = str(caught.value)
    assert line.startswith(f"create {tmp_path / 'clip'}: {os.strerror(number)}")
    assert words in line
    assert "\n" not in line


def test_what_a_human_must_put_right_is_told_from_what_passes() -> None:
    assert isinstance(storage_error("x", "y", OSError(errno.EACCES, "no")), DirectoryRefusedError)
    assert not isinstance(storage_error("x", "y", OSError(errno.ENOSPC, "no")), DirectoryRefusedError)


def test_whole_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "id"
    Disk().write_whole(path, b"old")
    operations = FailingDisk()
    operations.write_whole(tmp_path / "other", b"new")
    for at in range(operations.operations):
        with pytest.raises(StorageError):
            FailingDisk(at).write_whole(path, b"new")
        assert path.read_bytes() in ((b"old",) if at < operations.operations - 1 else (b"old", b"new"))
    Disk().write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_lock_is_exclusive_until_closed(tmp_path: Path) -> None:
    disk = Disk()
    held = disk.lock(tmp_path / "lock")
    with pytest.raises(DirectoryRefusedError, match="another camera-agent"):
        disk.lock(tmp_path / "lock")
    disk.close(held)
    disk.close(disk.lock(tmp_path / "lock"))


def test_free_bytes_is_what_this_user_may_write(tmp_path: Path) -> None:
    assert 0 < Disk().free_bytes(tmp_path) <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def test_a_sync_that_stalls_is_counted(tmp_path: Path) -> None:
    disk, times_ns = Disk(), iter([0, 20_000_000, 100_000_000, 5_100_000_000])
    disk.clock = lambda: next(times_ns)
    file = disk.create(tmp_path / "clip")
    disk.datasync(file)
    assert (disk.sync_stalls, disk.slowest_sync_ns) == (0, 20_000_000)
    disk.sync(file)
    assert (disk.sync_stalls, disk.slowest_sync_ns) == (1, 5_000_000_000)
    disk.close(file)


def test_a_small_file_is_old_or_new_wherever_the_power_is_cut(tmp_path: Path) -> None:
    """Settings and other small files: never torn, never gone."""
    directory = tmp_path / "node"
    directory.mkdir()
    Disk().write_whole(directory / "state", b"old" * 5000)
    disk = RecordingDisk(directory)
    disk.write_whole(directory / "state", b"new" * 5000)
    disk.take_image("done")
    assert len(disk.images) >= 6
    for image in disk.images:
        for leaves in Leaves:
            left = tmp_path / f"{image.number}-{leaves.name}"
            image.restore(left, leaves)
            content = (left / "state").read_bytes()
            assert content in (b"old" * 5000, b"new" * 5000), f"cut before {image.operation}, {leaves}"
            assert image.operation != "done" or content == b"new" * 5000
