"""One fleet file becomes cards, certificates, sheets and a broker's files; a real mosquitto takes them."""

from __future__ import annotations

import configparser
import contextlib
import io
import json
import os
import re
import ssl
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
import tomlkit
from broker import Mosquitto, free_port, requires_mosquitto, until
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

import agent.cli.provision
from agent import provisioning as make
from agent.cli import main
from agent.disk import Disk
from agent.errors import ConfigError
from agent.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "config/fleet.example.toml"


def fleet_file(directory: Path, change: dict[str, Any] | None = None) -> Path:
    tree = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    tree["broker"]["host"] = "127.0.0.1"
    tree.update(change or {})
    path = directory / "fleet.toml"
    path.write_text(tomlkit.dumps(tree), encoding="utf-8")
    return path


def provision(fleet: Path, out: Path, *more: str) -> list[str]:
    """The lines it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(["provision", str(fleet), "--out", str(out), *more])
    assert code == 0, said.getvalue()
    return said.getvalue().splitlines()


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("fleet")
    fleet = fleet_file(directory)
    provision(fleet, directory / "out")
    return fleet, directory / "out"


NODES = [node["id"] for node in tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))["nodes"]]


def test_each_node_gets_settings_that_the_agent_reads(made: tuple[Path, Path]) -> None:
    for node in NODES:
        settings = load_settings(made[1] / f"nodes/{node}/boot/camera-agent/agent.toml", environ={})
        assert (settings.node.id, settings.node.site) == (node, "phuong-thuan-hoa")
        assert settings.node.timezone == "Asia/Ho_Chi_Minh"
        assert settings.mqtt.tls
        assert settings.clips.budget_mb == 12000
    door = load_settings(made[1] / "nodes/cua-chinh/boot/camera-agent/agent.toml", environ={})
    assert door.node.name == "Cửa chính"
    assert [zone.kind for zone in door.zones] == ["detect", "privacy"]
    upstairs = load_settings(made[1] / "nodes/hanh-lang-2/boot/camera-agent/agent.toml", environ={})
    assert upstairs.detection.sensitivity == 60


def test_cloud_init_gets_a_name_a_network_and_an_id_that_no_other_card_has(made: tuple[Path, Path]) -> None:
    ids = set()
    for node in NODES:
        boot = made[1] / f"nodes/{node}/boot"
        user_data = boot.joinpath("user-data").read_text(encoding="utf-8")
        assert user_data.startswith("#cloud-config\n")
        tree = json.loads(user_data.partition("\n")[2])
        assert tree["hostname"] == f"phuong-thuan-hoa-{node}"
        assert tree["users"][0]["lock_passwd"]
        ids.add(json.loads(boot.joinpath("meta-data").read_text())["instance-id"])
        assert json.loads(boot.joinpath("network-config").read_text())["version"] == 2
        subprocess.run(["bash", "-n", boot / "firstrun.sh"], check=True)
        subprocess.run(["bash", "-n", boot / "camera-agent/first-boot"], check=True)
    assert len(ids) == len(NODES)


def test_no_key_is_readable_by_others_for_a_moment_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets its name before its mode is set: a power cut between would leave it as it was made."""
    modes: dict[str, int] = {}

    class WatchedDisk(Disk):
        def rename(self, old: Path, new: Path) -> None:
            modes[new.name] = stat.S_IMODE(old.stat().st_mode)
            super().rename(old, new)

    monkeypatch.setattr(agent.cli.provision, "Disk", WatchedDisk)
    umask = os.umask(0o022)
    try:
        provision(fleet_file(tmp_path), tmp_path / "out")
    finally:
        assert os.umask(umask) == 0o022, "whoever called it has its own umask back"
    assert {"ca.key", "server.key", "key.pem", "mqtt-key", "passwords"} <= set(modes)
    assert not [name for name, mode in modes.items() if mode & 0o077]


def test_bookworms_first_boot_sets_the_fixed_address_too(made: tuple[Path, Path], tmp_path: Path) -> None:
    """As NetworkManager 1.52 read it (nmcli --offline); network-config is cloud-init's alone."""
    script = (made[1] / "nodes/cua-chinh/boot/firstrun.sh").read_text(encoding="utf-8")
    (part,) = re.findall(r"^install -D -m 600 /dev/stdin .*?^NETWORK$", script, re.MULTILINE | re.DOTALL)
    assert "nmconnection" not in (made[1] / "nodes/quay-mot-cua/boot/firstrun.sh").read_text(), "DHCP needs none"
    subprocess.run(["bash", "-euc", part.replace("/etc/", f"{tmp_path}/")], check=True)
    (file,) = tmp_path.rglob("*.nmconnection")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "NetworkManager ignores one that others may read"
    told = configparser.ConfigParser()
    told.read(file)
    assert dict(told["ipv4"]) == {
        "method": "manual",
        "address1": "192.0.2.21/24",
        "gateway": "192.0.2.1",
        "dns": "192.0.2.1;",
    }
    assert told["connection"]["type"] == "ethernet"


@pytest.mark.parametrize(
    "network",
    [
        {"address": "192.0.2.21"},
        {"address": "192.0.2.999/24"},
        {"address": "192.0.2.21/99"},
        {"address": "192.0.2.21/24", "gateway": "192.0.2"},
        {"address": "192.0.2.21/24", "dns": ["192.0.2.1\nNETWORK"]},
    ],
)
def test_an_address_that_is_none_is_refused_with_its_value(network: dict[str, Any]) -> None:
    tree = tomllib.loads(EXAMPLE.read_text(encoding="utf-8")) | {"nodes": [{"id": "a", "network": network}]}
    with pytest.raises(ConfigError, match=r"nodes.0.network.\w+.* = '192.0.2"):
        make.read_fleet(tree, "fleet.toml")


def test_no_secret_is_shared_and_none_is_in_a_file_that_others_may_read(made: tuple[Path, Path]) -> None:
    contents = files(made[1])
    keys = {content for name, content in contents.items() if name.endswith(("mqtt-key", ".key", "key.pem"))}
    assert len(keys) == len(NODES) + 2, "each node's own, the broker's and the CA's"
    for name, content in contents.items():
        if b"PRIVATE KEY" in content or name.endswith((".password", "passwords")):
            assert stat.S_IMODE((made[1] / name).stat().st_mode) == 0o600, name
    for node in NODES:
        seed = b"".join(
            content
            for name, content in contents.items()
            if name.startswith(f"nodes/{node}/boot/") and "mqtt-key" not in name
        )
        assert b"PRIVATE KEY" not in seed
    passwords = [content for name, content in contents.items() if name.endswith(".password")]
    assert len(set(passwords)) == len(passwords) == 2


def test_a_second_run_changes_nothing(made: tuple[Path, Path]) -> None:
    before = files(made[1])
    assert provision(*made)[-1].startswith("5 nodes, 0 changes")
    assert changed(before, files(made[1])) == set()


def test_what_changes_for_one_node_changes_only_its_files(tmp_path: Path) -> None:
    fleet = fleet_file(tmp_path)
    provision(fleet, tmp_path / "out")
    before = files(tmp_path / "out")
    fleet.write_text(fleet.read_text(encoding="utf-8").replace("Kho lưu trữ", "Kho mới"), encoding="utf-8")
    provision(fleet, tmp_path / "out")
    assert changed(before, files(tmp_path / "out")) == {
        "nodes/kho-luu-tru/boot/camera-agent/agent.toml",
        "nodes/kho-luu-tru/boot/meta-data",
        "nodes/kho-luu-tru/sheet.html",
        "sheets.html",
    }


def test_adding_a_node_touches_no_other_and_tells_the_broker(tmp_path: Path) -> None:
    fleet = fleet_file(tmp_path)
    provision(fleet, tmp_path / "out")
    before = files(tmp_path / "out")
    fleet.write_text(fleet.read_text(encoding="utf-8") + '\n[[nodes]]\nid = "san"\n', encoding="utf-8")
    provision(fleet, tmp_path / "out")
    touched = {name for name in changed(before, files(tmp_path / "out")) if not name.startswith("nodes/san/")}
    assert touched == {"sheets.html", "broker/acl"}


def test_replacing_revoking_and_forgetting_a_node(tmp_path: Path) -> None:
    fleet, out = fleet_file(tmp_path), tmp_path / "out"
    provision(fleet, out)
    key = out / "nodes/kho-luu-tru/key.pem"
    first = key.read_bytes()
    meta = (out / "nodes/kho-luu-tru/boot/meta-data").read_bytes()
    provision(fleet, out, "--replace", "kho-luu-tru")
    assert key.read_bytes() != first
    assert (out / "nodes/kho-luu-tru/boot/meta-data").read_bytes() != meta, "else cloud-init would do nothing"
    assert len(json.loads((out / "provisioned.json").read_text())["revoked"]) == 1
    provision(fleet, out, "--revoke", "kho-luu-tru")
    assert not key.exists()
    assert "kho-luu-tru" not in (out / "broker/acl").read_text()
    provision(fleet, out)
    assert not key.exists(), "revoked stays revoked"
    provision(fleet, out, "--replace", "kho-luu-tru")
    assert key.exists()
    text = fleet.read_text(encoding="utf-8")
    fleet.write_text(text.replace('id = "hanh-lang-2"', 'id = "hanh-lang-3"'), encoding="utf-8")
    assert any("hanh-lang-2: no longer in the fleet file" in line for line in provision(fleet, out))
    assert len(json.loads((out / "provisioned.json").read_text())["revoked"]) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": []}, "nodes"),
        ({"nodes": [{"id": "a"}, {"id": "a"}]}, "'a' is used twice"),
        ({"nodes": [{"id": "Cửa"}]}, "nodes.0.id"),
        ({"nodes": [{"id": "a", "settings": {"camera": {"fps": 500}}}]}, "camera.fps = 500"),
        ({"settings": {"camera": {"nope": 1}}}, "there is no such setting"),
        ({"consumers": [{"id": "phuong-thuan-hoa"}]}, "is the site's id"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_fleet_file_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    tree = tomllib.loads(EXAMPLE.read_text(encoding="utf-8")) | change
    with pytest.raises(ConfigError) as refusal:
        make.read_fleet(tree, "fleet.toml")
    assert words in str(refusal.value)


def test_a_directory_of_another_site_or_without_its_ca_is_not_touched(tmp_path: Path) -> None:
    fleet, out = fleet_file(tmp_path), tmp_path / "out"
    provision(fleet, out)
    other = fleet_file(tmp_path, {"site": {"id": "other"}})
    assert main(["provision", str(other), "--out", str(out)]) == 78
    fleet_file(tmp_path)
    (out / "site/ca.key").unlink()
    assert main(["provision", str(fleet), "--out", str(out)]) == 1


@pytest.mark.parametrize("name", ["site/ca.key", "nodes/cua-chinh/certificate.pem", "nodes/cua-chinh/serial"])
def test_a_damaged_file_is_named_and_nothing_is_made_from_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, out = fleet_file(tmp_path), tmp_path / "out"
    provision(fleet, out)
    (out / name).write_text("zz")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["provision", str(fleet), "--out", str(out)]) == 78
    assert Path(name).stem in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_password_line_is_kept_while_the_password_is() -> None:
    line = make.password_line("dashboard", "word")
    assert make.password_line("dashboard", "word", line) == line
    assert make.password_line("dashboard", "other", line) != line
    assert make.password_line("someone", "word", line) != line


def test_the_sheet_shows_the_node_to_people_and_no_markup_of_theirs(made: tuple[Path, Path]) -> None:
    page = (made[1] / "nodes/cua-chinh/sheet.html").read_text(encoding="utf-8")
    assert "<h1>Cửa chính</h1>" in page
    assert "Sảnh tầng 1" in page
    assert "<svg" in page
    fleet = make.read_fleet(tomllib.loads(EXAMPLE.read_text(encoding="utf-8")), "x")
    node = fleet.nodes[0].model_copy(update={"name": "<script>x</script>"})
    assert "<script>" not in make.sheet(fleet, node)


# -- a real broker with the files that were made


@contextlib.contextmanager
def fleet_broker(tmp_path: Path, made: tuple[Path, Path]) -> Iterator[tuple[int, int]]:
    """mosquitto on the fleet's own configuration. Yields the nodes' port and the people's port."""
    ports = (free_port(), free_port())
    out = made[1]
    provision(*made)
    where = tmp_path / "mosquitto"
    where.mkdir()
    for file in (out / "broker").iterdir():
        (where / file.name).write_bytes(file.read_bytes())
        (where / file.name).chmod(0o600)
    text = (where / "mosquitto.conf").read_text().replace("/etc/mosquitto/camera-agent", str(where))
    text = text.replace("listener 8883", f"listener {ports[0]} 127.0.0.1").replace(
        "listener 8884", f"listener {ports[1]} 127.0.0.1"
    )
    text = text.replace("persistence true", "persistence false\nuser root")
    (where / "mosquitto.conf").write_text(text)
    process = subprocess.Popen(
        [Mosquitto(tmp_path / "unused")._binary, "-c", str(where / "mosquitto.conf")], stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        assert process.poll() is None
        return (
            tries(ports[1], None, ("dashboard", (out / "consumers/dashboard.password").read_text().strip()))
            == "accepted"
        )

    try:
        until(answers, "mosquitto takes the fleet's files")
        yield ports
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def broker(tmp_path: Path, made: tuple[Path, Path]) -> Iterator[tuple[int, int]]:
    with fleet_broker(tmp_path, made) as ports:
        yield ports


def tries(
    port: int, certificate: tuple[Path, Path] | None, user: tuple[str, str] | None = None, topic: str = ""
) -> str:
    """accepted or refused: a connection, and one QoS 1 publish to topic if given."""
    ca = make_ca.get("ca")
    assert ca is not None
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    context = ssl.create_default_context(cafile=str(ca))
    if certificate is not None:
        context.load_cert_chain(*certificate)
    client.tls_set_context(context)
    if user is not None:
        client.username_pw_set(*user)
    said: list[str] = []
    client.on_connect = lambda *args: said.append("refused" if args[3].is_failure else "accepted")
    client.on_publish = lambda *args: said.append("refused" if args[3].is_failure else "published")
    try:
        client.connect("127.0.0.1", port)
        for _ in range(100):
            if said or client.loop(0.1) != paho.MQTT_ERR_SUCCESS:
                break
        if topic and said == ["accepted"]:
            client.publish(topic, b"x", qos=1)
            for _ in range(100):
                client.loop(0.1)
                if len(said) > 1:
                    break
        return said[-1] if said else "refused"
    except OSError:
        return "refused"
    finally:
        client.disconnect()


make_ca: dict[str, Path] = {}


@pytest.fixture(autouse=True)
def ca_of_the_fleet(made: tuple[Path, Path]) -> None:
    make_ca["ca"] = made[1] / "site/ca.crt"


@requires_mosquitto
def test_a_node_gets_in_with_its_certificate_and_writes_its_own_topics_only(
    broker: tuple[int, int], made: tuple[Path, Path]
) -> None:
    port = broker[0]
    door = (made[1] / "nodes/cua-chinh/certificate.pem", made[1] / "nodes/cua-chinh/key.pem")
    base = "edgecam/v1/phuong-thuan-hoa"
    assert tries(port, door, topic=f"{base}/cua-chinh/event") == "published"
    assert tries(port, door, topic="homeassistant/device/phuong-thuan-hoa_cua-chinh/config") == "published"
    assert tries(port, door, topic=f"{base}/kho-luu-tru/event") == "refused"
    assert tries(port, door, topic=f"{base}/kho-luu-tru/cmd/restart") == "refused"
    assert tries(port, door, topic=f"{base}/cua-chinh/cmd/restart") == "refused"
    assert tries(port, door, topic=f"{base}/cua-chinh/commissioning") == "published"
    assert tries(port, None) == "refused"


@requires_mosquitto
def test_people_get_in_with_their_own_password_and_write_commands_only_where_allowed(
    broker: tuple[int, int], made: tuple[Path, Path]
) -> None:
    port = broker[1]
    words = {
        name: (made[1] / f"consumers/{name}.password").read_text().strip() for name in ("dashboard", "homeassistant")
    }
    command = "edgecam/v1/phuong-thuan-hoa/cua-chinh/cmd/ping"
    assert tries(port, None, ("dashboard", words["dashboard"]), command) == "published"
    assert tries(port, None, ("homeassistant", words["homeassistant"]), command) == "refused"
    assert tries(port, None, ("dashboard", words["homeassistant"])) == "refused"
    assert tries(port, None) == "refused"


@requires_mosquitto
def test_a_revoked_certificate_opens_nothing(tmp_path: Path, made: tuple[Path, Path]) -> None:
    fleet, out = made
    stolen = tmp_path / "stolen"
    stolen.mkdir()
    for name in ("certificate.pem", "key.pem"):
        (stolen / name).write_bytes((out / "nodes/hanh-lang-1" / name).read_bytes())
    provision(fleet, out, "--replace", "hanh-lang-1")
    with fleet_broker(tmp_path, made) as (port, _):
        assert tries(port, (stolen / "certificate.pem", stolen / "key.pem")) == "refused"
        new = (out / "nodes/hanh-lang-1/certificate.pem", out / "nodes/hanh-lang-1/key.pem")
        assert tries(port, new) == "accepted"


def test_the_example_has_five_nodes_with_names_for_people() -> None:
    fleet = make.read_fleet(tomllib.loads(EXAMPLE.read_text(encoding="utf-8")), EXAMPLE)
    assert len(fleet.nodes) == 5
    assert all(node.name and node.location for node in fleet.nodes)


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*/*.toml")), ids=lambda path: path.name)
def test_every_example_is_read_by_the_agent(path: Path) -> None:
    load_settings(path, environ={})


def test_the_broker_gets_the_settings_without_which_it_loses_messages() -> None:
    """As docs/MQTT.md tells people to set them."""
    text = (ROOT / "docs/MQTT.md").read_text(encoding="utf-8")
    table = text.partition("## Settings of the broker that lose messages")[2].partition("(First two lines")[0]
    fleet = make.read_fleet(tomllib.loads(EXAMPLE.read_text(encoding="utf-8")), EXAMPLE)
    lines = make.mosquitto_conf(fleet, "/etc/mosquitto/camera-agent").splitlines()
    wanted = re.findall(
        r"`((?:persistence|autosave_interval|set_tcp_nodelay) [^`]+)`[, ]", table.replace("`,", "` ,")
    )
    wanted += [f"max_queued_messages {re.findall('`([0-9]+)`', table)[0]}"]
    told = [setting for each in wanted for setting in each.split(", ") if setting != "persistence false"]
    assert {"persistence true", "autosave_interval 5", "set_tcp_nodelay true"} <= set(told)
    assert set(told) <= set(lines)


def test_the_brokers_example_is_what_provision_makes_of_the_example_fleet() -> None:
    fleet = make.read_fleet(tomllib.loads(EXAMPLE.read_text(encoding="utf-8")), EXAMPLE)
    directory = ROOT / "config/mosquitto"
    assert (directory / "mosquitto.conf").read_text() == make.mosquitto_conf(fleet, "/etc/mosquitto/camera-agent")
    assert (directory / "acl").read_text() == make.acl(fleet)
