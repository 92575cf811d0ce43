"""A video of what the detector saw, written beside a replay. Writes that one file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av

from agent.annotate import Annotator
from agent.errors import StorageError
from agent.model import Frame
from agent.settings import ZoneSettings
from agent.vision import Vision

TICKS = 90_000


class AnnotatedVideo:
    """`with AnnotatedVideo(...) as video:` then `video.see(frame, vision)` after each step of the vision stage.

    H.264 in MP4, at the recording's own times. StorageError where the file cannot be written.
    """

    def __init__(self, path: Path, zones: list[ZoneSettings]) -> None:
        self._path, self._zones = path, zones
        self._annotator: Annotator | None = None
        self._stream: Any = None
        self._t0_ns = 0
        try:
            # PyAV opens a path when the first packet comes; who mistyped it wants to know now.
            self._file = path.open("wb")
        except OSError as error:
            raise StorageError("write", path, error, hint="does its directory exist?") from error
        self._container = av.open(self._file, "w", format="mp4")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
        except (av.error.FFmpegError, OSError) as trouble:
            raise StorageError("write", self._path, trouble) from trouble
        finally:
            self._file.close()
            if self._stream is None:
                self._path.unlink(missing_ok=True)  # a recording without pictures gives no video

    def see(self, frame: Frame, vision: Vision) -> None:
        motion = vision.motion
        if motion is None or motion.seq != frame.seq:
            return  # not analysed (detection.fps)
        if self._annotator is None:
            height, width = frame.y.shape
            self._annotator = Annotator(width, height, self._zones)
            self._stream = self._container.add_stream("libx264")
            self._stream.width, self._stream.height = self._annotator.size
            self._stream.pix_fmt = "yuv420p"
            self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, TICKS)
            self._stream.options = {"preset": "veryfast", "crf": "21"}
            self._t0_ns = frame.t_ns
        picture = self._annotator.draw(frame, motion, vision.seen, vision.is_on)
        shown: Any = av.VideoFrame.from_ndarray(picture, format="bgr24")
        shown.pts = (frame.t_ns - self._t0_ns) * TICKS // 1_000_000_000
        shown.time_base = Fraction(1, TICKS)
        try:
            self._container.mux(self._stream.encode(shown))
        except (av.error.FFmpegError, OSError) as error:
            raise StorageError("write", self._path, error) from error
