"""Generated and mutated payloads on every topic a node reads, through all the rooms that read them.

    PYTHONPATH=tests .venv/bin/python tests/fuzz.py --payloads 1000000

Payloads reach a whole node behind its connection: link, mailboxes, dispatcher, settings, storage with its ledger on
disk. Nothing may raise, every answer has to fit its model, nothing may pile up. A quarter goes to a node that obeys
signed commands only. Times are of the CPU: reading and answering, without the storage thread's disk.
"""

from __future__ import annotations

import argparse
import base64
import gc
import json
import logging
import random
import resource
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker import free_port
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from program import write_settings
from torture_table import Budget, Row
from tqdm import tqdm

from agent.cli.chosen import chosen_settings
from agent.cli.run import configuration_of
from agent.clock import SimulatedClock
from agent.connection import Incoming
from agent.echo import Echo
from agent.mailboxes import ChunkFate
from agent.node import Node
from agent.requests import VERBS, Response
from agent.strict_json import MAX_BYTES

SITE, NODE = "ward-12", "entrance"
BASE = f"edgecam/v1/{SITE}/{NODE}"
BIRTH = "homeassistant/status"
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
STORAGE_EVERY = 40
BETWEEN_S = 0.005
WARM = 20_000
P99_MS, GROWTH_MB = 10.0, 16.0
ULID = "01JD9ZV6Q2M4S8T1C3R5W7Y9AB"
MOMENT = "2026-11-22T03:15:07Z"

GOOD_ARGS: dict[str, dict[str, Any]] = {
    "snapshot": {"width": 320},
    "live": {"fps": 2, "width": 320, "ttl_s": 15},
    "events.list": {"from": MOMENT, "to": MOMENT, "limit": 5, "cursor": 9},
    "clips.list": {"limit": 5},
    "clip.get": {"clip_id": ULID, "offset": 0, "length": 10},
    "clip.put": {"clip_id": ULID, "url": "https://s3.example.org/a?X-Amz-Signature=1", "content_type": "video/mp4"},
    "clip.protect": {"clip_id": ULID},
    "clip.release": {"clip_id": ULID},
    "clip.erase": {"clip_id": ULID},
    "replay": {"from_seq": 1, "to_seq": 20, "thumbs": True},
    "record": {"duration_s": 5},
    "set": {"sensitivity": 60},
    "update": {"version": "9.9.9", "url": "https://updates.example.org/a.pkg", "percent": 50.0},
}
GOOD_CONFIG: dict[str, Any] = {
    "detection": {"sensitivity": 60, "quiet_s": 2.0},
    "zones": [{"id": "quay-so-2", "name": "Quầy số 2", "kind": "detect", "polygon": [[0, 0], [1, 0], [1, 1]]}],
    "log": {"level": "debug"},
    "mqtt": {"host": "broker.example.org"},
}
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**40, 0.0, -0.0, 1e308, 5e-324),
    *("", "a", "+", "#", "a/b", "../../etc/passwd", "\x00", "\ud800", "\u202e", "Cửa chính 🚪", "a" * 65, "9" * 400),
    *(ULID, MOMENT, "2026-11-22", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z", "page-1", "null"),
    *([], [[]], {}, {"": ""}, [1] * 300, {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}}),
)
TOKENS = (
    *(b"NaN", b"Infinity", b"-", b"1e999", b"-1e-999", b"0x1", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\\ud800"),
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"null", b"9" * 30, b"[" * 40, b'{"a":' * 12, b'"id":"x",'),
)


class Payloads:
    """Endless messages to a node: (topic, payload, whether retained, response topic). The same ones for one seed."""

    def __init__(self, seed: int, *, is_signed: bool) -> None:
        self._chance = random.Random(seed)
        self._is_signed = is_signed
        self._count = 0

    def next(self) -> Incoming:
        self._count += 1
        chance = self._chance
        topic = self._topic()
        response = ""
        if chance.random() < 0.2:
            response = chance.choice(
                [f"{BASE}/rsp/x", f"{BASE}/rsp/+", f"{BASE}/rsp/a/b", f"{BASE}/cmd/ping", "x", "\x00"]
            )
        is_retained = topic == f"{BASE}/config/desired" or chance.random() < 0.02
        return Incoming(topic, self._payload(topic), is_retained, {}, response, chance.randbytes(chance.randrange(9)))

    def _topic(self) -> str:
        draw = self._chance.random()
        if draw < 0.12:
            return f"{BASE}/config/desired"
        if draw < 0.16:
            return f"{BASE}/echo"
        if draw < 0.2:
            return BIRTH
        if draw < 0.25:
            return f"{BASE}/cmd/" + self._chance.choice(
                ["", "PING", "clip.*", "\U0001f6aa", "a" * 200, "config", "$SYS"]
            )
        # What ends or re-makes the node is drawn less often: it is slow, and hides what comes after.
        verb = self._chance.choice(list(VERBS))
        return f"{BASE}/cmd/{verb if verb != 'restart' or draw < 0.27 else 'ping'}"

    def _payload(self, topic: str) -> bytes:
        draw, chance = self._chance.random(), self._chance
        if draw < 0.1:
            return chance.randbytes(chance.randrange(300))
        if draw < 0.102:
            return self._huge()
        body = self._good(topic)
        if draw < 0.5:
            body = self._bent(body)
        text = json.dumps(body, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        if draw > 0.8:
            text = self._mutated(text)
        return self._sealed(text) if self._is_signed and chance.random() < 0.7 else text

    def _good(self, topic: str) -> Any:
        name = topic.rsplit("/", 1)[-1]
        if topic == BIRTH:
            return self._chance.choice(["online", "offline"])
        meaning = {"node": f"{SITE}/{NODE}", "verb": name} if self._is_signed else {}
        if topic.endswith("/config/desired"):
            if self._is_signed:
                meaning["verb"] = "config/desired"
            chosen = {
                key: GOOD_CONFIG[key] for key in self._chance.sample(sorted(GOOD_CONFIG), self._chance.randrange(3))
            }
            return {"rev": self._count, "config": chosen, **meaning}
        if self._is_signed:
            meaning["counter"] = self._count  # type: ignore[assignment]
        body = {
            "id": f"q{self._chance.randrange(5000)}",
            "client": "page-1",
            "args": GOOD_ARGS.get(name, {}),
            **meaning,
        }
        if self._chance.random() < 0.3:
            body["expires"] = self._chance.choice([MOMENT, "2099-01-01T00:00:00+07:00"])
        return body

    def _bent(self, value: Any) -> Any:
        """One place somewhere in the value is something else, is gone, or is there twice as often."""
        chance = self._chance
        if isinstance(value, dict) and value and chance.random() < 0.9:
            key = chance.choice(sorted(value))
            draw = chance.random()
            if draw < 0.1:
                return {k: v for k, v in value.items() if k != key}
            if draw < 0.2:
                return {**value, chance.choice(["", "extra", key.upper(), "__proto__", "\ud83d"]): chance.choice(ODD)}
            return {**value, key: self._bent(value[key])}
        if isinstance(value, list) and value and chance.random() < 0.8:
            at = chance.randrange(len(value))
            return [*value[:at], self._bent(value[at]), *value[at + chance.randrange(2) :]]
        return chance.choice(ODD)

    def _mutated(self, text: bytes) -> bytes:
        chance, content = self._chance, bytearray(text)
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(content) + 1)
            how = chance.randrange(5)
            if how == 0 and at < len(content):
                content[at] = chance.randrange(256)
            elif how == 1:
                del content[at : at + chance.randrange(1, 20)]
            elif how == 2:
                content[at:at] = content[at : at + chance.randrange(1, 60)]
            elif how == 3:
                content[at:at] = chance.choice(TOKENS)
            else:
                del content[at:]
        return bytes(content)

    def _huge(self) -> bytes:
        """At the limit of what is parsed, or above it."""
        chance = self._chance
        size = MAX_BYTES + chance.choice([-1, 0, 1, 5000])
        unit, whole = chance.choice(
            [(b"[]", b"[%s]"), (b'"a":1', b"{%s}"), (b"1", b"[%s]"), (b"{}", b'{"id":"a","client":"b","args":[%s]}')]
        )
        count = (size - len(whole) + 2) // (len(unit) + 1)
        text = whole.replace(b"%s", b",".join([unit] * count))
        return text + b" " * (size - len(text))

    def _sealed(self, text: bytes) -> bytes:
        signature = KEY.sign(text) if self._chance.random() < 0.8 else self._chance.randbytes(64)
        command = text.decode("utf-8", "replace")
        envelope: dict[str, Any] = {"command": command, "signature": base64.b64encode(signature).decode()}
        return json.dumps(self._bent(envelope) if self._chance.random() < 0.1 else envelope).encode(
            "utf-8", "replace"
        )


class _NoCamera:
    def start(self, sink: object) -> None: ...
    def stop(self) -> None: ...
    def fault(self) -> None: ...
    def ended(self) -> bool:
        return False


class Target:
    """A node behind its connection, taken up anew where a message made it end (restart, settings that need it)."""

    def __init__(self, directory: Path, *, is_signed: bool) -> None:
        raw = base64.b64encode(KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
        directory.mkdir()
        self._config = write_settings(
            directory,
            free_port(),
            node={"id": NODE, "site": SITE},
            commands={"operator_keys": [f"alice:{raw}"] if is_signed else [], "upload_hosts": ["http://127.0.0.1:9"]},
        )
        self.clock = SimulatedClock()
        self.answers: Counter[str] = Counter()
        self.starts = 0
        self._since_storage = 0
        self.node = self._start()

    def _start(self) -> Node:
        settings, state = chosen_settings(self._config)
        camera: Any = _NoCamera()
        node = Node(settings, self.clock, camera, configuration=configuration_of(self._config, state))
        node.storage.open()
        # As under MQTT 3.1.1, so that the echo is one of the topics that are read.
        node.link._echo = Echo(f"{BASE}/echo", ULID, is_needed=True)
        self.starts += 1
        return node

    def take(self, message: Incoming) -> float:
        """Everything the node does about one message; CPU ms of the threads that read and answer."""
        began_ns = time.thread_time_ns()
        self.node.link._hear(message)
        self.node.commands.step(0)
        took_ns = time.thread_time_ns() - began_ns
        self.clock.move(BETWEEN_S)
        self._drain()
        self._since_storage += 1
        if self._since_storage >= STORAGE_EVERY or self.node.mail.errands.to_storage.is_full:
            self._since_storage = 0
            self.node.storage.step(0)
            self._judge_trial()
        if self.node._stop.is_set():
            self.close()
            self.node = self._start()
        return took_ns / 1e6

    def _judge_trial(self) -> None:
        """No broker is there to confirm settings on trial, so they go back when their time is over."""
        configuring = self.node.commands.configuring
        if configuring is not None and configuring.state.trial is not None:
            self.clock.move(self.node.settings.commands.confirm_s)
            self.node.commands.step(0)

    def _drain(self) -> None:
        """What the link would send: every answer fits its model, pieces are acknowledged."""
        mail = self.node.mail
        for reply in mail.replies.take_all():
            answer = Response.model_validate_json(reply.payload, strict=True)
            self.answers["ok" if answer.ok else answer.error.code if answer.error else "?"] += 1
            assert reply.topic.startswith("rsp/"), reply.topic
            assert not set(reply.topic[4:]) & set("+#/\x00"), reply.topic
        while (chunk := mail.media.take()) is not None:
            mail.media.settle(ChunkFate(chunk.ticket))
        self.node.statuses.take()
        self.node.board.take()

    def close(self) -> None:
        self.node.commands.close()
        self.node.storage.close()
        self.node.link.close(0)


@dataclass
class Outcome:
    """times_ms: CPU of each payload. grown_mb: RSS at the end above that after the first WARM payloads."""

    times_ms: array[float] = field(default_factory=lambda: array("f"))
    answers: Counter[str] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    grown_mb: float = 0.0

    def percentile_ms(self, share: float) -> float:
        return sorted(self.times_ms)[min(len(self.times_ms) - 1, int(len(self.times_ms) * share))]

    def words(self) -> str:
        return (
            f"{len(self.topics)} topics, CPU of one: median {self.percentile_ms(0.5):.3f} ms,"
            f" p99 {self.percentile_ms(0.99):.2f} ms, max {max(self.times_ms):.1f} ms;"
            f" memory {self.grown_mb:+.1f} MB; {self.starts} starts of a node"
        )


def rss_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def fuzz(directory: Path, payloads: int, seed: int, goes_on: Callable[[int], bool] = lambda _: True) -> Outcome:
    """So many payloads, or until goes_on(how many so far) is False. What one makes raise is raised, with it told."""
    outcome = Outcome()
    targets = [Target(directory / "plain", is_signed=False), Target(directory / "signed", is_signed=True)]
    sources = [Payloads(seed, is_signed=False), Payloads(seed + 1, is_signed=True)]
    warm_mb = 0.0
    for number in range(payloads):
        which = number % 4 == 3
        message = sources[which].next()
        try:
            outcome.times_ms.append(targets[which].take(message))
        except BaseException:
            print(f"payload {number} of seed {seed}: {message.topic!r} {message.payload[:2000]!r}", file=sys.stderr)
            raise
        outcome.topics[message.topic.removeprefix(f"{BASE}/")[:20]] += 1
        if number == min(WARM, payloads // 5):
            warm_mb = rss_mb()
        if number % 1000 == 999 and not goes_on(number + 1):
            break
    outcome.grown_mb = rss_mb() - (warm_mb or rss_mb())
    for target in targets:
        target.close()
        outcome.answers += target.answers
        outcome.starts += target.starts
    return outcome


def fuzz_round(directory: Path, budget: Budget) -> Row:
    """For scripts/torture: a million payloads, or as many as its time allows."""
    row = Row()

    def goes_on(done: int) -> bool:
        row.faults = row.states = done
        return budget.allows(row)

    found = fuzz(directory, budget.tries or 1_000_000, budget.seed, goes_on)
    row.note = found.words()
    if found.percentile_ms(0.99) >= P99_MS:
        row.judge([f"p99 of a payload is {found.percentile_ms(0.99):.1f} ms"])
    if found.grown_mb >= GROWTH_MB:
        row.judge([f"memory has grown by {found.grown_mb:.1f} MB"])
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--payloads", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random choices (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="print the outcome as JSON and judge nothing")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began_cpu_s = time.process_time()
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as place,
        tqdm(total=args.payloads, unit=" payloads", leave=False, disable=not sys.stderr.isatty()) as bar,
    ):
        found = fuzz(Path(place), args.payloads, args.seed, lambda done: bool(bar.update(done - bar.n)) or True)
    if args.report:
        print(json.dumps({**vars(found), "times_ms": len(found.times_ms)}))
        return 0
    cpu_s = time.process_time() - began_cpu_s
    print(f"{len(found.times_ms)} payloads, seed {args.seed}, {cpu_s:.0f} s CPU: 0 exceptions; {found.words()}")
    print(", ".join(f"{code} {count}" for code, count in found.answers.most_common()))
    return int(found.percentile_ms(0.99) >= P99_MS or found.grown_mb >= GROWTH_MB)


if __name__ == "__main__":
    sys.exit(main())
