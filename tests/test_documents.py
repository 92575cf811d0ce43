"""The documents say what is there: links lead somewhere, and commands, options, settings and files exist as named."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import COMMANDS, _parser
from agent.messages import HealthMessage
from agent.requests import VERBS
from agent.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
CODE = re.compile(r"```.*?```|``[^`]+``|`[^`]+`", re.DOTALL)
# config/desired and config/reported are topics, /config/zones/0 is a pointer.
FILE = re.compile(
    r"(?<![\w/.@-])\.{0,2}/?((?:agent|config(?!/desired|/reported|/zones)|docs|scripts|systemd|tests)/[\w./@-]*[\w])"
)
# Scripts that hand everything, --help too, to the program they run; that one explains its options.
HANDING_ON = {"bench", "demo", "fleet", "score-detector", "soak", "test", "torture", "week"}
SOURCED = {"lib.sh", "node-lib.sh"}
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.name not in HANDING_ON | SOURCED)


def code_of(text: str) -> Iterator[str]:
    """Inline code and the lines of code blocks; a backslash at a line's end joins it with the next."""
    for found in CODE.findall(text):
        for line in found.strip("`").replace("\\\n", " ").splitlines():
            yield line.split("  #")[0].strip()


def slug(heading: str) -> str:
    """As GitHub makes an anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def options_of(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """All options of the command that words begin with, down to its subcommand."""
    known = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            name = next((word for word in words if word in action.choices), None)
            if name is not None:
                return known | options_of(action.choices[name], words[words.index(name) + 1 :])
            return known.union(*(options_of(sub, []) for sub in action.choices.values()))
    return known


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_each_link_leads_somewhere(path: Path) -> None:
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_each_file_of_this_repository_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in [name for code in code_of(text) for name in FILE.findall(code)]:
        assert list(ROOT.glob(name.rstrip("."))), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_each_command_and_option_that_is_named_exists(path: Path) -> None:
    parser = _parser("")
    for line in code_of(path.read_text(encoding="utf-8")):
        found = re.search(r"(?:^|[\s/])camera-agent(?:-as)? ([a-z]+)\b(.*)", line)
        if found is None or found[1] not in COMMANDS:
            continue
        words = [found[1], *re.split(r"[\s,|\[\]]+", found[2])]
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given <= options_of(parser, words), line


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_each_setting_that_is_named_exists(path: Path) -> None:
    sections = {name: field.annotation for name, field in Settings.model_fields.items() if name != "zones"}
    said = {f"health.{name}" for name in HealthMessage.model_fields}
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", path.read_text(encoding="utf-8")):
        found = re.fullmatch(rf"(({'|'.join(sections)})\.(\w+))(?: ?=.*)?", code)
        if found is not None and found[3] != "py":
            fields = getattr(sections[found[2]], "model_fields", {})
            assert found[3] in fields or found[1] in said | set(VERBS), code


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_is_asked_for_help_gives_it_and_does_nothing_else(name: str, tmp_path: Path) -> None:
    answer = subprocess.run(
        [ROOT / "scripts" / name, "--help"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert answer.returncode == 0, answer.stderr
    assert name in answer.stdout or "camera-agent" in answer.stdout, answer.stdout
    assert not list(tmp_path.iterdir())
