"""PiCamera on the virtual cameras as the camera contract wants it; only in the root of scripts/test-picamera2."""

from __future__ import annotations

import functools

import virtcam
from video_fixtures import Recorder

from agent.camera import CameraSink
from agent.cameras.pi_stack import PiOptions
from agent.cameras.picamera2 import PiCamera
from agent.clock import SystemClock
from agent.model import StreamInfo


@functools.cache
def pacer() -> virtcam.Pacer:
    return virtcam.install()


class PiRig:
    """A PiCamera that a test can run for a while and stop."""

    def __init__(self, options: PiOptions) -> None:
        pacer().stalled = False
        self.camera = PiCamera(options, SystemClock())

    def start(self, sink: CameraSink) -> StreamInfo:
        return self.camera.start(sink)

    def run(self, recorder: Recorder, frames: int) -> None:
        assert recorder.wait_frames(frames), f"{len(recorder.frames)} frames came, fault: {self.camera.fault()}"

    def stop(self) -> None:
        self.camera.stop()
