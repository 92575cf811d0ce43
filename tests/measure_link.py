"""`python tests/measure_link.py`: what the link costs and how fast it is, against a mosquitto of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from broker import Mosquitto, Subscriber, until
from link_fixtures import Desk
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.clock import SystemClock
from agent.model import OutboxKind

ROWS = 2000
JPEG = b"\xff\xd8" + bytes(20_000) + b"\xff\xd9"


def drain(port: int, kind: str) -> tuple[float, float]:
    """(messages per second, CPU microseconds per message of the link's thread) for ROWS rows of the kind."""
    desk = Desk(port, drain_per_s=0)
    for number in range(1, ROWS + 1):
        if kind == "event":
            desk.outbox.event(number)
        else:
            desk.outbox.event(number, thumb=JPEG)
            desk.outbox.owed.pop(2 * number - 1)
    rows = sorted(desk.outbox.owed.items())
    place = {seq: index for index, (seq, _) in enumerate(rows)}

    def due(after_seq: int, limit: int, kinds: Collection[OutboxKind]) -> list[object]:  # O(1): it costs nothing
        start = place[after_seq] + 1 if after_seq in place else 0
        return [row for _, row in rows[start : start + limit] if row.kind in kinds]

    desk.outbox.due = due  # type: ignore[method-assign,assignment]
    desk.outbox.newest_event = desk.outbox.newest_thumb = lambda: None  # type: ignore[method-assign]
    desk.connect()
    cpu_s, wall_s = time.thread_time(), time.monotonic()
    before = desk.link.status.delivered
    while desk.link.status.delivered < ROWS:
        desk.link.step(0.1)
        desk.box.take()
    done = ROWS - before
    cpu_s, wall_s = time.thread_time() - cpu_s, time.monotonic() - wall_s
    desk.link.close(1)
    return done / wall_s, cpu_s / done * 1e6


def bare_paho(port: int, payload: bytes) -> float:
    """CPU microseconds per message of paho alone, by the same external loop, window 20."""
    import select

    import paho.mqtt.client as paho

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bare", protocol=MQTTProtocolVersion.MQTTv5)
    acked = 0

    def on_publish(*_: object) -> None:
        nonlocal acked
        acked += 1

    client.on_publish = on_publish
    client.connect("127.0.0.1", port)
    while not client.is_connected():
        client.loop(0.1)
    sent = 0
    cpu_s = time.thread_time()
    while acked < ROWS:
        while sent < ROWS and sent - acked < 20:
            client.publish("edgecam/v1/ward-12/entrance/bare", payload, 1)
            sent += 1
        sock = client.socket()
        assert sock is not None
        select.select([sock], [sock] if client.want_write() else [], [], 0.1)
        client.loop_read()
        client.loop_write()
        client.loop_misc()
    cpu_s = time.thread_time() - cpu_s
    client.disconnect()
    return cpu_s / ROWS * 1e6


def latency(port: int, count: int) -> list[float]:
    """Milliseconds from the bell (a row was committed) to the subscriber, in a process of its own."""
    listener = subprocess.Popen(
        [sys.executable, __file__, "listen", str(port), str(count)], stdout=subprocess.PIPE, text=True
    )
    assert listener.stdout is not None
    assert listener.stdout.readline() == "ready\n"
    desk = Desk(port, drain_per_s=0)
    desk.connect()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            desk.step(0.2)

    thread = threading.Thread(target=work)
    thread.start()
    rang_ns: dict[int, int] = {}
    for number in range(1, count + 1):
        rang_ns[number] = desk.clock.boot_ns()
        desk.outbox.event(number)
        desk.link.bell.ring()
        time.sleep(0.02)
    arrivals: list[list[int]] = json.loads(listener.stdout.readline())
    stop.set()
    thread.join()
    desk.link.close(1)
    listener.wait()
    return [(at_ns - rang_ns[seq]) / 1e6 for seq, at_ns in arrivals]


def listen_and_print(port: int, count: int) -> None:
    clock = SystemClock()
    arrivals: dict[int, int] = {}
    subscriber = Subscriber(port, "edgecam/v1/ward-12/entrance/event")
    before: Callable[..., None] = subscriber._client.on_message  # type: ignore[assignment]

    def note(client: object, data: object, message: object) -> None:
        arrivals.setdefault(json.loads(message.payload)["seq"], clock.boot_ns())  # type: ignore[attr-defined]
        before(client, data, message)

    subscriber._client.on_message = note
    print("ready", flush=True)

    def complete() -> bool:
        subscriber.wait_a_moment()
        return len(arrivals) == count

    until(complete, "all messages")
    print(json.dumps(list(arrivals.items())), flush=True)
    subscriber.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        broker = Mosquitto(Path(home)).start()
        try:
            delays = sorted(latency(broker.port, 1000))
            p99 = delays[int(len(delays) * 0.99)]
            print(f"bell to subscriber: median {statistics.median(delays):.2f} ms, p99 {p99:.2f} ms, n {len(delays)}")
            subscriber = subprocess.Popen(
                ["mosquitto_sub", "-p", str(broker.port), "-t", "edgecam/#", "-V", "5"], stdout=subprocess.DEVNULL
            )
            time.sleep(0.5)
            for kind in ("event", "thumb"):
                rate, cpu_us = drain(broker.port, kind)
                bare_us = bare_paho(broker.port, JPEG if kind == "thumb" else bytes(700))
                print(f"{kind}: {rate:.0f} messages/s, {cpu_us:.0f} us CPU each, of which paho {bare_us:.0f} us")
            subscriber.terminate()
            subscriber.wait()
        finally:
            broker.kill()


if __name__ == "__main__":
    if sys.argv[1:2] == ["listen"]:
        listen_and_print(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
