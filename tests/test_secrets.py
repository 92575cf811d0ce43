"""Secrets stay secret: canaries at DEBUG level, in log, process list, files and messages; and nothing listens."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import DEADLINE_S, Mosquitto, Subscriber, free_port, requires_mosquitto
from pki import CLIENT, Pki
from program import Program, write_settings

PASSWORD, CAMERA_PASSWORD, URL_SECRET = "canary-broker-7f3a", "canary-camera-91bc", "canary-signature-5d20"
CANARY = "canary"
USER = "ward-12/door"
LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp."""


def wait_for(subscriber: Subscriber, ending: str, program: Program) -> None:
    end = time.monotonic() + DEADLINE_S
    while not subscriber.of(ending):
        assert time.monotonic() < end, program.log()
        subscriber.wait_a_moment()


def files_below(*directories: Path) -> Iterator[Path]:
    for directory in directories:
        yield from (path for path in directory.rglob("*") if path.is_file())


def listening(pid: int) -> list[str]:
    """Lines of /proc/PID/net that are listening sockets of this process; of UDP, bound ones without a peer."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in (Path(f"/proc/{pid}/net") / table).read_text().splitlines()[1:]:
            fields = line.split()
            is_open = fields[3] == LISTEN if table.startswith("tcp") else fields[2].endswith(":0000")
            if fields[9] in inodes and is_open:
                found.append(f"{table} {line.strip()}")
    return found


@requires_mosquitto
@pytest.mark.parametrize("kind", ["fake", "rtsp", "tls"])
def test_no_secret_is_in_log_process_list_files_or_messages_and_nothing_listens(tmp_path: Path, kind: str) -> None:
    pki = Pki(tmp_path / "pki")
    ca = pki.ca()
    shown_by_broker = pki.issue("broker", issuer=ca)
    own = pki.issue("node", issuer=ca, names=(), common_name=USER, usage=(CLIENT,))
    key_lines = own.key_file.read_text().splitlines()[1:-1]
    canaries = [CANARY, *key_lines]
    with_tls = free_port()
    broker = Mosquitto(
        tmp_path / "broker",
        users={USER: PASSWORD, "desk": "y"},
        extra=[f"listener {with_tls} 127.0.0.1", f"cafile {ca.cert_file}"],
        certificate=(shown_by_broker.cert_file, shown_by_broker.key_file),
    ).start()
    subscriber = Subscriber(broker.port, user=("desk", "y"))
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "camera-agent.mqtt-password").write_text(PASSWORD)
    more: dict[str, dict[str, object]] = {"mqtt": {"username": USER}, "log": {"level": "debug"}}
    if kind == "tls":
        (credentials / "camera-agent.mqtt-cert").write_bytes(own.cert_file.read_bytes())
        (credentials / "camera-agent.mqtt-key").write_bytes(own.key_file.read_bytes())
        more["mqtt"] |= {"tls": True, "port": with_tls, "ca_file": str(ca.cert_file)}
    if kind == "rtsp":
        # Nobody serves it: the address with its password is in every line about the camera.
        source = f"rtsp://guard:{CAMERA_PASSWORD}@127.0.0.1:1/door"
        more["camera"] = {"backend": "video", "source": source}
    home = tmp_path / "home"
    home.mkdir()
    config = write_settings(home, broker.port, **more)
    config.chmod(0o600)
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    try:
        with Program(tmp_path, "run", "--config", config, environ=environ) as program:
            wait_for(subscriber, "/health" if kind == "rtsp" else "/event", program)
            url = f"http://127.0.0.1:9/clip?X-Amz-Signature={URL_SECRET}"
            command = {
                "id": "one",
                "client": "desk",
                "args": {"clip_id": "01JD9ZV6Q2M4S8T1C3R5W7Y9AB", "url": url},
            }
            subscriber.say("edgecam/v1/ward-12/door/cmd/clip.put", json.dumps(command).encode())
            wait_for(subscriber, "/rsp/desk", program)
            shown = Path(f"/proc/{program.pid}/cmdline").read_bytes() + Path(f"/proc/{program.pid}/comm").read_bytes()
            assert listening(program.pid) == []
            assert program.signal(signal.SIGTERM) == 0
        log = program.log()
    finally:
        subscriber.close()
        broker.kill()

    assert "DEBUG" in log
    assert len(key_lines) > 1
    assert not [canary for canary in canaries if canary in log]
    assert not [canary for canary in canaries if canary.encode() in shown]
    said = [m for m in subscriber.messages if "/cmd/" not in m.topic]
    assert len(said) > 5
    spoken = [m.payload + str(m.properties).encode() for m in said]
    assert not [canary for canary in canaries if any(canary.encode() in each for each in spoken)]
    kept = [path for path in files_below(home) if path != config]
    assert kept
    hits = [str(path) for path in kept if any(canary.encode() in path.read_bytes() for canary in canaries)]
    assert not hits
    assert not [str(path) for path in kept if path.name != "quick.toml" and path.stat().st_mode & stat.S_IROTH]


def test_the_listening_check_would_see_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        assert len(listening(os.getpid())) >= 2
