"""The view check of a running node: now and then, while nothing moves, against the walk test's picture. Reads it.

Main thread; a look costs some milliseconds (agent/view.py).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from agent.access import COMMISSIONING
from agent.disk import Disk
from agent.errors import StorageError
from agent.model import NS_PER_S, Frame, Plane
from agent.settings import Settings
from agent.view import View, compare

log = logging.getLogger(__name__)

EVERY_S = 600.0
FIRST_S = 60.0
"""The first look comes so long after the start, and so soon again while what it sees is wrong."""

WRONG_LOOKS = 3
"""In a row, before it is trouble: a cleaner's hand on the camera is none."""

BASELINE = "view.jpg"


def baseline(directory: Path, disk: Disk) -> Plane | None:
    """The picture of the last walk test, uint8 (h, w); None without one. directory: as camera-agent aim writes it."""
    path = directory / BASELINE
    if disk.size(path) is None:
        return None
    import cv2

    content = np.frombuffer(disk.read(path), np.uint8)
    # OpenCV asserts that there is something to decode.
    picture = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if content.size else None
    if picture is None:
        raise StorageError("read", path, "it is not a picture", hint="do the walk test again: camera-agent aim")
    return np.asarray(picture, dtype=np.uint8)


class Viewing:
    """step() once a second with the newest frame; trouble in words, empty while the view is right or unknown."""

    def __init__(self, settings: Settings, disk: Disk | None = None) -> None:
        self._directory = settings.clips.directory / COMMISSIONING
        self._zones = settings.zones
        self._disk = disk or Disk()
        self._next_ns: int | None = None
        self._wrong: list[View] = []
        self.trouble = ""

    def adopt(self, settings: Settings) -> None:
        """Go by these from the next look on."""
        self._zones = settings.zones

    def step(self, now_ns: int, frame: Frame | None, *, is_quiet: bool) -> None:
        """is_quiet: nothing moves and the light is known; else the look waits."""
        if self._next_ns is None:
            self._next_ns = now_ns + round(FIRST_S * NS_PER_S)
        if frame is None or not is_quiet or now_ns < self._next_ns:
            return
        view = self._look(frame)
        self._next_ns = now_ns + round((FIRST_S if view is not None and view.is_wrong else EVERY_S) * NS_PER_S)
        if view is None or view.state in ("same", "unknown"):
            self._wrong.clear()
            self.trouble = ""
        elif view.is_wrong:
            self._wrong.append(view)
            del self._wrong[:-WRONG_LOOKS]
            if len(self._wrong) == WRONG_LOOKS:
                self.trouble = view.words

    def _look(self, frame: Frame) -> View | None:
        """None without a walk test to compare with."""
        try:
            before = baseline(self._directory, self._disk)
        except StorageError as error:
            log.debug("view check: %s", error)
            return None
        return None if before is None else compare(before, frame.y, self._zones)
