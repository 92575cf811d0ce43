"""A broker of one's own on loopback, for `demo`: mosquitto where it is installed, else an embedded Python one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from agent.errors import LinkError

START_LIMIT_S = 15.0
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


class LocalBroker:
    """A child process that listens on 127.0.0.1:port for as long as the `with` block lasts.

    directory: where configuration and log go. LinkError when neither broker is installed or it does not start.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.name = ""

    def __enter__(self) -> LocalBroker:
        log_path = self._directory / "broker.log"
        with log_path.open("wb") as output:
            # A session of its own: Ctrl-C reaches the demo only, which stops the node before the broker.
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        with contextlib.ExitStack() as unless_it_listens:
            unless_it_listens.callback(self._end)
            self._wait_until_it_listens(log_path)
            unless_it_listens.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _command(self) -> list[str]:
        mosquitto = shutil.which("mosquitto", path=SEARCH_PATH)
        if mosquitto is not None:
            self.name = "mosquitto"
            config = self._directory / "mosquitto.conf"
            config.write_text(
                f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
                "max_queued_messages 10000\nset_tcp_nodelay true\n"
            )
            return [mosquitto, "-c", str(config)]
        self.name = "embedded amqtt (MQTT 3.1.1)"
        return [sys.executable, "-m", "agent.cli.embedded_broker", str(self.port)]

    def _wait_until_it_listens(self, log_path: Path) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline_s:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                pass
            try:
                code = self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            last = log_path.read_text(errors="replace").strip().splitlines()[-1:]
            raise LinkError(
                "start",
                f"broker {self.name}",
                f"it ended with code {code}: {' '.join(last)}",
                hint="apt-get install mosquitto, or pip install 'camera-agent[demo]'",
            )
        raise LinkError(
            "start", f"broker {self.name}", f"not listening after {START_LIMIT_S:g} s", hint=str(log_path)
        )


def free_port() -> int:
    """A TCP port on loopback that nobody uses now.

    Below those that the kernel gives to outgoing connections: one of these could take it before its listener does,
    and a client that dials a broker that is away could be given that port itself, and so reach itself.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
