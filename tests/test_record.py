"""`record` over a whole node on simulated time: an event of kind manual, and a clip that shows all of it."""

from __future__ import annotations

import json
from pathlib import Path

from stepped import SteppedNode
from test_stories import FPS, POST_S, PRE_S, settings, source

from agent.cameras.scenes import BUILT_IN
from agent.ledger_reader import LedgerReader
from agent.mailboxes import RawCommand


def test_a_recording_that_was_asked_for_is_an_event_and_a_clip(tmp_path: Path) -> None:
    given = settings(tmp_path)
    node = SteppedNode(given, source(BUILT_IN["empty"], given))
    node.run(6)
    body = json.dumps({"id": "r", "client": "page", "args": {"duration_s": 8}}).encode()
    node.node.mail.commands.put(RawCommand("record", body, len(body)))
    node.run(20)
    reader = LedgerReader(tmp_path)
    (event,) = reader.events()
    assert (event.body.kind, event.body.phase) == ("manual", "end")
    (clip,) = reader.clips()
    assert clip.event_ids == (event.id,)
    assert clip.flags == ()
    assert PRE_S + 8 + POST_S - 1 <= clip.duration_s <= PRE_S + 8 + POST_S + 2.5
    assert clip.frames >= (PRE_S + 8 + POST_S - 1) * FPS
    answer = reader.command("page", "r")
    assert answer is not None
    assert answer.code == "ok"
    node.stop()
    reader.close()


def test_a_recording_ends_when_the_node_stops(tmp_path: Path) -> None:
    given = settings(tmp_path)
    node = SteppedNode(given, source(BUILT_IN["empty"], given))
    node.run(6)
    body = json.dumps({"id": "r", "client": "page", "args": {"duration_s": 300}}).encode()
    node.node.mail.commands.put(RawCommand("record", body, len(body)))
    node.run(5)
    node.stop()
    reader = LedgerReader(tmp_path)
    (event,) = reader.events()
    assert not event.is_open
    (clip,) = reader.clips()
    assert clip.event_ids == (event.id,)
    reader.close()
