"""`camera-agent watch`: a subscriber in the terminal. Touches the network, the terminal and the --save directory."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import secrets
import sys
import time
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from agent.backoff import Backoff
from agent.cli import count, load_settings, number
from agent.cli.repair import PATIENCE_S, Repairs
from agent.clock import SystemClock
from agent.connection import UNSUPPORTED_VERSION, Connection, Incoming, Protocol
from agent.errors import ConfigError, LinkError
from agent.gaps import Gap, Gaps, Seen
from agent.handoffs import Doorbell
from agent.messages import (
    ClipMessage,
    Envelope,
    EventMessage,
    HealthMessage,
    LossMessage,
    MetaMessage,
    StateMessage,
    ThumbProperties,
    sha256_hex,
)
from agent.outbox import stamp_of
from agent.settings import MqttSettings
from agent.topics import CLIP, EVENT, HEALTH, LOSS, META, MOTION, RSP, STATE, THUMB, VERSION, split

HELP = "show events, pictures and clips as they arrive at a broker"
FEEDS = (STATE, META, HEALTH, MOTION, EVENT, THUMB, CLIP, LOSS)
MAX_JSON_BYTES = 1 << 20
CATCH_UP_S = 5.0
"""A node that sent something late, or a missing number, will send more of both: so long its gaps are waited for."""

M = TypeVar("M", bound=BaseModel)


class Listener(typing.Protocol):
    """Who hears what came and may ask: questions are topics and payloads."""

    def say(self, words: str) -> None: ...
    def take(self, message: Incoming) -> None: ...
    def questions(self, now_s: float) -> list[tuple[str, bytes]]: ...


def add_broker(parser: argparse.ArgumentParser) -> None:
    """The options of a program that speaks to a broker for people."""
    parser.add_argument("--host", default="localhost", help="the broker (default: localhost)")
    parser.add_argument("--port", type=count(1), help="its port (default: 1883, with --tls 8883)")
    parser.add_argument("--username", default="", help="user name; its password comes from --password-file")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="a file whose first line is the password")
    parser.add_argument("--tls", action="store_true", help="use TLS and check the broker's certificate")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="CA certificates in PEM (default: the system's)")
    parser.add_argument("--root", default="edgecam", help="first level of the topics (default: edgecam)")
    parser.add_argument("--site", default="+", help="only this site (default: all)")


def configure(parser: argparse.ArgumentParser) -> None:
    add_broker(parser)
    parser.add_argument("--node", default="+", help="only this node (default: all)")
    parser.add_argument("--seconds", type=number(0.1), metavar="N", help="end after so long (default: at Ctrl-C)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="save each picture there as JPEG")
    parser.add_argument("--no-repair", action="store_true", help="do not ask nodes for messages that are missing")
    parser.add_argument("--json", action="store_true", help="one JSON object per line, all messages")


def run(args: argparse.Namespace) -> int:
    settings = broker_of(args, "site", "node")
    if args.save is not None:
        try:
            args.save.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("create", args.save, error, hint="--save takes a directory") from error
    repairs = None if args.no_repair else Repairs(settings.root, f"watch-{secrets.token_hex(6)}")
    watcher = Watcher(_print, root=settings.root, save=args.save, as_json=args.json, repairs=repairs)
    end_s = None if args.seconds is None else time.monotonic() + args.seconds
    filters = [f"{settings.root}/v{VERSION}/{args.site}/{args.node}/{feed}" for feed in FEEDS]
    filters += [repairs.topic(args.site, args.node)] if repairs else []
    watch(settings, filters, watcher, is_over=lambda: end_s is not None and time.monotonic() >= end_s)
    return 0


def broker_of(args: argparse.Namespace, *ids: str) -> MqttSettings:
    """From add_broker's options. ids: those of them that name a site or node. Raises ConfigError."""
    for option in ids:
        value = getattr(args, option)
        if value != "+" and (not value or set(value) & set("+#/")):
            raise ConfigError("read", f"--{option}", f"{value!r} is not an id", hint="such as ward-12; + means all")
    password = ""
    if args.password_file is not None:
        try:
            password = args.password_file.read_text(encoding="utf-8").splitlines()[0]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("read", args.password_file, error, hint="for --password-file") from error
        except IndexError:
            raise ConfigError("read", args.password_file, "it is empty", hint="for --password-file") from None
    mqtt: dict[str, Any] = {
        "host": args.host,
        "port": args.port or (8883 if args.tls else 1883),
        "tls": args.tls,
        "ca_file": args.ca_file,
        "username": args.username,
        "password": password,
        "root": args.root,
    }
    return load_settings(None, environ={}, overrides={"mqtt": mqtt}).mqtt


def _print(line: str) -> None:
    print(line, flush=True)


def watch(settings: MqttSettings, filters: list[str], watcher: Listener, is_over: Callable[[], bool]) -> None:
    """Subscribe and show until is_over. LinkError when the broker is not reached the first time; later it retries."""
    clock, backoff = SystemClock(), Backoff(lambda: secrets.randbelow(1000) / 1000)
    client_id = f"camera-agent-watch-{secrets.token_hex(6)}"
    protocol: Protocol = "5"
    was_ready = False
    while not is_over():
        connection = None
        try:
            connection = Connection(settings, client_id, clock, protocol=protocol)
            while not connection.ready and not is_over():
                connection.step(0.2)
                if connection.failure is not None:
                    raise connection.failure
            if was_ready:
                watcher.say(f"connected to {connection.where} again")
            was_ready = True
            backoff.reset()
            connection.subscribe(*filters)
            while not is_over():
                connection.step(0.2)
                for topic, words in connection.take_denied():
                    raise LinkError("subscribe to", topic, words, hint="the broker's access list forbids it")
                for message in connection.take_messages():
                    watcher.take(message)
                connection.take_acks()
                for topic, payload in watcher.questions(time.monotonic()):
                    if connection.room > 0:
                        connection.publish(topic, payload)
                if connection.failure is not None:
                    raise connection.failure
        except LinkError as failure:
            if connection is not None and connection.refusal == UNSUPPORTED_VERSION and protocol == "5":
                protocol = "3.1.1"
                watcher.say("the broker speaks MQTT 3.1.1 only: pictures come without their ids")
                continue
            if not was_ready or (connection is not None and connection.ready):
                raise
            watcher.say(f"{failure}; trying again")
            retry_s = time.monotonic() + backoff.next_s()
            while time.monotonic() < retry_s and not is_over():
                Doorbell().wait(0.1)
        finally:
            if connection is not None:
                connection.close()


class Watcher:
    """Turns messages into lines and keeps account of gaps. No control character of a payload reaches the terminal.

    save: where pictures go; clips: the node's own directory of clips, when it is on this machine. told: how many
    events ended, pictures and clips came.
    """

    def __init__(
        self,
        out: Callable[[str], None],
        *,
        root: str,
        save: Path | None = None,
        clips: Path | None = None,
        as_json: bool = False,
        repairs: Repairs | None = None,
    ) -> None:
        self._out = out
        self._repairs = repairs
        self._root = root
        self.told: Counter[str] = Counter()
        self._save = save
        self._clips = clips
        self._as_json = as_json
        self._metas: dict[tuple[str, str], MetaMessage] = {}
        self._gaps: dict[tuple[str, str, str], Gaps] = {}
        self._heads: dict[tuple[str, str, str], int] = {}
        self._catches_up: set[tuple[str, str, str]] = set()
        self._caught_up_s: dict[tuple[str, str, str], float] = {}
        self._seen_s: dict[tuple[str, str, str], dict[int, float]] = {}
        self._told_to: dict[tuple[str, str, str], int] = {}
        self._states: dict[tuple[str, str], str] = {}

    def say(self, words: str) -> None:
        """Something about the watching itself."""
        print(f"camera-agent: {_plain(words)}", file=sys.stderr, flush=True)

    def take(self, message: Incoming) -> None:
        """Show one message."""
        where = split(message.topic, self._root)
        if where is None:
            return
        site, node, feed = where
        key = (site, node)
        if feed.startswith(f"{RSP}/"):
            self._answer(key, message)
        elif feed == THUMB:
            self._thumb(key, message)
        elif feed == MOTION:
            if self._as_json:
                self._emit(key, feed, message, message.payload.decode(errors="replace"))
        elif not message.payload:
            return  # a retained message that was cleared
        elif feed == STATE:
            self._with(StateMessage, key, feed, message, self._state)
        elif feed == META:
            self._with(MetaMessage, key, feed, message, self._meta)
        elif feed == HEALTH:
            self._with(HealthMessage, key, feed, message, self._health)
        elif feed == EVENT:
            self._with(EventMessage, key, feed, message, self._event)
        elif feed == CLIP:
            self._with(ClipMessage, key, feed, message, self._clip)
        elif feed == LOSS:
            self._with(LossMessage, key, feed, message, self._loss)

    def _with(
        self,
        model: type[M],
        key: tuple[str, str],
        feed: str,
        message: Incoming,
        show: Callable[[tuple[str, str], M], None],
    ) -> None:
        """Read the payload as model and show it; what does not fit is named, not shown."""
        try:
            if len(message.payload) > MAX_JSON_BYTES:
                raise ValueError(f"{len(message.payload)} bytes are too many")
            value = model.model_validate_json(message.payload)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            self._line(key, "", f"{feed}: not understood: {name}: {first['msg']}")
            return
        except ValueError as error:
            self._line(key, "", f"{feed}: not understood: {error}")
            return
        self.told[feed] += not isinstance(value, EventMessage) or value.phase == "end"
        if self._as_json:
            self._emit(key, feed, message, json.loads(message.payload))
        if isinstance(value, Envelope) and not message.retained:
            self._count(key, value.epoch, value.seq)
            if value.late:
                self._catches_up.add((*key, value.epoch))
        show(key, value)

    # -- repair

    def questions(self, now_s: float) -> list[tuple[str, bytes]]:
        """Say what is missing; what to ask which node for now: (topic, payload)."""
        found = []
        for stream in self._newest_epochs():
            if stream in self._catches_up:
                self._catches_up.discard(stream)
                self._caught_up_s[stream] = now_s + CATCH_UP_S
            missing = self._gaps[stream].missing
            if now_s < self._caught_up_s.get(stream, 0.0):
                continue
            self._tell_missing(stream, missing, now_s)
            if self._repairs is None:
                continue
            site, node, _ = stream
            for topic, payload in self._repairs.questions((site, node), missing, now_s):
                args = json.loads(payload)["args"]
                self._line((site, node), "", f"asking the node for {Gap(args['from_seq'], args['to_seq'])}")
                found.append((topic, payload))
        return found

    def _tell_missing(self, stream: tuple[str, str, str], missing: Sequence[Gap], now_s: float) -> None:
        """Each gap once, when it is not only in flight."""
        seen_s = {gap.first: self._seen_s.get(stream, {}).get(gap.first, now_s) for gap in missing}
        self._seen_s[stream] = seen_s
        for gap in missing:
            if gap.first > self._told_to.get(stream, 0):
                if now_s - seen_s[gap.first] < PATIENCE_S:
                    return
                self._told_to[stream] = gap.last
                self._gap(stream[:2], stream[2], f"missing {gap} (lost by the broker, or still in flight)")

    def _newest_epochs(self) -> list[tuple[str, str, str]]:
        """Of an earlier epoch a node has nothing any more."""
        newest = {stream[:2]: stream for stream in self._gaps}
        return list(newest.values())

    def _answer(self, key: tuple[str, str], message: Incoming) -> None:
        if self._repairs is None:
            return
        repaired = self._repairs.answer(key, message)
        for each in repaired.messages:
            self.take(each)
        for stream in self._newest_epochs():
            for gap in repaired.gone if stream[:2] == key else ():
                if self._gaps[stream].explained(gap.first, gap.last):
                    self._gap(key, stream[2], f"{gap} cannot be had: the node does not keep it any more")

    # -- one feed each

    def _state(self, key: tuple[str, str], state: StateMessage) -> None:
        reasons = f" ({'; '.join(state.reasons)})" if state.reasons else ""
        words = f"{state.state}{reasons}"
        if self._states.get(key) != words:
            self._states[key] = words
            self._line(key, state.time, words)

    def _meta(self, key: tuple[str, str], meta: MetaMessage) -> None:
        if self._metas.get(key) != meta:
            self._metas[key] = meta
            camera = meta.camera
            size = f"{camera.width}x{camera.height} at {camera.fps:g}/s" if camera.width else "no camera yet"
            place = f", {meta.location}" if meta.location else ""
            self._line(key, "", f"is {meta.site}/{meta.node}{place}: {size}, agent {meta.agent_version}")

    def _health(self, key: tuple[str, str], health: HealthMessage) -> None:
        """The node's newest number, unseen since the last health message too, is a gap at the tail."""
        stream = (*key, health.head.epoch)
        gaps = self._gaps.get(stream)
        if gaps is not None and self._heads.get(stream, 0) > gaps.head:
            gaps.exists(self._heads[stream])
        self._heads[stream] = health.head.seq

    def _event(self, key: tuple[str, str], event: EventMessage) -> None:
        parts = [f"event {event.phase:<6} {event.kind}", f"{event.score:.0%}"]
        if event.end is not None:
            parts.append(f"{_seconds(event.start, event.end):.1f} s")
        if event.end_reason not in (None, "quiet"):
            parts.append(str(event.end_reason).replace("_", " "))
        if event.zones:
            names = self._zone_names(key)
            parts.append("in " + ", ".join(names.get(zone, zone) for zone in event.zones))
        if event.clip is not None:
            parts.append(f"clip {event.clip.id}")
        parts.append(f"[{event.id} rev {event.rev}]")
        self._line(key, event.time, ", ".join(parts) + _doubts(event))

    def _clip(self, key: tuple[str, str], clip: ClipMessage) -> None:
        flags = f", {', '.join(clip.flags)}" if clip.flags else ""
        words = f"clip {clip.id}: {clip.duration_s:.1f} s, {clip.bytes / 1e6:.1f} MB, {len(clip.event_ids)} event(s)"
        file = next(self._clips.rglob(f"*{clip.id}*.mp4"), None) if self._clips else None
        self._line(key, clip.time, words + flags + _doubts(clip) + (f" -> {file}" if file else ""))

    def _loss(self, key: tuple[str, str], loss: LossMessage) -> None:
        self._account(key, loss.epoch).explained(loss.from_seq, loss.to_seq)
        numbers = f"{loss.from_seq}..{loss.to_seq}" if loss.to_seq > loss.from_seq else f"{loss.from_seq}"
        self._line(key, loss.time, f"the node gave up {numbers} ({loss.kind}): {loss.reason}")

    def _thumb(self, key: tuple[str, str], message: Incoming) -> None:
        about = _about(message)
        if about is not None:
            # Pictures do not say their epoch: it is that of the newest message of their node.
            epoch = next((stream[2] for stream in reversed(self._gaps) if stream[:2] == key), None)
            if epoch is not None and about.seq.isdecimal() and not message.retained:
                self._count(key, epoch, int(about.seq))
        saved = self._keep(key, message.payload, about)
        self.told[THUMB] += 1
        if self._as_json:
            content = {"bytes": len(message.payload), "file": str(saved) if saved else None, **message.properties}
            self._emit(key, THUMB, message, content)
            return
        of = f" of [{about.event_id} rev {about.rev}]" if about else ""
        to = f" -> {saved}" if saved else ""
        self._line(key, about.time if about else "", f"picture{of}, {len(message.payload) / 1000:.0f} kB{to}")

    def _keep(self, key: tuple[str, str], jpeg: bytes, about: ThumbProperties | None) -> Path | None:
        if self._save is None:
            return None
        # Topic levels have no slash and ids are checked ULIDs: nothing from outside can leave the directory.
        name = f"{about.event_id}-{about.rev}" if about and about.rev.isdecimal() else f"{time.time_ns()}"
        file = self._save / f"{_plain(key[0]).strip('.')}_{_plain(key[1]).strip('.')}_{name}.jpg"
        try:
            file.write_bytes(jpeg)
        except OSError as error:
            raise ConfigError("write", file, error, hint="see --save") from error
        return file

    # -- gaps

    def _account(self, key: tuple[str, str], epoch: str) -> Gaps:
        return self._gaps.setdefault((*key, epoch), Gaps())

    def _count(self, key: tuple[str, str], epoch: str, seq: int) -> None:
        gaps = self._account(key, epoch)
        if gaps.saw(seq) is not Seen.FILLS:
            return
        self._catches_up.add((*key, epoch))
        if seq <= self._told_to.get((*key, epoch), 0):
            left = ", ".join(str(gap) for gap in gaps.missing)
            self._gap(key, epoch, f"{seq} came after all" + (f", still missing {left}" if left else ""))

    def _gap(self, key: tuple[str, str], epoch: str, words: str) -> None:
        if self._as_json:
            missing = [[gap.first, gap.last] for gap in self._account(key, epoch).missing]
            line = {"type": "gap", "site": key[0], "node": key[1], "epoch": epoch, "words": words, "missing": missing}
            self._out(json.dumps(line, ensure_ascii=False))
        else:
            self._line(key, "", words)

    # -- lines

    def _zone_names(self, key: tuple[str, str]) -> dict[str, str]:
        meta = self._metas.get(key)
        return {zone.id: zone.name or zone.id for zone in meta.zones} if meta else {}

    def _emit(self, key: tuple[str, str], feed: str, message: Incoming, content: object) -> None:
        line = {"type": feed, "site": key[0], "node": key[1], "retained": message.retained, "message": content}
        self._out(json.dumps(line, ensure_ascii=False))

    def _line(self, key: tuple[str, str], when: str, words: str) -> None:
        if self._as_json:
            return
        meta = self._metas.get(key)
        name = meta.name if meta and meta.name else f"{key[0]}/{key[1]}"
        self._out(f"{_local(when)}  {_plain(name)}  {_plain(words)}")


def _about(message: Incoming) -> ThumbProperties | None:
    """What a picture says of itself: its MQTT 5 properties, else the comment inside the JPEG."""
    fields = dict(message.properties)
    if not fields:
        try:
            stamp = stamp_of(message.payload) or {}
        except RecursionError:  # a comment that is meant ill
            stamp = {}
        fields = {name: str(value) for name, value in stamp.items()} | {"sha256": sha256_hex(message.payload)}
    known = {name: fields[name] for name in ThumbProperties.model_fields if name in fields}
    try:
        return ThumbProperties.model_validate(known)
    except ValidationError:
        return None


def _doubts(message: Envelope) -> str:
    words = [
        *(["late"] if message.late else []),
        *([] if message.clock_synced else ["clock unsure"]),
    ]
    return f" ({', '.join(words)})" if words else ""


def _local(when: str) -> str:
    """The viewer's own time of day; now where the message has none."""
    try:
        moment = dt.datetime.fromisoformat(when) if when else dt.datetime.now(dt.UTC)
    except ValueError:
        return f"{when[:12]:<12}"
    return f"{moment.astimezone():%H:%M:%S}.{moment.microsecond // 1000:03d}"


def _seconds(start: str, end: str) -> float:
    try:
        return (dt.datetime.fromisoformat(end) - dt.datetime.fromisoformat(start)).total_seconds()
    except ValueError:
        return 0.0


def _plain(text: str) -> str:
    """Without control characters: names and reasons come from outside and go to a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
