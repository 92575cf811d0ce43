"""Every fault the storage must survive, again and again, and a table of what became of it. Run by scripts/torture."""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import sys
import tempfile
from pathlib import Path

from fuzz import fuzz_round
from torture_broker import kills_under_load, matrix
from torture_consumer import consumer_away, drain
from torture_disk import clock_steps, disk_faults, model_cuts, power_cuts, slow_disk
from torture_program import kills
from torture_table import Budget, Round, Row

BOUNDED_MINUTES = 3.0
HOURS = 24 * 60.0

ROUNDS: dict[str, tuple[float, Round]] = {
    "power cut, real ext4": (0.07, power_cuts(noise=False)),
    "power cut, ext4 + other syncs": (0.07, power_cuts(noise=True)),
    "disk fails (real ext4)": (0.03, disk_faults),
    "slow disk (5 s per fsync)": (0.18, slow_disk),
    "power cut, crash model": (0.03, model_cuts),
    "messages: broker killed": (0.05, matrix("broker")),
    "messages: node killed twice": (0.05, matrix("node")),
    "messages: both killed twice": (0.05, matrix("both")),
    "messages: nobody subscribed": (0.05, matrix("nobody")),
    "messages: consumer away": (0.13, consumer_away),
    "node killed under load": (0.05, kills_under_load),
    "program killed (SIGKILL)": (0.09, kills),
    "clock steps": (0.03, clock_steps),
    "payloads of all kinds": (0.02, fuzz_round),
    "broker away for 72 h": (0.10, drain),
}
"""Name -> share of the time, round."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--minutes", type=float, help=f"how long (default: {BOUNDED_MINUTES:g})")
    parser.add_argument("--tries", type=int, default=0, metavar="N", help="end each kind after N faults")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices (default: %(default)s)")
    parser.add_argument("--only", choices=list(ROUNDS), help="one kind of fault for the whole time")
    parser.add_argument("--tally", type=Path, metavar="FILE", help="add this run to the sums in FILE and show those")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    minutes = args.minutes or (HOURS if args.tries else BOUNDED_MINUTES)
    print(f"{'fault':<34} {'tried':>6} {'states':>8} {'lost':>5} {'corrupt':>7} {'slowest recovery':>16}")
    failed = False
    for name, (share, round_) in ROUNDS.items():
        if args.only is not None and name != args.only:
            continue
        budget = Budget(name, minutes * 60 * (1 if args.only else share), args.seed, args.tries)
        with tempfile.TemporaryDirectory(prefix="torture.") as place:
            row = round_(Path(place), budget)
        budget.close()
        failed |= bool(row.lost or row.corrupt)
        if args.tally is not None:
            _sum_up(args.tally, name, row)
        print(row.line(name))
        for words in row.words[:5]:
            print(f"    {words}")
        sys.stdout.flush()
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{os.cpu_count()} cores, peak memory of this program {memory_mb:.0f} MB:"
        f" {'FAILED' if failed else 'all held'}"
    )
    return 1 if failed else 0


def _sum_up(tally: Path, name: str, row: Row) -> None:
    sums = json.loads(tally.read_text()) if tally.exists() else {}
    if name in sums:
        row.add(sums[name])
    sums[name] = row.as_json()
    tally.write_text(json.dumps(sums, indent=1))


if __name__ == "__main__":
    sys.exit(main())
