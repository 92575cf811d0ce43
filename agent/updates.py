"""What this node knows of newer versions: the offer, the download, root's trial; says it on `B/update`. Reads files.

The agent may not install anything: it fetches a package and puts it where root's updater takes it
(systemd/camera-agent-update.path). How that ended the updater writes into outcome.json; here it is only read.
Commands thread; files of its own are errands.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import ssl
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import ValidationError

from agent import __version__
from agent.backoff import Backoff
from agent.clock import Clock, Now, rfc3339
from agent.disk import Disk
from agent.errands import Done, Errand
from agent.errors import AgentError, StorageError
from agent.handoffs import Status, StatusBoard
from agent.jobs import Outcome, failure
from agent.model import NS_PER_S
from agent.packages import Fetch
from agent.release import About, PackageRefusedError, is_due, read_head, version_of
from agent.requests import OfferArgs, TrialBody, UpdateArgs, UpdateReported
from agent.settings import Settings
from agent.strict_json import StrictJsonError, parse
from agent.topics import UPDATE
from agent.uploads import allowed

log = logging.getLogger(__name__)

STATE_NAME = "update.json"
LOOK_S = 2.0
"""How often root's side is looked at: a few names in two directories."""

PERCENT_STEP = 5
HANDED_OVER_S = 1800.0
"""camera-agent-update.service ends after so long (TimeoutStartSec); a package that nobody took is then given up."""

Phase = Literal["idle", "fetching", "handed-over", "on-trial"]
Post = Callable[[Errand, Callable[[Done], None]], bool]
"""An errand for the storage thread and what to do when it is done; False when there is no room for it."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where an installed node has what belongs to updates (scripts/install, systemd/camera-agent.tmpfiles.conf)."""

    base: Path = Path("/opt/camera-agent")
    incoming: Path = Path("/var/lib/camera-agent/incoming")
    keys: Path = Path("/etc/camera-agent/release.pub")


@dataclass(frozen=True, slots=True)
class Known:
    """What is kept over starts. version, url, notes: of the offer, empty without one. tries: updates begun."""

    version: str = ""
    url: str = ""
    notes: str = ""
    tries: int = 0


class Updates:
    """One running program's part in updates. post: as Commands.errand()."""

    def __init__(
        self,
        settings: Settings,
        statuses: StatusBoard,
        clock: Clock,
        *,
        post: Post,
        places: Places | None = None,
        installed: str = __version__,
    ) -> None:
        self._node = settings.node
        self._hosts = list(settings.commands.package_hosts)
        self._ca_file = settings.mqtt.ca_file
        self._statuses = statuses
        self._clock = clock
        self._post = post
        self._disk = Disk()
        self._places = places or Places()
        self._installed = installed
        self.known = self._read_known(settings.clips.directory / STATE_NAME)
        self._fetch: Fetch | None = None
        self._handed_over_ns: int | None = None
        self._outcome_n = self._read_outcome()[0]
        self._look_ns = 0
        self._said: UpdateReported | None = None

    @property
    def is_possible(self) -> bool:
        """Whether this node was installed so that root takes packages from the agent."""
        return os.access(self._places.incoming, os.W_OK)

    @property
    def next_id(self) -> str:
        """Of the next `update` command that Home Assistant may send: a new one after each try. Any thread."""
        said = self._said
        return f"ha-update-{said.latest}-{said.tries}" if said is not None and said.possible else ""

    def step(self, now: Now) -> None:
        """Once a step: what changed is said."""
        if now.t_ns < self._look_ns:
            return
        self._look_ns = now.t_ns + round(LOOK_S * NS_PER_S)
        said = self._report(now)
        if self._said is None or said.model_copy(update={"time": self._said.time}) != self._said:
            self._said = said
            self._statuses.put(UPDATE, Status(said.model_dump_json().encode()))

    def offer(self, args: OfferArgs, then: Callable[[Outcome], None]) -> None:
        """Remember it; then(...) when that is on the disk."""
        refusal = allowed(args.url, self._hosts, "commands.package_hosts")
        if refusal:
            then(failure("forbidden", refusal, "/args/url"))
            return
        known = replace(self.known, version=args.version, url=args.url, notes=args.notes)
        self._become(known, lambda: then(Outcome({"version": args.version})), then)

    def begin(self, args: UpdateArgs, start: Callable[[Fetch], None], then: Callable[[Outcome], None]) -> None:
        """then(...) at once where there is nothing to fetch; else start(...) once the try is written down."""
        outcome, version, url = self._examined(args)
        if outcome is not None:
            then(outcome)
            return
        try:
            context = self._context() if url.startswith("https:") else None
        except OSError as error:
            then(failure("unavailable", f"the CA's certificates cannot be read: {error}"))
            return
        fetch = Fetch(
            url,
            self._places.incoming / f"{self._node.site}.{self._node.id}.package",
            judge=lambda head: self._judge(head, version),
            store=lambda piece, then: self._post(Errand(0, piece=piece), then),
            free_bytes=lambda: self._disk.free_bytes(self._places.incoming),
            ended=self._fetched,
            backoff=Backoff(random.random),
            context=context,
        )
        self._fetch = fetch
        self._look_ns = 0

        def go_on() -> None:
            start(fetch)

        def give_up(outcome: Outcome) -> None:
            self._fetch = None
            then(outcome)

        self._become(replace(self.known, tries=self.known.tries + 1), go_on, give_up)

    def _fetched(self, outcome: Outcome | None) -> None:
        """The download is over; from here on root has it, or nobody."""
        self._fetch = None
        self._look_ns = 0
        if outcome is not None and outcome.error is None:
            self._handed_over_ns = self._clock.boot_ns()

    def _examined(self, args: UpdateArgs) -> tuple[Outcome | None, str, str]:
        """Why nothing is fetched, if so; the version and where it is."""
        known = self.known
        version = args.version or known.version
        url = args.url or (known.url if version == known.version else "")
        if not version or not url:
            words = "no version was offered" if not version else f"it is not known where {version} is: give its url"
            return failure("not-found", words, "/args/url"), "", ""
        refusal = allowed(url, self._hosts, "commands.package_hosts")
        if refusal:
            return failure("forbidden", refusal, "/args/url"), "", ""
        if version == self._installed:
            return Outcome({"state": "installed", "version": version}), "", ""
        if version_of(version) < version_of(self._installed):
            words = f"{version} is older than {self._installed}, which runs; root can go back: see OPERATIONS"
            return failure("refused", words, "/args/version"), "", ""
        if not is_due(self._node.site, self._node.id, version, args.percent):
            return Outcome({"state": "not-due", "version": version}), "", ""
        if not self.is_possible:
            return failure("unavailable", f"{self._places.incoming} cannot be written: see INSTALL"), "", ""
        phase = self._phase()
        if phase != "idle":
            return failure("busy", f"an update is under way: {phase}"), "", ""
        return None, version, url

    def _judge(self, head: BinaryIO, version: str) -> About:
        try:
            keys = self._disk.read(self._places.keys)
        except StorageError as error:
            raise PackageRefusedError(f"this node has no release key: {error.cause}") from error
        try:
            about = read_head(head, public_keys_pem=keys, trusted=self._installed, machine=platform.machine())
        except ImportError as error:
            raise PackageRefusedError(f"it cannot be verified: {error}") from error
        if about.version != version:
            raise PackageRefusedError(f"it is {about.version}, not {version}")
        return about

    def _context(self) -> ssl.SSLContext:
        """The site's own CA counts beside the system's: a package server in an office has no other."""
        context = ssl.create_default_context()
        if self._ca_file is not None:
            context.load_verify_locations(self._ca_file)
        return context

    # -- what is said

    def _phase(self) -> Phase:
        if self._fetch is not None:
            return "fetching"
        if (self._places.base / "trial.json").exists():
            return "on-trial"
        if self._handed_over_ns is None:
            return "idle"
        is_old = self._clock.boot_ns() - self._handed_over_ns > HANDED_OVER_S * NS_PER_S
        if is_old or self._read_outcome()[0] != self._outcome_n:
            self._handed_over_ns = None
            return "idle"
        return "handed-over"

    def _report(self, now: Now) -> UpdateReported:
        known, phase = self.known, self._phase()
        self._outcome_n, last = self._read_outcome() if phase != "handed-over" else (self._outcome_n, self._last())
        is_newer = bool(known.version) and version_of(known.version) > version_of(self._installed)
        return UpdateReported(
            installed=self._installed,
            latest=known.version if is_newer else self._installed,
            notes=known.notes if is_newer else "",
            possible=self.is_possible,
            phase=phase,
            percent=self._fetch.percent // PERCENT_STEP * PERCENT_STEP if self._fetch is not None else None,
            tries=known.tries,
            last=last,
            time=rfc3339(now.wall_ns),
        )

    def _last(self) -> TrialBody | None:
        return self._said.last if self._said is not None else None

    def _read_outcome(self) -> tuple[int, TrialBody | None]:
        """(its number, what it says); (0, None) where there is none or it is not to be read."""
        path = self._places.base / "outcome.json"
        try:
            if self._disk.size(path) is None:
                return 0, None
            found = parse(self._disk.read(path))
            if not isinstance(found, dict):
                return 0, None
            return int(found.pop("n")), TrialBody.model_validate(found)
        except (StorageError, StrictJsonError, ValidationError, ValueError, KeyError, TypeError) as error:
            log.debug("%s: %s", path, error)
            return 0, None

    # -- what is kept

    def _read_known(self, path: Path) -> Known:
        try:
            found = parse(self._disk.read(path)) if self._disk.size(path) is not None else {}
            known = Known(**found) if isinstance(found, dict) else Known()
            if known.version:
                version_of(known.version)
            return known
        except (AgentError, StrictJsonError, TypeError) as error:
            log.warning("%s: %s; no version counts as offered", path, error)
            return Known()

    def _become(self, known: Known, go_on: Callable[[], None], give_up: Callable[[Outcome], None]) -> None:
        def written(done: Done) -> None:
            if done.code != "ok":
                give_up(failure("unavailable", f"it could not be written down: {done.words}"))
                return
            self.known = known
            self._look_ns = 0
            go_on()

        file = (STATE_NAME, json.dumps(asdict(known)).encode())
        if not self._post(Errand(0, file=file), written):
            give_up(failure("busy", "the disk has too much to do; try again"))
