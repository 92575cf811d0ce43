"""What is asked of a video source: a file, an RTSP stream or a V4L2 device. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass

from agent.masks import Polygon
from agent.settings import redacted


def is_device(source: str) -> bool:
    """/dev/videoN, or one of the names below /dev/v4l that stay when others are plugged in."""
    return source.startswith(("/dev/video", "/dev/v4l/"))


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """What is asked of a video source.

    source: path, rtsp:// URL or device. width, height, fps: asked of a V4L2 device. lores_width,
    lores_height: limits of the analysis picture. bitrate_kbps, gop_s: where it is encoded again. loop: begin a
    file again at its end; times and seq go on. masks: privacy polygons in shares of the picture.
    want_packets=False: frames only, for replays without clips. open_s, read_s: how long a network stream may
    take to answer, and how long one step waits for it.
    """

    source: str
    width: int = 1280
    height: int = 720
    fps: float = 15
    lores_width: int = 640
    lores_height: int = 480
    bitrate_kbps: int = 2000
    gop_s: float = 1.0
    loop: bool = False
    masks: tuple[Polygon, ...] = ()
    want_packets: bool = True
    open_s: float = 8.0
    read_s: float = 1.0

    @property
    def is_device(self) -> bool:
        return is_device(self.source)

    @property
    def is_live(self) -> bool:
        return self.is_device or "://" in self.source

    @property
    def name(self) -> str:
        return redacted(self.source)
