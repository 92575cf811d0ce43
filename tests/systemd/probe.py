"""What the agent may do and what it may not, tried from inside its own sandbox. Run by tests/systemd/first.sh.

probe.py sandbox   every CAN must succeed, every CANNOT must fail
probe.py relaxed   with the relax drop-in: what it gives away succeeds, all else fails as before
probe.py control   outside, as root: every CANNOT must succeed, else its refusal would prove nothing
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

STATE = Path("/var/lib/camera-agent")
SCRATCH = STATE / "probe"


def write_state() -> None:
    (SCRATCH / "file").write_bytes(b"x" * 4096)


def sqlite_wal() -> None:
    with sqlite3.connect(SCRATCH / "probe.db") as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table if not exists t (x)")
        db.execute("insert into t values (1)")


def read_credential() -> None:
    assert (
        Path(os.environ["CREDENTIALS_DIRECTORY"], "camera-agent.mqtt-password").read_text().strip() == "probe-secret"
    )


def numpy_and_opencv() -> None:
    import cv2
    import numpy as np

    picture = np.zeros((480, 640, 3), np.uint8)
    blurred = cv2.GaussianBlur(cv2.resize(picture, (320, 240)), (5, 5), 0)
    assert cv2.imencode(".jpg", blurred)[0]
    assert np.linalg.svd(np.eye(64))[1].sum() > 63


def encode_and_decode_video() -> None:
    import av
    import numpy as np

    with av.open(str(SCRATCH / "probe.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for _ in range(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((240, 320, 3), np.uint8), "rgb24")))
        out.mux(stream.encode())
    with av.open(str(SCRATCH / "probe.mp4")) as source:
        assert sum(1 for _ in source.decode(video=0)) == 5


def ctypes_callback() -> None:
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    values = (ctypes.c_int * 3)(3, 1, 2)
    ctypes.CDLL(None).qsort(values, 3, ctypes.sizeof(ctypes.c_int), kind(lambda a, b: a[0] - b[0]))
    assert list(values) == [1, 2, 3]


def threads() -> None:
    some = [threading.Thread(target=lambda: None) for _ in range(20)]
    for thread in some:
        thread.start()
    for thread in some:
        thread.join()


def child_process() -> None:
    subprocess.run(["/usr/bin/true"], check=True)


def reach_broker() -> None:
    socket.create_connection(("127.0.0.1", 1883), 3).close()


def tls() -> None:
    ssl.create_default_context()


def hear_udev() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as sock:
        sock.bind((0, 2))


def read_memory_and_load() -> None:
    assert Path("/proc/meminfo").read_text()
    assert Path("/proc/loadavg").read_text()


def read_own_settings() -> None:
    assert Path("/etc/camera-agent/agent.toml").read_text()


def listen() -> None:
    socket.create_server(("127.0.0.1", 0)).close()


def listen_v6() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 9999))


def writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def executes_from(directory: str) -> Callable[[], None]:
    def execute() -> None:
        script = Path(directory) / f"dropped-{os.getpid()}"
        script.write_text("#!/bin/sh\nexit 0\n")
        try:
            script.chmod(0o755)
            subprocess.run([script], check=True)
        finally:
            script.unlink()

    return execute


def writes(path: str) -> Callable[[], None]:
    def write() -> None:
        Path(path).write_text("x")
        Path(path).unlink()

    return write


def reads(path: str) -> Callable[[], None]:
    return lambda: print(len(Path(path).read_bytes()), file=sys.stderr)


def change_root() -> None:
    if os.fork() == 0:
        try:
            os.chroot("/tmp")
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.wait()[1]:
        raise PermissionError("chroot")


def new_namespace() -> None:
    subprocess.run(["/usr/bin/unshare", "-m", "/usr/bin/true"], check=True, capture_output=True)


def raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def packet_socket() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


def see_other_processes() -> None:
    assert Path("/proc/1/cmdline").exists()


def signal_others() -> None:
    os.kill(1, 0)


def set_setuid() -> None:
    path = Path("/tmp") / f"setuid-{os.getpid()}"
    path.touch()
    try:
        path.chmod(0o4755)
        assert path.stat().st_mode & stat.S_ISUID
    finally:
        path.unlink()


def realtime() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def set_host_name() -> None:
    socket.sethostname(socket.gethostname())


CAN = (
    write_state, sqlite_wal, read_credential, numpy_and_opencv, encode_and_decode_video, ctypes_callback, threads,
    child_process, reach_broker, tls, hear_udev, read_memory_and_load, read_own_settings,
)  # fmt: skip
CANNOT: dict[str, Callable[[], None]] = {
    "listen on TCP": listen,
    "bind UDP over IPv6": listen_v6,
    "map memory that is writable and executable": writable_code,
    "execute what it dropped in its state directory": executes_from(str(SCRATCH)),
    "execute what it dropped in /tmp": executes_from("/tmp"),
    "execute what it dropped in /var/tmp": executes_from("/var/tmp"),
    "execute what it dropped in /run/camera-agent": executes_from("/run/camera-agent"),
    "execute what it dropped in /dev/shm": executes_from("/dev/shm"),
    "write /etc": writes("/etc/probe"),
    "write its own settings": writes("/etc/camera-agent/probe"),
    "write its own program": writes("/opt/camera-agent/probe"),
    "write /usr": writes("/usr/probe"),
    "read another user's file": reads("/home/somebody/secret"),
    "read a file below /srv that is not for it": reads("/srv/secret"),
    "read /etc/shadow": reads("/etc/shadow"),
    "read the store of credentials": reads("/etc/credstore/camera-agent.mqtt-password"),
    "chroot": change_root,
    "make a mount namespace": new_namespace,
    "open a raw socket": raw_socket,
    "open a packet socket": packet_socket,
    "see other processes": see_other_processes,
    "signal other processes": signal_others,
    "make a file setuid": set_setuid,
    "take real-time priority": realtime,
    "set the host name": set_host_name,
}
RELAXED = ("map memory that is writable and executable",)
"""What relax.conf gives. Real-time priority still wants a privilege, a mount namespace a user namespace around it."""

WANTS_BPF = ("bind UDP over IPv6",)
"""SocketBindDeny= alone denies it, which a systemd built without BPF_FRAMEWORK (Debian 12) does not enforce."""


def succeeds(act: Callable[[], None]) -> str:
    """Empty when it did, else why not."""
    try:
        act()
    except (
        OSError,
        AssertionError,
        RuntimeError,
        subprocess.CalledProcessError,
        ImportError,
        KeyError,
        sqlite3.Error,
    ) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> int:
    failed = 0
    SCRATCH.mkdir(exist_ok=True)
    if sys.argv[1] == "control":
        for name, act in CANNOT.items():
            if why := succeeds(act):
                failed += 1
                print(f"FAIL control: outside the sandbox it should be possible to {name}: {why}")
        verdict = "FAIL" if failed else "PASS"
        print(f"{verdict} probe controls: {len(CANNOT) - failed} of {len(CANNOT)} acts work outside")
        return failed
    for act in CAN:
        if why := succeeds(act):
            failed += 1
            print(f"FAIL cannot {act.__name__.replace('_', ' ')}: {why}")
    relaxed: tuple[str, ...] = RELAXED if sys.argv[1] == "relaxed" else ()
    about = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout
    if "+BPF_FRAMEWORK" not in about:
        relaxed += WANTS_BPF
        print(f"NOTE  this systemd cannot deny: {', '.join(WANTS_BPF)}")
    for name, act in CANNOT.items():
        if bool(succeeds(act)) == (name in relaxed):
            failed += 1
            print(f"FAIL {'cannot' if name in relaxed else 'can'} {name}")
    can, cannot = len(CAN) + len(relaxed), len(CANNOT) - len(relaxed)
    print(f"{'FAIL' if failed else 'PASS'} probes: {can} things it can, {cannot} it cannot; {failed} wrong")
    return failed


if __name__ == "__main__":
    sys.exit(main())
