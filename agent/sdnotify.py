"""sd_notify: tells systemd how the service is. Writes to $NOTIFY_SOCKET, does nothing where there is none."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StatusLine:
    """What STATUS= says, for people in `systemctl status` and for the updater, which judges a trial by it.

    summary: what the node does, or its troubles. frames: from the camera since the start. connected: the broker.
    """

    summary: str
    frames: int
    connected: bool

    def __str__(self) -> str:
        return f"{self.summary} [frames {self.frames}, broker {'connected' if self.connected else 'absent'}]"

    @classmethod
    def parse(cls, text: str) -> StatusLine | None:
        """None for a line that is not one of ours (a node that is still opening its ledger)."""
        found = re.fullmatch(r"(.*) \[frames (\d+), broker (connected|absent)\]", text, re.DOTALL)
        return cls(found[1], int(found[2]), found[3] == "connected") if found else None


class Notifier:
    """Sends READY=1, WATCHDOG=1, STATUS=... watchdog_s: how often systemd wants a sign of life, None for never."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        watchdog_us = environ.get("WATCHDOG_USEC", "")
        meant_for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdigit() and meant_for_us else None

    def send(self, *lines: str) -> None:
        """Send the lines in one datagram. A socket that is gone or full is no reason to stop a node."""
        if not self._address:
            return
        # A leading @ names an abstract socket (unix(7)).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            try:
                sender.sendto("\n".join(lines).encode(), address)
            except OSError:
                return
