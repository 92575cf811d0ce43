"""The payloads: what stands in them, and that each field is explained."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from link_fixtures import EPOCH, TIME, MemoryOutbox, ulid
from pydantic import BaseModel, ValidationError

from agent.clock import SystemClock
from agent.messages import (
    JSON_PAYLOADS,
    ClipMessage,
    EventMessage,
    HealthMessage,
    LossMessage,
    StateMessage,
    message_bytes,
    thumb_properties,
    to_bytes,
)
from agent.model import OutboxRow

CLOCK = SystemClock()
OURS = {"site": "ward-12", "node": "entrance", "epoch": EPOCH}


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and those its fields are made of."""
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from models(field.annotation)


ALL = sorted({part for model in JSON_PAYLOADS.values() for part in models(model)}, key=lambda model: model.__name__)


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.__name__)
def test_each_model_and_what_it_holds_is_described(model: type[BaseModel]) -> None:
    assert model.__doc__
    schema = model.model_json_schema()
    assert schema["additionalProperties"] is False
    for name, field in schema["properties"].items():
        # A nested model's own description stands behind its $ref.
        assert field.get("description") or "$ref" in field, f"{model.__name__}.{name} has no description"
        values = [field, *field.get("anyOf", ())]
        is_shown = any({"examples", "default", "enum", "const", "$ref"} & set(value) for value in values)
        assert is_shown, f"{model.__name__}.{name} has no example"


@pytest.mark.parametrize("model", JSON_PAYLOADS.values(), ids=JSON_PAYLOADS)
def test_each_payload_has_a_json_schema(model: type[BaseModel]) -> None:
    json.dumps(model.model_json_schema(mode="serialization"), allow_nan=False)


def rows() -> dict[type[BaseModel], OutboxRow]:
    outbox = MemoryOutbox(CLOCK)
    return {EventMessage: outbox.event(1), ClipMessage: outbox.clip(1), LossMessage: outbox.loss(1, 3)}


@pytest.mark.parametrize("model", [EventMessage, ClipMessage, LossMessage], ids=lambda model: model.__name__)
def test_envelope_and_body_are_one_compact_object(model: type[BaseModel]) -> None:
    row = rows()[model]
    payload = message_bytes(row, **OURS, now_wall_ns=row.wall_ns)
    message = model.model_validate_json(payload, strict=True)
    assert json.loads(payload) == json.loads(to_bytes(message))
    assert len(payload) == len(to_bytes(message)), "as compact as can be"
    assert {"v": 1, "seq": row.seq, "epoch": EPOCH, "late": False}.items() <= json.loads(payload).items()


@given(st.floats(0, 100))
def test_late_means_more_than_30_s_by_the_wall_clock(age_s: float) -> None:
    row = rows()[EventMessage]
    payload = message_bytes(row, **OURS, now_wall_ns=row.wall_ns + round(age_s * 1e9))
    assert json.loads(payload)["late"] is (round(age_s * 1e9) > 30 * 10**9)


def test_names_in_any_script_stay_as_they_are() -> None:
    state = StateMessage(state="degraded", session=ulid(1), time=TIME, reasons=["Cửa chính: thẻ nhớ đầy"])
    assert "Cửa chính: thẻ nhớ đầy".encode() in to_bytes(state)


def test_health_may_be_silent_about_what_the_board_does_not_tell() -> None:
    health = HealthMessage(time=TIME, boot_id="x", verdict="online", reasons=[], uptime_s=1)
    told = json.loads(to_bytes(health))
    assert told["temperature_c"] is None
    assert told["ring"] == {"clips": None, "bytes": None, "oldest": None}


def test_unknown_and_impossible_values_are_refused() -> None:
    good = json.loads(to_bytes(StateMessage(state="online", session=ulid(1), time=TIME, reasons=[])))
    for change in ({"state": "asleep"}, {"session": "x"}, {"time": "yesterday"}, {"more": 1}):
        with pytest.raises(ValidationError):
            StateMessage.model_validate(good | change)


def test_a_picture_bears_the_ids_of_its_event() -> None:
    outbox = MemoryOutbox(CLOCK)
    outbox.event(4, rev=2, thumb=b"jpeg")
    about = thumb_properties(outbox.rows[1])
    assert (about.event_id, about.rev, about.seq) == (ulid(4), "2", "2")
