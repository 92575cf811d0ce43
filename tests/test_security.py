"""docs/SECURITY.md names a command for each provision; each of them is there to be run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from agent.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
ROWS = re.findall(
    r"^\| (5\.\d+|6) ([^|]*)\|([^|]*)\|([^|]*)\|$", (ROOT / "docs/SECURITY.md").read_text("utf-8"), re.MULTILINE
)
OF_THE_SYSTEM = {"ss", "systemd-analyze", "dpkg-query"}


def test_all_thirteen_provisions_and_data_protection_are_there() -> None:
    assert [row[0] for row in ROWS] == [*(f"5.{number}" for number in range(1, 14)), "6"]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_provision_is_checked_by_something_that_exists(row: tuple[str, str, str, str]) -> None:
    checks = row[3]
    commands = re.findall(r"`([^`]+)`", checks)
    links = re.findall(r"\]\(([A-Z]+\.md)\)", checks)
    assert commands or links or "read" in checks
    for link in links:
        assert (ROOT / "docs" / link).exists()
    for command in commands:
        words = [word for word in shlex.split(command) if word != "sudo"]
        if words[0] == "pytest":
            look_for_tests(words[1:])
        elif words[0].startswith("./"):
            assert (ROOT / words[0]).stat().st_mode & 0o111, command
        elif words[0] in ("camera-agent", "camera-agent-as"):
            assert words[1] in COMMANDS, command
        else:
            assert words[0] in OF_THE_SYSTEM, command


def look_for_tests(words: list[str]) -> None:
    """Files of tests, and with -k a part of a name that one of theirs has."""
    wanted = words[words.index("-k") + 1] if "-k" in words else ""
    files = [ROOT / word for word in words if word.endswith(".py")]
    assert files
    names = [name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)]
    assert [name for name in names if wanted in name], words
