"""From settings to a camera. Opens nothing yet: that is start()'s business."""

from __future__ import annotations

from agent.camera import Camera, Source
from agent.cameras.fake import FakeSource
from agent.cameras.overlay import Overlay
from agent.cameras.paced import PacedCamera
from agent.cameras.pi_controls import PictureSettings
from agent.cameras.pi_stack import PiOptions
from agent.cameras.picamera2 import PiCamera
from agent.cameras.scenes import find_scene
from agent.cameras.video import VideoOptions, VideoSource
from agent.clock import Clock
from agent.errors import ConfigError
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
    if camera.backend != "video":
        raise ConfigError(
            "open",
            f"camera.backend = {camera.backend!r}",
            "it cannot be stepped",
            hint="fake and video can be replayed",
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
    if settings.camera.backend == "picamera2":
        return PiCamera(pi_options(settings), clock)
    return PacedCamera(open_source(settings, clock), clock)


def pi_options(settings: Settings) -> PiOptions:
    camera = settings.camera
    sensor_width, _, sensor_height = camera.sensor_size.partition("x")
    return PiOptions(
        id=camera.id,
        width=camera.width,
        height=camera.height,
        fps=camera.fps,
        lores_width=camera.lores_width,
        lores_height=camera.lores_height,
        bitrate_kbps=camera.bitrate_kbps,
        gop_s=settings.clips.gop_s,
        masks=privacy_polygons(settings),
        rotation=camera.rotation,
        mirror=camera.mirror,
        flip=camera.flip,
        tuning_file=camera.tuning_file,
        sensor_size=(int(sensor_width), int(sensor_height)) if camera.sensor_size else None,
        software_encoder={"auto": None, "hardware": False, "software": True}[camera.encoder],
        picture=PictureSettings(
            autofocus=camera.autofocus,
            lens_position=camera.lens_position,
            exposure_us=camera.exposure_us,
            gain=camera.gain,
            brightness_ev=camera.brightness_ev,
            white_balance=camera.white_balance,
            flicker_hz=camera.flicker_hz,
            hdr=camera.hdr,
        ),
        overlay=Overlay(settings.node.id, settings.node.zone_info) if camera.overlay else None,
    )
