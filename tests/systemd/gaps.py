"""Reads the lines of `camera-agent watch --json`: was a number of the event stream lost? Exit 1 if so."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    seqs: dict[str, set[int]] = {}
    missing: dict[str, list[list[int]]] = {}
    started, ended = set(), set()
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        tree = json.loads(line)
        if tree["type"] == "gap":
            missing[tree["epoch"]] = tree["missing"]
        message = tree.get("message")
        if isinstance(message, dict) and not tree.get("retained") and "seq" in message and "epoch" in message:
            seqs.setdefault(message["epoch"], set()).add(int(message["seq"]))
        if tree["type"] == "event" and isinstance(message, dict):
            started.add(message["id"])
            if message["phase"] == "end":
                ended.add(message["id"])
    open_events = len(started - ended)
    left = {epoch: gaps for epoch, gaps in missing.items() if gaps}
    numbers = sum(len(each) for each in seqs.values())
    is_good = len(seqs) == 1 and not left and open_events <= 1
    print(
        f"{'PASS' if is_good else 'FAIL'} nothing lost: {numbers} numbered messages in {len(seqs)} epoch, "
        f"gaps left {left or 'none'}, {len(started)} events, {open_events} still open"
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
