"""`camera-agent run`: the node in the foreground, as systemd starts it."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import signal

from agent import __version__
from agent.cameras.open import open_camera
from agent.cli import add_config, load_settings, start_logging
from agent.clock import SystemClock
from agent.node import Node

HELP = "run the node in the foreground, as systemd starts it"
log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser, required=True)


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args.config)
    start_logging(settings)
    # systemd's watchdog kills with SIGABRT: the trace of every thread then stands in the journal.
    faulthandler.enable()
    clock = SystemClock()
    node = Node(settings, clock, open_camera(settings, clock))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop())
    log.info("camera-agent %s: node %s of site %s", __version__, settings.node.id, settings.node.site)
    if settings.camera.backend == "fake":
        log.warning("camera.backend is fake: a simulated scene, not a camera")
    node.run()
    log.info("stopped")
    return 0
