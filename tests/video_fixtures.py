"""Small videos and a small RTSP server for the camera tests, and a sink that keeps what it gets."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from broker import DEADLINE_S

from agent.annexb import split_annexb
from agent.cameras.planes import Planes, planes_of
from agent.cameras.strip import draw_frame_number
from agent.model import Codec, Frame, Packet


class Recorder:
    """A CameraSink that keeps everything; wait_frames lets a test wait for a camera's thread."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []
        self.frames: list[Frame] = []
        self._changed = threading.Condition()

    def on_packet(self, packet: Packet) -> None:
        with self._changed:
            self.packets.append(packet)
            self._changed.notify_all()

    def on_frame(self, frame: Frame) -> None:
        with self._changed:
            self.frames.append(frame)
            self._changed.notify_all()

    def wait_frames(self, count: int, timeout_s: float = DEADLINE_S) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.frames) >= count, timeout_s)


def picture(number: int, width: int, height: int, *, numbered: bool = True) -> Planes:
    """A textured picture in which a bright block moves, with its number."""
    rng = np.random.default_rng(7)
    y = (rng.integers(60, 150, (height // 8 + 1, width // 8 + 1)).astype(np.uint8)).repeat(8, 0).repeat(8, 1)
    y = y[:height, :width].copy()
    left = (number * 7) % (width - 32)
    y[height // 2 : height // 2 + 32, left : left + 32] = 220
    if numbered:
        draw_frame_number(y, number)
    half = ((height + 1) // 2, (width + 1) // 2)
    return Planes(y, np.full(half, 110, np.uint8), np.full(half, 140, np.uint8))


def write_video(
    path: Path,
    *,
    frames: int = 30,
    fps: int = 10,
    width: int = 320,
    height: int = 240,
    gop: int = 10,
    b_frames: int = 0,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    pictures: Sequence[Planes] | None = None,
) -> Path:
    """Encode numbered pictures into path; the container follows its suffix."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        wanted = {"g": str(gop), "bf": str(b_frames)}
        if codec == "libx264":
            wanted |= {"x264-params": f"scenecut=0:keyint={gop}:min-keyint={gop}:bframes={b_frames}:b-adapt=0"}
        if codec == "libx265":
            wanted |= {
                "x265-params": f"log-level=error:keyint={gop}:min-keyint={gop}:bframes={b_frames}:pools=1:open-gop=0"
            }
        stream.options = wanted | (options or {})
        for number in range(frames):
            made = pictures[number] if pictures is not None else picture(number, width, height)
            flat = np.concatenate([made.y.ravel(), made.u.ravel(), made.v.ravel()])
            frame: Any = av.VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), format="yuv420p")
            if pix_fmt != "yuv420p":
                frame = frame.reformat(format=pix_fmt)
            frame.pts = number
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode_packets(packets: Sequence[Packet], codec: Codec = "h264") -> list[Planes]:
    """Decode packets from nothing, in presentation order; all pictures that come out."""
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    made = []
    for packet in packets:
        coded = av.Packet(packet.data)
        made += [Planes(*(np.array(p) for p in planes_of(frame))) for frame in context.decode(coded)]
    return made + [Planes(*(np.array(p) for p in planes_of(frame))) for frame in context.decode(None)]


class RtspServer:
    """A real, if small, RTSP server on loopback: RTP over TCP, one H.264 stream, RFC 2326 and RFC 6184.

    Sends packets (Annex B, 90 kHz times from their t_ns, as fast as they are read unless paced is waited upon)
    to each client that plays. hold: while set, nothing is sent. password: asked for by Basic authentication.
    """

    def __init__(self, packets: Sequence[Packet], *, password: str = "", mute: bool = False, fps: float = 25) -> None:
        self.packets = list(packets)
        self.hold = threading.Event()
        self._password = password
        self._mute = mute
        self._fps = fps
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        user = f"user:{self._password}@" if self._password else ""
        return f"rtsp://{user}127.0.0.1:{self._listener.getsockname()[1]}/live"

    def hang_up(self) -> None:
        """Close all connections; the server goes on listening."""
        for client in self._clients:
            # close() alone does not wake the thread that reads from it.
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for client in self._clients:
            client.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client.makefile("rb") as reader:
                while not self._closing.is_set():
                    lines: list[str] = []
                    while (line := reader.readline().strip()) or not lines:
                        if not line:
                            return
                        lines.append(line.decode())
                    if self._mute:
                        self._closing.wait()
                        return
                    if self._answer(client, lines):
                        threading.Thread(target=self._play, args=(client,), daemon=True).start()
        except OSError:
            return

    def _answer(self, client: socket.socket, lines: list[str]) -> bool:
        verb, url, _ = lines[0].split()
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        reply = ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}", "Session: 1;timeout=60"]
        body = ""
        basic = "Basic " + base64.b64encode(f"user:{self._password}".encode()).decode()
        if self._password and headers.get("authorization") != basic:
            reply = ["RTSP/1.0 401 Unauthorized", reply[1], 'WWW-Authenticate: Basic realm="camera"']
        elif verb == "OPTIONS":
            reply.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER")
        elif verb == "DESCRIBE":
            sps, pps = (nal for nal in split_annexb(self.packets[0].data) if nal[0] & 0x1F in (7, 8))
            sets = ",".join(base64.b64encode(nal).decode() for nal in (sps, pps))
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                f"a=rtpmap:96 H264/90000\r\na=framerate:{self._fps}\r\na=control:track\r\n"
                f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}\r\n"
            )
            reply += ["Content-Type: application/sdp", f"Content-Base: {url}/", f"Content-Length: {len(body)}"]
        elif verb == "SETUP":
            reply.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        client.sendall(("\r\n".join(reply) + "\r\n\r\n" + body).encode())
        return verb == "PLAY"

    def _play(self, client: socket.socket) -> None:
        sequence = 0
        try:
            for index, packet in enumerate(self.packets):
                while self.hold.is_set() and not self._closing.wait(0.01):
                    pass
                # Paced like a camera: by the clock that also ends it.
                if self._closing.wait(1 / self._fps if index else 0):
                    return
                stamp = (packet.t_ns * 9 // 100_000) & 0xFFFFFFFF
                nals = split_annexb(packet.data)
                for i, nal in enumerate(nals):
                    for payload, last in _fragments(nal):
                        mark = 0x80 if last and i == len(nals) - 1 else 0
                        head = bytes([0x80, 96 | mark]) + sequence.to_bytes(2, "big") + stamp.to_bytes(4, "big")
                        rtp = head + b"\0\0\0\1" + payload
                        client.sendall(b"$\0" + len(rtp).to_bytes(2, "big") + rtp)
                        sequence = (sequence + 1) & 0xFFFF
        except OSError:
            return


def _fragments(nal: bytes, limit: int = 1200) -> list[tuple[bytes, bool]]:
    """The RTP payloads of one NAL unit: itself, or FU-A fragments (RFC 6184, 5.8)."""
    if len(nal) <= limit:
        return [(nal, True)]
    parts = [nal[1 + i : 1 + i + limit] for i in range(0, len(nal) - 1, limit)]
    made = []
    for i, part in enumerate(parts):
        flags = (0x80 if i == 0 else 0) | (0x40 if i == len(parts) - 1 else 0)
        made.append((bytes([nal[0] & 0xE0 | 28, flags | nal[0] & 0x1F]) + part, i == len(parts) - 1))
    return made
