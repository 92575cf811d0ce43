"""The names of topics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import OutboxKind
from agent.topics import Topics, split

slugs = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@given(slugs, slugs, st.sampled_from(["state", "event/last", "cmd/ping"]))
def test_split_undoes_at(site: str, node: str, rest: str) -> None:
    assert split(Topics("edgecam", site, node).at(rest), "edgecam") == (site, node, rest)


def test_each_kind_of_row_has_its_topic() -> None:
    topics = Topics("edgecam", "ward-12", "entrance")
    assert [topics.of(kind) for kind in OutboxKind] == [
        f"edgecam/v1/ward-12/entrance/{name}" for name in ("event", "thumb", "clip", "loss")
    ]


@pytest.mark.parametrize(
    "topic", ["", "edgecam", "edgecam/v1/a/b", "edgecam/v2/a/b/state", "other/v1/a/b/state", "edgecam/v1//b/state"]
)
def test_foreign_topics_are_nobodys(topic: str) -> None:
    assert split(topic, "edgecam") is None
