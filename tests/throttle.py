"""A slow uplink on loopback: a TCP proxy whose connections share so many bits a second towards the broker."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time

PIECE_BYTES = 1448
BUFFER_BYTES = 8192
"""Of the proxy's sockets: a router with a short queue. What a sender has in flight waits in its own buffers."""


class Throttle:
    """port: where to connect. Bytes towards the broker are let through at bits_per_s, connections in turn."""

    def __init__(self, broker_port: int, bits_per_s: float) -> None:
        self._broker_port = broker_port
        self._bytes_per_s = bits_per_s / 8
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Accepted sockets inherit it; set later it would not shrink the window any more.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.port = int(self._listener.getsockname()[1])
        self.sent_bytes = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        credit, then = 0.0, time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            # At most 10 ms of credit: an idle line does not save up.
            credit = min(credit + (now - then) * self._bytes_per_s, max(PIECE_BYTES, 0.01 * self._bytes_per_s))
            then = now
            up = dict(self._pairs)
            down = {far: near for near, far in self._pairs}
            wanted = [self._listener, *down, *(up if credit >= PIECE_BYTES else ())]
            for ready in select.select(wanted, [], [], PIECE_BYTES / self._bytes_per_s / 4)[0]:
                if ready is self._listener:
                    near, _ = self._listener.accept()
                    self._pairs.append((near, socket.create_connection(("127.0.0.1", self._broker_port))))
                elif ready in down:
                    self._pass(ready, down[ready], 65_536)
                elif credit >= PIECE_BYTES:
                    passed = self._pass(ready, up[ready], PIECE_BYTES)
                    credit -= passed
                    self.sent_bytes += passed
            # In turn: the next round begins with another connection.
            self._pairs = self._pairs[1:] + self._pairs[:1]

    def _pass(self, source: socket.socket, to: socket.socket, limit: int) -> int:
        try:
            data = source.recv(limit)
            if data:
                to.sendall(data)
                return len(data)
        except OSError:
            pass
        for pair in [pair for pair in self._pairs if source in pair]:
            self._pairs.remove(pair)
            for sock in pair:
                sock.close()
        return 0

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._listener.close()
        for pair in self._pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.close()
