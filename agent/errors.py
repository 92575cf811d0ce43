"""The few kinds of expected trouble, named for what the node does next. Touches nothing."""

from __future__ import annotations


class AgentError(Exception):
    """Root of all expected trouble. Anything else that is raised is a bug.

    operation: what was tried ("open", "write"); thing: the path, topic or setting it was tried on;
    cause: an exception or words; hint: what an operator can do about it. str() is one line.
    """

    exit_code = 1

    def __init__(self, operation: str, thing: object, cause: BaseException | str, *, hint: str = "") -> None:
        self.operation = operation
        self.thing = str(thing)
        self.cause = _in_words(cause)
        self.hint = hint
        super().__init__(operation, thing, cause)

    def __str__(self) -> str:
        line = f"{self.operation} {self.thing}: {self.cause}"
        return " ".join((f"{line} ({self.hint})" if self.hint else line).split())


def _in_words(cause: BaseException | str) -> str:
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(cause, BaseException):
        return str(cause) or type(cause).__name__
    return cause


class ConfigError(AgentError):
    """The settings are wrong: stop; starting again will not help (exit 78, EX_CONFIG)."""

    exit_code = 78


class CameraError(AgentError):
    """The camera failed: restart the camera."""


class CameraStuckError(CameraError):
    """The camera's driver hangs in this process: end it, and let systemd start another."""


class StorageError(AgentError):
    """The disk failed: degrade (evict, then events only)."""


class LinkError(AgentError):
    """The broker or the way to it failed: back off, connect again."""


class CommandError(AgentError):
    """A command was refused: answer, carry on."""
