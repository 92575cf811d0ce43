"""ULIDs: ids that sort by the time they were made. Touches the random source only."""

from __future__ import annotations

import re
import secrets

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_PATTERN = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def new_ulid(wall_ms: int, randomness: int | None = None) -> str:
    """26 characters: 48 bits of UNIX milliseconds, then 80 random bits (or those given)."""
    low = secrets.randbits(80) if randomness is None else randomness
    value = (min(max(wall_ms, 0), (1 << 48) - 1) << 80) | (low & ((1 << 80) - 1))
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def is_ulid(text: str) -> bool:
    """Whether text is a ULID in canonical form; ids from outside are checked with this before they touch a path."""
    return _PATTERN.fullmatch(text) is not None


def wall_ms_of(ulid: str) -> int:
    """UNIX milliseconds of a canonical ULID."""
    value = 0
    for letter in ulid[:10]:
        value = value * 32 + _ALPHABET.index(letter)
    return value
