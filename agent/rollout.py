"""A new version over a site in stages, from the centre: who is asked when, and when to stop. Pure; time is given.

Speaks to a broker through whoever runs it: take() what came, questions() to send. A node is well when its own
`B/update` says that the version runs and no trial is open; that it was told to is not enough.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ValidationError

from agent.connection import Incoming
from agent.messages import StateMessage
from agent.release import is_due
from agent.requests import Response, TrialBody, UpdateReported
from agent.topics import RSP, STATE, UPDATE, VERSION, split

GATHER_S = 3.0
"""Retained messages of a site have come by then."""

ASK_AGAIN_S = 30.0
"""A command without an answer is sent again under the same id: it is never done twice."""

Node = tuple[str, str]
Fate = Literal["", "asked", "accepted", "failed"]
Sign = Callable[[Node, str, dict[str, object]], bytes]
"""(node, verb, the command) -> what to publish: the command itself, or signed."""


@dataclass(slots=True)
class _Seen:
    """What is known of one node. before: its last update when it was asked. why: what failed."""

    update: UpdateReported | None = None
    state: str = ""
    fate: Fate = ""
    asked_s: float = 0.0
    sent_s: float = 0.0
    is_answered: bool = False
    before: TrialBody | None = None
    why: str = ""

    @property
    def is_there(self) -> bool:
        return self.update is not None and self.update.possible and self.state in ("online", "degraded")

    @property
    def why_away(self) -> str:
        if self.state not in ("online", "degraded"):
            return "it is not there"
        return "it says nothing of updates: an older version" if self.update is None else "it cannot be updated so"


@dataclass(frozen=True, slots=True)
class Plan:
    """stages: percent, growing. max_failed_percent: of a stage's nodes; more than these, and it stops.

    at_once: nodes under way together, for the package server's sake. patience_s: for one node, from asked to decided.
    """

    version: str
    url: str
    stages: Sequence[float]
    max_failed_percent: float = 0.0
    at_once: int = 20
    patience_s: float = 1800.0


@dataclass(slots=True)
class Rollout:
    """say: a line for people. client: who asks, with a command id of this run. over: how it ended, None: not yet."""

    plan: Plan
    root: str
    client: str
    run_id: str
    sign: Sign
    say: Callable[[str], None]
    over: bool | None = None
    nodes: dict[Node, _Seen] = field(default_factory=dict)
    _began_s: float | None = None
    _stage: int = -1
    _due: list[Node] = field(default_factory=list)

    @property
    def filters(self) -> list[str]:
        """What to subscribe to below root/v1/SITE."""
        return [f"+/{UPDATE}", f"+/{STATE}", f"+/{RSP}/{self.client}"]

    def take(self, message: Incoming) -> None:
        """What came from the broker; what is not understood is passed over."""
        found = split(message.topic, self.root)
        if found is None:
            return
        site, name, rest = found
        seen = self.nodes.setdefault((site, name), _Seen())
        models: dict[str, type[BaseModel]] = {UPDATE: UpdateReported, STATE: StateMessage}
        model = models.get(rest, Response)
        try:
            content = model.model_validate_json(message.payload)
        except ValidationError:
            return
        if isinstance(content, StateMessage):
            seen.state = content.state
        elif isinstance(content, UpdateReported):
            seen.update = content
        elif isinstance(content, Response) and content.id == self._id((site, name)) and seen.fate == "asked":
            self._answered((site, name), seen, content)

    def questions(self, now_s: float) -> list[tuple[str, bytes]]:
        """(topic, payload) to publish now; also where time passes."""
        self._began_s = now_s if self._began_s is None else self._began_s
        if self.over is not None or now_s - self._began_s < GATHER_S:
            return []
        if self._stage < 0:
            self._next_stage()
        for node in self._due:
            self._judge(node, self.nodes[node], now_s)
        failed = [node for node in self._due if self.nodes[node].fate == "failed"]
        if len(failed) > self.plan.max_failed_percent / 100 * len(self._due):
            self._stop(failed)
            return []
        if all(self.nodes[node].fate == "accepted" or node in failed for node in self._due):
            self._next_stage()
            for node in self._due:
                self._judge(node, self.nodes[node], now_s)
        return self._commands(now_s) if self.over is None else []

    def _commands(self, now_s: float) -> list[tuple[str, bytes]]:
        sent = []
        under_way = sum(self.nodes[node].fate == "asked" for node in self._due)
        for node in self._due:
            seen = self.nodes[node]
            if seen.fate == "" and under_way < self.plan.at_once:
                under_way += 1
                seen.fate, seen.asked_s, seen.is_answered = "asked", now_s, False
                seen.before = seen.update.last if seen.update is not None else None
            elif seen.fate != "asked" or seen.is_answered or now_s - seen.sent_s < ASK_AGAIN_S:
                continue
            if seen.fate == "asked":
                seen.sent_s = now_s
                args: dict[str, object] = {"version": self.plan.version, "url": self.plan.url}
                command: dict[str, object] = {"id": self._id(node), "client": self.client, "args": args}
                topic = f"{self.root}/v{VERSION}/{node[0]}/{node[1]}/cmd/update"
                sent.append((topic, self.sign(node, "update", command)))
        return sent

    def _id(self, node: Node) -> str:
        return f"rollout-{self.plan.version}-{self.run_id}"

    def _answered(self, node: Node, seen: _Seen, answer: Response) -> None:
        seen.is_answered = True
        if not answer.ok and answer.error is not None:
            self._fail(node, seen, f"{answer.error.code}: {answer.error.detail}")

    def _judge(self, node: Node, seen: _Seen, now_s: float) -> None:
        update = seen.update
        if update is None or seen.fate in ("accepted", "failed"):
            return
        if update.installed == self.plan.version and update.phase == "idle":
            seen.fate = "accepted"
            self.say(f"{'/'.join(node)}: {self.plan.version} runs")
        elif seen.fate != "asked":
            return
        elif update.last not in (None, seen.before) and update.phase == "idle" and update.last.verdict != "accepted":
            self._fail(node, seen, f"{update.last.verdict}: {update.last.why}")
        elif now_s - seen.asked_s > self.plan.patience_s:
            self._fail(node, seen, f"nothing decided within {self.plan.patience_s:g} s")

    def _fail(self, node: Node, seen: _Seen, why: str) -> None:
        seen.fate, seen.why = "failed", why
        self.say(f"{'/'.join(node)}: FAILED ({why})")

    def _next_stage(self) -> None:
        self._stage += 1
        if self._stage == len(self.plan.stages):
            self._finish()
            return
        percent = self.plan.stages[self._stage]
        there = sorted(node for node, seen in self.nodes.items() if seen.is_there or seen.fate)
        self._due = [node for node in there if is_due(node[0], node[1], self.plan.version, percent)]
        self.say(f"{percent:g} %: {len(self._due)} of {len(there)} nodes")

    def _stop(self, failed: list[Node]) -> None:
        percent = self.plan.stages[self._stage]
        self.say(f"stopped at {percent:g} %: {len(failed)} of {len(self._due)} failed; no other node is asked")
        self.over = False

    def _finish(self) -> None:
        away = sorted(node for node, seen in self.nodes.items() if not seen.is_there and seen.fate != "accepted")
        for node in away:
            self.say(f"{'/'.join(node)}: not asked: {self.nodes[node].why_away}")
        fates = [seen.fate for seen in self.nodes.values()]
        self.say(f"{fates.count('accepted')} of {len(fates)} nodes run {self.plan.version}")
        self.over = bool(fates) and all(fate == "accepted" for fate in fates)


def plain(_: Node, __: str, command: dict[str, object]) -> bytes:
    """Sign, for a site whose nodes want no signatures."""
    return json.dumps(command).encode()
