"""One running node and three real clients: MQTT.js in Chromium, mosquitto_sub, `camera-agent watch`. Who got what.

    scripts/test-browser [--screenshot FILE] [--document docs/MQTT.md]

Each topic of the node has to reach the page and be what it says it is; the table counts what each client took.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from broker import Mosquitto, free_port
from chromium import Chromium
from home_assistant import wait
from program import Program, write_settings

from agent.clock import SystemClock
from agent.handoffs import AckBox, Doorbell, EventBoard, PacketRing
from agent.model import EndReason, Event, EventKind, Frame, Moment, Phase
from agent.settings import Settings, load_settings
from agent.storage import Storage
from agent.thumbnail import encode
from agent.ulid import new_ulid

SITE, NODE = "ward-12", "entrance"
BASE = f"edgecam/v1/{SITE}/{NODE}"
WANTED = (
    *("state", "meta", "health", "motion", "event", "event/last", "thumb", "thumb/last", "clip", "loss", "live"),
    *("armed", "update"),
    *("cmd", "rsp", "xfer", "config/desired", "config/reported", "discovery"),
)
EARLIER_EVENTS = 60
COUNTER = [[0, 0], [1, 0], [1, 1], [0, 1]]
LINE = '{"topic":"%t","retain":%r,"qos":%q,"properties":"%P","content_type":"%C","payload":"%x"}'
"""What mosquitto_sub prints of a message; the payload in hexadecimal, since pictures are no text."""

SCENE = """
name = "counter"
place = "office"
period_s = 12

[[walkers]]
at_s = 5
speed = 0.5
height = 0.6
"""


def owe_too_much(settings: Settings) -> None:
    """A time without a broker: more rows than outbox.max_rows, so that the node has a loss to tell."""
    clock, board = SystemClock(), EventBoard()
    storage = Storage(settings, clock, PacketRing(1), board, AckBox(), Doorbell(), Doorbell())
    storage.open()
    for number in range(EARLIER_EVENTS):
        at = Moment(clock.boot_ns(), number)
        event_id = new_ulid(clock.wall_ns() // 1_000_000)
        grey = np.full((90, 160), 128, np.uint8)
        picture = encode(Frame(number, at.t_ns, np.full((180, 320), 16 + number, np.uint8), grey, grey))
        event = Event(event_id, 1, Phase.END, EventKind.TEST, at, at, at, 1.0, end=at)
        board.put(replace(event, end_reason=EndReason.QUIET, thumbnail=picture))
        storage.step(0)
    storage.close()


def feed_of(topic: str) -> str:
    if topic.startswith("homeassistant/"):
        return "discovery"
    feed = topic.removeprefix(f"{BASE}/")
    return feed.split("/")[0] if feed.startswith(("cmd/", "rsp/", "xfer/")) else feed


class Printed:
    """A client of the command line and what it printed."""

    def __init__(self, home: Path, name: str, *command: object) -> None:
        self._path = home / f"{name}.out"
        with self._path.open("wb") as out:
            self._process = subprocess.Popen(
                [str(word) for word in command], stdout=out, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )

    def lines(self) -> list[dict[str, Any]]:
        whole = self._path.read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.split(b"\n") if line]

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)


def capture(line: dict[str, Any]) -> str:
    """A message as docs/MQTT.md shows it: pictures by what is said of them."""
    payload = bytes.fromhex(line["payload"])
    if not payload.startswith(b"\xff\xd8"):
        return f"{line['topic']} {payload.decode()}"
    about = f"r{line['retain']} q{line['qos']} {len(payload)} {line['properties']}".rstrip()
    return f"{line['topic']} {about} {line['content_type']}"


def is_typical(line: dict[str, Any]) -> bool:
    """Worth showing: of events, one that ended by itself; of clips, one that no shutdown cut."""
    feed = feed_of(line["topic"])
    if feed in ("event", "event/last"):
        message = json.loads(bytes.fromhex(line["payload"]))
        return (message["kind"], message["end_reason"]) == ("motion", "quiet")
    return feed != "clip" or json.loads(bytes.fromhex(line["payload"]))["duration_s"] > 3


def recaptured(document: str, lines: list[dict[str, Any]]) -> str:
    """The document with the messages in it replaced by those of this run: of several of a topic, first and newest."""
    found = []
    shown: Counter[str] = Counter()
    wanted = Counter(line.split(" ", 1)[0] for line in document.splitlines() if line.startswith(f"{BASE}/"))
    for text in document.splitlines():
        topic = text.split(" ", 1)[0]
        if topic.startswith(f"{BASE}/"):
            came = [line for line in lines if line["topic"] == topic and is_typical(line)]
            is_first = wanted[topic] > 1 and not shown[topic]
            shown[topic] += 1
            text = capture(came[0 if is_first else -1])
        found.append(text)
    return "\n".join(found) + "\n"


def trial(args: argparse.Namespace, home: Path) -> None:
    websockets = free_port()
    broker = Mosquitto(home / "broker", extra=[f"listener {websockets} 127.0.0.1", "protocol websockets"]).start()
    scene = home / "counter.toml"
    scene.write_text(SCENE)
    config = write_settings(
        home,
        broker.port,
        node={"id": NODE, "site": SITE, "name": "Cửa chính", "location": "Tầng 1", "timezone": "Asia/Ho_Chi_Minh"},
        camera={"scene": str(scene), "width": 640, "height": 360, "fps": 10},
        zones=[
            {"id": "quay-so-2", "name": "Quầy số 2", "kind": "detect", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}
        ],
        outbox={"max_rows": 100},
    )
    owe_too_much(load_settings(config, environ={}))
    for name in ("browser_page.html", "mqtt.min.js"):
        source = Path(__file__).with_name(name) if name.endswith(".html") else Path(args.mqtt_js)
        shutil.copy(source, home / name)
    page_url = f"file://{home}/browser_page.html?port={websockets}&site={SITE}&node={NODE}"
    at_broker = ("-h", "127.0.0.1", "-p", str(broker.port), "-V", "5", "-q", "1")
    sub = Printed(home, "mosquitto_sub", "mosquitto_sub", *at_broker, "-t", "#", "-F", LINE)
    watch = Printed(
        home, "watch", sys.executable, "-m", "agent", "watch", "--host", "127.0.0.1", "--port", broker.port, "--json"
    )
    page = Chromium(args.chromium, home, page_url)
    node = Program(home, "run", "--config", config)
    try:
        print(f"{page.run('navigator.userAgent')}; MQTT.js over a websocket, protocol 5", flush=True)
        wait("the page is there", lambda: page.run("typeof ready") == "object")
        page.run("ready")

        def seen() -> dict[str, dict[str, int]]:
            found = page.run("({seen, complaints})")
            if found["complaints"]:
                raise SystemExit(f"FAIL  the page complains: {found['complaints'][:3]}")
            return dict(found["seen"])

        def shown(place: str) -> str:
            return str(page.run(f"document.getElementById('{place}').textContent"))

        def has(*feeds: str) -> Callable[[], bool]:
            return lambda: all(seen().get(feed, {}).get("checked") for feed in feeds)

        wait("the node is there: state, meta, health, discovery", has("state", "meta", "health", "discovery"))
        wait("numbers that will not come are told", has("loss"))
        answer = page.run("ask('live', {fps: 5, width: 320, ttl_s: 60})")
        if not answer["ok"]:
            raise SystemExit(f"FAIL  live: {answer}")
        wait("live pictures are drawn", has("live"))
        wait("motion, an event, and its picture by its sha256", lambda: page.run("motionPictures()"))
        wait("its clip", has("clip"))
        still = page.run("transfer('snapshot', {width: 480})")
        print(f"pass  a still is drawn: {still['arrived']} bytes", flush=True)
        clips = page.run("ask('clips.list', {limit: 1})")["result"]["clips"]
        clip = page.run(f"transfer('clip.get', {{clip_id: '{clips[0]['id']}'}})")
        if clip["arrived"] != clips[0]["bytes"] or clip["result"]["clip"]["sha256"] != clips[0]["sha256"]:
            raise SystemExit(f"FAIL  clip.get: {clip} of {clips}")
        print(f"pass  a clip is fetched whole: {clip['arrived']} bytes, sha256 right", flush=True)
        ping = ("mosquitto_pub", *at_broker, "-t", f"{BASE}/cmd/ping", "-m", '{"id": "q1", "client": "me"}')
        subprocess.run(ping, check=True)
        wait("mosquitto_pub's ping is answered", lambda: page.run("'q1' in answers"))
        if args.screenshot:
            wait("somebody is in the picture", lambda: shown("motion").endswith("ON"))
            page.screenshot(args.screenshot)
        page.run("desire(1, {detection: {sensitivity: 60}})")
        wait("settings are reported", has("config/desired", "config/reported"))

        def applied() -> bool:
            nonlocal node
            if not node.is_running():
                node = Program(home, "run", "--config", config)
            reports = [
                json.loads(bytes.fromhex(line["payload"]))
                for line in sub.lines()
                if line["topic"] == f"{BASE}/config/reported"
            ]
            return any((report["rev"], report["status"]) == (1, "applied") for report in reports)

        wait("and applied", applied)
        counts = {feed: entry["count"] for feed, entry in seen().items()}
        node.signal(signal.SIGTERM)
        wait("the farewell", lambda: "stopped" in shown("state"))
        lines = sub.lines()
        subscribed = Counter(feed_of(line["topic"]) for line in lines)
        watched = Counter(line["type"] for line in watch.lines())
        print(f"\n{'topic':18} {'MQTT.js':>8} {'mosquitto_sub':>14} {'watch':>6}")
        for feed in sorted({*counts, *subscribed}):
            print(f"{feed:18} {counts.get(feed, 0):8} {subscribed[feed]:14} {watched[feed]:6}")
        missed = [feed for feed in WANTED if not counts.get(feed) or not subscribed[feed]]
        if missed:
            raise SystemExit(f"FAIL  nobody saw {', '.join(missed)}")
        if args.document:
            text = args.document.read_text(encoding="utf-8")
            args.document.write_text(recaptured(text, lines), encoding="utf-8")
    finally:
        node.__exit__()
        page.close()
        sub.close()
        watch.close()
        broker.kill()


def main() -> int:
    parser = argparse.ArgumentParser(prog="test-browser", description=__doc__)
    parser.add_argument("--mqtt-js", required=True, metavar="FILE", help="mqtt.min.js of MQTT.js")
    parser.add_argument("--chromium", default="chromium", help="the browser (default: %(default)s)")
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="keep a picture of the page (PNG)")
    parser.add_argument("--document", type=Path, metavar="FILE", help="put this run's messages into docs/MQTT.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="browser-") as home:
        trial(args, Path(home))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
