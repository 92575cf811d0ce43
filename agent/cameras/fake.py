"""The fake camera: a scene simulator that encodes real H.264 and tells the truth about each frame. Touches PyAV.

Documented for users in docs/FAKE-CAMERA.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.camera import CameraSink
from agent.cameras.encode import H264Encoder
from agent.cameras.planes import lores_size, scaled
from agent.cameras.render import Renderer, Truth
from agent.cameras.scene import Fault, Scene
from agent.cameras.strip import draw_frame_number
from agent.errors import CameraError
from agent.masks import Polygon, lores_mask, main_mask
from agent.model import NS_PER_S, Frame, StreamInfo


class FakeSource:
    """A Source that renders a scene. Everything is a pure function of (scene, seed, frame number).

    The scene's time begins at the first open() and goes on over later ones: frame numbers in the picture, in
    truth() and in faults count from there, while seq counts from each open() as in every camera. width, height:
    main stream, even pixels; lores_width, lores_height: limits of the analysis picture. masks: privacy polygons in
    shares of the picture. with_sensor=False leaves Frame.sensor empty, as cameras do that do not tell.
    want_packets=False saves the encoding. The frame number is drawn into the main stream only, and is hidden
    where a mask lies over it.
    """

    is_live = False

    def __init__(
        self,
        scene: Scene,
        *,
        width: int = 1280,
        height: int = 720,
        fps: float = 15,
        lores_width: int = 640,
        lores_height: int = 480,
        bitrate_kbps: int = 2000,
        gop_s: float = 1.0,
        masks: Sequence[Polygon] = (),
        seed: int = 0,
        with_sensor: bool = True,
        want_packets: bool = True,
    ) -> None:
        self.scene = scene
        self._width, self._height, self._fps = width, height, fps
        self._lores = lores_size(width, height, lores_width, lores_height)
        self._bitrate_kbps = bitrate_kbps
        self._gop_s = gop_s
        self._with_sensor = with_sensor
        self._want_packets = want_packets
        self._seed = seed
        self._main_mask = main_mask(masks, width, height)
        self._lores_mask = lores_mask(self._main_mask, *self._lores)
        self._made: Renderer | None = None
        self._encoder: H264Encoder | None = None
        self._world_ns: int | None = None
        self._open_ns = 0
        self._first_frame = 0
        self._step = 0
        self._packet_seq = 0
        self._last_t_ns: int | None = None
        self._refused: dict[Fault, int] = {}
        self._died: set[tuple[Fault, int]] = set()
        self._silent = False
        self._is_open = False

    @property
    def _renderer(self) -> Renderer:
        # Made at the first use: settings can be checked without drawing anything.
        if self._made is None:
            self._made = Renderer(self.scene, self._width, self._height, self._fps, self._seed)
        return self._made

    @property
    def next_frame(self) -> int:
        """The scene's number of the frame that the next step delivers."""
        return self._first_frame + self._step

    def truth(self, frame_number: int) -> Truth:
        """What the frame with this number (as drawn into the picture) shows."""
        return self._renderer.truth(frame_number)

    def open(self, t0_ns: int) -> StreamInfo:
        self.close()
        if self._world_ns is None:
            self._world_ns = t0_ns
        # The first frame at or after t0_ns by the scene's own clock.
        self._first_frame = max(0, -((self._world_ns - t0_ns) * round(self._fps * 1000) // (1000 * NS_PER_S)))
        self._refuse_if_told()
        self._open_ns = t0_ns
        self._step = 0
        self._packet_seq = 0
        self._last_t_ns = None
        self._silent = False
        if self._want_packets:
            self._encoder = H264Encoder(self._width, self._height, self._fps, self._bitrate_kbps, self._gop_s)
        self._is_open = True
        return StreamInfo(
            codec="h264",
            width=self._width,
            height=self._height,
            fps=self._fps,
            lores_width=self._lores[0],
            lores_height=self._lores[1],
            max_gop_s=max(self._gop_s, 1 / self._fps),
            description=f"fake camera, scene {self.scene.name}: {self._width}x{self._height} at {self._fps:g} fps",
        )

    def close(self) -> None:
        self._is_open = False
        self._encoder = None

    def next_t_ns(self) -> int | None:
        return self._time_of(self._step)

    def step(self, sink: CameraSink) -> bool:
        """Deliver one frame and its packet, or, where a fault says so, nothing in their place."""
        if not self._is_open:
            raise CameraError("read", "fake camera", "it is not open")
        number, step = self.next_frame, self._step
        self._step += 1
        t_s = number / self._fps
        happening = {fault.kind: (fault, index) for fault, index in self._faults_at(t_s)}
        if "die" in happening:
            self._died.add(happening["die"])
            self.close()
            raise CameraError("read", "fake camera", f"it died at {t_s:.1f} s, as its scene says")
        if "silent" in happening:
            self._silent = True
        if self._silent or "stall" in happening:
            self._packet_seq += self._want_packets
            return True
        t_ns = self._time_of(step)
        if "jitter" in happening:
            # A different part of the greatest jitter each frame, the same in each run.
            part = (number * 2654435761 % 1000) / 1000 * 2 - 1
            t_ns += round(part * happening["jitter"][0].jitter_ms * 1e6)
        if self._last_t_ns is not None:
            t_ns = max(t_ns, self._last_t_ns + 1000)
        self._last_t_ns = t_ns
        self._deliver(sink, number, step, t_ns, "packet-gap" not in happening, "late-keyframe" not in happening)
        return True

    def _deliver(
        self, sink: CameraSink, number: int, step: int, t_ns: int, packet_arrives: bool, may_be_key: bool
    ) -> None:
        planes, reading = self._renderer.render(number)
        try:
            self._main_mask.burn(*planes)
            lores = scaled(planes, *self._lores)
            if lores is planes:
                lores = type(planes)(*(plane.copy() for plane in planes))
            self._lores_mask.burn(*lores)
            if self._encoder is not None:
                draw_frame_number(planes.y, number)
                self._main_mask.burn(*planes)
        except ValueError as error:
            raise CameraError("mask", "fake camera", error, hint="nothing is shown without its mask") from error
        if self._encoder is not None:
            packet = self._encoder.encode(*planes, t_ns, self._packet_seq, may_be_key=may_be_key)
            self._packet_seq += 1
            if packet_arrives:
                sink.on_packet(packet)
        lores = lores.frozen()
        sink.on_frame(Frame(step, t_ns, lores.y, lores.u, lores.v, reading if self._with_sensor else None))

    def _time_of(self, step: int) -> int:
        return self._open_ns + step * 1000 * NS_PER_S // round(self._fps * 1000)

    def _faults_at(self, t_s: float) -> list[tuple[Fault, int]]:
        """The faults of the running stream that hold at t_s; a death and a silence come once per occurrence."""
        found = []
        for fault in self.scene.faults:
            if fault.kind in ("die", "silent"):
                due = [i for i in range(fault.times) if t_s >= fault.at_s + i * fault.every_s]
                if due and (fault, due[-1]) not in self._died:
                    if fault.kind == "silent":
                        self._died.add((fault, due[-1]))
                    found.append((fault, due[-1]))
            elif fault.kind not in ("absent", "busy"):
                index = fault.occurrence(t_s)
                if index is not None:
                    found.append((fault, index))
        return found

    def _refuse_if_told(self) -> None:
        t_s = self._first_frame / self._fps
        for fault in self.scene.faults:
            if fault.kind not in ("absent", "busy"):
                continue
            # for_s = 0: the first `times` attempts fail, whenever they come.
            refused = self._refused.get(fault, 0)
            if fault.for_s > 0:
                applies = fault.occurrence(t_s) is not None
            else:
                applies = t_s >= fault.at_s and refused < fault.times
            if applies:
                self._refused[fault] = refused + 1
                words = "no such camera" if fault.kind == "absent" else "another program is using it"
                raise CameraError("open", "fake camera", words, hint="as its scene says")
