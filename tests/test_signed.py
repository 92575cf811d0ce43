"""Signed commands: only an operator's key is obeyed, each command once, also when the broker is somebody else's."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from broker import Mosquitto, requires_mosquitto
from command_fixtures import BASE, Bench, Client
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import ConfigError
from agent.operators import COUNTERS_NAME, admission_of

pytestmark = requires_mosquitto

NODE = "ward-12/entrance"


class Operator:
    """Somebody with a key. text(): what is signed; sealed(): as it is sent."""

    def __init__(self, seed: int) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)

    def setting(self, name: str = "alice") -> str:
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return f"{name}:{base64.b64encode(raw).decode()}"

    def sealed(self, body: dict[str, Any]) -> bytes:
        text = json.dumps(body)
        signature = base64.b64encode(self._key.sign(text.encode())).decode()
        return json.dumps({"command": text, "signature": signature}).encode()

    def command(self, verb: str, counter: int, **more: Any) -> bytes:
        body = {"id": f"c{counter}", "client": "page-1", "args": {}, "verb": verb, "node": NODE, "counter": counter}
        return self.sealed({**body, **more})


ALICE, MALLORY = Operator(1), Operator(2)


@pytest.fixture
def bench_settings() -> dict[str, Any]:
    return {"commands": {"operator_keys": [ALICE.setting()]}}


def refused(bench: Bench, client: Client, payload: bytes, verb: str = "restart") -> str:
    """Send it; the code it was refused with."""
    before = bench.commands.status.refused
    client.send(verb, payload)
    bench.until(lambda: bench.commands.status.refused == before + 1, "refused")
    for _ in range(5):
        bench.step()
    return str(bench.commands._reader.commands(1)[0].code)


def test_a_signed_command_is_executed_and_its_counter_is_on_disk_before(bench: Bench, client: Client) -> None:
    client.send("restart", ALICE.command("restart", 7))
    bench.until(lambda: client.answers("c7"))
    assert client.answers("c7")[0]["ok"]
    assert len(bench.restarts) == 1
    assert json.loads((bench.directory / COUNTERS_NAME).read_bytes()) == {"alice": 7}


def test_unsigned_forged_foreign_reordered_and_replayed_commands_are_refused(bench: Bench, client: Client) -> None:
    client.send("ping", ALICE.command("ping", 10))
    bench.until(lambda: client.answers("c10"))
    good = ALICE.command("restart", 11)
    tampered = good.replace(b"page-1", b"page-2")
    plain = json.dumps({"id": "x", "client": "page-1"}).encode()
    assert refused(bench, client, plain) == "unsigned"
    assert refused(bench, client, MALLORY.command("restart", 11)) == "bad-signature"
    assert refused(bench, client, tampered) == "bad-signature"
    assert refused(bench, client, ALICE.command("restart", 11, node="ward-12/exit")) == "foreign"
    assert refused(bench, client, ALICE.command("ping", 11)) == "foreign"
    assert refused(bench, client, ALICE.command("restart", 10)) == "replayed"
    assert refused(bench, client, ALICE.command("restart", 9)) == "replayed"
    assert refused(bench, client, ALICE.command("restart", 12, expires="2020-01-01T00:00:00Z")) == "expired"
    assert refused(bench, client, ALICE.sealed({"counter": 13})) == "invalid"
    assert refused(bench, client, b'{"command": "{", "signature": "%%"}') == "bad-signature"
    assert not bench.restarts
    client.send("restart", good)
    bench.until(lambda: bench.restarts)
    assert refused(bench, client, good) == "replayed"
    assert len(bench.restarts) == 1


def test_the_counter_survives_restarts(bench: Bench, client: Client) -> None:
    message = ALICE.command("restart", 5)
    client.send("restart", message)
    bench.until(lambda: client.answers("c5"))
    bench.commands.close()
    bench.commands = bench.new_commands()
    assert refused(bench, client, message) == "replayed"
    assert len(bench.restarts) == 1


def test_a_counter_that_cannot_be_read_lets_nothing_in(bench: Bench, client: Client) -> None:
    (bench.directory / COUNTERS_NAME).write_bytes(b'{"alice": "7"')
    bench.commands.close()
    bench.commands = bench.new_commands()
    assert bench.commands.status.trouble
    assert refused(bench, client, ALICE.command("restart", 100)) == "unavailable"
    assert not bench.restarts


def test_settings_have_to_be_signed_too(bench: Bench, client: Client) -> None:
    from agent.admission import Desired
    from agent.mailboxes import RawCommand
    from agent.requests import ErrorBody

    admission = admission_of(bench.settings)

    def looked_at(payload: bytes) -> Desired | ErrorBody:
        return admission.desired(RawCommand("config/desired", payload, len(payload), retained=True))

    body = {"rev": 3, "config": {}, "verb": "config/desired", "node": NODE}
    assert looked_at(ALICE.sealed(body)) == Desired(3, {})
    for payload, code in (
        (json.dumps({"rev": 3, "config": {}}).encode(), "unsigned"),
        (MALLORY.sealed(body), "bad-signature"),
        (ALICE.sealed({**body, "node": "ward-12/exit"}), "foreign"),
    ):
        found = looked_at(payload)
        assert isinstance(found, ErrorBody)
        assert found.code == code


def test_a_second_operator_has_a_counter_of_their_own(shared_broker: Mosquitto, tmp_path: Path) -> None:
    bob = Operator(3)
    keys = [ALICE.setting(), bob.setting("bob")]
    bench = Bench(tmp_path / "two", shared_broker.port, commands={"operator_keys": keys})
    bench.connect()
    client = Client(shared_broker.port, bench)
    client.send("ping", ALICE.command("ping", 50))
    client.send("ping", bob.command("ping", 2))
    bench.until(lambda: client.answers("c50") and client.answers("c2"))
    assert bench.commands.status.accepted == 2
    client.close()
    bench.close()
    assert client.of(f"{BASE}/rsp/page-1")


def test_without_cryptography_the_node_says_so_and_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"camera-agent\[signed\]"):
        admission_of(bench.settings)
