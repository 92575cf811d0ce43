"""Commands that take more than one step: a clip's bytes or a still to the centre, a replay. Reads files and ledger.

A job puts chunks into the MediaBox while there is room and ends when the broker has acknowledged all of them.
Commands thread only; time is given.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.errors import StorageError
from agent.ledger_reader import LedgerReader, holes
from agent.mailboxes import Chunk, ChunkFate, MediaBox
from agent.messages import message_bytes, thumb_properties
from agent.model import NS_PER_S, Event, OutboxRow
from agent.requests import Code, ErrorBody, PartBody, Response
from agent.settings import NodeSettings

CHUNK_BYTES = 16_384
PATIENCE_S = 60.0
"""A transfer of which nothing was acknowledged for so long is given up; the client resumes it."""

REPLAY_PAGE = 16
MISSING_NAMED = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: result, or error."""

    result: dict[str, object] | None = None
    error: ErrorBody | None = None


def failure(code: Code, detail: str, pointer: str = "") -> Outcome:
    return Outcome(error=ErrorBody(code=code, detail=detail, pointer=pointer))


class Job(Protocol):
    """step: one bounded piece; an Outcome when it is over. wake_ns: when to step again without news."""

    def step(self, now_ns: int) -> Outcome | None: ...
    def fate(self, fate: ChunkFate) -> None: ...
    def wake_ns(self, now_ns: int) -> int: ...
    def close(self) -> None: ...


class _Window:
    """Chunks of one job under way."""

    def __init__(self, ticket: int, media: MediaBox) -> None:
        self._ticket = ticket
        self._media = media
        self._since_ns: int | None = None
        self._has_news = True
        self.out = 0
        self.settled = 0
        self.words = ""

    @property
    def has_room(self) -> bool:
        return self._media.has_room and not self.words

    def put(self, topic: str, payload: bytes, correlation: bytes = b"") -> None:
        self.out += 1
        self._media.put(Chunk(self._ticket, topic, payload, correlation))

    def fate(self, fate: ChunkFate) -> None:
        self.out -= 1
        self.settled += not fate.words
        self.words = self.words or fate.words
        self._has_news = True

    def is_stuck(self, now_ns: int) -> bool:
        if self._has_news or self._since_ns is None:
            self._since_ns, self._has_news = now_ns, False
        return now_ns - self._since_ns > PATIENCE_S * NS_PER_S

    def close(self) -> None:
        self._media.withdraw(self._ticket)


class Transfer:
    """Bytes offset..end of something, on `B/xfer/{request id}/{offset}`.

    read(offset, length) returns exactly that, or raises StorageError. about: goes into the result.
    """

    def __init__(
        self,
        ticket: int,
        request_id: str,
        media: MediaBox,
        read: Callable[[int, int], bytes],
        offset: int,
        end: int,
        about: dict[str, object],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._window = _Window(ticket, media)
        self._request_id = request_id
        self._read = read
        self._first = self._next = offset
        self._end = end
        self._about = about
        self._close = close
        self._digest = hashlib.sha256()

    def step(self, now_ns: int) -> Outcome | None:
        window = self._window
        # One chunk a step: the dispatcher takes the jobs in turn.
        if window.has_room and self._next < self._end:
            try:
                piece = self._read(self._next, min(CHUNK_BYTES, self._end - self._next))
            except StorageError as error:
                return failure("failed", str(error))
            self._digest.update(piece)
            window.put(f"xfer/{self._request_id}/{self._next}", piece)
            self._next += len(piece)
        if window.words or window.is_stuck(now_ns):
            words = window.words or f"nothing acknowledged for {PATIENCE_S:.0f} s"
            return failure("interrupted", f"{words}; go on with a new command at the first byte you do not have")
        if self._next == self._end and not window.out:
            sent = {"offset": self._first, "bytes": self._end - self._first, "sha256": self._digest.hexdigest()}
            return Outcome({**sent, **self._about})
        return None

    def fate(self, fate: ChunkFate) -> None:
        self._window.fate(fate)

    def wake_ns(self, now_ns: int) -> int:
        more = self._next < self._end and self._window.has_room
        return now_ns if more else now_ns + NS_PER_S

    def close(self) -> None:
        self._window.close()
        self._close()


class Recording:
    """A manual event, and so a clip, for so long. manual(None) begins it, manual(event) ends it."""

    def __init__(self, manual: Callable[[Event | None], Event], duration_s: float) -> None:
        self._manual = manual
        self._duration_s = duration_s
        self._event: Event | None = None
        self._end_ns = 0

    def step(self, now_ns: int) -> Outcome | None:
        if self._event is None:
            self._event = self._manual(None)
            self._end_ns = now_ns + round(self._duration_s * NS_PER_S)
        if now_ns < self._end_ns:
            return None
        event, self._event = self._event, None
        self._end_ns = 0
        self._manual(event)
        return Outcome({"event_id": event.id, "duration_s": self._duration_s})

    def fate(self, fate: ChunkFate) -> None:
        """It sends nothing over MQTT."""

    def wake_ns(self, now_ns: int) -> int:
        return self._end_ns

    def close(self) -> None:
        """The node stops: the event ends with what is recorded."""
        if self._event is not None:
            event, self._event = self._event, None
            self._manual(event)


class Replay:
    """Rows of the outbox that are still kept, one answer each on the client's response topic, then the account."""

    def __init__(
        self,
        ticket: int,
        request_id: str,
        topic: str,
        correlation: bytes,
        media: MediaBox,
        reader: LedgerReader,
        node: NodeSettings,
        span: tuple[int, int],
        *,
        thumbs: bool,
        limit: int,
        wall_ns: Callable[[], int],
    ) -> None:
        """span: first and last seq wanted. limit: rows looked at by one command. May raise StorageError."""
        self._window = _Window(ticket, media)
        self._request_id = request_id
        self._topic = topic
        self._correlation = correlation
        self._reader = reader
        self._node = node
        self._epoch = reader.epoch
        self._thumbs = thumbs
        self._wall_ns = wall_ns
        head = reader.head_seq
        self._first = span[0]
        self._last = min(span[1], head, span[0] + limit - 1)
        self._wanted = min(span[1], head)
        self._next = self._first
        self._page: list[OutboxRow] = []
        self._found: list[int] = []
        self._skipped = 0

    def step(self, now_ns: int) -> Outcome | None:
        window = self._window
        try:
            if not self._page and self._next <= self._last:
                self._page = self._reader.sent(self._next, self._last, REPLAY_PAGE)
                if not self._page:
                    self._next = self._last + 1
            if self._page and window.has_room:
                row = self._page.pop(0)
                self._next = row.seq + 1
                self._found.append(row.seq)
                self._say(row)
        except StorageError as error:
            return failure("unavailable", str(error))
        if window.words or window.is_stuck(now_ns):
            return failure("interrupted", window.words or f"nothing acknowledged for {PATIENCE_S:.0f} s")
        if self._next > self._last and not self._page and not window.out:
            gone = holes(self._found, self._first, max(self._last, self._first - 1), [])
            return Outcome(
                {
                    "epoch": self._epoch,
                    "from_seq": self._first,
                    "to_seq": self._last,
                    "sent": len(self._found) - self._skipped,
                    "missing": [list(gap) for gap in gone[:MISSING_NAMED]],
                    "next_seq": self._last + 1 if self._last < self._wanted else None,
                }
            )
        return None

    def _say(self, row: OutboxRow) -> None:
        if row.blob is not None:
            if not self._thumbs:
                self._skipped += 1
                return
            about = thumb_properties(row).model_dump()
            part = PartBody(
                topic=row.kind.value, seq=row.seq, message=about, jpeg=base64.b64encode(row.blob).decode()
            )
        else:
            text = message_bytes(
                row, site=self._node.site, node=self._node.id, epoch=self._epoch, now_wall_ns=self._wall_ns()
            )
            part = PartBody(topic=row.kind.value, seq=row.seq, message=json.loads(text))
        answer = Response(id=self._request_id, ok=True, part=part)
        self._window.put(self._topic, answer.model_dump_json(exclude_none=True).encode(), self._correlation)

    def fate(self, fate: ChunkFate) -> None:
        self._window.fate(fate)

    def wake_ns(self, now_ns: int) -> int:
        more = (self._page or self._next <= self._last) and self._window.has_room
        return now_ns if more else now_ns + NS_PER_S

    def close(self) -> None:
        self._window.close()
