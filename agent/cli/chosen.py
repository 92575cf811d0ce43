"""Which settings a node goes by: its own file, and what came over MQTT on top. Reads and writes one small file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from agent import configuration
from agent.cli import load_settings
from agent.configuration import STATE_NAME, State
from agent.disk import Disk
from agent.errors import ConfigError, StorageError
from agent.settings import Settings

log = logging.getLogger(__name__)


def chosen_settings(path: Path) -> tuple[Settings, State]:
    """For a start of the program, which counts: a trial that cannot even be read goes back."""
    own = load_settings(path)
    file = own.clips.directory / STATE_NAME
    state = read_state(file)
    begun = configuration.started(state)
    if begun != state and not _write_state(file, begun):
        begun = configuration.given_up(begun, "the state of the trial could not be written down")
    for attempt in (begun, configuration.given_up(begun, "these settings do not go with the node's own file")):
        try:
            chosen = load_settings(path, patch=attempt.in_force.config)
        except ConfigError as error:
            log.error("settings of revision %d: %s", attempt.in_force.rev, error)
            continue
        if attempt != begun:
            _write_state(file, attempt)
        return chosen, attempt
    return own, replace(begun, kept=configuration.Patch(), trial=None)


def settings_in_force(path: Path) -> tuple[Settings, str]:
    """For who only looks: the same settings, and in words what is not of the file; empty when all is."""
    own = load_settings(path)
    patch = read_state(own.clips.directory / STATE_NAME).in_force
    if not patch.config:
        return own, ""
    try:
        return load_settings(path, patch=patch.config), f"with revision {patch.rev} of config/desired"
    except ConfigError as error:
        return own, f"without revision {patch.rev} of config/desired, which does not go with the file: {error.cause}"


def gave_up(path: Path, why: str) -> bool:
    """Whether a trial was under way, which is now over."""
    file = load_settings(path).clips.directory / STATE_NAME
    state = read_state(file)
    return state.trial is not None and _write_state(file, configuration.given_up(state, why))


def read_state(file: Path) -> State:
    """What is kept; nothing where the file is absent or broken."""
    disk = Disk()
    try:
        return State() if disk.size(file) is None else configuration.from_bytes(disk.read(file))
    except (StorageError, ValueError) as error:
        log.error("%s: %s; the node's own file alone is in force", file, error)
        return State()


def _write_state(file: Path, state: State) -> bool:
    try:
        Disk().write_whole(file, configuration.to_bytes(state))
    except StorageError as error:
        log.error("%s", error)
        return False
    return True
