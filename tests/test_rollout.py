"""A roll-out reaches a site in stages, asks nobody twice and stops when nodes go back."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from link_fixtures import ulid
from release_fixtures import key_pair

from agent.cli.rollout import signer, stages_of
from agent.connection import Incoming
from agent.errors import ConfigError
from agent.requests import Request, SignedText, TrialBody, UpdateArgs, UpdateReported
from agent.rollout import GATHER_S, Plan, Rollout, plain
from agent.signatures import OperatorKeys

TIME = "2026-11-22T03:15:07.000Z"
URL = "https://packages.example.org/p.package"


def said(installed: str = "1.2.2", **more: Any) -> UpdateReported:
    tree = {"installed": installed, "latest": installed, "possible": True, "phase": "idle", "tries": 0, "time": TIME}
    return UpdateReported.model_validate(tree | more)


class Town:
    """Nodes that do what they are asked; fails: those that go back to the old version. asked: in order."""

    def __init__(self, count: int, fails: Callable[[str], bool] = lambda node: False, **more: Any) -> None:
        self.lines: list[str] = []
        plan = Plan("1.2.3", URL, **{"stages": (5, 25, 100), **more})
        self.rollout = Rollout(plan, "edgecam", "rollout", "r1", plain, self.lines.append)
        self.fails = fails
        self.asked: list[str] = []
        self.payloads: list[bytes] = []
        self.under_way: list[str] = []
        self.most_under_way = 0
        for number in range(count):
            self.hear(f"cam-{number}", "state", self.state("online"))
            self.hear(f"cam-{number}", "update", said().model_dump())

    def state(self, state: str) -> dict[str, Any]:
        return {"v": 1, "state": state, "session": ulid(1), "time": TIME, "reasons": []}

    def hear(self, node: str, feed: str, content: dict[str, Any]) -> None:
        payload = json.dumps(content).encode()
        self.rollout.take(Incoming(f"edgecam/v1/ward-12/{node}/{feed}", payload, retained=True))

    def answer(self, node: str, **content: Any) -> None:
        self.hear(node, "rsp/rollout", {"v": 1, "id": "rollout-1.2.3-r1", **content})

    def take_commands(self, now_s: float) -> None:
        for topic, payload in self.rollout.questions(now_s):
            request = Request.model_validate_json(payload)
            assert UpdateArgs.model_validate(request.args).url == URL
            self.asked.append(topic.split("/")[3])
            self.payloads.append(payload)
            self.under_way.append(self.asked[-1])
        self.most_under_way = max(self.most_under_way, len(self.under_way))

    def work(self) -> None:
        """One node ends its trial."""
        if not self.under_way:
            return
        node = self.under_way.pop(0)
        self.answer(node, ok=True, result={"state": "handed-over"})
        self.hear(node, "update", said(phase="handed-over", tries=1).model_dump())
        if self.fails(node):
            last = TrialBody(version="1.2.3", verdict="failed", why="it never said READY", time=TIME)
            self.hear(node, "update", said(last=last.model_dump(), tries=1).model_dump())
        else:
            self.hear(node, "update", said("1.2.3", phase="on-trial").model_dump())
            self.hear(node, "update", said("1.2.3", tries=1).model_dump())

    def run(self, limit_s: float = 5000.0) -> None:
        now_s = 0.0
        while self.rollout.over is None and now_s < limit_s:
            self.take_commands(now_s)
            self.work()
            now_s += 1.0


def test_a_version_reaches_all_nodes_a_few_first_and_never_too_many_at_once() -> None:
    town = Town(300, at_once=7)
    town.run()
    assert town.rollout.over is True
    assert sorted(town.asked) == sorted(f"cam-{number}" for number in range(300))
    assert len(town.asked) == len(set(town.asked))
    assert town.most_under_way <= 7
    shares = [line for line in town.lines if "% of" not in line and " of 300 nodes" in line]
    assert [line.split(":")[0] for line in shares[:3]] == ["5 %", "25 %", "100 %"]
    assert town.lines[-1] == "300 of 300 nodes run 1.2.3"


def test_a_bad_version_stops_with_the_first_few() -> None:
    town = Town(300, lambda node: True)
    town.run()
    assert town.rollout.over is False
    first = int(town.lines[0].split()[2])
    assert 0 < first < 30
    assert len(town.asked) <= first
    assert any("FAILED (failed: it never said READY)" in line for line in town.lines)
    assert town.lines[-1].startswith("stopped at 5 %")


def test_some_failures_may_be_allowed() -> None:
    bad = {f"cam-{number}" for number in range(0, 300, 30)}  # two of them among the first nine
    town = Town(300, bad.__contains__, max_failed_percent=25)
    town.run()
    assert town.rollout.over is False
    assert town.lines[-1] == "290 of 300 nodes run 1.2.3"


def test_who_runs_it_already_or_is_away_is_not_asked() -> None:
    town = Town(3)
    town.hear("cam-0", "update", said("1.2.3").model_dump())
    town.hear("cam-1", "state", town.state("lost"))
    town.hear("cam-2", "update", said(possible=False).model_dump())
    town.hear("old", "state", town.state("online"))
    town.run()
    assert town.asked == []
    assert town.rollout.over is False
    assert [line for line in town.lines if "not asked" in line] == [
        "ward-12/cam-1: not asked: it is not there",
        "ward-12/cam-2: not asked: it cannot be updated so",
        "ward-12/old: not asked: it says nothing of updates: an older version",
    ]


def test_a_command_that_got_lost_is_sent_again_and_never_a_second_one() -> None:
    town = Town(1, stages=(100,))
    for now_s in range(100):
        town.take_commands(float(now_s))
    assert len(town.asked) > 1
    assert len(set(town.payloads)) == 1
    town.answer("cam-0", ok=True, result={"state": "handed-over"})
    before = len(town.asked)
    for now_s in range(100, 200):
        town.take_commands(float(now_s))
    assert len(town.asked) == before


def test_a_node_that_refuses_or_never_decides_has_failed() -> None:
    refuses = Town(1, stages=(100,))
    refuses.take_commands(0.0)
    refuses.take_commands(GATHER_S)
    refuses.answer(
        "cam-0", ok=False, error={"code": "refused", "detail": "none of this node's release keys", "pointer": ""}
    )
    refuses.take_commands(GATHER_S + 1)
    assert refuses.rollout.over is False
    assert "ward-12/cam-0: FAILED (refused: none of this node's release keys)" in refuses.lines
    silent = Town(1, stages=(100,), patience_s=60)
    for now_s in range(80):
        silent.take_commands(float(now_s))
    assert silent.rollout.over is False
    assert any("nothing decided within 60 s" in line for line in silent.lines)


def test_a_node_whose_board_dies_in_the_trial_does_not_keep_the_rollout_waiting_for_ever() -> None:
    """What it said last is a verdict on something else, and that its trial is not over."""
    town = Town(1, stages=(100,), patience_s=60)
    for now_s in range(5):
        town.take_commands(float(now_s))
    assert town.asked == ["cam-0"]
    town.answer("cam-0", ok=True, result={"state": "handed-over"})
    older = TrialBody(version="1.2.2", verdict="interrupted", why="", time=TIME)
    town.hear("cam-0", "update", said(phase="on-trial", last=older.model_dump(), tries=1).model_dump())
    for now_s in range(5, 100):
        town.take_commands(float(now_s))
    assert town.rollout.over is False
    assert any("nothing decided within 60 s" in line for line in town.lines)


def test_an_update_that_failed_before_this_one_is_not_held_against_it() -> None:
    town = Town(1, stages=(100,))
    last = TrialBody(version="1.2.3", verdict="interrupted", why="", time=TIME)
    town.hear("cam-0", "update", said(last=last.model_dump(), tries=1).model_dump())
    town.run()
    assert town.rollout.over is True


def test_commands_are_signed_where_nodes_want_it(tmp_path: Path) -> None:
    private, public = key_pair(5)
    (tmp_path / "desk.key").write_bytes(private)
    sign = signer(tmp_path / "desk.key")
    raw = (
        Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)
        .public_key()
        .public_bytes(Encoding.Raw, PublicFormat.Raw)
    )
    keys = OperatorKeys({"desk": base64.b64encode(raw).decode()})
    counters = []
    for number in (1, 2):
        envelope = json.loads(
            sign(("ward-12", "door"), "update", {"id": f"a{number}", "client": "rollout", "args": {}})
        )
        assert keys.signer_of(envelope["command"].encode(), envelope["signature"]) == "desk"
        text = SignedText.model_validate_json(envelope["command"])
        assert (text.verb, text.node) == ("update", "ward-12/door")
        counters.append(text.counter)
    assert counters[1] > counters[0]
    (tmp_path / "desk.key").write_bytes(public)
    with pytest.raises(ConfigError, match="private key"):
        signer(tmp_path / "desk.key")


@pytest.mark.parametrize("text", ["", "25,5", "0,100", "5,101", "5,5", "many"])
def test_stages_that_do_not_grow_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="growing percentages"):
        stages_of(text)
    assert stages_of("5,25,100") == [5, 25, 100]
