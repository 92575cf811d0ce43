"""What each connection says on a topic that it also hears: its session, so that a twin shows. Touches nothing.

It is also the start-up self-test where a broker answers a denied message like a taken one (MQTT 3.1.1): until it came
back, what the broker acknowledges proves nothing, so nothing that counts is sent.
"""

from __future__ import annotations

from agent.model import NS_PER_S

PATIENCE_S = 10.0
AGAIN_S = 60.0
"""An echo that did not come is asked for again so often: somebody may have mended the access list."""


class Echo:
    """One connection's word. is_needed: as a self-test; False where the broker tells what it denies (MQTT 5)."""

    def __init__(self, topic: str, session: str, *, is_needed: bool) -> None:
        self.topic = topic
        self.payload = session.encode()
        self.is_heard = not is_needed
        self.trouble = ""
        self._said_ns: int | None = None

    def wants_to_speak(self, now_ns: int) -> bool:
        """Whether it is time to publish `payload` to `topic`; counts as said."""
        if self._said_ns is None:
            self._said_ns = now_ns
            return True
        if self.is_heard:
            return False
        waited_s = (now_ns - self._said_ns) / NS_PER_S
        if waited_s >= PATIENCE_S and not self.trouble:
            self.trouble = (
                f"self-test failed: {self.topic} did not come back, so messages would be lost in silence; nothing "
                "is sent (the broker's access list must let this node write its topics and read this one, or: "
                "a broker of MQTT 5)"
            )
        if waited_s >= AGAIN_S:
            self._said_ns = now_ns
            return True
        return False

    def hear(self, topic: str, payload: bytes) -> bool:
        """Whether this message was the echo."""
        if topic != self.topic:
            return False
        if payload == self.payload:
            self.is_heard, self.trouble = True, ""
        return True

    def wake_ns(self) -> int | None:
        """When wants_to_speak() may say something else than now; None: never."""
        if self.is_heard or self._said_ns is None:
            return None
        return self._said_ns + round((AGAIN_S if self.trouble else PATIENCE_S) * NS_PER_S)
