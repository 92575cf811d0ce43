"""Armed or not: while disarmed nothing that moves is told or recorded, and every start is as the last word said."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from broker import Mosquitto, requires_mosquitto
from command_fixtures import Bench, Client
from faulty_disk import FailingDisk, Leaves, RecordingDisk
from stepped import SteppedNode
from test_stories import source
from test_vision import CALM, CROSSING
from test_vision import Bench as Eye

from agent.arming import ARMING_NAME, Arming
from agent.cameras.scenes import BUILT_IN
from agent.handoffs import StatusBoard
from agent.ledger_reader import LedgerReader
from agent.messages import ArmedMessage, HealthMessage, to_bytes
from agent.model import EndReason, EventKind, Phase
from agent.settings import Settings, load_settings
from agent.topics import ARMED, HEALTH
from agent.vision import Vision


def said(client: Client) -> dict[str, object]:
    found = client.of("/armed")
    return dict(json.loads(found[-1].payload)) if found else {}


# -- over a broker


@requires_mosquitto
def test_a_node_is_armed_until_somebody_disarms_it_and_stays_so_after_a_restart(bench: Bench, client: Client) -> None:
    bench.until(lambda: said(client).get("armed") is True and said(client)["since"] is None)
    answer = client.ask("disarm")
    assert answer["ok"]
    bench.until(lambda: said(client)["armed"] is False)
    assert (said(client)["by"], said(client)["since"]) == ("page-1", answer["result"]["since"])
    assert not bench.arming.is_armed
    again = Arming(bench.directory, StatusBoard())
    assert again.state == bench.arming.state
    client.ask("arm")
    assert bench.arming.is_armed
    assert Arming(bench.directory, StatusBoard()).is_armed


@requires_mosquitto
def test_asking_for_what_is_so_already_changes_neither_since_nor_by(bench: Bench, client: Client) -> None:
    before = client.ask("disarm")["result"]
    assert client.ask("disarm", id="other")["result"] == before


@requires_mosquitto
def test_of_two_that_come_together_the_later_one_wins(bench: Bench, client: Client) -> None:
    first, second = client.request("disarm"), client.request("arm")
    bench.until(lambda: client.answers(first) and client.answers(second))
    assert bench.arming.is_armed
    assert Arming(bench.directory, StatusBoard()).is_armed


@requires_mosquitto
def test_one_topic_serves_clients_that_know_only_one(bench: Bench, client: Client) -> None:
    assert client.ask("set", {"armed": False})["result"]["armed"] is False
    assert not bench.arming.is_armed
    assert client.ask("set", {"armed": True, "sensitivity": 3})["error"]["code"] == "invalid"


@requires_mosquitto
def test_who_may_arm_but_not_disarm_cannot_do_so_by_another_name(broker: Mosquitto, tmp_path: Path) -> None:
    bench = Bench(tmp_path, broker.port, commands={"allow": ["arm", "set"]})
    client = Client(broker.port, bench)
    bench.connect()
    assert client.ask("disarm")["error"]["code"] == "forbidden"
    assert client.ask("set", {"armed": False})["error"]["code"] == "forbidden"
    assert client.ask("set", {"armed": True})["ok"]
    assert bench.arming.is_armed
    client.close()
    bench.close()


@requires_mosquitto
def test_a_disk_that_takes_nothing_leaves_it_as_it_was_and_says_so(broker: Mosquitto, tmp_path: Path) -> None:
    disk = FailingDisk()
    bench = Bench(tmp_path, broker.port, disk=disk)
    client = Client(broker.port, bench)
    bench.connect()
    disk.fail_from_now(errno.ENOSPC)
    assert client.ask("disarm")["error"]["code"] == "unavailable"
    assert bench.arming.is_armed
    disk.heal()
    client.close()
    bench.close()


# -- what is kept


def test_a_power_cut_at_any_operation_of_the_disk_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    disk = RecordingDisk(live)
    states = [
        ArmedMessage(armed=number % 2 == 0, since="2026-11-22T03:15:07.250Z", by=f"page-{number}")
        for number in range(1, 5)
    ]
    allowed: list[tuple[ArmedMessage, ArmedMessage]] = []
    for before, after in zip([ArmedMessage(armed=True), *states], states, strict=False):
        disk.write_whole(live / ARMING_NAME, to_bytes(after))
        allowed += [(before, after)] * (len(disk.images) - len(allowed))
    assert len(disk.images) >= 4 * len(states)
    for image, fine in zip(disk.images, allowed, strict=True):
        for leaves in Leaves:
            left = tmp_path / f"{image.number}-{leaves.name}"
            image.restore(left, leaves)
            found = Arming(left, StatusBoard())
            assert found.state in fine, (image.operation, leaves)
            assert not found.trouble


@pytest.mark.parametrize("content", [b"", b"{}", b'{"armed": "perhaps"}', b'{"v":1,"armed":false', b"\xff\xfe"])
def test_a_file_that_cannot_be_read_leaves_the_node_armed_and_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ARMING_NAME).write_bytes(content)
    arming = Arming(tmp_path, StatusBoard())
    assert arming.is_armed
    assert "armed" in arming.trouble
    arming.become(ArmedMessage(armed=False))
    assert not arming.trouble


# -- what the eye does


def eye(is_armed: list[bool]) -> Eye:
    bench = Eye()
    bench.vision = Vision(
        bench.vision._settings, bench.slot, bench.board, bench.statuses, lambda: "E", is_armed=lambda: is_armed[0]
    )
    return bench


def test_while_disarmed_nothing_is_told_and_the_scene_is_learned_on() -> None:
    bench = eye([False])
    bench.see(*CALM, *CROSSING, *CALM)
    assert not bench.told
    assert bench.motion_status() == b"OFF"
    assert not bench.vision.status.learning
    assert bench.vision.status.frames == 2 * len(CALM) + len(CROSSING)


def test_disarming_ends_the_event_that_goes_on() -> None:
    is_armed = [True]
    bench = eye(is_armed)
    bench.see(*CALM, *CROSSING[:12])
    assert bench.motion_status() == b"ON"
    is_armed[0] = False
    bench.see(*CROSSING[12:])
    assert [event.phase for event in bench.told][-1] is Phase.END
    assert bench.told[-1].end_reason is EndReason.DISARMED
    assert bench.motion_status() == b"OFF"


def test_who_moves_when_the_node_is_armed_is_told_at_once_and_not_from_before() -> None:
    is_armed = [False]
    bench = eye(is_armed)
    bench.see(*CALM, *CROSSING[:10])
    armed_ns, is_armed[0] = bench.t_ns, True
    bench.see(*CROSSING[10:], *CALM)
    assert bench.told
    assert all(event.start.t_ns >= armed_ns for event in bench.told)


# -- a whole node


def test_a_disarmed_node_records_nothing_but_goes_on_telling_of_its_camera_and_of_what_it_is_asked(
    tmp_path: Path,
) -> None:
    given = settings(tmp_path)
    stepped = SteppedNode(given, source(BUILT_IN["office"], given))
    node = stepped.node
    node.arming.become(ArmedMessage(armed=False, since="2026-11-22T03:15:07.250Z", by="desk-1"))
    stepped.run(60)
    reader = LedgerReader(tmp_path)
    assert reader.events() == []
    health = HealthMessage.model_validate_json(node.statuses.all()[HEALTH].payload)
    assert health.arming == "disarmed since 2026-11-22T03:15:07.250Z by desk-1"
    assert [reason.split(":")[0] for reason in health.reasons] == ["broker"], "disarmed is no trouble"
    node._post_test()
    stepped.run(2)
    assert [event.body.kind for event in reader.events()] == [EventKind.TEST.value]
    node.arming.become(ArmedMessage(armed=True, since="2026-11-22T03:16:07.250Z", by="desk-1"))
    stepped.run(60)
    assert EventKind.MOTION.value in [event.body.kind for event in reader.events()]
    assert json.loads(node.statuses.all()[ARMED].payload)["armed"] is True
    stepped.stop()
    reader.close()


def test_a_running_node_takes_other_settings_over_in_the_middle_of_everything(tmp_path: Path) -> None:
    given = settings(tmp_path)
    stepped = SteppedNode(given, source(BUILT_IN["office"], given))
    node = stepped.node
    stepped.run(20)
    changed = settings(
        tmp_path,
        node={"name": "Quầy số 2"},
        detection={"sensitivity": 80, "fps": 5},
        zones=[{"id": "quay", "name": "Quầy", "kind": "detect", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}],
        health={"interval_s": 2},
    )
    node.adopt(changed)
    frames = node.vision.status.frames
    stepped.run(20)
    assert 90 <= node.vision.status.frames - frames <= 102, "5 frames a second are analysed"
    meta = json.loads(node.statuses.all()["meta"].payload)
    assert (meta["name"], meta["zones"][0]["name"]) == ("Quầy số 2", "Quầy")
    stepped.run(40)
    stepped.stop()
    reader = LedgerReader(tmp_path)
    assert any(event.body.zones == ["quay"] for event in reader.events())
    assert all(event.body.end is not None for event in reader.events())
    reader.close()


def settings(directory: Path, **more: object) -> Settings:
    return load_settings(
        environ={},
        overrides={
            "node": {"id": "entrance", "site": "ward-12", "name": "Cửa chính"},
            "camera": {"width": 320, "height": 240, "fps": 10},
            "clips": {"directory": directory, "min_free_mb": 0},
            "mqtt": {"host": "127.0.0.1", "port": 1},
            **more,
        },
    )
