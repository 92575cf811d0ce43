"""Whatever arrives on the topics a node reads: answered or refused, nothing raised, nothing piled up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import GROWTH_MB, fuzz

from agent.requests import VERBS


@pytest.fixture
def unlogged() -> Iterator[None]:
    """pytest keeps every line of the log, which would be the growth that is looked for."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("unlogged")
def test_a_hundred_thousand_payloads_on_every_topic_a_node_reads_raise_nothing(tmp_path: Path) -> None:
    found = fuzz(tmp_path, 100_000, seed=20_261_122)
    assert len(found.times_ms) == 100_000
    assert {"config/desired", "echo", "homeassistant/status", *(f"cmd/{verb}" for verb in VERBS)} <= set(found.topics)
    refusals = {"malformed", "invalid", "unknown-verb", "expired", "too-large", "busy", "not-found", "forbidden"}
    assert {"ok", "unsigned", "bad-signature", "foreign", "replayed", *refusals} <= set(found.answers), (
        "payloads come past every check"
    )
    assert found.starts > 10, "settings and restarts get through"
    assert found.grown_mb < GROWTH_MB
