"""`update`: a signed package by HTTP GET, verified as it comes, handed to root's updater. Network; disk by errands.

http.client and nothing else, as in agent/uploads.py: no redirects followed, no proxy. The head is verified before
anything of the payload is asked of the disk, so that a package of a foreign key costs 8 kB. A download that breaks
goes on where it broke. What is handed over is verified again by root, who trusts nothing that this process says.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from agent.backoff import Backoff
from agent.errands import Done, PackagePiece
from agent.jobs import Outcome, failure
from agent.mailboxes import ChunkFate
from agent.model import NS_PER_S
from agent.release import MAX_HEAD_BYTES, About, PackageRefusedError

log = logging.getLogger(__name__)

READ_BYTES = 65_536
PIECE_BYTES = 262_144
"""What the storage thread writes and syncs at once: a slow card takes a tenth of a second for it."""

STEP_WAIT_S = 2.0
"""A server that says nothing for so long is asked again, from the byte where it stopped."""

TRIES = 5
"""Tries in a row that bring not one byte."""

ROOM = 6
"""The package, root's copy of it, its unpacked payload and the release built from it: so many times its bytes."""


class Fetch:
    """One package on its way to `path`.

    judge: reads the head and returns what it says, or raises PackageRefusedError. store: a piece for the storage
    thread and what to do when it is written; False when there is no room for it now. free_bytes: of path's disk.
    ended: called once, with the outcome, or None when it was given up.
    """

    def __init__(
        self,
        url: str,
        path: Path,
        *,
        judge: Callable[[BinaryIO], About],
        store: Callable[[PackagePiece, Callable[[Done], None]], bool],
        free_bytes: Callable[[], int],
        ended: Callable[[Outcome | None], None],
        backoff: Backoff,
        context: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._scheme, self._netloc = parts.scheme, parts.netloc
        self._host, self._port = parts.hostname or "", parts.port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._path = path
        self._judge = judge
        self._store = store
        self._free_bytes = free_bytes
        self._ended = ended
        self._backoff = backoff
        self._context = context
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._digest = hashlib.sha256()
        self._about: About | None = None
        self._total = 0
        self._pending = bytearray()
        self._stored = 0
        self._skip = 0
        self._is_storing = False
        self._is_begun = False
        self._outcome: Outcome | None = None
        self._tries = 0
        self._try_ns = 0

    @property
    def percent(self) -> int:
        return 100 * (self._stored + len(self._pending)) // self._total if self._total else 0

    def step(self, now_ns: int) -> Outcome | None:
        if self._outcome is None and not self._is_storing and now_ns >= self._try_ns:
            self._outcome = self._work(now_ns)
        return self._outcome

    def _work(self, now_ns: int) -> Outcome | None:
        if len(self._pending) >= PIECE_BYTES or (self._total and self._received == self._total):
            self._put()
            return None
        try:
            return self._read(now_ns)
        except PackageRefusedError as error:
            return failure("refused", str(error))
        except (OSError, http.client.HTTPException) as error:
            words = str(getattr(error, "strerror", None) or error or type(error).__name__)
            return self._failed(f"{self._host}: {words}", now_ns)

    @property
    def _received(self) -> int:
        return self._stored + len(self._pending)

    def _read(self, now_ns: int) -> Outcome | None:
        if self._response is None:
            return self._begin(now_ns)
        content = self._response.read1(READ_BYTES)
        if not content:
            raise ConnectionError(f"it ended after {self._received} bytes")
        skipped, self._skip = content[: self._skip], self._skip - min(self._skip, len(content))
        content = content[len(skipped) :]
        if not content:
            return None
        self._tries = 0
        self._backoff.reset()
        if self._about is None:
            self._pending += content
            return self._take_head()
        self._keep(content)
        return None

    def _keep(self, content: bytes) -> None:
        """Payload: counted, hashed, kept for the disk."""
        if self._received + len(content) > self._total:
            raise PackageRefusedError("something follows its payload")
        self._digest.update(content)
        self._pending += content
        if (
            self._about is not None
            and self._received == self._total
            and self._digest.hexdigest() != self._about.sha256
        ):
            raise PackageRefusedError("its sha256 does not match: damaged on the way")

    def _take_head(self) -> Outcome | None:
        if self._pending.count(b"\n") < 3 and len(self._pending) < MAX_HEAD_BYTES:
            return None
        head = io.BytesIO(bytes(self._pending[:MAX_HEAD_BYTES]))
        about = self._judge(head)
        wanted_bytes, free_bytes = ROOM * about.bytes, self._free_bytes()
        if free_bytes < wanted_bytes:
            words = f"needs {wanted_bytes / 2**20:,.0f} MB of disk, {free_bytes / 2**20:,.0f} are free"
            return failure("unavailable", words)
        self._about, self._total = about, head.tell() + about.bytes
        payload, self._pending = bytes(self._pending[head.tell() :]), self._pending[: head.tell()]
        self._keep(payload)
        return None

    def _begin(self, now_ns: int) -> Outcome | None:
        self._tries += 1
        connection: http.client.HTTPConnection
        if self._scheme == "https":
            context = self._context or ssl.create_default_context()
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=STEP_WAIT_S, context=context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=STEP_WAIT_S)
        self._connection = connection
        headers = {"Host": self._netloc, "Connection": "close"}
        if self._received:
            headers["Range"] = f"bytes={self._received}-"
        connection.request("GET", self._target, headers=headers)
        self._response = response = connection.getresponse()
        if response.status in (200, 206):
            # A server that knows no ranges begins anew; what is here already is passed over.
            self._skip = self._received if response.status == 200 else 0
            return None
        self._drop()
        words = f"{self._host} answered {response.status} {response.reason[:60]}"
        if 300 <= response.status < 400:
            return failure("forbidden", f"{words}: redirects are not followed", "/args/url")
        if response.status < 500 and response.status not in (408, 429):
            return failure("failed", words)
        return self._failed(words, now_ns)

    def _put(self) -> None:
        is_last = self._received == self._total
        content = bytes(self._pending)

        def go_on(done: Done) -> None:
            self._is_storing = False
            if done.code != "ok":
                self._outcome = failure("unavailable", f"it could not be written: {done.words}")
                return
            self._stored += len(content)
            if is_last:
                assert self._about is not None
                log.info("package %s fetched from %s: %d bytes", self._about.version, self._host, self._stored)
                result = {"state": "handed-over", "version": self._about.version, "bytes": self._stored}
                self._outcome = Outcome(result)

        self._is_storing = True
        if self._store(PackagePiece(self._path, self._stored, content, "last" if is_last else ""), go_on):
            self._pending.clear()
            self._is_begun = True
        else:
            self._is_storing = False

    def _failed(self, words: str, now_ns: int) -> Outcome | None:
        self._drop()
        if self._tries >= TRIES:
            return failure("failed", f"{words}; tried {self._tries} times without a byte")
        wait_s = self._backoff.next_s()
        log.info("download of a package: %s; again in %.0f s", words, wait_s)
        self._try_ns = now_ns + round(wait_s * NS_PER_S)
        return None

    def _drop(self) -> None:
        for opened in (self._response, self._connection):
            if opened is not None:
                with contextlib.suppress(OSError):
                    opened.close()
        self._response = self._connection = None

    def fate(self, fate: ChunkFate) -> None:
        """It sends nothing over MQTT."""

    def wake_ns(self, now_ns: int) -> int:
        """Written pieces ring by themselves."""
        return now_ns + NS_PER_S if self._is_storing else max(self._try_ns, now_ns)

    def close(self) -> None:
        """What is half here goes."""
        self._drop()
        if self._is_begun and (self._outcome is None or self._outcome.error is not None):
            self._store(PackagePiece(self._path, self._stored, b"", "drop"), lambda _: None)
        self._ended(self._outcome)
