"""The soak of tests/soak.py for a quarter of an hour of simulated time; scripts/soak runs the whole day."""

from __future__ import annotations

from pathlib import Path

from broker import requires_mosquitto
from soak import soak


@requires_mosquitto
def test_a_quarter_of_an_hour_leaves_nothing_behind_and_loses_nothing(tmp_path: Path) -> None:
    account = soak(0.25, tmp_path)
    assert account.failures() == []
