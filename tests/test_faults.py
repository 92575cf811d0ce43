"""docs/FAULTS.md names what injects each of the 68 faults; each of those is there to be run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = re.findall(
    r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|([^|]*)\|$", (ROOT / "docs/FAULTS.md").read_text("utf-8"), re.MULTILINE
)
TESTS = {
    node.name
    for path in (ROOT / "tests").glob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text("utf-8")))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
}


def test_each_of_the_68_faults_has_its_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 69))


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_fault_is_injected_by_tests_that_exist_or_is_said_not_to_be(row: tuple[str, str, str, str]) -> None:
    _, _, covered, by = row
    kind, _, why = covered.partition(":")
    assert kind in ("yes", "part", "not")
    assert bool(why.strip()) == (kind != "yes"), "what is missing is said"
    assert bool(by.strip()) == (kind != "not")
    for name in re.findall(r"`([^`]+)`", covered + by):
        if name.startswith("test_"):
            assert name in TESTS
        elif name.startswith("./"):
            assert (ROOT / name).stat().st_mode & 0o111, name
