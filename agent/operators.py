"""Who may command this node: the checks its settings ask for, and the counters of signed commands. Reads one file."""

from __future__ import annotations

import logging
from pathlib import Path

from agent.admission import Admission
from agent.disk import Disk
from agent.errors import StorageError
from agent.settings import Settings
from agent.signatures import OperatorKeys
from agent.strict_json import StrictJsonError, parse
from agent.topics import Topics

log = logging.getLogger(__name__)

COUNTERS_NAME = "operator-counters.json"


def admission_of(settings: Settings, disk: Disk | None = None) -> Admission:
    """The checks that these settings ask for. ConfigError where they want signatures and cannot have them."""
    base = Topics(settings.mqtt.root, settings.node.site, settings.node.id).base
    given = settings.commands
    keys, counters = None, None
    if given.operator_keys:
        keys = OperatorKeys(dict(key.split(":", 1) for key in given.operator_keys))
        counters = _counters(disk or Disk(), settings.clips.directory / COUNTERS_NAME)
    admission = Admission(
        base, f"{settings.node.site}/{settings.node.id}", keys=keys, counters=counters, allow=tuple(given.allow)
    )
    if keys is not None and counters is None:
        admission.counters = None
    return admission


def _counters(disk: Disk, path: Path) -> dict[str, int] | None:
    """Highest counter by key; None where the file cannot be read: an old signed command could come again."""
    try:
        if disk.size(path) is None:
            return {}
        found = parse(disk.read(path))
    except (StorageError, StrictJsonError) as error:
        log.error("%s: %s; no signed command is executed", path, error)
        return None
    if not isinstance(found, dict) or not all(isinstance(count, int) for count in found.values()):
        log.error("%s: not a table of counters; no signed command is executed", path)
        return None
    return {str(name): int(count) for name, count in found.items()}
