"""What is asked of a Raspberry Pi camera, and the parts of picamera2 that give it. Loads picamera2 when told to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from agent.cameras.overlay import Overlay
from agent.cameras.pi_controls import PictureSettings
from agent.cameras.pi_hdr import set_sensor_hdr
from agent.errors import CameraError
from agent.masks import Polygon


@dataclass(frozen=True, slots=True)
class PiOptions:
    """What is asked of the camera.

    id: libcamera's id or a model that only one camera has; "": the only one. width, height, fps: main stream.
    lores_width, lores_height: limits of the analysis picture. gop_s: a keyframe at least so often. rotation: 0 or
    180. tuning_file: of libcamera's ("imx708_noir.json"). sensor_size: which of the sensor's modes, (width, height).
    software_encoder: None takes the hardware's where there is one (up to the Pi 4, Zero 2 W), else software (Pi 5).
    """

    id: str = ""
    width: int = 1920
    height: int = 1080
    fps: float = 15
    lores_width: int = 640
    lores_height: int = 360
    bitrate_kbps: int = 2000
    gop_s: float = 1.0
    masks: tuple[Polygon, ...] = ()
    rotation: int = 0
    mirror: bool = False
    flip: bool = False
    tuning_file: str = ""
    sensor_size: tuple[int, int] | None = None
    software_encoder: bool | None = None
    picture: PictureSettings = field(default_factory=PictureSettings)
    overlay: Overlay | None = None

    @property
    def name(self) -> str:
        return f"camera {self.id}" if self.id else "camera"


@dataclass(frozen=True, slots=True)
class Stack:
    """The parts of picamera2 that are used, so that a pretended one can stand in their place (profiles.py)."""

    picamera2: Any
    mapped_array: Any
    hardware_encoder: Any
    software_encoder: Any
    output: Any
    transform: Any
    sensor_hdr: Callable[[str, bool], None]


def picamera2_stack() -> Stack:
    """The real one. CameraError where it is not installed."""
    try:
        import libcamera
        import picamera2
        from picamera2 import encoders, outputs
    except (ImportError, ValueError, OSError) as error:
        # ValueError: NumPy's own "dtype size changed", when pip put another NumPy over apt's.
        raise CameraError(
            "load",
            "picamera2",
            error,
            hint="apt-get install python3-picamera2, and a venv with --system-site-packages",
        ) from error
    # Half a dozen lines for each start, which say nothing that is not said here.
    logging.getLogger("picamera2").setLevel(logging.WARNING)
    return Stack(
        picamera2.Picamera2,
        picamera2.MappedArray,
        encoders.H264Encoder,
        encoders.LibavH264Encoder,
        outputs.Output,
        libcamera.Transform,
        partial(set_sensor_hdr, Path("/")),
    )


def eased(options: PiOptions, rate: float, bitrate: float) -> PiOptions:
    """The options with a share of the frame rate and of the bitrate, for a board that is too hot."""
    fps = max(1.0, options.fps * rate)
    return replace(options, fps=fps, bitrate_kbps=max(50, round(options.bitrate_kbps * bitrate)))
