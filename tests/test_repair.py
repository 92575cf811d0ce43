"""`watch` asks the node for what a broker lost, and nobody else sees old events as new."""

from __future__ import annotations

from pathlib import Path

import pytest
from broker import Mosquitto, Subscriber, requires_mosquitto
from command_fixtures import BASE, Bench

from agent.cli.repair import AGAIN_S, PATIENCE_S, TRIES, Repairs
from agent.cli.watch import Watcher
from agent.connection import Incoming
from agent.gaps import Gap

KEY = ("ward-12", "entrance")


def test_a_gap_is_asked_for_after_a_while_again_and_not_for_ever() -> None:
    repairs = Repairs("edgecam", "watch-1")
    gap = (Gap(4, 6),)
    assert repairs.questions(KEY, gap, 0.0) == []
    ((topic, _),) = repairs.questions(KEY, gap, PATIENCE_S)
    assert topic == f"{BASE}/cmd/replay"
    assert repairs.questions(KEY, gap, PATIENCE_S + AGAIN_S - 0.1) == []
    asked = 1 + sum(len(repairs.questions(KEY, gap, PATIENCE_S + AGAIN_S * n)) for n in range(1, 20))
    assert asked == TRIES


def test_a_gap_that_filled_itself_is_not_asked_for() -> None:
    repairs = Repairs("edgecam", "watch-1")
    repairs.questions(KEY, (Gap(4, 6),), 0.0)
    assert repairs.questions(KEY, (), PATIENCE_S) == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b'{"id": "a", "ok": true, "part": {"topic": "rsp/watch-1", "seq": 1, "message": {}}}',
        b'{"id": "a", "ok": true, "part": {"topic": "thumb", "seq": 1, "message": {}, "jpeg": "%%"}}',
        b'{"id": "a", "ok": true, "result": {"missing": [["x"]]}}',
        b'{"id": "a", "ok": true, "result": {"missing": 7}}',
    ],
)
def test_an_answer_that_makes_no_sense_brings_nothing(payload: bytes) -> None:
    repaired = Repairs("edgecam", "watch-1").answer(KEY, Incoming(f"{BASE}/rsp/watch-1", payload, False))
    assert (repaired.messages, repaired.gone) == ((), ())


@requires_mosquitto
def test_what_watch_missed_comes_from_the_node_when_it_asks(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker").start()
    bench = Bench(tmp_path / "node", broker.port)
    bench.connect()
    dashboard = Subscriber(broker.port, f"{BASE}/#", checked=False)
    lines: list[str] = []
    repairs = Repairs("edgecam", "watch-1")
    watcher = Watcher(lines.append, root="edgecam", repairs=repairs)
    for number in range(1, 9):
        bench.add_event(number)
        bench.storage.step(0)
    bench.until(lambda: len(dashboard.of("/event", live=True)) == 8)
    for message in dashboard.of("/event", live=True):
        if b'"seq":3,' not in message.payload and b'"seq":4,' not in message.payload:
            watcher.take(Incoming(message.topic, message.payload, False))
    assert watcher.questions(0.0) == []
    ((topic, payload),) = watcher.questions(PATIENCE_S)
    dashboard.say(topic, payload)
    bench.until(lambda: len(dashboard.of("/rsp/watch-1")) == 3, "two parts and the account")
    for message in dashboard.of("/rsp/watch-1"):
        watcher.take(Incoming(message.topic, message.payload, False))
    text = "\n".join(lines)
    assert "asking the node for 3..4" in text
    assert "4 came after all" in text
    assert watcher.questions(100.0) == []
    assert len(dashboard.of("/event", live=True)) == 8
    dashboard.close()
    bench.close()
    broker.stop()
