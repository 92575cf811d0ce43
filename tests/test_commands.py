"""Commands over a real broker: what is executed, what is refused, and that nothing is done twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from broker import Mosquitto, requires_mosquitto
from command_fixtures import BASE, Bench, Client
from link_fixtures import ulid

from agent.admission import Command
from agent.cli import main
from agent.jobs import CHUNK_BYTES, Transfer
from agent.mailboxes import ChunkFate
from agent.requests import ClipGetArgs

pytestmark = requires_mosquitto


def codes(bench: Bench) -> list[str]:
    bench.until(lambda: not bench.mail.errands.to_storage.is_full)
    for _ in range(5):
        bench.step()
    return [row.code for row in bench.commands._reader.commands(1000)]


def test_ping_is_answered_and_written_down(bench: Bench, client: Client) -> None:
    answer = client.ask("ping")
    assert answer["ok"]
    assert answer["result"]["boot_id"] == bench.clock.boot_id
    assert codes(bench) == ["ok"]


def test_a_response_topic_of_mqtt_5_is_honoured_below_rsp_only(bench: Bench, client: Client) -> None:
    body = json.dumps({"id": "a", "client": "page-1"}).encode()
    client.send("ping", body, response_topic=f"{BASE}/rsp/other", correlation=b"\x00\xff")
    bench.until(lambda: client.of("/rsp/other"))
    body = json.dumps({"id": "b", "client": "page-1"}).encode()
    client.send("ping", body, response_topic=f"{BASE}/state")
    bench.until(lambda: client.answers("b"))
    assert not client.answers("a")


def test_the_same_id_twice_gives_the_same_answer_also_after_a_restart(
    bench: Bench, client: Client, shared_broker: Mosquitto, tmp_path: Path
) -> None:
    body = json.dumps({"id": "once", "client": "page-1"}).encode()
    client.send("test-event", body)
    bench.until(lambda: len(client.answers("once")) == 1)
    client.send("test-event", body)
    bench.until(lambda: len(client.answers("once")) == 2)
    bench.commands.close()
    bench.commands = bench.new_commands()
    client.send("test-event", body)
    bench.until(lambda: len(client.answers("once")) == 3)
    assert len({json.dumps(answer) for answer in client.answers("once")}) == 1
    bench.until(lambda: client.of("/event", live=True))
    assert len(client.of("/event", live=True)) == 1
    assert bench.commands.status.accepted == 0


def test_a_command_whose_end_was_cut_off_is_not_begun_again(bench: Bench, client: Client) -> None:
    client.send("test-event", json.dumps({"id": "cut", "client": "page-1"}).encode())
    while bench.commands.status.accepted == 0:
        bench.link.step(0.01)
        bench.commands.step(0)
    bench.storage.step(0)  # `begun` is durable; the power goes before the rest
    bench.mail.errands.to_commands.take_all()
    bench.commands = bench.new_commands()
    client.send("test-event", json.dumps({"id": "cut", "client": "page-1"}).encode())
    bench.until(lambda: client.answers("cut"))
    assert client.answers("cut")[0]["error"]["code"] == "interrupted"
    assert not client.of("/event")


def deep(depth: int) -> bytes:
    return b'{"id": "x", "client": "page-1", "args": ' + b"[" * depth + b"]" * depth + b"}"


BAD = {
    "expired": (b'{"id": "x", "client": "page-1", "expires": "2020-01-01T00:00:00Z"}', "expired"),
    "no JSON": (b"restart now", "malformed"),
    "empty": (b"", "malformed"),
    "not UTF-8": (b'{"id": "\xff", "client": "page-1"}', "malformed"),
    "NaN": (b'{"id": "x", "client": "page-1", "args": {"width": NaN}}', "malformed"),
    "1e400": (b'{"id": "x", "client": "page-1", "args": {"fps": 1e400}}', "malformed"),
    "huge number": (b'{"id": "x", "client": "page-1", "args": {"n": ' + b"9" * 5000 + b"}}", "malformed"),
    "a key twice": (b'{"id": "x", "id": "y", "client": "page-1"}', "malformed"),
    "too deep": (deep(30), "malformed"),
    "very deep": (deep(30_000), "malformed"),
    "half a character": (b'{"id": "x", "client": "page-1", "args": {"a": "\\ud800"}}', "malformed"),
    "too large": (b'{"id": "x", "client": "page-1", "args": {"a": "' + b"a" * 66_000 + b'"}}', "too-large"),
    "a list": (b"[1, 2]", "invalid"),
    "no id": (b'{"client": "page-1"}', "invalid"),
    "id with a wildcard": (b'{"id": "+", "client": "page-1"}', "invalid"),
    "client with a slash": (b'{"id": "x", "client": "../cmd/restart"}', "invalid"),
    "unknown field": (b'{"id": "x", "client": "page-1", "sudo": true}', "invalid"),
    "unknown argument": (b'{"id": "x", "client": "page-1", "args": {"force": true}}', "invalid"),
}


@pytest.mark.parametrize(("payload", "code"), BAD.values(), ids=BAD)
def test_what_is_not_right_is_refused_counted_written_down_and_not_executed(
    bench: Bench, client: Client, payload: bytes, code: str
) -> None:
    client.send("restart", payload)
    bench.until(lambda: bench.commands.status.refused == 1, "refused")
    assert codes(bench) == [code]
    assert not bench.restarts
    assert bench.commands.status.accepted == 0
    assert bench.commands.status.unlisted == 0


def test_a_refusal_names_the_place(bench: Bench, client: Client) -> None:
    error = client.ask("clip.get", {"clip_id": ulid(1), "offset": -1})["error"]
    assert (error["code"], error["pointer"]) == ("invalid", "/args/offset")
    error = client.ask("clip.get", {"clip_id": "../../etc/passwd"})["error"]
    assert (error["code"], error["pointer"]) == ("invalid", "/args/clip_id")
    assert client.ask("shutdown")["error"]["code"] == "unknown-verb"


def test_a_retained_command_is_refused_when_it_is_sent_and_at_each_connection(
    bench: Bench, client: Client, shared_broker: Mosquitto, tmp_path: Path
) -> None:
    client.send("restart", json.dumps({"id": "r", "client": "page-1"}).encode(), retain=True)
    bench.until(lambda: bench.commands.status.refused == 1)
    other = Bench(tmp_path / "other", shared_broker.port)
    try:
        other.until(lambda: other.commands.status.refused == 1)
        assert codes(other) == ["retained"]
        assert not bench.restarts
        assert not other.restarts
    finally:
        other.close()
        client.say(f"{BASE}/cmd/restart", b"", retain=True)


def test_commands_that_the_settings_do_not_allow_are_refused(shared_broker: Mosquitto, tmp_path: Path) -> None:
    bench = Bench(tmp_path, shared_broker.port, commands={"allow": ["ping", "clip.*"]})
    bench.connect()
    client = Client(shared_broker.port, bench)
    assert client.ask("ping")["ok"]
    assert client.ask("restart")["error"]["code"] == "forbidden"
    assert client.ask("clip.erase", {"clip_id": ulid(1)})["error"]["code"] == "not-found"
    assert not bench.restarts
    client.close()
    bench.close()


def test_a_flood_is_answered_busy_and_the_node_goes_on(bench: Bench, client: Client) -> None:
    for _ in range(60):
        client.request("ping")
    bench.until(lambda: bench.commands.status.accepted + bench.commands.status.refused >= 20)

    def heard() -> int:
        status = bench.commands.status
        return status.accepted + status.refused + status.dropped

    bench.until(lambda: heard() == 60, "all were heard")
    assert client.ask("ping")["ok"]


def test_events_and_clips_are_listed_page_by_page_newest_first(bench: Bench, client: Client) -> None:
    for number in range(1, 6):
        bench.add_clip(number, b"x" * number)
        bench.add_event(number)
    bench.storage.step(0)
    first = client.ask("clips.list", {"limit": 3})["result"]
    assert [clip["bytes"] for clip in first["clips"]] == [5, 4, 3]
    assert first["clips"][0]["event_ids"] == [ulid(505)]
    second = client.ask("clips.list", {"limit": 3, "cursor": first["next"]})["result"]
    assert [clip["bytes"] for clip in second["clips"]] == [2, 1]
    assert second["next"] is None
    events = client.ask("events.list", {"limit": 2})["result"]["events"]
    assert [event["id"] for event in events] == [ulid(5), ulid(4)]
    assert client.ask("events.list", {"to": "2020-01-01T00:00:00Z"})["result"]["events"] == []
    # Beyond what 64 bits of nanoseconds hold.
    assert client.ask("events.list", {"to": "9999-12-31T23:59:59Z"})["result"]["events"]
    assert client.ask("clips.list", {"from": "0001-01-01T00:00:00+23:59"})["ok"]
    assert client.ask("events.list", {"from": "2020-01-01T00:00:00+07:00"})["result"]["events"]


def test_a_clip_comes_in_small_chunks_and_whole(bench: Bench, client: Client) -> None:
    content = bytes(range(256)) * 400
    clip = bench.add_clip(1, content)
    answer = client.ask("clip.get", {"clip_id": clip.id})
    chunks = client.chunks(answer["id"])
    assert [offset for offset, _ in chunks] == list(range(0, len(content), 16_384))
    assert b"".join(piece for _, piece in chunks) == content
    assert answer["result"]["bytes"] == len(content)
    assert answer["result"]["sha256"] == hashlib.sha256(content).hexdigest() == clip.sha256


def test_a_clip_can_be_read_from_any_byte_to_any_byte(bench: Bench, client: Client) -> None:
    content = bytes(range(256)) * 400
    clip = bench.add_clip(1, content)
    answer = client.ask("clip.get", {"clip_id": clip.id, "offset": 20_001, "length": 40_000})
    assert b"".join(piece for _, piece in client.chunks(answer["id"])) == content[20_001:60_001]
    assert answer["result"]["sha256"] == hashlib.sha256(content[20_001:60_001]).hexdigest()
    assert answer["result"]["clip"] == {"id": clip.id, "bytes": len(content), "sha256": clip.sha256}
    assert client.ask("clip.get", {"clip_id": clip.id, "offset": len(content)})["result"]["bytes"] == 0
    error = client.ask("clip.get", {"clip_id": clip.id, "offset": len(content) + 1})["error"]
    assert (error["code"], error["pointer"]) == ("invalid", "/args/offset")


def test_transfers_take_turns_although_one_place_comes_free_at_a_time(bench: Bench) -> None:
    for number in (1, 2, 3):
        command = Command(f"q{number}", "page-1", "clip.get", ClipGetArgs(clip_id=ulid(1)), "rsp/page-1")
        job = Transfer(number, command.id, bench.mail.media, lambda at, n: bytes(n), 0, 20 * CHUNK_BYTES, {})
        assert bench.commands.start(number, command, job) is None
    sent = []
    for _ in range(30):
        bench.commands.step(0)
        chunk = bench.mail.media.take()
        assert chunk is not None
        sent.append(chunk.ticket)
        bench.mail.media.settle(ChunkFate(chunk.ticket))
    assert [sent.count(number) for number in (1, 2, 3)] == [10, 10, 10], sent


def test_a_transfer_that_a_broken_connection_cut_off_is_told_and_resumed(
    bench: Bench, client: Client, shared_broker: Mosquitto
) -> None:
    content = bytes(range(256)) * 8000
    clip = bench.add_clip(1, content)
    request_id = client.request("clip.get", {"clip_id": clip.id})
    bench.until(lambda: bench.commands._jobs, "the transfer begins")
    ((_, job),) = bench.commands._jobs.values()
    assert isinstance(job, Transfer)
    bench.until(lambda: job._next >= 5 * CHUNK_BYTES)
    bench.link._media._connection.close(politely=False)  # type: ignore[union-attr]
    bench.until(lambda: client.answers(request_id))
    assert client.answers(request_id)[0]["error"]["code"] == "interrupted"
    have = b"".join(dict(client.chunks(request_id)).values())
    assert have == content[: len(have)]
    bench.let_pass(60)
    rest = client.ask("clip.get", {"clip_id": clip.id, "offset": len(have)})
    assert have + b"".join(piece for _, piece in client.chunks(rest["id"])) == content


def test_a_clip_is_protected_released_and_erased(bench: Bench, client: Client) -> None:
    clip = bench.add_clip(1)
    path = bench.directory / "clips" / clip.file
    assert client.ask("clip.protect", {"clip_id": clip.id})["ok"]
    assert client.ask("clips.list")["result"]["clips"][0]["protected"]
    assert client.ask("clip.erase", {"clip_id": clip.id})["error"]["code"] == "protected"
    assert path.exists()
    assert client.ask("clip.release", {"clip_id": clip.id})["ok"]
    assert client.ask("clip.erase", {"clip_id": clip.id})["ok"]
    assert not path.exists()
    assert client.ask("clip.erase", {"clip_id": clip.id})["error"]["code"] == "not-found"
    assert client.ask("clips.list")["result"]["clips"] == []


def test_what_was_asked_is_shown_on_the_node(
    bench: Bench, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = bench.add_clip(1)
    client.ask("clip.protect", {"clip_id": clip.id})
    client.ask("clip.get", {"clip_id": "\x1b[2J"})
    for _ in range(5):
        bench.step()
    assert main(["clips", "commands", "--directory", str(bench.directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ok             clip.protect of page-1" in lines[0]
    assert clip.id in lines[0]
    assert "invalid        clip.get of page-1" in lines[1]


def test_restart_is_answered_and_asked_for_once(bench: Bench, client: Client) -> None:
    assert client.ask("restart")["ok"]
    assert len(bench.restarts) == 1


def test_rows_of_the_outbox_are_replayed_to_who_asked_only(bench: Bench, client: Client) -> None:
    for number in range(1, 8):
        bench.add_event(number)
    bench.storage.step(0)
    bench.until(lambda: len(client.of("/event", live=True)) == 7)
    answer = client.ask("replay", {"from_seq": 3, "to_seq": 1000})
    parts = [json.loads(m.payload)["part"] for m in client.of("/rsp/page-1") if b'"part"' in m.payload]
    assert [part["seq"] for part in parts] == [3, 4, 5, 6, 7]
    sent = {m["seq"]: m for m in (json.loads(each.payload) for each in client.of("/event", live=True))}
    assert all({**part["message"], "late": False} == sent[part["seq"]] for part in parts)
    assert answer["result"]["sent"] == 5
    assert (answer["result"]["missing"], answer["result"]["next_seq"]) == ([], None)
    assert len(client.of("/event", live=True)) == 7
    assert client.ask("replay", {"from_seq": 5, "to_seq": 2})["error"]["pointer"] == "/args/to_seq"
