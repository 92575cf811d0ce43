"""The door for commands: size, JSON, schema, node, expiry, signature, rights, in this order. Touches nothing.

Whatever fails is a Refused with a code; nothing behind the door is called for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from agent.clock import Now, rfc3339
from agent.mailboxes import RawCommand
from agent.requests import (
    VERBS,
    Code,
    ConfigDesired,
    ErrorBody,
    Request,
    Signed,
    SignedDesired,
    SignedText,
    needs,
    wall_ns_of,
)
from agent.signatures import OperatorKeys
from agent.strict_json import MAX_BYTES, StrictJsonError, parse, pointer_of

M = TypeVar("M", bound=BaseModel)

MAX_FIELDS = 64


@dataclass(frozen=True, slots=True)
class Command:
    """A command that may be executed. args: the verb's model. counter: 0 where commands are not signed."""

    id: str
    client: str
    verb: str
    args: BaseModel
    reply_topic: str
    correlation: bytes = b""
    key: str = ""
    counter: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that is not executed. id and client as far as they could be read; reply_topic "" : no answer."""

    error: ErrorBody
    verb: str
    id: str = ""
    client: str = ""
    reply_topic: str = ""
    correlation: bytes = b""


@dataclass(frozen=True, slots=True)
class Desired:
    """A config/desired that may be looked at."""

    rev: int
    config: dict[str, object]


class _NoError(Exception):
    def __init__(self, code: Code, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.error = ErrorBody(code=code, detail=detail, pointer=pointer)


class Admission:
    """Checks for one node. keys: None where commands need no signature. counters: see the attribute.

    allow: patterns of verbs.
    """

    def __init__(
        self,
        base: str,
        node: str,
        *,
        keys: OperatorKeys | None = None,
        counters: Mapping[str, int] | None = None,
        allow: tuple[str, ...] = ("*",),
    ) -> None:
        self._base = base
        self._node = node
        self._keys = keys
        self._allow = allow
        self.counters: dict[str, int] | None = dict(counters or {})
        """Highest counter used, by key; None where it could not be read: then nothing signed is let in."""

    @property
    def is_signed(self) -> bool:
        return self._keys is not None

    def command(self, raw: RawCommand, now: Now) -> Command | Refused:
        """raw as a command, or why not. Notes the counter of a signed one: it cannot come again."""
        seen: dict[str, str] = {"reply": self._below_rsp(raw.response_topic)}
        try:
            return self._admit(raw, now, seen)
        except _NoError as no:
            return Refused(
                no.error,
                raw.verb[:64],
                id=seen.get("id", ""),
                client=seen.get("client", ""),
                reply_topic="" if no.error.code == "retained" else seen["reply"],
                correlation=raw.correlation,
            )

    def _admit(self, raw: RawCommand, now: Now, seen: dict[str, str]) -> Command:
        if raw.retained:
            raise _NoError("retained", "a retained command would be executed again at each connection")
        model: type[Request] = Request
        text = _parsed(raw)
        signer = ""
        if self._keys is not None:
            text, signer = self._unwrapped(text)
            model = SignedText
        _note_names(text, seen)
        if "client" in seen and not seen["reply"]:
            seen["reply"] = f"rsp/{seen['client']}"
        request = _read(model, text, "")
        if isinstance(request, SignedText):
            self._check_meaning(request.node, request.verb, raw.verb)
        wanted = VERBS.get(raw.verb)
        if wanted is None:
            raise _NoError("unknown-verb", f"{raw.verb[:40]!r}; this node knows {', '.join(VERBS)}")
        if request.expires is not None and wall_ns_of(request.expires) < now.wall_ns:
            doubt = "" if now.clock_synced else ", which no time service disciplines"
            raise _NoError(
                "expired", f"{request.expires}; this node's clock{doubt} says {rfc3339(now.wall_ns)}", "/expires"
            )
        self._check_right(raw.verb)
        args = _read(wanted, request.args, "/args")
        for verb in needs(raw.verb, args):
            self._check_right(verb)
        counter = 0
        if isinstance(request, SignedText):
            counter = request.counter
            self._count(signer, counter)
        return Command(request.id, request.client, raw.verb, args, seen["reply"], raw.correlation, signer, counter)

    def desired(self, raw: RawCommand) -> Desired | ErrorBody:
        """A config/desired (retained by its nature; its rev guards against old ones), or why not."""
        try:
            self._check_right(raw.verb)
            text = _parsed(raw)
            if self._keys is not None:
                text, _ = self._unwrapped(text)
                signed = _read(SignedDesired, text, "")
                self._check_meaning(signed.node, signed.verb, raw.verb)
                return Desired(signed.rev, signed.config)
            wanted = _read(ConfigDesired, text, "")
            return Desired(wanted.rev, wanted.config)
        except _NoError as no:
            return no.error

    def _check_right(self, verb: str) -> None:
        if not any(fnmatchcase(verb, pattern) for pattern in self._allow):
            raise _NoError("forbidden", f"commands.allow of this node does not permit {verb}")

    def _unwrapped(self, value: object) -> tuple[object, str]:
        assert self._keys is not None
        if not isinstance(value, dict) or "signature" not in value:
            raise _NoError("unsigned", "this node executes signed commands only (commands.operator_keys)")
        envelope = _read(Signed, value, "")
        signer = self._keys.signer_of(envelope.command.encode(), envelope.signature)
        if signer is None:
            raise _NoError("bad-signature", "no operator key of this node made this signature", "/signature")
        try:
            return parse(envelope.command.encode()), signer
        except StrictJsonError as error:
            raise _NoError("malformed", f"in the signed text: {error}", "/command") from None

    def _check_meaning(self, node: str, verb: str, topic_verb: str) -> None:
        if node != self._node:
            raise _NoError("foreign", f"signed for {node[:80]!r}, this is {self._node}", "/node")
        if verb != topic_verb:
            raise _NoError("foreign", f"signed as {verb[:40]!r}, sent as {topic_verb[:40]!r}", "/verb")

    def _count(self, signer: str, counter: int) -> None:
        if self.counters is None:
            raise _NoError("unavailable", "the counter of signed commands cannot be read from this node's disk")
        last = self.counters.get(signer, 0)
        if counter <= last:
            raise _NoError("replayed", f"counter {counter} is not above {last}", "/counter")
        self.counters[signer] = counter

    def _below_rsp(self, topic: str) -> str:
        """An MQTT 5 response topic below B/rsp/ as a topic below B; anything else is not honoured."""
        rest = topic.removeprefix(f"{self._base}/")
        name = rest.removeprefix("rsp/")
        is_plain = 0 < len(name) <= 64 and name.isascii() and all(c.isalnum() or c in "._-" for c in name)
        return rest if rest != topic and name != rest and is_plain else ""


def _parsed(raw: RawCommand) -> object:
    if raw.size > MAX_BYTES:
        raise _NoError("too-large", f"{raw.size} bytes, at most {MAX_BYTES} are read")
    try:
        return parse(raw.payload)
    except StrictJsonError as error:
        raise _NoError("malformed" if error.code != "too-large" else "too-large", str(error), error.pointer) from None


def _note_names(value: object, seen: dict[str, str]) -> None:
    """id and client as soon as they can be believed, so that a refusal can be answered."""
    if isinstance(value, dict):
        for name in ("id", "client"):
            given = value.get(name)
            if isinstance(given, str) and _is_name(given):
                seen[name] = given


def _is_name(text: str) -> bool:
    return (
        0 < len(text) <= 64 and text.isascii() and text[0].isalnum() and all(c.isalnum() or c in "._-" for c in text)
    )


def _read(model: type[M], value: object, at: str) -> M:
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        # pydantic would make an error for each of them: of 64 KiB that takes 30 ms.
        raise _NoError("invalid", f"{len(value)} fields; no command has more than a few", at)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        words = str(problem["msg"]).removeprefix("Value error, ")
        raise _NoError("invalid", words[:1].lower() + words[1:], at + pointer_of(problem["loc"])) from None
