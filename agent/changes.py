"""What differs between two settings, and which of it a running node can take over. Touches nothing."""

from __future__ import annotations

from agent.settings import Settings

LIVE = (
    "node.name",
    "node.location",
    "detection.*",
    "zones",
    "clips.budget_mb",
    "clips.max_age_days",
    "clips.min_free_mb",
    "clips.card_endurance_tb",
    "clips.post_roll_s",
    "clips.max_clip_s",
    "outbox.*",
    "health.*",
    "log.level",
)
"""Settings that apply without a restart. Of zones only those that hide nothing: a mask is burned in by the camera."""


def changed(before: Settings, after: Settings) -> list[str]:
    """Names of the settings that differ, as section.setting, `zones`, or `zones (privacy)`."""
    found = []
    for section in Settings.model_fields:
        old, new = getattr(before, section), getattr(after, section)
        if old == new:
            continue
        if section == "zones":
            found.append("zones" if _masks(before) == _masks(after) else "zones (privacy)")
        else:
            found += [f"{section}.{key}" for key in type(old).model_fields if getattr(old, key) != getattr(new, key)]
    return found


def needing_restart(before: Settings, after: Settings) -> list[str]:
    """Names of the settings that differ and that only a start of the program applies."""
    return [name for name in changed(before, after) if not applies_live(name)]


def applies_live(name: str) -> bool:
    return name in LIVE or f"{name.split('.')[0]}.*" in LIVE


def _masks(settings: Settings) -> list[object]:
    return [zone for zone in settings.zones if zone.kind == "privacy"]
