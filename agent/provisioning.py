"""What a fleet file says, and every text that follows from it: seeds, settings, broker files, sheets. Pure.

The fleet file is one TOML file per site. Keys and certificates come from site_ca; the command keeps the files.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import io
import ipaddress
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.access import mosquitto_acl, watcher_lines
from agent.errors import AgentError, ConfigError
from agent.settings import Slug, ZoneSettings, load_settings

HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$")]
ITERATIONS = 101
"""mosquitto_passwd's own count for PBKDF2; the passwords are random, so more would protect nothing."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SitePart(_Part):
    """The site. timezone: of what people read."""

    id: Slug
    name: str = Field("", max_length=120)
    timezone: str = "UTC"


class BrokerPart(_Part):
    """host: what nodes connect to. also: other names and addresses its certificate is for."""

    host: HostName
    also: list[HostName] = []
    port: int = Field(8883, ge=1, le=65535)
    people_port: int = Field(8884, ge=1, le=65535)
    root: str = "edgecam"


class InstallerPart(_Part):
    """Who may log in to a node: keys only, there is no password. keyboard: of a screen at the board."""

    user: Slug = "installer"
    ssh_keys: list[str] = Field([], max_length=20)
    release_key: str = Field("", description="Path of the public key that packages are signed with.")


def _interface(text: str) -> str:
    if "/" not in text:
        raise ValueError("should be an address with its prefix, such as 192.0.2.21/24")
    ipaddress.ip_interface(text)
    return text


def _address(text: str) -> str:
    ipaddress.ip_address(text)
    return text


Address = Annotated[str, AfterValidator(_address)]


class NetworkPart(_Part):
    """A fixed address of one node; without, DHCP."""

    address: Annotated[str, AfterValidator(_interface)]
    gateway: Address | Literal[""] = ""
    dns: list[Address] = []


class NodePart(_Part):
    """One node. settings: what differs from the fleet's settings, in sections as in agent.toml."""

    id: Slug
    name: str = Field("", max_length=120)
    location: str = Field("", max_length=200)
    network: NetworkPart | None = None
    zones: list[ZoneSettings] = []
    settings: dict[str, dict[str, Any]] = {}


class ConsumerPart(_Part):
    """A dashboard or Home Assistant: reads everything of the site. commands: may also send some."""

    id: Slug
    commands: bool = False


class Fleet(_Part):
    """One site's fleet file."""

    site: SitePart
    broker: BrokerPart
    installer: InstallerPart = InstallerPart()
    settings: dict[str, dict[str, Any]] = {}
    nodes: list[NodePart] = Field(min_length=1, max_length=2000)
    consumers: list[ConsumerPart] = []

    @model_validator(mode="after")
    def _ids_differ(self) -> Fleet:
        for what, ids in (("nodes", [n.id for n in self.nodes]), ("consumers", [c.id for c in self.consumers])):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            if twice:
                raise ValueError(f"{what}: the id {twice[0]!r} is used twice")
        if self.site.id in [consumer.id for consumer in self.consumers]:
            # A consumer's own name in the access list's %u would otherwise be the site's branch of topics.
            raise ValueError(f"consumers: {self.site.id!r} is the site's id")
        return self


def read_fleet(tree: Mapping[str, Any], origin: object) -> Fleet:
    """Raises ConfigError naming what is wrong; each node's settings are tried as the agent would read them."""
    try:
        fleet = Fleet.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        # A missing one has its section for input, which says nothing.
        given = "" if problem["type"] == "missing" or not where else f" = {str(problem['input'])[:80]!r}"
        words = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(
            "read", origin, f"{where}{given}: {words}".lstrip(": "), hint="see config/fleet.example.toml"
        ) from None
    for node in fleet.nodes:
        try:
            load_settings(environ={}, overrides=settings_of(fleet, node))
        except AgentError as error:
            raise ConfigError("read", origin, f"node {node.id}: {error.cause}", hint="see docs/CONFIG.md") from error
    return fleet


# -- the node's own files


def settings_of(fleet: Fleet, node: NodePart) -> dict[str, Any]:
    tree: dict[str, Any] = {name: dict(values) for name, values in fleet.settings.items()}
    for name, values in node.settings.items():
        tree[name] = {**tree.get(name, {}), **values}
    tree["node"] = {
        **tree.get("node", {}),
        "id": node.id,
        "site": fleet.site.id,
        "name": node.name,
        "location": node.location,
        "timezone": fleet.site.timezone,
    }
    tree["mqtt"] = {
        **tree.get("mqtt", {}),
        "host": fleet.broker.host,
        "port": fleet.broker.port,
        "root": fleet.broker.root,
        "tls": True,
    }
    if node.zones:
        tree["zones"] = [json.loads(zone.model_dump_json(exclude_unset=True)) for zone in node.zones]
    return tree


def agent_toml(fleet: Fleet, node: NodePart) -> str:
    head = f"# {node.id} of {fleet.site.id}, made by camera-agent provision. Secrets are credentials, not here.\n\n"
    return head + tomlkit.dumps(settings_of(fleet, node))


def host_name(fleet: Fleet, node: NodePart) -> str:
    """At most 63 characters, as a host name may have."""
    return f"{fleet.site.id}-{node.id}"[:63].rstrip("-")


def user_data(fleet: Fleet, node: NodePart) -> str:
    """cloud-init's. JSON is YAML, and needs no quoting rules of our own. No secrets: they lie beside it as files."""
    tree: dict[str, Any] = {
        "hostname": host_name(fleet, node),
        "manage_etc_hosts": True,
        "timezone": fleet.site.timezone,
        "ssh_pwauth": False,
        "users": [_user(fleet)],
        "runcmd": [["bash", "/boot/firmware/camera-agent/first-boot"]],
    }
    return "#cloud-config\n" + json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _user(fleet: Fleet) -> dict[str, Any]:
    return {
        "name": fleet.installer.user,
        "groups": ["sudo", "adm", "video"],
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
        "ssh_authorized_keys": fleet.installer.ssh_keys,
    }


def network_config(node: NodePart) -> str:
    link: dict[str, Any] = {"match": {"name": "e*"}, "optional": True}
    if node.network is None:
        link["dhcp4"] = True
    else:
        link["addresses"] = [node.network.address]
        if node.network.gateway:
            link["routes"] = [{"to": "default", "via": node.network.gateway}]
        if node.network.dns:
            link["nameservers"] = {"addresses": node.network.dns}
    return json.dumps({"version": 2, "ethernets": {"wired": link}}, indent=2) + "\n"


def nmconnection(network: NetworkPart) -> str:
    """The same for Bookworm, whose NetworkManager reads no network-config."""
    own, other = ("ipv6", "ipv4") if ":" in network.address else ("ipv4", "ipv6")
    lines = ["[connection]", "id=camera-agent", "type=ethernet", "", f"[{own}]", "method=manual"]
    lines.append(f"address1={network.address}")
    lines += [f"gateway={network.gateway}"] if network.gateway else []
    lines += [f"dns={''.join(f'{server};' for server in network.dns)}"] if network.dns else []
    return "\n".join([*lines, "", f"[{other}]", "method=auto", ""])


def meta_data(fleet: Fleet, node: NodePart, seed: Mapping[str, bytes]) -> str:
    """The instance id is new whenever anything of the seed is: cloud-init does nothing for an id it has seen."""
    digest = hashlib.sha256()
    for name in sorted(seed):
        digest.update(f"{name}\0{len(seed[name])}\0".encode() + seed[name])
    tree = {"instance-id": f"{host_name(fleet, node)}-{digest.hexdigest()[:12]}"}
    return json.dumps(tree) + "\n"


# -- the broker's files


def acl(fleet: Fleet) -> str:
    """A node's user name is site/node, from its certificate; what it may do follows from the name."""
    root, site = fleet.broker.root, fleet.site.id
    return mosquitto_acl(
        [(site, node.id) for node in fleet.nodes],
        root=root,
        watchers=[
            watcher_lines(consumer.id, root, site=site, may_command=consumer.commands) for consumer in fleet.consumers
        ],
    )


def mosquitto_conf(fleet: Fleet, directory: str) -> str:
    return f"""# Made by camera-agent provision; put this directory's files into {directory}.
per_listener_settings false
allow_anonymous false
acl_file {directory}/acl
password_file {directory}/passwords
persistence true
persistence_location /var/lib/mosquitto/
# Its own values lose what it acknowledged: saved each half hour only, and 1000 messages for who is away.
autosave_interval 5
max_queued_messages 100000
max_queued_bytes 1000000000
max_packet_size 2097152
max_inflight_messages 100
set_tcp_nodelay true

# Nodes: each with its own certificate of the site's CA, whose name is its user name. No passwords.
listener {fleet.broker.port}
cafile {directory}/ca.crt
certfile {directory}/server.crt
keyfile {directory}/server.key
crlfile {directory}/revoked.crl
require_certificate true
use_identity_as_username true
tls_version tlsv1.2

# People: dashboards and Home Assistant, with a password each, over TLS.
listener {fleet.broker.people_port}
cafile {directory}/ca.crt
certfile {directory}/server.crt
keyfile {directory}/server.key
tls_version tlsv1.2
"""


def password_line(user: str, password: str, before: str = "") -> str:
    """A line of mosquitto's password file; before, when it is a line for the same password."""
    name, _, stored = before.partition(":")
    parts = stored.split("$")
    if name == user and len(parts) == 5 and hmac.compare_digest(stored, _hashed(password, parts[3])):
        return before
    return f"{user}:{_hashed(password, _base64(secrets.token_bytes(12)))}"


def _hashed(password: str, salt: str) -> str:
    import base64

    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), base64.b64decode(salt), ITERATIONS, 64)
    return f"$7${ITERATIONS}${salt}${_base64(digest)}"


def _base64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode()


# -- the sheet

CONFIG = "--config /etc/camera-agent/agent.toml"


def sheet(fleet: Fleet, node: NodePart) -> str:
    """One page for the installer, by itself a section of sheets.html."""
    rows = {
        "Site": f"{fleet.site.name or fleet.site.id}",
        "Place": node.location,
        "Id": f"{fleet.site.id}/{node.id}",
        "Host name": host_name(fleet, node),
        "Address": node.network.address if node.network else "DHCP",
        "Broker": f"{fleet.broker.host}:{fleet.broker.port}",
        "Zones": ", ".join(zone.name or zone.id for zone in node.zones) or "whole picture",
    }
    table = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    steps: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("Flash Raspberry Pi OS Lite; copy this node's folder boot/ onto the card's boot partition.", ()),
        ("Mount it, connect camera and network, power on; the first boot takes some minutes. Then, on the node:", ()),
        ("Everything says pass:", ("sudo systemctl stop camera-agent", f"sudo camera-agent-as check {CONFIG}")),
        ("Walk through the picture five times:", (f"sudo camera-agent-as aim {CONFIG} --walk 5",)),
        ("And leave it running:", ("sudo systemctl start camera-agent",)),
    )
    boxes = ""
    for words, commands in steps:
        typed = "".join(f"<code>{html.escape(command)}</code>" for command in commands)
        boxes += f"<li>&#9744; {html.escape(words)}{typed}</li>"
    return (
        f"<section><div class=head><div><h1>{html.escape(node.name or node.id)}</h1><table>{table}</table></div>"
        f"{_qr(f'camera-agent:{fleet.site.id}/{node.id}')}</div><ol>{boxes}</ol>"
        "<p>Date ____________ &nbsp; Installer ____________________ &nbsp; Height ______ m &nbsp; Checked &#9744;</p>"
        "</section>"
    )


def sheets_html(fleet: Fleet, sections: list[str]) -> str:
    title = html.escape(fleet.site.name or fleet.site.id)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:14px/1.5 sans-serif;margin:2em}section{page-break-after:always;max-width:48em}"
        ".head{display:flex;justify-content:space-between;gap:2em}h1{font-size:26px;margin:0 0 .4em}"
        "th{text-align:left;padding-right:1.5em;font-weight:600;white-space:nowrap;vertical-align:top}"
        "ol{list-style:none;padding:0;margin:1.5em 0}li{margin:.6em 0}"
        "code{display:block;margin:.2em 0 0 1.6em;white-space:nowrap}svg{width:150px;height:150px;flex:none}</style>"
        + "\n".join(sections)
        + "</html>\n"
    )


def firstrun(fleet: Fleet, node: NodePart) -> str:
    """Bookworm's first boot, which knows no cloud-init: run once by systemd.run= on the kernel's command line."""
    keys = "".join(f"{key}\n" for key in fleet.installer.ssh_keys)
    user = fleet.installer.user
    return f"""#!/bin/bash
# For Raspberry Pi OS Bookworm. Append to the line in cmdline.txt on the boot partition:
#   systemd.run=/boot/firmware/firstrun.sh systemd.run_success_action=reboot systemd.unit=kernel-command-line.target
set -u
echo {host_name(fleet, node)} > /etc/hostname
sed -i 's/^127[.]0[.]1[.]1.*/127.0.1.1 {host_name(fleet, node)}/' /etc/hosts
ln -sf /usr/share/zoneinfo/{fleet.site.timezone} /etc/localtime
id {user} >/dev/null 2>&1 || useradd -m -s /bin/bash -G sudo,adm,video {user}
install -d -m 700 -o {user} -g {user} /home/{user}/.ssh
cat > /home/{user}/.ssh/authorized_keys <<'KEYS'
{keys}KEYS
chown {user}:{user} /home/{user}/.ssh/authorized_keys
chmod 600 /home/{user}/.ssh/authorized_keys
echo '{user} ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/010_{user}
{_fixed_address(node)}systemctl enable ssh 2>/dev/null
NO_START=1 bash /boot/firmware/camera-agent/first-boot > /var/log/camera-agent-first-boot.log 2>&1
sed -i 's| systemd.run=.*||' /boot/firmware/cmdline.txt
rm -f /boot/firmware/firstrun.sh
exit 0
"""


def _fixed_address(node: NodePart) -> str:
    """firstrun.sh's lines for it; none for DHCP, which NetworkManager does by itself."""
    if node.network is None:
        return ""
    file = "/etc/NetworkManager/system-connections/camera-agent.nmconnection"
    return f"install -D -m 600 /dev/stdin {file} <<'NETWORK'\n{nmconnection(node.network)}NETWORK\n"


def _qr(text: str) -> str:
    import segno

    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(out, kind="svg", xmldecl=False, svgns=True, scale=4, border=2)
    return out.getvalue().decode().strip()
