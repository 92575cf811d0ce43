"""Rounds of scripts/torture on the disk: power cuts on a real ext4 and in the model, failing disks, clock steps."""

from __future__ import annotations

import json
import random
import signal
import statistics
import time
from pathlib import Path

import rig
import test_recovery
import test_time
from broker import Mosquitto, Subscriber, until
from faulty_disk import Leaves, RecordingDisk
from program import Program, camera_agent, write_settings
from torture_table import Budget, Round, Row, account, newest_health


def power_cuts(noise: bool) -> Round:
    def run(directory: Path, budget: Budget) -> Row:
        row = Row()
        if words := rig.missing():
            row.note = f"left out: {words}"
            return row
        lives = tokens = 0
        # A life takes some seconds to record before its first state can be judged.
        while budget.allows(row) and (not row.faults or budget.left_s > 4):
            states = min(600, budget.tries - row.faults) if budget.tries else 600
            outcome = rig.cut(states, seed=budget.seed + lives, noise=noise, until_s=max(8, budget.left_s))
            row.faults += outcome.states
            row.states += outcome.states
            row.slowest_s = max(row.slowest_s, outcome.slowest_s)
            row.judge(outcome.violations)
            lives, tokens = lives + 1, tokens + outcome.tokens
        row.note = f"{lives} lives, {tokens} promises"
        return row

    return run


def disk_faults(directory: Path, budget: Budget) -> Row:
    row = Row()
    if words := rig.missing():
        row.note = f"left out: {words}"
        return row
    chance = random.Random(budget.seed)
    while budget.allows(row):
        for kind in ("enospc", "eio", "ro"):
            outcome = rig.fault(kind, after=12 if kind == "enospc" else chance.randrange(4, 30))
            row.faults += 1
            row.states += outcome.states
            row.slowest_s = max(row.slowest_s, outcome.slowest_s)
            row.judge(outcome.violations)
    row.note = "ENOSPC, EIO, read-only"
    return row


def slow_disk(directory: Path, budget: Budget) -> Row:
    """The whole program on an ext4 whose fsyncs take 5 s: motion goes on, memory stays, nothing stored is lost."""
    row = Row()
    if words := rig.missing():
        row.note = f"left out: {words}"
        return row
    disk = rig.Disk(96)
    broker = Mosquitto(directory / "broker", extra=["max_queued_messages 0", "log_type none"]).start()
    subscriber = Subscriber(broker.port, "edgecam/#", session="dashboard", checked=False)
    try:
        disk.up()
        place = disk.mount / "node"
        config = write_settings(
            directory, broker.port, clips={"directory": str(place), "min_free_mb": 0, "pre_roll_s": 1.0}
        )
        with Program(directory, "run", "--config", config) as node:
            until(lambda: newest_health(subscriber).get("uptime_s", 0) > 8, "it runs")
            before, began = newest_health(subscriber), time.monotonic()
            disk.break_it("slow")
            while time.monotonic() - began < max(30.0, min(300.0, budget.left_s)):
                subscriber.wait_a_moment()
            after, slow_s = newest_health(subscriber), time.monotonic() - began
            rates = [json.loads(m.payload)["fps"] for m in subscriber.of("/health") if m.at_s > began]
            disk.mend()
            node.signal(signal.SIGTERM)
        subscriber.catch_up()
        row.faults, grown_mb = 1, after["memory_mb"] - before["memory_mb"]
        done = camera_agent("clips", "verify", "--directory", place)
        row.judge(done.stdout.splitlines() if done.returncode else [])
        account(row, place, subscriber)
    finally:
        subscriber.close()
        broker.kill()
        disk.down()
        disk.remove()
    row.slowest_s = after["disk"]["slowest_sync_ms"] / 1000
    rate = statistics.median(rates)
    if rate < 0.8 * before["fps"] or grown_mb > 40 or not after["disk"]["sync_stalls"]:
        row.judge([f"fps {before['fps']} -> {rate}, memory +{grown_mb:.0f} MB: {after['disk']}"])
    row.note = (
        f"each fsync 5 s for {slow_s:.0f} s: {before['fps']:.1f} -> {rate:.1f} frames/s analysed, memory"
        f" {before['memory_mb']:.0f} -> {after['memory_mb']:.0f} MB, {after['disk']['sync_stalls']} stalls counted,"
        f" {after['clip_gaps'] - before['clip_gaps']} gaps"
    )
    return row


def model_cuts(directory: Path, budget: Budget) -> Row:
    """The crash model of tests/test_recovery.py, at random operations, half of them cut again in the recovery."""
    row, chance = Row(), random.Random(budget.seed)
    images = test_recovery.live_through(directory / "life")
    while budget.allows(row):
        image, leaves = chance.choice(images), chance.choice(list(Leaves))
        left = directory / f"cut{row.faults}"
        image.restore(left, leaves)
        began = time.monotonic()
        disk = RecordingDisk(left)
        test_recovery.come_back(left, disk)
        row.slowest_s = max(row.slowest_s, time.monotonic() - began)
        if row.faults % 2 and disk.images:
            again = directory / f"again{row.faults}"
            chance.choice(disk.images).restore(again, chance.choice(list(Leaves)))
            test_recovery.come_back(again)
            left = again
        row.faults += 1
        row.states += 1
        row.judge(test_recovery.violations(left))
        row.judge(test_recovery.broken_promises(left, image, directory / "scratch"))
    return row


def clock_steps(directory: Path, budget: Budget) -> Row:
    row = Row()
    while budget.allows(row):
        steps = budget.tries or 100
        found = test_time.wander(directory / str(row.faults), steps=steps, seed=budget.seed + row.faults)
        row.faults += steps
        row.states += steps
        row.judge(found)
    row.note = "steps of up to ten years, over restarts"
    return row
