"""`clip.put`: one clip by HTTP PUT to a presigned URL of an S3-compatible store. Network, and the clip's file.

http.client and nothing else: one request with a known length, no redirects followed, no proxy, no cookies. The
presigned URL is a secret: it stands in no log, answer or audit row. Commands thread only; each step waits at most
STEP_WAIT_S for the network. A presigned PUT is whole or not at all, so a new try begins at its first byte; what
resumes an upload is the store's multipart form, of which each part is a PUT of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import re
import select
import socket
import ssl
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import urlsplit

from agent.backoff import Backoff
from agent.errors import StorageError
from agent.jobs import Outcome, failure
from agent.ledger_reader import ClipRow
from agent.mailboxes import ChunkFate
from agent.model import NS_PER_S

log = logging.getLogger(__name__)

PIECE_BYTES = 16_384
STEP_WAIT_S = 2.0
PATIENCE_S = 60.0
"""Without a byte taken or an answer for so long a try is given up."""

TRIES = 5
ANSWER_BYTES = 4096


def allowed(url: str, hosts: list[str], setting: str = "commands.upload_hosts") -> str:
    """Why url may not be called; empty when it may. hosts: the origins that the setting names."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "this is not a URL"
    if not url.isascii() or any(ord(char) <= 32 or ord(char) == 127 for char in url):
        return "a URL has no spaces, control or non-ASCII characters"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "the URL should begin with https:// or http://"
    if parts.username is not None or parts.password is not None:
        return "the URL should carry no user name"
    if not hosts:
        return f"{setting} of this node names nobody"
    given = (parts.scheme, parts.hostname.lower(), port or _port(parts.scheme))
    for host in hosts:
        origin = urlsplit(host)
        if given == (origin.scheme, (origin.hostname or "").lower(), origin.port or _port(origin.scheme)):
            return ""
    return f"{setting} of this node does not name {parts.scheme}://{parts.hostname[:80]}:{given[2]}"


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


class Upload:
    """One clip on its way. piece(file, offset, length) returns exactly that, or raises StorageError."""

    def __init__(
        self,
        url: str,
        content_type: str,
        clip: ClipRow,
        file: BinaryIO,
        piece: Callable[[BinaryIO, int, int], bytes],
        backoff: Backoff,
        span: tuple[int, int],
        context: ssl.SSLContext | None = None,
    ) -> None:
        """span: first byte to send, and the one after the last."""
        parts = urlsplit(url)
        self._scheme = parts.scheme
        self._host = parts.hostname or ""
        self._port = parts.port or _port(parts.scheme)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._netloc = parts.netloc
        self._content_type = content_type
        self._clip = clip
        self._file = file
        self._piece = piece
        self._backoff = backoff
        self._context = context
        self._connection: http.client.HTTPConnection | None = None
        self._first, self._end = span
        self._next = self._first
        self._digest = hashlib.sha256()
        self._left = b""
        self._tries = 0
        self._try_ns = 0
        self._progress_ns = 0

    def step(self, now_ns: int) -> Outcome | None:
        if now_ns < self._try_ns:
            return None
        try:
            return self._work(now_ns)
        except StorageError as error:
            return failure("failed", str(error))
        except (OSError, http.client.HTTPException) as error:
            words = str(getattr(error, "strerror", None) or error or type(error).__name__)
            return self._failed(f"{self._host}: {words}", now_ns)

    def _work(self, now_ns: int) -> Outcome | None:
        if self._connection is None:
            self._connection = self._begin()
            self._progress_ns = now_ns
        connection = self._connection
        if self._next < self._end or self._left:
            if self._send(connection):
                self._progress_ns = now_ns
            elif now_ns - self._progress_ns > PATIENCE_S * NS_PER_S:
                raise TimeoutError(f"nothing taken for {PATIENCE_S:.0f} s")
            return None
        if not _is_readable(connection.sock):
            if now_ns - self._progress_ns > PATIENCE_S * NS_PER_S:
                raise TimeoutError(f"no answer within {PATIENCE_S:.0f} s")
            return None
        return self._judge(connection.getresponse(), now_ns)

    def _begin(self) -> http.client.HTTPConnection:
        self._tries += 1
        self._next, self._left, self._digest = self._first, b"", hashlib.sha256()
        if self._scheme == "https":
            context = self._context or ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=STEP_WAIT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=STEP_WAIT_S)
        connection.putrequest("PUT", self._target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", self._netloc)
        connection.putheader("Content-Length", str(self._end - self._first))
        if self._content_type:
            connection.putheader("Content-Type", self._content_type)
        connection.endheaders()
        return connection

    def _send(self, connection: http.client.HTTPConnection) -> bool:
        """A piece into the socket; False when it takes nothing now."""
        if not self._left:
            length = min(PIECE_BYTES, self._end - self._next)
            self._left = self._piece(self._file, self._next, length)
            self._digest.update(self._left)
            self._next += length
        try:
            self._left = self._left[connection.sock.send(self._left) :]
        except TimeoutError:
            return False
        return True

    def _judge(self, response: http.client.HTTPResponse, now_ns: int) -> Outcome | None:
        body = response.read(ANSWER_BYTES).decode("utf-8", "replace")
        if 200 <= response.status < 300:
            etag = (response.getheader("ETag") or "").strip('"')[:100]
            sent = self._end - self._first
            log.info("clip %s put to %s: %d of %d bytes", self._clip.id, self._host, sent, self._clip.bytes)
            whole = {"id": self._clip.id, "bytes": self._clip.bytes, "sha256": self._clip.sha256}
            about = {"offset": self._first, "bytes": sent, "sha256": self._digest.hexdigest(), "clip": whole}
            return Outcome({**about, "etag": etag})
        said = re.search(r"<Code>([A-Za-z0-9.]{1,60})</Code>", body)
        words = f"{self._host} answered {response.status} {said.group(1) if said else response.reason[:60]}"
        if 300 <= response.status < 400:
            return failure("forbidden", f"{words}: redirects are not followed", "/args/url")
        if response.status < 500 and response.status not in (408, 429):
            return failure("failed", words)
        return self._failed(words, now_ns)

    def _failed(self, words: str, now_ns: int) -> Outcome | None:
        self._drop()
        if self._tries >= TRIES:
            return failure("failed", f"{words}; tried {self._tries} times")
        wait_s = self._backoff.next_s()
        log.info("upload of clip %s: %s; again in %.0f s", self._clip.id, words, wait_s)
        self._try_ns = now_ns + round(wait_s * NS_PER_S)
        return None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def fate(self, fate: ChunkFate) -> None:
        """It sends nothing over MQTT."""

    def wake_ns(self, now_ns: int) -> int:
        is_waiting = self._connection is not None and self._next == self._end and not self._left
        return max(self._try_ns, now_ns + (NS_PER_S // 20 if is_waiting else 0))

    def close(self) -> None:
        self._drop()
        self._file.close()


def _is_readable(sock: socket.socket) -> bool:
    pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
    return pending or bool(select.select([sock], [], [], 0)[0])
