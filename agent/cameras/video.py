"""The video backend: a file, an RTSP stream or a V4L2 device, all through PyAV. Touches files, sockets and devices.

A recording keeps its original packets where no privacy mask asks for a re-encode and its codec and timestamps
allow it; else each picture is decoded, masked and encoded again.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.packet import Packet as AvPacket
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from agent.annexb import Extradata, parameter_sets, parse_extradata, to_annexb, with_parameter_sets
from agent.camera import CameraSink
from agent.cameras.encode import H264Encoder
from agent.cameras.planes import Planes, lores_size, planes_of, scaled
from agent.cameras.scan import hint_for, open_container, scan_file, ticks_to_us, video_stream, words_of
from agent.cameras.video_options import VideoOptions as VideoOptions  # also for those who open a source
from agent.clock import Clock
from agent.errors import CameraError
from agent.masks import PrivacyMask, lores_mask, main_mask
from agent.model import NS_PER_S, Codec, Frame, Packet, StreamInfo

LIVE_MAX_GOP_S = 10.0
"""What is assumed of a live stream: IP cameras come set to 1..4 s, and "smart" codecs stretch it to about 10."""
REANCHOR_NS = NS_PER_S
"""A live stream's times are believed until they differ from the boot clock by more than this."""
PROMPT_NS = 5_000_000
"""A packet that was read faster had come before: while the stream was opened, FFmpeg keeps a second or so of it."""
_CODECS: dict[str, Codec] = {"h264": "h264", "hevc": "hevc"}

log = logging.getLogger(__name__)


class VideoSource:
    """A Source over PyAV. A file is paced by its timestamps; RTSP and V4L2 are live and need the clock.

    max_gop_s of a file is measured at open (scan.py), of a live stream assumed (LIVE_MAX_GOP_S); a longer one is
    logged once. Packets and pictures before the first keyframe are skipped. A picture that cannot be decoded is
    skipped and counted in undecodable.

    An RTSP stream that falls silent returns from step() each second with nothing. A V4L2 device that falls
    silent blocks step() in the kernel (VIDIOC_DQBUF has no time limit); an unplugged one raises.
    """

    def __init__(self, options: VideoOptions, clock: Clock) -> None:
        self.is_live = options.is_live
        self._options = options
        self._clock = clock
        self._stream: _Stream | None = None

    def open(self, t0_ns: int) -> StreamInfo:
        self.close()
        stream = _Stream(self._options, self._clock, t0_ns)
        with ExitStack() as undo:
            undo.callback(stream.close)
            info = stream.open()
            undo.pop_all()
        self._stream = stream
        return info

    def step(self, sink: CameraSink) -> bool:
        if self._stream is None:
            raise CameraError("read", self._options.name, "it is not open")
        return self._stream.step_live(sink) if self.is_live else self._stream.step_file(sink)

    def next_t_ns(self) -> int | None:
        return self._stream.next_t_ns() if self._stream is not None else None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    @property
    def undecodable(self) -> int:
        return self._stream.undecodable if self._stream is not None else 0

    @property
    def packets(self) -> int:
        """Of a file that was opened, from its first keyframe on: about as many as it has frames; 0 for streams."""
        return self._stream.packets if self._stream is not None else 0


class _Stream:
    """One opening of a source. t_ns = anchor + microseconds of the stream's own time."""

    def __init__(self, options: VideoOptions, clock: Clock, t0_ns: int) -> None:
        self._options = options
        self._clock = clock
        self._t0_ns = t0_ns
        self._anchor_ns: int | None = None
        self._container: av.container.InputContainer | None = None
        self._pending: AvPacket[VideoStream] | None = None
        self._early: deque[AvPacket[VideoStream]] = deque()
        self._seen_key = False
        self._packet_seq = 0
        self._frame_seq = 0
        self._frames_this_round = 0
        self._advanced = 0
        self._last_packet_ns: int | None = None
        self._last_frame_ns: int | None = None
        self._last_key_ns: int | None = None
        self._told_gop = False
        self._encoder: H264Encoder | None = None
        self._masks: tuple[PrivacyMask, PrivacyMask] | None = None
        self.undecodable = 0
        self.packets = 0

    def open(self) -> StreamInfo:
        options = self._options
        scan = None if options.is_live else scan_file(options.source)
        self.packets = scan.packets if scan is not None else 0
        if scan is not None and not scan.keyframes:
            raise CameraError("open", options.name, "no keyframe in it", hint="it is empty, cut short or not a video")
        self._open_container()
        context = self._video.codec_context
        width, height = context.width, context.height
        if not width or not height:
            raise CameraError(
                "open", options.name, "the size of its pictures is unknown", hint="does ffplay show it?"
            )
        self._codec = _CODECS.get(context.name)
        self._times_are_usable = scan.times_are_usable if scan is not None else True
        self._lead = scan.lead if scan is not None and scan.times_are_usable else ()
        self._passthrough = self._codec is not None and not options.masks and self._times_are_usable
        if self._passthrough and self._codec is not None:
            try:
                self._extradata = parse_extradata(self._codec, bytes(context.extradata or b""))
            except ValueError as error:
                raise CameraError("open", options.name, error, hint="its header is broken") from error
        else:
            self._extradata = Extradata((), None)
            width, height = width & ~1, height & ~1
        self._known_sets = self._extradata.parameter_sets
        self._size = (context.width, context.height)
        self._lores = lores_size(width, height, options.lores_width, options.lores_height)
        rate = self._video.average_rate or self._video.guessed_rate or 0
        fps = float(rate) or (scan.mean_fps if scan is not None else 0.0)
        self._fps = fps if 0.01 <= fps <= 1000 else options.fps
        self._nominal_ns = round(NS_PER_S / self._fps)
        if options.masks:
            main = main_mask(options.masks, width, height)
            self._masks = (main, lores_mask(main, *self._lores))
        if options.want_packets and not self._passthrough:
            self._encoder = H264Encoder(width, height, self._fps, options.bitrate_kbps, options.gop_s)
        if self._passthrough:
            self._max_gop_s = scan.max_gop_s if scan is not None else LIVE_MAX_GOP_S
        else:
            slack_s = scan.max_step_s if scan is not None else 1.0
            self._max_gop_s = max(options.gop_s, 1 / self._fps) + max(0.0, slack_s - 1 / self._fps)
        if options.is_live:
            self._take_early()
        else:
            self._advance()
        what = "original packets" if self._passthrough else "encoded again"
        label = options.name if options.is_live else Path(options.source).name
        return StreamInfo(
            codec=self._codec if self._passthrough and self._codec is not None else "h264",
            width=width,
            height=height,
            fps=self._fps,
            lores_width=self._lores[0],
            lores_height=self._lores[1],
            max_gop_s=self._max_gop_s,
            description=f"video {label}: {context.name} {width}x{height} at {self._fps:.4g} fps, {what}",
        )

    def close(self) -> None:
        self._pending = None
        self._early.clear()
        self._encoder = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def step_file(self, sink: CameraSink) -> bool:
        packet = self._pending
        if packet is not None:
            self._advance()
            self._deliver_packet(packet, sink)
            self._decode(packet, sink)
            return True
        if self._container is None:
            return False
        self._decode(None, sink)
        if not self._frames_this_round:
            raise CameraError(
                "read", self._options.name, "none of its pictures can be decoded", hint="does ffplay show it?"
            )
        if not self._options.loop:
            self.close()
            return False
        self._rewind()
        return True

    def step_live(self, sink: CameraSink) -> bool:
        is_early = bool(self._early)
        packet = self._early.popleft() if is_early else self._read()
        if packet is None:
            return True
        if not self._seen_key and not packet.is_keyframe:
            return True
        self._seen_key = True
        if not is_early:
            self._follow_the_clock(packet)
        self._deliver_packet(packet, sink)
        self._decode(packet, sink)
        return True

    def next_t_ns(self) -> int | None:
        if self._options.is_live:
            return None
        if self._pending is None or not self._times_are_usable or self._pending.dts is None:
            last = self._last_frame_ns
            return self._t0_ns if last is None else last + self._nominal_ns
        return self._time_of(self._pending.dts)

    # --- reading -------------------------------------------------------------------------------------------

    def _open_container(self) -> None:
        options = self._options
        live: dict[str, str] | None = None
        if options.is_device:
            live = {"video_size": f"{options.width}x{options.height}", "framerate": f"{options.fps:g}"}
        elif options.is_live:
            live = {"rtsp_transport": "tcp"} if options.source.startswith("rtsp") else {}
        self._opening_ns = began_ns = self._clock.boot_ns()
        try:
            self._container = open_container(
                options.source, live_options=live, open_s=options.open_s, read_s=options.read_s
            )
        except CameraError as error:
            # FFmpeg calls an answer that did not come "invalid data".
            if options.is_live and self._clock.boot_ns() - began_ns > 0.9 * options.open_s * NS_PER_S:
                words = f"no answer within {options.open_s:g} s"
                raise CameraError("open", options.name, words, hint=error.hint) from None
            raise
        self._video = video_stream(self._container, options.source)
        self._base = Fraction(self._video.time_base or Fraction(1, 90_000))
        # One thread: the same pictures in every run, no delay by threads, and the other cores stay free.
        self._video.codec_context.thread_count = 1

    def _read(self) -> AvPacket[VideoStream] | None:
        """The next packet of the video; None at a file's end, or when a live stream was silent for read_s."""
        options = self._options
        if self._container is None:
            raise CameraError("read", options.name, "it is not open")
        try:
            packet = next(self._container.demux(self._video))
        except StopIteration:
            return None
        except av.error.ExitError:
            return None
        except (av.error.FFmpegError, OSError) as error:
            if isinstance(error, av.error.EOFError):
                return None
            raise CameraError("read", options.name, words_of(error), hint=hint_for(options.source, error)) from None
        if packet.size:
            return packet
        if options.is_live:
            raise CameraError("read", options.name, "the stream ended", hint="the camera closed the connection")
        return None

    def _advance(self) -> None:
        """Put the file's next packet into _pending, from the first keyframe on."""
        self._pending = self._read()
        while self._pending is not None and not self._seen_key:
            if self._pending.is_keyframe:
                self._seen_key = True
                self._advanced = 0
                self._give_time(self._pending)
                if self._times_are_usable and self._anchor_ns is None:
                    self._anchor_at(self._t0_ns, self._pending.dts)
            else:
                self._pending = self._read()
                continue
            return
        if self._pending is not None:
            self._advanced += 1
            self._give_time(self._pending)

    def _give_time(self, packet: AvPacket[VideoStream]) -> None:
        if packet.dts is None and self._advanced < len(self._lead):
            packet.dts = self._lead[self._advanced]

    def _rewind(self) -> None:
        """Begin the file again; its first picture follows the last one by one frame time."""
        after_ns = (self._last_frame_ns or self._t0_ns) + self._nominal_ns
        if self._container is not None:
            self._container.close()
        self._open_container()
        self._seen_key = False
        self._frames_this_round = 0
        self._anchor_ns = None
        self._t0_ns = after_ns
        self._advance()
        first = self._pending
        if self._times_are_usable and first is not None and first.pts is not None and first.dts is not None:
            self._anchor_at(after_ns, first.pts)
            last = self._last_packet_ns if self._passthrough else None
            lag_ns = last - self._time_of(first.dts) if last is not None else -1
            if lag_ns >= 0 and self._anchor_ns is not None:
                self._anchor_ns += lag_ns + 1000

    def _take_early(self) -> None:
        """Read what came while the stream was opened: the last of it is of now, the first of it as much earlier.

        Anchored at its first packet, it would run ahead of the clock and then be squeezed.
        """
        opened_ns = arrived_ns = self._clock.boot_ns()
        ticks: list[int] = []
        span_ns = 0
        while (packet := self._read()) is not None:
            self._early.append(packet)
            before_ns, arrived_ns = arrived_ns, self._clock.boot_ns()
            tick = packet.dts if packet.dts is not None else packet.pts
            if tick is not None:  # RTSP's first access unit often has no time at all
                ticks.append(tick)
                span_ns = ticks_to_us(tick - ticks[0], self._base) * 1000
            if arrived_ns - before_ns > PROMPT_NS or span_ns >= opened_ns - self._opening_ns:
                break
        if ticks:
            self._t0_ns = max(self._t0_ns, arrived_ns - span_ns - self._nominal_ns)
            self._anchor_at(max(self._t0_ns, arrived_ns - span_ns), ticks[0])

    # --- times ---------------------------------------------------------------------------------------------

    def _anchor_at(self, t_ns: int, ticks: int | None) -> None:
        self._anchor_ns = t_ns - ticks_to_us(ticks or 0, self._base) * 1000

    def _time_of(self, ticks: int) -> int:
        if self._anchor_ns is None:
            self._anchor_at(self._t0_ns, ticks)
        return (self._anchor_ns or 0) + ticks_to_us(ticks, self._base) * 1000

    def _follow_the_clock(self, packet: AvPacket[VideoStream]) -> None:
        now_ns = self._clock.boot_ns()
        ticks = packet.dts if packet.dts is not None else packet.pts
        if ticks is None:
            return
        if self._anchor_ns is None:
            # RTSP's first access unit often has no time at all: what follows stays behind it.
            last = max((t for t in (self._last_packet_ns, self._last_frame_ns) if t is not None), default=None)
            self._anchor_at(now_ns if last is None else max(now_ns, last + self._nominal_ns), ticks)
        elif abs(self._time_of(ticks) - now_ns) > REANCHOR_NS:
            log.info("%s: its clock and ours differ by more than 1 s; anchored anew", self._options.name)
            self._anchor_at(now_ns, ticks)

    def _frame_time(self, frame: VideoFrame) -> int:
        """Presentation time, strictly increasing. A recording whose own times go back goes on at its nominal rate."""
        last = self._last_frame_ns
        if frame.pts is None:
            if self._options.is_live and last is None:
                return self._last_packet_ns or self._untimed_ns(None)
            return self._untimed_ns(last)
        t_ns = self._time_of(frame.pts)
        if last is None or t_ns > last:
            return t_ns
        if self._options.is_live or self._times_are_usable:
            return last + 1000
        self._anchor_at(last + self._nominal_ns, frame.pts)
        return last + self._nominal_ns

    # --- delivering ----------------------------------------------------------------------------------------

    def _deliver_packet(self, packet: AvPacket[VideoStream], sink: CameraSink) -> None:
        codec = self._codec
        if not self._passthrough or codec is None:
            return
        last = self._last_packet_ns
        ticks = packet.dts if packet.dts is not None else packet.pts
        t_ns = self._time_of(ticks) if ticks is not None else self._untimed_ns(last)
        shown_ns = self._time_of(packet.pts) if packet.pts is not None else t_ns
        if last is not None and t_ns <= last:
            t_ns = last + 1000
        self._last_packet_ns = t_ns
        is_key = bool(packet.is_keyframe)
        self._watch_gop(t_ns, is_key)
        if not self._options.want_packets:
            return
        try:
            data = to_annexb(bytes(packet), self._extradata.length_size)
            if is_key:
                self._known_sets = parameter_sets(codec, data) or self._known_sets
                data = with_parameter_sets(codec, data, self._extradata.parameter_sets or self._known_sets)
        except ValueError as error:
            self._left_out(str(error))
            # A hole in seq says that one is missing; but a stream begins with a keyframe, without a hole.
            self._packet_seq += self._packet_seq > 0
            return
        if not self._packet_seq and not is_key:
            return
        duration_ns = ticks_to_us(packet.duration or 0, self._base) * 1000 or self._nominal_ns
        sink.on_packet(
            Packet(self._packet_seq, t_ns, duration_ns, is_key, data, codec=codec, cts_ns=max(0, shown_ns - t_ns))
        )
        self._packet_seq += 1

    def _untimed_ns(self, last: int | None) -> int:
        if last is not None:
            return last + self._nominal_ns
        return self._clock.boot_ns() if self._options.is_live and self._anchor_ns is None else self._t0_ns

    def _watch_gop(self, t_ns: int, is_key: bool) -> None:
        if is_key:
            self._last_key_ns = t_ns
        elif self._last_key_ns is not None and not self._told_gop:
            gop_s = (t_ns - self._last_key_ns) / NS_PER_S
            if gop_s > self._max_gop_s + 0.001:
                self._told_gop = True
                log.warning(
                    "%s: no keyframe for %.1f s, more than the %.1f s expected: clips may begin late",
                    self._options.name,
                    gop_s,
                    self._max_gop_s,
                )

    def _decode(self, packet: AvPacket[VideoStream] | None, sink: CameraSink) -> None:
        """Decode one packet, or what the decoder still holds (None), and deliver the pictures."""
        try:
            frames = self._video.codec_context.decode(packet)
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, OSError) as error:
            self._left_out(words_of(error))
            return
        for frame in frames:
            self._deliver_frame(frame, sink)

    def _left_out(self, words: str) -> None:
        self.undecodable += 1
        if self.undecodable == 1:
            log.warning("%s: a damaged picture is left out (%s); more are counted", self._options.name, words)

    def _deliver_frame(self, frame: VideoFrame, sink: CameraSink) -> None:
        if (frame.width, frame.height) != self._size:
            raise CameraError(
                "read",
                self._options.name,
                f"its pictures changed from {self._size[0]}x{self._size[1]} to {frame.width}x{frame.height}",
            )
        t_ns = self._frame_time(frame)
        try:
            planes = planes_of(frame)
        except (av.error.FFmpegError, ValueError) as error:
            raise CameraError("read", self._options.name, f"cannot convert {frame.format.name}: {error}") from error
        if self._masks is not None:
            planes = Planes(*(np.array(plane) for plane in planes))
            self._burn(self._masks[0], planes)
        if self._encoder is not None:
            packet = self._encoder.encode(*planes, t_ns, self._packet_seq)
            self._packet_seq += 1
            self._last_packet_ns = t_ns
            sink.on_packet(packet)
        lores = scaled(planes, *self._lores)
        if self._masks is not None:
            self._burn(self._masks[1], lores)
        lores = lores.frozen()
        self._last_frame_ns = t_ns
        self._frames_this_round += 1
        seq, self._frame_seq = self._frame_seq, self._frame_seq + 1
        sink.on_frame(Frame(seq, t_ns, lores.y, lores.u, lores.v))

    def _burn(self, mask: PrivacyMask, planes: Planes) -> None:
        try:
            mask.burn(*planes)
        except ValueError as error:
            raise CameraError("mask", self._options.name, error, hint="nothing is shown without its mask") from error
