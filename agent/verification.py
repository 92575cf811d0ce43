"""Verification: holds the ledger's invariants against what is on the disk. Only reads; one line per violation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from agent.disk import Disk
from agent.errors import StorageError
from agent.ledger_file import CLIPS_NAME, ID_NAME
from agent.ledger_reader import ClipRow, LedgerReader
from agent.messages import sha256_hex
from agent.mp4 import clip_facts, whole_length
from agent.recorder import FINAL_SUFFIX, PART_SUFFIX

TIME_TOLERANCE_NS = 1_000_000
"""Times in a clip are kept in 1/90,000 s; the last frame's length is FFmpeg's guess under PyAV 10."""


def verify_index(directory: Path, ledger: LedgerReader) -> Iterator[str]:
    """Files and rows agree; seq numbers are whole or explained; each event with a start has or will have an end.

    Safe beside a running node: what it is just changing is looked at again before it counts.
    """
    yield from ledger.integrity()
    disk = Disk()
    id_path = directory / ID_NAME
    if disk.size(id_path) is None:
        yield f"{id_path} is missing"
    elif disk.read(id_path).decode("ascii", "replace").strip() != ledger.uuid:
        yield f"{id_path} names another directory than its ledger"
    yield from _unlisted(disk, directory / CLIPS_NAME, ledger)
    for from_seq, to_seq in ledger.unexplained_holes():
        yield f"messages {from_seq} to {to_seq}: gone without a loss record"
    for seq, words in ledger.false_thumbs(sha256_hex):
        yield f"message {seq}: {words}"
    for event_id in ledger.events_without_messages():
        yield f"event {event_id}: its newest state was never put into the outbox"


def _unlisted(disk: Disk, clips: Path, ledger: LedgerReader) -> Iterator[str]:
    before = disk.sizes(clips)
    rows = {clip.file for clip in ledger.clips()}
    # Listing and reading rows are two moments: a file counts only if it is still there, still without a row.
    suspects = [name for name in before if name.endswith(FINAL_SUFFIX) and name not in rows]
    after, rows = disk.sizes(clips), {clip.file for clip in ledger.clips()}
    for name in suspects:
        if name in after and name not in rows:
            yield f"{clips / name}: a clip without a row (adopted at the next start)"
    parts = [name for name in after if name.endswith(PART_SUFFIX)]
    if len(parts) > 1:
        yield f"{clips}: {len(parts)} unfinished clips, only the running one is expected: {', '.join(parts)}"


def verify_clip(path: Path, clip: ClipRow, *, decode_all: bool) -> Iterator[str]:
    """The file is there, has the row's size, hash, times and frames, and decodes from its first frame."""
    disk = Disk()
    try:
        size = disk.size(path)
        if size is None:
            yield f"clip {clip.id}: {path} is missing"
            return
        if size != clip.bytes:
            yield f"clip {clip.id}: {size} bytes, the ledger says {clip.bytes}"
            return
        digest = hashlib.sha256()
        with disk.open_to_read(path) as reader:
            with disk.guard("read", path):
                while part := reader.read(1 << 20):
                    digest.update(part)
                whole = whole_length(reader)
            if digest.hexdigest() != clip.sha256:
                yield f"clip {clip.id}: SHA-256 differs from the ledger's: its bytes have changed"
                return
            if whole != size and "recovered" not in clip.flags:
                yield f"clip {clip.id}: whole up to byte {whole} of {size}"
            facts = clip_facts(reader, decode_all=decode_all)
        if facts.frames != clip.frames:
            yield f"clip {clip.id}: {facts.frames} frames, the ledger says {clip.frames}"
        elif abs(facts.duration_ns - (clip.end_t_ns - clip.start_t_ns)) > _tolerance_ns(clip):
            yield f"clip {clip.id}: lasts {facts.duration_ns / 1e9:.3f} s, the ledger says {clip.duration_s:.3f} s"
    except StorageError as error:
        yield f"clip {clip.id}: {error}"


def _tolerance_ns(clip: ClipRow) -> int:
    mean_ns = (clip.end_t_ns - clip.start_t_ns) // max(clip.frames, 1)
    return TIME_TOLERANCE_NS + mean_ns
