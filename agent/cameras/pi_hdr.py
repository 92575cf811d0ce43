"""The Camera Module 3's own HDR, a control of its driver that libcamera does not know. Touches /sys and one device.

It is written before libcamera looks at the sensor, which then finds other modes (at most 2304x1296), and it stays
until the next boot. Never run on a board: see docs/HARDWARE.md.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

from agent.errors import CameraError

SENSOR = "imx708"
# linux/videodev2.h: _IOWR('V', 27 and 28, struct v4l2_control), V4L2_CID_WIDE_DYNAMIC_RANGE.
GET_CONTROL = 0xC008561B
SET_CONTROL = 0xC008561C
WIDE_DYNAMIC_RANGE = 0x009A0915
CONTROL = struct.Struct("=Ii")

Ioctl = Callable[[int, int, bytes], bytes]


def set_sensor_hdr(root: Path, camera_id: str, is_on: bool, ioctl: Ioctl = fcntl.ioctl) -> None:
    """Switch it. root: "/" on a node. camera_id: libcamera's id, a model, or "" for the only camera.

    Without such a sensor there is nothing to switch off; on is refused. CameraError says what to do.
    """
    setting = f"camera.hdr = {'sensor' if is_on else 'off'!r}"
    sensors = _sensors(root)
    if camera_id and camera_id != SENSOR and not camera_id.startswith(f"{SENSOR}_"):
        sensors = [(device, node) for device, node in sensors if camera_id in node]
    if len(sensors) > 1:
        raise CameraError("configure", setting, f"there are {len(sensors)} Camera Modules 3", hint="set camera.id")
    if not sensors:
        if is_on:
            words = f"{camera_id or 'the camera'} is no Camera Module 3 ({SENSOR})"
            raise CameraError("configure", setting, words, hint="leave this setting out for this camera")
        return
    (device, _) = sensors[0]
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            wanted = CONTROL.pack(WIDE_DYNAMIC_RANGE, int(is_on))
            # Only what differs: the driver refuses it while the camera runs, in this process or another.
            if ioctl(fd, GET_CONTROL, CONTROL.pack(WIDE_DYNAMIC_RANGE, 0)) != wanted:
                ioctl(fd, SET_CONTROL, wanted)
        finally:
            os.close(fd)
    except OSError as error:
        hint = "stop other camera programs; the agent's user needs the group video"
        raise CameraError("configure", f"{setting} ({device})", error, hint=hint) from error


def _sensors(root: Path) -> list[tuple[Path, str]]:
    """(device, node of the device tree) of each such sensor; libcamera's id of a camera is in the node's path."""
    found = []
    for subdevice in sorted(root.glob("sys/class/video4linux/v4l-subdev*")):
        module = subdevice / "device/driver/module"
        if module.is_symlink() and SENSOR in os.readlink(module):
            node = subdevice / "device/of_node"
            found.append((root / "dev" / subdevice.name, os.readlink(node) if node.is_symlink() else ""))
    return found
