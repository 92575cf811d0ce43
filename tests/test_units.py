"""The unit files hold together, are understood by this machine's systemd, and score as promised."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent import announcer, configuration, updates
from agent.access import COMMISSIONING
from agent.arming import ARMING_NAME
from agent.ledger_file import ID_NAME, LEDGER_NAME, LOCK_NAME
from agent.node import STOP_BUDGET_S
from agent.operators import COUNTERS_NAME
from agent.settings import CREDENTIAL_FILES, CREDENTIALS

ROOT = Path(__file__).resolve().parent.parent
SYSTEMD = ROOT / "systemd"
UNITS = sorted(path for path in SYSTEMD.iterdir() if path.suffix in (".service", ".path", ".timer"))
SCRIPTS = [
    ROOT / "scripts" / name
    for name in ("install", "uninstall", "upgrade", "as-agent", "first-boot", "make-package", "test-systemd")
]
MAX_EXPOSURE = 1.5
NEWER_KEYS = re.compile(r"^(RestartSteps|RestartMaxDelaySec|ImportCredential)=", re.MULTILINE)

requires_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def value(unit: Path, key: str) -> str:
    return next(line.partition("=")[2] for line in unit.read_text().splitlines() if line.startswith(f"{key}="))


def test_the_template_differs_from_the_unit_only_in_whose_files_it_uses() -> None:
    one = (SYSTEMD / "camera-agent.service").read_text().splitlines()
    many = (SYSTEMD / "camera-agent@.service").read_text().splitlines()
    differing = [line[2:] for line in difflib.ndiff(one, many) if line.startswith("+ ")]
    assert all("%i" in line or line.startswith(("#", "MemoryHigh=", "MemoryMax=")) for line in differing), differing


def test_purge_takes_all_that_a_node_keeps_on_a_disk_of_its_own_and_nothing_of_others(tmp_path: Path) -> None:
    """Clips need not lie below /var/lib/camera-agent: docs/PRIVACY.md promises that nothing is left."""
    text = (ROOT / "scripts/uninstall").read_text()
    (function,) = re.findall(r"^purge_data\(\) \{$.*?^\}$", text, re.MULTILINE | re.DOTALL)
    node, other = tmp_path / "dữ liệu" / "nút", tmp_path / "other"
    ours = [
        *("clips/01M82B74CGGVA5A9D45QTGWH2C.mp4", "clips/01M82B74CGGVA5A9D45QTGWH2C.mp4.part"),
        *(LEDGER_NAME, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}.damaged-1a2b3c4d", ID_NAME, LOCK_NAME),
        *(ARMING_NAME, announcer.FILE_NAME, configuration.STATE_NAME, updates.STATE_NAME, COUNTERS_NAME),
        f"{COMMISSIONING}/view.jpg",
    ]
    for path in (*(node / name for name in ours), other / "clips/holiday.mp4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for directory in (node, other):
        script = f'set -euo pipefail; STATE=/nowhere; say() {{ :; }}; {function}\npurge_data "$1"'
        subprocess.run(["bash", "-c", script, "purge", directory], check=True)
    assert not node.exists()
    assert (other / "clips/holiday.mp4").exists()


def test_every_credential_of_the_settings_is_loaded() -> None:
    text = (SYSTEMD / "camera-agent.service").read_text()
    for name in (*CREDENTIALS, *CREDENTIAL_FILES):
        assert f"\nLoadCredential={name}\n" in text
        assert name.startswith("camera-agent."), "ImportCredential=camera-agent.* would not find it"


def test_systemd_waits_longer_for_the_end_than_the_stages_take() -> None:
    assert int(value(SYSTEMD / "camera-agent.service", "TimeoutStopSec")) > sum(STOP_BUDGET_S.values()) + 2


def test_the_unit_records_without_network_and_clock_and_never_gives_up() -> None:
    text = (SYSTEMD / "camera-agent.service").read_text()
    orders = [line for line in text.splitlines() if line.startswith(("After=", "Wants=", "Requires="))]
    assert not any("online" in line or "time-sync" in line for line in orders)
    for line in ("StartLimitIntervalSec=0", "Restart=always", "RestartPreventExitStatus=78", "SocketBindDeny=any"):
        assert f"\n{line}\n" in text


def test_the_hardware_watchdog_stays_below_what_a_raspberry_pi_can_do() -> None:
    assert value(SYSTEMD / "options/watchdog.conf", "RuntimeWatchdogSec") == "14s"


def test_keys_that_only_newer_systemd_knows_are_in_their_own_drop_in() -> None:
    for unit in UNITS:
        assert not NEWER_KEYS.search(unit.read_text()), unit.name
    assert NEWER_KEYS.search((SYSTEMD / "drop-ins/10-systemd-254.conf").read_text())


@requires_systemd
def test_this_machines_systemd_has_nothing_to_say_about_any_unit(tmp_path: Path) -> None:
    """Without the programs, which are not installed here: they are checked in the booted machine."""
    copies = []
    for unit in UNITS:
        text = re.sub(r"/opt/camera-agent/\w+/bin/camera-agent", "/bin/true", unit.read_text())
        copy = tmp_path / unit.name.replace("@.", "@left.")
        copy.write_text(text)
        copies.append(str(copy))
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True)
    ours = [line for line in (result.stdout + result.stderr).splitlines() if "camera-agent" in line]
    assert (ours, result.returncode) == ([], 0)


@requires_systemd
@pytest.mark.parametrize("name", ["camera-agent.service", "camera-agent@.service"])
def test_the_exposure_is_as_low_as_promised(name: str, tmp_path: Path) -> None:
    copy = tmp_path / name.replace("@.", "@left.")
    copy.write_text((SYSTEMD / name).read_text())
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(copy)]
    result = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Overall exposure level.*: ([\d.]+)", result.stdout)
    assert found is not None, result.stderr
    assert float(found[1]) <= MAX_EXPOSURE


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_pipe_nothing_from_the_network_into_a_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert not re.search(r"(curl|wget).*\|\s*(ba)?sh", text)
    assert script.stat().st_mode & 0o111
    assert "http://" not in text
    assert "https://" not in text


def test_the_installer_names_every_unit_there_is() -> None:
    text = (ROOT / "scripts/node-lib.sh").read_text()
    for unit in UNITS:
        assert f" {unit.name}" in text or f"({unit.name}" in text, unit.name
