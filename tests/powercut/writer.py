"""The node's real storage on the recorded disk: prints what is durable, and waits until that is noted down.

writer.py [--mutant NAME] [--fault enospc|eio|ro]
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

import mutants
from storage_fixtures import FPS, FRAME_NS, Rig, event, make_rig, packets

from agent.clock import read
from agent.ledger import LedgerReader
from agent.model import EndReason, Event, Moment, Phase
from agent.ring import erase, protect


def say(token: str) -> None:
    print(token, flush=True)
    sys.stdin.readline()


class Writer:
    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.seen_clips: set[str] = set()
        self.units = 0
        self.head = 0
        self.shot = packets(60 * FPS, start_ns=rig.clock.boot_ns())
        self.at = 0
        self.troubles: set[str] = set()

    def step(self) -> None:
        """One packet, one step of the storage; then say what has become durable."""
        packet = replace(
            self.shot[self.at % len(self.shot)], seq=self.at, t_ns=self.rig.clock.boot_ns(), duration_ns=FRAME_NS
        )
        self.at += 1
        self.rig.clock.move_to(packet.t_ns + FRAME_NS)
        self.rig.ring.put(packet)
        self.rig.storage.step(0)
        recorder = self.rig.storage._recorder
        writing = recorder._clip.writing if recorder._clip is not None else None
        if (
            recorder.units != self.units
            and recorder._clip is not None
            and writing is not None
            and writing.synced_length
        ):
            say(f"fragment {recorder._clip.id} {writing.synced_length}")
        self.units = recorder.units
        self.troubles.add(self.rig.storage.status.trouble)
        self.tell_rows()

    def tell_rows(self) -> None:
        status = self.rig.storage.status
        if status.head_seq == self.head or not status.epoch:
            return
        reader = LedgerReader(self.rig.directory)
        for clip in reader.clips():
            if clip.id not in self.seen_clips:
                self.seen_clips.add(clip.id)
                say(f"clip {clip.id} {clip.bytes}")
        self.head = reader.head_seq
        say(f"seq {reader.epoch} {self.head}")
        reader.close()

    def put(self, state: Event) -> None:
        self.rig.board.put(state)
        self.rig.storage.step(0)
        if not self.rig.storage._ledger_trouble:
            say(f"event {state.id} {state.rev}")

    def happen(self, seconds: float, post_s: float) -> None:
        now_ns = self.rig.clock.boot_ns()
        begin = event(now_ns, picture_ns=now_ns)
        self.put(begin)
        for _ in range(round(seconds * FPS)):
            self.step()
        last = Moment(self.rig.clock.boot_ns() - FRAME_NS, 0)
        self.put(replace(begin, rev=2, phase=Phase.END, last=last, end=last, end_reason=EndReason.QUIET))
        for _ in range(round(post_s * FPS)):
            self.step()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutant", default="")
    parser.add_argument("--fault", default="")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # trouble is what is being tried
    with mutants.applied(args.mutant):
        return fault(args.fault) if args.fault else live()


def live() -> int:
    """Clips closed, continued and open, one protected, one erased."""
    rig = make_rig(Path("node"), max_clip_s=10)
    rig.storage.open()
    writer = Writer(rig)
    for _ in range(2 * FPS):
        writer.step()
    for _ in range(4):
        writer.happen(1.5, 3)
    first, second = LedgerReader(rig.directory).clips()[:2]
    ledger = rig.storage._ledger
    protect(ledger, [second.id], read(rig.clock))
    say(f"protected {second.id}")
    say(f"erasing {first.id}")
    erase(rig.storage._disk, rig.directory, ledger, [first], read(rig.clock))
    say(f"erased {first.id}")
    writer.happen(12, 3)
    writer.happen(2, 0.3)  # its clip is open when the recording ends
    return 0


def fault(kind: str) -> int:
    """The disk breaks at the 12th token; events go on being put, and recording goes on where it can be mended."""
    rig = make_rig(Path("node"), outbox={"reserve_mb": 4})
    rig.storage.open()
    writer = Writer(rig)
    for _ in range(2 * FPS):
        writer.step()
    for _ in range(6):
        writer.happen(1, 3)
    if kind != "enospc":
        print(f"storage said: {rig.storage.status.trouble}", file=sys.stderr)
        return 0 if rig.storage.status.trouble else 3
    if not any("recording paused" in trouble for trouble in writer.troubles):
        return 4
    if any("ledger.db" in trouble for trouble in writer.troubles):
        return 5  # the room inside the ledger should have held these events
    say("mend please")
    mended_ns = rig.clock.boot_ns()
    while rig.storage.status.trouble:
        writer.step()
        if rig.clock.boot_ns() - mended_ns > 30e9:
            return 6
    writer.happen(2, 3)
    return 0 if not rig.storage.status.trouble else 7


if __name__ == "__main__":
    sys.exit(main())
