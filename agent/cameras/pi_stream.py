"""What picamera2 hands out, understood: padded planes, times, metadata, errors. Touches the arrays it is given."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.annexb import parameter_sets, with_parameter_sets
from agent.cameras.planes import Planes
from agent.errors import CameraError
from agent.masks import BLACK_Y, GREY_C
from agent.model import NS_PER_S, Packet, Plane, SensorReading

FORMATS = ("YUV420", "NV12")

REANCHOR_NS = NS_PER_S
"""Sensor times are believed to be on the boot clock unless they are further from it than this at the first frame."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one stream lies in its buffer, as camera_configuration() tells after configure().

    stride: bytes from one luma row to the next. On a Pi 4 a multiple of 64, on a Pi 5 of 128 (so that U and V are
    aligned to 64 themselves); the virtual pipeline pads nothing.
    """

    format: str
    width: int
    height: int
    stride: int

    @classmethod
    def of(cls, stream: Mapping[str, Any]) -> Layout:
        """From one stream's part of camera_configuration(). CameraError for a format this backend cannot read."""
        width, height = stream["size"]
        layout = cls(str(stream["format"]), int(width), int(height), int(stream["stride"]))
        if layout.format not in FORMATS:
            raise CameraError(
                "configure",
                f"format {layout.format}",
                f"only {' and '.join(FORMATS)} are understood",
                hint="a webcam?",
            )
        return layout

    def planes(self, flat: Plane) -> Planes:
        """Views (not copies) of the picture in flat, uint8 (n,): each plane cropped on its own, without padding.

        ValueError when flat is too small.
        """
        w, h, stride = self.width, self.height, self.stride
        luma = h * stride
        if flat.size < luma + luma // 2:
            raise ValueError(f"{flat.size} bytes are too few for {self.format} {w}x{h} with stride {stride}")
        y = flat[:luma].reshape(h, stride)[:, :w]
        if self.format == "NV12":
            pairs = flat[luma : luma + luma // 2].reshape(h // 2, stride)
            return Planes(y, pairs[:, 0:w:2], pairs[:, 1:w:2])
        # U and V have half the luma's stride, padding included: cut as rows of the luma's stride they would shear.
        quarter = luma // 4
        u = flat[luma : luma + quarter].reshape(h // 2, stride // 2)[:, : w // 2]
        v = flat[luma + quarter : luma + 2 * quarter].reshape(h // 2, stride // 2)[:, : w // 2]
        return Planes(y, u, v)


def copied(planes: Planes) -> Planes:
    """Contiguous read-only copies: the buffer goes back to the camera."""
    made = Planes(*(np.array(plane, order="C") for plane in planes))
    for plane in made:
        plane.flags.writeable = False
    return made


def blacken(planes: Planes) -> None:
    planes.y[:] = BLACK_Y
    planes.u[:] = GREY_C
    planes.v[:] = GREY_C


class StreamTimes:
    """Sensor times in, boot-clock times out, in whole microseconds: that is what the encoders keep of them.

    libcamera documents CLOCK_BOOTTIME; some drivers stamp CLOCK_MONOTONIC, which differs after a suspend. The
    first frame of a run decides by how much all of them are shifted.
    """

    def __init__(self) -> None:
        self._shift_ns: int | None = None
        self._last_frame_ns = -1
        self._last_packet_ns = -1

    def frame(self, sensor_ns: int, now_ns: int) -> int | None:
        """t_ns of a frame; None for one that bears the time of the last one or an earlier time."""
        t_ns = whole_us(sensor_ns) * 1000
        if self._shift_ns is None:
            self._shift_ns = now_ns - t_ns if abs(now_ns - t_ns) > REANCHOR_NS else 0
        t_ns += self._shift_ns
        if t_ns <= self._last_frame_ns:
            return None
        self._last_frame_ns = t_ns
        return t_ns

    def packet(self, first_us: int, offset_us: int) -> int:
        """t_ns of a packet. first_us: the encoder's first SensorTimestamp; offset_us: the packet's, from 0."""
        t_ns = (first_us + offset_us) * 1000 + (self._shift_ns or 0)
        self._last_packet_ns = max(t_ns, self._last_packet_ns + 1000)
        return self._last_packet_ns


def whole_us(sensor_ns: int) -> int:
    # As picamera2's encoders do it, so that a frame and its packet bear the same time.
    return int(sensor_ns / 1000)


class PacketMaker:
    """Encoded frames become packets: the first is a keyframe, and each keyframe has its parameter sets in front."""

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._known: tuple[bytes, ...] = ()
        self._seq = 0

    def packet(self, data: bytes, t_ns: int, *, is_key: bool) -> Packet | None:
        """None for what comes before the first keyframe. ValueError for bytes that are no H.264 access unit."""
        if is_key:
            self._known = parameter_sets("h264", data) or self._known
            data = with_parameter_sets("h264", data, self._known)
        elif not self._seq:
            return None
        packet = Packet(self._seq, t_ns, self._period_ns, is_key, data)
        self._seq += 1
        return packet


def reading_of(metadata: Mapping[str, Any]) -> SensorReading | None:
    """What the sensor told with a frame; None where it told nothing of it (the virtual pipeline)."""
    names = ("ExposureTime", "AnalogueGain", "ColourGains", "Lux")
    if not any(name in metadata for name in names):
        return None
    exposure, gain, gains, lux = (metadata.get(name) for name in names)
    return SensorReading(
        exposure_us=None if exposure is None else float(exposure),
        analogue_gain=None if gain is None else float(gain),
        colour_gains=None if gains is None else (float(gains[0]), float(gains[1])),
        lux=None if lux is None else float(lux),
    )


def choose(cameras: Sequence[Mapping[str, Any]], wanted: str) -> int:
    """The place in picamera2's list of the camera with this id or, where only one has it, this model.

    wanted "": the only camera. Never by number: the order changes with what is plugged in. CameraError says which
    cameras there are.
    """
    if not cameras:
        raise CameraError(
            "open",
            "camera",
            "no camera is connected",
            hint="check the ribbon cable, then rpicam-hello --list-cameras",
        )
    known = ", ".join(f"{camera['Id']} ({camera.get('Model', '?')})" for camera in cameras)
    if not wanted:
        if len(cameras) > 1:
            raise CameraError("open", "camera", f"there are {len(cameras)}: {known}", hint="set camera.id to one")
        return 0
    for key in ("Id", "Model"):
        places = [place for place, camera in enumerate(cameras) if camera.get(key) == wanted]
        if len(places) == 1:
            return places[0]
        if places:
            raise CameraError("open", f"camera {wanted}", f"several: {known}", hint="set camera.id to an id")
    raise CameraError("open", f"camera {wanted}", "no such camera", hint=f"connected: {known}")


def is_out_of_memory(error: BaseException) -> bool:
    return any(
        (isinstance(cause, OSError) and cause.errno == errno.ENOMEM) or "cannot allocate memory" in str(cause).lower()
        for cause in causes_of(error)
    )


def explained(operation: str, name: str, error: BaseException) -> CameraError:
    """A CameraError that names what picamera2's many RuntimeErrors mean."""
    words = "; ".join(dict.fromkeys(str(cause) or type(cause).__name__ for cause in causes_of(error)))
    low = words.lower()
    if is_out_of_memory(error):
        return CameraError(
            operation,
            name,
            "out of contiguous memory (CMA)",
            hint="lower camera.width and height, stop other camera programs; see CmaFree in /proc/meminfo",
        )
    if "busy" in low or "in use by another process" in low or "failed to acquire" in low:
        return CameraError(operation, name, "another program is using the camera", hint="stop it: rpicam-*, motion?")
    if "no camera" in low or "camera(s) not found" in low:
        return CameraError(operation, name, "no such camera", hint="check the ribbon cable")
    if "/dev/video11" in low:
        return CameraError(operation, name, words, hint="no hardware encoder here: set camera.encoder = 'software'")
    if isinstance(error, TimeoutError):
        return CameraError(operation, name, "timed out: the camera delivers nothing", hint="check the ribbon cable")
    if "not been configured" in low or "configuration" in low or "format" in low:
        return CameraError(operation, name, words, hint="try other camera.width, height or fps")
    return CameraError(operation, name, words)


def causes_of(error: BaseException | None) -> list[BaseException]:
    """The error and what it came from, outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
