"""The Raspberry Pi camera: picamera2's two streams become packets and frames. Touches the camera, and needs a clock.

picamera2 comes with the operating system (pi_stack.py loads it). Documented in docs/HARDWARE.md, with what was
run and what could not be.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from agent.camera import CameraSink
from agent.cameras.pi_controls import controls_for
from agent.cameras.pi_stack import PiOptions, Stack, eased, picamera2_stack
from agent.cameras.pi_stream import (
    Layout,
    PacketMaker,
    StreamTimes,
    blacken,
    choose,
    copied,
    explained,
    is_out_of_memory,
    reading_of,
)
from agent.cameras.planes import lores_size
from agent.clock import Clock
from agent.errors import CameraError, CameraStuckError
from agent.masks import lores_mask, main_mask
from agent.model import NS_PER_S, Frame, StreamInfo

HARDWARE_ENCODER = Path("/dev/video11")
"""What picamera2's H264Encoder opens; boards up to the Pi 4 and Zero 2 W have it."""

BUFFER_COUNT = 4
FEWER_BUFFERS = 3
START_LIMIT_S = 20.0
STOP_LIMIT_S = 5.0
FRUITLESS_STARTS = 5
"""So many starts in a row without one frame, and only a new process (and libcamera in it) can help."""
REFUSED_STARTS = 8
"""So many failed starts in a row (2 minutes) of a camera that worked in this process: one new process is tried."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class PiCamera:
    """A Camera over picamera2, which has threads of its own: frames come from its event loop, packets from its
    encoder's thread (hardware) or the event loop (software).

    Frames of main are masked before anything else sees them: packets, frames and stills show the masked picture.
    """

    def __init__(
        self,
        options: PiOptions,
        clock: Clock,
        *,
        stack: Callable[[], Stack] = picamera2_stack,
        start_limit_s: float = START_LIMIT_S,
        stop_limit_s: float = STOP_LIMIT_S,
    ) -> None:
        self._options = options
        self._clock = clock
        self._stack = stack
        self._start_limit_s = start_limit_s
        self._stop_limit_s = stop_limit_s
        self._run: _Run | None = None
        self._stuck: CameraStuckError | None = None
        self._fruitless = 0
        self._has_worked = False
        self._refused = 0
        self._eased = options
        self._wish = StillWish()

    def start(self, sink: CameraSink) -> StreamInfo:
        """See Camera.start. CameraStuckError when only a new process can help: then nothing is tried any more."""
        self.stop()
        if self._stuck is None and self._fruitless >= FRUITLESS_STARTS:
            words = f"no frame after {self._fruitless} starts"
            self._stuck = CameraStuckError(
                "start", self._options.name, words, hint="a new process is tried; else the cable"
            )
        if self._stuck is not None:
            raise self._stuck
        run = _Run(self._eased, self._clock, self._stack(), sink, self._wish)
        try:
            info = within(self._start_limit_s, "start", self._options.name, run.open)
        except CameraStuckError as stuck:
            run.shut()
            self._stuck = stuck
            raise
        except CameraError as error:
            self._refused += self._has_worked
            if self._refused >= REFUSED_STARTS:
                words = f"{self._refused} starts failed, the last: {error.cause}"
                self._stuck = CameraStuckError("start", self._options.name, words, hint="a new process is tried")
                raise self._stuck from error
            raise
        self._refused = 0
        self._run = run
        return info

    def stop(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        run.shut()
        self._fruitless = 0 if run.frames else self._fruitless + 1
        self._has_worked = self._has_worked or bool(run.frames)
        try:
            within(self._stop_limit_s, "stop", self._options.name, run.close)
        except CameraStuckError as stuck:
            log.error("%s", stuck)
            run.abandon()
            self._stuck = stuck

    def fault(self) -> CameraError | None:
        return self._run.fault if self._run is not None else None

    def ended(self) -> bool:
        return False

    def ease(self, frame_rate: float, bitrate: float) -> None:
        self._eased = eased(self._options, frame_rate, bitrate)

    def want_still(self, take: Callable[[Frame], None]) -> None:
        """See TakesStills: copied in the camera's callback, so that no request is held and no mode is switched."""
        self._wish.ask(take)


def within(limit_s: float, operation: str, name: str, call: Callable[[], T]) -> T:
    """call() in a thread of its own, given up after limit_s: libcamera can hang in C, and main must go on to say so.

    CameraStuckError when it did not return; whatever else call raises is raised here.
    """
    made: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            made.append(call())
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            raised.append(error)

    thread = threading.Thread(target=work, name=f"camera-{operation}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if raised:
        raise raised[0]
    if not made:
        raise CameraStuckError(operation, name, f"the driver hangs for {limit_s:g} s", hint="the agent starts anew")
    return made[0]


class StillWish:
    """Who wants the next picture of main, if anybody does; asked by one thread, granted by the camera's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._take: Callable[[Frame], None] | None = None

    def ask(self, take: Callable[[Frame], None]) -> None:
        with self._lock:
            self._take = take

    def granted(self) -> Callable[[Frame], None] | None:
        """Whom to give it to; only once for each asking."""
        with self._lock:
            take, self._take = self._take, None
            return take


class _Run:
    """One run of the camera, from open to close. Its callbacks run in picamera2's threads, some under its lock, which
    is not reentrant: they neither call picamera2 nor wait, and never raise, for that would end the event loop."""

    def __init__(self, options: PiOptions, clock: Clock, stack: Stack, sink: CameraSink, wish: StillWish) -> None:
        self._options = options
        self._clock = clock
        self._stack = stack
        self._sink: CameraSink | None = sink
        self._wish = wish
        self._gate = threading.Lock()
        self._camera: Any = None
        self._closing: Any = None
        self._encoder: Any = None
        self._times = StreamTimes()
        self._packets = PacketMaker(round(NS_PER_S / options.fps))
        self.frames = 0
        self.fault: CameraError | None = None

    # --- opening and closing -----------------------------------------------------------------------------------

    def open(self) -> StreamInfo:
        with ExitStack() as undo:
            undo.callback(self.close)
            info = self._open()
            undo.pop_all()
        return info

    def _open(self) -> StreamInfo:
        options, name = self._options, self._options.name
        picamera2 = self._stack.picamera2
        if options.picture.hdr in ("sensor", "off"):
            self._stack.sensor_hdr(options.id, options.picture.hdr == "sensor")
        try:
            cameras = picamera2.global_camera_info()
            place = choose(cameras, options.id)
            tuning = picamera2.load_tuning_file(options.tuning_file) if options.tuning_file else None
            self._camera = self._constructed(place, tuning)
        except (RuntimeError, OSError, IndexError) as error:
            raise explained("open", name, error) from error
        model = str(cameras[place].get("Model", "camera"))
        controls = controls_for(options.picture, self._camera.camera_controls, model)
        try:
            try:
                self._configure_and_start(controls, BUFFER_COUNT)
            except (RuntimeError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("camera: out of contiguous memory; trying with %d buffers", FEWER_BUFFERS)
                self._tear_down()
                self._camera = self._constructed(place, tuning)
                self._configure_and_start(controls, FEWER_BUFFERS)
        except (RuntimeError, OSError, ValueError) as error:
            raise explained("start", name, error) from error
        software = isinstance(self._encoder, self._stack.software_encoder)
        main, lores = self._main, self._lores
        return StreamInfo(
            codec="h264",
            width=main.width,
            height=main.height,
            fps=options.fps,
            lores_width=lores.width,
            lores_height=lores.height,
            # Counted in frames: exposures as long as the period make some of them a little late.
            max_gop_s=(self._encoder.iperiod + 1) / options.fps,
            description=f"picamera2 {model} {cameras[place]['Id']}: {main.width}x{main.height} {main.format} at "
            f"{options.fps:g} fps, {'software' if software else 'hardware'} encoder",
        )

    def _constructed(self, place: int, tuning: object) -> Any:
        picamera2 = self._stack.picamera2
        camera = picamera2.__new__(picamera2)
        try:
            camera.__init__(place, tuning=tuning)
        except BaseException:
            # Its constructor leaves a pipe open when it fails (picamera2 0.3.38): two descriptors each attempt.
            if isinstance(getattr(camera, "notifyme_w", None), int):
                os.close(camera.notifyme_w)
                camera.notifymeread.close()
            raise
        return camera

    def _configure_and_start(self, controls: dict[str, Any], buffer_count: int) -> None:
        options, camera = self._options, self._camera
        period_us = round(1e6 / options.fps)
        turned = options.rotation == 180
        size = (options.width, options.height)
        config = camera.create_video_configuration(
            main={"size": size, "format": "YUV420"},
            lores={"size": lores_size(*size, options.lores_width, options.lores_height), "format": "YUV420"},
            # None, not {}: raw buffers would take contiguous memory that a Zero 2 W does not have.
            raw=None,
            transform=self._stack.transform(hflip=options.mirror != turned, vflip=options.flip != turned),
            buffer_count=buffer_count,
            queue=False,
            controls={"FrameDurationLimits": (period_us, period_us), **controls},
            sensor={"output_size": options.sensor_size} if options.sensor_size else {},
        )
        camera.configure(config)
        made = camera.camera_configuration()
        self._main, self._lores = Layout.of(made["main"]), Layout.of(made["lores"])
        self._main_mask = main_mask(options.masks, self._main.width, self._main.height)
        self._lores_mask = lores_mask(self._main_mask, self._lores.width, self._lores.height)
        self._encoder = self._new_encoder()
        camera.pre_callback = self._on_request
        camera.start_encoder(self._encoder, self._new_output())
        camera.start()

    def _new_encoder(self) -> Any:
        options = self._options
        software = options.software_encoder
        if software is None:
            # picamera2 takes any machine without a Pi 5's ISP for one with the hardware encoder.
            software = not HARDWARE_ENCODER.exists()
        make = self._stack.software_encoder if software else self._stack.hardware_encoder
        encoder = make(
            # All of these always: without iperiod a Pi 5 makes one keyframe for ever, and without a bitrate the
            # hardware encoder freezes on difficult pictures. Never its force_key_frame(): that ends the event loop.
            bitrate=options.bitrate_kbps * 1000,
            iperiod=max(1, int(options.gop_s * options.fps)),
            framerate=round(options.fps),
            profile="high",
            repeat=True,
        )
        if isinstance(encoder, self._stack.software_encoder):
            # Frame threads would each hold a frame back, and its buffer with it.
            encoder.threads = 1
        return encoder

    def _new_output(self) -> Any:
        on_packet = self._on_packet

        class PacketOutput(self._stack.output):  # type: ignore[misc,name-defined]
            def outputframe(
                self,
                frame: bytes,
                keyframe: bool = True,
                timestamp: int | None = None,
                packet: object = None,
                audio: bool = False,
            ) -> None:
                on_packet(frame, keyframe, timestamp)

        return PacketOutput()

    def shut(self) -> None:
        """From now on nothing is delivered."""
        with self._gate:
            self._sink = None

    def close(self) -> None:
        self.shut()
        self._tear_down()

    def _tear_down(self) -> None:
        """The order that returned in 0.3 s with a stalled camera and with a dead event loop alike."""
        camera, self._camera = self._camera, None
        if camera is None:
            return
        self._closing = camera
        for step in (
            camera.cancel_all_and_flush,
            camera.stop_preview,
            camera.stop,
            camera.stop_encoder,
            camera.close,
        ):
            _attempt(step)
        if camera.is_open:
            # An event loop whose thread never came to life cannot be stopped, only left.
            for step in (camera.detach_preview, camera.close):
                _attempt(step)
        camera.pre_callback = None
        self._closing = self._encoder = None
        # picamera2's objects refer to each other: their descriptors and contiguous memory would wait for a collection
        # that may not come before the next start needs them (measured: 30 descriptors in 80 restarts).
        del camera, step
        gc.collect()

    def abandon(self) -> None:
        """After a close() that hangs: keep picamera2 from trying it again when the interpreter ends."""
        if self._closing is not None:
            atexit.unregister(self._closing.close)

    # --- what picamera2's threads call -------------------------------------------------------------------------

    def _on_request(self, request: Any) -> None:
        """Mask both streams, hand out the lores picture. In the event loop, before captures and the encoder."""
        try:
            self._show(request)
        except Exception as error:  # noqa: BLE001 - raised, it would kill the event loop and hang stop()
            self._fail(f"a frame could not be masked or read: {error}", error)
            self._hide(request)

    def _show(self, request: Any) -> None:
        metadata = request.get_metadata()
        t_ns = self._times.frame(int(metadata["SensorTimestamp"]), self._clock.boot_ns())
        with self._stack.mapped_array(request, "main", reshape=False) as mapped:
            planes = self._main.planes(mapped.array)
            self._main_mask.burn(*planes)
            if self._options.overlay is not None and t_ns is not None:
                self._options.overlay.draw(planes.y, t_ns, self._clock)
            take = self._wish.granted() if t_ns is not None else None
            main = copied(planes) if take is not None else None
            # A view of the buffer that outlives its mapping keeps it from being closed.
            del planes
        with self._stack.mapped_array(request, "lores", reshape=False) as mapped:
            planes = self._lores.planes(mapped.array)
            self._lores_mask.burn(*planes)
            lores = copied(planes)
            del planes
        if t_ns is None:
            return
        frame = Frame(self.frames, t_ns, lores.y, lores.u, lores.v, reading_of(metadata))
        with self._gate:
            if self._sink is not None:
                if take is not None and main is not None:
                    take(replace(frame, y=main.y, u=main.u, v=main.v))
                self.frames += 1
                self._sink.on_frame(frame)

    def _hide(self, request: Any) -> None:
        """Black instead of a picture that may show what it must not; if even that fails, nothing any more."""
        try:
            for stream, layout in (("main", self._main), ("lores", self._lores)):
                with self._stack.mapped_array(request, stream, reshape=False) as mapped:
                    blacken(layout.planes(mapped.array))
        except Exception as error:  # noqa: BLE001 - as above
            self.shut()
            self._fail(f"a frame could not be blackened: {error}", error)

    def _on_packet(self, data: bytes, is_key: bool, offset_us: int | None) -> None:
        try:
            first_us = getattr(self._encoder, "firsttimestamp", None)
            if first_us is None or offset_us is None:
                return
            t_ns = self._times.packet(first_us, offset_us)
            with self._gate:
                packet = self._packets.packet(bytes(data), t_ns, is_key=bool(is_key)) if self._sink else None
                if packet is not None and self._sink is not None:
                    self._sink.on_packet(packet)
        except Exception as error:  # noqa: BLE001 - raised, it would kill the encoder's thread or the event loop
            self._fail(f"a packet could not be read: {error}", error)

    def _fail(self, words: str, error: BaseException) -> None:
        if self.fault is None:
            log.error("camera: %s", words, exc_info=error)
            self.fault = CameraError("run", self._options.name, words)


def _attempt(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception as error:  # noqa: BLE001 - whatever one step of closing says, the next must be tried
        log.debug("camera: closing: %s", error)
