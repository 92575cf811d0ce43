"""The command line: parses, calls one command, prints trouble in one line. Touches standard error and exit codes."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

from agent import __version__
from agent.errors import AgentError, ConfigError
from agent.settings import Settings, load_settings, redacted
from agent.shortage import shortage

COMMANDS = (
    "run",
    "demo",
    "replay",
    "tune",
    "check",
    "clips",
    "watch",
    "schema",
    "update",
    "rollout",
    "provision",
    "aim",
)

EXIT_CODES = """exit codes:
  0    done (run: stopped by SIGTERM or SIGINT)
  1    a fault, or a check that failed; one line on standard error says which
  2    the command line itself is wrong
  78   the settings, or a file or value given, are wrong; starting again will not help
  130  interrupted (Ctrl-C)
"""


class Command(Protocol):
    """A module of this package with one command in it."""

    HELP: str

    def configure(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Never shows a traceback for expected trouble."""
    # NumPy's BLAS starts a thread per core when it is loaded, and they spin; nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        if argv is None:
            gc.disable()
        words = sys.argv[1:] if argv is None else argv
        args = _parser(words[0] if words else "").parse_args(words)
        if argv is None:
            # What the imports made stays to the end: no collection need look at it, nor the exit (60 ms together).
            gc.freeze()
            gc.enable()
        return cast(int, args.run(args))
    except AgentError as error:
        print(f"camera-agent: {error}", file=sys.stderr)
        return error.exit_code
    except (MemoryError, ImportError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError):
            # `camera-agent clips list | head`: the reader left. Keep the interpreter's last flush from failing too.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        words = shortage(error) or absent_extra(error)
        if not words:
            raise
        print(f"camera-agent: {words}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


EXTRAS = {"cv2": "opencv", "cryptography": "provision", "segno": "provision"}
"""Modules that come with an extra of the package -> its name; a command asks for them when it needs them."""


def absent_extra(error: BaseException) -> str:
    """In words, for a module of an extra that is not installed; empty for anything else."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if module not in EXTRAS:
        return ""
    return f"load {module}: it is not installed here (pip install 'camera-agent[{EXTRAS[module]}]')"


def _parser(first: str) -> argparse.ArgumentParser:
    """The parser. Only the command that was named is imported: each brings libraries that the others do not need."""
    parser = argparse.ArgumentParser(
        prog="camera-agent",
        description="Edge camera agent: motion events, clips and thumbnails over MQTT, with nothing lost.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"camera-agent {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    named = (first,) if first in COMMANDS else COMMANDS
    for name in () if first == "--version" else named:
        command = cast(Command, importlib.import_module(f"agent.cli.{name}"))
        sub = subparsers.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
        sub.set_defaults(run=command.run)
    return parser


def add_config(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """The option --config, the same for every command that takes settings."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", required=required, help="settings (TOML); see docs/CONFIG.md"
    )


def refuse_streams(video: str, command: str) -> None:
    """For commands that read to a recording's end. Raises ConfigError."""
    if "://" in video or video.startswith("/dev/"):
        raise ConfigError(command, redacted(video), "not a recording", hint="run takes streams and devices")


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """For an option's type=: a number within these bounds. nan and inf are none."""

    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most or math.isinf(value):
            upwards = "upwards" if math.isinf(most) else f"to {most:g}"
            raise argparse.ArgumentTypeError(f"{text} should be from {least:g} {upwards}")
        return value

    read.__name__ = "number"
    return read


def count(least: int) -> Callable[[str], int]:
    """As number(), for whole numbers."""

    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} should be {least} or more")
        return value

    read.__name__ = "whole number"
    return read


def start_logging(settings: Settings) -> None:
    """Log to standard error; under systemd without times, since the journal has its own."""
    in_journal = "JOURNAL_STREAM" in os.environ
    logging.basicConfig(
        level=settings.log.level.upper(),
        format="%(levelname)s %(message)s" if in_journal else "%(asctime)s %(levelname)-7s %(message)s",
        stream=sys.stderr,
        force=True,
    )


__all__ = [
    "COMMANDS",
    "ConfigError",
    "add_config",
    "count",
    "load_settings",
    "main",
    "number",
    "refuse_streams",
    "start_logging",
]
