"""`camera-agent run`: the node in the foreground, as systemd starts it."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
from pathlib import Path
from typing import Any

from agent import __version__
from agent.cameras.open import open_camera
from agent.cli import add_config, load_settings, start_logging
from agent.cli.chosen import chosen_settings, gave_up
from agent.clock import SystemClock
from agent.configuration import Problem, State
from agent.errors import AgentError, ConfigError
from agent.node import Configuration, Node
from agent.settings import Settings, problems_with
from agent.strict_json import pointer_of

HELP = "run the node in the foreground, as systemd starts it"
log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser, required=True)


def run(args: argparse.Namespace) -> int:
    # SQLite makes the ledger's files, with pictures in them, by the umask alone.
    os.umask(0o027)
    settings, state = chosen_settings(args.config)
    start_logging(settings)
    # systemd's watchdog kills with SIGABRT: the trace of every thread then stands in the journal.
    faulthandler.enable()
    clock = SystemClock()
    try:
        return _run(settings, clock, configuration_of(args.config, state))
    except AgentError as error:
        if not gave_up(args.config, str(error)):
            raise
        log.error("%s; the settings before come back at the next start", error)
        return 1  # not 78: with the settings before, a start helps


def _run(settings: Settings, clock: SystemClock, configuration: Configuration) -> int:
    node = Node(settings, clock, open_camera(settings, clock), configuration=configuration)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop())
    log.info("camera-agent %s: node %s of site %s", __version__, settings.node.id, settings.node.site)
    if settings.camera.backend == "fake":
        log.warning("camera.backend is fake: a simulated scene, not a camera")
    node.run()
    log.info("stopped")
    return 0


def configuration_of(path: Path, state: State) -> Configuration:
    """What config/desired may do to a node with this file."""
    return Configuration(
        state,
        check=lambda config: check_config(path, config),
        load=lambda config: load_settings(path, patch=config),
    )


def check_config(path: Path, config: dict[str, Any]) -> list[Problem]:
    """What is wrong with config on top of path, with JSON pointers into config/desired."""
    try:
        found = problems_with(config, path)
    except ConfigError as error:
        return [Problem("/config", str(error))]
    return [Problem("/config" + pointer_of(place), words) for place, words in found]
