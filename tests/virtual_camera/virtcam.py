"""Lets unmodified picamera2 drive libcamera's virtual cameras, and stalls them when a test says so.

install() closes the four gaps between libcamera 0.7's virtual pipeline and a Raspberry Pi's camera:

1. it refuses the Raw role: the probe for sensor modes asks for Viewfinder instead;
2. it writes NV12 as two planes: buffers are described with two planes;
3. it never waits: each camera's requests are fed at its frame rate;
4. it frees too early: recent requests are kept alive until stop().

Nothing of this is known to the product.
"""

from __future__ import annotations

import collections
import mmap
import os
import threading
import time
from collections.abc import Iterable
from typing import Any

import libcamera
import picamera2.picamera2 as picamera2_module
from picamera2 import Picamera2
from picamera2.allocators import DmaAllocator

FPS = 15


class TwoPlaneDmaAllocator(DmaAllocator):
    """picamera2's own allocator, with one more plane per buffer."""

    def allocate(self, libcamera_config: Iterable[Any], use_case: object) -> None:
        self.libcamera_fds = []
        self.cleanup()
        self.open_fds: list[int]
        for fd in self.open_fds:
            os.close(fd)
        self.frame_buffers, self.open_fds = {}, []
        for stream in libcamera_config:
            luma, frames = stream.stride * stream.size.height, []
            for number in range(stream.buffer_count):
                fd, planes = self.dmaHeap.alloc(f"virtual-{number}", stream.frame_size).get(), []
                for offset, length in ((0, luma), (luma, stream.frame_size - luma)):
                    plane = libcamera.FrameBuffer.Plane()
                    plane.fd, plane.offset, plane.length = fd, offset, length
                    planes.append(plane)
                frame = libcamera.FrameBuffer(planes)
                own = frame.planes[0].fd  # libcamera's copy; picamera2 keys its tables on it
                self.open_fds.append(fd)
                self.libcamera_fds.append(own)
                self.mapped_buffers_used[own] = False
                self.mapped_buffers[frame] = mmap.mmap(fd, stream.frame_size)
                frames.append(frame)
            self.frame_buffers[stream.stream] = frames


class Pacer:
    """Feeds requests at each camera's frame rate. While stalled is set no frame comes from any camera, as on a Pi
    after "Camera frontend has timed out!": until a camera is started anew."""

    def __init__(self) -> None:
        self.stalled = False
        self.ignore_starts = False
        self._period_s: dict[str, float] = {}
        self._waiting: dict[str, collections.deque[Any]] = {}
        self._keep: dict[str, collections.deque[Any]] = {}
        self._due_s: dict[str, float] = {}
        self._lock = threading.Lock()
        camera = libcamera.Camera
        self._start, self._queue, self._stop = camera.start, camera.queue_request, camera.stop
        camera.start = lambda cam, controls={}: self.start(cam, controls)
        camera.queue_request = lambda cam, request: self.queue(cam, request)
        camera.stop = lambda cam: self.stop(cam)
        threading.Thread(target=self._run, name="virtcam-pacer", daemon=True).start()

    def start(self, camera: Any, controls: dict[Any, Any]) -> Any:
        limits = next((value for key, value in controls.items() if key.name == "FrameDurationLimits"), None)
        with self._lock:
            self.stalled = self.stalled and self.ignore_starts
            self._period_s[camera.id] = limits[0] / 1e6 if limits else 1 / FPS
            self._waiting[camera.id], self._due_s[camera.id] = collections.deque(), time.monotonic()
            self._keep[camera.id] = collections.deque(maxlen=64)
        return self._start(camera, controls)

    def queue(self, camera: Any, request: Any) -> None:
        with self._lock:
            if camera.id in self._waiting:
                self._waiting[camera.id].append((camera, request))
                self._keep[camera.id].append(request)

    def stop(self, camera: Any) -> Any:
        with self._lock:
            self._waiting.pop(camera.id, None)
            try:
                return self._stop(camera)  # joins the virtual camera's thread
            finally:
                self._keep.pop(camera.id, None)

    def _run(self) -> None:
        while True:
            with self._lock:
                now_s = time.monotonic()
                for name, waiting in self._waiting.items():
                    if waiting and not self.stalled and now_s >= self._due_s[name]:
                        self._queue(*waiting.popleft())
                        # Never catch up in a burst: a sensor does not either.
                        period_s = self._period_s[name]
                        self._due_s[name] = max(self._due_s[name] + period_s, now_s + period_s / 2)
            time.sleep(0.001)


def install() -> Pacer:
    """To be called once per process, before a camera is opened."""

    def raw_modes(self: Any) -> list[dict[str, Any]]:
        formats = self.camera.generate_configuration([libcamera.StreamRole.Viewfinder]).at(0).formats
        return [
            {"format": str(pixels), "size": (size.width, size.height)}
            for pixels in formats.pixel_formats
            for size in formats.sizes(pixels)
        ]

    Picamera2._get_raw_modes, picamera2_module.DmaAllocator = raw_modes, TwoPlaneDmaAllocator
    return Pacer()


def exact_times(fps: int) -> None:
    """The encoder stamps packets as a sensor would: exactly one period apart.

    The virtual pipeline stamps when a request was queued, so this machine's scheduling is in its times, and through
    them in x264's rate control. Only for tests that compare encoded pictures bit by bit.
    """
    from picamera2.encoders.encoder import Encoder

    def timestamp(self: Any, request: object) -> int:
        self.firsttimestamp = self.firsttimestamp or 1_000_000
        self.number = number = getattr(self, "number", -1) + 1
        return round(number * 1e6 / fps)

    Encoder._timestamp = timestamp
