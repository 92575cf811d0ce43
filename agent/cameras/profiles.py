"""The fake camera as each board hands it out: a pretended picamera2, stepped, with its faults. Touches PyAV.

PiCamera runs over it as over the real one (see docs/FAKE-CAMERA.md); the real one is run by scripts/test-picamera2.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agent.cameras.encode import H264Encoder
from agent.cameras.pi_stack import Stack
from agent.cameras.pi_stream import Layout
from agent.cameras.planes import Planes, scaled
from agent.cameras.render import Renderer
from agent.cameras.scene import Scene
from agent.clock import Clock
from agent.model import Plane, SensorReading

FaultName = Literal[
    "absent",
    "busy",
    "silence",
    "no-packets",
    "no-memory",
    "little-memory",
    "stop-waits",
    "stop-hangs",
    "short-buffer",
]
"""absent: unplugged (and back when it is taken away); busy: another program has it; silence: requests never come
back; no-packets: only the encoder stalls; no-memory, little-memory: never enough, enough for three buffers;
stop-waits: stop() hangs unless waiting captures were cancelled first; stop-hangs: for as long as the fault lasts;
short-buffer: a buffer that is too small for its picture, so that no mask can be burned in."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What differs from board to board. align: strides are multiples of so many bytes. controls: advertised names."""

    name: str
    format: str
    align: int
    has_hardware_encoder: bool
    tells_sensor: bool
    controls: tuple[str, ...]


_AUTO = (
    "FrameDurationLimits",
    "ExposureTime",
    "AnalogueGain",
    "ExposureValue",
    "AwbMode",
    "AeFlickerMode",
    "AeFlickerPeriod",
)
PROFILES = {
    "pi4": Profile("pi4", "YUV420", 64, True, True, _AUTO),
    "pi5": Profile("pi5", "YUV420", 128, False, True, (*_AUTO, "AfMode", "LensPosition", "HdrMode")),
    "virtual": Profile("virtual", "NV12", 1, False, False, ("FrameDurationLimits", "FaceDetectMode")),
}


class PretendedBoard:
    """One board with one camera that shows a scene. step() lets one frame time pass; faults holds what is wrong now.

    As on a board, frames come from the event loop, packets of a hardware encoder from a thread of its own: step()
    makes frames (and a software encoder's packets), deliver_packets() the hardware's, and may be called elsewhere.
    """

    def __init__(self, scene: Scene, profile: str, clock: Clock, *, seed: int = 0) -> None:
        self.profile = PROFILES[profile]
        self.faults: set[FaultName] = set()
        self.configurations: list[Mapping[str, Any]] = []
        self.opened: list[PretendedPicamera2] = []
        self.sensor_hdr = False
        self.clock = clock
        self._scene = scene
        self._seed = seed
        self._renderers: dict[tuple[int, int], Renderer] = {}
        self._number = 0
        self._released = threading.Event()

    def stack(self) -> Stack:
        """For PiCamera(stack=board.stack)."""
        board = self

        class Bound(PretendedPicamera2):
            def __init__(self, place: int, tuning: object = None) -> None:
                super().__init__(board, place, tuning)

            @staticmethod
            def global_camera_info() -> list[dict[str, Any]]:
                return (
                    []
                    if "absent" in board.faults
                    else [{"Model": "imx708", "Id": f"/pretended/{board.profile.name}"}]
                )

        hardware = HardwareEncoder if self.profile.has_hardware_encoder else SoftwareEncoder
        return Stack(Bound, _mapped, hardware, SoftwareEncoder, object, _turned, self._switch_sensor_hdr)

    def step(self) -> bool:
        """One frame time: whether a frame came."""
        number, self._number = self._number, self._number + 1
        if self.faults & {"absent", "silence"}:
            return False
        came = [camera.step(number) for camera in self.opened]
        return any(came)

    def deliver_packets(self) -> None:
        for camera in list(self.opened):
            camera.deliver_packets()

    def _switch_sensor_hdr(self, camera_id: str, is_on: bool) -> None:
        if self.opened:
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.sensor_hdr = is_on

    def release(self) -> None:
        """Let a stop() that hangs come back."""
        self._released.set()

    def hang(self) -> None:
        self._released.wait(60)

    def picture(self, number: int, size: tuple[int, int], fps: float) -> tuple[Planes, SensorReading]:
        if size not in self._renderers:
            self._renderers[size] = Renderer(self._scene, *size, fps, self._seed)
        return self._renderers[size].render(number)


class PretendedEncoder:
    """What PiCamera gives and reads of an encoder."""

    def __init__(self, *, bitrate: int, iperiod: int, framerate: int, profile: str, repeat: bool) -> None:
        self.bitrate, self.iperiod, self.framerate = bitrate, iperiod, framerate
        self.threads = 0
        self.firsttimestamp: int | None = None


class HardwareEncoder(PretendedEncoder):
    """Its packets come from a thread of its own, without an av.Packet."""


class SoftwareEncoder(PretendedEncoder):
    """Its packets come from the event loop."""


class PretendedRequest:
    """One completed request: the buffers of both streams, and what the sensor told."""

    def __init__(self, camera: PretendedPicamera2, buffers: dict[str, Plane], metadata: dict[str, Any]) -> None:
        self.camera, self.buffers, self.metadata = camera, buffers, metadata

    def get_metadata(self) -> dict[str, Any]:
        return self.metadata


def _turned(hflip: bool, vflip: bool) -> tuple[bool, bool]:
    return hflip, vflip


@contextmanager
def _mapped(request: PretendedRequest, stream: str, reshape: bool = True) -> Iterator[Any]:
    class Mapped:
        array = request.buffers[stream]

    yield Mapped


class PretendedPicamera2:
    """As much of picamera2.Picamera2 as PiCamera uses, refusing what it refuses and hanging where it hangs."""

    @staticmethod
    def load_tuning_file(name: str) -> dict[str, Any]:
        raise RuntimeError("Tuning file not found")

    def __init__(self, board: PretendedBoard, place: int, tuning: object) -> None:
        self.is_open = False
        self.pre_callback: Any = None
        self.layouts: dict[str, Layout] = {}
        self._buffers: dict[str, list[Plane]] = {}
        self._board = board
        self._config: dict[str, Any] = {}
        self._encoders: list[tuple[PretendedEncoder, Any, H264Encoder]] = []
        self._waiting: deque[tuple[Any, bytes, bool, int]] = deque()
        self._is_running = self._is_cancelled = self._loop_is_dead = False
        self.held: list[PretendedRequest] = []
        self.last: PretendedRequest | None = None
        if "absent" in board.faults:
            raise RuntimeError("Camera(s) not found (Do not forget to disable legacy camera with raspi-config).")
        if "busy" in board.faults or board.opened:
            try:
                raise RuntimeError("Failed to acquire camera: Device or resource busy")
            except RuntimeError as error:
                raise RuntimeError("Camera __init__ sequence did not complete.") from error
        self.camera_controls = dict.fromkeys(board.profile.controls, (0, 1, 0))
        self.is_open = True
        board.opened.append(self)

    # --- configuring and starting ------------------------------------------------------------------------------

    def create_video_configuration(self, **wanted: Any) -> dict[str, Any]:
        return wanted

    def configure(self, config: dict[str, Any]) -> None:
        board = self._board
        board.configurations.append(config)
        enough = 0 if "no-memory" in board.faults else 3 if "little-memory" in board.faults else 99
        if config["buffer_count"] > enough:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        unknown = set(config["controls"]) - set(self.camera_controls)
        if unknown:
            raise RuntimeError(f"Control {sorted(unknown)[0]} is not advertised by libcamera")
        profile, made = board.profile, dict(config)
        for name in ("main", "lores"):
            width, height = config[name]["size"]
            stride = -(-width // profile.align) * profile.align
            made[name] = {"format": profile.format, "size": (width, height), "stride": stride}
            self.layouts[name] = Layout.of(made[name])
            size, garbage = height * stride * 3 // 2, np.random.default_rng(7)
            self._buffers[name] = [
                garbage.integers(0, 256, size, dtype=np.uint8) for _ in range(config["buffer_count"])
            ]
        self._config = made

    def camera_configuration(self) -> dict[str, Any]:
        return self._config

    @property
    def _fps(self) -> float:
        return float(1e6 / self._config["controls"]["FrameDurationLimits"][0])

    def start_encoder(self, encoder: PretendedEncoder, output: Any) -> None:
        width, height = self._config["main"]["size"]
        h264 = H264Encoder(width, height, self._fps, encoder.bitrate // 1000, encoder.iperiod / self._fps)
        self._encoders.append((encoder, output, h264))

    def start(self) -> None:
        self._is_running = True

    # --- one frame ---------------------------------------------------------------------------------------------

    def step(self, number: int) -> bool:
        board = self._board
        if not self._is_running or self._loop_is_dead or len(self.held) >= self._config["buffer_count"]:
            return False
        planes, reading = board.picture(number, self._config["main"]["size"], self._fps)
        metadata: dict[str, Any] = {"SensorTimestamp": board.clock.boot_ns()}
        if board.profile.tells_sensor:
            metadata |= {
                "ExposureTime": round(reading.exposure_us or 0),
                "AnalogueGain": reading.analogue_gain or 1.0,
                "ColourGains": reading.colour_gains or (1.0, 1.0),
                "Lux": reading.lux or 0.0,
            }
        shown = {"main": planes, "lores": scaled(planes, *self._config["lores"]["size"])}
        buffers = {name: self._laid_out(name, picture, number) for name, picture in shown.items()}
        request = PretendedRequest(self, buffers, metadata)
        is_done = False
        try:
            if self.pre_callback is not None:
                self.pre_callback(request)
            self.last = request
            if "no-packets" not in board.faults:
                self._encode(request, number)
            is_done = True
        finally:
            self._loop_is_dead = not is_done  # as there: one line in the log, and silence
        return True

    def _laid_out(self, name: str, picture: Planes, number: int) -> Plane:
        """The picture in the next buffer as the ISP writes it, with whatever was there before in the padding."""
        layout = self.layouts[name]
        flat = self._buffers[name][number % len(self._buffers[name])]
        for into, plane in zip(layout.planes(flat), picture, strict=True):
            into[:] = plane
        return flat[: flat.size // 2] if name == "lores" and "short-buffer" in self._board.faults else flat

    def _encode(self, request: PretendedRequest, number: int) -> None:
        sensor_us = int(request.metadata["SensorTimestamp"] / 1000)
        for encoder, output, h264 in self._encoders:
            if encoder.firsttimestamp is None:
                encoder.firsttimestamp = sensor_us
            planes = self.layouts["main"].planes(request.buffers["main"])
            packet = h264.encode(*planes, sensor_us * 1000, number)
            made = (output, packet.data, packet.is_key, sensor_us - encoder.firsttimestamp)
            self._waiting.append(made)
            if not isinstance(encoder, HardwareEncoder):
                self.deliver_packets()

    def deliver_packets(self) -> None:
        while self._waiting:
            output, data, is_key, offset_us = self._waiting.popleft()
            output.outputframe(data, is_key, offset_us, None, False)

    # --- ending ------------------------------------------------------------------------------------------------

    def cancel_all_and_flush(self) -> None:
        self._is_cancelled = True

    def stop_preview(self) -> None:
        self._loop_is_dead = False

    def detach_preview(self) -> None:
        self._loop_is_dead = False

    def stop(self) -> None:
        faults = self._board.faults
        if "stop-hangs" in faults or self._loop_is_dead or ("stop-waits" in faults and not self._is_cancelled):
            self._board.hang()
        self._is_running = False

    def stop_encoder(self) -> None:
        self._encoders.clear()

    def close(self) -> None:
        self.stop()
        if self.is_open:
            self.is_open = False
            self._board.opened.remove(self)
