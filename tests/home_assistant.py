"""A real Home Assistant beside a real node and mosquitto: every entity. Run by scripts/test-home-assistant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker import Mosquitto, Subscriber, free_port
from program import Program, write_settings

from agent.announcer import Announcer
from agent.birth import meta_message
from agent.handoffs import StatusBoard
from agent.messages import StateMessage
from agent.requests import Request, UpdateReported
from agent.settings import load_settings
from agent.topics import Topics
from agent.ulid import new_ulid

CLIENT = "http://localhost/"
LIMIT_S = 120.0


class HomeAssistant:
    """Its REST interface. command: how to start it, with the directory of its settings behind."""

    def __init__(self, command: list[str], directory: Path, shown_as: str) -> None:
        """shown_as: directory as the started program sees it (it may run in a root of its own)."""
        self.port = free_port()
        (directory / "configuration.yaml").write_text(
            f"http:\n  server_host: 127.0.0.1\n  server_port: {self.port}\nfrontend:\n"
        )
        self._log = (directory / "out.log").open("wb")
        self._process = subprocess.Popen([*command, "-c", shown_as, "--skip-pip"], stdout=self._log, stderr=self._log)
        self._token = ""

    def ask(self, path: str, body: Any = None, *, form: bool = False) -> Any:
        data = None
        headers = {"Content-Type": "application/x-www-form-urlencoded" if form else "application/json"}
        if body is not None:
            data = urllib.parse.urlencode(body).encode() if form else json.dumps(body).encode()
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            raw = answer.read()
            return json.loads(raw) if "json" in answer.headers.get("Content-Type", "") else raw

    def begin(self, broker_port: int) -> None:
        """Wait for it, make its first user, give it the broker."""
        wait("Home Assistant answers", self._answers)
        person = {"client_id": CLIENT, "name": "T", "username": "t", "password": "t-only-here", "language": "en"}
        code = self.ask("/api/onboarding/users", person)["auth_code"]
        grant = {"grant_type": "authorization_code", "code": code, "client_id": CLIENT}
        self._token = self.ask("/auth/token", grant, form=True)["access_token"]
        flow = self.ask("/api/config/config_entries/flow", {"handler": "mqtt", "show_advanced_options": False})
        wanted = {"broker": "127.0.0.1", "port": broker_port}
        made = self.ask(f"/api/config/config_entries/flow/{flow['flow_id']}", wanted)
        assert made["type"] == "create_entry", made

    def _answers(self) -> bool:
        assert self._process.poll() is None, "Home Assistant ended"
        try:
            return bool(self.ask("/api/onboarding"))
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.5)
            return False

    def states(self) -> dict[str, dict[str, Any]]:
        return {state["entity_id"]: state for state in self.ask("/api/states")}

    def state(self, entity: str) -> dict[str, Any]:
        """By the end of its id."""
        found = [state for name, state in self.states().items() if name.endswith(entity)]
        assert len(found) == 1, f"{entity}: {sorted(self.states())}"
        return found[0]

    def press(self, entity: str) -> None:
        self.ask("/api/services/button/press", {"entity_id": self.state(entity)["entity_id"]})

    def call(self, service: str, entity: str, **data: object) -> None:
        self.ask(f"/api/services/{service}", {"entity_id": self.state(entity)["entity_id"], **data})

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


def wait(what: str, condition: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > limit_s:
            raise SystemExit(f"FAIL  {what}: not within {limit_s:g} s")
        time.sleep(0.1)
    print(f"pass  {what} ({time.monotonic() - began_s:.1f} s)", flush=True)


ENTITIES = (
    "_motion",
    "_event",
    "_last_picture",
    "_problem",
    "_clock",
    "_temperature",
    "_disk_free",
    "_outbox",
    "_snapshot",
    "_restart",
    "_live_picture_for_a_minute",
    "_live_picture",
    "_armed",
    "_sensitivity",
)


def trial(command: list[str], home: Path, shown_as: str) -> None:
    broker = Mosquitto(home / "broker").start()
    desk = Subscriber(broker.port)
    config = home / "ha"
    config.mkdir()
    assistant = HomeAssistant(command, config, f"{shown_as}/ha")
    settings = write_settings(home, broker.port)
    node = Program(home, "run", "--config", settings)
    try:
        assistant.begin(broker.port)

        def has(ending: str) -> bool:
            return any(name.endswith(ending) for name in assistant.states())

        wait("all entities are there", lambda: all(has(each) for each in ENTITIES))
        wait("motion goes on", lambda: assistant.state("_motion")["state"] == "on")
        wait("motion goes off", lambda: assistant.state("_motion")["state"] == "off")
        wait(
            "an event fires", lambda: assistant.state("_event")["attributes"].get("event_type") in ("motion", "ended")
        )
        picture = assistant.state("_last_picture")["attributes"]["entity_picture"]
        wait(
            "the last picture is the node's, byte for byte",
            lambda: assistant.ask(picture) in {message.payload for message in desk.of("/thumb")},
        )
        wait("disk free is a number", lambda: float(assistant.state("_disk_free")["state"]) > 0)
        wait("outbox is a number", lambda: float(assistant.state("_outbox")["state"]) >= 0)
        assert assistant.state("_problem")["state"] in ("on", "off")
        assert assistant.state("_clock")["state"] in ("on", "off")

        wait("the node is seen", lambda: bool(desk.of("/event")))
        event = json.loads(desk.of("/event")[-1].payload)
        before = assistant.state("_event")["state"]
        topic = desk.of("/event")[-1].topic
        late = {**event, "late": True, "seq": event["seq"] + 1000, "id": "01JD9ZV6Q2M4S8T1C3R5W7Y9AB"}
        again = json.loads(desk.of("/event")[0].payload)
        os.kill(node.pid, signal.SIGSTOP)
        desk.say(topic, json.dumps(late).encode())
        desk.say(topic, json.dumps(again).encode())
        time.sleep(2)
        after = assistant.state("_event")
        print(f"pass  a late and a repeated message fire nothing ({before}, {after['state']})", flush=True)
        assert after["attributes"].get("seq", 0) <= event["seq"] + 2, after
        os.kill(node.pid, signal.SIGCONT)

        assistant.press("_snapshot")
        wait("the snapshot button reaches the node", lambda: desk.of("/rsp/home-assistant"))
        assistant.press("_live_picture_for_a_minute")
        wait("live pictures come", lambda: desk.of("door/live"))
        camera = assistant.state("camera.door_live_picture" if has("camera.door_live_picture") else "_live_picture")
        wait("the camera shows one", lambda: assistant.ask(camera["attributes"]["entity_picture"])[:2] == b"\xff\xd8")

        assert assistant.state("_armed")["state"] == "on", assistant.state("_armed")
        assistant.call("switch/turn_off", "_armed")
        wait("the switch disarms the node", lambda: json.loads(desk.of("/armed")[-1].payload)["armed"] is False)
        wait("and shows it", lambda: assistant.state("_armed")["state"] == "off")
        assert assistant.state("_armed")["attributes"]["by"] == "home-assistant", assistant.state("_armed")
        assert assistant.state("_sensitivity")["state"] == "50", assistant.state("_sensitivity")
        assistant.call("number/set_value", "_sensitivity", value=77)
        wait(
            "the slider sets the sensitivity",
            lambda: json.loads(desk.of("/config/reported")[-1].payload)["config"]["detection"]["sensitivity"] == 77,
        )
        wait("and shows it", lambda: assistant.state("_sensitivity")["state"] == "77")
        update(assistant, desk, home)

        os.kill(node.pid, signal.SIGKILL)
        wait("by the will all become unavailable", lambda: assistant.state("_motion")["state"] == "unavailable", 60)
        with Program(home, "run", "--config", settings) as back:
            wait("and come back with the node", lambda: assistant.state("_motion")["state"] in ("on", "off"), 60)
            wait(
                "disarmed and with its sensitivity, as they were",
                lambda: (
                    (assistant.state("_armed")["state"], assistant.state("_sensitivity")["state"]) == ("off", "77")
                ),
            )
            assistant.call("switch/turn_on", "_armed")
            wait("the switch arms it", lambda: assistant.state("_armed")["state"] == "on")
            wait("who moves is told again", lambda: assistant.state("_motion")["state"] == "on")
            back.signal(signal.SIGTERM)
        wait("a node that is stopped is unavailable", lambda: assistant.state("_motion")["state"] == "unavailable")
        seen = write_settings(home, broker.port, commands={"allow": ["ping"]})
        with Program(home, "run", "--config", seen) as watched:
            wait(
                "where it may not command, Home Assistant sees whether it is armed and has no switch for it",
                lambda: [name.split(".")[0] for name in assistant.states() if "_armed" in name] == ["binary_sensor"],
            )
            watched.signal(signal.SIGTERM)
        off = write_settings(home, broker.port, mqtt={"discovery": False})
        with Program(home, "run", "--config", off):
            wait("discovery turned off removes the device", lambda: not any(has(each) for each in ENTITIES))
    finally:
        node.__exit__()
        assistant.end()
        desk.close()
        broker.kill()


def update(assistant: HomeAssistant, desk: Subscriber, home: Path) -> None:
    """The update entity of a node as scripts/install leaves it, which the one above is not: said in its place."""
    node = {"id": "depot", "site": "ward-12", "name": "Kho lưu trữ"}
    given = load_settings(environ={}, overrides={"node": node, "clips": {"directory": str(home / "depot")}})
    base = Topics("edgecam", "ward-12", "depot")
    (home / "depot").mkdir()
    statuses = StatusBoard()
    Announcer(given, statuses).announce(meta_message(given, None, None), "ha-update-1.4.0-0")
    for topic, status in statuses.take().items():
        desk.say(base.at(topic), status.payload, retain=True)
    online = StateMessage(state="online", session=new_ulid(0), time="2026-11-22T03:15:07.000Z", reasons=[])
    desk.say(base.at("state"), online.model_dump_json().encode(), retain=True)

    def say(**more: Any) -> None:
        tree = {"installed": "1.3.2", "latest": "1.4.0", "possible": True, "phase": "idle", "tries": 0}
        said = UpdateReported.model_validate({**tree, "time": "2026-11-22T03:15:07.000Z", **more})
        desk.say(base.at("update"), said.model_dump_json().encode(), retain=True)

    def shown() -> dict[str, Any]:
        found = [state for name, state in assistant.states().items() if name.startswith("update.kho_luu_tru")]
        return found[0] if found else {"state": "", "attributes": {}}

    say(notes="Sửa lỗi khi mất điện")
    wait("an update is offered", lambda: shown()["state"] == "on")
    about = shown()["attributes"]
    assert (about["installed_version"], about["latest_version"]) == ("1.3.2", "1.4.0"), about
    assert about["release_summary"] == "Sửa lỗi khi mất điện"
    assistant.ask("/api/services/update/install", {"entity_id": shown()["entity_id"]})
    wait("install is the node's update command", lambda: desk.of("depot/cmd/update"))
    command = Request.model_validate_json(desk.of("depot/cmd/update")[0].payload)
    assert (command.id, command.client, command.args) == ("ha-update-1.4.0-0", "home-assistant", {})
    say(phase="fetching", percent=40)
    wait("its progress is shown", lambda: shown()["attributes"].get("update_percentage") == 40)
    assert shown()["attributes"]["in_progress"] is True
    last = {"version": "1.4.0", "verdict": "failed", "why": "it never said READY", "time": "2026-11-22T03:20:07.000Z"}
    say(last=last, tries=1)
    wait("a version that went back is offered still", lambda: shown()["attributes"].get("in_progress") is False)
    assert shown()["attributes"]["last"]["why"] == "it never said READY", shown()
    say(installed="1.4.0", tries=2)
    wait("an update that stayed is done", lambda: shown()["state"] == "off")
    desk.say("homeassistant/device/ward-12_depot/config", b"", retain=True)
    wait("and that node is gone again", lambda: not shown()["state"])


if __name__ == "__main__":
    # tests/home_assistant.py DIRECTORY DIRECTORY-AS-SEEN COMMAND...
    with tempfile.TemporaryDirectory(dir=sys.argv[1], prefix="ha-") as made:
        trial(sys.argv[3:], Path(made), f"{sys.argv[2]}/{Path(made).name}")
