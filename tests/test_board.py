"""What the board says of itself, read from directories that stand in for a machine's root."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board import Board, Throttle
from agent.cli.check import board_finding
from agent.ladder import Strain


def machine(root: Path, files: dict[str, str]) -> Board:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Board(root)


PI4 = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/device-tree/serial-number": "10000000a1b2c3d4\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "56478\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
    "proc/meminfo": "MemTotal: 3884372 kB\nMemAvailable: 3145728 kB\nCmaTotal: 524288 kB\nCmaFree: 262144 kB\n",
    "proc/loadavg": "0.52 0.58 0.59 1/467 12345\n",
    "proc/uptime": "86400.25 300000.00\n",
    "proc/net/wireless": "Inter-| sta-|   Quality        |   Discarded packets\n"
    " face | tus | link level noise |  nwid  crypt   frag\n"
    " wlan0: 0000   52.  -58.  -256        0      0      0      0     12        0\n",
    "run/systemd/timesync/synchronized": "",
}


def test_a_pi_4_tells_everything(tmp_path: Path) -> None:
    board = machine(tmp_path, PI4)
    assert board.hardware() == "Raspberry Pi 4 Model B Rev 1.4"
    assert board.serial() == "10000000a1b2c3d4"
    assert board.temperature_c() == 56.478
    assert board.throttle() == Throttle(0x50000)
    assert board.memory_free_mb() == 3072
    assert board.contiguous_free_mb() == 256
    assert board.load_1m() == 0.52
    assert board.wifi_dbm() == -58
    assert board.time_source() == "timesyncd"


def test_an_empty_machine_tells_nothing_and_nothing_raises(tmp_path: Path) -> None:
    board = Board(tmp_path)
    assert [
        board.hardware(),
        board.serial(),
        board.temperature_c(),
        board.throttle(),
        board.memory_free_mb(),
        board.contiguous_free_mb(),
        board.load_1m(),
        board.wifi_dbm(),
        board.time_source(),
    ] == [None] * 9
    assert board.strain() == Strain()


@pytest.mark.parametrize(
    "path",
    [
        "sys/devices/platform/soc/soc:firmware/get_throttled",
        "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled",
    ],
)
def test_throttling_is_found_on_old_and_new_boards(tmp_path: Path, path: str) -> None:
    throttle = machine(tmp_path, {path: "50005\n"}).throttle()
    assert throttle is not None
    assert throttle.under_voltage
    assert throttle.too_hot
    assert throttle.in_words() == ["under-voltage", "throttled", "under-voltage earlier", "throttled earlier"]


def test_what_was_earlier_is_told_but_is_no_strain_now(tmp_path: Path) -> None:
    board = machine(tmp_path, PI4)
    throttle = board.throttle()
    assert throttle is not None
    assert throttle.in_words() == ["under-voltage earlier", "throttled earlier"]
    assert board.strain() == Strain(56.478, too_hot=False, under_voltage=False)


@pytest.mark.parametrize(("alarm", "under"), [("0\n", False), ("1\n", True)])
def test_without_the_firmwares_file_the_supplys_alarm_is_used(tmp_path: Path, alarm: str, under: bool) -> None:
    board = machine(
        tmp_path,
        {
            "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
            "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
            "sys/class/hwmon/hwmon1/in0_lcrit_alarm": alarm,
        },
    )
    assert board.throttle() == Throttle(int(under))
    assert board.strain().under_voltage is under


def test_the_processors_zone_is_taken_where_there_are_several(tmp_path: Path) -> None:
    zones = {"acpitz": "20000", "x86_pkg_temp": "61000", "cpu-thermal": "72000"}
    files = {}
    for number, (kind, temp) in enumerate(zones.items()):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = kind
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = temp
    board = machine(tmp_path, files)
    assert board.temperature_c() == 72
    assert board.strain() == Strain(), "no Raspberry Pi: its limits say nothing about this machine"


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"run/chrony/chronyd.pid": "7"}, "chrony"),
        ({"run/ntpd.pid": "7"}, "ntpd"),
        ({"run/systemd/timesync/other": ""}, None),
    ],
)
def test_the_time_service_is_named(tmp_path: Path, files: dict[str, str], source: str | None) -> None:
    assert machine(tmp_path, files).time_source() == source


@given(text=st.text(max_size=200))
def test_nonsense_in_the_files_is_no_answer_but_no_error_either(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    root = tmp_path_factory.mktemp("nonsense")
    for name in PI4:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    board = Board(root)
    for answer in (board.temperature_c, board.throttle, board.wifi_dbm, board.load_1m, board.strain):
        answer()
    board.memory_free_mb()
    board.hardware()


@pytest.mark.parametrize(
    ("word", "temperature", "passed", "words", "hint"),
    [
        ("0", "56478", True, "56 degrees C, not throttled", ""),
        ("50005", "56478", False, "under-voltage, throttled", "power supply"),
        ("e0008", "81200", False, "81 degrees C, temperature limit", "cooling"),
    ],
)
def test_check_tells_an_installer_of_heat_and_power(
    tmp_path: Path, word: str, temperature: str, passed: bool, words: str, hint: str
) -> None:
    files = {
        "sys/devices/platform/soc/soc:firmware/get_throttled": word,
        "sys/class/thermal/thermal_zone0/temp": temperature,
    }
    finding = board_finding(machine(tmp_path, PI4 | files))
    assert finding.passed is passed
    assert words in finding.words
    assert "Raspberry Pi 4 Model B Rev 1.4, serial 10000000a1b2c3d4" in finding.words
    assert "256 MB of it contiguous (CMA), Wi-Fi -58 dBm" in finding.words
    assert hint in finding.hint
