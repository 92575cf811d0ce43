"""Every box between the dispatcher and the other threads, and raw commands from messages. Touches memory only."""

from __future__ import annotations

from dataclasses import dataclass

from agent.connection import Incoming
from agent.errands import ErrandDesk
from agent.handoffs import Doorbell
from agent.mailboxes import Box, CommandBox, FrameTap, MediaBox, RawCommand, Reply
from agent.strict_json import MAX_BYTES


@dataclass(frozen=True, slots=True)
class Mail:
    """Every box the dispatcher has with the other threads."""

    bell: Doorbell
    commands: CommandBox
    replies: Box[Reply]
    media: MediaBox
    errands: ErrandDesk
    tap: FrameTap
    main_tap: FrameTap

    @classmethod
    def make(cls, storage_bell: Doorbell) -> Mail:
        bell = Doorbell()
        return cls(
            bell,
            CommandBox(bell),
            Box(32),
            MediaBox(to_commands=bell),
            ErrandDesk(Box(64, storage_bell), Box(256, bell)),
            FrameTap(bell),
            FrameTap(bell),
        )

    def hear(self, message: Incoming) -> None:
        """From the link's thread: a message on cmd/+."""
        self.commands.put(_raw(message, message.topic.rsplit("/", 1)[-1]))

    def hear_desired(self, message: Incoming) -> None:
        """From the link's thread: a message on config/desired."""
        self.commands.put_desired(_raw(message, "config/desired"))


def _raw(message: Incoming, verb: str) -> RawCommand:
    size = len(message.payload)
    payload = message.payload if size <= MAX_BYTES else b""
    return RawCommand(verb, payload, size, message.retained, message.response_topic[:300], message.correlation[:256])
