"""How long an event takes to a dashboard while a clip crosses the same slow uplink. A measurement, not a test.

PYTHONPATH=tests .venv/bin/python tests/measure_transfer.py [--mbit 2] [--clip-mb 2] [--thumb-kb 27]
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import tempfile
import time
from pathlib import Path

from broker import Mosquitto
from command_fixtures import Bench, Client
from link_fixtures import ulid
from throttle import Throttle

from agent.model import Event, EventKind, Moment, Phase, Thumbnail


def jpeg(size: int) -> bytes:
    return b"\xff\xd8\xff\xe0\x00\x04xx\xff\xda" + secrets.token_bytes(max(0, size - 12)) + b"\xff\xd9"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbit", type=float, default=2)
    parser.add_argument("--clip-mb", type=float, default=2)
    parser.add_argument("--thumb-kb", type=float, default=27)
    parser.add_argument("--every-s", type=float, default=0.5)
    parser.add_argument("--no-clip", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        broker = Mosquitto(directory / "broker").start()
        throttle = Throttle(broker.port, given.mbit * 1e6)
        bench = Bench(directory / "node", throttle.port)
        bench.connect()
        client = Client(broker.port, bench)
        clip = bench.add_clip(1, secrets.token_bytes(round(given.clip_mb * 1e6)))
        request_id = "" if given.no_clip else client.request("clip.get", {"clip_id": clip.id})
        began, born = time.monotonic(), dict[str, float]()
        next_s, before = began + 0.2, throttle.sent_bytes
        wanted_s = given.clip_mb * 8 / given.mbit + 1
        while not client.answers(request_id) if request_id else time.monotonic() < began + wanted_s:
            if time.monotonic() >= next_s:
                next_s += given.every_s
                event_id = ulid(1000 + len(born))
                at = Moment(bench.clock.boot_ns(), len(born))
                picture = Thumbnail(jpeg(round(given.thumb_kb * 1000)), 640, 360, at) if given.thumb_kb else None
                event = Event(
                    event_id, 1, Phase.END, EventKind.MOTION, at, at, at, score=0.8, end=at, thumbnail=picture
                )
                born[event_id] = time.monotonic()
                bench.board.put(event)
            bench.step()
        took_s = time.monotonic() - began
        used = (throttle.sent_bytes - before) * 8 / took_s / given.mbit / 1e6
        end = time.monotonic() + 20
        while len(client.of("/event", live=True)) < len(born) and time.monotonic() < end:
            bench.step()
        arrived = {json.loads(m.payload)["id"]: m.at_s for m in client.of("/event", live=True)}
        waits = sorted((arrived[event_id] - born_s) * 1000 for event_id, born_s in born.items())
        p95 = waits[min(len(waits) - 1, round(0.95 * len(waits)))]
        print(
            f"{given.mbit:g} Mbit/s, clip {given.clip_mb:g} MB in {took_s:.1f} s ({used:.0%} of the line), "
            f"{len(waits)} events with pictures of {given.thumb_kb:g} kB each {given.every_s:g} s: "
            f"median {statistics.median(waits):.0f} ms, p95 {p95:.0f} ms, max {waits[-1]:.0f} ms"
        )
        client.close()
        bench.close()
        throttle.close()
        broker.stop()


if __name__ == "__main__":
    main()
