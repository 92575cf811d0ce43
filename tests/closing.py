"""Closes the ledger connections a test leaves open: from Python 3.13 on, forgetting one is a warning, so an error."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent.ledger
import agent.ledger_reader
from agent.ledger_file import connect, connect_to_read


@pytest.fixture(autouse=True)
def ledgers_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every connection is the real one; it is only remembered. Closing one twice is harmless."""
    opened: list[sqlite3.Connection] = []

    def connect_and_remember(path: Path) -> sqlite3.Connection:
        opened.append(connect(path))
        return opened[-1]

    def read_and_remember(path: Path) -> sqlite3.Connection:
        opened.append(connect_to_read(path))
        return opened[-1]

    monkeypatch.setattr(agent.ledger, "connect", connect_and_remember)
    monkeypatch.setattr(agent.ledger_reader, "connect_to_read", read_and_remember)
    yield
    for connection in opened:
        connection.close()
