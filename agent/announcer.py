"""Keeps Home Assistant told: puts the discovery message up, remembers what was announced. Touches one small file."""

from __future__ import annotations

import logging
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from agent.connection import Incoming
from agent.discovery import Announced, a_start_later, birth_topic, plan
from agent.disk import Disk
from agent.errors import StorageError
from agent.handoffs import Status, StatusBoard
from agent.messages import MetaMessage
from agent.requests import VERBS
from agent.settings import CommandSettings, Settings

log = logging.getLogger(__name__)

FILE_NAME = "discovery.json"


def offered(settings: CommandSettings) -> frozenset[str]:
    """The commands that a client without a key of its own, as Home Assistant, may give."""
    if not settings.enabled or settings.operator_keys:
        return frozenset()
    return frozenset(verb for verb in VERBS if any(fnmatchcase(verb, pattern) for pattern in settings.allow))


class Announcer:
    """announce() from main, hear() from the link's thread. verbs: commands to offer; None: as the settings permit."""

    def __init__(
        self,
        settings: Settings,
        statuses: StatusBoard,
        *,
        verbs: Collection[str] | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._mqtt = settings.mqtt
        self._prefix = settings.mqtt.discovery_prefix if settings.mqtt.discovery else ""
        self._health_s = settings.health.interval_s
        self._statuses = statuses
        self._verbs = offered(settings.commands) if verbs is None else verbs
        self._disk = disk or Disk()
        self._path: Path = settings.clips.directory / FILE_NAME
        self._remembered: Announced | None = None

    @property
    def listens_to(self) -> str | None:
        """Home Assistant's birth topic, as Topics.at() takes it; None while nothing is announced."""
        return birth_topic(self._prefix) if self._prefix else None

    def adopt(self, settings: Settings) -> None:
        """What may change without a restart; announce() follows."""
        self._health_s = settings.health.interval_s

    def announce(self, meta: MetaMessage, update_id: str = "") -> None:
        """Put up what Home Assistant should know; what it knew and is no more is cleared.

        update_id: of the next `update` command; empty: this node is not updated so.
        """
        before = self._recall()
        messages, after = plan(
            before,
            meta,
            prefix=self._prefix,
            root=self._mqtt.root,
            health_s=self._health_s,
            verbs=self._verbs,
            update_id=update_id,
        )
        if after != before:
            self._remember(after)
        for topic, payload in messages.items():
            self._statuses.put(topic, Status(payload))

    def hear(self, message: Incoming) -> None:
        """Home Assistant has started: what it may have missed is sent again."""
        if message.payload == b"online" and self._remembered is not None and self._remembered.topic:
            self._statuses.again(self._remembered.topic)

    def _recall(self) -> Announced:
        if self._remembered is None:
            try:
                found = Announced.model_validate_json(self._disk.read(self._path))
            except (StorageError, ValidationError) as error:
                # The first start, or a broken file: nothing to clear is known.
                log.debug("%s: %s", self._path, error)
                found = Announced()
            self._remembered = found
            later = a_start_later(found)
            if later != found:
                self._remember(later)
        return self._remembered

    def _remember(self, announced: Announced) -> None:
        self._remembered = announced
        try:
            self._disk.write_whole(self._path, announced.model_dump_json().encode())
        except StorageError as error:
            log.warning("Home Assistant will not be told of later changes: %s", error)
