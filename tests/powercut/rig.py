"""A real ext4 whose block writes and flushes are recorded and cut anywhere; ENOSPC, EIO, slow flushes under it.

The file system lies on a loop device whose backing file is served here over FUSE, so that every block write and
every flush the kernel sends to the "disk" is logged in order. A crash state is everything up to the last completed
flush, plus none, all or a random, partly torn subset of the writes after it. Each is mounted (which replays ext4's
journal) and judged in place by checker.py. Needs root, /dev/fuse, loop devices, e2fsprogs and PyPI's mfusepy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checker
import mutants

RECORD = struct.Struct("<BQI")
WRITE, FLUSH, MARK = 1, 2, 3
MEDIUM_BYTES = 4096
"""What the medium writes whole; a cut can tear anything larger."""
JOURNAL_MB = 4
SLOW_S = 2.5
"""What a flush takes then; an fsync of ext4 is two of them, so 5 s, as on a card that tidies up inside."""
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000
_has_own_mounts = False
WRITER = Path(__file__).with_name("writer.py")
TESTS = WRITER.resolve().parent.parent
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS / "powercut", TESTS, TESTS.parent)))}
# Another program that syncs on the same file system commits ext4's journal between our steps.
NOISE = """
import os, time
fd = os.open('.noise', os.O_CREAT | os.O_WRONLY)
while True:
    os.pwrite(fd, os.urandom(64), 0); os.fsync(fd); time.sleep(.001)
"""


def missing() -> str:
    """What this machine lacks to run the rig, in words; empty when it has all."""
    if os.geteuid() != 0:
        return "needs root (mount, loop devices)"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            return f"{device} is missing"
    if not shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        return "mkfs.ext4 is missing (apt install e2fsprogs)"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        return f"PyPI's mfusepy with libfuse is missing ({error})"
    return ""


def serve(mount: str, image: str, log_path: str, control: str) -> None:
    """The disk: a FUSE file of raw blocks that logs what is done to it. Runs as a process of its own."""
    import mfusepy

    log = os.open(log_path, os.O_WRONLY | os.O_APPEND)
    blocks = os.open(image, os.O_RDWR)

    class Blocks(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: object = None) -> dict[str, int]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if path != "/disk":
                raise mfusepy.FuseOSError(errno.ENOENT)
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": os.fstat(blocks).st_size}

        def readdir(self, path: str, fh: object) -> list[str]:
            return [".", "..", "disk"]

        def open(self, path: str, flags: int) -> int:
            return 1

        def read(self, path: str, size: int, offset: int, fh: object) -> bytes:
            return os.pread(blocks, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: object) -> int:
            self._fail()
            os.pwrite(blocks, data, offset)
            os.write(log, RECORD.pack(WRITE, offset, len(data)) + bytes(data))
            return len(data)

        def fsync(self, path: str, datasync: int, fh: object) -> int:
            self._fail()
            if os.path.exists(f"{control}/slow"):
                time.sleep(SLOW_S)
            os.write(log, RECORD.pack(FLUSH, 0, 0))
            return 0

        def flush(self, path: str, fh: object) -> int:
            return 0

        def truncate(self, path: str, length: int, fh: object = None) -> None:
            raise mfusepy.FuseOSError(errno.EOPNOTSUPP)

        def _fail(self) -> None:
            if os.path.exists(f"{control}/eio"):
                raise mfusepy.FuseOSError(errno.EIO)

    mfusepy.FUSE(Blocks(), mount, foreground=True, nothreads=True)


def sh(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return (done.stdout + done.stderr).strip()


def keep_mounts_to_ourselves() -> None:
    """A mount namespace of our own, without propagation.

    Else a program that binds /dev elsewhere meanwhile gets copies of our mounts: the file system stays alive there,
    and the next crash state would be mounted as the one before.
    """
    global _has_own_mounts
    if not _has_own_mounts:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
            raise RuntimeError(f"no mount namespace of our own: {os.strerror(ctypes.get_errno())}")
        _has_own_mounts = True


class Disk:
    """A file system of size_mb on the recorded blocks; up() and down()."""

    def __init__(self, size_mb: int, options: str = "noatime,errors=remount-ro") -> None:
        keep_mounts_to_ourselves()
        self.directory = Path(tempfile.mkdtemp(prefix="powercut.", dir="/dev/shm"))
        self.base, self.image, self.log = (self.directory / name for name in ("base", "image", "log"))
        self.mount, self._fuse = self.directory / "fs", self.directory / "fuse"
        self.mount.mkdir()
        self._fuse.mkdir()
        self._options = options
        self._server: subprocess.Popen[bytes] | None = None
        self._loop = ""
        with self.base.open("wb") as file:
            file.truncate(size_mb << 20)
        sh(
            *("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"),
            *("-O", "^metadata_csum_seed", "-J", f"size={JOURNAL_MB}", str(self.base)),
        )
        shutil.copyfile(self.base, self.image)
        self.log.touch()

    def up(self) -> None:
        arguments = (self._fuse, self.image, self.log, self.directory)
        self._server = subprocess.Popen([sys.executable, __file__, "--serve", *map(str, arguments)], env=ENVIRON)
        disk = self._fuse / "disk"
        for _ in range(500):
            if disk.exists():
                break
            time.sleep(0.02)
        else:
            raise RuntimeError("the FUSE disk did not come up")
        self._loop = sh("losetup", "-f", "--show", str(disk))
        cache = Path("/sys/block") / Path(self._loop).name / "queue/write_cache"
        if cache.read_text().strip() != "write back":
            # The kernel would send no flush, and every cut would show a disk that lies.
            raise RuntimeError(f"{self._loop} takes no flushes: {cache} says {cache.read_text().strip()!r}")
        sh("mount", "-t", "ext4", "-o", self._options, self._loop, str(self.mount))
        sh("sync", "-f", str(self.mount))
        self.mark("__start__")

    def written_mb(self) -> float:
        """What the kernel has written to the device so far."""
        sectors = (Path("/sys/block") / Path(self._loop).name / "stat").read_text().split()[6]
        return int(sectors) * 512 / 1e6

    def mark(self, token: str) -> None:
        text = token.encode()
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.write(log, RECORD.pack(MARK, 0, len(text)) + text)
        os.close(log)

    def break_it(self, kind: str) -> None:
        """kind: enospc, eio, ro, or slow (each flush takes SLOW_S)."""
        if kind in ("eio", "slow"):
            (self.directory / kind).touch()
        elif kind == "ro":
            # As the kernel does when it finds the file system damaged.
            trigger = Path("/sys/fs/ext4") / Path(self._loop).name / "trigger_fs_error"
            trigger.write_text("1\n")
        else:
            filler = os.open(self.mount / ".filler", os.O_WRONLY | os.O_CREAT)
            for size in (1 << 20, 4096, 512):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(filler, bytes(size))
            os.close(filler)

    def mend(self) -> None:
        for kind in ("eio", "slow"):
            (self.directory / kind).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.mount / ".filler").unlink()

    def events(self) -> list[tuple[int, int, bytes]]:
        """(kind, offset, data or token) of everything that reached the disk so far."""
        found = []
        with self.log.open("rb") as log:
            while head := log.read(RECORD.size):
                kind, offset, length = RECORD.unpack(head)
                found.append((kind, offset, log.read(length)))
        return found

    def down(self) -> None:
        for kind in ("eio", "slow"):
            (self.directory / kind).unlink(missing_ok=True)
        server, self._server = self._server, None
        if server is None:
            return
        for words in (["umount", str(self.mount)], ["losetup", "-d", self._loop], ["umount", str(self._fuse)]):
            for _ in range(50):
                if not all(words) or subprocess.run(words, capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.1)
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    sh("mount", "-t", "ext4", "-o", "loop", str(image), str(at))
    try:
        yield at
    finally:
        sh("umount", str(at))


@dataclass(slots=True)
class Outcome:
    """What a run found. tokens: what the writer was told is durable; slowest_s: the longest recovery."""

    states: int = 0
    tokens: int = 0
    block_writes: int = 0
    flushes: int = 0
    violations: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    seconds: float = 0.0


def run_writer(
    disk: Disk, arguments: list[str], *, noise: bool = False, on_token: Callable[[str], None] | None = None
) -> tuple[int, list[str]]:
    """Run the writer on the disk; each token is marked in the log before the writer goes on. (code, tokens)"""
    writer = subprocess.Popen(
        [sys.executable, str(WRITER), *arguments],
        cwd=disk.mount,
        env=ENVIRON,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    noisy = subprocess.Popen([sys.executable, "-S", "-c", NOISE], cwd=disk.mount) if noise else None
    alarm = threading.Timer(120, writer.kill)
    alarm.start()
    tokens = []
    assert writer.stdout is not None
    assert writer.stdin is not None
    for line in writer.stdout:
        token = line.strip()
        tokens.append(token)
        disk.mark(token)
        if on_token is not None:
            on_token(token)
        with contextlib.suppress(BrokenPipeError):
            writer.stdin.write("\n")
            writer.stdin.flush()
    code = writer.wait()
    alarm.cancel()
    with contextlib.suppress(BrokenPipeError):
        writer.stdin.close()
    writer.stdout.close()
    if noisy is not None:
        noisy.kill()
        noisy.wait()
    return code, tokens


def cut(
    states: int,
    *,
    seed: int = 1,
    noise: bool = False,
    mutant: str = "",
    until_s: float | None = None,
    size_mb: int = 24,
) -> Outcome:
    """Record one life of a node's storage, then judge so many crash states of it (fewer when until_s passes)."""
    chance = random.Random(seed)
    began = time.monotonic()
    outcome = Outcome()
    disk = Disk(size_mb)
    try:
        disk.up()
        code, tokens = run_writer(disk, ["--mutant", mutant] if mutant else [], noise=noise)
        events = disk.events()
        disk.down()
        if code:
            raise RuntimeError(f"the writer failed with {code}: {tokens[-3:]}")
        outcome.tokens = len(tokens)
        outcome.block_writes = sum(kind == WRITE for kind, _, _ in events)
        outcome.flushes = sum(kind == FLUSH for kind, _, _ in events)
        start = 1 + next(i for i, each in enumerate(events) if each == (MARK, 0, b"__start__"))
        marks = [i + 1 for i, each in enumerate(events) if each[0] == MARK and i >= start]
        everywhere = range(start, len(events) + 1)
        points = set(chance.sample(everywhere, min(len(everywhere), max(1, states // 3))))
        points |= set(chance.sample(marks, min(len(marks), max(1, states // 6)))) | {len(events)}
        with mutants.applied(mutant):
            _judge(disk, events, start, points, chance, outcome, states, None if until_s is None else began + until_s)
    finally:
        disk.down()
        disk.remove()
    outcome.seconds = time.monotonic() - began
    return outcome


def _judge(
    disk: Disk,
    events: list[tuple[int, int, bytes]],
    start: int,
    points: set[int],
    chance: random.Random,
    outcome: Outcome,
    limit: int,
    until: float | None,
) -> None:
    durable = bytearray(disk.base.read_bytes())
    pending: list[tuple[int, bytes]] = []
    tokens: list[str] = []
    image = disk.directory / "cut"
    for index, (kind, offset, data) in enumerate(events, 1):
        if kind == WRITE:
            pending.append((offset, data))
        elif kind == FLUSH:
            for at, block in pending:
                durable[at : at + len(block)] = block
            pending = []
        elif index > start:
            tokens.append(data.decode())
        if index not in points:
            continue
        for variant in ("none", "all", "subset") if pending else ("none",):
            if outcome.states >= limit or (until is not None and time.monotonic() > until):
                return
            image.unlink(missing_ok=True)  # a new file for each: a loop device is never taken up again
            image.write_bytes(_after(durable, pending, variant, chance))
            outcome.states += 1
            with mounted(image, disk.directory / "check") as place:
                began = time.monotonic()
                found = checker.judge(place, tokens)
                outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - began)
            where = f"event {index} ({variant}, {len(tokens)} tokens, {len(pending)} writes unflushed)"
            outcome.violations += [f"{where}: {words}" for words in found[:2]]


def _after(durable: bytearray, pending: list[tuple[int, bytes]], variant: str, chance: random.Random) -> bytearray:
    image = bytearray(durable)
    chosen = {"none": [], "all": pending}.get(variant)
    if chosen is None:
        chosen = [write for write in pending if chance.random() < 0.5]
        chance.shuffle(chosen)
        if chosen and len(chosen[-1][1]) > MEDIUM_BYTES:
            offset, data = chosen[-1]
            chosen[-1] = (offset, data[: chance.randrange(1, max(2, len(data) // MEDIUM_BYTES)) * MEDIUM_BYTES])
    for offset, data in chosen:
        image[offset : offset + len(data)] = data
    return image


def fault(kind: str, *, after: int = 12, size_mb: int = 24) -> Outcome:
    """Break the disk under a running writer, mend it where that can be, power-cycle, judge what is left."""
    began = time.monotonic()
    outcome = Outcome()
    disk = Disk(size_mb)
    state: dict[str, Any] = {"count": 0}

    def on_token(token: str) -> None:
        state["count"] += 1
        if state["count"] == after:
            disk.break_it(kind)
        elif token == "mend please":
            disk.mend()

    try:
        disk.up()
        code, tokens = run_writer(disk, ["--fault", kind], on_token=on_token)
        outcome.tokens = len(tokens)
        if code:
            outcome.violations.append(f"{kind}: the writer ended with {code}")
        disk.down()
        with mounted(disk.image, disk.directory / "check") as place:
            at = time.monotonic()
            outcome.violations += [f"{kind}: {words}" for words in checker.judge(place, tokens)]
            outcome.slowest_s = time.monotonic() - at
        outcome.states = 1
    finally:
        disk.down()
        disk.remove()
    outcome.seconds = time.monotonic() - began
    return outcome


if __name__ == "__main__" and sys.argv[1:2] == ["--serve"]:
    serve(*sys.argv[2:])
