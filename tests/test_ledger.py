"""The ledger and its outbox: what commits together, what seq promises, what is evicted and what that leaves."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from broker import DEADLINE_S
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_fixtures import event

from agent.clock import Now
from agent.disk import DirectoryRefusedError, Disk
from agent.errors import StorageError
from agent.ledger import Ledger, LedgerReader, Revision
from agent.ledger_reader import holes
from agent.messages import EventBody, LossBody, ThumbBody, sha256_hex
from agent.model import NS_PER_S, Ack, Event, Moment, OutboxKind, OutboxRow, Phase, Thumbnail
from agent.outbox import stamp_of, stamped
from agent.ulid import is_ulid
from agent.verification import verify_index

pytest_plugins = ["closing"]

BOOT = "00000000-0000-4000-8000-00000000000a"


def at(seconds: float, *, boot: str = BOOT, wall_s: float = 1_700_000_000) -> Now:
    t_ns = round(seconds * NS_PER_S)
    return Now(boot, t_ns, round(wall_s * NS_PER_S) + t_ns, True)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(Disk(), tmp_path, node="cam-1")
    found.open(None, at(0))
    (tmp_path / "directory.id").write_text(found.uuid)
    (tmp_path / "clips").mkdir()
    yield found
    found.close()


def store(ledger: Ledger, *events: Event, clip_id: str | None = None, now: Now | None = None) -> None:
    now = now or at(max(e.last.t_ns for e in events) / NS_PER_S)
    ledger.store_events([Revision(e, clip_id, e.last.t_ns) for e in events], now)


def with_picture(state: Event, t_ns: int, rev: int) -> Event:
    picture = state.thumbnail
    assert picture is not None
    return replace(
        state,
        rev=rev,
        phase=Phase.UPDATE,
        thumbnail=Thumbnail(picture.jpeg, picture.width, picture.height, Moment(t_ns, 0)),
    )


def test_event_and_its_picture_are_owed_together_and_agree(ledger: Ledger, tmp_path: Path) -> None:
    happened = event(5 * NS_PER_S, picture_ns=5 * NS_PER_S)
    store(ledger, happened)
    told, thumb = LedgerReader(tmp_path).due(0, 10)
    assert (told.seq, told.kind, thumb.seq, thumb.kind) == (1, OutboxKind.EVENT, 2, OutboxKind.THUMB)
    body, properties = EventBody.model_validate_json(told.body), ThumbBody.model_validate_json(thumb.body)
    assert thumb.blob is not None
    assert body.thumb is not None
    assert body.thumb.sha256 == properties.sha256 == sha256_hex(thumb.blob)
    assert body.thumb.bytes == len(thumb.blob)
    assert stamp_of(thumb.blob) == {
        "node": "cam-1",
        "event_id": happened.id,
        "rev": 1,
        "seq": 2,
        "time": "2023-11-14T22:13:25.000Z",
        "clock_synced": True,
    }


def test_stamped_picture_is_still_the_same_picture(ledger: Ledger, tmp_path: Path) -> None:
    import av

    happened = event(5 * NS_PER_S, picture_ns=5 * NS_PER_S)
    assert happened.thumbnail is not None
    store(ledger, happened)
    blob = LedgerReader(tmp_path).due(1, 1)[0].blob
    pictures = []
    for content in (happened.thumbnail.jpeg, blob or b""):
        decoder = av.CodecContext.create("mjpeg", "r")
        (frame,) = decoder.decode(av.Packet(content))
        pictures.append(frame.to_ndarray().tobytes())
    assert pictures[0] == pictures[1]


def test_picture_is_sent_again_only_when_it_changed(ledger: Ledger, tmp_path: Path) -> None:
    first = event(5 * NS_PER_S, picture_ns=5 * NS_PER_S)
    store(ledger, first)
    store(ledger, with_picture(first, 5 * NS_PER_S, rev=2))
    store(ledger, with_picture(first, 6 * NS_PER_S, rev=3))
    rows = LedgerReader(tmp_path).due(0, 10)
    assert [row.kind for row in rows] == [
        OutboxKind.EVENT,
        OutboxKind.THUMB,
        OutboxKind.EVENT,
        OutboxKind.EVENT,
        OutboxKind.THUMB,
    ]
    bodies = [EventBody.model_validate_json(row.body) for row in rows if row.kind is OutboxKind.EVENT]
    assert bodies[0].thumb == bodies[1].thumb
    assert bodies[1].thumb != bodies[2].thumb


def test_a_strip_around_the_picture_that_was_sent_is_another_picture(ledger: Ledger, tmp_path: Path) -> None:
    first = event(5 * NS_PER_S, picture_ns=5 * NS_PER_S)
    store(ledger, first)
    ended = with_picture(first, 5 * NS_PER_S, rev=2)
    assert ended.thumbnail is not None
    wide = replace(ended.thumbnail, width=3 * ended.thumbnail.width + 8)
    store(ledger, replace(ended, phase=Phase.END, thumbnail=wide))
    rows = LedgerReader(tmp_path).due(0, 10)
    assert [row.kind for row in rows] == 2 * [OutboxKind.EVENT, OutboxKind.THUMB]
    thumb = EventBody.model_validate_json(rows[2].body).thumb
    assert thumb is not None
    assert thumb.width == wide.width


def test_state_that_comes_twice_is_stored_once(ledger: Ledger) -> None:
    happened = event(5 * NS_PER_S)
    store(ledger, happened)
    store(ledger, happened)
    assert ledger.head_seq == 1


def test_epoch_is_a_ulid_and_stays(ledger: Ledger, tmp_path: Path) -> None:
    assert is_ulid(ledger.epoch)
    epoch = ledger.epoch
    ledger.open(None, at(1))
    assert ledger.epoch == epoch == LedgerReader(tmp_path).epoch


def test_failed_transaction_leaves_nothing_and_no_hole(ledger: Ledger, tmp_path: Path) -> None:
    broken = event(6 * NS_PER_S, picture_ns=6 * NS_PER_S)
    assert broken.thumbnail is not None
    with pytest.raises(ValueError, match="not a JPEG"):
        store(ledger, event(5 * NS_PER_S), replace(broken, thumbnail=replace(broken.thumbnail, jpeg=b"no")))
    store(ledger, event(7 * NS_PER_S))
    assert [row.seq for row in LedgerReader(tmp_path).due(0, 10)] == [1]
    assert ledger.load.rows == 1


def test_acknowledged_row_leaves_due_and_counts(ledger: Ledger, tmp_path: Path) -> None:
    store(ledger, event(5 * NS_PER_S, picture_ns=5 * NS_PER_S))
    ledger.mark([Ack(1, True), Ack(2, False, "quota exceeded")], at(6))
    reader = LedgerReader(tmp_path)
    assert [row.seq for row in reader.due(0, 10)] == [2]
    assert reader.due(2, 10) == []
    assert ledger.load.rows == 1
    newest = reader.newest_event()
    assert newest is not None
    assert newest.seq == 1


def test_due_pages_in_order(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(10):
        store(ledger, event((5 + number) * NS_PER_S))
    reader = LedgerReader(tmp_path)
    assert [row.seq for row in reader.due(0, 4)] == [1, 2, 3, 4]
    assert [row.seq for row in reader.due(4, 4)] == [5, 6, 7, 8]
    assert [row.seq for row in reader.due(8, 4)] == [9, 10]


def test_state_without_its_message_is_found(ledger: Ledger, tmp_path: Path) -> None:
    store(ledger, event(5 * NS_PER_S))
    with ledger._transaction(at(6)) as database:
        database.execute("update events set body = replace(body, '\"rev\":1', '\"rev\":2')")
    assert any("newest state" in words for words in verify_index(tmp_path, LedgerReader(tmp_path)))


def test_what_the_ledger_shows_after_opening_is_in_the_database_file_itself(ledger: Ledger, tmp_path: Path) -> None:
    """Frames that a killed process left in the WAL may be in the kernel's memory only: they are written anew."""
    store(ledger, event(5 * NS_PER_S))
    left = tmp_path / "left"
    left.mkdir()
    for name in ("ledger.db", "ledger.db-wal"):
        (left / name).write_bytes((tmp_path / name).read_bytes())
    again = Ledger(Disk(), left, node="cam-1")
    again.open(None, at(6))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "ledger.db").write_bytes((left / "ledger.db").read_bytes())
    assert [row.seq for row in LedgerReader(alone).due(0, 10)] == [1]
    again.close()


def test_reader_in_another_thread_sees_what_was_committed(ledger: Ledger, tmp_path: Path) -> None:
    seen: list[int] = []
    failed: list[BaseException] = []
    enough = threading.Event()

    def read() -> None:
        reader = LedgerReader(tmp_path)
        try:
            while not seen or seen[-1] < 60:
                seen.append(len(reader.due(0, 100)))
        except StorageError as error:
            failed.append(error)
        finally:
            reader.close()
            enough.set()

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(60):
        store(ledger, event((5 + number) * NS_PER_S))
    assert enough.wait(DEADLINE_S)
    thread.join()
    assert not failed
    assert seen == sorted(seen)


def test_reader_without_a_ledger_says_so_and_works_once_there_is_one(tmp_path: Path) -> None:
    reader = LedgerReader(tmp_path)
    with pytest.raises(StorageError, match="there is no ledger"):
        reader.due(0, 1)
    sqlite3.connect(tmp_path / "ledger.db").close()
    (tmp_path / "ledger.db").touch()  # the moment between making the file and its tables
    with pytest.raises(StorageError, match="there is no ledger yet"):
        reader.due(0, 1)
    ledger = Ledger(Disk(), tmp_path, node="cam-1")
    ledger.open(None, at(0))
    assert reader.due(0, 1) == []
    ledger.set_aside()
    ledger.open(None, at(1))
    assert reader.epoch == ledger.epoch  # the reader follows to the new file
    reader.close()
    ledger.close()


def test_ledger_of_a_newer_agent_is_refused(ledger: Ledger) -> None:
    with ledger._transaction(at(1)) as database:
        database.execute("pragma user_version = 99")
    with pytest.raises(DirectoryRefusedError, match="a newer agent wrote it"):
        ledger.open(None, at(2))


def test_full_outbox_gives_up_pictures_first_then_updates_then_the_oldest(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(20):
        first = event((5 + number) * NS_PER_S, picture_ns=(5 + number) * NS_PER_S)
        store(ledger, first)
        store(ledger, replace(first, rev=2, phase=Phase.UPDATE))
    kinds = []
    reader = LedgerReader(tmp_path)
    for bound in (50, 30, 12):
        ledger.bound_outbox(bound, 10**9, at(100))
        rows = reader.due(0, 1000)
        assert len(rows) <= bound
        kinds.append([sum(r.kind is OutboxKind.THUMB for r in rows), sum('"update"' in r.body for r in rows)])
        assert sum(r.kind is OutboxKind.LOSS for r in rows) == 1  # taken up in the newest, never piling up
        assert not list(verify_index(tmp_path, reader))
    assert kinds[0][0] in range(1, 20)
    assert kinds[0][1] == 20
    assert kinds[1] == [0, kinds[1][1]]
    assert 0 < kinds[1][1] < 20
    assert kinds[2] == [0, 0]
    starts = [r.seq for r in reader.due(0, 1000) if r.kind is OutboxKind.EVENT]
    assert starts == sorted(starts)
    assert starts[-1] == 58  # the newest start is still owed
    reader.close()


def test_bytes_are_bounded_too(ledger: Ledger) -> None:
    for number in range(50):
        store(ledger, event((5 + number) * NS_PER_S, picture_ns=(5 + number) * NS_PER_S))
    before = ledger.load.bytes
    ledger.bound_outbox(10**6, before // 2, at(100))
    assert ledger.load.bytes <= before // 2


@given(
    steps=st.lists(st.sampled_from(["event", "update", "ack", "bound", "quarantine", "expire"]), max_size=40),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_a_hole_in_seq_is_always_named_by_a_loss_record(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(Disk(), directory, node="cam-1")
    ledger.open(None, at(0))
    (directory / "directory.id").write_text(ledger.uuid)
    (directory / "clips").mkdir()
    reader = LedgerReader(directory)
    told: set[int] = set()
    explained: list[tuple[int, int]] = []
    seconds, last = 1.0, event(NS_PER_S, picture_ns=NS_PER_S)
    for step in steps:
        seconds += 1
        now = at(seconds)
        t_ns = now.t_ns
        owed = [row.seq for row in reader.due(0, 1000)]
        if step == "event":
            last = event(t_ns, picture_ns=t_ns)
            store(ledger, last, now=now)
        elif step == "update":
            last = replace(last, rev=last.rev + 1, phase=Phase.UPDATE)
            store(ledger, last, now=now)
        elif step == "ack" and owed:
            took = data.draw(st.lists(st.sampled_from(owed), unique=True))
            told |= set(took)
            explained += losses_in(row for row in reader.due(0, 1000) if row.seq in took)
            ledger.mark([Ack(seq, True) for seq in took], now)
        elif step == "bound":
            ledger.bound_outbox(data.draw(st.integers(3, 10)), 10**9, now)
        elif step == "quarantine" and owed:
            ledger.quarantine(data.draw(st.sampled_from(owed)), "too large", now)
        elif step == "expire":
            ledger.tidy(replay_s=data.draw(st.integers(0, 5)), replay_bytes=10**9, now=now)
    assert not list(verify_index(directory, reader))
    # A consumer that gets all that is still owed can tell, from that alone, what became of every number.
    explained += losses_in(reader.due(0, 10**6))
    arrived = sorted(told | {row.seq for row in reader.due(0, 10**6)})
    assert holes(arrived, 1, ledger.head_seq, explained) == []
    owed_now = reader.due(0, 10**6)
    assert ledger.load.rows == len(owed_now)
    reader.close()
    ledger.close()


def losses_in(rows: Iterable[OutboxRow]) -> list[tuple[int, int]]:
    losses = [LossBody.model_validate_json(row.body) for row in rows if row.kind is OutboxKind.LOSS]
    return [(loss.from_seq, loss.to_seq) for loss in losses]


def test_holes_are_found() -> None:
    assert holes([1, 2, 5, 6, 9], 1, 10, []) == [(3, 4), (7, 8), (10, 10)]
    assert holes([1, 2, 5, 6, 9], 1, 10, [(3, 7), (10, 12)]) == [(8, 8)]
    assert holes([], 1, 0, []) == []


def test_delivered_rows_stay_for_the_replay_window_by_both_clocks(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(3):
        store(ledger, event((5 + number) * NS_PER_S), now=at(5 + number))
    ledger.mark([Ack(1, True), Ack(2, True), Ack(3, True)], at(10))
    reader = LedgerReader(tmp_path)
    ledger.tidy(replay_s=100, replay_bytes=10**9, now=at(20, wall_s=1_900_000_000))  # the wall clock jumped
    assert len(reader.sent(1, 10, 10)) == 3
    ledger.tidy(replay_s=100, replay_bytes=10**9, now=at(500, wall_s=1_600_000_000))  # it jumped back
    assert len(reader.sent(1, 10, 10)) == 3
    ledger.tidy(replay_s=100, replay_bytes=10**9, now=at(500))
    assert [row.seq for row in reader.sent(1, 10, 10)] == [3]  # the newest event stays for those who come anew
    assert ledger.head_seq == 3
    reader.close()


def test_running_time_counts_over_boots_but_not_without_power(ledger: Ledger) -> None:
    ledger.tidy(replay_s=0, replay_bytes=0, now=at(1000))
    assert ledger.running_ns(at(1500)) == 1500 * NS_PER_S
    ledger.tidy(replay_s=0, replay_bytes=0, now=at(20, boot="another"))
    assert ledger.running_ns(at(50, boot="another")) == 1030 * NS_PER_S


def test_com_segment_stands_behind_jfif() -> None:
    plain = b"\xff\xd8\xff\xe0\x00\x04JF\xff\xdb\x00\x02\xff\xd9"
    marked = stamped(plain, {"seq": 1})
    assert marked[:8] == plain[:8]
    assert marked[8:10] == b"\xff\xfe"
    assert stamp_of(marked) == {"seq": 1}
    assert stamp_of(plain) is None
    assert json.loads(marked[12 : 12 + marked[11] - 2]) == {"seq": 1}
