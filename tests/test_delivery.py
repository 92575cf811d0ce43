"""The order of delivery, driven by invented brokers and storages: nothing lost, nothing twice, nothing blocked."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from link_fixtures import MemoryOutbox

from agent.backoff import Backoff, Pace
from agent.clock import SystemClock
from agent.delivery import Delivery
from agent.model import NS_PER_S, OutboxKind

CLOCK = SystemClock()
KINDS = list(OutboxKind)

rows = st.lists(st.sampled_from(KINDS), min_size=1, max_size=60)


def outbox_of(kinds: list[OutboxKind]) -> MemoryOutbox:
    outbox = MemoryOutbox(CLOCK)
    for kind in kinds:
        outbox.add(kind, "{}")
    return outbox


@given(
    rows,
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), max_size=80),
    st.sets(st.sampled_from(KINDS)),
    st.integers(1, 20),
)
@settings(max_examples=300, deadline=None)
def test_whatever_a_broker_refuses_and_however_often_it_leaves_everything_arrives_in_the_end(
    kinds: list[OutboxKind], faults: list[tuple[int, int]], denied: set[OutboxKind], window: int
) -> None:
    """faults: (what, how much) per round: 0-2 acknowledge, 3 disconnect, 4-5 refuse, 6 time, 7 storage marks.

    denied: kinds this broker refuses until the faults are over.
    """
    outbox = outbox_of(kinds)
    delivery = Delivery(Backoff(lambda: 0.5))
    now_ns = 0
    flying: list[int] = []
    arrived: dict[int, int] = defaultdict(int)  # since the connection began
    marked: set[int] = set()

    def fill() -> None:
        while len(flying) < window:
            row = delivery.next(outbox, now_ns)
            if row is None:
                return
            assert row.seq not in flying, "twice in flight"
            assert not arrived[row.seq], "sent twice within a connection"
            flying.append(row.seq)

    def answer(*, refuse: bool) -> None:
        seq = flying.pop(0)
        if refuse or kinds[seq - 1] in denied:
            delivery.kept(seq, "no", now_ns)
        else:
            delivery.settled(seq)
            arrived[seq] += 1
            marked.add(seq)

    for what, much in faults:
        fill()
        if what == 3:
            delivery.restart()
            flying.clear()
            arrived.clear()
        elif what == 6:
            now_ns += much * 20 * NS_PER_S
            delivery.look()
        elif what == 7:
            for seq in marked:
                outbox.owed.pop(seq, None)
        else:
            for _ in range(min(much, len(flying))):
                answer(refuse=what in (4, 5))
    denied.clear()
    for _ in range(4 * len(kinds) + 10):
        now_ns += 61 * NS_PER_S
        delivery.look()
        fill()
        while flying:
            answer(refuse=False)
    assert marked == set(range(1, len(kinds) + 1))
    assert not delivery.refused


@given(rows, st.integers(1, 20))
def test_without_trouble_rows_go_out_in_seq_order_each_once(kinds: list[OutboxKind], window: int) -> None:
    outbox = outbox_of(kinds)
    delivery = Delivery(Backoff(lambda: 0.5))
    order: list[int] = []
    flying: list[int] = []
    while True:
        delivery.look()
        while len(flying) < window and (row := delivery.next(outbox, 0)) is not None:
            order.append(row.seq)
            flying.append(row.seq)
        if not flying:
            break
        delivery.settled(flying.pop(0))  # and storage marks nothing
    assert order == list(range(1, len(kinds) + 1))


def test_one_held_row_is_tried_alone_and_its_kind_follows_in_order() -> None:
    outbox = outbox_of([OutboxKind.THUMB] * 100)
    delivery = Delivery(Backoff(lambda: 0.0))
    for row in [delivery.next(outbox, 0) for _ in range(3)]:
        assert row is not None
        delivery.kept(row.seq, "nobody subscribes", 0)
    assert delivery.next(outbox, 0) is None
    wake_ns = delivery.wake_ns()
    assert wake_ns is not None
    trial = delivery.next(outbox, wake_ns)
    assert trial is not None
    assert trial.seq == 1
    assert delivery.next(outbox, wake_ns) is None, "one at a time"
    delivery.kept(1, "nobody subscribes", wake_ns)
    later_ns = delivery.wake_ns()
    assert later_ns is not None
    assert later_ns > wake_ns
    trial = delivery.next(outbox, later_ns)
    assert trial is not None
    delivery.settled(trial.seq)
    following = [delivery.next(outbox, later_ns) for _ in range(5)]
    assert [row.seq for row in following if row] == [2, 3, 4, 5, 6]


def test_a_long_row_of_held_messages_is_passed_over_in_bounded_pieces() -> None:
    outbox = outbox_of([OutboxKind.THUMB] * 1000 + [OutboxKind.EVENT])
    delivery = Delivery(Backoff(lambda: 0.0))
    first = delivery.next(outbox, 0)
    assert first is not None
    delivery.kept(first.seq, "no", 0)
    calls = 0
    while (row := delivery.next(outbox, 0)) is None:
        assert delivery.has_more
        calls += 1
    assert row.kind is OutboxKind.EVENT
    assert 1 < calls < 10


def test_what_is_held_and_then_evicted_is_forgotten() -> None:
    outbox = outbox_of([OutboxKind.THUMB, OutboxKind.THUMB])
    delivery = Delivery(Backoff(lambda: 0.0))
    first = delivery.next(outbox, 0)
    assert first is not None
    delivery.kept(first.seq, "no", 0)
    outbox.owed.clear()
    wake_ns = delivery.wake_ns()
    assert wake_ns is not None
    assert delivery.next(outbox, wake_ns) is None
    assert not delivery.refused
    assert delivery.wake_ns() is None


def test_a_backlog_goes_at_its_pace_with_a_seconds_worth_at_once() -> None:
    outbox = outbox_of([OutboxKind.EVENT] * 301)
    delivery = Delivery(Backoff(lambda: 0.0), Pace(100))
    begin_ns = now_ns = 10 * NS_PER_S
    at_once, sent = 0, 0
    while sent < 301:
        row = delivery.next(outbox, now_ns)
        sent += row is not None
        at_once += row is not None and now_ns == begin_ns
        if row is None:
            assert delivery.pause_ns(now_ns) > 0
            now_ns += delivery.pause_ns(now_ns)
    assert 100 <= at_once <= 101
    assert 2 <= (now_ns - begin_ns) / NS_PER_S <= 2.01


@given(
    rows,
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=80),
    st.sets(st.sampled_from(KINDS)),
)
@settings(max_examples=200, deadline=None)
def test_on_two_connections_no_picture_goes_before_the_words_that_were_before_it(
    kinds: list[OutboxKind], faults: list[tuple[int, int]], denied: set[OutboxKind]
) -> None:
    """faults: 0-1 the words' broker answers, 2-3 the pictures', 4 their connections break, 5 time, 6 more rows."""
    outbox = outbox_of(kinds)
    words = Delivery(Backoff(lambda: 0.5), kinds=[kind for kind in OutboxKind if kind is not OutboxKind.THUMB])
    pictures = Delivery(Backoff(lambda: 0.5), kinds=[OutboxKind.THUMB])
    flying: dict[Delivery, list[int]] = {words: [], pictures: []}
    arrived: set[int] = set()
    held: set[int] = set()
    now_ns = 0

    def fill() -> None:
        for lane, window in ((words, 3), (pictures, 2)):
            pictures.before = words.frontier
            while len(flying[lane]) < window and (row := lane.next(outbox, now_ns)) is not None:
                flying[lane].append(row.seq)
                if lane is pictures:
                    before = {seq for seq in outbox.owed if seq < row.seq and outbox.owed[seq].kind != row.kind}
                    assert before <= arrived | held, f"{row.seq} before {sorted(before - arrived - held)}"

    def answer(lane: Delivery) -> None:
        seq = flying[lane].pop(0)
        if outbox.owed[seq].kind in denied:
            lane.kept(seq, "no", now_ns)
            # Later rows of its kind wait without having been sent.
            held.update(each for each, row in outbox.owed.items() if row.kind is outbox.owed[seq].kind)
        else:
            lane.settled(seq)
            arrived.add(seq)

    for what, number in faults:
        fill()
        lane = words if what < 2 else pictures
        if what < 4 and flying[lane]:
            answer(lane)
        elif what == 4:
            for each in (words, pictures):
                each.restart()
                flying[each].clear()
        elif what == 5:
            now_ns += number * 30 * NS_PER_S
        elif what == 6:
            outbox.add(KINDS[number % len(KINDS)], "{}")
            words.look()
            pictures.look()
    denied.clear()
    for _ in range(20 * len(outbox.rows) + 200):
        fill()
        for lane in (words, pictures):
            if flying[lane]:
                answer(lane)
        now_ns += 30 * NS_PER_S
        words.look()
        pictures.look()
    assert arrived == set(outbox.owed), "all of it, in the end"
