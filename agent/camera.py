"""The hardware abstraction: what every camera backend is to the rest of the node. Touches nothing.

A *source* delivers one frame's worth of a stream each time it is stepped; the pacing wrapper
(agent/cameras/paced.py) gives it a thread and the right speed and makes it a *camera*. A backend that has
threads of its own (picamera2) is a camera directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from agent.errors import CameraError
from agent.model import Frame, Packet, StreamInfo


class CameraSink(Protocol):
    """Where a camera pushes. Both calls come from the camera's thread, return at once and never raise."""

    def on_packet(self, packet: Packet) -> None:
        """Every access unit of the main stream, in decode order, none left out."""

    def on_frame(self, frame: Frame) -> None:
        """Lores frames; the newest wins where vision is slower than the camera."""


class Camera(Protocol):
    """A camera that runs by itself once started."""

    def start(self, sink: CameraSink) -> StreamInfo:
        """Open the hardware and begin to push into sink. CameraError leaves nothing open and may be retried.

        The first packet is a keyframe. May be called again after stop().
        """

    def stop(self) -> None:
        """End the delivery; when this returns nothing more is pushed. Never raises; may be called twice."""

    def fault(self) -> CameraError | None:
        """Why the camera no longer delivers, once it knows; None while all is well (or silent: watch ages)."""

    def ended(self) -> bool:
        """Whether a recording has come to its end and everything of it was delivered."""


@runtime_checkable
class EasesOff(Protocol):
    """A camera that can also do less, for a board that is too hot or short of power."""

    def ease(self, frame_rate: float, bitrate: float) -> None:
        """From the next start() on only these shares of what the settings say, 0..1."""


@runtime_checkable
class TakesStills(Protocol):
    """A camera that shows its main stream too, when asked; recording goes on."""

    def want_still(self, take: Callable[[Frame], None]) -> None:
        """Give the next picture of the main stream, masked, to take, once; only the newest wish counts.

        take is called in the camera's thread, returns at once and never raises.
        """


class Source(Protocol):
    """A stream that is stepped. It owns no thread and, unless it is live, reads no clock."""

    is_live: bool
    """Live sources block in step() until the hardware delivers; others are paced by t_ns."""

    def open(self, t0_ns: int) -> StreamInfo:
        """Open it so that the first frame bears t_ns >= t0_ns. CameraError leaves nothing open."""

    def step(self, sink: CameraSink) -> bool:
        """Deliver the next frame and its packets (or one packet). False when the recording has ended.

        Bounded: a live source returns within 1 s with nothing delivered rather than block for ever.
        Raises CameraError when the stream broke.
        """

    def next_t_ns(self) -> int | None:
        """Presentation time of what the next step() will deliver, for pacing; None for "at once"."""

    def close(self) -> None:
        """Close everything; may be called twice, never raises."""
