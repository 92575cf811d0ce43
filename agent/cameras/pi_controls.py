"""From settings to libcamera's controls, refusing what a camera does not advertise. Pure; touches nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from agent.errors import CameraError

# Numbers of libcamera's control enumerations (control_ids_core.yaml), so that libcamera need not be imported here.
AF_MODES = {"manual": 0, "continuous": 2}
AWB_MODES = {"auto": 0, "incandescent": 1, "tungsten": 2, "fluorescent": 3, "indoor": 4, "daylight": 5, "cloudy": 6}
FLICKER_MANUAL = 1
HDR_MODES = {"off": 0, "single-exposure": 3, "night": 4}

_SETTING_OF = {
    "AfMode": "autofocus",
    "LensPosition": "lens_position",
    "ExposureTime": "exposure_us",
    "AnalogueGain": "gain",
    "ExposureValue": "brightness_ev",
    "AwbMode": "white_balance",
    "AeFlickerMode": "flicker_hz",
    "AeFlickerPeriod": "flicker_hz",
    "HdrMode": "hdr",
}


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """How the picture is to be made; "" and 0 leave it to the camera.

    lens_position: dioptres (1 / metres), used with autofocus "manual"; exposure_us: microseconds; gain: analogue;
    brightness_ev: stops more or less than automatic exposure would give; flicker_hz: the mains, 50 or 60.
    """

    autofocus: str = ""
    lens_position: float = 0.0
    exposure_us: int = 0
    gain: float = 0.0
    brightness_ev: float = 0.0
    white_balance: str = ""
    flicker_hz: int = 0
    hdr: str = ""


def controls_for(wanted: PictureSettings, advertised: Collection[str], camera: str) -> dict[str, Any]:
    """picamera2's controls for what is wanted.

    advertised: names in Picamera2.camera_controls. CameraError names the setting that this camera cannot follow:
    set blindly, picamera2 would refuse it with the control's name only.
    """
    controls: dict[str, Any] = {}
    if wanted.autofocus:
        controls["AfMode"] = AF_MODES[wanted.autofocus]
        if wanted.autofocus == "manual":
            controls["LensPosition"] = wanted.lens_position
    if wanted.exposure_us:
        controls["ExposureTime"] = wanted.exposure_us
    if wanted.gain:
        controls["AnalogueGain"] = wanted.gain
    if wanted.brightness_ev:
        controls["ExposureValue"] = wanted.brightness_ev
    if wanted.white_balance:
        controls["AwbMode"] = AWB_MODES[wanted.white_balance]
    if wanted.flicker_hz:
        # A lamp on alternating current brightens twice per period: 10,000 us at 50 Hz.
        controls |= {"AeFlickerMode": FLICKER_MANUAL, "AeFlickerPeriod": round(1e6 / (2 * wanted.flicker_hz))}
    # "sensor" is no control of libcamera's (pi_hdr.py), and a Camera Module 3 may have only that one to be off.
    is_off_already = wanted.hdr == "off" and camera.startswith("imx708") and "HdrMode" not in advertised
    if wanted.hdr in HDR_MODES and not is_off_already:
        controls["HdrMode"] = HDR_MODES[wanted.hdr]
    for name in controls:
        if name not in advertised:
            setting = _SETTING_OF[name]
            raise CameraError(
                "configure",
                f"camera.{setting} = {getattr(wanted, setting)!r}",
                f"{camera} has no control {name}",
                hint="leave this setting out for this camera",
            )
    return controls
