"""Release keys and sealed packages for tests."""

from __future__ import annotations

import functools
import io
import random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from agent.release import seal

PAYLOAD = random.Random(7).randbytes(3000)


@functools.cache
def key_pair(number: int) -> tuple[bytes, bytes]:
    """(private, public) in PEM; the same number gives the same key."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


@functools.cache
def package(version: str = "1.2.3", machine: str = "aarch64", key: int = 1, payload: bytes = PAYLOAD) -> bytes:
    out = io.BytesIO()
    seal(out, io.BytesIO(payload), version, machine, key_pair(key)[0])
    return out.getvalue()
