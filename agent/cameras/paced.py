"""The pacing wrapper: gives a source a thread and the right speed and so makes it a camera. Touches the clock."""

from __future__ import annotations

import dataclasses
import logging
import threading

from agent.camera import CameraSink, Source
from agent.clock import Clock
from agent.errors import CameraError
from agent.model import NS_PER_S, Frame, Packet, StreamInfo
from agent.shortage import shortage

LATE_NS = NS_PER_S
"""So far behind its time a source is not hurried but moved to now: after a suspend, or on too slow a machine."""

log = logging.getLogger(__name__)


class PacedCamera:
    """A Camera from a Source. The thread lives from start() to stop(), the stream's end, or its fault.

    stop_s: how long stop() waits for a source that hangs in C; after that the source counts as lost, nothing
    of it is delivered any more, and start() refuses until the hanging call came back.
    """

    def __init__(self, source: Source, clock: Clock, *, stop_s: float = 5.0) -> None:
        self._source = source
        self._clock = clock
        self._stop_s = stop_s
        self._run: _Run | None = None

    def start(self, sink: CameraSink) -> StreamInfo:
        """See Camera.start. A camera that runs already is stopped first."""
        self.stop()
        if self._run is not None and self._run.is_alive():
            raise CameraError(
                "start", "camera", "the last run still hangs in the driver", hint="restart the agent if this persists"
            )
        info = self._source.open(self._clock.boot_ns())
        self._run = _Run(self._source, self._clock, sink)
        try:
            self._run.start()
        except RuntimeError as error:  # no more threads to be had
            self._run = None
            self._source.close()
            raise CameraError("start", "camera thread", error) from error
        return info

    def stop(self) -> None:
        if self._run is not None:
            self._run.stop(self._stop_s)

    def fault(self) -> CameraError | None:
        return self._run.fault if self._run is not None else None

    def ended(self) -> bool:
        return self._run is not None and self._run.ended


class _Run(threading.Thread):
    """One run of the source, from open to close; also the sink it pushes into, which stop() shuts."""

    def __init__(self, source: Source, clock: Clock, sink: CameraSink) -> None:
        super().__init__(name="camera", daemon=True)
        self._source = source
        self._clock = clock
        self._sink: CameraSink | None = sink
        self._gate = threading.Lock()
        self._stopping = threading.Event()
        self._shift_ns = 0
        self.fault: CameraError | None = None
        self.ended = False

    def stop(self, wait_s: float) -> None:
        self._stopping.set()
        with self._gate:
            self._sink = None
        if self is not threading.current_thread():
            self.join(wait_s)
        if self.is_alive():
            log.warning("camera thread did not end within %.1f s; it is left behind", wait_s)

    def run(self) -> None:
        finished = False
        try:
            self._deliver()
            finished = True
        except CameraError as error:
            self.fault = error
            finished = True
        except (ImportError, MemoryError) as error:
            words = shortage(error)
            if not words:
                raise
            self.fault = CameraError("run", "camera", words)
            finished = True
        finally:
            if not finished:
                self.fault = CameraError("run", "camera", "the camera thread broke; see the traceback")
            self._source.close()

    def _deliver(self) -> None:
        while not self._stopping.is_set():
            due_ns = None if self._source.is_live else self._source.next_t_ns()
            if due_ns is not None:
                wait_ns = due_ns + self._shift_ns - self._clock.boot_ns()
                if wait_ns < -LATE_NS:
                    # Do not burst: what comes now bears now. Times still only grow.
                    self._shift_ns -= wait_ns
                    log.warning("camera was %.1f s behind; its times go on from now", -wait_ns / NS_PER_S)
                elif wait_ns > 0:
                    # Ask the clock again afterwards: it is the one that counts, and may be a test's.
                    self._stopping.wait(wait_ns / NS_PER_S)
                    continue
            if not self._source.step(self):
                self.ended = True
                return

    def on_packet(self, packet: Packet) -> None:
        if self._shift_ns:
            packet = dataclasses.replace(packet, t_ns=packet.t_ns + self._shift_ns)
        with self._gate:
            if self._sink is not None:
                self._sink.on_packet(packet)

    def on_frame(self, frame: Frame) -> None:
        if self._shift_ns:
            frame = dataclasses.replace(frame, t_ns=frame.t_ns + self._shift_ns)
        with self._gate:
            if self._sink is not None:
                self._sink.on_frame(frame)
