"""Packages and trials: nothing that is damaged, older, foreign or unsigned is let in; a cut trial goes back."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from release_fixtures import PAYLOAD, key_pair, package

from agent.cli import main
from agent.disk import Disk
from agent.errors import AgentError, CommandError
from agent.release import MAGIC, PackageRefusedError, admit, check_member, is_due, version_of
from agent.sdnotify import StatusLine
from agent.trial import MAX_ATTEMPTS, Judge, Releases, Seen, Wanted


def signed(about: dict[str, object], payload: bytes = PAYLOAD) -> bytes:
    """A package whose head says what seal() would never say, rightly signed."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    head = MAGIC + json.dumps(about).encode() + b"\n"
    return head + base64.b64encode(key.sign(head)) + b"\n" + payload


def head_of(content: bytes) -> dict[str, object]:
    tree: dict[str, object] = json.loads(content.split(b"\n")[1])
    return tree


def offer(content: bytes, *, keys: bytes = key_pair(1)[1], trusted: str = "1.2.2", older: bool = False) -> bytes:
    payload = io.BytesIO()
    admit(io.BytesIO(content), payload, public_keys_pem=keys, trusted=trusted, machine="aarch64", older=older)
    return payload.getvalue()


def test_a_package_that_was_sealed_is_let_in_whole() -> None:
    assert offer(package()) == PAYLOAD
    assert offer(package(machine="any")) == PAYLOAD
    assert offer(package(), trusted="1.3.0", older=True) == PAYLOAD


def test_any_of_several_release_keys_may_sign_so_that_keys_can_be_changed() -> None:
    both = key_pair(2)[1] + b"a comment\n" + key_pair(1)[1]
    assert offer(package(), keys=both) == PAYLOAD
    assert offer(package(key=2), keys=both) == PAYLOAD


def damage(rng: random.Random) -> bytes:
    """A good package with one thing wrong."""
    good = package()
    kind = rng.randrange(9)
    if kind == 0:  # one bit, anywhere
        at = rng.randrange(len(good))
        return good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :]
    if kind == 1:
        return good[: rng.randrange(len(good))]
    if kind == 2:
        return good + rng.randbytes(rng.randrange(1, 50))
    if kind == 3:
        at = rng.randrange(len(good))
        return good[:at] + rng.randbytes(rng.randrange(1, 40)) + good[at + rng.randrange(40) :]
    if kind == 4:
        return package(f"{rng.randrange(2)}.{rng.randrange(3)}.{rng.randrange(3)}")
    if kind == 5:
        return package(key=rng.randrange(2, 20))
    if kind == 6:
        return package(machine=rng.choice(["x86_64", "armv7l", "riscv64"]))
    if kind == 7:  # a good head before another payload
        return good[: -len(PAYLOAD)] + rng.randbytes(len(PAYLOAD))
    magic, about, _, payload = good.split(b"\n", 3)
    return b"\n".join([magic, about, base64.b64encode(rng.randbytes(64)), payload])


def test_of_a_thousand_bad_packages_none_is_installed() -> None:
    rng = random.Random(20261122)
    refused = 0
    for _ in range(1000):
        bad = damage(rng)
        if bad == package():
            bad = bad[:-1]
        with pytest.raises(PackageRefusedError):
            offer(bad)
        refused += 1
    assert refused == 1000


@given(st.binary(max_size=400))
def test_whatever_is_offered_is_refused_in_one_line_or_let_in(noise: bytes) -> None:
    for content in (noise, MAGIC + noise, b"\n".join([*package().split(b"\n")[:2], noise])):
        with pytest.raises(PackageRefusedError) as refusal:
            offer(content)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "1.2.2"}, "not newer"),
        ({"version": "1.2"}, "not of the form"),
        ({"version": "1.2.3\n"}, "not of the form"),
        ({"version": 3}, "version should be str"),
        ({"name": "other-agent"}, "a package of 'other-agent'"),
        ({"machine": "x86_64"}, "this node is aarch64"),
        ({"bytes": -1}, "-1 bytes"),
        ({"bytes": 2**40}, "bytes"),
        ({"bytes": True}, "bytes should be int"),
        ({"bytes": len(PAYLOAD) - 1}, "something follows"),
        ({"bytes": len(PAYLOAD) + 1}, "cut off"),
        ({"sha256": "0" * 64}, "sha256 does not match"),
        ({"extra": 1}, "not understood"),
    ],
)
def test_also_what_is_rightly_signed_must_make_sense(change: dict[str, object], words: str) -> None:
    with pytest.raises(PackageRefusedError, match=words):
        offer(signed(head_of(package()) | change))


def test_a_node_without_a_release_key_installs_nothing() -> None:
    for keys in (b"", b"-----BEGIN PUBLIC KEY-----\nbm8=\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(PackageRefusedError, match="release key"):
            offer(package(), keys=keys)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/etc/passwd", tarfile.REGTYPE),
        ("../x", tarfile.REGTYPE),
        ("a/../../x", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("hard", tarfile.LNKTYPE),
        ("device", tarfile.CHRTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ],
)
def test_an_archive_can_put_nothing_outside_its_place(name: str, kind: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.type = kind
    with pytest.raises(PackageRefusedError, match="may not be"):
        check_member(member)


def test_versions_are_ordered_by_number() -> None:
    assert version_of("1.10.0") > version_of("1.9.99") > version_of("0.99.99")


def test_a_staged_roll_out_reaches_its_share_and_only_grows() -> None:
    nodes = [f"cam-{number}" for number in range(2000)]
    for percent in (0, 5, 25, 100):
        share = sum(is_due("ward-12", node, "1.2.3", percent) for node in nodes) / len(nodes) * 100
        assert abs(share - percent) < 3
    first = {node for node in nodes if is_due("ward-12", node, "1.2.3", 10)}
    assert first <= {node for node in nodes if is_due("ward-12", node, "1.2.3", 30)}
    assert first != {node for node in nodes if is_due("ward-12", node, "1.2.4", 10)}


# -- root's half of what the agent fetched


def take(tmp_path: Path, incoming: Path, *more: str) -> int:
    base = new_base(tmp_path) if not (tmp_path / "base").exists() else tmp_path / "base"
    (tmp_path / "keys").write_bytes(key_pair(1)[1])
    places = ["--incoming", str(incoming), "--base", str(base), "--keys", str(tmp_path / "keys")]
    return main(["update", *places, *(more or ("--verify-only",))])


def outcome(base: Path) -> dict[str, object]:
    tree: dict[str, object] = json.loads((base / "outcome.json").read_bytes())
    return tree


def test_the_agent_can_read_why_root_refused_its_package(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for number, (content, words) in enumerate(
        ((package("1.2.3", "any")[:-1], "cut off"), (package("0.9.0", "any"), "not newer")), 1
    ):
        (incoming / "bad.package").write_bytes(content)
        assert take(tmp_path, incoming, "--limit", "1") == 1
        said = outcome(tmp_path / "base")
        assert (said["n"], said["verdict"]) == (number, "refused")
        assert words in str(said["why"])
    assert (tmp_path / "base/outcome.json").stat().st_mode & 0o777 == 0o644


def test_a_version_that_failed_its_trial_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    base = new_base(tmp_path)
    releases = Releases(Disk(), base)
    releases.begin("1.1.0")
    releases.give_up("it never said READY")
    assert outcome(base)["verdict"] == "failed"
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "again.package").write_bytes(package("1.1.0", "any"))
    assert take(tmp_path, incoming, "--limit", "1") == 1
    assert outcome(base)["verdict"] == "refused"
    assert "failed its trial: it never said READY" in str(outcome(base)["why"])
    releases.begin("1.1.0", again=True)
    releases.accept()
    assert outcome(base) | {"time": ""} == {"n": 3, "version": "1.1.0", "verdict": "accepted", "why": "", "time": ""}


def test_a_package_that_the_agent_fetched_is_taken_once(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "new.package").write_bytes(package("1.2.3", "any"))
    assert take(tmp_path, incoming) == 0
    assert list(incoming.iterdir()) == []
    (incoming / "bad.package").write_bytes(package("1.2.3", "any")[:-1])
    assert take(tmp_path, incoming) == 1
    assert list(incoming.iterdir()) == []


def test_no_link_that_a_taken_over_agent_lays_is_followed(tmp_path: Path) -> None:
    good = tmp_path / "elsewhere.package"
    good.write_bytes(package("1.2.3", "any"))
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "x.package").symlink_to(good)
    assert take(tmp_path, incoming) == 1
    os.mkfifo(incoming / "y.package")
    assert take(tmp_path, incoming) == 1
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert take(tmp_path, link) == 1
    assert good.exists()


# -- trials


class PowerCut(BaseException):
    """Not an Exception: nothing in the agent may catch it."""


class CutDisk(Disk):
    """The power goes before operation number `at`. durable: the directory as it was at its last sync."""

    def __init__(self, base: Path, at: int | None = None) -> None:
        self.operations = 0
        self.durable = base.with_name(base.name + "-durable")
        self._base, self._at = base, at
        self._keep()

    def _keep(self) -> None:
        shutil.rmtree(self.durable, ignore_errors=True)
        shutil.copytree(self._base, self.durable, symlinks=True)

    @contextmanager
    def guard(self, operation: str, path: Path) -> Iterator[None]:
        if self.operations == self._at:
            raise PowerCut
        self.operations += 1
        with super().guard(operation, path):
            yield
        if operation == "sync directory":
            self._keep()


def new_base(tmp_path: Path, name: str = "base") -> Path:
    base = tmp_path / name
    for version in ("1.0.0", "1.1.0"):
        (base / "releases" / version).mkdir(parents=True)
    (base / "current").symlink_to("releases/1.0.0")
    (base / "trusted").symlink_to("releases/1.0.0")
    return base


def begin_and_accept(releases: Releases) -> None:
    releases.begin("1.1.0")
    releases.accept()


def begin_and_give_up(releases: Releases) -> None:
    releases.begin("1.1.0")
    releases.give_up("no frames")


def begin_and_settle(releases: Releases) -> None:
    releases.begin("1.1.0")
    releases.settle()


@pytest.mark.parametrize("course", [begin_and_accept, begin_and_give_up, begin_and_settle])
@pytest.mark.parametrize("left", ["what was written", "what was synced"])
def test_a_power_cut_at_every_step_of_a_trial_leaves_a_trusted_version_running(
    tmp_path: Path, course: Callable[[Releases], None], left: str
) -> None:
    whole = CutDisk(new_base(tmp_path, "whole"))
    course(Releases(whole, tmp_path / "whole"))
    assert whole.operations > 15
    for at in range(whole.operations):
        base = new_base(tmp_path, f"cut-{at}")
        disk = CutDisk(base, at)
        with pytest.raises(PowerCut):
            course(Releases(disk, base))
        found = Releases(Disk(), base if left == "what was written" else disk.durable)
        before_boot = found.trusted()
        found.settle()
        assert found.current() == found.trusted() == before_boot, f"at operation {at}"
        assert found.current() in (("1.0.0", "1.1.0") if course is begin_and_accept else ("1.0.0",))
        assert found.on_trial() is None
        assert not (found._base / "trial.json").exists()
        assert found.settle() is None, "settled once is settled"
        if found.current() == "1.0.0" and course is begin_and_accept:
            found.begin("1.1.0")  # an interruption is not the version's fault
            found.accept()
            assert found.current() == found.trusted() == "1.1.0"


def test_a_second_cut_while_settling_changes_nothing(tmp_path: Path) -> None:
    for at in range(30):
        base = new_base(tmp_path, f"base-{at}")
        Releases(Disk(), base).begin("1.1.0")
        disk = CutDisk(base, at)
        try:
            Releases(disk, base).settle()
        except PowerCut:
            Releases(Disk(), disk.durable).settle()
            assert Releases(Disk(), disk.durable).current() == "1.0.0"
        else:
            assert at > 8
        Releases(Disk(), base).settle()
        assert Releases(Disk(), base).current() == "1.0.0"


def test_a_version_that_failed_or_was_cut_too_often_is_not_tried_again_by_itself(tmp_path: Path) -> None:
    releases = Releases(Disk(), new_base(tmp_path))
    releases.begin("1.1.0")
    releases.give_up("it never said READY")
    with pytest.raises(CommandError, match="it never said READY"):
        releases.begin("1.1.0")
    releases.begin("1.1.0", again=True)
    releases.settle()
    while releases.tried("1.1.0").attempts < MAX_ATTEMPTS:
        releases.begin("1.1.0")
        releases.settle()
    with pytest.raises(CommandError, match=f"interrupted {MAX_ATTEMPTS} times"):
        releases.begin("1.1.0")


def test_only_one_version_is_on_trial(tmp_path: Path) -> None:
    releases = Releases(Disk(), new_base(tmp_path))
    releases.begin("1.1.0")
    with pytest.raises(AgentError, match=r"1\.1\.0 is on trial"):
        releases.begin("1.1.0")


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"version": 3}', b"\xff"])
def test_a_torn_marker_goes_back_to_the_trusted_version(tmp_path: Path, torn: bytes) -> None:
    base = new_base(tmp_path)
    releases = Releases(Disk(), base)
    releases.begin("1.1.0")
    (base / "trial.json").write_bytes(torn)
    (base / "tried.json").write_bytes(torn)
    releases.settle()
    assert releases.current() == "1.0.0"
    assert not (base / "trial.json").exists()


def seen(t_s: float, *, frames: int = 0, connected: bool = True, ready: bool = True, restarts: int = 0) -> Seen:
    return Seen(t_s, ready, restarts, StatusLine("watching", frames, connected))


QUICK = Wanted(stable_s=5, limit_s=30)


def judged(looks: list[Seen], wanted: Wanted = QUICK) -> str | None:
    judge = Judge(wanted, 0.0)
    return next((verdict for look in looks if (verdict := judge.step(look)) is not None), None)


def test_a_version_is_kept_when_it_was_well_long_enough() -> None:
    assert judged([seen(t, frames=15 * t) for t in range(1, 8)]) == ""
    assert judged([seen(t, frames=15 * t) for t in range(1, 5)]) is None


@pytest.mark.parametrize(
    ("looks", "why"),
    [
        ([seen(t, ready=False) for t in range(40)], "never said READY"),
        ([Seen(t, True, 0, None) for t in range(40)], "no frames"),
        ([seen(t) for t in range(40)], "no frames"),
        ([seen(t, frames=5) for t in range(40)], "no frames"),
        ([seen(t, frames=15 * t, connected=False) for t in range(40)], "broker"),
        ([seen(1, frames=15), seen(2, frames=30, restarts=1)], "ended by itself"),
        ([seen(t, frames=15 * t, connected=t % 4 != 0) for t in range(40)], "30 s|broker"),
    ],
)
def test_a_version_goes_when_something_lacks_in_its_time(looks: list[Seen], why: str) -> None:
    verdict = judged(looks)
    assert verdict
    assert re.search(why, verdict)


def test_a_broker_or_camera_that_was_away_before_is_not_held_against_a_version() -> None:
    looks = [seen(t, connected=False) for t in range(1, 9)]
    assert judged(looks, Wanted(frames=False, broker=False, stable_s=5, limit_s=30)) == ""


def test_the_status_line_is_read_as_it_was_written() -> None:
    line = StatusLine("degraded: [camera] is away; broker: no", 17, False)
    assert StatusLine.parse(str(line)) == line
    assert StatusLine.parse("opening the ledger and recovering clips") is None
