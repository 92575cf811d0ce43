"""`camera-agent watch`: what a person sees of a site, and what it does not let through."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from broker import DEADLINE_S, Mosquitto, Subscriber, free_port, requires_mosquitto, until
from command_fixtures import Bench
from link_fixtures import BASE, EPOCH, TIME, Desk, MemoryOutbox, ulid
from link_fixtures import META as PLAIN_META

from agent.cli import main
from agent.cli.repair import PATIENCE_S
from agent.cli.watch import CATCH_UP_S, Watcher
from agent.clock import SystemClock
from agent.connection import Incoming
from agent.handoffs import Status
from agent.messages import (
    HeadHealth,
    HealthMessage,
    StateMessage,
    ZoneMeta,
    message_bytes,
    thumb_properties,
    to_bytes,
)
from agent.model import NS_PER_S
from agent.outbox import stamped

ROOT = Path(__file__).resolve().parent.parent
JPEG = b"\xff\xd8\xff\xda picture \xff\xd9"
META = PLAIN_META.model_copy(
    update={"zones": [ZoneMeta(id="quay-so-2", name="Quầy số 2", kind="detect", polygon=[(0, 0), (1, 0), (1, 1)])]}
)


class Screen:
    """A watcher, what it printed, and a node's messages to show it."""

    def __init__(self, save: Path | None = None, as_json: bool = False) -> None:
        self.lines: list[str] = []
        self.now_s = 0.0
        self.outbox = MemoryOutbox(SystemClock())
        self.watcher = Watcher(self.lines.append, root="edgecam", save=save, as_json=as_json)

    def show(
        self, feed: str, payload: bytes, properties: dict[str, str] | None = None, retained: bool = False
    ) -> None:
        self.watcher.take(Incoming(f"{BASE}/{feed}", payload, retained, properties or {}))

    def show_rows(self, *seqs: int, late_s: float = 0.0) -> None:
        for seq in seqs:
            row = self.outbox.rows[seq - 1]
            if row.blob is not None:
                self.show(row.kind.value, row.blob, thumb_properties(row).model_dump())
            else:
                now_ns = row.wall_ns + round(late_s * NS_PER_S)
                payload = message_bytes(row, site="ward-12", node="entrance", epoch=EPOCH, now_wall_ns=now_ns)
                self.show(row.kind.value, payload)

    def wait(self, seconds: float) -> None:
        self.watcher.questions(self.now_s)
        self.now_s += seconds
        self.watcher.questions(self.now_s)

    def show_head(self, seq: int) -> None:
        health = HealthMessage(
            time=TIME, boot_id="x", verdict="online", reasons=[], uptime_s=1, head=HeadHealth(epoch=EPOCH, seq=seq)
        )
        self.show("health", to_bytes(health))


def test_names_are_those_of_the_birth_document() -> None:
    screen = Screen()
    screen.show("meta", to_bytes(META), retained=True)
    screen.outbox.event(1)
    screen.show_rows(1)
    assert "Cửa chính" in screen.lines[-1]
    assert "in Quầy số 2" in screen.lines[-1]
    assert "event start  motion" in screen.lines[-1]
    assert ulid(1) in screen.lines[-1]


def test_times_are_the_viewers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Ho_Chi_Minh")
    time.tzset()
    screen = Screen()
    screen.show("state", to_bytes(StateMessage(state="online", session=ulid(1), time=TIME, reasons=[])))
    monkeypatch.undo()
    time.tzset()
    assert screen.lines == ["10:15:07.250  ward-12/entrance  online"]


def test_a_gap_is_said_and_so_is_its_end() -> None:
    screen = Screen()
    for number in range(1, 8):
        screen.outbox.event(number)
    screen.show_rows(1, 2, 5)
    screen.wait(PATIENCE_S)
    assert "missing 3..4" in screen.lines[-1]
    screen.show_rows(3)
    assert any("3 came after all, still missing 4" in line for line in screen.lines)
    screen.show_rows(4)
    assert any(line.endswith("4 came after all") for line in screen.lines)


def test_a_gap_that_the_node_explains_is_no_longer_missing() -> None:
    screen = Screen()
    screen.outbox.event(1)
    screen.outbox.event(2)
    screen.outbox.event(3)
    screen.outbox.loss(2, 2)
    screen.outbox.event(5)
    screen.show_rows(1, 3, 4)
    assert "gave up 2 (thumb): outbox full" in screen.lines[-1]
    screen.show_rows(5)
    assert not any("still missing" in line for line in screen.lines)


def test_a_gap_at_the_tail_is_seen_from_health() -> None:
    screen = Screen()
    screen.outbox.event(1)
    screen.show_rows(1)
    screen.show_head(3)
    screen.wait(PATIENCE_S)
    assert not any("missing" in line for line in screen.lines), "it may be on its way"
    screen.show_head(3)
    screen.wait(PATIENCE_S)
    assert "missing 2..3" in screen.lines[-1]


def test_pictures_that_come_after_their_events_in_a_backlog_are_not_called_missing() -> None:
    screen = Screen()
    for number in range(1, 9):
        screen.outbox.event(number, thumb=JPEG)
    screen.show_rows(*range(1, 17, 2), late_s=3600)
    for seq in range(2, 17, 2):
        screen.wait(CATCH_UP_S - 0.1)
        screen.show_rows(seq)
    screen.wait(2 * CATCH_UP_S)
    assert not any("missing" in line or "after all" in line for line in screen.lines)


def test_pictures_of_a_backlog_that_do_not_come_are_missing_a_little_later() -> None:
    screen = Screen()
    for number in (1, 2, 3):
        screen.outbox.event(number, thumb=JPEG)
    screen.show_rows(1, 3, 5, 2, late_s=3600)
    screen.wait(CATCH_UP_S)
    screen.wait(PATIENCE_S)
    assert any("missing 4" in line for line in screen.lines)
    screen.show_rows(4)
    assert any("4 came after all" in line for line in screen.lines)


def test_pictures_are_saved_under_their_event(tmp_path: Path) -> None:
    screen = Screen(save=tmp_path)
    screen.outbox.event(1, thumb=JPEG)
    screen.show_rows(1, 2)
    (file,) = tmp_path.iterdir()
    assert file.name == f"ward-12_entrance_{ulid(1)}-1.jpg"
    assert file.read_bytes() == JPEG
    assert str(file) in screen.lines[-1]


def test_a_picture_without_properties_is_known_by_its_comment(tmp_path: Path) -> None:
    screen = Screen(save=tmp_path)
    screen.show("thumb", stamped(JPEG, {"event_id": ulid(5), "rev": 2, "seq": 7, "time": TIME}))
    assert [file.name for file in tmp_path.iterdir()] == [f"ward-12_entrance_{ulid(5)}-2.jpg"]
    assert ulid(5) in screen.lines[-1]


@pytest.mark.parametrize(
    "properties", [{}, {"event_id": "../../etc/passwd", "rev": "1", "seq": "1", "time": TIME, "sha256": "0" * 64}]
)
def test_a_strange_picture_stays_in_the_directory(tmp_path: Path, properties: dict[str, str]) -> None:
    screen = Screen(save=tmp_path / "in")
    (tmp_path / "in").mkdir()
    screen.watcher.take(Incoming("edgecam/v1/../..\x00/thumb", JPEG, False, properties))
    screen.show("thumb", b"\xff\xd8\xff\xfe\xff\xff" + b"[" * 65_000, properties)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert len(list((tmp_path / "in").iterdir())) == 2


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"[]", b'{"v":1}', b'{"v":' + b"9" * 5000 + b"}", b"[" * 100_000])
def test_what_is_not_understood_is_named_and_not_shown(payload: bytes) -> None:
    screen = Screen()
    for feed in ("state", "meta", "health", "event", "clip", "loss"):
        screen.show(feed, payload)
        assert f"{feed}: not understood" in screen.lines[-1]
        assert len(screen.lines[-1]) < 300


def test_no_control_character_reaches_the_terminal() -> None:
    screen = Screen()
    evil = META.model_copy(update={"name": "\x1b]0;owned\x07door", "location": "a\nb"})
    screen.show("meta", to_bytes(evil))
    screen.show("state", to_bytes(StateMessage(state="degraded", session=ulid(1), time=TIME, reasons=["\x1b[2J"])))
    assert all(line.isprintable() for line in screen.lines)


def test_json_lines_hold_whole_messages() -> None:
    screen = Screen(as_json=True)
    screen.outbox.event(1, thumb=JPEG)
    screen.outbox.event(2)
    screen.outbox.event(3)
    screen.show_rows(1, 2, 4)
    screen.wait(PATIENCE_S)
    screen.show("motion", b"ON", retained=True)
    lines = [json.loads(line) for line in screen.lines]
    assert [line["type"] for line in lines] == ["event", "thumb", "event", "gap", "motion"]
    assert lines[0]["message"]["id"] == ulid(1)
    assert lines[1]["message"]["event_id"] == ulid(1)
    assert lines[3]["missing"] == [[3, 3]]
    assert (lines[4]["message"], lines[4]["retained"]) == ("ON", True)


# -- the program


def start_watch(*words: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent", "watch", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


@requires_mosquitto
@pytest.mark.broker
def test_a_person_sees_an_event_its_picture_and_its_clip(broker: Mosquitto, tmp_path: Path) -> None:
    desk = Desk(broker.port, will_delay_s=0)
    desk.statuses.put("meta", Status(to_bytes(META)))
    desk.connect()
    words = ("--port", str(broker.port), "--host", "127.0.0.1", "--save", str(tmp_path / "pictures"))
    with (tmp_path / "out").open("w") as file:
        program = start_watch(*words, stdout=file)
    desk.outbox.event(1, thumb=JPEG)
    desk.outbox.clip(1)
    end_s = time.monotonic() + DEADLINE_S
    while not desk.drained():  # nobody subscribes until the program has started
        assert time.monotonic() < end_s
        desk.step()
        desk.pass_time(0.1)
    desk.link.close(1)

    def is_shown() -> bool:
        lines = (tmp_path / "out").read_text(encoding="utf-8").splitlines()
        return all(
            any("Cửa chính" in line and words in line for line in lines)
            for words in ("event start", "picture of", "clip")
        )

    until(is_shown, "all three are shown")
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 130
    assert err == ""
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 1
    assert "is ward-12/entrance, Tầng 1: 1280x720" in (tmp_path / "out").read_text(encoding="utf-8")


@requires_mosquitto
@pytest.mark.broker
def test_it_ends_by_itself_after_the_seconds_given(broker: Mosquitto) -> None:
    assert main(["watch", "--host", "127.0.0.1", "--port", str(broker.port), "--seconds", "0.3"]) == 0


@requires_mosquitto
@pytest.mark.broker
def test_it_comes_back_to_a_broker_that_was_away(broker: Mosquitto) -> None:
    program = start_watch("--port", str(broker.port), "--host", "127.0.0.1", "--json")
    desk = Desk(broker.port)
    desk.outbox.event(1)
    assert program.stdout is not None
    assert program.stderr is not None
    end_s = time.monotonic() + DEADLINE_S
    while not desk.drained():
        assert time.monotonic() < end_s
        desk.step()
        desk.pass_time(0.1)
    broker.kill()
    assert "trying again" in program.stderr.readline()
    broker.start()
    while "again" not in (line := program.stderr.readline()) or "connected" not in line:
        assert line, "the program ended"
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 130
    desk.link.close(0.1)


@requires_mosquitto
@pytest.mark.broker
def test_what_a_broker_dropped_is_asked_of_the_node_and_shown(
    start: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    # For a slow reader this broker keeps 20 messages and drops the rest, which it has acknowledged.
    broker = start(extra=["max_inflight_messages 10", "max_queued_messages 10"])
    bench = Bench(tmp_path / "node", broker.port)
    bench.connect()
    program = start_watch("--port", str(broker.port), "--host", "127.0.0.1", "--json")
    printed = b""

    def lines() -> list[dict[str, Any]]:
        nonlocal printed
        assert program.stdout is not None
        while select.select([program.stdout], [], [], 0)[0]:
            piece = os.read(program.stdout.fileno(), 65_536)
            assert piece, "the program ended"
            printed += piece
        return [json.loads(line) for line in printed.rpartition(b"\n")[0].splitlines()]

    def shown() -> set[int]:
        return {line["message"]["seq"] for line in lines() if line["type"] == "event"}

    bench.add_event(1)
    while 1 not in shown():  # nobody subscribes until the program has started
        bench.pass_time(0.1)
        bench.step()
    program.send_signal(signal.SIGSTOP)
    desk = Subscriber(broker.port)
    for number in range(2, 40):
        bench.add_event(number)
        bench.until(lambda seq=number: bench.link.status.delivered >= seq, "taken by the broker")
    program.send_signal(signal.SIGCONT)
    bench.add_event(40)
    bench.until(lambda: shown() == set(range(1, 41)), "every event is shown")
    assert any(line["type"] == "gap" and line["missing"] for line in lines())
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=DEADLINE_S)
    desk.close()
    bench.close()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--host", "127.0.0.1", "--port", str(free_port())), 1, "is the broker running"),
        (("--host", "no-such-host.invalid"), 1, "no-such-host.invalid"),
        (("--port", "99999"), 78, "mqtt.port = 99999"),
        (("--site", "a/b"), 78, "--site"),
        (("--root", "#"), 78, "mqtt.root"),
        (("--password-file", "/nowhere"), 78, "/nowhere"),
    ],
)
def test_trouble_is_one_line(
    words: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", "--seconds", "20", *words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said in captured.err
