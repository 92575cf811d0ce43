"""How `watch` fills its gaps: which numbers to ask a node for, and its answers as messages. Touches nothing."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from pydantic import ValidationError

from agent.connection import Incoming
from agent.gaps import Gap
from agent.requests import REPLAY_ROWS, Response
from agent.topics import CLIP, CMD, EVENT, LOSS, RSP, THUMB, VERSION

PATIENCE_S = 2.0
"""A gap is asked for when it is so old: what is in flight, or comes on another connection, needs no asking."""

AGAIN_S = 15.0
TRIES = 3
RESULT_BYTES = 1 << 20


@dataclass(slots=True)
class _Wanted:
    since_s: float
    asked_s: float | None = None
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Repaired:
    """What an answer brought: messages as if they came now, and numbers of (site, node) that the node has no more."""

    messages: tuple[Incoming, ...] = ()
    gone: tuple[Gap, ...] = ()


class Repairs:
    """Questions of one watcher. client: its name in `B/rsp/{client}`."""

    def __init__(self, root: str, client: str) -> None:
        self.client = client
        self._root = root
        self._wanted: dict[tuple[str, str, int], _Wanted] = {}
        self._count = 0

    def topic(self, site: str, node: str) -> str:
        """Where answers come; + for all."""
        return f"{self._root}/v{VERSION}/{site}/{node}/{RSP}/{self.client}"

    def questions(self, key: tuple[str, str], missing: tuple[Gap, ...], now_s: float) -> list[tuple[str, bytes]]:
        """(topic, payload) of what to ask the node key for now."""
        asked = []
        known = {(*key, gap.first): gap for gap in missing}
        for name in [name for name in self._wanted if name[:2] == key and name not in known]:
            del self._wanted[name]
        for name, gap in known.items():
            wanted = self._wanted.setdefault(name, _Wanted(now_s))
            is_due = wanted.asked_s is None or now_s - wanted.asked_s >= AGAIN_S
            if now_s - wanted.since_s < PATIENCE_S or not is_due or wanted.tries >= TRIES:
                continue
            wanted.asked_s, wanted.tries = now_s, wanted.tries + 1
            self._count += 1
            last = min(gap.last, gap.first + REPLAY_ROWS - 1)
            body = {
                "id": f"{self.client}-{self._count}",
                "client": self.client,
                "args": {"from_seq": gap.first, "to_seq": last, "thumbs": True},
            }
            topic = f"{self._root}/v{VERSION}/{key[0]}/{key[1]}/{CMD}/replay"
            asked.append((topic, json.dumps(body).encode()))
        return asked

    def answer(self, key: tuple[str, str], message: Incoming) -> Repaired:
        """What a message on our topic brings; nothing where it cannot be read."""
        try:
            if len(message.payload) > RESULT_BYTES:
                return Repaired()
            answer = Response.model_validate_json(message.payload)
            if answer.part is not None:
                part = answer.part
                if part.topic not in (EVENT, THUMB, CLIP, LOSS):
                    return Repaired()
                topic = f"{self._root}/v{VERSION}/{key[0]}/{key[1]}/{part.topic}"
                if part.jpeg is None:
                    return Repaired((Incoming(topic, json.dumps(part.message).encode(), False),))
                jpeg = base64.b64decode(part.jpeg, validate=True)
                return Repaired((Incoming(topic, jpeg, False, {k: str(v) for k, v in part.message.items()}),))
            gone = (answer.result or {}).get("missing", [])
            return Repaired(gone=tuple(Gap(int(first), int(last)) for first, last in gone))
        except (ValidationError, binascii.Error, ValueError, TypeError):
            return Repaired()
