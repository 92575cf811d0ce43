"""What the machine says of itself: heat, power, memory, clock, Wi-Fi. Reads files below a root, nothing else.

Everything is a file (sysfs has what `vcgencmd get_throttled` prints), so no program is started and no right to
/dev/vcio is needed, and tests put a directory in the place of "/".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.ladder import Strain

THROTTLE_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "temperature limit",
    16: "under-voltage earlier",
    17: "frequency capped earlier",
    18: "throttled earlier",
    19: "temperature limit earlier",
}
"""As the firmware reports them (raspberrypi.com, vcgencmd get_throttled); from 16 on since the board was started."""

_THROTTLE_FILES = (
    "sys/devices/platform/soc*/soc*firmware/get_throttled",
    "sys/devices/platform/*firmware/get_throttled",
)


@dataclass(frozen=True, slots=True)
class Throttle:
    """The firmware's throttle word. Bits 0 to 3 hold now, 16 to 19 held at some time since the start."""

    word: int

    @property
    def under_voltage(self) -> bool:
        return bool(self.word & 1)

    @property
    def too_hot(self) -> bool:
        """The firmware has begun to slow the processor down, or is about to (soft limit)."""
        return bool(self.word & 0b1110)

    def in_words(self) -> list[str]:
        return [words for bit, words in THROTTLE_BITS.items() if self.word >> bit & 1]


class Board:
    """Each answer is None where the machine does not tell; nothing raises. root: "/" on a node."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._heat = self._thermal_file()
        self._power = self._throttle_file()
        self._alarm = self._supply_alarm_file() if self._power is None else None

    def hardware(self) -> str | None:
        text = self._read("proc/device-tree/model") or self._read("sys/class/dmi/id/product_name")
        return _clean(text)

    def serial(self) -> str | None:
        """The board's own serial number (never a PC's: that takes root, and would differ for each user)."""
        return _clean(self._read("proc/device-tree/serial-number"))

    def written_mb(self) -> float | None:
        """What this process has had written to disks so far, MB, as the kernel counts it (SQLite's part too)."""
        for line in (self._read("proc/self/io") or "").splitlines():
            name, _, rest = line.partition(":")
            if name == "write_bytes":
                return int(rest) / 1e6
        return None

    def temperature_c(self) -> float | None:
        """Of the processor: the zone that says so, else the first one."""
        number = _number(self._read(self._heat)) if self._heat is not None else None
        return None if number is None else number / 1000

    def throttle(self) -> Throttle | None:
        """The firmware's word; where the kernel has only its alarm for the supply, that one bit of it."""
        if self._power is not None:
            try:
                return Throttle(int((self._read(self._power) or "").strip(), 16))
            except ValueError:
                return None
        alarm = _number(self._read(self._alarm)) if self._alarm is not None else None
        return None if alarm is None else Throttle(int(alarm != 0))

    def strain(self) -> Strain:
        """For the ladder. Its limits are a Raspberry Pi's: of other machines nothing is said (a PC may run at 90)."""
        throttle = self.throttle()
        if throttle is None:
            return Strain()
        return Strain(self.temperature_c(), throttle.too_hot, throttle.under_voltage)

    # Looked for once: they do not come and go, and health asks often.

    def _thermal_file(self) -> Path | None:
        zones = sorted(self._root.glob("sys/class/thermal/thermal_zone*"))
        zones.sort(key=lambda zone: "cpu" not in (self._read(zone / "type") or ""))
        return next((zone / "temp" for zone in zones if _number(self._read(zone / "temp")) is not None), None)

    def _throttle_file(self) -> Path | None:
        return next((path for pattern in _THROTTLE_FILES for path in sorted(self._root.glob(pattern))), None)

    def _supply_alarm_file(self) -> Path | None:
        chips = sorted(self._root.glob("sys/class/hwmon/hwmon*"))
        return next(
            (chip / "in0_lcrit_alarm" for chip in chips if (self._read(chip / "name") or "").strip() == "rpi_volt"),
            None,
        )

    def memory_free_mb(self) -> float | None:
        return self._memory_mb("MemAvailable")

    def contiguous_free_mb(self) -> float | None:
        """Of the area that cameras and encoders take their buffers from (CMA); None where there is none."""
        total = self._memory_mb("CmaTotal")
        return self._memory_mb("CmaFree") if total else None

    def _memory_mb(self, wanted: str) -> float | None:
        for line in (self._read("proc/meminfo") or "").splitlines():
            name, _, rest = line.partition(":")
            if name == wanted:
                return int(rest.split()[0]) / 1024
        return None

    def rss_mb(self) -> float | None:
        fields = (self._read("proc/self/statm") or "").split()
        return int(fields[1]) * os.sysconf("SC_PAGESIZE") / 2**20 if len(fields) > 1 else None

    def load_1m(self) -> float | None:
        fields = (self._read("proc/loadavg") or "").split()
        return _number(fields[0]) if fields else None

    def wifi_dbm(self) -> float | None:
        """Signal of the first wireless interface that has one: about -50 is good, -80 hardly usable."""
        for line in (self._read("proc/net/wireless") or "").splitlines()[2:]:
            _, _, rest = line.partition(":")
            fields = rest.split()
            level = _number(fields[2].rstrip(".")) if len(fields) > 2 else None
            if level is not None and level < 0:
                return level
        return None

    def time_source(self) -> str | None:
        """Which service keeps the clock: timesyncd (once it has), chrony, ntpd; None when none is to be seen."""
        if (self._root / "run/systemd/timesync/synchronized").exists():
            return "timesyncd"
        for name, file in (
            ("chrony", "run/chrony/chronyd.pid"),
            ("ntpd", "run/ntpd.pid"),
            ("ntpd", "run/ntpsec/ntpd.pid"),
        ):
            if (self._root / file).exists():
                return name
        return None

    def _read(self, name: str | Path) -> str | None:
        try:
            return (self._root / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


def _clean(text: str | None) -> str | None:
    return text.strip("\0\n ") or None if text else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
