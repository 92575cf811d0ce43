"""The settings of the camera, one section of agent/settings.py's tree. Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

PI_WIDTH, PI_HEIGHT = 1920, 1080
"""What a Raspberry Pi camera's main stream is unless the settings say otherwise: a face at 6 m is still one."""


def _even(value: int) -> int:
    if value % 2:
        raise ValueError("should be even (4:2:0 video has half as many colour samples)")
    return value


EvenPixels = Annotated[int, AfterValidator(_even)]


class CameraSettings(BaseModel):
    """Where the pictures come from. There is no silent fallback from one backend to another."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["fake", "video", "picamera2"] = Field(
        "fake",
        description="fake: the scene simulator; video: a file, an RTSP stream or a V4L2 device; picamera2: a "
        "Raspberry Pi camera.",
    )
    source: str = Field(
        "",
        description="video only: a path, rtsp://user:password@host/path, /dev/videoN, or its lasting name below "
        "/dev/v4l/by-id, for two webcams.",
        examples=["/dev/video0"],
    )
    loop: bool = Field(False, description="video files only: begin again at the end; else the node ends there.")
    scene: str = Field("office", description="fake only: name of a built-in scene, or path of a scene file (TOML).")
    width: EvenPixels = Field(
        1280,
        ge=64,
        le=4096,
        description="Main stream, pixels (fake, V4L2, picamera2). A picamera2 camera with neither width nor height "
        "takes 1920x1080.",
    )
    height: EvenPixels = Field(720, ge=64, le=2304, description="Main stream, pixels (fake, V4L2, picamera2).")
    fps: float = Field(15, ge=1, le=60, description="Main stream, frames per second (fake, V4L2, picamera2).")
    lores_width: EvenPixels = Field(
        640, ge=64, le=1920, description="Analysis stream, pixels; never wider than the main stream."
    )
    lores_height: EvenPixels = Field(
        480,
        ge=64,
        le=1080,
        description="Analysis stream, pixels: the upper limit; the picture keeps its shape within it.",
    )
    bitrate_kbps: int = Field(2000, ge=50, le=25000, description="Main stream, kbit/s, where this node encodes.")
    silence_s: float = Field(
        5, ge=1, le=120, description="Without a frame for so long the camera counts as lost and is restarted."
    )
    id: str = Field(
        "",
        max_length=200,
        description="picamera2 only: libcamera's id of the camera, or its model where only one has it; empty: the "
        "only camera. `rpicam-hello --list-cameras` shows them.",
        examples=["imx708"],
    )
    rotation: Literal[0, 180] = Field(0, description="picamera2 only: 180 for a camera that hangs upside down.")
    mirror: bool = Field(False, description="picamera2 only: left and right are swapped.")
    flip: bool = Field(False, description="picamera2 only: top and bottom are swapped.")
    encoder: Literal["auto", "hardware", "software"] = Field(
        "auto", description="picamera2 only: auto takes the hardware's where the board has one (not on a Pi 5)."
    )
    tuning_file: str = Field(
        "",
        max_length=200,
        description="picamera2 only: libcamera's tuning for a sensor variant; NoIR modules need theirs.",
        examples=["imx708_noir.json"],
    )
    sensor_size: Annotated[str, Field(pattern=r"^([0-9]{2,5}x[0-9]{2,5})?$")] = Field(
        "",
        description="picamera2 only: which of the sensor's modes, as WIDTHxHEIGHT; empty: libcamera's choice, which "
        "may show only the middle of the scene.",
        examples=["1640x1232"],
    )
    autofocus: Literal["", "continuous", "manual"] = Field(
        "",
        description="picamera2 only, modules with a lens motor; manual: stay at lens_position; empty: as it comes.",
    )
    lens_position: float = Field(
        0, ge=0, le=32, description="With autofocus manual: dioptres, one over the metres to what shall be sharp."
    )
    exposure_us: int = Field(
        0, ge=0, le=1_000_000, description="picamera2 only: fixed exposure time, microseconds; 0: automatic."
    )
    gain: float = Field(0, ge=0, le=64, description="picamera2 only: fixed analogue gain; 0: automatic.")
    brightness_ev: float = Field(
        0, ge=-8, le=8, description="picamera2 only: stops brighter or darker than automatic exposure would have it."
    )
    white_balance: Literal["", "auto", "incandescent", "tungsten", "fluorescent", "indoor", "daylight", "cloudy"] = (
        Field("", description="picamera2 only; empty: as it comes (auto).")
    )
    flicker_hz: Literal[0, 50, 60] = Field(
        0, description="picamera2 only: the mains' frequency, against bands under lamps; 0: not considered."
    )
    hdr: Literal["", "off", "single-exposure", "night", "sensor"] = Field(
        "",
        description="picamera2 only. sensor: a Camera Module 3's own (it stays on until off or the next boot); the "
        "others where the board offers them (Pi 5); empty: as it comes.",
    )
    overlay: bool = Field(
        False, description="picamera2 only: burn the node's id and the site's time into the main stream."
    )

    @model_validator(mode="before")
    @classmethod
    def _size_of_the_backend(cls, given: Any) -> Any:
        """A simulated or USB camera at 1920x1080 would cost the processor what a Pi's camera has hardware for."""
        if (
            isinstance(given, Mapping)
            and given.get("backend") == "picamera2"
            and not given.keys() & {"width", "height"}
        ):
            return {**given, "width": PI_WIDTH, "height": PI_HEIGHT}
        return given
