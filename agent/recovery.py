"""Start-up recovery: directory, index and clips are brought to agree. Touches the disk and the ledger.

Never deletes what it cannot explain: an unlisted clip is adopted, an empty index beside clips means "rebuild",
a foreign file is left alone, a directory and an index of different nodes are refused.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from agent.clock import Now, is_wall, rfc3339
from agent.disk import DirectoryRefusedError, Disk
from agent.errors import StorageError
from agent.ledger import Ledger
from agent.ledger_file import CLIPS_NAME, ID_NAME, LEDGER_NAME, LedgerDamagedError, LedgerError
from agent.ledger_reader import ClipRow
from agent.mp4 import ClipFacts, Scan, clip_facts, scan
from agent.recorder import FINAL_SUFFIX, PART_SUFFIX, notes_of
from agent.ring import delete_files
from agent.ulid import is_ulid, wall_ms_of

_log = logging.getLogger(__name__)


def open_ledger(disk: Disk, directory: Path, ledger: Ledger, now: Now, *, known: str = "") -> None:
    """Open the ledger of directory, or make or rebuild it. Raises StorageError; DirectoryRefusedError for a mix-up.

    known: the directory's uuid where this process has used it before; another one, or none, means another disk.

    The id file comes first, so an index never exists without one unless somebody moved files about.
    """
    id_path = directory / ID_NAME
    held = _read_id(disk, id_path)
    if known and held != known:
        raise LedgerError(
            "open", directory, f"it is no longer the directory {known}", hint="is the data disk mounted again?"
        )
    if held is None and not disk.size(directory / LEDGER_NAME):
        held = str(uuid.uuid4())
        disk.write_whole(id_path, held.encode() + b"\n")
    try:
        ledger.open(held, now)
    except LedgerDamagedError as error:
        aside = ledger.set_aside()
        _log.error("%s; set aside as %s, the index is rebuilt from the clips", error, aside.name)
        ledger.open(held, now)
    if held is None:
        rows = ledger.clips(state="final")
        if rows and all(disk.size(directory / CLIPS_NAME / row.file) is None for row in rows):
            ledger.close()
            raise DirectoryRefusedError(
                "open",
                directory,
                f"it has a ledger of {len(rows)} clips, but neither its id nor one of the clips",
                hint="is the right disk mounted? To start anew, move ledger.db* away",
            )
        disk.write_whole(id_path, ledger.uuid.encode() + b"\n")
    elif ledger.uuid != held:
        found = ledger.uuid
        ledger.close()
        raise DirectoryRefusedError(
            "open",
            directory,
            f"the directory is {held}, its ledger belongs to {found}",
            hint="two nodes' files were mixed; bring the right ledger.db back, or move it away to have it rebuilt",
        )


def _read_id(disk: Disk, path: Path) -> str | None:
    if not disk.size(path):
        return None
    text = disk.read(path).decode("ascii", "replace").strip()
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise DirectoryRefusedError(
            "open", path, f"{text[:40]!r} is not an id", hint="restore it, or move it away"
        ) from error


class Recovery:
    """One reconciliation of files and rows: first what must be before recording, then step() for the rest.

    Adopting a clip reads all of it; rebuilding an index of thousands takes minutes, so that part is stepped.
    Repeating any part after a power cut is harmless.
    """

    def __init__(self, disk: Disk, directory: Path, ledger: Ledger) -> None:
        self._disk = disk
        self._clips = directory / CLIPS_NAME
        self._ledger = ledger
        self._unlisted: deque[str] = deque()
        self._foreign: frozenset[str] = frozenset()
        self.adopted = 0

    @property
    def left(self) -> int:
        """Unlisted clips still to adopt."""
        return len(self._unlisted)

    def begin(self, now: Now, *, running: str | None = None, believed: Mapping[str, int] | None = None) -> None:
        """Finish deletions, make parts final, note vanished files, and queue unlisted ones for step().

        running: the part being written now, left alone. believed: part -> length that fsync confirmed.
        """
        self._finish_deletions(now)
        sizes = self._disk.sizes(self._clips)
        foreign = {name for name in sizes if not is_ulid(name.split(".")[0]) or not _is_clip(name)}
        if foreign - self._foreign:
            _log.warning("%s: left alone, not ours: %s", self._clips, ", ".join(sorted(foreign))[:300])
        self._foreign = frozenset(foreign)
        for name in sizes:
            if name.endswith(PART_SUFFIX) and name not in foreign and name != running:
                self._make_final(name, (believed or {}).get(name))
        self._compare(now)

    def _finish_deletions(self, now: Now) -> None:
        half_deleted = self._ledger.clips(state="deleting")
        if half_deleted:
            delete_files(self._disk, self._clips, self._ledger, half_deleted, now)

    def _make_final(self, name: str, believed: int | None) -> None:
        """Cut a part behind its last whole fragment and give it its final name."""
        path = self._clips / name
        found = self._scan(path, believed)
        if found.fragments == 0:
            _log.info("clip %s: nothing whole in it, removed", name)
            self._disk.remove(path)
            self._disk.sync_directory(self._clips)
            return
        final = path.with_name(name.removesuffix(PART_SUFFIX) + FINAL_SUFFIX)
        if self._disk.size(final) is not None:
            _log.warning("clip %s: left alone, there is a final one of that name", name)
            return
        # Also when nothing is cut off: what was appended last may not have been synced.
        self._disk.truncate(path, found.whole)
        self._disk.rename(path, final)
        self._disk.sync_directory(self._clips)

    def _compare(self, now: Now) -> None:
        rows = {row.file: row for row in self._ledger.clips()}
        sizes = self._disk.sizes(self._clips)
        ours = [name for name in sizes if name.endswith(FINAL_SUFFIX) and name not in self._foreign]
        self._unlisted = deque(name for name in ours if name not in rows)
        lost = [row.id for row in rows.values() if row.state in ("final", "damaged") and row.file not in sizes]
        back = [row.id for row in rows.values() if row.state == "lost" and sizes.get(row.file) == row.bytes]
        torn = [
            row.id for row in rows.values() if row.state == "final" and sizes.get(row.file, row.bytes) != row.bytes
        ]
        for ids, state, words in (
            (lost, "lost", "files are gone"),
            (torn, "damaged", "sizes differ from the ledger"),
        ):
            if ids:
                _log.error("%d clips: %s: %s", len(ids), words, ", ".join(ids)[:300])
                self._ledger.set_clip_states(ids, state, now)
        if back:
            self._ledger.set_clip_states(back, "final", now)

    def step(self, now: Now) -> bool:
        """Adopt one unlisted clip. Returns whether more are left."""
        if self._unlisted:
            name = self._unlisted[0]
            try:
                row = self._row_of(name)
            except StorageError as error:
                # Not listed as damaged: it may be the reader that fails, and that state is for good.
                _log.error("clip %s cannot be read and is left unlisted until the next start: %s", name, error)
                row = None
            if row is not None:
                self._ledger.store_clip(row, now)
                self.adopted += 1
                _log.info("clip %s adopted: %d frames, %.1f s, %s", row.id, row.frames, row.duration_s, row.state)
            self._unlisted.popleft()
        return bool(self._unlisted)

    def _row_of(self, name: str) -> ClipRow | None:
        """A row made from the file alone; None if it went away meanwhile."""
        path = self._clips / name
        if self._disk.size(path) is None:
            return None
        found = self._scan(path, None)
        opening, closing = notes_of(found.notes)
        clip_id = name.removesuffix(FINAL_SUFFIX)
        facts: ClipFacts | None = None
        try:
            if found.fragments:
                with self._disk.open_to_read(path) as reader:
                    facts = clip_facts(reader)
        except StorageError as error:
            _log.error("clip %s does not play: %s", clip_id, error)
        flags = set(closing.flags) if closing is not None else {"recovered"}
        if closing is None and opening is not None and opening.continues:
            flags.add("continues")
        if found.whole != found.size:
            flags.add("recovered")
        events = (*(opening.events if opening is not None else ()), *(closing.events if closing is not None else ()))
        start_t_ns = opening.start_t_ns if opening is not None else 0
        start_wall_ns = opening.start_wall_ns if opening is not None else wall_ms_of(clip_id) * 1_000_000
        if not is_wall(start_wall_ns):
            _log.warning(
                "clip %s: its name says %s, which is no time: listed under 1970", name, rfc3339(start_wall_ns)
            )
            start_wall_ns = 0
        return ClipRow(
            n=0,
            id=clip_id,
            file=name,
            state="final" if facts is not None else "damaged",
            is_protected=False,
            boot_id=opening.boot_id if opening is not None else "",
            start_t_ns=start_t_ns,
            end_t_ns=start_t_ns + (facts.duration_ns if facts is not None else 0),
            start_wall_ns=start_wall_ns,
            clock_synced=opening.clock_synced if opening is not None else False,
            running_ns=0,
            frames=facts.frames if facts is not None else 0,
            bytes=found.size,
            sha256=self.hash_of(path),
            flags=tuple(sorted(flags)),
            event_ids=tuple(dict.fromkeys((*events, *self._ledger.events_of_clip(clip_id)))),
        )

    def _scan(self, path: Path, limit: int | None) -> Scan:
        with self._disk.open_to_read(path) as reader, self._disk.guard("read", path):
            return scan(reader, limit)

    def hash_of(self, path: Path) -> str:
        """SHA-256 of a file, read 1 MB at a time."""
        digest = hashlib.sha256()
        with self._disk.open_to_read(path) as reader, self._disk.guard("read", path):
            while part := reader.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()


def _is_clip(name: str) -> bool:
    return name.endswith((FINAL_SUFFIX, PART_SUFFIX)) and name.count(".") == (1 if name.endswith(FINAL_SUFFIX) else 2)
