"""The settings: one tree with a description, unit, bounds and default each. Reads the files it is given.

Sources, later ones win: TOML file, environment (CAMERA_AGENT__MQTT__HOST=...), systemd credentials for
secrets. config/agent.example.toml and docs/CONFIG.md are generated from this module.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from agent.camera_settings import CameraSettings
from agent.errors import ConfigError

ENV_PREFIX = "CAMERA_AGENT__"
CREDENTIALS = {"camera-agent.mqtt-password": ("mqtt", "password")}
"""systemd credential name -> the setting it fills."""
CREDENTIAL_FILES = {
    "camera-agent.mqtt-ca": ("mqtt", "ca_file"),
    "camera-agent.mqtt-cert": ("mqtt", "cert_file"),
    "camera-agent.mqtt-key": ("mqtt", "key_file"),
}
"""systemd credential name -> the setting that its path fills."""

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Share = Annotated[float, Field(ge=0, le=1)]


def _timezone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("should be an IANA time zone such as Asia/Ho_Chi_Minh")
    return name


OperatorKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,32}:[A-Za-z0-9+/]{43}=$")]
Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\[\]:-]+$", max_length=300)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSettings(_Section):
    """Who this node is. The ids stand in MQTT topics; name and location are for people."""

    id: Slug = Field("cam-1", description="Id of this node within its site; one node is one camera.")
    site: Slug = Field("site-1", description="Id of the site.")
    name: str = Field("", max_length=120, description="Name for people, any script: 'Cửa chính'.")
    location: str = Field("", max_length=200, description="Where it hangs, for people.")
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(
        "UTC", description="Time zone of the site for what people read; messages are always in UTC."
    )

    @property
    def zone_info(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


class DetectionSettings(_Section):
    """What counts as motion and how events are cut from it."""

    sensitivity: int = Field(50, ge=0, le=100, description="0: only large strong motion; 100: the faintest.")
    fps: float = Field(0, ge=0, le=60, description="Analyse at most so many frames per second; 0: every frame.")
    confirm_frames: int = Field(
        3, ge=1, le=30, description="So many frames in a row must move before an event starts."
    )
    quiet_s: float = Field(3, ge=0.2, le=300, description="An event ends after so long without motion.")
    still_s: float = Field(
        30,
        ge=0,
        le=300,
        description="An event waits so long for somebody who stands still in the picture to move again; 0: not.",
    )
    storm_per_min: int = Field(
        6,
        ge=0,
        le=60,
        description="From so many events a minute on (trees in a gale) all are gathered in one that tells the rate; "
        "0: never.",
    )
    max_event_s: float = Field(300, ge=5, le=3600, description="A longer event is cut and goes on as a new one.")
    update_s: float = Field(5, ge=0.5, le=300, description="At most one update per event in this time.")
    strip: bool = Field(
        False,
        description="The last picture of an event shows the place before, at the peak and after, side by side; else "
        "the peak alone.",
    )


class ZoneSettings(_Section):
    """A polygon in shares of the picture, (0, 0) top left, (1, 1) bottom right."""

    id: Slug = Field(description="Id, used in messages.")
    name: str = Field("", max_length=120, description="Name for people, any script.")
    kind: Literal["detect", "ignore", "privacy"] = Field(
        description="detect: only these count as motion; ignore: never counts; privacy: blacked out everywhere."
    )
    polygon: list[tuple[Share, Share]] = Field(
        min_length=3, max_length=64, description="Corners as [[x, y], ...], each 0..1."
    )
    sensitivity: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Of a detect zone, in place of detection.sensitivity; where zones overlap, the greatest.",
    )


class ClipSettings(_Section):
    """The ring of clips on this node's disk."""

    enabled: bool = Field(True, description="Record a clip for each event.")
    directory: Path = Field(Path("/var/lib/camera-agent"), description="Holds the clips and the ledger.")
    mount_point: Path | None = Field(
        None,
        description="Where a data disk must be mounted, or nothing is written; those of /etc/fstab count anyway.",
        examples=["/mnt/data"],
    )
    budget_mb: int = Field(8000, ge=8, le=10_000_000, description="All clips together, MB.")
    max_age_days: float = Field(30, gt=0, le=3650, description="Older clips are deleted.")
    min_free_mb: int = Field(500, ge=0, le=1_000_000, description="Keep so much of the disk free.")
    card_endurance_tb: float = Field(
        0, ge=0, le=100_000, description="TB that may be written to the card by its data sheet; 0: unknown."
    )
    pre_roll_s: float = Field(5, ge=0, le=60, description="Seconds of video before the event.")
    post_roll_s: float = Field(5, ge=0, le=60, description="Seconds of video after the event.")
    max_clip_s: float = Field(120, ge=10, le=3600, description="A longer clip goes on in a new file.")
    gop_s: float = Field(1, ge=0.2, le=10, description="A keyframe at least so often: what a power cut may cost.")


class MqttSettings(_Section):
    """The broker."""

    host: str = Field("localhost", min_length=1, max_length=253, description="Name or address of the broker.")
    port: int = Field(1883, ge=1, le=65535, description="TCP port (8883 is usual with TLS).")
    tls: bool = Field(False, description="Use TLS 1.2 or newer and check the broker's certificate.")
    ca_file: Path | None = Field(None, description="CA certificates in PEM; unset: the system's.")
    username: str = Field("", description="User name; by convention site/node. Empty: none.")
    password: SecretStr = Field(
        SecretStr(""), description="Better given as systemd credential camera-agent.mqtt-password."
    )
    cert_file: Path | None = Field(
        None, description="This node's own certificate in PEM, where the broker asks for one; or as a credential."
    )
    key_file: Path | None = Field(
        None, description="The private key of cert_file, unencrypted, for the agent's user only; or as a credential."
    )
    root: str = Field("edgecam", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="First level of all topics.")
    discovery: bool = Field(True, description="Announce this node to Home Assistant (MQTT device discovery).")
    discovery_prefix: str = Field(
        "homeassistant", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Home Assistant's discovery prefix."
    )
    keepalive_s: int = Field(20, ge=5, le=600, description="A silent connection is noticed within 1.5 times this.")
    drain_per_s: float = Field(
        200, ge=0, le=10_000, description="Messages of a backlog sent per second at most; 0: no limit."
    )
    require_subscriber: bool = Field(
        True, description="A message that nobody subscribes to (PUBACK 0x10) is kept and sent again."
    )


class OutboxSettings(_Section):
    """Messages owed to the broker, on disk until it took them."""

    max_rows: int = Field(100_000, ge=100, le=10_000_000, description="Rows not yet delivered.")
    max_mb: int = Field(512, ge=1, le=100_000, description="Bytes of rows not yet delivered, MB.")
    replay_days: float = Field(
        14, ge=0, le=365, description="Delivered rows stay so long, for consumers that lost some."
    )
    replay_mb: int = Field(256, ge=0, le=100_000, description="Delivered thumbnails kept, MB.")
    reserve_mb: int = Field(
        8, ge=0, le=1000, description="Room kept free inside the ledger, for events when others fill the disk, MB."
    )


class HealthSettings(_Section):
    """What the node says of itself."""

    interval_s: float = Field(30, ge=1, le=3600, description="Health is published this often, and on each change.")


class CommandSettings(_Section):
    """What may be asked of this node over MQTT, and by whom. Only this file decides it, never a message."""

    enabled: bool = Field(True, description="Listen to commands and to config/desired at all.")
    allow: list[str] = Field(
        ["*"], max_length=32, description="Commands permitted, as names or patterns: clip.*, live, config/desired."
    )
    operator_keys: list[OperatorKey] = Field(
        [],
        max_length=16,
        description="name:KEY, KEY an Ed25519 public key in Base64. With any key, only signed commands are executed.",
    )
    upload_hosts: list[Origin] = Field(
        [],
        max_length=16,
        description="Where clip.put may send clips to: https://s3.example.org, http://10.0.0.2:9000.",
    )
    package_hosts: list[Origin] = Field(
        [],
        max_length=16,
        description="Where update may fetch signed packages from: https://packages.example.org, http://10.0.0.2:8000.",
    )
    live_max_fps: float = Field(5, gt=0, le=30, description="Live: frames per second at most.")
    live_max_width: int = Field(1280, ge=64, le=4096, description="Live: pixels at most.")
    live_max_kbps: int = Field(2000, ge=50, le=50_000, description="Live: kbit/s at most.")
    live_max_ttl_s: float = Field(60, ge=1, le=3600, description="Live: a lease ends after this unless renewed.")
    confirm_s: float = Field(
        90, ge=20, le=3600, description="New settings that do not leave the node connected and well by then go back."
    )


class LogSettings(_Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is shown.")


class Settings(_Section):
    """All settings of one node."""

    node: NodeSettings = NodeSettings()
    camera: CameraSettings = CameraSettings()
    detection: DetectionSettings = DetectionSettings()
    zones: list[ZoneSettings] = Field([], max_length=64, description="Detection zones and masks.")
    clips: ClipSettings = ClipSettings()
    mqtt: MqttSettings = MqttSettings()
    outbox: OutboxSettings = OutboxSettings()
    health: HealthSettings = HealthSettings()
    commands: CommandSettings = CommandSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _rooms_agree(self) -> Settings:
        ids = [zone.id for zone in self.zones]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"zones: the id {twice[0]!r} is used twice; each zone needs its own")
        if self.camera.backend == "video" and not self.camera.source:
            raise ValueError("camera.source = '': the video backend needs a path, an rtsp:// URL or a device")
        if self.clips.max_clip_s <= self.clips.pre_roll_s + self.clips.post_roll_s:
            raise ValueError("clips.max_clip_s should be longer than pre_roll_s + post_roll_s")
        return self


def load_settings(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
    patch: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings from path (TOML), the environment and $CREDENTIALS_DIRECTORY; overrides win over all.

    patch: what config/desired changed (a JSON merge patch on the file). Raises ConfigError with one line that
    names the setting, its value and what would be right.
    """
    tree = _tree(path, environ, overrides or {}, patch or {})
    try:
        return Settings(**tree)
    except ValidationError as error:
        origin = path if path is not None else "settings"
        raise ConfigError("read", origin, _in_one_line(error), hint="see docs/CONFIG.md") from None


def problems_with(
    patch: Mapping[str, Any], path: Path | None, *, environ: Mapping[str, str] = os.environ
) -> list[tuple[tuple[int | str, ...], str]]:
    """What is wrong with the settings once patch is applied: (place, what would be right)."""
    try:
        Settings(**_tree(path, environ, {}, patch))
    except ValidationError as error:
        found = []
        for problem in error.errors(include_url=False, include_input=False):
            words = "there is no such setting" if problem["type"] == "extra_forbidden" else str(problem["msg"])
            found.append((problem["loc"], words.removeprefix("Value error, ")))
        return found
    return []


def _tree(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any], patch: Mapping[str, Any]
) -> dict[str, Any]:
    tree: dict[str, Any] = _read_toml(path) if path is not None else {}
    _patch(tree, patch)
    _merge(tree, _from_environment(environ))
    _merge(tree, _from_credentials(environ))
    _merge(tree, overrides)
    return tree


def _patch(tree: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """RFC 7396: null removes, so that the default is in force; lists are replaced whole."""
    for key, value in patch.items():
        if value is None:
            tree.pop(key, None)
        elif isinstance(value, Mapping):
            inner = tree.get(key)
            tree[key] = dict(inner) if isinstance(inner, dict) else {}
            _patch(tree[key], value)
        else:
            tree[key] = value


def redacted(url: str) -> str:
    """A source or URL without its password, for logs and messages."""
    # To the last @ before the path, as FFmpeg reads it: passwords have such a letter now and then.
    return re.sub(r"(?<=://)[^/?#]*@", "***@", url)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("read", path, error, hint="config/agent.example.toml is a start") from error
    except UnicodeDecodeError as error:
        raise ConfigError("read", path, f"not UTF-8 text: {error}", hint="save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("read", path, f"not TOML: {error}") from error


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    ours = {name: value for name, value in environ.items() if name.upper().startswith(ENV_PREFIX)}
    for name in ours:
        section = name.upper().removeprefix(ENV_PREFIX).split("__")[0].lower()
        if section not in Settings.model_fields:
            known = ", ".join(Settings.model_fields)
            raise ConfigError(
                "read", f"environment variable {name}", f"no section {section!r}", hint=f"one of {known}"
            )
    if not ours:
        return {}
    # Late: its import takes 55 ms, a fifth of a short replay's start, and few set a variable.
    from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

    class Environment(Settings, BaseSettings):
        """For pydantic-settings' own reader, which does the splitting at "__" and the JSON of lists."""

        model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__")

    source = EnvSettingsSource(Environment)
    source.env_vars = {name.lower(): value for name, value in ours.items()}
    try:
        return source()
    except ValueError as error:
        raise ConfigError("read", "environment", error, hint="lists are given as JSON") from error


def _from_credentials(environ: Mapping[str, str]) -> dict[str, Any]:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    tree: dict[str, Any] = {}
    for name, (section, field) in CREDENTIALS.items() if directory else ():
        file = Path(str(directory)) / name
        if file.is_file():
            try:
                tree.setdefault(section, {})[field] = file.read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError("read", file, error) from error
    for name, (section, field) in CREDENTIAL_FILES.items() if directory else ():
        file = Path(str(directory)) / name
        if file.is_file():
            tree.setdefault(section, {})[field] = str(file)
    return tree


def _merge(tree: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def _in_one_line(error: ValidationError) -> str:
    parts = []
    for problem in error.errors(include_url=False):
        name = ".".join(str(part) for part in problem["loc"])
        words = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            parts.append(f"{name}: there is no such setting")
        elif not name:
            parts.append(words)
        else:
            shown = "***" if "password" in name else repr(problem["input"])[:80]
            parts.append(f"{name} = {shown}: {words[:1].lower()}{words[1:]}")
    return "; ".join(parts)
