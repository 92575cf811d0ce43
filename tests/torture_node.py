"""The node's storage and link as a process to be killed: events with pictures at a rate, until all are delivered.

torture_node.py DIRECTORY PORT EVENTS PER_SECOND PICTURE_BYTES
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

from agent.clock import SystemClock
from agent.handoffs import AckBox, Doorbell, EventBoard, PacketRing, StatusBoard
from agent.ledger_reader import LedgerReader
from agent.link import Link
from agent.model import EndReason, Event, EventKind, Moment, Phase, Thumbnail
from agent.settings import load_settings
from agent.storage import Storage
from agent.ulid import new_ulid

LONGEST_S = 300.0


def picture(size: int, number: int) -> bytes:
    filler = (number % 251).to_bytes(1, "big") * max(size - 10, 1)
    return b"\xff\xd8\xff\xe0\x00\x04xx\xff\xda" + filler + b"\xff\xd9"


def main() -> int:
    logging.disable(logging.CRITICAL)  # trouble is what is being tried
    directory, port, events, rate, size = Path(sys.argv[1]), *map(int, sys.argv[2:6])
    settings = load_settings(
        environ={},
        overrides={
            "node": {"id": "node", "site": "torture"},
            "clips": {"directory": directory, "enabled": False, "min_free_mb": 0},
            "mqtt": {"host": "127.0.0.1", "port": port},
            "outbox": {"reserve_mb": 0, "max_rows": 1_000_000, "max_mb": 10_000, "replay_mb": 10_000},
        },
    )
    clock, bell = SystemClock(), Doorbell()
    board, acks, statuses = EventBoard(doorbell=bell), AckBox(bell), StatusBoard()
    link = Link(settings.mqtt, settings.node, lambda: LedgerReader(directory), acks, statuses, clock)
    storage = Storage(settings, clock, PacketRing(1 << 20, bell), board, acks, bell, link.bell)
    storage.open()
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            link.step(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    reader = LedgerReader(directory)
    made = len(reader.events())
    reader.close()
    began = time.monotonic()
    first = made
    while time.monotonic() - began < LONGEST_S:
        due = min(events, first + int((time.monotonic() - began) * rate))
        while made < due:
            at = Moment(clock.boot_ns(), made)
            shown = Thumbnail(picture(size, made), 320, 240, at)
            event_id = new_ulid(clock.wall_ns() // 1_000_000)
            board.put(
                Event(
                    *(event_id, 1, Phase.END, EventKind.MOTION, at, at, at, 0.5),
                    end=at,
                    end_reason=EndReason.QUIET,
                    thumbnail=shown,
                )
            )
            made += 1
            storage.step(0)
        storage.step(0.01)
        if made >= events and storage.status.outbox_rows == 0:
            break
    delivered = storage.status.outbox_rows == 0
    stop.set()
    thread.join()
    storage.close()
    link.close(1)
    return 0 if delivered else 1


if __name__ == "__main__":
    sys.exit(main())
