"""Whatever arrives on the topics a node reads: answered or refused, nothing raised, nothing piled up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from fuzz import GROWTH_MB

from agent.requests import VERBS

HALF = 50_000


def test_a_hundred_thousand_payloads_on_every_topic_a_node_reads_raise_nothing() -> None:
    """In two processes, for two cores; and nothing but the node is in the memory that may not grow."""
    words = (sys.executable, "-W", "error", Path(__file__).with_name("fuzz.py"), "--report", "--payloads", str(HALF))
    halves = [
        subprocess.Popen([*words, "--seed", seed], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in ("20261122", "20261124")
    ]
    topics, answers, starts = Counter[str](), Counter[str](), 0
    for out, err, half in [(*half.communicate(), half) for half in halves]:
        assert half.returncode == 0, err[-4000:]
        found = json.loads(out)
        assert found["times_ms"] == HALF
        assert found["grown_mb"] < GROWTH_MB / 2, "half as many payloads"
        topics.update(found["topics"])
        answers.update(found["answers"])
        starts += found["starts"]
    assert {"config/desired", "echo", "homeassistant/status", *(f"cmd/{verb}" for verb in VERBS)} <= set(topics)
    refusals = {"malformed", "invalid", "unknown-verb", "expired", "too-large", "busy", "not-found", "forbidden"}
    assert {"ok", "unsigned", "bad-signature", "foreign", "replayed", *refusals} <= set(answers), (
        "payloads come past every check"
    )
    assert starts > 10, "settings and restarts get through"
