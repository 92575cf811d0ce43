"""Whether events are raised, since when and by whom: one small file. Reads that file; writing it is an errand."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from agent.disk import Disk
from agent.errors import StorageError
from agent.handoffs import Status, StatusBoard
from agent.messages import ArmedMessage, to_bytes
from agent.topics import ARMED

log = logging.getLogger(__name__)

ARMING_NAME = "arming.json"


class Arming:
    """state, is_armed, words and trouble for any thread; become() for the commands' thread.

    A node that never heard a word about it is armed, and so is one whose file cannot be read: it says so.
    """

    def __init__(self, directory: Path, statuses: StatusBoard, disk: Disk | None = None) -> None:
        self._statuses = statuses
        self.trouble = ""
        self.state = self._recall(directory / ARMING_NAME, disk or Disk())
        self._tell()

    @property
    def is_armed(self) -> bool:
        return self.state.armed

    @property
    def words(self) -> str:
        """For people, in health and under systemd."""
        word = "armed" if self.state.armed else "disarmed"
        return f"{word} since {self.state.since} by {self.state.by}" if self.state.since else word

    def become(self, state: ArmedMessage) -> None:
        """What has been written down is in force."""
        self.state, self.trouble = state, ""
        log.info("%s", self.words)
        self._tell()

    def _tell(self) -> None:
        self._statuses.put(ARMED, Status(to_bytes(self.state)))

    def _recall(self, path: Path, disk: Disk) -> ArmedMessage:
        try:
            if disk.size(path) is None:
                return ArmedMessage(armed=True)
            return ArmedMessage.model_validate_json(disk.read(path))
        except (StorageError, ValidationError) as error:
            log.error("%s: %s; the node is armed", path, error)
            self.trouble = f"{ARMING_NAME} cannot be read, so the node is armed (arm or disarm it again)"
            return ArmedMessage(armed=True)
