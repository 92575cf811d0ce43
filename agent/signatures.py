"""Signed commands: which operator key made a signature. Touches nothing; needs the extra `signed` (cryptography)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agent.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEY_BYTES = 32


class OperatorKeys:
    """Ed25519 public keys by name. ConfigError for a key that is none, and where cryptography is not installed.

    keys: name -> 32 bytes in Base64.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        except ImportError as error:
            raise ConfigError(
                "use",
                "commands.operator_keys",
                "signed commands need the Python package cryptography, which is not installed",
                hint="pip install 'camera-agent[signed]' or apt install python3-cryptography",
            ) from error
        self._keys: dict[str, Ed25519PublicKey] = {}
        for name, text in keys.items():
            try:
                raw = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ConfigError("read", f"commands.operator_keys.{name}", f"not Base64: {error}") from error
            if len(raw) != KEY_BYTES:
                raise ConfigError(
                    "read",
                    f"commands.operator_keys.{name}",
                    f"{len(raw)} bytes; an Ed25519 public key has {KEY_BYTES}",
                    hint="the raw key in Base64, not PEM",
                )
            self._keys[name] = Ed25519PublicKey.from_public_bytes(raw)

    def signer_of(self, text: bytes, signature: str) -> str | None:
        """The name of the key that signed text; None when none of ours did. signature: 64 bytes in Base64."""
        from cryptography.exceptions import InvalidSignature

        try:
            raw = base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError):
            return None
        for name, key in self._keys.items():
            try:
                key.verify(raw, text)
            except InvalidSignature:
                continue
            return name
        return None
