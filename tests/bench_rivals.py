"""The detectors beside ours in scripts/bench --detectors, at their defaults; each resizes the camera's luma itself.

Frigate's are written anew after its sources: frigate/motion/improved_motion.py (0.13 to 0.18) and frigate/motion.py
(until 0.12), without masks and cameras that turn, which cost it a little more. All that begin with a black mean are
silent for LEARNS frames.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from agent.model import Frame

SIZE = (320, 240)
LEARNS = 30
Look = Callable[[Frame], bool]
Picture = npt.NDArray[Any]


# --- OpenCV's background models --------------------------------------------------------------------------------


class Subtractor:
    """A background model at 320x240 as tutorials have it: opened mask without shadows, the largest blob.

    model at OpenCV's defaults (shadows told, history 500); share: of the picture, for so many frames running.
    apply_s: CPU seconds of resizing and of the model alone.
    """

    def __init__(self, model: Any, share: float, frames: int) -> None:
        self._model, self._least, self._frames = model, share * SIZE[0] * SIZE[1], frames
        self._kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
        self._running = 0
        self.apply_s = 0.0

    def __call__(self, frame: Frame) -> bool:
        begin = time.thread_time()
        # Exactly half of 640x480: OpenCV takes means of four pixels here, its fastest way.
        mask = self._model.apply(cv2.resize(frame.y, SIZE, interpolation=cv2.INTER_LINEAR))
        self.apply_s += time.thread_time() - begin
        _, mask = cv2.threshold(mask, 200, 255, cv2.THRESH_BINARY)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, self._kernel)
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        largest = int(stats[1:, cv2.CC_STAT_AREA].max()) if len(stats) > 1 else 0
        self._running = self._running + 1 if largest >= self._least else 0
        return self._running >= self._frames


def mog2(share: float, frames: int) -> Callable[[Frame], Look]:
    return lambda _: Subtractor(cv2.createBackgroundSubtractorMOG2(), share, frames)


def knn(share: float, frames: int) -> Callable[[Frame], Look]:
    return lambda _: Subtractor(cv2.createBackgroundSubtractorKNN(), share, frames)


# --- running means with contours -------------------------------------------------------------------------------


class Mean:
    """A running mean that takes in what differs only from the tenth such frame on, as Frigate's does."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._mean = np.zeros((size[1], size[0]), np.float32)
        self._running = 0

    def difference(self, picture: Picture) -> Picture:
        return cv2.absdiff(picture, cv2.convertScaleAbs(self._mean))

    def take(self, picture: Picture, differs: bool, share: float) -> None:
        self._running = self._running + 1 if differs else 0
        if not differs or self._running >= 10:
            cv2.accumulateWeighted(picture, self._mean, share)


def resized(frame: Frame, size: tuple[int, int], interpolation: int) -> Picture:
    return cv2.resize(frame.y, size, interpolation=interpolation)


def areas_of(mask: Picture, dilations: int) -> list[float]:
    thick = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=dilations)
    contours, _ = cv2.findContours(thick, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [cv2.contourArea(contour) for contour in contours]


def over(picture: Picture, threshold: int) -> Picture:
    return cv2.threshold(picture, threshold, 255, cv2.THRESH_BINARY)[1]


class Contrast:
    """The mean of the last 50 frames' darkest and brightest twenty-fifth: what is to become black and white."""

    def __init__(self) -> None:
        self._past = np.tile(np.array([0, 255], np.uint8), (50, 1))
        self._next = 0

    def after(self, low: Any, high: Any) -> tuple[Any, Any]:
        self._past[self._next] = low, high
        self._next = (self._next + 1) % len(self._past)
        black, white = self._past.mean(axis=0)
        return black, white


def by_numpy_and_scipy() -> Callable[[Picture], Picture]:
    """Contrast and blur with the very calls that Frigate makes."""
    gaussian_filter = importlib.import_module("scipy.ndimage").gaussian_filter
    contrast = Contrast()

    def prepare(small: Picture) -> Picture:
        low, high = (np.percentile(small, share).astype(np.uint8) for share in (4, 96))
        if low < high:
            black, white = contrast.after(low, high)
            small = ((np.clip(small, black, white) - black) / (white - black) * 255).astype(np.uint8)
        blurred: Picture = gaussian_filter(small, sigma=1, radius=1)
        return blurred

    return prepare


def by_opencv() -> Callable[[Picture], Picture]:
    """The same picture, give or take a level, by the fastest calls there are for it."""
    contrast, levels = Contrast(), np.arange(256)

    def prepare(small: Picture) -> Picture:
        below = cv2.calcHist([small], [0], None, [256], [0, 256]).cumsum()
        low, high = (int(level) for level in below.searchsorted((0.04 * small.size, 0.96 * small.size)))
        if low < high:
            black, white = contrast.after(low, high)
            table = ((levels.clip(black, white) - black) / (white - black) * 255).astype(np.uint8)
            small = cv2.LUT(small, table)
        return cv2.GaussianBlur(small, (3, 3), 1)

    return prepare


def frigate(make: Callable[[], Callable[[Picture], Picture]]) -> Callable[[Frame], Look]:
    """Frigate's own detector: 100 rows, contrast, blur, running mean, contours of more than 10 pixels."""

    def made(first: Frame) -> Look:
        height, width = first.y.shape
        size, prepare = (100 * width // height, 100), make()
        mean, is_settling, seen = Mean(size), True, 0

        def look(frame: Frame) -> bool:
            nonlocal is_settling, seen
            seen += 1
            small = prepare(resized(frame, size, cv2.INTER_NEAREST))
            areas = areas_of(over(mean.difference(small), 30), 1)
            found = sum(area > 10 for area in areas)
            share = sum(areas) / small.size
            if share < 0.05 and found <= 4:
                is_settling = False
            is_settling = is_settling or share > 0.8
            mean.take(small, found > 0, 0.2 if is_settling else 0.01)
            return found > 0 and seen > LEARNS  # its boxes count while it settles, as they do in Frigate

        return look

    return made


def frigate_until_12(first: Frame) -> Look:
    """Frigate's until 0.12: 50 rows, what differs now and differed lately, contours of more than 30 pixels."""
    height, width = first.y.shape
    size = (50 * width // height, 50)
    mean, lately, seen = Mean(size), np.zeros((size[1], size[0]), np.float32), 0

    def look(frame: Frame) -> bool:
        nonlocal seen
        small = resized(frame, size, cv2.INTER_LINEAR)
        found = False
        seen += 1
        if seen > LEARNS:
            difference = mean.difference(small)
            cv2.accumulateWeighted(difference, lately, 0.2)
            both = cv2.bitwise_and(cv2.convertScaleAbs(lately), over(difference, 25))
            found = any(area > 30 for area in areas_of(over(both, 25), 2))
        mean.take(small, found, 0.2)
        return found

    return look


def running_mean(first: Frame) -> Look:
    """The plain one at MOG2's size: blur, running mean, contours of the share of the picture that Frigate's have."""
    least = 10 / 13_300 * SIZE[0] * SIZE[1]
    mean, seen = Mean(SIZE), 0

    def look(frame: Frame) -> bool:
        nonlocal seen
        small = cv2.GaussianBlur(resized(frame, SIZE, cv2.INTER_LINEAR), (3, 3), 1)
        found = any(area > least for area in areas_of(over(mean.difference(small), 30), 1))
        seen += 1
        mean.take(small, found, 0.2 if seen < LEARNS else 0.01)
        return found and seen > LEARNS

    return look


# --- all of them -----------------------------------------------------------------------------------------------

REFERENCE = "MOG2, blob 0.2 %"
RIVALS: dict[str, Callable[[Frame], Look]] = {
    REFERENCE: mog2(0.002, 1),
    "MOG2, blob 0.05 % for 3": mog2(0.0005, 3),
    "KNN, blob 0.05 % for 3": knn(0.0005, 3),
    "Frigate's detector": frigate(by_numpy_and_scipy),
    "- its steps by OpenCV": frigate(by_opencv),
    "- until 0.12": frigate_until_12,
    "running mean at 320x240": running_mean,
}
if importlib.util.find_spec("scipy") is None:
    del RIVALS["Frigate's detector"]
