"""Many nodes against a real broker: links, outboxes and ledgers as they are, only the camera is played.

    scripts/fleet --nodes 200 --light 1000 --restart        mosquitto of its own, stopped and started once
    scripts/fleet --nodes 200 --light 1000 --kill           by kill -9, with all it held for a consumer
    scripts/fleet --nodes 30 --broker 127.0.0.1:1883 ...    a broker, or several of one cluster, that run already

A real node is storage with its ledger on disk, the link and the dispatcher of commands. A light one is a link whose
outbox is in memory, from which it answers `replay`. The consumer asks for what it misses, as `camera-agent watch`
does. Nodes are shared out over processes (select() takes 1024 descriptors); each process steps its nodes in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from broker import Mosquitto, free_port
from fleet_node import NAME, FleetNode
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.cli.repair import Repairs
from agent.clock import SystemClock
from agent.connection import Incoming
from agent.gaps import Gaps

REAL_PER_PROCESS, LIGHT_PER_PROCESS = 50, 250
STEP_EVERY_S = 0.05
IDLE_S = 0.01
AWAY_S = 3.0
"""How long the consumer is away when the broker is killed with what it holds for it."""

Endpoint = tuple[str, int]


def resolve_in_turn(endpoints: Sequence[Endpoint]) -> None:
    """From now on NAME has the endpoints as addresses, beginning with another one at each look-up."""
    real, turn = socket.getaddrinfo, itertools.count(os.getpid())

    def look_up(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host != NAME:
            return real(host, port, *args, **more)
        first = next(turn) % len(endpoints)
        order = [*endpoints[first:], *endpoints[:first]]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in order]

    socket.getaddrinfo = look_up


# -- in a worker process


def work(args: argparse.Namespace) -> int:
    """One process: steps its nodes until told to stop producing and everything is delivered, then to end."""
    resolve_in_turn(args.broker)
    logging.disable(logging.WARNING)  # a thousand nodes say the same at once
    clock = SystemClock()
    nodes = [
        FleetNode(number, Path(args.directory), clock, args.period, is_real=number < args.nodes)
        for number in range(args.first, args.last)
    ]
    is_producing, commands, next_report_s = True, b"", 0.0
    while b"end" not in commands:
        began_s = time.monotonic()
        for node in nodes:
            node.step(is_producing=is_producing)
        if time.monotonic() >= next_report_s:
            next_report_s = time.monotonic() + 0.5
            report(nodes)
        wait_s = max(IDLE_S, STEP_EVERY_S - (time.monotonic() - began_s))
        if select.select([0], [], [], wait_s)[0]:
            said = os.read(0, 100)
            commands += said or b"end"
            is_producing = is_producing and b"stop" not in commands
    for node in nodes:
        node.close()
    return 0


def report(nodes: Sequence[FleetNode]) -> None:
    use = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "connected": sum(node.link.status.connected for node in nodes),
                "troubles": sorted({node.link.status.trouble for node in nodes if node.link.status.trouble})[:3],
                "heads": {node.name: node.head for node in nodes},
                "owed": sum(node.owed for node in nodes),
                "rss_mb": use.ru_maxrss / 1024,
                "cpu_s": use.ru_utime + use.ru_stime,
            }
        ),
        flush=True,
    )


# -- in the parent


class Consumer:
    """A dashboard with a persistent session: notes which numbers of each node came, asks for those that did not.

    Has paho's own thread. replayed: messages that came as answers to that. away(), back(): as one that is restarted.
    """

    def __init__(self) -> None:
        self.came: dict[str, set[int]] = defaultdict(set)
        self.messages = self.bytes = self.replayed = self.asked = 0
        self._lock = threading.Lock()
        self._gaps: dict[str, Gaps] = defaultdict(Gaps)
        self._repairs = Repairs("edgecam", "fleet-desk")
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="fleet-desk", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe("edgecam/#", qos=1)
        self._client.reconnect_delay_set(1, 2)
        self.back()

    def back(self) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        self._client.connect(NAME, 1883, clean_start=False, properties=properties)
        self._client.loop_start()

    def away(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        self.messages += 1
        self.bytes += len(message.payload)
        _, _, site, name, *rest = message.topic.split("/")
        feed = "/".join(rest)
        properties = dict(getattr(message.properties, "UserProperty", ()))
        with self._lock:
            if feed.startswith("rsp/"):
                answer = Incoming(message.topic, bytes(message.payload), message.retain)
                for each in self._repairs.answer((site, name), answer).messages:
                    self.replayed += 1
                    self._note(f"{site}/{name}", each.topic.rsplit("/", 1)[-1], each.payload, each.properties)
            else:
                self._note(f"{site}/{name}", feed, bytes(message.payload), properties)

    def _note(self, node: str, feed: str, payload: bytes, properties: dict[str, str]) -> None:
        if feed not in ("event", "thumb", "clip", "loss"):
            return
        seq = int(properties["seq"] if feed == "thumb" else json.loads(payload)["seq"])
        self.came[node].add(seq)
        self._gaps[node].saw(seq)

    def missing(self, heads: dict[str, int]) -> int:
        with self._lock:
            return sum(len(set(range(1, head + 1)) - self.came.get(node, set())) for node, head in heads.items())

    def repair(self, heads: dict[str, int]) -> None:
        """Ask for what is missing. heads: newest number of each node, as its health says it."""
        questions = []
        with self._lock:
            for node, head in heads.items():
                gaps = self._gaps[node]
                gaps.exists(head)
                site, _, name = node.partition("/")
                questions += self._repairs.questions((site, name), gaps.missing, time.monotonic())
        for topic, payload in questions:
            self.asked += 1
            self._client.publish(topic, payload, qos=1)


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    buffer: bytes = b""
    last: dict[str, Any] = field(default_factory=dict)


class Fleet:
    """The worker processes and what they last said."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.size = args.nodes + args.light
        self.workers = []
        edges = [*range(0, args.nodes, REAL_PER_PROCESS), *range(args.nodes, self.size, LIGHT_PER_PROCESS), self.size]
        for first, last in itertools.pairwise(edges):
            command = [sys.executable, __file__, "--work", "--first", first, "--last", last, "--nodes", args.nodes]
            command += ["--period", args.period, "--directory", directory]
            command += [f"--broker={host}:{port}" for host, port in args.broker]
            process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.workers.append(Worker(process))

    def look(self, wait_s: float = 0.2) -> None:
        by_fd = {worker.process.stdout.fileno(): worker for worker in self.workers if worker.process.stdout}
        for fd in select.select(list(by_fd), [], [], wait_s)[0]:
            worker = by_fd[fd]
            data = os.read(fd, 1 << 20)
            if not data:
                raise SystemExit(f"a worker ended: {worker.process.wait()}")
            *lines, worker.buffer = (worker.buffer + data).split(b"\n")
            if lines:
                worker.last = json.loads(lines[-1])

    def total(self, key: str) -> float:
        return sum(float(worker.last.get(key, 0)) for worker in self.workers)

    @property
    def heads(self) -> dict[str, int]:
        return {name: head for worker in self.workers for name, head in worker.last.get("heads", {}).items()}

    def say(self, word: bytes) -> None:
        for worker in self.workers:
            assert worker.process.stdin is not None
            worker.process.stdin.write(word)
            worker.process.stdin.flush()

    def wait(self, what: str, done: Any, limit_s: float) -> float:
        """Seconds until done() holds."""
        began_s = time.monotonic()
        while not done():
            self.look()
            if time.monotonic() - began_s > limit_s:
                troubles = [worker.last.get("troubles") for worker in self.workers]
                raise SystemExit(
                    f"not within {limit_s:g} s: {what}; {self.total('connected'):.0f} connected, "
                    f"{self.total('owed'):.0f} owed; {troubles}"
                )
        return time.monotonic() - began_s

    def run(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.look()

    def all_connected(self) -> bool:
        return bool(round(self.total("connected")) == self.size)

    def end(self) -> None:
        self.say(b"end ")
        for worker in self.workers:
            assert worker.process.stdin is not None
            worker.process.stdin.close()
            worker.process.wait(60)


def process_figures(pid: int) -> tuple[float, float]:
    """(RSS in MB, CPU seconds) of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def trial(args: argparse.Namespace, directory: Path) -> dict[str, float]:
    """One run; prints figures as it goes. Raises SystemExit when a limit is missed."""
    broker: Mosquitto | None = None
    if not args.broker:
        # With --kill as mosquitto does by default: what it holds is saved each half hour, and so lost here.
        saving = [] if args.kill else ["autosave_interval 5"]
        extra = ["persistence true", f"persistence_location {directory}/", *saving]
        extra += ["max_queued_messages 100000", "max_inflight_messages 200", "set_tcp_nodelay true"]
        broker = Mosquitto(directory / "broker", extra=extra, port=free_port()).start()
        args.broker = [("127.0.0.1", broker.port)]
    resolve_in_turn(args.broker)
    consumer = Consumer()
    fleet = Fleet(args, directory)
    figures: dict[str, float] = {"nodes": args.nodes, "light": args.light}
    try:
        figures["first_connected_s"] = fleet.wait("all connected", fleet.all_connected, 120)
        print(f"{fleet.size} connected after {figures['first_connected_s']:.1f} s", flush=True)
        before_cpu_s, before, began_s = fleet.total("cpu_s"), consumer.messages, time.monotonic()
        broker_cpu_s = process_figures(broker.pid)[1] if broker else 0.0
        fleet.run(args.seconds)
        took_s = time.monotonic() - began_s
        figures["messages_per_s"] = (consumer.messages - before) / took_s
        figures["cpu_ms_per_node_s"] = 1000 * (fleet.total("cpu_s") - before_cpu_s) / took_s / fleet.size
        if broker:
            rss_mb, cpu_s = process_figures(broker.pid)
            figures["broker_rss_mb"], figures["broker_cpu_percent"] = rss_mb, 100 * (cpu_s - broker_cpu_s) / took_s
        if args.restart and broker:
            if args.kill:
                consumer.away()
                fleet.run(AWAY_S)
                broker.kill()
            else:
                broker.stop()
            fleet.wait("all noticed", lambda: fleet.total("connected") == 0, 60)
            fleet.run(args.down)
            broker.start()
            if args.kill:
                consumer.back()
            figures["back_s"] = fleet.wait("all back", fleet.all_connected, 120)
            print(f"broker away {args.down:g} s: all back {figures['back_s']:.1f} s after its start", flush=True)
        for command in args.strike or ():
            print(f"strike: {command}", flush=True)
            subprocess.run(command, shell=True, check=True)
            fleet.run(2)
            figures["back_s"] = 2 + fleet.wait("all back", fleet.all_connected, 120)
            print(f"all connected {figures['back_s']:.1f} s after it", flush=True)
            fleet.run(args.seconds)
        fleet.say(b"stop ")
        fleet.wait("all delivered", lambda: fleet.total("owed") == 0, args.patience)
        fleet.run(1)
        figures["dropped_by_broker"] = consumer.missing(fleet.heads)

        def repaired() -> bool:
            consumer.repair(fleet.heads)
            return consumer.missing(fleet.heads) == 0

        figures["repaired_s"] = fleet.wait("nothing missing", repaired, args.patience)
    finally:
        figures["sent"] = sum(fleet.heads.values())
        figures["lost"] = consumer.missing(fleet.heads)
        figures["replayed"], figures["asked"] = consumer.replayed, consumer.asked
        figures["consumer_messages"] = consumer.messages
        figures["worker_rss_mb"] = fleet.total("rss_mb")
        fleet.end()
        consumer.away()
        if broker is not None:
            broker.stop()
        print(json.dumps({key: round(value, 2) for key, value in figures.items()}), flush=True)
    return figures


def endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20, help="real nodes: ledger on disk and link")
    parser.add_argument("--light", type=int, default=0, help="light nodes: link and an outbox in memory")
    parser.add_argument("--period", type=float, default=20, help="seconds between two events of a node")
    parser.add_argument("--seconds", type=float, default=20, help="how long figures are taken")
    parser.add_argument("--broker", type=endpoint, action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--restart", action="store_true", help="stop our mosquitto and start it again")
    parser.add_argument("--kill", action="store_true", help="as --restart, by kill -9, the consumer being away")
    parser.add_argument("--down", type=float, default=5, help="seconds that the broker is away")
    parser.add_argument(
        "--strike", action="append", metavar="COMMAND", help="run it under load, then wait for all nodes"
    )
    parser.add_argument("--patience", type=float, default=120, help="seconds for the last delivery")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--last", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--directory", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.restart = args.restart or args.kill
    signal.signal(signal.SIGINT, signal.SIG_DFL if args.work else signal.default_int_handler)
    if args.work:
        return work(args)
    directory = Path(tempfile.mkdtemp(prefix="fleet-"))
    try:
        return 0 if trial(args, directory)["lost"] == 0 else 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
