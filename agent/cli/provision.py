"""`camera-agent provision`: from one fleet file every node's card, certificate and sheet, and the broker's files.

Keeps what it made in the output directory: running it again changes only what changed in the fleet file.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import secrets
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agent import provisioning as make
from agent.disk import Disk
from agent.errors import CommandError, ConfigError, StorageError
from agent.provisioning import Fleet, NodePart
from agent.site_ca import Issued, hosts_of, is_whole, issue, new_ca, revocations

HELP = "make every node's card, certificate and sheet, and the broker's files, from one fleet file"

BROKER_DIRECTORY = "/etc/mosquitto/camera-agent"
SECRET_MODE = 0o600


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fleet", type=Path, metavar="FLEET.toml", help="see config/fleet.example.toml")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="holds everything made, and the CA's key"
    )
    parser.add_argument(
        "--replace", metavar="NODE", help="a new certificate for this node's new board; the old is revoked"
    )
    parser.add_argument(
        "--revoke", metavar="NODE", help="a stolen node: its certificate is worth nothing from now on"
    )
    parser.add_argument("--new-password", metavar="CONSUMER", help="a new password for this dashboard")
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="what scripts/make-package made; put on every card"
    )


def run(args: argparse.Namespace) -> int:
    fleet = make.read_fleet(_read_toml(args.fleet), args.fleet)
    known = [node.id for node in fleet.nodes]
    for name in (args.replace, args.revoke):
        if name is not None and name not in known:
            raise ConfigError("find", f"node {name}", f"not in {args.fleet}", hint="nodes: " + ", ".join(known))
    if args.replace is not None and args.replace == args.revoke:
        raise ConfigError("use", f"--replace and --revoke {args.replace}", "both at once", hint="one of them")
    if args.new_password is not None and args.new_password not in [each.id for each in fleet.consumers]:
        raise ConfigError("find", f"consumer {args.new_password}", f"not in {args.fleet}")
    work = Provision(fleet, args.fleet, args.out, args.bundle)
    # No key is readable by others, not even for a moment before its mode is set.
    umask = os.umask(0o077)
    try:
        work.run(replace=args.replace, revoke=args.revoke, new_password=args.new_password)
    finally:
        os.umask(umask)
    for line in work.changes:
        print(line)
    print(f"{len(fleet.nodes)} nodes, {len(work.changes)} changes; everything is in {args.out}")
    return 0


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("read", path, error, hint="config/fleet.example.toml is a start") from error


class Provision:
    """One run over one output directory. changes: what was made new, in words."""

    def __init__(self, fleet: Fleet, origin: Path, out: Path, bundle: Path | None) -> None:
        self._fleet, self._origin, self._out, self._bundle = fleet, origin, out, bundle
        self._disk = Disk()
        self._now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        self._revoked: list[int] = []
        self._away: set[str] = set()
        self.changes: list[str] = []

    def run(self, *, replace: str | None, revoke: str | None, new_password: str | None) -> None:
        try:
            self._disk.make_directory(self._out)
            self._out.chmod(0o700)
        except (StorageError, OSError) as error:
            words = error.cause if isinstance(error, StorageError) else error
            raise ConfigError("use", f"--out {self._out}", words, hint="a directory that may be written") from error
        self._load_state()
        ca = self._ca()
        known = {node.id for node in self._fleet.nodes}
        directory = self._out / "nodes"
        for gone in (
            sorted(path.name for path in directory.iterdir() if path.name not in known) if directory.is_dir() else ()
        ):
            self._revoke(gone)
            self._away.discard(gone)
            self.changes.append(f"{gone}: no longer in the fleet file; its certificate is revoked")
        if replace is not None:
            self._revoke(replace)
            self._away.discard(replace)
        if revoke is not None:
            self._revoke(revoke)
            self._away.add(revoke)
            self.changes.append(f"{revoke}: revoked until --replace {revoke}; give the broker its files again")
        sections = []
        for node in tqdm(self._fleet.nodes, unit="node", disable=not sys.stderr.isatty(), leave=False):
            if node.id not in self._away:
                self._node(ca, node)
                sections.append(make.sheet(self._fleet, node))
        self._write("sheets.html", make.sheets_html(self._fleet, sections).encode())
        self._broker(ca, new_password)
        self._save_state()

    # -- state: what cannot be read off the files

    def _load_state(self) -> None:
        path = self._out / "provisioned.json"
        if not path.exists():
            return
        try:
            tree = json.loads(path.read_bytes())
            self._revoked = [int(serial, 16) for serial in tree["revoked"]]
            self._away = set(tree["away"])
            site = tree["site"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                "read", path, error, hint="restore it from a backup: it knows what is revoked"
            ) from error
        if site != self._fleet.site.id:
            raise ConfigError("use", self._out, f"it belongs to the site {site}", hint="give each site a directory")

    def _save_state(self) -> None:
        tree = {
            "site": self._fleet.site.id,
            "revoked": [f"{serial:x}" for serial in self._revoked],
            "away": sorted(self._away),
        }
        self._write("provisioned.json", json.dumps(tree, indent=2).encode() + b"\n")

    def _revoke(self, node: str) -> None:
        """Its certificate's serial number is on the disk before anything of it goes."""
        path = self._out / "nodes" / node
        serial = path / "serial"
        if serial.exists():
            number = serial_in(serial)
            if number not in self._revoked:
                self._revoked.append(number)
            self._save_state()
        shutil.rmtree(path, ignore_errors=True)

    # -- files

    def _write(self, name: str, content: bytes, *, mode: int = 0o640) -> bool:
        """Only when it differs; durable. True when it did."""
        path = self._out / name
        if path.exists() and path.read_bytes() == content:
            return False
        self._disk.make_directory(path.parent)
        self._disk.write_whole(path, content)
        path.chmod(mode)
        return True

    def _keep(self, names: tuple[str, str, str], new: Issued | None) -> Issued | None:
        """Certificate, key and serial number under these names: written when new is given, else read."""
        certificate, key, serial = names
        if new is not None:
            self._write(certificate, new.certificate)
            self._write(key, new.key, mode=SECRET_MODE)
            self._write(serial, f"{new.serial:x}\n".encode())
            return new
        paths = [self._out / name for name in names]
        if not all(path.exists() for path in paths):
            return None
        kept = Issued(paths[0].read_bytes(), paths[1].read_bytes(), serial_in(paths[2]))
        if not is_whole(kept):
            words = "certificate or key is damaged"
            raise ConfigError("read", paths[0].with_suffix(".*"), words, hint="restore them from a backup")
        return kept

    def _ca(self) -> Issued:
        names = ("site/ca.crt", "site/ca.key", "site/ca.serial")
        ca = self._keep(names, None)
        if ca is None:
            if (self._out / "nodes").exists():
                raise CommandError("read", self._out / "site", "the CA of these nodes is gone", hint="restore it")
            ca = self._keep(names, new_ca(self._fleet.site.id, self._now))
            self.changes.append("made the site's certificate authority: keep site/ca.key safe and backed up")
        assert ca is not None
        return ca

    def _node(self, ca: Issued, node: NodePart) -> None:
        fleet = self._fleet
        place = f"nodes/{node.id}"
        names = (f"{place}/certificate.pem", f"{place}/key.pem", f"{place}/serial")
        issued = self._keep(names, None)
        is_new = issued is None
        if issued is None:
            issued = self._keep(names, issue(ca, f"{fleet.site.id}/{node.id}", self._now))
        assert issued is not None
        seed = {
            "user-data": make.user_data(fleet, node).encode(),
            "network-config": make.network_config(node).encode(),
            "firstrun.sh": make.firstrun(fleet, node).encode(),
            "camera-agent/agent.toml": make.agent_toml(fleet, node).encode(),
            "camera-agent/first-boot": (_shared("scripts") / "first-boot").read_bytes(),
            "camera-agent/mqtt-ca": ca.certificate,
            "camera-agent/mqtt-cert": issued.certificate,
            "camera-agent/mqtt-key": issued.key,
        }
        if fleet.installer.release_key:
            seed["camera-agent/release.pub"] = self._release_key()
        seed["meta-data"] = make.meta_data(fleet, node, seed).encode()
        changed = [
            name
            for name, content in seed.items()
            if self._write(f"{place}/boot/{name}", content, mode=SECRET_MODE if name.endswith("key") else 0o640)
        ]
        page = make.sheets_html(fleet, [make.sheet(fleet, node)]).encode()
        if self._write(f"{place}/sheet.html", page):
            changed.append("sheet")
        if self._bundle is not None:
            self._put_bundle(self._out / place / "boot/camera-agent/bundle")
        if is_new:
            self.changes.append(f"{node.id}: new certificate and card")
        elif changed:
            self.changes.append(f"{node.id}: changed: {', '.join(changed)}")

    def _release_key(self) -> bytes:
        path = self._origin.parent / self._fleet.installer.release_key
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(
                "read", f"installer.release_key {path}", error, hint="scripts/make-package --new-key"
            ) from error

    def _put_bundle(self, target: Path) -> None:
        """Hard links where they can be: a hundred cards share one bundle on this disk."""
        assert self._bundle is not None
        if not (self._bundle / "scripts/install").exists():
            raise ConfigError("use", f"--bundle {self._bundle}", "not a bundle", hint="made by scripts/make-package")
        shutil.rmtree(target, ignore_errors=True)
        try:
            shutil.copytree(self._bundle, target, copy_function=os.link)
        except shutil.Error:
            shutil.copytree(self._bundle, target, dirs_exist_ok=True)

    def _broker(self, ca: Issued, new_password: str | None) -> None:
        fleet = self._fleet
        hosts = [fleet.broker.host, *fleet.broker.also]
        names = ("broker/server.crt", "broker/server.key", "broker/server.serial")
        server = self._keep(names, None)
        if server is None or hosts_of(server.certificate) != hosts:
            self._keep(names, issue(ca, fleet.broker.host, self._now, hosts=hosts))
            self.changes.append(f"broker: certificate for {', '.join(hosts)}")
        self._write("broker/ca.crt", ca.certificate)
        revoked = f"{' '.join(f'{serial:x}' for serial in self._revoked)}\n".encode()
        if self._write("broker/revoked.serials", revoked) or not (self._out / "broker/revoked.crl").exists():
            self._write("broker/revoked.crl", revocations(ca, self._revoked, self._now))
        present = fleet.model_copy(update={"nodes": [node for node in fleet.nodes if node.id not in self._away]})
        if self._write("broker/acl", make.acl(present).encode()):
            self.changes.append("broker: access list")
        self._write("broker/mosquitto.conf", make.mosquitto_conf(fleet, BROKER_DIRECTORY).encode())
        self._passwords(new_password)

    def _passwords(self, new_password: str | None) -> None:
        file = self._out / "broker/passwords"
        old = file.read_text().splitlines() if file.exists() else []
        before = {line.split(":")[0]: line for line in old}
        lines = []
        for consumer in self._fleet.consumers:
            path = self._out / f"consumers/{consumer.id}.password"
            if consumer.id == new_password or not path.exists():
                self._write(
                    f"consumers/{consumer.id}.password", secrets.token_urlsafe(24).encode() + b"\n", mode=SECRET_MODE
                )
                self.changes.append(f"{consumer.id}: new password in {path}")
            lines.append(make.password_line(consumer.id, path.read_text().strip(), before.get(consumer.id, "")))
        self._write("broker/passwords", "".join(f"{line}\n" for line in lines).encode(), mode=SECRET_MODE)


def serial_in(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"), 16)
    except (OSError, ValueError) as error:
        raise ConfigError("read", path, error, hint="restore it from a backup: it names a certificate") from error


def _shared(name: str) -> Path:
    """A directory that comes with the program: beside agent/ in a checkout, below share/ in a release."""
    for base in (Path(__file__).resolve().parents[2], Path(sys.prefix) / "share/camera-agent"):
        if (base / name / "first-boot").exists():
            return base / name
    raise ConfigError("find", name, "not beside the program", hint="run it from a checkout or an installed release")
