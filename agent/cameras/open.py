"""From settings to a camera. Opens nothing yet: that is start()'s business."""

from __future__ import annotations

from agent.camera import Camera, Source
from agent.cameras.fake import FakeSource
from agent.cameras.paced import PacedCamera
from agent.cameras.scenes import find_scene
from agent.cameras.video import VideoOptions, VideoSource
from agent.clock import Clock
from agent.masks import Polygon
from agent.settings import Settings


def privacy_polygons(settings: Settings) -> tuple[Polygon, ...]:
    return tuple(tuple(zone.polygon) for zone in settings.zones if zone.kind == "privacy")


def open_source(settings: Settings, clock: Clock, *, want_packets: bool = True) -> Source:
    """The source that the settings name, to be stepped. ConfigError for a scene that does not exist or is wrong."""
    camera = settings.camera
    masks = privacy_polygons(settings)
    if camera.backend == "fake":
        return FakeSource(
            find_scene(camera.scene),
            width=camera.width,
            height=camera.height,
            fps=camera.fps,
            lores_width=camera.lores_width,
            lores_height=camera.lores_height,
            bitrate_kbps=camera.bitrate_kbps,
            gop_s=settings.clips.gop_s,
            masks=masks,
            want_packets=want_packets,
        )
    options = VideoOptions(
        source=camera.source,
        width=camera.width,
        height=camera.height,
        fps=camera.fps,
        lores_width=camera.lores_width,
        lores_height=camera.lores_height,
        bitrate_kbps=camera.bitrate_kbps,
        gop_s=settings.clips.gop_s,
        loop=camera.loop,
        masks=masks,
        want_packets=want_packets,
    )
    return VideoSource(options, clock)


def open_camera(settings: Settings, clock: Clock) -> Camera:
    """The camera that the settings name; start() opens it."""
    return PacedCamera(open_source(settings, clock), clock)
