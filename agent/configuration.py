"""Configuration over MQTT as a pure machine: what is kept, what is on trial, what is said of it. Touches nothing.

The whole state is one value and one small file, written before anything acts on it, so a power cut at any moment
leaves either the state before or the state after. A desired configuration says whole what shall differ from the
node's own file; it is not a change to the one before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from agent.strict_json import parse

STATE_NAME = "configuration.json"
STATE_BYTES = 1 << 20
MAX_STARTS = 3
"""Starts of the program with settings on trial; when the third did not confirm them either, they go back."""

SETTLED_S = 10.0
"""Connected and well for so long without a break: then new settings are kept."""

Status = Literal["applied", "rejected", "rolled-back", "pending-restart"]

FORBIDDEN = (
    ("commands", "only the node's own file says who may command it"),
    ("node/id", "the node would be another one"),
    ("node/site", "the node would be another one"),
    ("clips/directory", "the node would lose its ledger"),
    ("mqtt/password", "secrets come as credentials, never in a message"),
)


@dataclass(frozen=True, slots=True)
class Patch:
    """What differs from the node's own file. rev 0: nothing ever came."""

    rev: int = 0
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """pointer: JSON pointer into config/desired."""

    pointer: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of revision rev."""

    rev: int
    status: Status
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """kept: confirmed and, without a trial, in force. newest: the last revision looked at, whatever came of it.

    starts: of the program with the trial. troubled: parts of the node that were in trouble before the trial.
    """

    kept: Patch = Patch()
    trial: Patch | None = None
    newest: Patch = Patch()
    starts: int = 0
    troubled: tuple[str, ...] = ()
    verdict: Verdict = Verdict(0, "applied")

    @property
    def in_force(self) -> Patch:
        return self.trial or self.kept


def desired(
    state: State,
    wanted: Patch,
    check: Callable[[dict[str, Any]], list[Problem]],
    troubled: tuple[str, ...] = (),
    needs_restart: Callable[[dict[str, Any]], bool] = lambda _: True,
) -> tuple[State, Verdict]:
    """A desired configuration came. check: what is wrong with its config. A trial in the new state: write, begin it.

    needs_restart: whether the running program cannot take that config over. A revision below the newest one, or
    another content under the same number, is rejected and changes nothing.
    """
    newest = state.newest
    if wanted.rev == newest.rev and wanted.config == newest.config:
        return state, state.verdict  # retained: it comes again at each connection
    if wanted.rev <= newest.rev:
        words = f"revision {newest.rev} is known already" if wanted.rev < newest.rev else "another content had it"
        return state, Verdict(wanted.rev, "rejected", (Problem("/rev", f"should be above {newest.rev}: {words}"),))
    state = replace(state, newest=wanted)
    problems = _forbidden(wanted.config) or check(wanted.config)
    if problems:
        verdict = Verdict(wanted.rev, "rejected", tuple(problems))
        return replace(state, verdict=verdict), verdict
    if wanted.config == state.kept.config:
        # Back to what is kept may need a start too.
        waits = state.trial is not None and needs_restart(wanted.config)
        verdict = Verdict(wanted.rev, "pending-restart" if waits else "applied")
        return replace(state, kept=wanted, trial=None, verdict=verdict), verdict
    verdict = Verdict(wanted.rev, "pending-restart" if needs_restart(wanted.config) else "applied")
    return replace(state, trial=wanted, starts=0, troubled=troubled, verdict=verdict), verdict


def started(state: State) -> State:
    """The program starts: written down before the settings are used."""
    if state.trial is None:
        # pending-restart without a trial: the way back to the kept settings; this start is it.
        if state.verdict.status == "pending-restart":
            return replace(state, verdict=Verdict(state.verdict.rev, "applied"))
        return state
    if state.starts >= MAX_STARTS:
        return given_up(state, f"{MAX_STARTS} starts with these settings ended before they were confirmed")
    return replace(state, starts=state.starts + 1)


def confirmed(state: State) -> State:
    """The trial is connected and well: its settings are kept."""
    if state.trial is None:
        return state
    return replace(state, kept=state.trial, trial=None, starts=0, verdict=Verdict(state.trial.rev, "applied"))


def given_up(state: State, why: str) -> State:
    """The trial failed: the kept settings are in force from the next start on."""
    if state.trial is None:
        return state
    verdict = Verdict(state.trial.rev, "rolled-back", (Problem("/config", why),))
    return replace(state, trial=None, starts=0, verdict=verdict)


def turned(state: State, config: dict[str, Any]) -> State:
    """A command changed the kept settings to config; the next desired configuration is above it."""
    return replace(state, kept=replace(state.kept, config=config))


def merged(config: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """config with patch laid over it."""
    made = dict(config)
    for key, value in patch.items():
        before = made.get(key)
        made[key] = merged(before if isinstance(before, dict) else {}, value) if isinstance(value, dict) else value
    return made


def to_bytes(state: State) -> bytes:
    return json.dumps(asdict(state), ensure_ascii=False).encode()


def from_bytes(content: bytes) -> State:
    """ValueError where the file is not what to_bytes wrote."""
    found = parse(content, max_bytes=STATE_BYTES, max_depth=16)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    try:
        verdict = found["verdict"]
        return State(
            kept=Patch(**found["kept"]),
            trial=None if found["trial"] is None else Patch(**found["trial"]),
            newest=Patch(**found["newest"]),
            starts=int(found["starts"]),
            troubled=tuple(found["troubled"]),
            verdict=Verdict(
                verdict["rev"], verdict["status"], tuple(Problem(**each) for each in verdict["problems"])
            ),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a state of the configuration: {error}") from error


def _forbidden(config: dict[str, Any]) -> list[Problem]:
    found = []
    for path, why in FORBIDDEN:
        section, _, name = path.partition("/")
        given = config.get(section)
        if section in config and (not name or (isinstance(given, dict) and name in given) or given is None):
            found.append(Problem(f"/config/{path}", f"cannot be changed by a message: {why}"))
    return found
