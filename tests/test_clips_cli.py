"""`camera-agent clips`: what a person sees of a node's ring, also beside a running node."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from storage_fixtures import Rig, event, frames_of, make_rig

from agent.cli import clips
from agent.errors import AgentError, ConfigError

pytest_plugins = ["closing"]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A running node with two clips and a third being recorded."""
    found = make_rig(tmp_path / "node")
    found.storage.open()
    found.film(2)
    found.event_of(1, post_s=4)
    found.event_of(2, post_s=4)
    found.happen(event(found.clock.boot_ns()))
    found.film(2)
    return found


def clips_command(rig: Rig, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    clips.configure(parser)
    return clips.run(parser.parse_args([*map(str, arguments), "--directory", str(rig.directory)]))


def test_list_shows_each_clip_and_a_sum(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    assert clips_command(rig, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = rig.reader.clips()
    assert lines[1].startswith(first.id)
    assert lines[2].startswith(second.id)
    assert "5.0 s" in lines[1]
    assert lines[3].startswith("2 clips, 0.2 min")


def test_list_as_json_has_one_object_per_line(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    clips_command(rig, "list", "--json")
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [clip["id"] for clip in found] == [clip.id for clip in rig.reader.clips()]
    assert Path(found[0]["path"]).exists()
    assert found[0]["start"].endswith("Z")


def test_empty_ring_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig = make_rig(tmp_path / "node")
    rig.storage.open()
    assert clips_command(rig, "list") == 0
    assert "no clips" in capsys.readouterr().out


def test_show_tells_of_the_clip_and_its_events(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    clip = rig.reader.clips()[0]
    assert clips_command(rig, "show", clip.id[-8:].lower()) == 0
    told = capsys.readouterr().out
    assert clip.sha256 in told
    assert f"event {clip.event_ids[0]}: motion" in told


@pytest.mark.parametrize("wrong", ["01XXXX", "../../etc/passwd", ""])
def test_unknown_or_ambiguous_id_is_one_line(rig: Rig, wrong: str) -> None:
    with pytest.raises(AgentError, match="clips list shows the ids"):
        clips_command(rig, "show", wrong)


def test_export_copies_clips_and_pictures_under_readable_names(rig: Rig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert clips_command(rig, "export", "--all", "--out", out) == 0
    names = sorted(path.name for path in out.iterdir())
    assert [name.split(".")[1] for name in names] == ["jpg", "mp4", "jpg", "mp4"]
    assert all(name.startswith("2023-11-14_") for name in names)
    for path in out.glob("*.mp4"):
        assert len(list(frames_of(path.read_bytes()))) >= 50
    assert clips_command(rig, "export", "--all", "--out", out) == 0  # again: the same files


def test_export_of_a_time_span(rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips_command(rig, "export", "--all", "--out", tmp_path / "a", "--from", "2023-11-14T22:13:30+00:00")
    clips_command(rig, "export", "--all", "--out", tmp_path / "b", "--to", "2023-11-14T22:13:21Z")
    clips_command(rig, "export", "--all", "--out", tmp_path / "c", "--from", "2024-01-01")
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" in ")[0] for line in told] == [
        "1 clips and 1 pictures",
        "1 clips and 1 pictures",
        "0 clips and 0 pictures",
    ]


def test_export_needs_to_know_what(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        clips_command(rig, "export", "--out", tmp_path)
    for time in ("yesterday", "0001-01-01", "9999-12-31"):
        with pytest.raises(ConfigError, match=time):
            clips_command(rig, "export", "--all", "--out", tmp_path, "--from", time)


def test_verify_beside_a_running_node_finds_all_true(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    assert clips_command(rig, "verify") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("all true")


def test_verify_names_each_violation_and_fails(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = rig.reader.clips()
    path = rig.directory / "clips" / first.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (rig.directory / "clips" / second.file).rename(rig.directory / "clips" / "01HF7YAYW8KD9RB4SCNN96K41Z.mp4")
    assert clips_command(rig, "verify") == 1
    told = capsys.readouterr().out
    assert f"clip {first.id}: SHA-256 differs" in told
    assert f"clip {second.id}: " in told
    assert "is missing" in told
    assert "01HF7YAYW8KD9RB4SCNN96K41Z.mp4: a clip without a row" in told
    assert "3 violations" in told


def test_wrong_directory_is_one_line(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    clips.configure(parser)
    with pytest.raises(AgentError, match="there is no ledger"):
        clips.run(parser.parse_args(["list", "--directory", str(tmp_path)]))


@pytest.mark.skipif(
    os.geteuid() != 0 or Path(sys.executable).resolve().is_relative_to("/root"),
    reason="needs root to become another user, and a Python that others may read",
)
def test_reader_without_write_permission_sees_a_stopped_node(rig: Rig) -> None:
    """A colleague in the node's group reads the clips of a node that is off; nothing can be created beside it."""
    rig.storage.close()
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]);"
        " from pathlib import Path; from agent.ledger import LedgerReader; os.setgid(65534); os.setuid(65534);"
        " print(len(LedgerReader(Path(sys.argv[2])).clips()))"
    )
    for directory in (rig.directory, *rig.directory.parents[:3]):  # up to pytest's own, which is private
        directory.chmod(directory.stat().st_mode | 0o055)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), str(rig.directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "3\n", done.stderr
