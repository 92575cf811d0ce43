"""Judges the directory a power cut left: starts the node's real storage on it, then `camera-agent clips verify`."""

from __future__ import annotations

import contextlib
import io
import sqlite3
from pathlib import Path

from storage_fixtures import make_rig

from agent.cli import main
from agent.errors import AgentError
from agent.ledger import LedgerReader
from agent.ledger_file import LEDGER_NAME


def judge(place: Path, tokens: list[str]) -> list[str]:
    """Every promise that was broken, in words. tokens: what the writer was told is durable, in order."""
    directory = place / "node"
    if not directory.exists() and not tokens:
        return []
    try:
        rig = make_rig(directory)
        rig.clock.boot_id = "00000000-0000-4000-8000-000000000002"
        rig.storage.open()
        for _ in range(10):
            rig.storage.step(0)
        trouble = rig.storage.status.trouble
        rig.storage.close()
    except AgentError as error:
        return [f"the node does not start: {error}"]
    found = [trouble] if trouble else []
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(["clips", "verify", "--directory", str(directory)])
    if code:
        found += said.getvalue().splitlines()
    return found + _broken_promises(directory, tokens)


def _broken_promises(directory: Path, tokens: list[str]) -> list[str]:
    reader = LedgerReader(directory)
    events = {event.id: event.body.rev for event in reader.events()}
    clips = {clip.id: clip for clip in reader.clips()}
    head, epoch = reader.head_seq, reader.epoch
    reader.close()
    with contextlib.closing(sqlite3.connect(directory / LEDGER_NAME)) as database:
        owed = {row[0] for row in database.execute("select seq from outbox")}
    erased = {words.split()[1] for words in tokens if words.startswith(("erasing ", "erased "))}
    found = []
    for token in tokens:
        kind, *rest = token.split()
        if kind == "event" and events.get(rest[0], 0) < int(rest[1]):
            found.append(f"event {rest[0]} rev {rest[1]} was stored and is lost")
        elif kind in ("clip", "fragment") and rest[0] not in erased:
            clip = clips.get(rest[0])
            if clip is None or clip.bytes < int(rest[1]) or clip.state != "final":
                found.append(f"clip {rest[0]}: {rest[1]} bytes were synced, left is {clip}")
        elif kind == "protected" and not (rest[0] in clips and clips[rest[0]].is_protected):
            found.append(f"clip {rest[0]} was protected and is not")
        elif kind == "erased" and (rest[0] in clips or (directory / "clips" / f"{rest[0]}.mp4").exists()):
            found.append(f"clip {rest[0]} was erased and is there")
        elif kind == "seq":
            if rest[0] != epoch:
                found.append(f"the epoch was {rest[0]} and is {epoch}")
            elif head < int(rest[1]) or int(rest[1]) not in owed:
                found.append(f"message {rest[1]} was owed and is lost")
    return found
