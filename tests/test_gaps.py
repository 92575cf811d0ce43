"""A consumer's account of message numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.gaps import Gap, Gaps, Seen


@given(st.lists(st.tuples(st.sampled_from(["saw", "exists", "explained"]), st.integers(1, 40), st.integers(0, 5))))
def test_the_account_agrees_with_a_set_of_numbers(steps: list[tuple[str, int, int]]) -> None:
    gaps = Gaps()
    head = 0
    missing: set[int] = set()
    for what, number, more in steps:
        if what == "saw":
            expected = Seen.NEW if number > head else Seen.FILLS if number in missing else Seen.AGAIN
            assert gaps.saw(number) is expected
            if head:
                missing |= set(range(head + 1, number))
            missing.discard(number)
            head = max(head, number)
        elif what == "exists":
            gaps.exists(number)
            if head:
                missing |= set(range(head + 1, number + 1))
            head = max(head, number)
        else:
            hit = bool(missing & set(range(number, number + more + 1)))
            assert gaps.explained(number, number + more) is hit
            missing -= set(range(number, number + more + 1))
        assert {n for gap in gaps.missing for n in range(gap.first, gap.last + 1)} == missing
        assert list(gaps.missing) == sorted(gaps.missing)
        assert gaps.head == head


def test_a_gap_reads_as_its_numbers() -> None:
    assert (str(Gap(3, 3)), str(Gap(3, 5))) == ("3", "3..5")
