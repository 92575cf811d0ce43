"""The door for commands, on anything that can arrive: let in or refused, never an exception."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.admission import Admission, Command, Refused
from agent.clock import SimulatedClock, read
from agent.mailboxes import RawCommand
from agent.requests import VERBS
from agent.strict_json import MAX_DEPTH, StrictJsonError, parse, pointer_of

NOW = read(SimulatedClock())
BASE = "edgecam/v1/ward-12/entrance"
GOOD = b'{"id": "a", "client": "page-1", "args": {"width": 320}, "expires": "2030-01-01T00:00:00Z"}'

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "", "+", "../x", "a" * 65]) | values,
        "client": st.sampled_from(["page-1", "#", "a/b", ""]) | values,
        "args": st.dictionaries(
            st.sampled_from(
                ["width", "fps", "clip_id", "offset", "from", "to", "limit", "url", "from_seq", "to_seq"]
            ),
            values,
            max_size=4,
        )
        | values,
        "expires": st.sampled_from(["2030-01-01T00:00:00Z", "2000-01-01", "never"]) | values,
    },
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good command with bytes changed, cut out or doubled."""
    content = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1))
        how = draw(st.integers(0, 2))
        if how == 0:
            content[at] = draw(st.integers(0, 255))
        elif how == 1:
            del content[at : at + draw(st.integers(1, 8))]
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 30))]
        content = content or bytearray(b" ")
    return bytes(content)


def admitted(payload: bytes, verb: str = "snapshot", response_topic: str = "") -> Command | Refused:
    return Admission(BASE, "ward-12/entrance").command(
        RawCommand(verb, payload, len(payload), response_topic=response_topic), NOW
    )


@settings(max_examples=400, deadline=None)
@given(
    payload=st.binary(max_size=200) | mutated() | bodies.map(lambda body: json.dumps(body).encode()),
    verb=st.sampled_from(sorted(VERBS)) | st.text(max_size=80),
    response_topic=st.sampled_from(["", f"{BASE}/rsp/x", f"{BASE}/rsp/a/b", f"{BASE}/cmd/x", f"{BASE}/rsp/+", "x"]),
)
@example(GOOD, "snapshot", "")
@example(b'{"id": "a", "client": "b", "args": {"\\ud800": 1}}', "ping", "")
def test_whatever_arrives_is_let_in_as_it_should_be_or_refused(
    payload: bytes, verb: str, response_topic: str
) -> None:
    found = admitted(payload, verb, response_topic)
    if found.reply_topic:
        prefix, _, name = found.reply_topic.partition("/")
        assert prefix == "rsp"
        assert name
        assert not set(name) & set("+#/\0")
    if isinstance(found, Command):
        assert isinstance(found.args, VERBS[found.verb])
        assert not set(found.id) & set("+#/\0")
    else:
        found.error.model_dump_json().encode()


def test_a_good_command_is_let_in() -> None:
    found = admitted(GOOD)
    assert isinstance(found, Command)
    assert (found.id, found.client, found.verb, found.reply_topic) == ("a", "page-1", "snapshot", "rsp/page-1")


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_depth_is_counted_to_the_level() -> None:
    parse(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 900, 30_000):
        with pytest.raises(StrictJsonError, match=r"nested"):
            parse(nested(depth))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "stands twice"),
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e999]", "beyond a double"),
        ("[9223372036854775808]", "beyond 64 bits"),
        (f"[{'9' * 60_000}]", "beyond 64 bits"),
        ('["\\udc00"]', "half a character"),
        ('{"\\udc00": 1}', "half a character"),
        ("\ufeff{}", "not JSON"),
        ("{} {}", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_what_python_would_take_is_refused(text: str, words: str) -> None:
    with pytest.raises(StrictJsonError, match=words):
        parse(text.encode())


def test_what_is_json_is_read_as_it_is() -> None:
    value = {"a": [1, -9223372036854775808, 1.5e300, "Cửa chính 🚪", None, True], "b": {}}
    assert parse(json.dumps(value).encode()) == value
    assert parse(b'"\\ud83d\\udeaa"') == "🚪"


def test_a_pointer_escapes_what_rfc_6901_says() -> None:
    assert pointer_of(("a/b", 0, "c~d")) == "/a~1b/0/c~0d"
