"""What should be known of a connection that works: an old protocol, certificates that will end. Touches nothing."""

from __future__ import annotations

import logging

from agent.certificates import DEGRADED_DAYS, expiry_words
from agent.connection import Connection

log = logging.getLogger(__name__)

LOOK_S = 10
OLD_PROTOCOL = "the broker speaks MQTT 3.1.1 only: it does not say when it refuses a message"


class Notices:
    """warning: works, but should be known. trouble: will soon not work; a reason to be degraded. One line each."""

    def __init__(self) -> None:
        self.warning = ""
        self.trouble = ""
        self._looked_s = -1.0
        self._told: set[str] = set()

    def begin(self) -> None:
        """A new connection: all is looked at anew and said again in the log."""
        self._looked_s = -1.0
        self._told.clear()

    def look(self, connection: Connection, now_s: float) -> None:
        """now_s: UNIX seconds. Cheap: certificates are judged each LOOK_S at most."""
        if 0 <= now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        due = expiry_words(connection.certificates, now_s)
        urgent = [words for days, words in due.items() if days <= DEGRADED_DAYS]
        mild = [words for days, words in due.items() if days > DEGRADED_DAYS]
        old = [OLD_PROTOCOL] if connection.protocol != "5" else []
        self.trouble = "; ".join(urgent)
        self.warning = "; ".join([*old, *mild, *([connection.tls_warning] if connection.tls_warning else [])])
        for key, words in [(f"{days} days", words) for days, words in due.items()]:
            self._tell(key, words)
        for words in (*old, connection.tls_warning):
            self._tell(words, words)

    def _tell(self, key: str, words: str) -> None:
        """Once per connection and stage: 30, 7, 1 days before."""
        if words and key not in self._told:
            self._told.add(key)
            log.warning("%s", words)
