"""Settings over MQTT: whole or not at all, confirmed or taken back, whatever is cut and whoever asks twice."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
from broker import Mosquitto, free_port, requires_mosquitto
from command_fixtures import BASE, Bench, Client
from faulty_disk import FailingDisk, Leaves, RecordingDisk
from hypothesis import given
from hypothesis import strategies as st
from program import camera_agent, write_settings

from agent import configuration
from agent.changes import LIVE, changed, needing_restart
from agent.cli.chosen import chosen_settings, settings_in_force
from agent.cli.run import check_config, configuration_of
from agent.configuration import MAX_STARTS, STATE_NAME, Patch, Problem, State
from agent.desired import Configuring
from agent.disk import Disk
from agent.errands import Errand
from agent.settings import Settings, load_settings

GOOD = {"detection": {"sensitivity": 60}}
BETTER = {"detection": {"sensitivity": 70}}
SLOWER = {"camera": {"fps": 9}}
"""Only a start of the program applies it."""


def fine(_: dict[str, Any]) -> list[Problem]:
    return []


def wanted(state: State, rev: int, config: dict[str, Any]) -> State:
    return configuration.desired(state, Patch(rev, config), fine)[0]


# -- the machine alone


def test_new_settings_are_tried_and_kept_when_they_prove_good() -> None:
    state, verdict = configuration.desired(State(), Patch(1, GOOD), fine)
    assert verdict.status == "pending-restart"
    assert state.in_force.config == GOOD
    assert state.kept.config == {}
    state = configuration.confirmed(configuration.started(state))
    assert (state.kept, state.trial, state.verdict.status) == (Patch(1, GOOD), None, "applied")


def test_settings_that_are_not_confirmed_go_back_and_say_why() -> None:
    kept = configuration.confirmed(configuration.started(wanted(State(), 1, GOOD)))
    state = configuration.given_up(configuration.started(wanted(kept, 2, BETTER)), "no broker")
    assert state.in_force == Patch(1, GOOD)
    assert (state.verdict.rev, state.verdict.status) == (2, "rolled-back")
    assert state.verdict.problems[0].message == "no broker"
    # The retained message is still there: it is not tried again, and its fate is said again.
    again, verdict = configuration.desired(state, Patch(2, BETTER), fine)
    assert (again, verdict.status) == (state, "rolled-back")


def test_settings_that_let_the_program_end_go_back_after_some_starts() -> None:
    state = wanted(State(), 1, GOOD)
    for _ in range(MAX_STARTS):
        state = configuration.started(state)
        assert state.trial is not None
    state = configuration.started(state)
    assert (state.trial, state.verdict.status) == (None, "rolled-back")


def test_of_two_at_once_the_higher_revision_wins_in_either_order() -> None:
    for first, second in (((1, GOOD), (2, BETTER)), ((2, BETTER), (1, GOOD))):
        state = wanted(wanted(State(), *first), *second)
        assert state.in_force == Patch(2, BETTER)
    state = wanted(State(), 2, BETTER)
    _, verdict = configuration.desired(state, Patch(2, GOOD), fine)
    assert (verdict.status, verdict.problems[0].pointer) == ("rejected", "/rev")
    _, verdict = configuration.desired(state, Patch(1, GOOD), fine)
    assert (verdict.status, verdict.problems[0].pointer) == ("rejected", "/rev")


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"commands": {"allow": ["*"]}}, "/config/commands"),
        ({"commands": None}, "/config/commands"),
        ({"node": {"id": "other"}}, "/config/node/id"),
        ({"node": None}, "/config/node/id"),
        ({"clips": {"directory": "/tmp"}}, "/config/clips/directory"),
        ({"mqtt": {"password": "x"}}, "/config/mqtt/password"),
    ],
)
def test_what_would_hand_the_node_over_is_rejected(config: dict[str, Any], pointer: str) -> None:
    state, verdict = configuration.desired(State(), Patch(1, config), fine)
    assert (verdict.status, verdict.problems[0].pointer) == ("rejected", pointer)
    assert state.in_force == Patch()


@given(st.lists(st.sampled_from(["new", "same", "old", "bad", "start", "confirm", "fail"]), max_size=20))
def test_whatever_happens_the_kept_settings_were_confirmed_once_and_the_file_tells_all(steps: list[str]) -> None:
    state, rev, good = State(), 0, {Patch().rev}
    for step in steps:
        if step == "new":
            rev += 1
            state = wanted(state, rev, {"detection": {"sensitivity": rev}})
        elif step == "same":
            state = wanted(state, state.newest.rev or 1, state.newest.config)
            rev = max(rev, state.newest.rev)
        elif step == "old":
            state = wanted(state, 1, {"detection": {"sensitivity": 99}}) if rev > 1 else state
        elif step == "bad":
            rev += 1
            bad = Patch(rev, {"nonsense": 1})
            state, _ = configuration.desired(state, bad, lambda _: [Problem("/config", "no")])
        elif step == "start":
            state = configuration.started(state)
        elif step == "confirm":
            state = configuration.confirmed(state)
            good.add(state.kept.rev)
        else:
            state = configuration.given_up(state, "test")
        if state.kept.config == {}:
            good.add(state.kept.rev)
        assert state.kept.rev in good
        assert state.in_force.config != {"nonsense": 1}
        assert configuration.from_bytes(configuration.to_bytes(state)) == state


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"kept": {}}', b"\xff", b'{"kept": 1, "trial": null}'])
def test_a_state_that_cannot_be_read_is_an_error_and_no_guess(content: bytes) -> None:
    with pytest.raises(ValueError):
        configuration.from_bytes(content)


# -- with the node's own file


def test_errors_name_the_place_in_the_message(tmp_path: Path) -> None:
    path = write_settings(tmp_path, 1883)
    assert check_config(path, {"mqtt": {"port": 70_000}})[0].pointer == "/config/mqtt/port"
    assert check_config(path, {"mqtt": {"prot": 1883}})[0].pointer == "/config/mqtt/prot"
    zone = {"id": "a", "kind": "detect", "polygon": [[0, 0], [1, 0], [1, 2]]}
    assert check_config(path, {"zones": [zone]})[0].pointer == "/config/zones/0/polygon/2/1"
    assert check_config(path, {"detection": {"sensitivity": None}}) == []


def test_a_patch_changes_what_it_names_and_null_means_the_default(tmp_path: Path) -> None:
    path = write_settings(tmp_path, 1883, detection={"sensitivity": 40})
    own = chosen_settings(path)[0]
    (tmp_path / "node").mkdir()
    state = configuration.confirmed(wanted(State(), 1, {"detection": {"sensitivity": None}}))
    (tmp_path / "node" / STATE_NAME).write_bytes(configuration.to_bytes(state))
    chosen = chosen_settings(path)[0]
    assert (own.detection.sensitivity, chosen.detection.sensitivity) == (40, 50)
    assert chosen.detection.quiet_s == own.detection.quiet_s


def test_a_trial_that_no_longer_goes_with_the_file_goes_back_at_the_start(tmp_path: Path) -> None:
    path = write_settings(tmp_path, 1883)
    (tmp_path / "node").mkdir()
    state = wanted(State(), 1, {"clips": {"max_clip_s": 10, "pre_roll_s": 9, "post_roll_s": 9}})
    (tmp_path / "node" / STATE_NAME).write_bytes(configuration.to_bytes(state))
    settings, chosen = chosen_settings(path)
    assert settings.clips.pre_roll_s == 1
    assert chosen.verdict.status == "rolled-back"
    assert configuration.from_bytes((tmp_path / "node" / STATE_NAME).read_bytes()) == chosen


def test_who_only_looks_sees_the_settings_in_force_and_counts_no_start(tmp_path: Path) -> None:
    path = write_settings(tmp_path, 1883)
    assert settings_in_force(path) == (chosen_settings(path)[0], "")
    (tmp_path / "node").mkdir()
    file = tmp_path / "node" / STATE_NAME
    file.write_bytes(configuration.to_bytes(wanted(State(), 7, {"node": {"name": "Cửa sau"}})))
    before = file.read_bytes()
    settings, words = settings_in_force(path)
    assert (settings.node.name, words) == ("Cửa sau", "with revision 7 of config/desired")
    file.write_bytes(configuration.to_bytes(wanted(State(), 8, {"node": {"name": 5}})))
    settings, words = settings_in_force(path)
    assert settings.node.name == "Cửa chính"
    assert "without revision 8" in words
    file.write_bytes(before)
    assert (
        camera_agent("check", "--config", path).stdout.splitlines()[0].endswith("with revision 7 of config/desired")
    )
    assert file.read_bytes() == before


def test_an_unreadable_state_leaves_the_file_alone_in_force(tmp_path: Path) -> None:
    path = write_settings(tmp_path, 1883)
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / STATE_NAME).write_bytes(b"half a docu")
    settings, state = chosen_settings(path)
    assert (settings.node.id, state) == ("door", State())


def test_a_power_cut_at_any_operation_of_the_disk_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    states = [configuration.confirmed(wanted(State(), 1, GOOD))]
    states.append(wanted(states[-1], 2, BETTER))
    states.append(configuration.started(states[-1]))
    states.append(configuration.confirmed(states[-1]))
    states.append(configuration.started(wanted(states[-1], 3, GOOD)))
    states.append(configuration.given_up(states[-1], "cut"))
    live = tmp_path / "live"
    live.mkdir()
    disk = RecordingDisk(live)
    allowed: list[tuple[State, ...]] = []
    for before, after in zip([State(), *states], states, strict=False):
        disk.write_whole(live / STATE_NAME, configuration.to_bytes(after))
        allowed += [(before, after)] * (len(disk.images) - len(allowed))
    assert len(disk.images) >= 5 * len(states)
    for image, fine_states in zip(disk.images, allowed, strict=True):
        for leaves in Leaves:
            left = tmp_path / f"{image.number}-{leaves.name}"
            image.restore(left, leaves)
            file = left / STATE_NAME
            found = configuration.from_bytes(file.read_bytes()) if file.exists() else State()
            assert found in fine_states, (image.operation, leaves)


# -- a running node


class Run:
    """One start of a node's program with the settings that `run` would choose."""

    def __init__(self, path: Path, port: int, disk: Disk | None = None) -> None:
        settings, state = chosen_settings(path)
        self.troubles: tuple[str, ...] = ()
        self.adopted: list[Settings] = []
        self.bench = Bench(settings.clips.directory, port, given=settings, disk=disk)
        self.bench.commands.configuring = Configuring(
            state,
            settings,
            self.bench.statuses,
            check=configuration_of(path, state).check,
            load=configuration_of(path, state).load,
            adopt=self.adopted.append,
            is_connected=lambda: self.bench.link.status.connected,
            troubles=lambda: self.troubles,
            restart=self.bench.restarts.append,
            write=self.bench.commands.write,
        )

    def reported(self, client: Client) -> dict[str, Any]:
        found = client.of("/config/reported")
        return dict(json.loads(found[-1].payload)) if found else {}

    def say(self, client: Client, rev: int, config: dict[str, Any]) -> None:
        client.say(f"{BASE}/config/desired", json.dumps({"rev": rev, "config": config}).encode(), retain=True)

    def until_reported(self, client: Client, rev: int, status: str) -> dict[str, Any]:
        def is_so() -> bool:
            report = self.reported(client)
            return (report.get("rev"), report.get("status")) == (rev, status)

        self.bench.until(is_so, f"revision {rev} {status}, not {self.reported(client)}")
        return self.reported(client)


@pytest.fixture
def path(tmp_path: Path, broker: Mosquitto) -> Path:
    return write_settings(tmp_path, broker.port, node={"id": "entrance", "site": "ward-12"})


@requires_mosquitto
def test_settings_change_over_mqtt_and_are_confirmed_after_the_restart(path: Path, broker: Mosquitto) -> None:
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    run.say(client, 1, SLOWER)
    report = run.until_reported(client, 1, "pending-restart")
    assert report["config"]["camera"]["fps"] == 10
    run.bench.until(lambda: run.bench.restarts)
    run.bench.close()

    run = Run(path, broker.port)
    run.bench.connect()
    assert run.bench.settings.camera.fps == 9
    run.bench.let_pass(configuration.SETTLED_S + 1)
    run.bench.step()
    run.bench.let_pass(configuration.SETTLED_S + 1)
    report = run.until_reported(client, 1, "applied")
    assert report["config"]["camera"]["fps"] == 9
    run.bench.close()
    assert chosen_settings(path)[1].kept == Patch(1, SLOWER)
    client.close()


@requires_mosquitto
def test_settings_that_find_no_room_among_the_disks_errands_are_tried_again(path: Path, broker: Mosquitto) -> None:
    """They are retained at the broker, but would come again at the next connection only."""
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    box = run.bench.mail.errands.to_storage
    while box.put(Errand(0)):
        pass
    run.say(client, 1, SLOWER)
    for _ in range(50):
        run.bench.link.step(0.005)
        run.bench.commands.step(0)
    assert run.bench.commands.configuring is not None
    assert run.bench.commands.configuring.state.trial is None
    run.until_reported(client, 1, "pending-restart")
    run.bench.close()
    client.close()


@requires_mosquitto
def test_a_wrong_broker_address_comes_back_and_says_why(path: Path, broker: Mosquitto) -> None:
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    run.say(client, 1, {"mqtt": {"port": free_port()}})
    run.until_reported(client, 1, "pending-restart")
    run.bench.until(lambda: run.bench.restarts)
    run.bench.close()

    run = Run(path, broker.port)
    for _ in range(20):
        run.bench.let_pass(10)
        run.bench.step()
    run.bench.until(lambda: run.bench.restarts)
    run.bench.close()

    run = Run(path, broker.port)
    run.bench.connect()
    report = run.until_reported(client, 1, "rolled-back")
    assert "not connected to the broker" in report["errors"][0]["message"]
    assert report["config"]["mqtt"]["port"] == broker.port
    assert not run.bench.restarts
    run.bench.close()
    client.close()


@requires_mosquitto
def test_settings_that_make_new_trouble_come_back_and_old_trouble_is_no_reason(path: Path, broker: Mosquitto) -> None:
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.troubles = ("clock",)
    run.bench.connect()
    run.say(client, 1, SLOWER)
    run.bench.until(lambda: run.bench.restarts)
    run.bench.close()
    run = Run(path, broker.port)
    run.troubles = ("clock", "camera")
    run.bench.connect()
    for _ in range(20):
        run.bench.let_pass(10)
        run.bench.step()
    run.bench.until(lambda: run.bench.restarts)
    report = run.until_reported(client, 1, "rolled-back")
    assert "camera" in report["errors"][0]["message"]
    assert "clock" not in report["errors"][0]["message"]
    run.bench.close()
    client.close()


@requires_mosquitto
@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        (b'{"rev": 1, "config": {"mqtt": {"po', ""),
        (b'{"rev": 1, "config": {"mqtt": {"port": 0}}}', "/config/mqtt/port"),
        (b'{"rev": 1, "config": {"zones": [{"id": "a"}]}}', "/config/zones/0/kind"),
        (b'{"rev": "1", "config": {}}', "/rev"),
        (b'{"rev": 1, "config": {"commands": {"operator_keys": []}}}', "/config/commands"),
    ],
    ids=["half", "range", "zone", "type", "rights"],
)
def test_what_is_wrong_is_rejected_with_its_place_and_changes_nothing(
    path: Path, broker: Mosquitto, payload: bytes, pointer: str
) -> None:
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    client.say(f"{BASE}/config/desired", payload, retain=True)
    run.bench.until(lambda: run.reported(client).get("status") == "rejected")
    assert run.reported(client)["errors"][0]["pointer"] == pointer
    assert not run.bench.restarts
    run.bench.close()
    assert chosen_settings(path)[1].in_force == Patch()
    client.close()


@requires_mosquitto
def test_secrets_never_leave(path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_AGENT__MQTT__PASSWORD", "canary-password")
    monkeypatch.setenv("CAMERA_AGENT__CAMERA__SOURCE", "rtsp://me:canary-source@camera/1")
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    run.bench.until(lambda: run.reported(client))
    assert run.reported(client)["config"]["mqtt"]["password"] == "***"
    assert not [m for m in client.messages if b"canary" in m.payload]
    run.bench.close()
    client.close()


@requires_mosquitto
def test_a_full_disk_leaves_the_settings_as_they_are_and_says_so(path: Path, broker: Mosquitto) -> None:
    disk = FailingDisk()
    run = Run(path, broker.port, disk)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    disk.fail_from_now(errno.ENOSPC)
    run.say(client, 1, GOOD)
    report = run.until_reported(client, 1, "rejected")
    assert "could not be written down" in report["errors"][0]["message"]
    assert not run.bench.restarts
    disk.heal()
    run.bench.close()
    assert chosen_settings(path)[1] == State()
    client.close()


# -- without a restart


def test_what_applies_live_are_settings_that_exist() -> None:
    for name in LIVE:
        section, _, key = name.partition(".")
        about = getattr(Settings(), section)
        assert key in ("", "*") or key in type(about).model_fields, name


def test_a_mask_needs_a_restart_and_another_zone_none() -> None:
    def given(*zones: tuple[str, str]) -> Settings:
        polygon = [[0, 0], [1, 0], [1, 1]]
        made = [{"id": name, "kind": kind, "polygon": polygon} for name, kind in zones]
        return load_settings(environ={}, overrides={"zones": made})

    assert needing_restart(given(("a", "detect")), given(("b", "ignore"))) == []
    assert needing_restart(given(("a", "detect")), given(("a", "privacy"))) == ["zones (privacy)"]
    assert needing_restart(given(("a", "privacy")), given()) == ["zones (privacy)"]
    moved = load_settings(environ={}, overrides={"mqtt": {"port": 1}, "node": {"name": "Cửa sau"}})
    assert changed(Settings(), moved) == ["node.name", "mqtt.port"]
    assert needing_restart(Settings(), moved) == ["mqtt.port"]


@requires_mosquitto
def test_settings_that_need_no_restart_are_in_force_at_once_and_kept(path: Path, broker: Mosquitto) -> None:
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    run.say(client, 1, {**GOOD, "node": {"name": "Cửa sổ phía Đông"}})
    report = run.until_reported(client, 1, "applied")
    assert report["config"]["detection"]["sensitivity"] == 60
    assert run.adopted[-1].node.name == "Cửa sổ phía Đông"
    assert not run.bench.restarts
    assert run.bench.commands.configuring is not None
    assert run.bench.commands.configuring.state.trial is not None, "it may still have to go back"
    run.bench.let_pass(configuration.SETTLED_S + 1)
    run.bench.step()
    run.bench.let_pass(configuration.SETTLED_S + 1)
    run.bench.until(lambda: chosen_settings(path)[1].kept.rev == 1)
    run.bench.close()
    assert chosen_settings(path)[0].node.name == "Cửa sổ phía Đông"
    client.close()


@requires_mosquitto
def test_live_settings_that_make_trouble_come_back_without_a_restart(path: Path, broker: Mosquitto) -> None:
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    run.say(client, 1, {"clips": {"min_free_mb": 900_000}})
    run.until_reported(client, 1, "applied")
    run.troubles = ("storage",)
    for _ in range(20):
        run.bench.let_pass(10)
        run.bench.step()
    report = run.until_reported(client, 1, "rolled-back")
    assert "storage" in report["errors"][0]["message"]
    assert report["config"]["clips"]["min_free_mb"] == 0
    assert [settings.clips.min_free_mb for settings in run.adopted] == [900_000, 0]
    assert not run.bench.restarts
    run.bench.close()
    client.close()


@requires_mosquitto
def test_a_person_turns_the_sensitivity_and_the_next_desired_settings_are_above_it(
    path: Path, broker: Mosquitto
) -> None:
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    answer = client.ask("set", {"sensitivity": 85})
    assert answer["result"] == {"detection": {"sensitivity": 85}}
    run.bench.until(lambda: run.reported(client)["config"]["detection"]["sensitivity"] == 85)
    assert run.adopted[-1].detection.sensitivity == 85
    assert run.reported(client)["rev"] == 0
    assert chosen_settings(path)[0].detection.sensitivity == 85, "it is kept"
    run.say(client, 1, {"node": {"name": "Sảnh"}})
    assert run.until_reported(client, 1, "applied")["config"]["detection"]["sensitivity"] == 50
    assert client.ask("set", {"sensitivity": 20})["error"]["code"] == "busy", "revision 1 is on trial"
    assert not run.bench.restarts
    run.bench.close()
    client.close()


@requires_mosquitto
@pytest.mark.parametrize("args", [{"sensitivity": 101}, {"sensitivity": -1}, {"sensitivity": "50"}, {}, {"fps": 3}])
def test_a_sensitivity_that_is_none_is_refused_and_changes_nothing(
    path: Path, broker: Mosquitto, args: dict[str, Any]
) -> None:
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    error = client.ask("set", args)["error"]
    assert error["code"] == "invalid"
    assert error["pointer"] == "/".join(["/args", *args])
    assert not run.adopted
    run.bench.close()
    client.close()


@requires_mosquitto
def test_what_the_environment_sets_no_command_turns(
    path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_AGENT__DETECTION__SENSITIVITY", "40")
    run = Run(path, broker.port)
    client = Client(broker.port, run.bench)
    run.bench.connect()
    assert client.ask("set", {"sensitivity": 60})["error"]["code"] == "forbidden"
    assert not run.adopted
    run.bench.close()
    client.close()


def test_the_table_of_the_documents_names_what_applies_live() -> None:
    text = (Path(__file__).parent.parent / "docs" / "MQTT.md").read_text(encoding="utf-8")
    rows = text.split("| without a restart | with one |")[1].split("\n\n")[0].splitlines()[2:]
    named = {name for row in rows for name in re.findall(r"`([a-z_.*]+)`", row.split("|")[1])}
    assert named - {"confirm_frames"} == set(LIVE)
