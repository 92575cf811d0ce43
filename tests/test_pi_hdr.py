"""The Camera Module 3's own HDR: found below directories that stand in for a machine's root, never on a board."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from video_fixtures import Recorder

from agent.cameras.pi_controls import PictureSettings, controls_for
from agent.cameras.pi_hdr import CONTROL, GET_CONTROL, SET_CONTROL, WIDE_DYNAMIC_RANGE, set_sensor_hdr
from agent.cameras.pi_stack import PiOptions
from agent.cameras.picamera2 import PiCamera
from agent.cameras.profiles import PretendedBoard
from agent.cameras.scenes import BUILT_IN
from agent.clock import SimulatedClock
from agent.errors import CameraError

FIRST = "/base/axi/pcie@1000120000/rp1/i2c@88000/imx708@1a"
SECOND = "/base/axi/pcie@1000120000/rp1/i2c@80000/imx708@1a"


def machine(root: Path, *sensors: tuple[str, str]) -> None:
    """(kernel module, node of the device tree) of each subdevice, as sysfs links them."""
    (root / "dev").mkdir()
    for number, (module, node) in enumerate(sensors):
        device = root / f"sys/class/video4linux/v4l-subdev{number}/device"
        (device / "driver").mkdir(parents=True)
        (device / "driver/module").symlink_to(f"../../../../module/{module}")
        (device / "of_node").symlink_to(f"../../../../firmware/devicetree{node}")
        (root / f"dev/v4l-subdev{number}").touch()


class Driver:
    """The control of one sensor. refusal: what the kernel answers to a change."""

    def __init__(self, value: int = 0, refusal: int = 0) -> None:
        self.value, self.refusal = value, refusal
        self.changes = 0

    def ioctl(self, fd: int, request: int, argument: bytes) -> bytes:
        control, value = CONTROL.unpack(argument)
        assert control == WIDE_DYNAMIC_RANGE
        if request == SET_CONTROL:
            if self.refusal:
                raise OSError(self.refusal, "refused")
            self.value, self.changes = value, self.changes + 1
        else:
            assert request == GET_CONTROL
        return CONTROL.pack(control, self.value)


def test_it_is_switched_on_and_off_and_left_alone_where_it_is_right(tmp_path: Path) -> None:
    machine(tmp_path, ("dw9807_vcm", "/base/lens"), ("imx708", FIRST))
    driver = Driver()
    set_sensor_hdr(tmp_path, "", True, driver.ioctl)
    set_sensor_hdr(tmp_path, "imx708_wide", True, driver.ioctl)
    assert (driver.value, driver.changes) == (1, 1), "a running camera's driver would refuse a second time"
    set_sensor_hdr(tmp_path, FIRST, False, driver.ioctl)
    assert (driver.value, driver.changes) == (0, 2)


def test_of_two_the_one_with_the_cameras_id_is_switched(tmp_path: Path) -> None:
    machine(tmp_path, ("imx708", FIRST), ("imx708", SECOND))
    (tmp_path / "dev/v4l-subdev0").unlink()
    driver = Driver()
    set_sensor_hdr(tmp_path, SECOND, True, driver.ioctl)
    assert driver.value == 1
    with pytest.raises(CameraError, match=r"there are 2 Camera Modules 3 .*set camera.id"):
        set_sensor_hdr(tmp_path, "imx708", True, driver.ioctl)


def test_another_sensor_is_refused_by_the_settings_name_but_has_nothing_to_switch_off(tmp_path: Path) -> None:
    machine(tmp_path, ("imx219", "/base/soc/i2c0mux/i2c@1/imx219@10"))
    driver = Driver()
    with pytest.raises(CameraError, match=r"camera.hdr = 'sensor': imx219 is no Camera Module 3"):
        set_sensor_hdr(tmp_path, "imx219", True, driver.ioctl)
    set_sensor_hdr(tmp_path, "imx219", False, driver.ioctl)
    assert driver.changes == 0


def test_a_driver_that_refuses_is_named(tmp_path: Path) -> None:
    machine(tmp_path, ("imx708", FIRST))
    with pytest.raises(CameraError, match=r"camera.hdr = 'sensor' \(.*/dev/v4l-subdev0\): .*refused .*group video"):
        set_sensor_hdr(tmp_path, "", True, Driver(refusal=errno.EBUSY).ioctl)
    with pytest.raises(CameraError, match="v4l-subdev0"):
        set_sensor_hdr(tmp_path, "", True)  # the real ioctl: a file is no device


@pytest.mark.parametrize("profile", ["pi4", "pi5"])
def test_it_is_set_before_the_camera_is_opened_and_stays_over_a_restart(profile: str) -> None:
    board = PretendedBoard(BUILT_IN["office"], profile, SimulatedClock())
    options = PiOptions("", 400, 304, 10, 200, 152, picture=PictureSettings(hdr="sensor"))
    camera = PiCamera(options, SimulatedClock(), stack=board.stack)
    camera.start(Recorder())
    assert board.sensor_hdr
    assert "HdrMode" not in board.configurations[-1]["controls"]
    camera.start(Recorder())
    camera.stop()


def test_off_also_means_the_boards_own_hdr_where_there_is_one() -> None:
    off = PictureSettings(hdr="off")
    assert controls_for(off, ("HdrMode",), "imx708_wide") == {"HdrMode": 0}
    assert controls_for(off, (), "imx708_wide") == {}
    with pytest.raises(CameraError, match=r"camera.hdr = 'off': imx219 has no control HdrMode"):
        controls_for(off, (), "imx219")
