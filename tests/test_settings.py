"""Settings: what is accepted, which source wins, and the one line that a bad value gets."""

from __future__ import annotations

import importlib.util
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from agent.cameras.open import pi_options
from agent.cameras.planes import lores_size
from agent.errors import ConfigError
from agent.settings import ENV_PREFIX, Settings, load_settings, redacted

ROOT = Path(__file__).resolve().parent.parent


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, ""), environ={}) == Settings()


def test_later_sources_win(tmp_path: Path) -> None:
    path = write(tmp_path, '[mqtt]\nhost = "file"\nport = 1\npassword = "file"\nusername = "file"\n')
    (tmp_path / "camera-agent.mqtt-password").write_text("credential\n")
    settings = load_settings(
        path,
        environ={
            "CAMERA_AGENT__MQTT__HOST": "environment",
            "CAMERA_AGENT__MQTT__PASSWORD": "environment",
            "CREDENTIALS_DIRECTORY": str(tmp_path),
        },
        overrides={"mqtt": {"port": 3}},
    )
    assert settings.mqtt.username == "file"
    assert settings.mqtt.host == "environment"
    assert settings.mqtt.password.get_secret_value() == "credential"
    assert settings.mqtt.port == 3


def test_lists_come_from_the_environment_as_json() -> None:
    zones = '[{"id": "a", "kind": "privacy", "polygon": [[0, 0], [1, 0], [1, 1]]}]'
    settings = load_settings(environ={"CAMERA_AGENT__ZONES": zones})
    assert settings.zones[0].polygon[1] == (1, 0)


def test_vietnamese_names_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, '[node]\nname = "Quầy một cửa số 3"\nlocation = "Phường Thuận Hòa, Huế"\n')
    assert load_settings(path, environ={}).node.name == "Quầy một cửa số 3"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[camera]\nfps = 500", "camera.fps = 500: input should be less than or equal to 60"),
        ('[camera]\nfps = "x"', "camera.fps = 'x': input should be a valid number"),
        ("[camera]\nfsp = 5", "camera.fsp: there is no such setting"),
        ("[kamera]\nfps = 5", "kamera: there is no such setting"),
        ("[camera]\nwidth = 641", "camera.width = 641: should be even"),
        ('[camera]\nbackend = "video"', "camera.source = '': the video backend needs a path"),
        ('[node]\nid = "Cửa"', "node.id = 'Cửa': string should match pattern"),
        ('[node]\ntimezone = "Hue"', "node.timezone = 'Hue': should be an IANA time zone"),
        ('[[zones]]\nid = "a"\nkind = "privacy"\npolygon = [[0,0],[1.2,0],[1,1]]', "zones.0.polygon.1.0 = 1.2"),
        ('[[zones]]\nid = "a"\nkind = "privacy"\npolygon = [[0,0],[1,0]]', "zones.0.polygon"),
        ('[[zones]]\nkind = "privacy"\npolygon = [[0,0],[1,0],[1,1]]', "zones.0.id"),
        ("[clips]\nmax_clip_s = 10\npre_roll_s = 5\npost_roll_s = 6", "clips.max_clip_s should be longer"),
        ("[mqtt\nhost = 1", "not TOML"),
        ("[mqtt]\npassword = 5", "mqtt.password = ***"),
    ],
)
def test_a_bad_file_gets_one_line_naming_setting_value_and_cure(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, text), environ={})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 78


def test_two_zones_with_one_id_are_refused() -> None:
    zone = {"id": "a", "kind": "ignore", "polygon": [[0, 0], [1, 0], [1, 1]]}
    with pytest.raises(ConfigError, match="'a' is used twice"):
        load_settings(environ={}, overrides={"zones": [zone, zone]})


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"CAMERA_AGENT__MQT__HOST": "x"}, "no section 'mqt'"),
        ({"CAMERA_AGENT__MQTT__HSOT": "x"}, "mqtt.hsot: there is no such setting"),
        ({"CAMERA_AGENT__ZONES": "[x"}, "lists are given as JSON"),
    ],
)
def test_a_bad_environment_is_refused(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ=environ)
    assert words in str(caught.value)


@pytest.mark.parametrize("make", [lambda p: p / "absent.toml", lambda p: p])
def test_an_unreadable_file_is_named(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    with pytest.raises(ConfigError, match=str(path)):
        load_settings(path, environ={})


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[node]\nname = "C\xe1fe"\n')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings(path, environ={})


def test_secrets_do_not_show_themselves() -> None:
    settings = load_settings(environ={}, overrides={"mqtt": {"password": "geheim"}})
    assert "geheim" not in repr(settings)
    assert redacted("rtsp://user:geheim@10.0.0.9/live") == "rtsp://***@10.0.0.9/live"
    assert redacted("rtsp://user:ge@heim@10.0.0.9/live@home") == "rtsp://***@10.0.0.9/live@home"
    assert redacted("/var/videos/a@b.mp4") == "/var/videos/a@b.mp4"


def generator() -> Any:
    loader = SourceFileLoader("generate", str(ROOT / "scripts/generate"))
    spec = importlib.util.spec_from_loader("generate", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_generated_documents_have_not_drifted() -> None:
    assert generator().drifted() == [], "run: .venv/bin/python scripts/generate"


def test_the_example_with_every_line_enabled_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "config/agent.example.toml").read_text(encoding="utf-8")
    lines = [
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in text.splitlines()
        if not line.endswith("# not set")
    ]
    enabled = "\n".join(lines)
    assert len(tomllib.loads(enabled)["zones"]) == 1
    settings = load_settings(write(tmp_path, enabled), environ={})
    assert settings.model_copy(update={"zones": []}) == Settings()


@pytest.mark.parametrize("camera", [{}, {"lores_width": 320}, {"fps": 10}])
def test_a_pi_camera_records_1920x1080_unless_told_otherwise(camera: dict[str, Any]) -> None:
    found = load_settings(environ={}, overrides={"camera": {"backend": "picamera2", **camera}}).camera
    assert (found.width, found.height) == (1920, 1080)
    options = pi_options(load_settings(environ={}, overrides={"camera": {"backend": "picamera2"}}))
    assert lores_size(options.width, options.height, options.lores_width, options.lores_height) == (640, 360)


def test_a_size_that_is_given_counts_from_wherever_it_comes(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('[camera]\nbackend = "picamera2"\nwidth = 1280\n')
    camera = load_settings(file, environ={}).camera
    assert (camera.width, camera.height) == (1280, 720)
    file.write_text('[camera]\nbackend = "picamera2"\n')
    environ = {f"{ENV_PREFIX}CAMERA__WIDTH": "640", f"{ENV_PREFIX}CAMERA__HEIGHT": "480"}
    camera = load_settings(file, environ=environ).camera
    assert (camera.width, camera.height) == (640, 480)
    camera = load_settings(file, environ={}, patch={"camera": {"width": 1640, "height": 1232}}).camera
    assert (camera.width, camera.height) == (1640, 1232)


@pytest.mark.parametrize("backend", ["fake", "video"])
def test_other_cameras_stay_at_1280x720(backend: str) -> None:
    camera = load_settings(environ={}, overrides={"camera": {"backend": backend, "source": "/dev/video0"}}).camera
    assert (camera.width, camera.height) == (1280, 720)


@pytest.mark.parametrize("file", sorted((ROOT / "config/boards").glob("*.toml")), ids=lambda file: file.stem)
def test_each_boards_example_is_valid(file: Path) -> None:
    settings = load_settings(file, environ={})
    assert settings.camera.backend in ("picamera2", "video")
    if file.stem in ("raspberry-pi-4", "raspberry-pi-5"):
        assert (settings.camera.width, settings.camera.height) == (1920, 1080)
