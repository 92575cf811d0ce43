"""A new version on trial: which release is used, which is trusted, and when a trial is passed. Touches the disk door.

Below the base directory: releases/VERSION, the links `current` (what runs) and `trusted` (what is known to be
good), trial.json while a trial runs, tried.json with every version's attempts, outcome.json: how the last update
ended, for the agent to say (agent/updates.py). At every moment a power cut leaves
something that settle() turns into "current is trusted".
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.clock import SystemClock, rfc3339
from agent.disk import Disk
from agent.errors import CommandError, StorageError
from agent.sdnotify import StatusLine

MAX_ATTEMPTS = 3
"""Trials of one version that something else ended (power cuts); after so many it is not tried again by itself."""

STABLE_S = 20.0
LIMIT_S = 180.0
FRAMES_FRESH_S = 3.0
"""STATUS= comes once a second; frames that did not grow for so long have stopped."""

MAX_WHY = 300

INTERRUPTED = "interrupted"
ACCEPTED = "accepted"
REFUSED = "refused"
FAILED = "failed"
ON_TRIAL = "on trial"


@dataclass(frozen=True, slots=True)
class Tried:
    """attempts: trials begun. verdict: of the last: on trial, accepted, interrupted, or what was wrong with it."""

    attempts: int = 0
    verdict: str = ""


class Releases:
    """The releases of one node below base. Methods raise StorageError, and CommandError where they say so."""

    def __init__(self, disk: Disk, base: Path) -> None:
        self._disk = disk
        self._base = base

    def current(self) -> str | None:
        return self._version("current")

    def trusted(self) -> str | None:
        return self._version("trusted")

    def on_trial(self) -> str | None:
        """The version whose trial was begun and not ended."""
        tree = self._read("trial.json")
        version = tree.get("version")
        return version if isinstance(version, str) else None

    def tried(self, version: str) -> Tried:
        entry = self._read("tried.json").get(version)
        try:
            return Tried(**entry) if isinstance(entry, dict) else Tried()
        except TypeError:
            return Tried()

    def admit(self, version: str, *, again: bool = False) -> None:
        """CommandError if version may not be tried; again: also after it failed or was cut too often."""
        if self._disk.size(self._base / "trial.json") is not None:
            raise CommandError("try", version, f"{self.on_trial()} is on trial", hint="camera-agent update --settle")
        before = self.tried(version)
        if not again and before.verdict not in ("", INTERRUPTED, ON_TRIAL, ACCEPTED):
            raise CommandError("try", version, f"it failed its trial: {before.verdict}", hint="--again tries anew")
        if not again and before.verdict == INTERRUPTED and before.attempts >= MAX_ATTEMPTS:
            raise CommandError("try", version, f"interrupted {before.attempts} times", hint="--again tries anew")

    def begin(self, version: str, *, again: bool = False) -> None:
        """version runs from the next start of the service on. CommandError as admit()."""
        self.admit(version, again=again)
        before = self.tried(version)
        # Counted before anything else: a version that takes the board down with it is counted too.
        self._note(version, Tried(before.attempts + 1, ON_TRIAL))
        self._disk.write_whole(self._base / "trial.json", json.dumps({"version": version}).encode())
        self._disk.point(self._base / "current", f"releases/{version}")

    def accept(self) -> None:
        """The version on trial is trusted from now on."""
        version = self.on_trial()
        if version is None or self.current() != version:
            raise CommandError("accept", version or "a version", "it is not on trial")
        self._disk.point(self._base / "trusted", f"releases/{version}")
        self._end(version, ACCEPTED)

    def give_up(self, why: str) -> str:
        """Back to the trusted version, which is returned; it runs from the next start of the service on."""
        trusted = self.trusted()
        if trusted is None:
            raise StorageError(
                "read", self._base / "trusted", "there is no trusted version", hint="run scripts/install"
            )
        if self.current() != trusted:
            self._disk.point(self._base / "current", f"releases/{trusted}")
        version = self.on_trial()
        self._end(version, why)
        return trusted

    def settle(self) -> str | None:
        """What to do when a trial's watcher is gone. The version that was given up, None when nothing was open."""
        if self._disk.size(self._base / "trial.json") is None:
            return None
        version = self.on_trial()
        if version is not None and version == self.trusted() == self.current():
            self._end(version, ACCEPTED)
            return None
        self.give_up(INTERRUPTED)
        return version or "an unknown version"

    def tell(self, version: str, verdict: str, why: str) -> None:
        """How an update ended. n: one more each time, so that the agent knows a new outcome from an old one."""
        number = self._read("outcome.json").get("n")
        tree = {
            "n": (number if isinstance(number, int) else 0) + 1,
            "version": version,
            "verdict": verdict,
            "why": why[:MAX_WHY],
            "time": rfc3339(SystemClock().wall_ns()),
        }
        self._disk.write_whole(self._base / "outcome.json", json.dumps(tree).encode())
        self._disk.let_all_read(self._base / "outcome.json")

    def _end(self, version: str | None, verdict: str) -> None:
        if version is not None:
            self._note(version, Tried(max(1, self.tried(version).attempts), verdict))
            kind = verdict if verdict in (ACCEPTED, INTERRUPTED) else FAILED
            self.tell(version, kind, "" if kind == ACCEPTED else verdict)
        self._disk.remove(self._base / "trial.json")
        self._disk.sync_directory(self._base)

    def _note(self, version: str, tried: Tried) -> None:
        tree = self._read("tried.json") | {version: asdict(tried)}
        self._disk.write_whole(self._base / "tried.json", json.dumps(tree, sort_keys=True).encode())

    def _version(self, link: str) -> str | None:
        target = self._disk.target(self._base / link)
        return target.removeprefix("releases/") if target is not None else None

    def _read(self, name: str) -> dict[str, object]:
        """A file that is torn or not there reads as empty: the links alone say what runs."""
        if self._disk.size(self._base / name) is None:
            return {}
        try:
            tree = json.loads(self._disk.read(self._base / name))
        except ValueError:
            return {}
        return tree if isinstance(tree, dict) else {}


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the service. ready: active in systemd's words. restarts: by systemd, since it was started."""

    t_s: float
    ready: bool
    restarts: int
    status: StatusLine | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the new version must show: what the old one did. A camera or broker that was away is not its fault."""

    frames: bool = True
    broker: bool = True
    stable_s: float = STABLE_S
    limit_s: float = LIMIT_S


class Judge:
    """Looks at a service on trial until it has been well for stable_s without a break, or is found unhealthy."""

    def __init__(self, wanted: Wanted, started_s: float) -> None:
        self._wanted = wanted
        self._started_s = started_s
        self._well_since_s: float | None = None
        self._grew_s: float | None = None
        self._frames = 0
        self.lacks = "it never said READY"

    def step(self, seen: Seen) -> str | None:
        """None: go on looking. "": healthy. Else what is wrong."""
        if seen.restarts > 0:
            return "it ended by itself and was restarted"
        self.lacks = self._what_lacks(seen)
        if self.lacks:
            self._well_since_s = None
        elif self._well_since_s is None:
            self._well_since_s = seen.t_s
        if self._well_since_s is not None and seen.t_s - self._well_since_s >= self._wanted.stable_s:
            return ""
        if seen.t_s - self._started_s >= self._wanted.limit_s:
            return self.lacks or f"not well for {self._wanted.stable_s:g} s within {self._wanted.limit_s:g} s"
        return None

    def _what_lacks(self, seen: Seen) -> str:
        if not seen.ready:
            return "it never said READY"
        if seen.status is not None and seen.status.frames > self._frames:
            self._frames, self._grew_s = seen.status.frames, seen.t_s
        fresh = self._grew_s is not None and seen.t_s - self._grew_s <= FRAMES_FRESH_S
        if self._wanted.frames and not fresh:
            return "no frames come from the camera"
        if self._wanted.broker and not (seen.status is not None and seen.status.connected):
            return "it does not reach the broker"
        return ""
