"""What commands ask of the disk: audit rows, pins, erasures, small files, a package. Works in the storage thread."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent import audit
from agent.audit import AuditRow
from agent.clock import Now
from agent.disk import Disk, OpenFile
from agent.errors import StorageError
from agent.ledger import Ledger
from agent.ledger_reader import ClipRow
from agent.mailboxes import Box
from agent.ring import erase, protect

log = logging.getLogger(__name__)

PER_STEP = 16

Action = Literal["", "protect", "release", "erase"]


@dataclass(frozen=True, slots=True)
class PackagePiece:
    """A piece of the package at path, from offset on. It has that name only once the last piece is on the disk.

    end: last: whole after this one; drop: nothing of it is kept.
    """

    path: Path
    offset: int
    content: bytes = field(repr=False)
    end: Literal["", "last", "drop"] = ""


@dataclass(frozen=True, slots=True)
class Errand:
    """One thing to do, in this order: the row, the file (name in the node's directory, content), piece, action.

    ticket: given back in the Done; 0: nobody waits for it.
    """

    ticket: int
    row: AuditRow | None = None
    file: tuple[str, bytes] | None = field(default=None, repr=False)
    action: Action = ""
    clip_id: str = ""
    piece: PackagePiece | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """code: ok, not-found, protected or unavailable, with words for the last."""

    ticket: int
    code: Literal["ok", "not-found", "protected", "unavailable"] = "ok"
    words: str = ""


class ErrandDesk:
    """Both ways between the dispatcher and the storage."""

    def __init__(self, to_storage: Box[Errand], to_commands: Box[Done]) -> None:
        self.to_storage = to_storage
        self.to_commands = to_commands


class Errands:
    """Does them. Nothing waits here: while the ledger is away each is answered at once with why."""

    def __init__(self, disk: Disk, directory: Path, ledger: Ledger, desk: ErrandDesk) -> None:
        self._disk = disk
        self._directory = directory
        self._ledger = ledger
        self._desk = desk
        self._package: OpenFile | None = None

    def step(self, now: Now, *, unavailable: str = "") -> bool:
        """Do up to PER_STEP errands; whether rows were written. The ledger's StorageError is raised after answering.

        unavailable: why nothing can be written now.
        """
        errands = [errand for _ in range(PER_STEP) if (errand := self._desk.to_storage.take()) is not None]
        if not errands:
            return False
        if unavailable:
            self._answer(errands, "unavailable", unavailable)
            return False
        rows = [errand.row for errand in errands if errand.row is not None]
        try:
            if rows:
                with self._ledger.transaction(now) as database:
                    audit.write(database, rows, now)
        except StorageError as error:
            self._answer(errands, "unavailable", str(error))
            raise
        for errand in errands:
            self._do(errand, now)
        return bool(rows)

    def _do(self, errand: Errand, now: Now) -> None:
        try:
            if errand.file is not None:
                name, content = errand.file
                self._disk.write_whole(self._directory / name, content)
            if errand.piece is not None:
                self._store(errand.piece)
            done = self._act(errand, now) if errand.action else Done(errand.ticket)
        except StorageError as error:
            done = Done(errand.ticket, "unavailable", str(error))
        if errand.ticket:
            self._desk.to_commands.put(done)

    def _act(self, errand: Errand, now: Now) -> Done:
        clip = self._clip(errand.clip_id)
        if clip is None:
            return Done(errand.ticket, "not-found")
        if errand.action == "erase":
            if clip.is_protected:
                return Done(errand.ticket, "protected")
            erased = erase(self._disk, self._directory, self._ledger, [clip], now)
            log.info("clip %s and %d pictures erased by command", clip.id, erased.pictures)
            return Done(errand.ticket)
        protect(self._ledger, [clip.id], now, is_protected=errand.action == "protect")
        log.info("clip %s %s by command", clip.id, "protected" if errand.action == "protect" else "released")
        return Done(errand.ticket)

    def _store(self, piece: PackagePiece) -> None:
        """Piece by piece under a hidden name, each synced, so that no single sync holds up recording."""
        part = piece.path.with_name(f".{piece.path.name}.part")
        if piece.offset == 0 or piece.end == "drop":
            if self._package is not None:
                self._disk.close(self._package)
                self._package = None
            self._disk.remove(part)
        if piece.end == "drop":
            return
        if self._package is None:
            self._package = self._disk.create(part)
        if self._package.length != piece.offset:
            raise StorageError("write", part, f"{self._package.length} bytes are there, the next are {piece.offset}")
        self._disk.append(self._package, piece.content)
        self._disk.datasync(self._package)
        if piece.end == "last":
            self._disk.sync(self._package)
            self._disk.close(self._package)
            self._package = None
            self._disk.rename(part, piece.path)
            self._disk.sync_directory(piece.path.parent)

    def _clip(self, clip_id: str) -> ClipRow | None:
        found = [clip for clip in self._ledger.clips(state="final") if clip.id == clip_id]
        return found[0] if found else None

    def _answer(self, errands: list[Errand], code: Literal["unavailable"], words: str) -> None:
        for errand in errands:
            if errand.ticket:
                self._desk.to_commands.put(Done(errand.ticket, code, words))
