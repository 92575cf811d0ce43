"""docs/OPERATIONS.md has a line for every reason that a node can give; found by reading the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import disk, tls

ROOT = Path(__file__).resolve().parent.parent
TEXT = " ".join((ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8").replace("`", "").split())
KINDS = {"CameraError", "CameraStuckError", "StorageError", "DirectoryRefusedError", "LinkError"}
# Answers to a person or a consumer, never the reason of a verdict; and the scenes of the simulated camera.
NOT_REASONS = {"archive.py", "ring.py", "trial.py", "release.py", "fake.py"}


def longest_literal(node: ast.expr) -> str:
    """The longest part of a text that is always the same; empty for none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
        return max((str(part).strip(" ();,") for part in parts), key=len, default="")
    return ""


def reasons() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "agent").rglob("*.py")):
        if path.name in NOT_REASONS or path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_error = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in KINDS
            if is_error and isinstance(node, ast.Call) and len(node.args) > 2:
                words = longest_literal(node.args[2])
                if len(words) > 3:
                    yield f"{path.name}:{node.lineno}", words


REASONS = sorted({words: where for where, words in reasons()}.items())


@pytest.mark.parametrize(("words", "where"), REASONS, ids=[words[:40] for words, _ in REASONS])
def test_each_reason_of_an_error_has_its_line(words: str, where: str) -> None:
    assert " ".join(words.rstrip(":").split()) in TEXT, f"{where} says {words!r}"


def test_enough_is_found_for_this_to_mean_something() -> None:
    assert len(REASONS) > 40


def test_each_hint_of_the_disk_has_its_line() -> None:
    for hint in disk._HINTS.values():
        assert hint.split(";")[0] in TEXT, hint


def test_each_word_about_certificates_has_its_line() -> None:
    for words, _ in tls._CERTIFICATE_WORDS.values():
        rest = words.removeprefix("the broker's certificate ")
        assert words in TEXT or rest in TEXT, words


@pytest.mark.parametrize(
    "part", ["board", "camera", "view", "vision", "storage", "broker", "commands", "arming", "clock", "watchdog"]
)
def test_each_part_of_the_node_has_its_place(part: str) -> None:
    headings = [line for line in (ROOT / "docs/OPERATIONS.md").read_text().splitlines() if line.startswith("## ")]
    assert any(part in line for line in headings)


def test_every_part_that_health_names_is_known_here() -> None:
    tree = ast.parse((ROOT / "agent/health.py").read_text())
    dicts = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Dict) and any(isinstance(k, ast.Constant) and k.value == "watchdog" for k in n.keys)
    ]
    (parts,) = [[k.value for k in d.keys if isinstance(k, ast.Constant)] for d in dicts]
    for part in parts:
        assert str(part) in TEXT
