"""Settings by message in the commands' thread: looked at, written down, tried, confirmed or taken back, reported.

Touches memory only; the file is an errand for the storage thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

from agent import configuration
from agent.admission import Desired
from agent.changes import changed, needing_restart
from agent.clock import Now, rfc3339
from agent.configuration import STATE_NAME, Patch, Problem, State, Verdict
from agent.errands import Done
from agent.errors import ConfigError as SettingsError
from agent.handoffs import Status, StatusBoard
from agent.jobs import Outcome, failure
from agent.model import NS_PER_S
from agent.requests import ConfigError, ConfigReported, ErrorBody
from agent.settings import Settings, redacted
from agent.topics import CONFIG_REPORTED

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""A verdict on a trial that could not be written down is tried again so often."""

Write = Callable[[tuple[str, bytes], Callable[[Done], None]], bool]
"""(file name, content), what to do when it is written or not; False when the errand found no room."""


class Configuring:
    """One running program's part in commit-confirm.

    check: what is wrong with a config on top of the node's own file. load: the settings that come of it, may raise
    ConfigError. adopt: the running node takes settings over that need no restart. troubles: parts of the node in
    trouble now. is_connected: whether the broker accepted us. restart: ask the program to end and be started again.
    """

    def __init__(
        self,
        state: State,
        settings: Settings,
        statuses: StatusBoard,
        *,
        check: Callable[[dict[str, Any]], list[Problem]],
        load: Callable[[dict[str, Any]], Settings],
        adopt: Callable[[Settings], None],
        is_connected: Callable[[], bool],
        troubles: Callable[[], tuple[str, ...]],
        restart: Callable[[str], None],
        write: Write,
    ) -> None:
        self.state = state
        self._settings = settings
        self._statuses = statuses
        self._check = check
        self._load = load
        self._adopt = adopt
        self._is_connected = is_connected
        self._troubles = troubles
        self._restart = restart
        self._write = write
        self._born_ns: int | None = None
        self._well_ns: int | None = None
        self._is_writing = False
        self._is_leaving = False
        self._retry_ns = 0

    def step(self, now: Now) -> None:
        """Once a step: report at first, and judge a trial."""
        if self._born_ns is None:
            self._born_ns = now.t_ns
            self._report(self.state.verdict, now)
        if self.state.trial is None or self._is_writing or self._is_leaving or now.t_ns < self._retry_ns:
            return
        new_troubles = [part for part in self._troubles() if part not in self.state.troubled]
        if not self._is_connected() or new_troubles:
            self._well_ns = None
        elif self._well_ns is None:
            self._well_ns = now.t_ns
        if self._well_ns is not None and now.t_ns - self._well_ns >= configuration.SETTLED_S * NS_PER_S:
            if self._become(configuration.confirmed(self.state), now):
                log.info("settings of revision %d confirmed", self.state.newest.rev)
        elif now.t_ns - self._born_ns >= self._settings.commands.confirm_s * NS_PER_S:
            why = "not connected to the broker" if not self._is_connected() else f"trouble: {', '.join(new_troubles)}"
            words = f"not confirmed within {self._settings.commands.confirm_s:g} s: {why}"
            log.warning("settings taken back: %s", words)
            self._become(configuration.given_up(self.state, words), now)

    def hear(self, wanted: Desired | ErrorBody, now: Now) -> bool:
        """A config/desired came; False: it has to wait, for a write under way or for room for its own."""
        if self._is_writing or self._is_leaving:
            return False
        if isinstance(wanted, ErrorBody):
            problem = Problem(wanted.pointer, f"{wanted.code}: {wanted.detail}")
            self._report(Verdict(0, "rejected", (problem,)), now)
            return True
        patch = Patch(wanted.rev, dict(wanted.config))
        before = self.state
        state, verdict = configuration.desired(before, patch, self._check, self._troubles(), self._needs_restart)
        if state == before:
            self._report(verdict, now)
            return True
        if not self._become(state, now):
            return False
        log.info("settings of revision %d: %s", patch.rev, verdict.status)
        return True

    def turn(self, patch: dict[str, dict[str, object]], now: Now, tell: Callable[[Outcome], None]) -> Outcome | None:
        """Change the kept settings by patch, at once; the Outcome, or None: it is told later."""
        if self._is_writing or self._is_leaving or self.state.trial is not None:
            return failure("busy", "new settings are on trial; try again")
        config = configuration.merged(self.state.kept.config, patch)
        problems = self._check(config)
        if problems:
            return failure("invalid", problems[0].message)
        try:
            settings = self._load(config)
        except SettingsError as error:
            return failure("unavailable", str(error))
        shown = settings.model_dump(mode="json")
        for section, values in patch.items():
            if any(shown[section][name] != value for name, value in values.items()):
                return failure("forbidden", "the node's environment sets it, which is above what comes by message")
        if needing_restart(self._settings, settings):
            return failure("unavailable", "the node's own file was changed; restart it first")

        def answer(words: str) -> None:
            tell(failure("unavailable", words) if words else Outcome({**patch}))

        self._become(configuration.turned(self.state, config), now, answer)
        return None

    def _needs_restart(self, config: dict[str, Any]) -> bool:
        try:
            return bool(needing_restart(self._settings, self._load(config)))
        except SettingsError:  # only the start can tell what is to be done
            return True

    def _become(self, state: State, now: Now, tell: Callable[[str], None] = lambda _: None) -> bool:
        """Write state down; then it counts, its settings are taken over or the program ends for them, and it is said.

        tell: is given what went wrong, or nothing. False: there is no room for the write now.
        """

        def go_on(done: Done) -> None:
            self._is_writing = False
            if done.code != "ok":
                self._retry_ns = now.t_ns + round(RETRY_S * NS_PER_S)
                words = f"it could not be written down: {done.words}"
                self._report(Verdict(state.verdict.rev, "rejected", (Problem("", words),)), now)
                tell(words)
                return
            before, self.state = self.state, state
            self._enter(before, now)
            self._report(state.verdict, now)
            tell("")

        self._is_writing = True
        if not self._write((STATE_NAME, configuration.to_bytes(state)), go_on):
            self._is_writing = False
            tell("the disk has too much to do; try again")
            return False
        return True

    def _enter(self, before: State, now: Now) -> None:
        """The settings in force are those of self.state from now on."""
        config = self.state.in_force.config
        if config == before.in_force.config:
            return
        if self._needs_restart(config):
            self._is_leaving = True
            self._restart(f"the settings of revision {self.state.in_force.rev}")
            return
        settings = self._load(config)
        log.info("settings taken over: %s", ", ".join(changed(self._settings, settings)) or "nothing differs")
        self._settings = settings
        self._born_ns, self._well_ns = now.t_ns, None
        self._adopt(settings)

    def _report(self, verdict: Verdict, now: Now) -> None:
        shown = reported_settings(self._settings)
        text = json.dumps(shown, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        message = ConfigReported(
            rev=verdict.rev,
            status=verdict.status,
            errors=[ConfigError(pointer=each.pointer, message=each.message) for each in verdict.problems],
            config=shown,
            hash=hashlib.sha256(text).hexdigest(),
            time=rfc3339(now.wall_ns),
        )
        self._statuses.put(CONFIG_REPORTED, Status(message.model_dump_json().encode()))


def reported_settings(settings: Settings) -> dict[str, Any]:
    """All settings in force as JSON values, without secrets."""
    shown: dict[str, Any] = settings.model_dump(mode="json")
    shown["mqtt"]["password"] = "***" if settings.mqtt.password.get_secret_value() else ""
    shown["camera"]["source"] = redacted(settings.camera.source)
    return shown
