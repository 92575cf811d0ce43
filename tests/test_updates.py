"""`update` over MQTT: the package that root's updater finds is the one that was signed, or there is none."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from broker import Mosquitto, fake_broker, requires_mosquitto
from command_fixtures import Bench, Client
from release_fixtures import key_pair, package

from agent.disk import Disk
from agent.release import is_due
from agent.requests import UpdateReported
from agent.updates import Places, Updates

PAYLOAD = random.Random(3).randbytes(700_000)
GOOD = package("1.2.3", "any", payload=PAYLOAD)
pytestmark = requires_mosquitto


class NoRoom(Disk):
    """The card is full before the second piece of a package."""

    pieces = 0

    @contextmanager
    def guard(self, operation: str, path: Path) -> Iterator[None]:
        with super().guard(operation, path):
            if operation == "write" and path.name.endswith(".package.part"):
                self.pieces += 1
                if self.pieces > 1:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield


class Shop:
    """A server of packages: one answer per connection, the last for all that follow. asked: the requests' heads."""

    def __init__(self, *answers: Callable[[int], bytes]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def serve(self, connection: socket.socket, number: int) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65_536)
            if not piece:
                return
            head += piece
        self.asked.append(head.decode())
        ranges = [line for line in head.decode().splitlines() if line.lower().startswith("range: bytes=")]
        start = int(ranges[0][len("range: bytes=") : -1]) if ranges else 0
        connection.sendall(self._answers[min(number, len(self._answers) - 1)](start))


def whole(content: bytes) -> Callable[[int], bytes]:
    """A server that knows ranges."""

    def answer(start: int) -> bytes:
        status = "206 Partial Content" if start else "200 OK"
        return f"HTTP/1.1 {status}\r\nContent-Length: {len(content) - start}\r\n\r\n".encode() + content[start:]

    return answer


def cut(content: bytes, after: int) -> Callable[[int], bytes]:
    """It breaks off so many bytes further on."""
    return lambda start: whole(content)(start)[: len(whole(content)(start)) - len(content) + start + after]


def always_whole(content: bytes) -> Callable[[int], bytes]:
    """A server that knows no ranges."""
    return lambda _: whole(content)(0)


def status(line: str, *more: str) -> Callable[[int], bytes]:
    return lambda _: "\r\n".join([f"HTTP/1.1 {line}", "Content-Length: 0", *more, "", ""]).encode()


class Site:
    """A node that scripts/install put there, and one who commands it."""

    def __init__(self, broker: Mosquitto, directory: Path, origin: str, disk: Disk | None = None) -> None:
        self.places = Places(directory / "opt", directory / "incoming", directory / "release.pub")
        for path in (self.places.base, self.places.incoming):
            path.mkdir(parents=True, exist_ok=True)
        self.places.keys.write_bytes(key_pair(1)[1])
        self.origin = origin
        self.bench = Bench(directory / "node", broker.port, disk=disk, commands={"package_hosts": [origin]})
        self.serve()
        self.bench.connect()
        self.client = Client(broker.port, self.bench)

    def serve(self) -> None:
        """A program that has just started."""
        bench = self.bench
        bench.commands.serve_updates(
            Updates(
                bench.settings,
                bench.statuses,
                bench.clock,
                post=bench.commands.errand,
                places=self.places,
                installed="1.2.2",
            )
        )

    def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        """Its answer; back-off is not waited for."""
        request_id = self.client.request(verb, args)

        def is_answered() -> bool:
            # Only between two tries: how soon a server answers is the test machine's affair.
            if any(job._connection is None for _, job in self.bench.commands._jobs.values()):  # type: ignore[attr-defined]
                self.bench.clock.move(0.5)
            return bool(self.client.answers(request_id))

        self.bench.until(is_answered, f"an answer to {verb}")
        return self.client.answers(request_id)[0]

    def update(self, **args: Any) -> dict[str, Any]:
        return self.ask("update", **{"version": "1.2.3", "url": f"{self.origin}/p.package", **args})

    def said(self) -> list[UpdateReported]:
        return [UpdateReported.model_validate_json(message.payload) for message in self.client.of("/entrance/update")]

    def says(self, condition: Callable[[UpdateReported], bool], what: str) -> UpdateReported:
        def is_said() -> bool:
            self.bench.pass_time(0.5)
            return any(condition(said) for said in self.said()[-1:])

        self.bench.until(is_said, what)
        return self.said()[-1]

    def incoming(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.places.incoming.iterdir()}

    def root_tells(self, number: int, verdict: str, why: str) -> None:
        """As agent/trial.py does."""
        tree = {"n": number, "version": "1.2.3", "verdict": verdict, "why": why, "time": "2026-11-22T03:15:07.000Z"}
        (self.places.base / "outcome.json").write_text(json.dumps(tree))

    def close(self) -> None:
        self.client.close()
        self.bench.close()


@pytest.fixture
def site(shared_broker: Mosquitto, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    opened: list[Site] = []

    def make(port: int, disk: Disk | None = None) -> Site:
        opened.append(Site(shared_broker, tmp_path / f"site-{len(opened)}", f"http://127.0.0.1:{port}", disk))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_a_package_is_fetched_verified_and_left_for_root_under_its_final_name(site: Callable[..., Site]) -> None:
    shop = Shop(whole(GOOD))
    with fake_broker(shop.serve) as port:
        node = site(port)
        before = node.says(lambda said: said.possible, "what runs")
        assert (before.installed, before.latest, before.phase, before.tries) == ("1.2.2", "1.2.2", "idle", 0)
        answer = node.update()
        assert answer["result"] == {"state": "handed-over", "version": "1.2.3", "bytes": len(GOOD)}
        assert node.incoming() == {"ward-12.entrance.package": GOOD}
        assert node.says(lambda said: said.phase == "handed-over", "that root has it").tries == 1
        again = node.update()
        assert again["error"]["code"] == "busy"
        # Root takes it and tries it; the old version, which is running again, reads how it went.
        node.root_tells(1, "failed", "it never said READY")
        last = node.says(lambda said: said.phase == "idle", "how it ended").last
        assert last is not None
        assert (last.verdict, last.why) == ("failed", "it never said READY")
        assert len(shop.asked) == 1


def test_a_trial_is_said_to_be_one(site: Callable[..., Site]) -> None:
    with fake_broker(Shop(whole(GOOD)).serve) as port:
        node = site(port)
        (node.places.base / "trial.json").write_text("{}")
        node.says(lambda said: said.phase == "on-trial", "the trial")
        assert node.update()["error"]["code"] == "busy"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (package("1.2.3", "any", key=2, payload=PAYLOAD), "none of this node's release keys"),
        (package("1.2.4", "any", payload=PAYLOAD), "it is 1.2.4, not 1.2.3"),
        (package("1.2.1", "any", payload=PAYLOAD), "not newer"),
        (package("1.2.3", "riscv64", payload=PAYLOAD), "it is for riscv64"),
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "sha256 does not match"),
        (GOOD[:500_000] + bytes(10) + GOOD[500_010:], "sha256 does not match"),
        (GOOD + b"more", "something follows"),
        (b"<html>404</html>" * 1000, "not a camera-agent package"),
        (random.Random(1).randbytes(20_000), "not a camera-agent package"),
    ],
)
def test_a_bad_package_is_refused_in_words_and_nothing_of_it_stays(
    site: Callable[..., Site], content: bytes, words: str
) -> None:
    with fake_broker(Shop(whole(content)).serve) as port:
        node = site(port)
        answer = node.update()
        assert answer["error"]["code"] == "refused"
        assert words in answer["error"]["detail"]
        node.says(lambda said: said.phase == "idle", "that nothing is under way")
        node.bench.until(lambda: not node.incoming(), "an empty directory")


def test_a_node_without_a_release_key_takes_nothing(site: Callable[..., Site]) -> None:
    with fake_broker(Shop(whole(GOOD)).serve) as port:
        node = site(port)
        node.places.keys.unlink()
        assert "no release key" in node.update()["error"]["detail"]


def test_a_download_that_breaks_goes_on_where_it_broke(site: Callable[..., Site]) -> None:
    shop = Shop(cut(GOOD, 300_000), status("503 Busy"), cut(GOOD, 300_000), whole(GOOD))
    with fake_broker(shop.serve) as port:
        node = site(port)
        assert node.update()["result"]["bytes"] == len(GOOD)
        assert node.incoming() == {"ward-12.entrance.package": GOOD}
    starts = [request.lower().partition("range: bytes=")[2].partition("-")[0] for request in shop.asked]
    assert starts == ["", "300000", "300000", "600000"]


def test_what_a_power_cut_left_of_a_download_is_no_part_of_the_next(site: Callable[..., Site]) -> None:
    with fake_broker(Shop(whole(GOOD)).serve) as port:
        node = site(port)
        (node.places.incoming / ".ward-12.entrance.package.part").write_bytes(GOOD[:300_000])
        assert node.update()["result"]["bytes"] == len(GOOD)
        assert node.incoming() == {"ward-12.entrance.package": GOOD}


def test_a_server_that_knows_no_ranges_serves_too(site: Callable[..., Site]) -> None:
    with fake_broker(Shop(cut(GOOD, 400_000), always_whole(GOOD)).serve) as port:
        node = site(port)
        assert node.update()["result"]["bytes"] == len(GOOD)
        assert node.incoming() == {"ward-12.entrance.package": GOOD}


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (status("404 Not Found"), "failed", "answered 404"),
        (status("302 Found", "Location: http://127.0.0.1:1/"), "forbidden", "redirects are not followed"),
        (status("500 Oh"), "failed", "tried 5 times"),
        (lambda _: b"", "failed", "tried 5 times"),
    ],
)
def test_a_server_that_does_not_serve_is_given_up(
    site: Callable[..., Site], answer: Callable[[int], bytes], code: str, words: str
) -> None:
    with fake_broker(Shop(answer).serve) as port:
        error = site(port).update()["error"]
    assert error["code"] == code
    assert words in error["detail"]


def test_what_was_offered_is_shown_over_a_restart_and_installed_without_naming_it(site: Callable[..., Site]) -> None:
    with fake_broker(Shop(whole(GOOD)).serve) as port:
        node = site(port)
        assert node.ask("update")["error"]["code"] == "not-found"
        offer = {"version": "1.2.3", "url": f"{node.origin}/p.package", "notes": "Sửa lỗi khi mất điện"}
        assert node.ask("update.offer", **offer)["result"] == {"version": "1.2.3"}
        node.bench.commands = node.bench.new_commands()
        node.serve()
        shown = node.says(lambda said: said.latest == "1.2.3", "the offer")
        assert shown.notes == "Sửa lỗi khi mất điện"
        assert node.ask("update")["result"]["state"] == "handed-over"


def test_nothing_is_fetched_that_need_not_or_may_not_be(site: Callable[..., Site]) -> None:
    called: list[int] = []
    with fake_broker(lambda connection, number: called.append(number)) as port:
        node = site(port)
        assert node.update(version="1.2.2")["result"] == {"state": "installed", "version": "1.2.2"}
        assert node.update(version="1.2.1")["error"]["code"] == "refused"
        assert node.update(url="http://127.0.0.1:1/p")["error"]["code"] == "forbidden"
        assert node.ask("update.offer", version="1.2.3", url="http://127.0.0.1:1/p")["error"]["code"] == "forbidden"
        percent = next(p for p in (1, 99) if not is_due("ward-12", "entrance", "1.2.3", p))
        assert node.update(percent=percent)["result"] == {"state": "not-due", "version": "1.2.3"}
        node.places.incoming.rmdir()
        assert node.update()["error"]["code"] == "unavailable"
    assert called == []


def test_the_same_command_twice_fetches_once(site: Callable[..., Site]) -> None:
    shop = Shop(whole(GOOD))
    with fake_broker(shop.serve) as port:
        node = site(port)
        body = {"id": "one", "client": "page-1", "args": {"version": "1.2.3", "url": f"{node.origin}/p"}}
        for count in (1, 2):
            node.client.send("update", json.dumps(body).encode())
            node.bench.until(lambda count=count: len(node.client.answers("one")) == count, "an answer")
        assert node.client.answers("one")[0] == node.client.answers("one")[1]
    assert len(shop.asked) == 1


def test_a_disk_that_fills_up_leaves_no_half_package(site: Callable[..., Site]) -> None:
    with fake_broker(Shop(whole(GOOD)).serve) as port:
        node = site(port, NoRoom())
        error = node.update()["error"]
        assert error["code"] == "unavailable"
        assert "the disk is full" in error["detail"]
        node.bench.until(lambda: not node.incoming(), "an empty directory")
