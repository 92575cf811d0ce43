"""What is typed wrongly is answered in one line that names it, with the exit code that the help promises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import __version__
from agent.cli import main

FLEET = str(Path(__file__).resolve().parent.parent / "config/fleet.example.toml")
WRONG_LINE = [
    (["demo", "--seconds", "nan"], "--seconds: nan"),
    (["demo", "--seconds", "-1"], "--seconds: -1"),
    (["watch", "--port", "0"], "--port: 0"),
    (["watch", "--seconds", "inf"], "--seconds: inf"),
    (["aim", "--config", "x.toml", "--walk", "0"], "--walk: 0"),
    (["aim", "--config", "x.toml", "--seconds", "soon"], "--seconds: invalid number value: 'soon'"),
    (["clips", "commands", "--limit", "-5"], "--limit: -5"),
    (["clips", "export", "--out", "x"], "ID --all"),
    (["schema", "event", "--asyncapi"], "--asyncapi"),
    (["schema", "evnt"], "'evnt'"),
    (["update", "x.package", "--percent", "200"], "--percent: 200"),
    (["update", "x.package", "--limit", "nan"], "--limit: nan"),
    (["rollout", "1.2.3", "https://h/p", "--at-once", "0"], "--at-once: 0"),
    (["rollout", "1.2.3", "https://h/p", "--max-failed", "-3"], "--max-failed: -3"),
    (["rollout", "1.2.3", "https://h/p", "--patience", "0"], "--patience: 0"),
]
WRONG_VALUE = [
    (["update", "x.package", "--percent", "10"], "add --config FILE"),
    (["rollout", "1.2.3", "ftp://h/p"], "'ftp://h/p'"),
    (["rollout", "1.2.3", "https://h/p", "--client", "a/b"], "'a/b'"),
    (["rollout", "1.2.3", "https://h/p", "--stages", "5,1"], "'5,1'"),
    (["provision", FLEET, "--out", "/proc/x"], "--out /proc/x"),
    (
        [
            "provision",
            FLEET,
            "--out",
            "x",
            "--replace",
            "kho-luu-tru",
            "--revoke",
            "kho-luu-tru",
        ],
        "--replace and --revoke kho-luu-tru",
    ),
    (["watch", "--site", "a/b"], "'a/b'"),
    (["run", "--config", "not there.toml"], "not there.toml"),
]


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """`run` sets its own, for good: it is a program's."""
    umask = os.umask(0o022)
    yield
    os.umask(umask)


@pytest.mark.parametrize(("words", "named"), WRONG_LINE, ids=[" ".join(words) for words, _ in WRONG_LINE])
def test_a_wrong_command_line_ends_with_2(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("words", "named"), WRONG_VALUE, ids=[" ".join(words) for words, _ in WRONG_VALUE])
def test_a_wrong_value_or_file_ends_with_78(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_library_that_is_not_installed_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    assert main(["provision", FLEET, "--out", str(tmp_path / "site")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "load segno" in line
    assert "camera-agent[provision]" in line


def test_the_version_is_told_without_loading_any_command() -> None:
    """An installer asks for it over SSH, on a board where loading them all takes seconds."""
    words = "import sys; from agent.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass\n"
    words += "print(*(name for name in sys.modules if name.startswith('agent.cli.')))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"camera-agent {__version__}", ""]
