"""Live pictures under leases: who wants how much until when, and what may be sent now. Touches nothing, no clock.

A dashboard that goes away stops costing anything when its lease ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import NS_PER_S
from agent.requests import LiveArgs
from agent.settings import CommandSettings

LEASES = 16
QUALITY = 60


@dataclass(frozen=True, slots=True)
class Lease:
    """What one client was granted. until_ns: boot clock."""

    fps: float
    width: int
    until_ns: int


class Live:
    """At most LEASES clients share one stream: the fastest and widest that any of them was granted."""

    def __init__(self, settings: CommandSettings) -> None:
        self._settings = settings
        self._leases: dict[str, Lease] = {}
        self._due_ns = 0
        self._credit_bytes = 0.0
        self._credited_ns: int | None = None
        self.frames = 0
        self.held_back = 0

    def grant(self, client: str, args: LiveArgs, now_ns: int) -> Lease | None:
        """Begin, renew or (ttl_s 0) end the client's lease; None when too many others have one."""
        self._expire(now_ns)
        caps = self._settings
        ttl_s = min(args.ttl_s, caps.live_max_ttl_s)
        lease = Lease(
            fps=min(args.fps, caps.live_max_fps),
            width=min(args.width, caps.live_max_width),
            until_ns=now_ns + round(ttl_s * NS_PER_S),
        )
        if ttl_s <= 0:
            self._leases.pop(client, None)
        elif client in self._leases or len(self._leases) < LEASES:
            self._leases[client] = lease
        else:
            return None
        return lease

    def _expire(self, now_ns: int) -> None:
        self._leases = {client: lease for client, lease in self._leases.items() if lease.until_ns > now_ns}
        if not self._leases:
            self._credited_ns = None

    def is_on(self, now_ns: int) -> bool:
        self._expire(now_ns)
        return bool(self._leases)

    def width_now(self, now_ns: int) -> int | None:
        """The width of the frame to send now; None when none is due or the byte budget is used up."""
        if not self.is_on(now_ns):
            return None
        bytes_per_s = self._settings.live_max_kbps * 1000 / 8
        if self._credited_ns is None:
            self._credited_ns, self._credit_bytes = now_ns, bytes_per_s
            self._due_ns = now_ns
        earned = bytes_per_s * (now_ns - self._credited_ns) / NS_PER_S
        self._credit_bytes = min(bytes_per_s, self._credit_bytes + earned)
        self._credited_ns = now_ns
        if now_ns < self._due_ns:
            return None
        if self._credit_bytes <= 0:
            self.held_back += 1
            return None
        return max(lease.width for lease in self._leases.values())

    def sent(self, size: int, now_ns: int) -> None:
        """A frame of size bytes was sent."""
        self.frames += 1
        self._credit_bytes -= size
        fps = max((lease.fps for lease in self._leases.values()), default=1.0)
        period_ns = round(NS_PER_S / fps)
        # From the due time, not from now: 15 fps thinned to 4 must not become 3.75.
        self._due_ns = max(self._due_ns + period_ns, now_ns - period_ns)
