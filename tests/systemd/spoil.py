"""spoil.py PACKAGES: makes of good.package some that must be refused (tests/test_release.py has a thousand more)."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

directory = Path(sys.argv[1])
good = (directory / "good.package").read_bytes()
magic, about, signature, payload = good.split(b"\n", 3)
flipped = bytearray(payload)
flipped[len(payload) // 2] ^= 1
lines = {
    "bad-payload": (magic, about, signature, bytes(flipped)),
    "bad-cut": (magic, about, signature, payload[: len(payload) // 2]),
    "bad-unsigned": (magic, about, base64.b64encode(bytes(64)), payload[:1000]),
    "bad-renamed": (magic, about.replace(b"9.0.1", b"9.0.9"), signature, payload[:1000]),
}
for name, parts in lines.items():
    (directory / f"{name}.package").write_bytes(b"\n".join(parts))
