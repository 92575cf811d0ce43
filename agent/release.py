"""Release packages: sealed with sha256 and Ed25519, verified before anything is unpacked. Reads and writes streams.

A package is one file: a magic line, one line of JSON about the payload, one line with the signature of both lines
in base64, then the payload (a tar archive). `cryptography` is an extra, imported where it is used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from tarfile import TarInfo
from typing import BinaryIO

from agent.errors import CommandError, ConfigError

MAGIC = b"camera-agent package 1\n"
NAME = "camera-agent"
ANY_MACHINE = "any"
MAX_LINE_BYTES = 4096
MAX_HEAD_BYTES = len(MAGIC) + 2 * MAX_LINE_BYTES
MAX_PAYLOAD_BYTES = 2**30
PIECE_BYTES = 2**20


class PackageRefusedError(CommandError):
    """This package is not installed; nothing was unpacked."""

    def __init__(self, cause: str, *, hint: str = "") -> None:
        super().__init__("install", "package", cause, hint=hint)


@dataclass(frozen=True, slots=True)
class About:
    """What the signature vouches for. machine: as uname -m says, or "any". sha256, bytes: of the payload."""

    name: str
    version: str
    machine: str
    bytes: int
    sha256: str


Version = tuple[int, int, int]


def version_of(text: str) -> Version:
    """ "1.20.3" in an order that compares. Raises PackageRefusedError."""
    found = re.fullmatch(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})", text, re.ASCII)
    if found is None:
        raise PackageRefusedError(f"version {text[:40]!r} is not of the form 1.2.3")
    return int(found[1]), int(found[2]), int(found[3])


def seal(out: BinaryIO, payload: BinaryIO, version: str, machine: str, private_key_pem: bytes) -> About:
    """Write the package of payload (seekable) to out. Raises ConfigError for a key that is none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    version_of(version)
    try:
        key = load_pem_private_key(private_key_pem, None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "read", "signing key", error, hint="an Ed25519 private key in PEM, without password"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            "read", "signing key", "not an Ed25519 key", hint="make one with scripts/make-package --new-key"
        )
    digest, length = hashlib.sha256(), 0
    while piece := payload.read(PIECE_BYTES):
        digest.update(piece)
        length += len(piece)
    about = About(NAME, version, machine, length, digest.hexdigest())
    head = MAGIC + json.dumps(asdict(about), sort_keys=True).encode() + b"\n"
    out.write(head + base64.b64encode(key.sign(head)) + b"\n")
    payload.seek(0)
    while piece := payload.read(PIECE_BYTES):
        out.write(piece)
    return about


def read_head(package: BinaryIO, *, public_keys_pem: bytes, trusted: str, machine: str, older: bool = False) -> About:
    """What the first lines of a package say, if it may be installed; else PackageRefusedError.

    public_keys_pem: one or more keys; one of them must have signed. trusted: the version in use, which the package's
    must exceed (older: need only differ). The payload follows; it has been looked at by nobody.
    """
    head = package.read(len(MAGIC))
    if head != MAGIC:
        raise PackageRefusedError("it is not a camera-agent package")
    line, signature = _line(package), _line(package)
    _check_signature(head + line, signature, public_keys_pem)
    about = _about(line)
    if about.name != NAME:
        raise PackageRefusedError(f"it is a package of {about.name[:40]!r}")
    if about.machine not in (ANY_MACHINE, machine):
        raise PackageRefusedError(f"it is for {about.machine[:40]}, this node is {machine}")
    offered, ours = version_of(about.version), version_of(trusted)
    if offered == ours or (offered < ours and not older):
        raise PackageRefusedError(f"version {about.version} is not newer than {trusted}", hint="see --older")
    if not 0 < about.bytes <= MAX_PAYLOAD_BYTES:
        raise PackageRefusedError(f"its payload says it has {about.bytes} bytes")
    return about


def admit(
    package: BinaryIO, payload: BinaryIO, *, public_keys_pem: bytes, trusted: str, machine: str, older: bool = False
) -> About:
    """Copy the payload of a package that may be installed to payload; else PackageRefusedError.

    Arguments as of read_head(). What is hashed is what is copied, so nobody can exchange it in between. On refusal
    payload holds bytes of no worth.
    """
    about = read_head(package, public_keys_pem=public_keys_pem, trusted=trusted, machine=machine, older=older)
    digest, left = hashlib.sha256(), about.bytes
    while left:
        piece = package.read(min(left, PIECE_BYTES))
        if not piece:
            raise PackageRefusedError(f"it is cut off: {left} bytes of {about.bytes} are missing")
        digest.update(piece)
        payload.write(piece)
        left -= len(piece)
    if package.read(1):
        raise PackageRefusedError("something follows its payload")
    if digest.hexdigest() != about.sha256:
        raise PackageRefusedError("its sha256 does not match: damaged on the way")
    return about


def _line(package: BinaryIO) -> bytes:
    line = package.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise PackageRefusedError("its head is damaged")
    return line


def _check_signature(head: bytes, line: bytes, public_keys_pem: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        signature = base64.b64decode(line[:-1], validate=True)
    except binascii.Error as error:
        raise PackageRefusedError("its signature is damaged") from error
    blocks = re.findall(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", public_keys_pem, re.DOTALL)
    if not blocks:
        raise PackageRefusedError(
            "this node has no release key", hint="provisioning puts it at /etc/camera-agent/release.pub"
        )
    for block in blocks:
        try:
            key = load_pem_public_key(block)
        except ValueError:
            continue
        if isinstance(key, Ed25519PublicKey):
            try:
                key.verify(signature, head)
                return
            except InvalidSignature:
                continue
    raise PackageRefusedError("none of this node's release keys has signed it")


def _about(line: bytes) -> About:
    """Only after the signature: what a key of ours signed is at worst a mistake of ours."""
    try:
        tree = json.loads(line)
        about = About(**tree)
    except (ValueError, TypeError, RecursionError) as error:
        raise PackageRefusedError(f"its head is not understood: {error}") from error
    for field in fields(About):
        if type(getattr(about, field.name)).__name__ != field.type:
            raise PackageRefusedError(f"its head is not understood: {field.name} should be {field.type}")
    return about


def check_member(member: TarInfo) -> None:
    """Plain files and directories below the place of unpacking only, also from a hand that may sign."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
        raise PackageRefusedError(f"its archive has a member that may not be: {member.name[:80]!r}")


def is_due(site: str, node: str, version: str, percent: float) -> bool:
    """Is this node among so many percent of all? Those of 10 are among those of 20; each version draws anew."""
    digest = hashlib.sha256(f"{version}/{site}/{node}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100 < percent
