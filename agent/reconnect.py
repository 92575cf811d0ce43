"""When and how the next connection to the broker is tried, from how the last ones ended. Touches nothing.

No clock: the time is given, boot-clock ns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from agent.backoff import Backoff
from agent.connection import TAKEN_OVER, UNSUPPORTED_VERSION, Connection
from agent.errors import LinkError
from agent.model import NS_PER_S

log = logging.getLogger(__name__)

Attempt = Literal["5", "probe", "3.1.1"]

STABLE_S = 2.0
"""A connection that held so long, or delivered something, makes the next back-off short again."""

TAKEOVER_PAUSE_S = 180.0
DUPLICATE = "duplicate-id: another client keeps taking our place"
SILENT_PROBES = 2
"""Bare CONNECTs of MQTT 5 that a broker left unanswered, in a row, before 3.1.1 is tried unasked."""


class Reconnect:
    """attempt: how to try; next_try_ns: not before this; failure: why there is no connection, in one line.

    duplicate_hint: what to look for when another client lives under our name.
    """

    def __init__(self, client_id: str, jitter: Callable[[], float], now_ns: int) -> None:
        self.attempt: Attempt = "5"
        self.next_try_ns = now_ns
        self.failure = ""
        self.duplicate_hint = f"two nodes are configured as {client_id}, or a card was cloned"
        self._jitter = jitter
        self._backoff = Backoff(jitter)
        self._silent_probes = 0
        self._born_ns: int | None = None

    def begun(self, now_ns: int) -> None:
        """A try was begun: at most one a second, whatever happens to it."""
        self.next_try_ns = now_ns + NS_PER_S
        self._born_ns = None

    def born(self, now_ns: int) -> None:
        """The broker accepted us."""
        self._born_ns = now_ns
        self.failure = ""

    def probed(self) -> None:
        """A probe was accepted: the broker speaks MQTT 5 after all."""
        self.attempt, self._silent_probes = "5", 0

    def not_reached(self, failure: LinkError, now_ns: int) -> None:
        """There was no connection at all."""
        self._pause(failure, now_ns, self._backoff.next_s())

    def ended(
        self, connection: Connection, failure: LinkError, now_ns: int, *, delivered_some: bool, has_twin: bool
    ) -> None:
        """A connection is over. delivered_some: it was of use; has_twin: another client lives under our name."""
        born_ns, self._born_ns = self._born_ns, None
        if born_ns is not None and (delivered_some or now_ns - born_ns > STABLE_S * NS_PER_S):
            self._backoff.reset()
        if self._choose_attempt(connection, was_born=born_ns is not None):
            self.failure = str(failure)
        elif has_twin and (connection.closed_silently or connection.closed_by == TAKEN_OVER):
            duplicate = LinkError("stay connected to", connection.where, DUPLICATE, hint=self.duplicate_hint)
            self._pause(duplicate, now_ns, TAKEOVER_PAUSE_S * (0.5 + self._jitter()))
        else:
            self._pause(failure, now_ns, self._backoff.next_s())

    def _pause(self, failure: LinkError, now_ns: int, delay_s: float) -> None:
        self.next_try_ns = now_ns + round(delay_s * NS_PER_S)
        words = str(failure)
        # The same trouble again is not news.
        log.log(logging.DEBUG if words == self.failure else logging.WARNING, "%s; next try in %.0f s", words, delay_s)
        self.failure = words

    def _choose_attempt(self, connection: Connection, *, was_born: bool) -> bool:
        """How the next connection is tried; whether at once, because the broker's answer settled it.

        MQTT 5 first, each time anew. A broker of 3.1.1 refuses it in words, or waits for the rest of a packet that
        it misreads (amqtt), or hangs up: the last two look like trouble of the moment, so a bare CONNECT asks again,
        lest a node speaks 3.1.1 for weeks to a broker that knows better.
        """
        attempt = self.attempt
        if attempt == "3.1.1":
            self.attempt = "probe" if was_born else "5"
            return False
        if connection.refusal == UNSUPPORTED_VERSION:
            log.warning("%s refuses MQTT 5: trying 3.1.1", connection.where)
            self.attempt, self._silent_probes = "3.1.1", 0
            return True
        if attempt == "5":
            self.attempt = "probe" if connection.is_unanswered else "5"
            return False
        self._silent_probes = self._silent_probes + 1 if connection.is_unanswered else 0
        self.attempt = "3.1.1" if self._silent_probes >= SILENT_PROBES else "5"
        return connection.refusal is not None
