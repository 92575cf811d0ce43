"""How long certificates are still good, read from the bytes themselves. Touches nothing.

Python's ssl shows the dates of a peer's certificate only after a handshake, and of one's own not at all.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

DAY_S = 86_400
WARN_DAYS = 30
DEGRADED_DAYS = 7
LAST_DAYS = 1

_CONTEXT_0, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18


@dataclass(frozen=True, slots=True)
class Certificate:
    """name: whose it is, in words. Times: UNIX seconds."""

    name: str
    not_before_s: float
    not_after_s: float

    def days_left(self, now_s: float) -> float:
        return (self.not_after_s - now_s) / DAY_S

    def notice_days(self, now_s: float) -> int | None:
        """Which warning is due: 30, 7 or 1 (days), None while there is time.

        What is renewed by itself every few weeks or days has two thirds of its life to do so without a word.
        """
        lifetime_s = self.not_after_s - self.not_before_s
        if self.not_after_s - now_s > lifetime_s / 3:
            return None
        left = self.days_left(now_s)
        return next((days for days in (LAST_DAYS, DEGRADED_DAYS, WARN_DAYS) if left <= days), None)


def certificate(name: str, der: bytes) -> Certificate | None:
    """The dates of an X.509 certificate in DER; None for bytes that are none."""
    try:
        _, body, _ = _element(der, 0)  # Certificate
        _, tbs, _ = _element(body, 0)  # TBSCertificate
        tag, _, at = _element(tbs, 0)
        if tag == _CONTEXT_0:  # the version, absent in version 1
            _, _, at = _element(tbs, at)  # serial number
        _, _, at = _element(tbs, at)  # signature algorithm
        _, _, at = _element(tbs, at)  # issuer
        _, validity, _ = _element(tbs, at)
        first, before, at = _element(validity, 0)
        second, after, _ = _element(validity, at)
        return Certificate(name, _seconds(first, before), _seconds(second, after))
    except (IndexError, ValueError):
        return None


def expiry_words(certificates: Iterable[Certificate], now_s: float) -> dict[int, str]:
    """Days of the warning that is due (30, 7, 1) -> its words, the most urgent certificate of each."""
    found: dict[int, str] = {}
    for each in sorted(certificates, key=lambda each: each.not_after_s):
        days = each.notice_days(now_s)
        if days is not None:
            found.setdefault(days, f"{each.name} {_end(each, now_s)}: renew it")
    return found


def utc_words(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _end(each: Certificate, now_s: float) -> str:
    if now_s >= each.not_after_s:
        return f"has expired ({utc_words(each.not_after_s)})"
    left = each.days_left(now_s)
    words = f"in {left:.0f} days" if left >= 2 else f"in {left * 24:.0f} hours"
    return f"expires {words} ({utc_words(each.not_after_s)})"


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """(tag, content, position behind it) of the DER element at a position; IndexError, ValueError if it is broken."""
    tag, length, at = data[at], data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(data[at : at + size], "big"), at + size
    if at + length > len(data):
        raise ValueError("shorter than it says")
    return tag, data[at : at + length], at + length


def _seconds(tag: int, text: bytes) -> float:
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}.get(tag)
    if form is None:
        raise ValueError("no time")
    return dt.datetime.strptime(text.decode("ascii"), form).replace(tzinfo=dt.UTC).timestamp()
