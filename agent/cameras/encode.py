"""Software H.264 for cameras that have no encoder of their own: planes become packets. Touches PyAV (libx264)."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame

from agent.errors import CameraError
from agent.model import NS_PER_S, Packet, Plane

_TIME_BASE = Fraction(1, 1_000_000)


class H264Encoder:
    """Pictures in, one packet out for each, at once: no B-frames, no look-ahead, one thread, so deterministic.

    Every keyframe is an IDR with SPS and PPS in front (closed GOPs); one comes at the latest gop_s after the
    last, judged by the pictures' times. width, height: even pixels. CameraError when libx264 refuses.
    """

    def __init__(self, width: int, height: int, fps: float, bitrate_kbps: int, gop_s: float) -> None:
        self._width = width
        self._height = height
        self._frame_ns = round(NS_PER_S / fps)
        self._gop_ns = round(gop_s * NS_PER_S)
        self._first_us: int | None = None
        self._last_us = -1
        self._key_t_ns: int | None = None
        rate = str(bitrate_kbps * 1000)
        try:
            codec = av.CodecContext.create("libx264", "w")
            assert isinstance(codec, VideoCodecContext)
            codec.width = width
            codec.height = height
            codec.pix_fmt = "yuv420p"
            codec.time_base = _TIME_BASE
            codec.framerate = Fraction(fps).limit_denominator(1001)
            codec.bit_rate = bitrate_kbps * 1000
            codec.thread_count = 1
            codec.options = {
                "preset": "superfast",
                "tune": "zerolatency",
                "maxrate": rate,
                "bufsize": rate,
                # Better than 18 only spends the bitrate on noise, worse than 42 is mud.
                "qmin": "18",
                "qmax": "42",
                "forced-idr": "1",
                # Keyframes come when we ask (by time, since recordings may have uneven frames), never by themselves.
                "g": "1000000",
                "x264-params": "repeat-headers=1:annexb=1:scenecut=0:open-gop=0:bframes=0:colorprim=smpte170m"
                ":transfer=smpte170m:colormatrix=smpte170m:range=tv",
            }
            codec.open()
        except (av.error.FFmpegError, ValueError) as error:
            raise CameraError(
                "encode", f"{width}x{height} at {bitrate_kbps} kbit/s", str(error), hint="libx264 is needed"
            ) from error
        self._codec = codec
        self._frame = VideoFrame(width, height, "yuv420p")
        self._frame.time_base = _TIME_BASE
        self._planes = [_view(self._frame, index) for index in range(3)]

    def encode(self, y: Plane, u: Plane, v: Plane, t_ns: int, seq: int, *, may_be_key: bool = True) -> Packet:
        """One access unit. y: uint8 (height, width), u and v (height/2, width/2), limited range; t_ns increasing.

        may_be_key=False holds a due keyframe back (never the first): a fault for tests.
        """
        for plane, into in zip((y, u, v), self._planes, strict=True):
            into[:] = plane
        self._first_us = t_ns // 1000 if self._first_us is None else self._first_us
        pts = max(t_ns // 1000 - self._first_us, self._last_us + 1)
        self._last_us = pts
        # Due when the next picture would come too late; 1 ms more, or rounded times would shorten every GOP.
        due = self._key_t_ns is None or t_ns + self._frame_ns - self._key_t_ns > self._gop_ns + 1_000_000
        is_key = due and (may_be_key or self._key_t_ns is None)
        if is_key:
            self._key_t_ns = t_ns
        self._frame.pts = pts
        self._frame.pict_type = PictureType.I if is_key else PictureType.NONE
        try:
            made = list(self._codec.encode(self._frame))
        except av.error.FFmpegError as error:
            raise CameraError("encode", f"frame {seq}", str(error)) from error
        if len(made) != 1:
            raise CameraError("encode", f"frame {seq}", f"libx264 gave {len(made)} packets for one picture")
        return Packet(
            seq=seq, t_ns=t_ns, duration_ns=self._frame_ns, is_key=bool(made[0].is_keyframe), data=bytes(made[0])
        )


def _view(frame: VideoFrame, index: int) -> Plane:
    """A plane of the frame as a writable array without its stride padding."""
    plane = frame.planes[index]
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width]
