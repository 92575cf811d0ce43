"""Words and units: clocks, ids, errors, and what systemd is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import SimulatedClock, SystemClock, rfc3339, wall_of
from agent.errors import CameraError, ConfigError
from agent.sdnotify import Notifier
from agent.ulid import is_ulid, new_ulid


def test_the_system_clock_reads_the_kernel() -> None:
    clock = SystemClock()
    assert clock.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    first = clock.boot_ns()
    assert clock.boot_ns() >= first
    assert clock.synced() in (True, False)


def test_a_wall_clock_step_does_not_touch_boot_time() -> None:
    clock = SimulatedClock()
    boot_ns, wall_ns = clock.boot_ns(), clock.wall_ns()
    clock.step_wall(-86400)
    clock.move(2.5)
    assert clock.boot_ns() - boot_ns == 2_500_000_000
    assert clock.wall_ns() - wall_ns == -86_397_500_000_000
    assert wall_of(clock, boot_ns) == clock.wall_ns() - 2_500_000_000


def test_simulated_boot_time_never_goes_back() -> None:
    clock = SimulatedClock()
    with pytest.raises(ValueError, match="never goes back"):
        clock.move(-1)


@pytest.mark.parametrize(
    ("wall_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_795_349_707_250_999_999, "2026-11-22T12:15:07.250Z"),
        (-5, "1970-01-01T00:00:00.000Z"),
        (10**21, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_utc_with_milliseconds_and_never_fail(wall_ns: int, text: str) -> None:
    assert rfc3339(wall_ns) == text


@given(st.integers(0, 2**48 - 2), st.integers(0, 2**80 - 1), st.integers(0, 2**80 - 1))
def test_ulids_sort_by_time(wall_ms: int, first: int, second: int) -> None:
    older, newer = new_ulid(wall_ms, first), new_ulid(wall_ms + 1, second)
    assert is_ulid(older)
    assert is_ulid(newer)
    assert older < newer


@pytest.mark.parametrize(
    "text", ["", "../../etc/passwd", "01JD9ZV6Q2M4S8T1C3R5W7Y9A", "01jd9zv6q2m4s8t1c3r5w7y9ab", "U" * 26]
)
def test_what_is_no_ulid_is_known_as_such(text: str) -> None:
    assert not is_ulid(text)


def test_ulids_are_the_published_ones() -> None:
    # The specification's own example: 01ARYZ6S41 is 1469918176385 ms.
    assert new_ulid(1469918176385, 0)[:10] == "01ARYZ6S41"


def test_an_error_is_one_line_with_thing_cause_and_hint() -> None:
    error = CameraError("open", "/dev/video9", OSError(16, "Device or resource busy"), hint="who else uses\nit?")
    assert str(error) == "open /dev/video9: Device or resource busy (who else uses it?)"
    assert (error.exit_code, ConfigError("read", "x", "y").exit_code) == (1, 78)


def test_systemd_hears_what_is_sent(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})
        notifier.send("WATCHDOG=1", "STATUS=watching")
        assert systemd.recv(100) == b"WATCHDOG=1\nSTATUS=watching"
    assert notifier.watchdog_s == 30
    notifier.send("READY=1")  # nobody listens any more: no reason to stop a node


def test_an_abstract_socket_is_understood() -> None:
    name = f"camera-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        Notifier({"NOTIFY_SOCKET": "@" + name}).send("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_sent_or_expected() -> None:
    notifier = Notifier({})
    notifier.send("READY=1")
    assert notifier.watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_s is None
