"""`camera-agent update`: a signed package on trial; kept if healthy, else the old version returns. Run by root."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from agent.cli import add_config, load_settings, number
from agent.disk import Disk
from agent.errors import AgentError, CommandError, ConfigError
from agent.release import MAX_PAYLOAD_BYTES, PIECE_BYTES, About, admit, check_member, is_due
from agent.sdnotify import StatusLine
from agent.trial import LIMIT_S, REFUSED, STABLE_S, Judge, Releases, Seen, Wanted

HELP = "verify a package, run it on trial, keep it if it is healthy, else bring the old version back (root)"

BASE = Path("/opt/camera-agent")
KEYS = Path("/etc/camera-agent/release.pub")
UNITS = Path("/usr/local/lib/systemd/system")
OWN_UNITS = ("camera-agent.service", "camera-agent@.service")
UNIT_SUFFIXES = (".service", ".path", ".timer")
KEPT_RELEASES = 3
LOOK_EACH_S = 0.5


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("package", nargs="?", type=Path, metavar="PACKAGE", help="a signed package")
    what.add_argument("--incoming", type=Path, metavar="DIR", help="the package that the agent fetched into DIR")
    what.add_argument("--settle", action="store_true", help="end a trial that nobody watches any more")
    what.add_argument("--list", action="store_true", help="show what runs, what is trusted and what was tried")
    parser.add_argument(
        "--verify-only", action="store_true", help="say whether the package may be installed, no more"
    )
    parser.add_argument("--again", action="store_true", help="try a version also after it failed its trial")
    parser.add_argument("--older", action="store_true", help="allow a version older than the trusted one")
    parser.add_argument(
        "--percent", type=number(0, 100), metavar="N", help="only if this node is among N %% (needs --config)"
    )
    parser.add_argument(
        "--stable", type=number(0), default=STABLE_S, metavar="S", help="kept when it was well for S s, default 20"
    )
    parser.add_argument(
        "--limit", type=number(1), default=LIMIT_S, metavar="S", help="and that within S s, default 180"
    )
    parser.add_argument("--base", type=Path, default=BASE, help=argparse.SUPPRESS)
    parser.add_argument("--keys", type=Path, default=KEYS, help=argparse.SUPPRESS)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    if args.percent is not None and args.config is None:
        raise ConfigError("read", "--percent", "it has to know which node this is", hint="add --config FILE")
    releases = Releases(Disk(), args.base)
    if args.list:
        return show(releases, args.base)
    with one_at_a_time(args.base):
        if args.settle:
            return settle(releases, args.base)
        try:
            return update(releases, args, args.package) if args.package is not None else take_incoming(releases, args)
        except UntriedError as error:
            if not args.verify_only:
                releases.tell(error.version, REFUSED, str(error.cause))
            raise error.cause from None


class UntriedError(Exception):
    """An update that ended before its trial began. version: empty where the package could not be read."""

    def __init__(self, version: str, cause: AgentError) -> None:
        self.version, self.cause = version, cause


@contextlib.contextmanager
def untried(version: str) -> Iterator[None]:
    try:
        yield
    except AgentError as error:
        raise UntriedError(version, error) from error


@contextlib.contextmanager
def one_at_a_time(base: Path) -> Iterator[None]:
    """Two updaters would judge each other's trial."""
    try:
        with (base / "update.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise CommandError("update", base, "another update is running") from error
    except (PermissionError, FileNotFoundError) as error:
        raise CommandError("update", base, error, hint="on the node, as root; after scripts/install") from error


def show(releases: Releases, base: Path) -> int:
    current, trusted = releases.current(), releases.trusted()
    print(f"current {current or 'none'}, trusted {trusted or 'none'}, on trial {releases.on_trial() or 'none'}")
    for version in versions(base):
        tried = releases.tried(version)
        print(
            f"  {version}: {tried.verdict or 'installed'}" + (f", {tried.attempts} trials" if tried.attempts else "")
        )
    return 0


def versions(base: Path) -> list[str]:
    directory = base / "releases"
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def settle(releases: Releases, base: Path) -> int:
    """Also run at boot before the service: it then only sets the links."""
    given_up = releases.settle()
    if given_up is None:
        return 0
    print(f"trial of {given_up} was interrupted; back to {releases.trusted()}", file=sys.stderr)
    if Path("/run/systemd/system").is_dir():
        # Boot has the old version's start still before it; later, what runs is the one that was given up.
        at_boot = systemctl("is-system-running") in ("initializing", "starting")
        restart([] if at_boot else services(), base)
    return 0


def take_incoming(releases: Releases, args: argparse.Namespace) -> int:
    """The agent owns that directory and may be anybody's by now: nothing is trusted, no link followed."""
    try:
        directory = os.open(args.incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise CommandError("open", args.incoming, error, hint="a directory of its own, not a link") from error
    names = sorted(name for name in os.listdir(directory) if name.endswith(".package"))
    if not names:
        return 0
    with tempfile.TemporaryDirectory(prefix="camera-agent-incoming.", dir="/var/tmp") as kept:
        mine = Path(kept) / "offered.package"
        try:
            with open_plain(Path(names[0]), directory) as offered, mine.open("wb") as copy:
                copy_at_most(offered, copy)
        finally:
            for name in names:
                # A directory of that name stays; systemd gives up after a few starts.
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)
            os.close(directory)
        return update(releases, args, mine)


def copy_at_most(source: BinaryIO, out: BinaryIO) -> None:
    """As much as a package can be and a little more: the verifier refuses the rest."""
    left = MAX_PAYLOAD_BYTES + 2 * PIECE_BYTES
    while left and (piece := source.read(min(left, PIECE_BYTES))):
        out.write(piece)
        left -= len(piece)


def open_plain(path: Path, directory: int | None = None) -> BinaryIO:
    """A plain file, not what a link leads to and not a pipe that never ends. directory: of a relative path."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, dir_fd=directory)
    except OSError as error:
        raise CommandError("open", path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CommandError("open", path, "not a plain file")
    return os.fdopen(descriptor, "rb")


def update(releases: Releases, args: argparse.Namespace, package: Path) -> int:
    trusted = releases.trusted()
    if trusted is None:
        raise ConfigError("read", args.base / "trusted", "no version is installed here", hint="run scripts/install")
    with tempfile.TemporaryDirectory(prefix="camera-agent-update.", dir="/var/tmp") as scratch:
        with untried(""):
            about = verify(package, Path(scratch) / "payload.tar", _keys(args.keys), trusted, args.older)
        print(f"{package.name}: {about.version} for {about.machine}, signature and sha256 are right", flush=True)
        if args.verify_only:
            return 0
        if args.percent is not None:
            node = load_settings(args.config).node
            if not is_due(node.site, node.id, about.version, args.percent):
                print(f"{node.site}/{node.id} is not among the first {args.percent:g} % for {about.version}")
                return 0
        with untried(about.version):
            releases.admit(about.version, again=args.again)
            stage(Path(scratch), about)
    return trial(releases, about.version, args)


def _keys(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError("read", path, error, hint="provisioning puts the release key there") from error


def verify(package: Path, payload: Path, keys: bytes, trusted: str, older: bool) -> About:
    with open_plain(package) as source, payload.open("wb") as out:
        return admit(source, out, public_keys_pem=keys, trusted=trusted, machine=platform.machine(), older=older)


def stage(scratch: Path, about: About) -> None:
    """Unpack and let the new version's own installer build its release; nothing that runs is touched."""
    bundle = scratch / "bundle"
    bundle.mkdir()
    with tarfile.open(scratch / "payload.tar") as archive:
        for member in archive:
            check_member(member)
            member.uid = member.gid = 0
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            archive.extract(member, bundle, set_attrs=True, **EXTRACT)  # type: ignore[arg-type]
    result = subprocess.run([bundle / "scripts" / "install", "--stage"], stdin=subprocess.DEVNULL)
    if result.returncode:
        raise CommandError("build", f"release {about.version}", f"its installer ended with {result.returncode}")


# Python 3.11.2 (Debian 12) has no extraction filters; check_member() asks the same there.
EXTRACT = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def trial(releases: Releases, version: str, args: argparse.Namespace) -> int:
    units = services()
    before = {unit: look(unit, 0.0) for unit in units}
    releases.begin(version, again=args.again)
    print(f"{version} is on trial: {args.stable:g} s without fault within {args.limit:g} s", flush=True)
    why = "interrupted"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        restart(units, args.base)
        why = watch(before, args)
        if not why:
            releases.accept()
            put_units(args.base)
            systemctl("daemon-reload")
            print(f"{version} is healthy and stays")
            prune(releases, args.base)
            return 0
    except AgentError as error:
        why = str(error)
        raise
    finally:
        if why:
            back = releases.give_up(why)
            restart(units, args.base)
            print(f"{version} failed its trial ({why}); back to {back}", file=sys.stderr)
    return 1


def watch(before: dict[str, Seen], args: argparse.Namespace) -> str:
    """Until all are healthy ("") or one is not (why)."""
    started_s = time.monotonic()
    judges = {}
    for unit, seen in before.items():
        status = seen.status
        wanted = Wanted(
            frames=status is not None and status.frames > 0 and "camera:" not in status.summary,
            broker=status is not None and status.connected,
            stable_s=args.stable,
            limit_s=args.limit,
        )
        judges[unit] = Judge(wanted, started_s)
    while judges:
        time.sleep(LOOK_EACH_S)
        for unit, judge in list(judges.items()):
            verdict = judge.step(look(unit, time.monotonic()))
            if verdict:
                return f"{unit}: {verdict}"
            if verdict == "":
                del judges[unit]
    return ""


def services() -> list[str]:
    """The nodes of this board that run or want to run."""
    rows = systemctl(
        "list-units", "--all", "--plain", "--no-legend", "camera-agent.service", "camera-agent@*.service"
    ).splitlines()
    named = [row.split() for row in rows]
    return [row[0] for row in named if len(row) > 2 and row[2] in ("active", "activating", "reloading", "failed")]


def look(unit: str, now_s: float) -> Seen:
    shown = systemctl("show", unit, "--property=ActiveState,NRestarts,StatusText")
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    restarts = values.get("NRestarts", "0")
    return Seen(
        now_s,
        values.get("ActiveState") == "active",
        int(restarts) if restarts.isdigit() else 0,
        StatusLine.parse(values.get("StatusText", "")),
    )


def restart(units: list[str], base: Path) -> None:
    """The links decide what runs; not waited for, since a version that never says READY would be waited for."""
    put_units(base)
    systemctl("daemon-reload")
    if units:
        systemctl("reset-failed", *units)
        systemctl("restart", "--no-block", *units)


def put_units(base: Path) -> None:
    """The unit files follow the links: the agent's own those of current, what can bring it back those of trusted."""
    if not UNITS.is_dir():
        return
    disk = Disk()
    for link in ("trusted", "current"):
        for path in sorted((base / link / "share/camera-agent/systemd").glob("camera-agent*.*")):
            is_own = path.name in OWN_UNITS
            target = UNITS / path.name
            if path.suffix not in UNIT_SUFFIXES or is_own != (link == "current"):
                continue
            if not target.exists() or target.read_bytes() != path.read_bytes():
                disk.write_whole(target, path.read_bytes())
                target.chmod(0o644)


def systemctl(*words: str) -> str:
    return subprocess.run(
        ["systemctl", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    ).stdout.strip()


def prune(releases: Releases, base: Path) -> None:
    """The newest few stay, and never does what runs or is trusted go."""
    keep = {releases.current(), releases.trusted()}
    by_age = sorted((base / "releases").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in by_age[KEPT_RELEASES:]:
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
